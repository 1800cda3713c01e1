"""How fast, and in how much memory, training gets its data. Frames are counted per second of CPU: other work on the machine matters little.

Usage: python benchmarks/loading.py [--lerobot .venv-lerobot/bin/python]   (`make interop` builds that environment)
  cached     windows of 8 frames, shuffled, from decoded pictures, 64x64 and 128x128
  decoding   the same at 128x128 from H.264 videos: wamkit, and lerobot's LeRobotDataset with PyAV on the same files
  hdf5       the same from an HDF5 file with a chunk a picture, as datasets in that format are read
  waiting    share of training steps spent waiting for data, a mixture of three data sets with 64x64 pictures: cached, decoding
  memory     of a process that draws from a data set ten times as large as its cache: private memory, early and late
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import torch
import tyro

from wamkit.config import save_json
from wamkit.data.dataset import open_frames, spec_of
from wamkit.data.loader import Prefetcher
from wamkit.data.meaning import save_meaning
from wamkit.data.mixture import MixtureConfig, SourceConfig
from wamkit.data.reader import open_pictures
from wamkit.data.store import Store
from wamkit.meaning import CameraFacts, Field, Meaning
from wamkit.recipes import RECIPES
from wamkit.train import read_metrics
from wamkit.training import train_run
from wamkit.types import Episode

WINDOW, STEPS, WITH_LEROBOT = 8, 200, Path(__file__).parent / "with_lerobot.py"


@dataclass(frozen=True)
class Args:
    """What to measure with."""

    lerobot: Path | None = None
    """Python of an environment that has lerobot."""
    episodes: int = 10
    """Of 200 steps each."""
    rounds: int = 5
    """Medians of so many."""
    steps: int = 300
    """Training steps of `waiting`."""


def record(root: Path, episodes: int, size: int, camera: str = "scene", joints: int = 4) -> Store:
    """Textured blobs that move before a noisy background, one camera."""
    layout = {"cameras": (camera,), "image_shape": (3, size, size), "fps": 10.0, "robot_type": "none"}
    names = tuple(f"j{i}" for i in range(joints))
    store = Store.create(root, **layout, proprio_names=names, action_names=names)
    for e in range(episodes):
        rng = np.random.default_rng(e)
        pictures = rng.integers(90, 110, (STEPS, 1, 3, size, size), dtype=np.uint8)
        blob = rng.integers(0, 255, (3, size // 4, size // 4))
        for t in range(STEPS):
            y, x = (int((size - size // 4) * (1 + np.sin(w * t / 20 + e)) / 2) for w in (1.0, 1.7))
            pictures[t, 0, :, y : y + size // 4, x : x + size // 4] = blob
        numbers = rng.normal(size=(STEPS, joints)).astype(np.float32)
        zero = np.zeros(STEPS, np.float32)
        store.append(
            Episode("move", "move", e, 10.0, (camera,), pictures, numbers, numbers, numbers, zero, zero.astype(bool))
        )
    store.finalize()
    fields = tuple(Field(n, i, i + 1, "joint") for i, n in enumerate(names))
    save_meaning(
        root,
        Meaning("made up", f"robot-{joints}", state=fields, action=fields, cameras={camera: CameraFacts(role=camera)}),
    )
    return store


def rate(rounds: int, work: Callable[[np.ndarray], object], rows: int, windows: int) -> float:
    """Frames per CPU-second of `work`, which is given the rows of shuffled windows: the median of the rounds."""
    rates = []
    for i in range(rounds + 1):
        starts = np.random.default_rng(i).integers(0, rows - WINDOW, windows)
        starts -= np.maximum(0, starts % STEPS + WINDOW - STEPS)  # within an episode
        index = starts[:, None] + np.arange(WINDOW)
        began = time.process_time()
        for at in range(0, windows, 16):
            work(index[at : at + 16])
        rates.append(index.size / (time.process_time() - began))
    return statistics.median(rates[1:])


def cached(args: Args, stores: dict[int, Store]) -> None:
    for size, store in stores.items():
        pictures = open_pictures(store)
        found = rate(args.rounds, pictures.__getitem__, store.frames, 2048)
        print(f"cached      {size}x{size}: {found:,.0f} frames a CPU-second")


def decoding(args: Args, store: Store, folder: Path) -> None:
    ours = rate(args.rounds, open_pictures(store, cache_gb=0).__getitem__, store.frames, 256)
    print(f"decoding    wamkit: {ours:,.0f} frames a CPU-second")
    if args.lerobot is not None:
        command = [args.lerobot, WITH_LEROBOT, store.root, str(args.rounds)]
        theirs = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        print(f"decoding    lerobot: {theirs:,.0f}; wamkit {ours / theirs:.1f} times that")
    fast = rate(args.rounds, open_pictures(store).__getitem__, store.frames, 2048)
    path = folder / "pictures.h5"
    with h5py.File(path, "w") as file:
        shape = (store.frames, *open_pictures(store).shape[1:])
        data = file.create_dataset("pictures", shape, np.uint8, chunks=(1, *shape[1:]))
        data[:] = open_pictures(store)[np.arange(store.frames)]
    with h5py.File(path) as file:
        read = file["pictures"]
        slow = rate(args.rounds, lambda index: [read[w[0] : w[-1] + 1] for w in index], store.frames, 256)
    print(f"hdf5        {slow:,.0f} frames a CPU-second; the cache {fast / slow:.1f} times that")


def waiting(args: Args, folder: Path) -> None:
    sources = []
    for i, (name, camera) in enumerate((("arm", "scene"), ("hand", "wrist"), ("eyes", "ego"))):
        record(folder / name, args.episodes // 2, 64, camera, joints=3 + i)
        sources.append(SourceConfig(name, 1.0))
    save_json(folder / "mixture.json", MixtureConfig(tuple(sources), views=("scene", "wrist", "ego")))
    run = RECIPES.get("metaworld-unified")()
    run = replace(run, train=replace(run.train, steps=args.steps, save_every=10_000, log_every=1))
    for name, budget in (("cached", 16.0), ("decoding", 0.0)):
        out = folder / name
        train_run(run, folder / "mixture.json", out, cache_gb=budget)
        rows = [r for _, r in read_metrics(out / "metrics.jsonl") if "wait" in r]
        main = [r for r in rows if r["stage"] == rows[-1]["stage"]]
        share = sum(r["wait"] * r["seconds"] for r in main) / sum(r["seconds"] for r in main)
        step = statistics.median(r["seconds"] for r in main)
        print(f"waiting     {name}: {share:.2%} of the main stage's time; {1000 * step:.0f} ms a step")


def memory(store: Store) -> None:
    """The cache holds a tenth of the pictures."""
    pictures = open_pictures(store)
    frames, _ = open_frames(store.root, cache_gb=store.frames * int(np.prod(pictures.shape[1:])) / 10 / 1e9)
    windows = frames.windows(spec_of(store, 8, (4, 8)), seed=0, batch_size=16)
    made = Prefetcher(windows.batch, 0, 401, threads=2)
    for step, _ in enumerate(made):
        if step in (50, 100, 200, 400):
            print(f"memory      after {step} batches: {private_mb():.0f} MB private")
    made.close()


def private_mb() -> float:
    """Memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon"))


def main(args: Args) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stores = {size: record(folder / f"data-{size}", args.episodes, size) for size in (64, 128)}
        cached(args, stores)
        decoding(args, stores[128], folder)
        memory(stores[128])
        waiting(args, folder)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
