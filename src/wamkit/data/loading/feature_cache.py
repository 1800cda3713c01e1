"""A disk cache of the features that a frozen encoder computes for all windows.

Training then neither decodes nor encodes images at every step. Runs with the same data, windows and encoder share it.

    <folder>/<key>/<name>.npy, checksums.json     key: a digest of the encoder's weights, the data and the windows
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from wamkit.files import (
    StoreError,
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

Parts = Callable[[], Iterator[Mapping[str, np.ndarray]]]
"""Starts a new pass over the features of all windows, in order: some rows at a time, arrays by name."""


def cached_features(folder: Path, key: str, rows: int, parts: Parts, limit: int) -> dict[str, np.ndarray]:
    """The features of `rows` windows by name, memory-mapped and read-only.

    parts: computes them, if they are missing or damaged.
    limit: bytes that all features in `folder` may take. Beyond it, those used longest ago are removed.

    They appear whole or not at all. Raises StoreError when the disk is full.
    """
    make_folder(folder)
    path = folder / key
    with exclusive(folder, wait=True):
        if (features := _intact(path, rows)) is None:
            shutil.rmtree(path, ignore_errors=True)
            _build(path, rows, parts)
            features = _mapped(path, rows, sorted(p.name for p in path.glob("*.npy")))
        path.touch()
        _make_room(folder, path, limit)
    return features


def _build(path: Path, rows: int, parts: Parts) -> None:
    remove_leftovers(path)
    draft = temporary(path)
    try:
        draft.mkdir()
        arrays: dict[str, np.ndarray] = {}
        at = 0
        for part in parts():
            for name, x in part.items():
                if name not in arrays:
                    arrays[name] = np.lib.format.open_memmap(draft / f"{name}.npy", "w+", x.dtype, (rows, *x.shape[1:]))
                arrays[name][at : at + len(x)] = x
            at += len(next(iter(part.values())))
        for x in arrays.values():
            x.flush()
        sums = {p.name: _checksum(p) for p in draft.glob("*.npy")}
        (draft / _SUMS).write_text(json.dumps(sums))
        draft.rename(path)
        fsync_folder(path.parent)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
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
