"""A disk cache of the features that a frozen encoder computes for all windows.

Training then neither decodes nor encodes images at every step. Runs with the same data, windows and encoder share it.

    <folder>/<key>/<name>.npy, checksums.json     key: a digest of the encoder's weights, the data and the windows
    <folder>/.<key>.draft/                        the same while it is made, with a mark for every shard that is there

Features are made shard by shard. What was made before an interruption stays, and processes that want the same features
at the same time divide the shards among themselves.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from wamkit.files import (
    StoreError,
    WriteError,
    atomic_write,
    exclusive,
    file_size,
    fsync_folder,
    inside,
    make_folder,
    read_json,
    remove_leftovers,
    temporary,
    write_error,
)

_SUMS = "checksums.json"
_BLOCK = 1 << 24  # bytes read at a time

Parts = Callable[[int, int], Iterator[Mapping[str, np.ndarray]]]
"""Starts a pass over the features of windows number first to last, in order: some rows at a time, arrays by name."""


def cached_features(
    folder: Path, key: str, rows: int, parts: Parts, limit: int, shard: int = 1024
) -> dict[str, np.ndarray]:
    """The features of `rows` windows by name, memory-mapped and read-only.

    parts: computes them, if they are missing or damaged.
    limit: bytes that all features in `folder` may take. Beyond it, those used longest ago are removed.
    shard: windows that are made at a time; what an interruption loses at most.

    They appear whole or not at all. Raises StoreError when the disk is full.
    """
    make_folder(folder)
    path, draft = folder / key, folder / f".{key}.draft"
    with exclusive(folder, wait=True):
        if (features := _intact(path, rows)) is None:
            shutil.rmtree(path, ignore_errors=True)
            remove_leftovers(path)
            make_folder(draft)
    if features is None:
        _fill(draft, rows, parts, shard)
    with exclusive(folder, wait=True):
        if features is None and (features := _intact(path, rows)) is None:  # unless another process was faster
            _finish(draft, path)
            features = _mapped(path, rows, sorted(p.name for p in path.glob("*.npy")))
        path.touch()
        _make_room(folder, path, limit)
    return features


def _fill(draft: Path, rows: int, parts: Parts, shard: int) -> None:
    """Makes all shards, but for those that are there and those that other processes make meanwhile."""
    starts = range(0, rows, shard)
    made = sum(_mark(draft, k, min(k + shard, rows)).exists() for k in starts)
    with tqdm(total=len(starts), initial=made, unit="shard", desc="encoding", leave=False) as bar:
        for wait in (False, True):  # first what nobody makes, then what others left
            for start in starts:
                stop = min(start + shard, rows)
                try:
                    (lock := draft / f"{start}.lock").mkdir(exist_ok=True)
                    with exclusive(lock, wait):
                        if not _is_made(draft, start, stop) and draft.is_dir():  # moved away when all is made
                            _make(draft, rows, start, stop, parts)
                            bar.update()
                except OSError as error:
                    if not draft.is_dir():  # another process has made all, and moved them away
                        return
                    raise error if isinstance(error, WriteError) else write_error(draft, error) from error
                except StoreError:  # another process makes it
                    continue


def _make(draft: Path, rows: int, start: int, stop: int, parts: Parts) -> None:
    arrays: dict[str, np.ndarray] = {}
    at = start
    try:
        for part in parts(start, stop):
            for name, x in part.items():
                if name not in arrays:
                    arrays[name] = _opened(draft, name, (rows, *x.shape[1:]), x.dtype)
                arrays[name][at : at + len(x)] = x
            at += len(next(iter(part.values())))
        sums = {}
        for name, x in arrays.items():
            x.flush()
            sums[name] = zlib.crc32(np.ascontiguousarray(x[start:stop]))
        atomic_write(_mark(draft, start, stop), json.dumps(sums).encode())
    except OSError as error:
        raise error if isinstance(error, WriteError) else write_error(draft, error) from error


def _mark(draft: Path, start: int, stop: int) -> Path:
    return draft / f"{start}-{stop}.json"


def _is_made(draft: Path, start: int, stop: int) -> bool:
    """True if a shard is there, as it was made."""
    try:
        sums = read_json(_mark(draft, start, stop))
        arrays = {name: np.load(inside(draft, f"{name}.npy"), mmap_mode="r") for name in sums}
        return bool(sums) and all(zlib.crc32(np.ascontiguousarray(arrays[n][start:stop])) == sums[n] for n in sums)
    except (StoreError, OSError, ValueError, AttributeError, TypeError):
        return False


def _opened(draft: Path, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The array of a name, for all windows, made where it is not there or was made for others."""
    file = draft / f"{name}.npy"
    with exclusive(draft, wait=True):
        try:
            found = np.load(file, mmap_mode="r+")
            if (found.shape, found.dtype) == (shape, dtype):
                return found
        except (OSError, ValueError):
            pass
        return np.lib.format.open_memmap(file, "w+", dtype, shape)


def _finish(draft: Path, path: Path) -> None:
    try:
        whole = draft.rename(temporary(path))  # at once, for processes that still look whether a shard is there
        for left in (*whole.glob("*.json"), *whole.glob("*.lock")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        sums = {p.name: _checksum(p) for p in whole.glob("*.npy")}
        (whole / _SUMS).write_text(json.dumps(sums))
        whole.rename(path)
        fsync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error


def _mapped(path: Path, rows: int, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The arrays of these names. Raises ValueError for those that do not have `rows` rows, or of larger size than the
    file."""
    out = {Path(name).stem: np.load(path / name, mmap_mode="r") for name in names}
    if any(x.ndim < 1 or len(x) != rows for x in out.values()):
        raise ValueError(f"{path} has not {rows} rows")
    return out


def _checksum(path: Path) -> int:
    total = 0
    file_size(path)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            total = zlib.crc32(block, total)
    return total


def _intact(path: Path, rows: int) -> dict[str, np.ndarray] | None:
    """The features, if their checksums are right."""
    try:
        sums = read_json(path / _SUMS)
        if not sums or any(_checksum(inside(path, name)) != total for name, total in sums.items()):
            return None
        return _mapped(path, rows, sums)
    except (StoreError, OSError, ValueError, AttributeError):
        return None


def _make_room(folder: Path, used: Path, limit: int) -> None:
    size = {p: sum(f.stat().st_size for f in p.glob("*")) for p in folder.iterdir() if p.is_dir()}
    for path in sorted(size, key=lambda p: p.stat().st_mtime):
        if path != used and sum(size.values()) > limit:
            shutil.rmtree(path, ignore_errors=True)
            del size[path]
