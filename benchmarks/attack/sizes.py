"""Cases about declared sizes, ways out of a folder and things in the place of files: few bytes that ask for much."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from benchmarks.attack.fixtures import SOURCES, TINY, copy
from benchmarks.attack.sandbox import Case

Make = Callable[[Path], None]
"""Edits the files of a case, given its folder."""

DATA, EPISODES = "data/data/chunk-000/file-001.parquet", "data/meta/episodes/chunk-000/file-001.parquet"
VIDEO = "data/videos/observation.images.top/chunk-000/file-001.mp4"
ROWS = 60_000_000


def size_cases(made: Path, seed: int) -> Iterator[Case]:
    """Every case below, over commands that read the files."""
    train = ("train", "--data", "data", "--out", "new", *TINY)
    for name, (make, file) in DATA_SETS.items():
        for command in (("@data", "data"), ("validate", "data"), train):
            yield _case(made, f"sizes/data/{name}/{command[0]}", command, make, file, ("data",))
    for source in SOURCES:
        for name, (make, file) in FOREIGN.get(source.format, {}).items():
            command = ("import", source.format, source.path, "--out", "new", *source.options)
            yield _case(made, f"sizes/{source.format}/{name}", command, make, file, (f"sources/{source.format}",))
    for name, (make, file) in RUNS.items():
        yield _case(made, f"sizes/run/{name}", ("report", "run", "other"), make, file, ("run", "other"))


def _case(made: Path, name: str, command: tuple[str, ...], make: Make, file: str, needs: tuple[str, ...]) -> Case:
    copied = copy(made, *needs)

    def prepare(folder: Path, rng: np.random.Generator) -> str:
        copied(folder)
        make(folder)
        return name

    return Case(name, command, prepare, names=(Path(file).name, "data", "sources"), expect="refused")


def info(**changes: Any) -> Make:
    """Changes entries of info.json; a key "a/b" is an entry of an entry, a function gets the old value."""

    def make(folder: Path) -> None:
        path = folder / "data/meta/info.json"
        data = json.loads(path.read_bytes())
        for key, value in changes.items():
            *way, last = key.split("|")
            inner = data
            for step in way:
                inner = inner[step]
            inner[last] = value
        path.write_text(json.dumps(data))

    return make


def facts(**changes: Any) -> Make:
    """Changes columns of one episode's facts."""

    def make(folder: Path) -> None:
        path = folder / EPISODES
        table = pq.read_table(path)
        for column, value in changes.items():
            name = column.replace("__", "/")
            at = table.column_names.index(name)
            table = table.set_column(at, name, pa.array([value]))
        pq.write_table(table, path)

    return make


def many_rows(file: str) -> Make:
    """Replaces a parquet file by one that repeats its first row `ROWS` times in a few megabytes."""

    def make(folder: Path) -> None:
        kept = folder.parents[1] / "rows" / file.replace("/", "+")  # it takes a while to write
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            old = pq.read_table(folder / file)
            chunk = pa.concat_tables([old.slice(0, 1)] * 100_000).combine_chunks()
            with pq.ParquetWriter(kept, old.schema, compression="zstd") as writer:
                for _ in range(ROWS // len(chunk)):
                    writer.write_table(chunk, row_group_size=len(chunk))
        shutil.copyfile(kept, folder / file)

    return make


def instead(file: str, make: Callable[[Path], None]) -> Make:
    """Something else in the place of a file."""

    def put(folder: Path) -> None:
        path = folder / file
        path.unlink(missing_ok=True)
        make(path)

    return put


def link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def moved_out(file: str) -> Make:
    """Moves a file out of the data set and links to it."""

    def make(folder: Path) -> None:
        outside = folder / "outside" / Path(file).name
        outside.parent.mkdir()
        os.rename(folder / file, outside)
        (folder / file).symlink_to(outside)

    return make


def npy(shape: tuple[int, ...], descr: str = "<f4", body: bytes = b"") -> bytes:
    """The bytes of a .npy file that declares `shape` and holds `body`."""
    head = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + body


def npz_member(file: str, member: str, shape: tuple[int, ...], body: bytes = b"") -> Make:
    """Replaces a member of an .npz by one that declares `shape`, with zeros that compress well behind it."""

    def make(folder: Path) -> None:
        path = folder / file
        with zipfile.ZipFile(path) as old:
            members = {n: old.read(n) for n in old.namelist()}
        members.pop(f"{member}.npy", None)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for name, data in members.items():
                new.writestr(name, data)
            with new.open(f"{member}.npy", "w", force_zip64=True) as out:
                out.write(npy(shape, "|u1"))
                left = int(np.prod(shape)) if not body else 0
                while left > 0:
                    left -= out.write(bytes(min(left, 1 << 24)))
                out.write(body)

    return make


def calvin_pickle(value: Any) -> Make:
    """An annotation file whose pickle is `value`."""

    def make(folder: Path) -> None:
        path = folder / "sources/calvin/lang_annotations/auto_lang_ann.npy"
        out = io.BytesIO()
        np.save(out, np.array({}, object), allow_pickle=True)  # house: the header that NumPy writes before a pickle
        raw = out.getvalue()
        start = 10 + int.from_bytes(raw[8:10], "little")
        boxed = np.empty((), object)
        boxed[()] = value
        path.write_bytes(raw[:start] + pickle.dumps(boxed))

    return make


class Pointer:
    """Pickles to an array of objects over bytes of the file: a reader that builds it follows a wild pointer."""

    def __reduce__(self):
        return np.ndarray, ((1,), "O", b"AAAAAAAA")


class Large:
    """Pickles to an array of zeros of a terabyte."""

    def __reduce__(self):
        return np.ndarray, ((1 << 37,), "<f8")


def zeros(size: int, file: str) -> Make:
    """A file of zeros that takes no place on the disk."""

    def make(folder: Path) -> None:
        with open(folder / file, "wb") as out:
            out.truncate(size)

    return make


def hdf5(file: str, dataset: str, shape: tuple[int, ...], dtype: str = "u1") -> Make:
    """Replaces a data set of an HDF5 file by one that declares `shape` and has no chunk."""

    def make(folder: Path) -> None:
        import h5py

        with h5py.File(folder / "sources" / file, "r+") as data:
            del data[dataset]
            data.create_dataset(dataset, shape, dtype, chunks=tuple(min(n, 64) for n in shape), compression="gzip")

    return make


def zarr_shape(array: str, **changes: Any) -> Make:
    """Changes entries of an array's .zarray in a zipped zarr store."""

    def make(folder: Path) -> None:
        path = folder / "sources/umi/session.zarr.zip"
        with zipfile.ZipFile(path) as old:
            members = {n: old.read(n) for n in old.namelist()}
        name = f"{array}/.zarray"
        members[name] = json.dumps(json.loads(members[name]) | changes).encode()
        with zipfile.ZipFile(path, "w") as new:
            for member, data in members.items():
                new.writestr(member, data)

    return make


def rlds_length(folder: Path) -> None:
    """A record that declares 2^62 bytes, with a right checksum of the length."""
    from wamkit.data.importers.tfrecord import crc32c

    path = next((folder / "sources/rlds").rglob("*.tfrecord-00000*"))
    length = struct.pack("<Q", 1 << 62)
    crc = crc32c(length)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    path.write_bytes(length + struct.pack("<I", masked) + path.read_bytes()[12:])


def png_bomb(folder: Path) -> None:
    """A PNG of 60,000 x 60,000 in 40 kB, as the first image of a lerobot2 table."""
    path = sorted((folder / "sources/lerobot2/data/chunk-000").glob("*.parquet"))[0]
    table = pq.read_table(path)
    column = next(n for n in table.column_names if pa.types.is_struct(table.schema.field(n).type))
    side = 60_000
    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(bytes((1 + 3 * side) * 100)) for _ in range(side // 100)) + rows.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks
    )
    values = table[column].to_pylist()
    values[0] = values[0] | {"bytes": png}
    at = table.column_names.index(column)
    table = table.set_column(at, table.schema.field(column), pa.array(values, table.schema.field(column).type))
    pq.write_table(table, path)


DATA_SETS: dict[str, tuple[Make, str]] = {
    "shape": (info(**{"features|observation.state|shape": [10**9]}), "info.json"),
    "shape-image": (info(**{"features|observation.images.top|shape": [10**6, 10**6, 3]}), "info.json"),
    "chunk-template": (info(data_path="data/{chunk_index:2000000000}/{file_index}.parquet"), "info.json"),
    "video-template": (info(video_path="videos/{video_key}/{chunk_index:2000000000}/{file_index}.mp4"), "info.json"),
    "template-attribute": (info(data_path="data/{chunk_index.__class__}/{file_index}.parquet"), "info.json"),
    "template-up": (info(data_path="../{chunk_index}/{file_index}.parquet"), "info.json"),
    "episodes-promised": (info(total_episodes=10**15), "info.json"),
    "fps-huge": (info(fps=10**400), "info.json"),
    "fps-1e300": (info(fps=1e300), "info.json"),
    "features-many": (info(features={f"f{i}": {"shape": [1]} for i in range(200_000)}), "info.json"),
    "extra-shape": (info(**{"features|x": {"dtype": "float32", "shape": [10**9]}}), "info.json"),
    "rows-data": (many_rows(DATA), "file-001.parquet"),
    "rows-episodes": (many_rows(EPISODES), "file-001.parquet"),
    "rows-tasks": (many_rows("data/meta/tasks.parquet"), "tasks.parquet"),
    "length-huge": (facts(length=10**12), "file-001.parquet"),
    "length-0": (facts(length=0), "file-001.parquet"),
    "length-negative": (facts(length=-5), "file-001.parquet"),
    "file-index-text": (facts(data__file_index="/abs/x.parquet"), "file-001.parquet"),
    "file-index-up": (facts(data__file_index="../../../x"), "file-001.parquet"),
    "file-index-negative": (facts(data__file_index=-1), "file-001.parquet"),
    "file-index-huge": (facts(data__file_index=2**62), "file-001.parquet"),
    "chunk-index-float": (facts(data__chunk_index=0.5), "file-001.parquet"),
    "video-index-text": (facts(**{"videos__observation.images.top__file_index": "/abs/y"}), "file-001.parquet"),
    "video-start": (facts(**{"videos__observation.images.top__from_timestamp": 1e300}), "file-001.parquet"),
    "video-start-nan": (facts(**{"videos__observation.images.top__from_timestamp": float("nan")}), "file-001.parquet"),
    "snapshots-up": (facts(wamkit__snapshots="../../../x.npz"), "file-001.parquet"),
    "link-out-data": (moved_out(DATA), "file-001.parquet"),
    "link-out-video": (moved_out(VIDEO), "file-001.mp4"),
    "link-out-info": (moved_out("data/meta/info.json"), "info.json"),
    "link-loop": (instead(DATA, link("file-001.parquet")), "file-001.parquet"),
    "fifo-data": (instead(DATA, os.mkfifo), "file-001.parquet"),
    "fifo-episodes": (instead(EPISODES, os.mkfifo), "file-001.parquet"),
    "fifo-tasks": (instead("data/meta/tasks.parquet", os.mkfifo), "tasks.parquet"),
    "fifo-video": (instead(VIDEO, os.mkfifo), "file-001.mp4"),
    "device-data": (instead(DATA, link("/dev/zero")), "file-001.parquet"),
    "device-video": (instead(VIDEO, link("/dev/zero")), "file-001.mp4"),
    "zeros-info": (zeros(1 << 40, "data/meta/info.json"), "info.json"),
    "zeros-video": (zeros(1 << 36, VIDEO), "file-001.mp4"),
    "zeros-data": (zeros(1 << 40, DATA), "file-001.parquet"),
}
"""Name -> (edit of the data set, the file that a refusal names)."""

STEP, IDS, ROBOMIMIC, UMI = "episode_0000005.npz", "ep_start_end_ids.npy", "robomimic.hdf5", "session.zarr.zip"
LABELS = "auto_lang_ann.npy"


def calvin(**arrays: Any) -> Any:
    """What an annotation file of CALVIN holds."""
    return {"info": {"indx": arrays["indx"]}, "language": {"ann": ["x"]}}


FOREIGN: dict[str, dict[str, tuple[Make, str]]] = {
    "calvin": {
        "pointer": (calvin_pickle(calvin(indx=Pointer())), LABELS),
        "large": (calvin_pickle(calvin(indx=Large())), LABELS),
        "steps": (lambda f: np.save(f / "sources/calvin" / IDS, np.array([[0, 10**12]])), IDS),
        "ids-shape": (instead(f"sources/calvin/{IDS}", lambda p: p.write_bytes(npy((10**10, 2), "<i8"))), IDS),
        "member": (npz_member(f"sources/calvin/{STEP}", "rgb_static", (30_000, 30_000, 3)), STEP),
        "member-declared": (npz_member(f"sources/calvin/{STEP}", "rgb_static", (10**6, 10**6, 3), b"x"), STEP),
        "fifo": (instead(f"sources/calvin/{STEP}", os.mkfifo), STEP),
    },
    "robomimic": {
        "image": (hdf5(f"robomimic/{ROBOMIMIC}", "data/demo_0/obs/agentview_image", (6, 16_000, 16_000, 3)), ROBOMIMIC),
        "actions": (hdf5(f"robomimic/{ROBOMIMIC}", "data/demo_0/actions", (10**12, 7), "f8"), ROBOMIMIC),
        "actions-wide": (hdf5(f"robomimic/{ROBOMIMIC}", "data/demo_0/actions", (6, 10**10), "f8"), ROBOMIMIC),
    },
    "libero": {
        "image": (
            hdf5("libero/libero_demo.hdf5", "data/demo_0/obs/agentview_rgb", (7, 16_000, 16_000, 3)),
            "demo.hdf5",
        ),
    },
    "aloha": {
        "image": (hdf5("aloha/episode_0.hdf5", "observations/images/cam_high", (9, 16_000, 16_000, 3)), "episode_0"),
        "fifo": (instead("sources/aloha/episode_0.hdf5", os.mkfifo), "episode_0.hdf5"),
    },
    "maniskill": {"actions": (hdf5("maniskill/maniskill.h5", "traj_0/actions", (10**12, 7), "f4"), "maniskill.h5")},
    "umi": {
        "chunks": (zarr_shape("data/robot0_eef_pos", shape=[500_000_000, 3], chunks=[1, 3]), UMI),
        "shape": (zarr_shape("data/robot0_eef_pos", shape=[10**15, 3]), UMI),
        "chunk": (zarr_shape("data/camera0_rgb", chunks=[1, 10**6, 10**6, 3]), UMI),
        "ends": (zarr_shape("meta/episode_ends", shape=[10**12]), UMI),
        "device": (instead(f"sources/umi/{UMI}", link("/dev/zero")), UMI),
    },
    "rlds": {"length": (rlds_length, "tfrecord")},
    "lerobot2": {
        "rows": (many_rows("sources/lerobot2/data/chunk-000/episode_000000.parquet"), "episode_000000.parquet"),
        "png": (png_bomb, "episode_000000.parquet"),
    },
    "video": {
        "fifo": (instead("sources/video/a.mp4", os.mkfifo), "a.mp4"),
        "device": (instead("sources/video/a.mp4", link("/dev/zero")), "a.mp4"),
        "captions-device": (instead("sources/video/captions.csv", link("/dev/zero")), "captions.csv"),
        "captions-fifo": (instead("sources/video/captions.csv", os.mkfifo), "captions.csv"),
    },
    "epic": {"table-device": (instead("sources/epic/EPIC_100_train.csv", link("/dev/zero")), "EPIC_100_train.csv")},
}
"""Importer -> name -> (edit of its source, the file that a refusal names)."""

RUNS: dict[str, tuple[Make, str]] = {
    "records-rows": (many_rows("run/eval/episodes.parquet"), "episodes.parquet"),
    "records-fifo": (instead("run/eval/episodes.parquet", os.mkfifo), "episodes.parquet"),
    "summary-device": (instead("run/eval/summary.json", link("/dev/zero")), "summary.json"),
}
"""Edits of an evaluation that `wamkit report` shows."""
