"""Writes tests/importers/data/umi/session.zarr.zip by zarr 2 and imagecodecs, like UMI's 07_generate_replay_buffer.py.

    python3.11 -m venv oracle && oracle/bin/pip install zarr==2.16.1 'numcodecs<0.13' 'numpy<2' imagecodecs
    oracle/bin/python tests/importers/make/umi.py

Two demonstrations of 9 and 6 steps. The upper half of image t has a grey of its number, and x is t / 1000.
"""

from pathlib import Path

import numpy as np
import zarr
from imagecodecs.numcodecs import Jpegxl, register_codecs

OUT = Path(__file__).parents[1] / "data/umi/session.zarr.zip"
ENDS = np.array([9, 15], np.int64)

register_codecs()
rng = np.random.default_rng(0)
N = int(ENDS[-1])
OUT.unlink(missing_ok=True)
with zarr.ZipStore(str(OUT), mode="w") as store:
    root = zarr.group(store, overwrite=True)
    data, meta = root.create_group("data"), root.create_group("meta")
    meta.array("episode_ends", ENDS, chunks=ENDS.shape, compressor=None)
    position = rng.normal(0, 0.1, (N, 3)).astype(np.float32)
    position[:, 0] = np.arange(N) / 1000
    for name, value in {
        "robot0_eef_pos": position,
        "robot0_eef_rot_axis_angle": rng.normal(0, 0.3, (N, 3)).astype(np.float32),
        "robot0_gripper_width": rng.uniform(0, 0.08, (N, 1)).astype(np.float32),
        "robot0_demo_start_pose": np.repeat(rng.normal(size=(2, 6)), (9, 6), 0),
        "robot0_demo_end_pose": np.repeat(rng.normal(size=(2, 6)), (9, 6), 0),
    }.items():
        data.array(name, value, chunks=value.shape, compressor=zarr.Blosc(cname="zstd", clevel=5))
    pictures = data.require_dataset(
        "camera0_rgb",
        shape=(N, 32, 32, 3),
        chunks=(1, 32, 32, 3),
        dtype=np.uint8,
        compressor=Jpegxl(level=99, numthreads=1),
    )
    for t in range(N):
        picture = rng.integers(100, 140, (32, 32, 3), dtype=np.uint8)
        picture[:16] = 10 * t
        pictures[t] = picture
print(OUT, OUT.stat().st_size)
