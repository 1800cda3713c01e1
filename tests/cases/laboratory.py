"""A laboratory's recordings with two cameras of 480x640, as LeRobotDataset v2.1 and v3.0, and as ALOHA's HDF5.

Written with h5py, pyarrow and PyAV alone.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from lerobot_folders import Recordings, square_frames, write_v3, write_v21

LENGTHS = (12, 13, 12)
HEIGHT, WIDTH = 480, 640
LEROBOT = Recordings(
    lengths=LENGTHS,
    tasks=("put the cube into the bowl",) * len(LENGTHS),
    fps=30,
    dims=7,
    height=HEIGHT,
    width=WIDTH,
    camera="observation.images.front",
    second_camera="observation.images.wrist",
    encoder={"g": "2", "bf": "0", "preset": "ultrafast"},
)


def write_all(root: Path) -> None:
    """Writes the folders v21, v30 and aloha into `root`."""
    write_v21(root / "v21", LEROBOT)
    write_v3(root / "v30", LEROBOT)
    _write_aloha(root / "aloha")


def _frames(episode: int) -> np.ndarray:
    return square_frames(LENGTHS[episode], HEIGHT, WIDTH, episode)


def _walk(episode: int, dims: int, step: float) -> tuple[np.ndarray, np.ndarray]:
    """(positions before each step, steps), float64 (T, dims) each, in smooth motion."""
    rng = np.random.default_rng(episode)
    phase, speed = rng.uniform(0, 6.28, (2, dims))
    t = np.arange(LENGTHS[episode] + 1)[:, None]
    at = np.sin(0.15 * t * (1 + speed / 6.28) + phase) * step
    return at[:-1], np.diff(at, axis=0)


def _write_aloha(root: Path) -> None:
    """Absolute joint positions of two arms; the left one stays where it is."""
    root.mkdir(parents=True)
    for e in range(len(LENGTHS)):
        at, steps = _walk(e, 14, 0.4)
        at[:, :7], steps[:, :7] = 0.3, 0
        with h5py.File(root / f"episode_{e}.hdf5", "w") as file:
            file.attrs["sim"], file.attrs["compress"] = False, False
            file["action"] = (at + steps).astype(np.float32)
            for name, values in (("qpos", at), ("qvel", steps * 50), ("effort", 0 * at)):
                file[f"observations/{name}"] = values.astype(np.float32)
            file["observations/images/cam_high"] = _frames(e)
            file["observations/images/cam_right_wrist"] = _frames(e)[:, :, ::-1]
