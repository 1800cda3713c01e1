"""Speed and memory of data loading. Frames are counted per CPU-second, so other work on the machine matters little.

Usage: python benchmarks/loading.py [--lerobot .venv-lerobot/bin/python]   (`make interop` builds that environment)
  cached     shuffled windows of 8 frames from the frame cache, 64x64 and 128x128
  decoding   the same at 128x128 from H.264 videos: wamkit, and lerobot's LeRobotDataset with PyAV on the same files,
             demonstrations of MetaWorld, and textured blobs with sensor noise, whose videos are twice as large
  hdf5       the same from an HDF5 file with a chunk an image, by h5py itself, and by stable-worldmodel's HDF5 and Lance
             readers
  waiting    share of training time spent waiting for data, a mixture of three data sets of 64x64: cached, decoding
  memory     private memory of a process that samples a data set ten times as large as its cache, early and late
  importing  peak memory and time of `wamkit import video` for 2 and for 20 videos of 300 frames of 480x640
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
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
from wamkit.data.format.metadata_io import save_metadata
from wamkit.data.format.store import Store
from wamkit.data.format.video import encode_frames
from wamkit.data.loading.dataset import open_frames, spec_of
from wamkit.data.loading.lazy_frames import open_images
from wamkit.data.loading.mixture import MixtureConfig, SourceConfig
from wamkit.data.loading.windows import Prefetcher
from wamkit.metadata import CameraFacts, DatasetMetadata, Field
from wamkit.rollout.collect import CollectConfig, collect
from wamkit.runs.recipes import RECIPES
from wamkit.training.launch import LoadingOptions, train_run
from wamkit.training.metrics import read_metrics
from wamkit.types import Episode

WINDOW, STEPS, WITH_LEROBOT = 8, 200, Path(__file__).parent / "with_lerobot.py"
WITH_STABLE_WORLDMODEL = Path(__file__).parent / "with_stable_worldmodel.py"


@dataclass(frozen=True)
class Args:
    """Options of the measurement."""

    lerobot: Path | None = None
    """Python of an environment with lerobot."""
    stable_worldmodel: Path | None = None
    """Python of an environment with stable-worldmodel."""
    episodes: int = 10
    """Episodes of 200 steps in each data set."""
    rounds: int = 5
    """Rounds, of which medians are printed."""
    steps: int = 300
    """Training steps of `waiting`."""


def blobs(seed: int, size: int) -> np.ndarray:
    """Textured blobs that move before a shaded background, with sensor noise: uint8 (STEPS, 1, 3, size, size)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    background = np.stack([np.sin(6 * x + 3 * y * k + k) * 40 + 110 for k in range(1, 4)])
    images = np.empty((STEPS, 1, 3, size, size), np.uint8)
    ways = [(rng.uniform(0, 6, 2), rng.uniform(0.5, 2, 2)) for _ in range(5)]
    looks = [(rng.uniform(0, 255, (3, 1)), rng.uniform(0.08, 0.2), rng.uniform(30, 120)) for _ in range(5)]
    for t in range(STEPS):
        image = background.copy()
        for (phase, speed), (colour, radius, texture) in zip(ways, looks, strict=True):
            dx, dy = (a - b for a, b in zip((x, y), 0.5 + 0.4 * np.sin(speed * t / 20 + phase), strict=True))
            inside = dx**2 + dy**2 < radius**2
            image[:, inside] = colour + (20 * np.sin(texture * dx) * np.sin(texture * dy))[inside]
        images[t, 0] = np.clip(image + rng.normal(0, 2, image.shape), 0, 255)
    return images


def record(root: Path, episodes: int, size: int, camera: str = "scene", joints: int = 4) -> Store:
    """A data set with one camera and random vectors."""
    layout = {"cameras": (camera,), "image_shape": (3, size, size), "fps": 10.0, "robot_type": "none"}
    names = tuple(f"j{i}" for i in range(joints))
    store = Store.create(root, **layout, proprio_names=names, action_names=names)
    for e in range(episodes):
        vectors = np.random.default_rng(e).normal(size=(STEPS, joints)).astype(np.float32)
        zero, images = np.zeros(STEPS, np.float32), blobs(e, size)
        store.append(
            Episode("move", "move", e, 10.0, (camera,), images, vectors, vectors, vectors, zero, zero.astype(bool))
        )
    store.finalize()
    fields = tuple(Field(n, i, i + 1, "joint") for i, n in enumerate(names))
    save_metadata(
        root,
        DatasetMetadata(
            "made up", f"robot-{joints}", state=fields, action=fields, cameras={camera: CameraFacts(role=camera)}
        ),
    )
    return store


def rate(rounds: int, work: Callable[[np.ndarray], object], store: Store, windows: int) -> float:
    """Frames per CPU-second of `work`, which gets the rows of shuffled windows: the median of the rounds."""
    rates, ends = [], np.cumsum([m.length for m in store.episodes])
    for i in range(rounds + 1):
        starts = np.random.default_rng(i).integers(0, store.frames - WINDOW, windows)
        starts = np.minimum(starts, ends[np.searchsorted(ends, starts, side="right")] - WINDOW)  # within an episode
        index = starts[:, None] + np.arange(WINDOW)
        began = time.process_time()
        for at in range(0, windows, 16):
            work(index[at : at + 16])
        rates.append(index.size / (time.process_time() - began))
    return statistics.median(rates[1:])


def cached(args: Args, stores: dict[int, Store]) -> None:
    for size, store in stores.items():
        images = open_images(store)
        found = rate(args.rounds, images.__getitem__, store, 2048)
        print(f"cached      {size}x{size}: {found:,.0f} frames a CPU-second")


def decoding(args: Args, stores: dict[str, Store]) -> None:
    for name, store in stores.items():
        ours = rate(args.rounds, open_images(store, cache_gb=0).__getitem__, store, 256)
        size = sum(p.stat().st_size for p in store.root.rglob("*.mp4")) / store.frames
        print(f"decoding    {name}, {size:,.0f} bytes a frame; wamkit: {ours:,.0f} frames a CPU-second")
        if args.lerobot is not None:
            command = [args.lerobot, WITH_LEROBOT, store.root, str(args.rounds)]
            theirs = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
            print(f"decoding    {name}, lerobot: {theirs:,.0f}; wamkit {ours / theirs:.2f} times that")


def hdf5(args: Args, store: Store, folder: Path) -> None:
    fast = rate(args.rounds, open_images(store).__getitem__, store, 2048)
    path = folder / "pictures.h5"
    with h5py.File(path, "w") as file:
        shape = (store.frames, *open_images(store).shape[1:])
        data = file.create_dataset("pictures", shape, np.uint8, chunks=(1, *shape[1:]))
        data[:] = open_images(store)[np.arange(store.frames)]
    with h5py.File(path) as file:
        read = file["pictures"]
        slow = rate(args.rounds, lambda index: [read[w[0] : w[-1] + 1] for w in index], store, 256)
    print(f"hdf5        {slow:,.0f} frames a CPU-second; the cache {fast / slow:.1f} times that")
    if args.stable_worldmodel is not None:
        np.save(folder / "images.npy", open_images(store)[np.arange(store.frames)][:, 0].transpose(0, 2, 3, 1))
        command = [args.stable_worldmodel, WITH_STABLE_WORLDMODEL, folder / "images.npy", STEPS, args.rounds]
        output = subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout
        for kind, theirs in (line.split() for line in output.splitlines() if line.startswith(("h5 ", "lance "))):
            ratio = fast / float(theirs)
            print(f"hdf5        stable-worldmodel, {kind}: {float(theirs):,.0f}; the cache {ratio:.1f} times that")


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
        train_run(run, folder / "mixture.json", out, loading=LoadingOptions(cache_gb=budget))
        rows = [r for _, r in read_metrics(out / "metrics.jsonl") if "wait" in r]
        main = [r for r in rows if r["stage"] == rows[-1]["stage"]]
        share = sum(r["wait"] * r["seconds"] for r in main) / sum(r["seconds"] for r in main)
        step = statistics.median(r["seconds"] for r in main)
        print(f"waiting     {name}: {share:.2%} of the main stage's time; {1000 * step:.0f} ms a step")


def memory(store: Store) -> None:
    """Prints private memory while sampling from a cache of a tenth of the frames."""
    images = open_images(store)
    frames, _ = open_frames(store.root, cache_gb=store.frames * int(np.prod(images.shape[1:])) / 10 / 1e9)
    windows = frames.windows(spec_of(store, 8, (4, 8)), seed=0, batch_size=16)
    made = Prefetcher(windows.batch, 0, 401, threads=2)
    for step, _ in enumerate(made):
        if step in (50, 100, 200, 400):
            print(f"memory      after {step} batches: {private_mb():.0f} MB private")
    made.close()


def importing(folder: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    for videos in (2, 20):
        source = folder / f"videos-{videos}"
        source.mkdir()
        for i in range(videos):
            images = (np.roll(image, 2 * t + 7 * i, 1) for t in range(300))
            (source / f"{i}.mp4").write_bytes(encode_frames(images, 30.0, (480, 640), 300))
        command = [
            "wamkit",
            "import",
            "video",
            source,
            "--out",
            folder / f"imported-{videos}",
            "--options.text",
            "look",
        ]
        began, process = time.perf_counter(), subprocess.Popen([Path(sys.executable).parent / command[0], *command[1:]])
        _, status, used = os.wait4(process.pid, 0)
        assert status == 0
        print(f"importing   {videos} videos: {used.ru_maxrss / 1000:.0f} MB, {time.perf_counter() - began:.0f} s")


def private_mb() -> float:
    """Memory of this process that is not backed by a file, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon"))


def main(args: Args) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        importing(folder)  # first: a child's peak includes the memory of this process when it forked
        stores = {size: record(folder / f"data-{size}", args.episodes, size) for size in (64, 128)}
        cached(args, stores)
        arm = collect(
            CollectConfig(
                tasks=("drawer-open-v3", "window-close-v3"),
                out=folder / "metaworld",
                options={"height": 128, "width": 128},
                episodes=args.episodes,
                off_expert=0,
            )
        )
        decoding(args, {"MetaWorld": arm, "blobs": stores[128]})
        hdf5(args, stores[128], folder)
        memory(stores[128])
        waiting(args, folder)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
