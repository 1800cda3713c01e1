"""Limits of size, measured on one machine: metadata, rows of ranks, loading, the cost of a comparison.

Usage: python benchmarks/scaling.py PART [--episodes N...]   (docs/scaling.md has the figures)
  metadata    seconds and peak memory of `Store.open`, in a process of its own, of data sets with so many episodes in
              lerobot's layout: many episodes a file, 36 s each at 10 Hz, so that a million are 10,000 hours. The index
              is whole; data files and videos are empty places, which opening does not read at this size. Beside them,
              data sets that wamkit recorded, a file an episode
  numeric     seconds and peak memory of reading the numeric columns of all frames, in a process of its own
  ranks       batches of 64 simulated ranks: whether their rows are the whole batch to the bit, without overlap or gap;
              time and memory of a rank
  loader      frames a CPU-second, decoded and from the cache, in the windows that a 5B video model trains on, beside
              what 8 GPUs take
  comparison  cost of 13 families and 3 seeds, from the recorded jobs of docs/results/jobs
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro
from loading import blobs

from wamkit.config import save_json
from wamkit.data.format.schema import FILES_PER_CHUNK, tasks_table
from wamkit.data.format.store import Store
from wamkit.data.loading.augment import Augment
from wamkit.data.loading.dataset import open_frames
from wamkit.data.loading.lazy_frames import open_images
from wamkit.data.loading.mixture import divided
from wamkit.data.loading.windows import Frames
from wamkit.runs.recipes import RECIPES
from wamkit.training.world import World
from wamkit.types import Batch, Episode, Spec

FPS, STEPS = 10, (180, 541)
"""Frame rate, and the range of the lengths of episodes: 36 s on average."""
DIMS, CAMERAS, STATISTICS = 7, ("front", "wrist"), ("min", "max", "mean", "std", "q01", "q10", "q50", "q90", "q99")
AT_ONCE, A_FILE = 1_000, 50_000  # episodes of a row group and of a file of meta/episodes
FRAMES_IN = {"data": 1_000_000, "video": 40_000}  # frames of a file: about 100 and 200 MB, as lerobot fills them
RANKS, GPUS = 64, 8
MODEL = "wan2.2-ti2v-5b-mot"
RATE, ENCODE_TFLOP, TFLOPS = 27.7, 3.27, 0.25 * 989
"""Samples a second of one H100 or H200 and TFLOP of encoding a window, by `wamkit show`; TFLOP/s of a GPU at 25 %."""
JOBS = Path(__file__).parents[1] / "docs/results/jobs"

OPENING = """
import json, sys, time
from wamkit.data.format import store as module
from wamkit.data.format.store import Store
if sys.argv[2:]:
    module.READ_AT_ONCE = 0
def memory(name):
    return next(int(x.split()[1]) // 1000 for x in open("/proc/self/status") if x.startswith(name))
before, began = memory("VmRSS"), time.perf_counter()
store = Store.open(sys.argv[1])
opened, peak = time.perf_counter() - began, memory("VmHWM")
began = time.perf_counter()
one = store.rows[len(store) // 2].meta
found, began = time.perf_counter() - began, time.perf_counter()
metas = store.episodes
print(json.dumps({"episodes": len(metas), "frames": store.frames, "seconds": opened, "before": before, "peak": peak,
    "one": found, "objects": time.perf_counter() - began, "peak_objects": memory("VmHWM")}))
"""
"""A process that opens a data set and prints what that took. index: with its numeric columns unread, however few."""


@dataclass(frozen=True)
class Args:
    """Part and sizes of the measurement."""

    part: Annotated[Literal["metadata", "numeric", "ranks", "loader", "comparison"], tyro.conf.Positional]
    """Part to measure."""
    episodes: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    """Episodes of the data sets of `metadata`, in lerobot's layout."""
    own: tuple[int, ...] = (250, 1_000)
    """Episodes of those that wamkit recorded."""
    hours: float = 1_000.0
    """Hours of the data set of `ranks`, at 10 Hz."""
    steps: int = 20
    """Batches of `ranks`."""


# Metadata


def metadata(args: Args) -> None:
    """Prints what opening data sets of several sizes takes."""
    for layout, sizes, write in (("lerobot", args.episodes, write_index), ("wamkit", args.own, record)):
        for count in sizes:
            with tempfile.TemporaryDirectory() as name:
                began = time.perf_counter()
                write(Path(name) / "data", count)
                written = time.perf_counter() - began
                size = sum(p.stat().st_size for p in (Path(name) / "data/meta").rglob("*") if p.is_file()) / 1e6
                command = [sys.executable, "-c", OPENING, str(Path(name) / "data"), *["index"] * (layout == "lerobot")]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found = json.loads(done.stdout)
                print(
                    f"metadata    {layout}, {count:,} episodes, {found['frames'] / FPS / 3600:,.0f} hours, "
                    f"{size:,.0f} MB of metadata (written in {written:.0f} s): opened in {found['seconds']:.2f} s, "
                    f"peak {found['peak']:,} MB of which {found['before']:,} MB are imports; one episode's facts "
                    f"{1e6 * found['one']:.0f} us; all as objects {found['objects']:.1f} s more, peak "
                    f"{found['peak_objects']:,} MB",
                    flush=True,
                )


def write_index(root: Path, episodes: int) -> None:
    """Writes a data set in lerobot's layout without its frames. Lengths are drawn, all else follows from them."""
    lengths = np.random.default_rng(0).integers(*STEPS, episodes)
    starts = np.cumsum(lengths) - lengths
    data, video = (starts // FRAMES_IN[kind] for kind in ("data", "video"))
    first = np.searchsorted(video, video)  # of the episodes in the same video
    since = (starts - starts[first]) / FPS
    texts = [f"put object {i} into place {i % 97}" for i in range(min(50_000, max(1, episodes // 20)))]
    for at in range(0, episodes, A_FILE):
        chunk, file = divmod(at // A_FILE, FILES_PER_CHUNK)
        path = root / f"meta/episodes/chunk-{chunk:03d}/file-{file:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        writer: pq.ParquetWriter | None = None
        for low in range(at, min(at + A_FILE, episodes), AT_ONCE):
            rows = np.arange(low, min(low + AT_ONCE, at + A_FILE, episodes))
            table = _facts(rows, lengths, starts, data, video, since, texts, at // A_FILE)
            writer = writer or pq.ParquetWriter(path, table.schema, compression="snappy")
            writer.write_table(table)
        if writer is not None:
            writer.close()
    pq.write_table(tasks_table(texts), root / "meta/tasks.parquet")
    for key, number in {"data": data, **{f"videos/observation.images.{c}": video for c in CAMERAS}}.items():
        for n in range(int(number[-1]) + 1):
            chunk, file = divmod(n, FILES_PER_CHUNK)
            place = root / key / f"chunk-{chunk:03d}" / f"file-{file:03d}.{'parquet' if key == 'data' else 'mp4'}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(b"-")
    numbers = {k: {"dtype": "int64", "shape": [1]} for k in ("frame_index", "episode_index", "index", "task_index")}
    vector = {"dtype": "float32", "shape": [DIMS], "names": None}
    image = {"dtype": "video", "shape": [256, 256, 3], "names": ["height", "width", "channels"]}
    features = {"observation.state": vector, "action": vector, "timestamp": {"dtype": "float32", "shape": [1]}}
    info = {
        "codebase_version": "v3.0",
        "robot_type": "arm",
        "fps": FPS,
        "total_episodes": episodes,
        "total_frames": int(lengths.sum()),
        "total_tasks": len(texts),
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": features | numbers | {f"observation.images.{c}": image for c in CAMERAS},
    }
    save_json(root / "meta/info.json", info)


def _facts(
    rows: np.ndarray,
    lengths: np.ndarray,
    starts: np.ndarray,
    data: np.ndarray,
    video: np.ndarray,
    since: np.ndarray,
    texts: list[str],
    file: int,
) -> pa.Table:
    """Rows of meta/episodes, with columns of statistics, whose values are zeros, for every feature."""
    columns: dict[str, Any] = {
        "episode_index": rows,
        "tasks": [[texts[i % len(texts)]] for i in rows],
        "length": lengths[rows],
        "data/chunk_index": data[rows] // FILES_PER_CHUNK,
        "data/file_index": data[rows] % FILES_PER_CHUNK,
        "dataset_from_index": starts[rows],
        "dataset_to_index": starts[rows] + lengths[rows],
        "meta/episodes/chunk_index": np.full(len(rows), file // FILES_PER_CHUNK),
        "meta/episodes/file_index": np.full(len(rows), file % FILES_PER_CHUNK),
    }
    for camera in CAMERAS:
        key = f"videos/observation.images.{camera}"
        columns |= {f"{key}/chunk_index": video[rows] // FILES_PER_CHUNK}
        columns |= {f"{key}/file_index": video[rows] % FILES_PER_CHUNK, f"{key}/from_timestamp": since[rows]}
        columns |= {f"{key}/to_timestamp": since[rows] + lengths[rows] / FPS}
    sizes = {"observation.state": DIMS, "action": DIMS, **{f"observation.images.{c}": 3 for c in CAMERAS}}
    sizes |= dict.fromkeys(("timestamp", "frame_index", "episode_index", "index", "task_index"), 1)
    for key, size in sizes.items():
        cells = pa.ListArray.from_arrays(np.arange(0, size * (len(rows) + 1), size), np.zeros(size * len(rows)))
        columns |= {f"stats/{key}/{name}": cells for name in STATISTICS}
    return pa.table(columns)


def record(root: Path, episodes: int) -> None:
    """Records short episodes of small images, as wamkit does: three files an episode."""
    names = tuple(f"j{i}" for i in range(DIMS))
    layout = {"image_shape": (3, 16, 16), "fps": float(FPS), "robot_type": "arm"}
    store = Store.create(root, cameras=("front",), **layout, proprio_names=names, action_names=names)
    images = np.random.default_rng(0).integers(0, 255, (8, 1, 3, 16, 16), dtype=np.uint8)
    vectors, zero = np.zeros((8, DIMS), np.float32), np.zeros(8, np.float32)
    for e in range(episodes):
        store.append(
            Episode("move", "move", e, float(FPS), ("front",), images, vectors, vectors, vectors, zero, zero > 0)
        )
    store.finalize()


# Numeric columns


READING = """
import json, sys, time
from wamkit.data.format import store as module
from wamkit.data.format.store import Store
module.READ_AT_ONCE = 0
def memory(name):
    return next(int(x.split()[1]) // 1000 for x in open("/proc/self/status") if x.startswith(name))
store = Store.open(sys.argv[1])
before, began = memory("VmRSS"), time.process_time()
columns = store.numeric()
print(json.dumps({"frames": store.frames, "seconds": time.process_time() - began, "before": before,
    "peak": memory("VmHWM"), "held": sum(x.nbytes for x in {id(x): x for x in columns.values()}.values())}))
"""
"""A process that reads the numeric columns of a data set and prints what that took."""


def numeric(args: Args) -> None:
    """Prints what reading the numeric columns of some hours takes, and what that makes of 10,000."""
    with tempfile.TemporaryDirectory() as name:
        root, episodes = Path(name) / "data", 20_000
        write_index(root, episodes)
        lengths = np.random.default_rng(0).integers(*STEPS, episodes)
        starts = np.cumsum(lengths) - lengths
        for file in range(int(starts[-1] // FRAMES_IN["data"]) + 1):
            here = np.flatnonzero(starts // FRAMES_IN["data"] == file)
            pq.write_table(_frames(here, lengths, starts), root / f"data/chunk-000/file-{file:03d}.parquet")
        size = sum(p.stat().st_size for p in (root / "data").rglob("*.parquet")) / 1e6
        done = subprocess.run([sys.executable, "-c", READING, str(root)], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    share = 10_000 * 3600 * FPS / found["frames"]
    print(
        f"numeric     {found['frames']:,} frames in {size:,.0f} MB of files: read in {found['seconds']:.1f} s of CPU, "
        f"{found['held'] / found['frames']:.0f} bytes a frame, peak {found['peak']:,} MB from {found['before']:,}; of "
        f"10,000 hours at {FPS} Hz {found['held'] * share / 1e9:.0f} GB and {found['seconds'] * share / 60:.0f} minutes"
    )


def _frames(here: np.ndarray, lengths: np.ndarray, starts: np.ndarray) -> pa.Table:
    """The frames of some episodes that follow each other, with random states and actions."""
    owner, first = np.repeat(here, lengths[here]), starts[here[0]]
    step = first + np.arange(len(owner)) - starts[owner]
    rng = np.random.default_rng(int(first))
    columns: dict[str, Any] = {"timestamp": (step / FPS).astype(np.float32), "frame_index": step}
    columns |= {"episode_index": owner, "index": first + np.arange(len(owner)), "task_index": np.zeros_like(owner)}
    for key in ("observation.state", "action"):
        values = rng.normal(size=DIMS * len(owner)).astype(np.float32)
        columns[key] = pa.FixedSizeListArray.from_arrays(pa.array(values), DIMS)
    return pa.table(columns)


# Ranks


class Numbered:
    """Images of any number of frames that hold the number of their frame, made when they are asked for."""

    def __init__(self, frames: int):
        self.shape = (frames, 1, 3, 16, 16)

    def __getitem__(self, index: Any) -> np.ndarray:
        number = np.asarray(index, np.int64)[..., None].view(np.uint8)  # eight bytes
        return (
            np.resize(np.moveaxis(number, -1, 0), (768, *np.shape(index)))
            .transpose(*range(1, 1 + np.ndim(index)), 0)
            .reshape(*np.shape(index), *self.shape[1:])
        )


def made_up(hours: float) -> Frames:
    """Frames of so many hours whose arrays take no memory, but for the episode of each row."""
    lengths = np.random.default_rng(0).integers(*STEPS, max(8, int(hours * 100)))
    N, E = int(lengths.sum()), len(lengths)
    vectors = np.broadcast_to(np.float32(0), (N, DIMS))
    episode = np.repeat(np.arange(E), lengths)
    has_action = np.arange(E) % 4 > 0
    return Frames(Numbered(N), vectors, vectors, vectors, episode, ("move",) * E, np.ones(E, bool), has_action)


def ranks(args: Args) -> None:
    """Compares the rows of 64 ranks with the whole batch, and prints time and memory of one of them."""
    size, spec = 8 * RANKS, Spec(("front",), 16, 16, DIMS, DIMS, 16, (8, 16), (), float(FPS))
    frames = made_up(10)
    mixture = divided(frames, 0.6, FPS)
    for name, source, batch in (
        ("one data set", frames, size),
        ("one data set, augmented", frames, size),
        ("one data set, 517 rows", frames, 517),
        ("a mixture", mixture, size),
    ):
        augment = Augment(shift=2, colour=0.2) if "augmented" in name else Augment()
        windows = source.windows(spec, seed=0, batch_size=batch, augment=augment)
        epoch, drawn = len(frames) // batch, 0
        for step in (*range(args.steps), epoch, 3 * epoch + 1):
            slices = [World(rank, RANKS).rows(batch) for rank in range(RANKS)]
            assert [i for s in slices for i in range(*s.indices(batch))] == list(range(batch))  # no overlap, no gap
            whole, parts = windows.batch(step), [windows.batch(step, rows) for rows in slices]
            assert_same(whole, parts)
            drawn += batch
        print(f"ranks       {name}: {drawn:,} rows of {RANKS} ranks are those of the whole batch, to the bit")
    whole_epoch(frames, spec)
    cost_of_a_rank(args, spec, size)


def assert_same(whole: Batch, parts: list[Batch]) -> None:
    """Raises AssertionError unless the parts, one after the other, are the whole batch to the bit."""
    for field in (f.name for f in fields(whole)):
        expected, found = getattr(whole, field), [getattr(part, field) for part in parts]
        if isinstance(expected, torch.Tensor):
            assert torch.equal(expected, torch.cat(found)), field
        elif isinstance(expected, list):
            assert expected == [x for part in found for x in part], field
        else:
            assert all(x == expected for x in found), field


def whole_epoch(frames: Frames, spec: Spec) -> None:
    """Draws one epoch by ranks: every window once."""
    windows = frames.windows(spec, seed=1, batch_size=8 * RANKS)
    seen = np.zeros(len(frames), np.int64)
    for step in range(-(-len(frames) // windows.batch_size)):
        for rank in range(RANKS):
            now = windows.indices(step)[World(rank, RANKS).rows(windows.batch_size)]
            inside = step * windows.batch_size + np.arange(windows.batch_size) < len(frames)
            np.add.at(seen, now[inside[World(rank, RANKS).rows(windows.batch_size)]], 1)
    assert (seen == 1).all()
    print(f"ranks       one epoch of {len(frames):,} windows by {RANKS} ranks: every window once")


def cost_of_a_rank(args: Args, spec: Spec, size: int) -> None:
    """Prints time and memory of what a rank does beside reading images."""
    before = memory_mb()
    frames = made_up(args.hours)
    held = memory_mb()
    windows = frames.windows(spec, seed=0, batch_size=size)
    began = time.perf_counter()
    windows.batch(0, World(0, RANKS).rows(size))
    first, ordered = time.perf_counter() - began, memory_mb()
    times = []
    for step in range(1, 51):
        began = time.process_time()
        windows.batch(step, World(step % RANKS, RANKS).rows(size))
        times.append(time.process_time() - began)
    per = 1e6 / len(frames)
    print(
        f"ranks       {args.hours:,.0f} hours, {len(frames):,} rows: {held - before:,.0f} MB for the episode of each "
        f"row ({(held - before) * per:.1f} bytes a row), {ordered - held:,.0f} MB for the order of windows "
        f"({(ordered - held) * per:.1f} bytes a row); first batch {first:.1f} s, then "
        f"{1000 * statistics.median(times):.2f} ms of CPU a batch of {size // RANKS} rows of {size}"
    )


def memory_mb() -> float:
    """Memory of this process that is not backed by a file, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon"))


# Loader


def loader(args: Args) -> None:
    """Prints frames a CPU-second in a video model's windows, and what 8 GPUs take."""
    window = RECIPES.get(MODEL)().window
    offsets = np.array([0, *window.frame_offsets])
    height, width = window.size
    with tempfile.TemporaryDirectory() as name:
        store = recorded(Path(name) / "data")
        size = sum(p.stat().st_size for p in store.root.rglob("*.mp4")) / store.frames / len(CAMERAS)
        speeds = {}
        for kind, budget in (("decoded", 0.0), ("cached", 16.0)):
            speeds[kind] = speed(open_images(store, (height, width), budget).__getitem__, store, offsets)
        frames, _ = open_frames(store, (height, width))
        spec = Spec(CAMERAS, height, width, DIMS, DIMS, window.chunk, tuple(window.frame_offsets), (), float(FPS))
        windows = frames.windows(spec, seed=0, batch_size=8)
        began, batches = time.process_time(), 20
        for step in range(batches):
            windows.batch(step)
        whole = batches * 8 / (time.process_time() - began)
    images = len(offsets) * len(CAMERAS)
    raw = images * 3 * height * width
    print(
        f"loader      {images} images of {height}x{width} a sample, from H.264 of 256x256 with {size:,.0f} bytes a "
        "frame, windows shuffled"
    )
    for kind, found in speeds.items():
        print(
            f"loader      {kind}: {found:,.0f} images a CPU-second, {found / images:,.1f} samples; {GPUS} GPUs that "
            f"take {RATE} samples a second each need {GPUS * RATE * images / found:,.1f} cores"
        )
    print(f"loader      whole batches from the cache: {whole:,.1f} samples a CPU-second, {raw / 1e6:.2f} MB a sample")
    kept = latent_bytes(window)
    for label, bytes_ in (("video", images * size), ("cached frames", raw), ("kept latents", kept)):
        print(
            f"loader      {label}: {bytes_ / 1e3:,.0f} kB a sample, {GPUS * RATE * bytes_ / 1e6:,.0f} MB a second for "
            f"{GPUS} GPUs, {RANKS * RATE * bytes_ / 1e9:,.2f} GB a second for {RANKS}"
        )
    windows_of = 10_000 * 3600 * FPS
    print(
        f"loader      10,000 hours, {windows_of:,} windows: kept latents of all {windows_of * kept / 1e12:,.0f} TB, "
        f"encoded in {windows_of * ENCODE_TFLOP / TFLOPS / 3600:,.0f} GPU-hours; cached frames "
        f"{windows_of * len(CAMERAS) * 3 * height * width / 1e12:,.0f} TB; video "
        f"{windows_of * len(CAMERAS) * size / 1e12:,.1f} TB"
    )


def recorded(root: Path) -> Store:
    """A data set of two cameras at 256x256, textured blobs with sensor noise."""
    names = tuple(f"j{i}" for i in range(DIMS))
    layout = {"image_shape": (3, 256, 256), "fps": float(FPS), "robot_type": "arm"}
    store = Store.create(root, cameras=CAMERAS, **layout, proprio_names=names, action_names=names)
    for e in range(4):
        images = np.concatenate([blobs(2 * e, 256), blobs(2 * e + 1, 256)], 1)
        vectors = np.random.default_rng(e).normal(size=(len(images), DIMS)).astype(np.float32)
        zero = np.zeros(len(images), np.float32)
        store.append(Episode("move", "move", e, float(FPS), CAMERAS, images, vectors, vectors, vectors, zero, zero > 0))
    store.finalize()
    return store


def speed(read: Callable[[np.ndarray], object], store: Store, offsets: np.ndarray, rounds: int = 3) -> float:
    """Images a CPU-second of `read` on shuffled windows within episodes: the median of some rounds."""
    lengths, starts = store.rows.lengths(), store.rows.starts()
    rates = []
    for i in range(rounds + 1):
        rng = np.random.default_rng(i)
        episode = rng.integers(0, len(store), 32)
        now = starts[episode] + rng.integers(0, lengths[episode] - offsets[-1])
        began = time.process_time()
        for at in range(0, len(now), 8):
            read(now[at : at + 8, None] + offsets)
        rates.append(len(now) * len(offsets) * len(store.cameras) / (time.process_time() - began))
    return statistics.median(rates[1:])


def latent_bytes(window: Any) -> int:
    """Bytes of a sample's latents in the feature cache: the present frame and a latent frame for every four ahead."""
    rows, columns = window.size[0] // 32, len(CAMERAS) * window.size[1] // 32
    return (1 + len(window.frame_offsets) // 4) * rows * columns * (48 * 2 * 2) * 4  # float32 patches of 2x2


# Comparison


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    """The recorded jobs of families with their own recipe and the whole data: (family, job)."""
    for path in sorted(JOBS.glob("*.json")):
        job = json.loads(path.read_text())
        name = job["configuration"]["family"]
        if re.fullmatch(rf"{name}-\d+", path.stem) and job["recipe"] == f"metaworld-{name}":
            yield name, job


def comparison(args: Args) -> None:
    """Prints the cost of a comparison of all families with three seeds, by what was recorded of its jobs."""
    cores: dict[str, list[float]] = {}
    walls: dict[str, list[float]] = {}
    for family, job in jobs():
        cores.setdefault(family, []).append(job["training"]["cpu_s"])
        walls.setdefault(family, []).append(job["training"]["wall_s"])
    means = {family: statistics.mean(found) for family, found in cores.items()}
    least, most = (pick(means, key=means.__getitem__) for pick in (min, max))
    total = 3 * sum(means.values()) / 3600
    print(
        f"comparison  {len(means)} families, {sum(map(len, cores.values()))} recorded jobs; training {total:.1f} "
        f"core-hours for 3 seeds, from {means[least] / 60:.1f} core-minutes a job ({least}) to "
        f"{means[most] / 60:.1f} ({most})"
    )
    lengths = sorted((statistics.mean(w) for w in walls.values() for _ in range(3)), reverse=True)
    for machines in (1, 4, 13, 39):
        busy = [0.0] * machines
        for length in lengths:  # the longest first, to the machine that is free first
            busy[busy.index(min(busy))] += length
        print(
            f"comparison  {machines} machines of two cores, a job at a time: {max(busy) / 60:.0f} minutes of training"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = tyro.cli(Args, description=__doc__)
    {"metadata": metadata, "numeric": numeric, "ranks": ranks, "loader": loader, "comparison": comparison}[chosen.part](
        chosen
    )
