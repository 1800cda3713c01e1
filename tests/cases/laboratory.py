"""A laboratory's recordings with two cameras of 480x640: LeRobotDataset v2.1 and v3.0, HDF5 of ALOHA and robomimic.

Written with h5py, pyarrow and PyAV alone.
"""

from __future__ import annotations

import json
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
    """Writes the folders v21, v30 and aloha, and robomimic.hdf5, into `root`."""
    write_v21(root / "v21", LEROBOT)
    write_v3(root / "v30", LEROBOT)
    _write_aloha(root / "aloha")
    _write_robomimic(root / "robomimic.hdf5")


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


def _write_robomimic(path: Path) -> None:
    """Deltas of an OSC_POSE controller: a twentieth of a metre, half a radian."""
    with h5py.File(path, "w") as file:
        controller = {"type": "OSC_POSE", "control_delta": True, "input_ref_frame": "base"}
        kwargs = {"robots": ["Panda"], "control_freq": 20, "controller_configs": controller}
        file.create_group("data").attrs["env_args"] = json.dumps({"env_name": "Lab", "env_kwargs": kwargs})
        for e, steps in enumerate(LENGTHS):
            (at, moves), demo = _walk(e, 7, 0.2), file.create_group(f"data/demo_{e}")
            half = np.cumsum(moves[:, 3:4], 0) / 2  # turns about the first axis, and a little about the others
            turn = np.c_[np.sin(half), 0.1 * at[:, 4:6], np.cos(half)]
            opened = 0.02 + 0.02 * np.sin(at[:, 6:])
            demo["actions"] = np.c_[moves[:, :3] / 0.05, moves[:, 3:6] / 0.5, np.sign(moves[:, 6:])].clip(-1, 1)
            demo["rewards"] = np.r_[np.zeros(steps - 1), 1.0]
            demo["obs/robot0_eef_pos"] = at[:, :3]
            demo["obs/robot0_eef_quat"] = turn / np.linalg.norm(turn, axis=1, keepdims=True)
            demo["obs/robot0_gripper_qpos"] = np.c_[opened, -opened]
            demo["obs/agentview_image"] = _frames(e)
            demo["obs/robot0_eye_in_hand_image"] = _frames(e)[:, :, ::-1]
