"""Writes tests/importers/data/lerobot2 with lerobot 0.3.3, the last with v2.1, in the environment of `make interop`:

    .venv-lerobot/bin/pip install --no-deps --target old lerobot==0.3.3
    PYTHONPATH=old:tests/interop/stand_in .venv-lerobot/bin/python tests/importers/make/lerobot2.py

Two episodes of 7 and 5 steps, a video and an image camera. The task changes in the first. Image t has the grey 10 t.
"""

import json
import os
import shutil
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

OUT = Path(__file__).parents[1] / "data/lerobot2"
shutil.rmtree(OUT, ignore_errors=True)
names = ["height", "width", "channels"]
features = {
    "observation.state": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "grip"]},
    "observation.effort": {"dtype": "float32", "shape": (2,), "names": None},
    "action": {"dtype": "float32", "shape": (2,), "names": ["dx", "dy"]},
    "observation.images.front": {"dtype": "video", "shape": (64, 64, 3), "names": names},
    "observation.images.wrist": {"dtype": "image", "shape": (16, 16, 3), "names": names},
}
data = LeRobotDataset.create("local/tiny", fps=10, features=features, root=OUT, robot_type="arm", use_videos=True)
rng = np.random.default_rng(0)
truth = {}
for e, T in enumerate((7, 5)):
    for t in range(T):
        row = {
            "observation.state": np.array([t / 10, *rng.normal(size=2)], np.float32),
            "observation.effort": rng.normal(size=2).astype(np.float32),
            "action": np.array([t / 100, rng.normal()], np.float32),
        }
        for k, v in row.items():
            truth.setdefault(f"{k}{e}", []).append(v)
        row["observation.images.front"] = np.full((64, 64, 3), 10 * t, np.uint8)
        row["observation.images.wrist"] = np.full((16, 16, 3), 10 * t, np.uint8)
        data.add_frame(row, task="put it down" if (e, t >= 4) == (0, True) else "pick it up")
    data.save_episode()
shutil.rmtree(OUT / "images", ignore_errors=True)
np.savez_compressed(OUT.parent / "lerobot2.npz", **{k: np.stack(v) for k, v in truth.items()})
modality = {
    "state": {"hand": {"start": 0, "end": 2, "absolute": True}, "grip": {"start": 2, "end": 3}},
    "action": {"hand": {"start": 0, "end": 2, "absolute": False}},
    "video": {"front": {"original_key": "observation.images.front"}},
}
(OUT / "meta/modality.json").write_text(json.dumps(modality, indent=1))
print(*(f"{p.relative_to(OUT)} {p.stat().st_size}" for p in sorted(OUT.rglob("*")) if p.is_file()), sep="\n")
