"""Recordings for tests of the data room: episodes made from seeds, stores of them, and their files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from wamkit.data.description import described
from wamkit.data.format.metadata_io import save_metadata
from wamkit.data.format.store import Store
from wamkit.metadata import DatasetMetadata
from wamkit.types import Episode, Snapshot

SIZE, FPS, CAMERAS = 32, 20.0, ("front", "wrist")
LAYOUT = {
    "cameras": CAMERAS,
    "image_shape": (3, SIZE, SIZE),
    "proprio_names": ("x", "y", "z"),
    "action_names": ("dx", "dy"),
    "fps": FPS,
    "robot_type": "test",
}


def grainy_frames(seed, steps, size=SIZE):
    """A saturated square that moves over wood-like grain, as a renderer would draw it: uint8 (steps, 3, size, size)."""
    rng = np.random.default_rng(seed)
    out = np.empty((steps, 3, size, size), np.uint8)
    out[:] = rng.integers(90, 130, (3, 1, size)) + np.arange(size)[:, None] // 2
    y, x = rng.integers(0, size // 4, 2)
    for step in range(steps):
        top, left = y + step % (size // 2), x + 2 * step % (size // 2)
        out[step, :, top : top + 8, left : left + 8] = np.array([200, 20, 30])[:, None, None]
    return out


def make_episode(seed, steps=9, **changes):
    rng = np.random.default_rng(seed)
    expert = rng.uniform(-1, 1, (steps, 2)).astype(np.float32)
    episode = Episode(
        task=f"task-{seed % 2}",
        text=("press the button", "open the drawer")[seed % 2],
        seed=100 + seed,
        fps=FPS,
        cameras=CAMERAS,
        images=np.stack([grainy_frames(seed, steps), grainy_frames(seed + 50, steps)], axis=1),
        proprio=rng.normal(size=(steps, 3)).astype(np.float32),
        action=expert + np.float32(0.1),
        action_expert=expert,
        reward=rng.uniform(size=steps).astype(np.float32),
        success=np.arange(steps) >= steps - 2,
        is_demonstration=seed % 3 != 2,
        noise=0.1 * seed,
        snapshots=tuple(Snapshot(rng.normal(size=5), {"body_pos": np.ones((4, 3))}, {"t": t}) for t in range(steps)),
    )
    return dataclasses.replace(episode, **changes)


def fill(root, count):
    """Opens or creates the store in `root` and appends what is missing up to `count` episodes."""
    store = Store.open_or_create(root, **LAYOUT)
    for seed in range(len(store), count):
        store.append(make_episode(seed, 7 + seed))
    store.finalize()
    return store


def as_video(root, out):
    """The videos of the store in `root` alone, without states and actions, as an import of video files has them."""
    store = Store.open(root)
    layout = {**vars(store.layout), "proprio_names": (), "action_names": (), "expert": False, "robot_type": "none"}
    video = Store.create(out, **layout)
    for index in range(len(store)):
        episode, none = store.episode(index), np.zeros((store.episodes[index].length, 0), np.float32)
        video.append(dataclasses.replace(episode, proprio=none, action=none, action_expert=none))
    video.finalize()
    cameras = described(store).cameras
    save_metadata(out, DatasetMetadata("videos", "", cameras=cameras))
    return out


def without_checksums(root):
    """Makes a data set one that an earlier version, or another program, wrote: it has checksums of videos alone."""
    (root / "meta/checksums.json").unlink(missing_ok=True)
    for path in root.glob("meta/episodes/*/*.parquet"):
        table = pq.read_table(path)
        names = [n for n in table.column_names if n not in ("wamkit/sha256/data", "wamkit/sha256/snapshots")]
        pq.write_table(table.select(names).replace_schema_metadata(None), path, write_page_checksum=True)
    return root


def content(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(Path(root).rglob("*")) if p.is_file()}


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


def copy_files(source: Path, target: Path) -> Path:
    """Copies the files of a data set, for a test that damages them."""
    for name, data in content(source).items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)
    return target
