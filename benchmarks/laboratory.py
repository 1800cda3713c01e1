"""24 episodes of a 7-joint arm, from a laboratory's files to offline evaluation: minutes of every command.

Usage: python -m benchmarks.laboratory   (needs wamkit[metaworld,importers]; finished commands are kept)

The arm is MetaWorld's Sawyer, driven by its scripted policies and recorded as a teleoperated one would be: positions of
its seven joints and the opening of its gripper, those commanded next as actions, two cameras of 480x640 at 15 Hz, of
which the wrist's was off in every sixth episode. The same episodes are written as LeRobotDataset v2.1 and v3.0, and as
HDF5 in a layout of its own. The commands are those of docs/your-data.md.
"""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from PIL import Image

from wamkit.envs.spec import EnvSpec
from wamkit.experiments.page import table
from wamkit.files import atomic_write, read_json

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/cases"))
from lerobot_folders import Recordings, write_v3, write_v21  # noqa: E402

TASKS = ("drawer-open-v3", "window-close-v3")
FRONT, WRIST = "observation.images.front", "observation.images.wrist"
HEIGHT, WIDTH, FPS = 480, 640, 15
COMMANDS = {
    "v21": (
        "import lerobot2 recordings/v21 --out data/v21 --missing-views mask",
        "validate data/v21",
        "train --data data/v21 --episodes.held-out 4 --out runs/v21",
        "eval runs/v21 --offline",
    ),
    "v30": (
        "validate recordings/v30",
        "train --data recordings/v30 --episodes.held-out 4 --out runs/v30",
        "eval runs/v30 --offline",
    ),
    "hdf5": (
        "import table recordings/arm.hdf5 --suggest",
        "import table recordings/arm.hdf5 --map map.toml --out data/arm --missing-views mask",
        "validate data/arm",
        "train --data data/arm --episodes.held-out 4 --out runs/arm",
        "eval runs/arm --offline",
    ),
}
"""What is typed for each format."""


@dataclass(frozen=True)
class Args:
    """Sizes, and places."""

    episodes: int = 24
    formats: tuple[str, ...] = tuple(COMMANDS)
    steps: int = 0
    """Training steps in place of what the rules give; theirs if 0."""
    work: Path = Path("runs/laboratory")
    """Folder of recordings, data and runs."""


@dataclass(frozen=True)
class Take:
    """One recording. state, action: float32 (T, 8). front, wrist: RGB uint8 (T, 480, 640, 3)."""

    text: str
    state: np.ndarray
    action: np.ndarray
    front: np.ndarray
    wrist: np.ndarray


@cache
def arm(task: str):
    """The simulator of a task with both cameras."""
    options = {"height": HEIGHT, "width": WIDTH, "supersample": 1, "coarse_meshes": False}
    return EnvSpec("metaworld", (task,), options | {"cameras": ("corner2", "gripperPOV")}).make(task)


@cache
def record(episode: int) -> Take:
    """Drives the arm through one episode, until a little after the success. All 24 are 5 GB in memory."""
    env, rng = arm(TASKS[episode % len(TASKS)]), np.random.default_rng(episode)
    obs, _ = env.reset(seed=episode)
    expert, states, images, left = env.expert(), [], [obs["images"]], 10
    while left:
        states.append(_joints(env))
        noisy = expert(rng) + rng.normal(0, 0.1, env.action_space.shape)
        obs, _, _, over, info = env.step(noisy.clip(-1, 1).astype(np.float32))
        images.append(obs["images"])
        left = 0 if over else left - bool(info["success"])
    states.append(_joints(env))
    front, wrist = np.stack(images[:-1]).transpose(1, 0, 3, 4, 2)
    return Take(env.text, np.stack(states[:-1]), np.stack(states[1:]), front, wrist)


def _joints(env) -> np.ndarray:
    """Positions of the seven joints in radians, and the fingers' distance in metres: float32 (8,)."""
    at = env.snapshot().physics[1:10]  # after the time
    return np.r_[at[:7], at[7] - at[8]].astype(np.float32)


def is_off(episode: int) -> bool:
    """Whether the wrist's camera was off."""
    return episode % 6 == 5


@dataclass(frozen=True)
class Recorded(Recordings):
    """The recorded episodes, for the writers of LeRobot's formats."""

    def images(self, episode: int) -> np.ndarray:
        return record(episode).front

    def shown(self, camera: str, episode: int) -> np.ndarray:
        return record(episode).front if camera == FRONT else record(episode).wrist


def write(root: Path, episodes: int) -> None:
    """Writes the episodes in all three formats into `root`."""
    root.mkdir(parents=True, exist_ok=True)
    lengths, texts = [], []
    rows: dict[int, dict[str, np.ndarray]] = {}
    with h5py.File(root / "arm.hdf5", "w") as file:
        for e in range(episodes):
            take = record(e)
            lengths.append(len(take.state))
            texts.append(take.text)
            rows[e] = {"observation.state": take.state, "action": take.action}
            group = file.create_group(f"take_{e:03d}")
            group.attrs["instruction"] = take.text
            group["joints"], group["gripper"] = take.state[:, :7], take.state[:, 7:]
            group["command"], group["clock"] = take.action, np.arange(len(take.state)) / FPS
            _write_jpegs(group, "front", take.front)
            if not is_off(e):
                _write_jpegs(group, "wrist", take.wrist)
    data = Recorded(
        lengths=tuple(lengths),
        tasks=tuple(texts),
        fps=FPS,
        dims=8,
        height=HEIGHT,
        width=WIDTH,
        camera=FRONT,
        second_camera=WRIST,
        columns=lambda episode, _: rows[episode],
        info={"robot_type": "sawyer"},
    )
    write_v21(root / "v21", data)
    write_v3(root / "v30", data)
    off = [e for e in range(episodes) if is_off(e)]
    for e in off:
        (root / f"v21/videos/chunk-000/{WRIST}/episode_{e:06d}.mp4").unlink()
    index = root / "v30/meta/episodes/chunk-000/file-000.parquet"
    listed = pq.read_table(index).to_pylist()
    for e in off:
        listed[e] |= {k: None for k in listed[e] if k.startswith(f"videos/{WRIST}/")}
    pq.write_table(pa.Table.from_pylist(listed), index)


def _write_jpegs(group: h5py.Group, name: str, images: np.ndarray) -> None:
    """Images as recorders store them: one JPEG a step, of its own length."""
    stored = group.create_dataset(name, len(images), h5py.vlen_dtype(np.uint8))
    for t, image in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=95)
        stored[t] = np.frombuffer(file.getvalue(), np.uint8)


def main(args: Args) -> None:
    """Writes, follows the guide, and prints a table."""
    times = args.work / "seconds.json"
    if not times.exists():
        write(args.work / "recordings", args.episodes)
        atomic_write(times, b"{}")
    for name in args.formats:
        for command in COMMANDS[name]:
            seconds = read_json(times)
            if command in seconds:
                continue
            begin = time.perf_counter()
            more = ["--train.steps", str(args.steps)] if args.steps and command.startswith("train") else []
            subprocess.run([sys.executable, "-m", "wamkit", *shlex.split(command), *more], cwd=args.work, check=True)
            atomic_write(times, json.dumps({**seconds, command: time.perf_counter() - begin}).encode())
    seconds = read_json(times)
    rows = [[f"`wamkit {c}`", f"{seconds[c] / 60:.1f}"] for n in args.formats for c in COMMANDS[n]]
    sums = [[f"all of {n}", f"{sum(seconds[c] for c in COMMANDS[n]) / 60:.1f}"] for n in args.formats]
    print(table(["command", "minutes"], rows + sums))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
