"""Arrays in NumPy's files, npy and npz, from untrusted sources: no objects, and no more bytes than there are."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from wamkit.data.importers.base import LIMIT, SourceError


def read_npy(path: Path) -> np.ndarray:
    """The array in an npy file. Raises SourceError as `numbers` does."""
    with path.open("rb") as file:
        return numbers(file, path.stat().st_size, path.name)


def read_npz(path: Path, names: Iterable[str], optional: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """Some of the arrays in an npz file, by name. Raises SourceError as `numbers` does.

    optional: names of further arrays, which it may lack.
    """
    with zipfile.ZipFile(path) as file:
        members, out = {m.filename: m for m in file.infolist()}, {}
        for name in (*(name for name in optional if f"{name}.npy" in members), *names):
            if (member := members.get(f"{name}.npy")) is None:
                raise SourceError(f"it has no '{name}'")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise SourceError(f"'{name}' is compressed in a way that NumPy does not use; refused")
            with file.open(member) as content:
                out[name] = numbers(content, member.file_size, f"'{name}'")
        return out


def header(file: BinaryIO, what: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether columns come first, type) from the head of an npy file, after which the content begins."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise SourceError(f"{what} has npy's version {version}, which arrays of numbers do not need")


def numbers(file: BinaryIO, size: int, what: str) -> np.ndarray:
    """The array of numbers in an open npy file of `size` bytes.

    Raises SourceError for objects, texts and structures, and for an array that takes more bytes than LIMIT or than the
    file has.
    """
    shape, fortran, dtype = header(file, what)
    if dtype.kind not in "biuf":
        raise SourceError(f"{what} holds {'objects' if dtype.hasobject else dtype} instead of numbers; refused")
    declared = math.prod(shape) * dtype.itemsize
    if declared > LIMIT or min(shape, default=0) < 0 or declared != size - file.tell():
        raise SourceError(
            f"{what} declares {dtype} {str(shape)[:80]}, {declared} bytes, and has {size - file.tell()}; refused"
        )
    array = np.frombuffer(file.read(declared), dtype)
    return array.reshape(shape, order="F" if fortran else "C")
