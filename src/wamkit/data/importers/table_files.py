"""Arrays by name in files of many formats, from untrusted sources: HDF5, zarr, npz, parquet and CSV.

Serves the importer `table`. What a file declares is compared with the limits of `importers.base` before it is unpacked.
"""

from __future__ import annotations

import math
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import UInt8

from wamkit.data.format.parquet import read_parquet
from wamkit.data.importers import hdf5
from wamkit.data.importers.base import LIMIT, SourceError, image_size, reading
from wamkit.data.importers.encoded_images import decode_image
from wamkit.data.importers.npy import header, read_npz
from wamkit.data.importers.zarr2 import Zarr
from wamkit.files import file_size, parse_json

ARRAYS = 10_000
"""Arrays of a file that are looked at; a file with more holds no recordings."""
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
"""Seconds of a unit of time."""
Kind = Literal["numbers", "texts", "bytes"]


@dataclass(frozen=True)
class Declared:
    """An array as its file declares it. kind: texts, encoded images ("bytes"), or numbers of type `dtype`."""

    shape: tuple[int, ...]
    kind: Kind
    dtype: np.dtype | None = None

    @property
    def is_images(self) -> bool:
        """True for raw images, uint8 (T, H, W, 1 or 3), and for encoded ones: bytes, or rows of padded bytes."""
        if self.kind == "bytes":
            return True
        raw = len(self.shape) == 4 and self.shape[3] in (1, 3)
        return self.dtype == np.uint8 and (raw or len(self.shape) == 2 and self.shape[1] > 256)

    def __str__(self) -> str:
        kind = self.kind if self.dtype is None else str(self.dtype)
        return f"{kind} {self.shape}"


class TableFile(ABC):
    """Arrays by name in the file or store `path`.

    grouped: whether "/" joins the names of groups and arrays; else it is a letter of a name, as in "rad/s".
    """

    grouped: ClassVar[bool] = True

    def __init__(self, path: Path):
        self.path = path

    @abstractmethod
    def arrays(self) -> Mapping[str, Declared]:
        """All arrays by name, unread."""

    @abstractmethod
    def numbers(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows of an array of numbers; the whole array if it has no axis."""

    @abstractmethod
    def texts(self, name: str) -> list[str]:
        """The texts of an array, one for each row; one text if it has no axis, or is an attribute ("@name")."""

    def attributes(self, group: str) -> Mapping[str, str]:
        """Texts that a group holds beside its arrays, by name; "" is the file itself. None in most formats."""
        return {}

    @abstractmethod
    def encoded(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        """Rows of an array of encoded images, one at a time."""

    def images(self, name: str, start: int, stop: int) -> Iterator[UInt8[np.ndarray, "H W c"]]:
        """Rows of an array of images, one at a time, as they are or decoded."""
        declared = self.arrays()[name]
        if not declared.is_images:
            raise SourceError(
                f"'{name}' is {declared} instead of images: uint8 (T, H, W, 3), or encoded as JPEG or PNG"
            )
        if declared.kind == "numbers" and len(declared.shape) == 4:
            assert declared.dtype is not None  # numbers have one
            image_size(declared.dtype, declared.shape[1:], name)
            for t in range(start, stop):
                yield self.numbers(name, t, t + 1)[0]
            return
        for data in self.encoded(name, start, stop):
            yield decode_image(data, name)


class Hdf5Table(TableFile):
    """An HDF5 file."""

    @cached_property
    def _arrays(self) -> dict[str, Declared]:
        import h5py

        out: dict[str, Declared] = {}

        def walk(group: Any, prefix: str) -> None:
            for name in sorted(group):
                link = group.get(name, getlink=True)
                if not isinstance(link, h5py.HardLink) or len(out) >= ARRAYS or prefix.count("/") > 16:
                    continue
                at = group[name]
                if isinstance(at, h5py.Group):
                    walk(at, f"{prefix}{name}/")
                elif isinstance(at, h5py.Dataset) and at.shape is not None and (kind := _kind(at.dtype)):
                    out[prefix + name] = Declared(at.shape, kind, at.dtype if kind == "numbers" else None)

        with hdf5.opened(self.path) as file:
            walk(file, "")
        return out

    def arrays(self) -> Mapping[str, Declared]:
        return self._arrays

    def numbers(self, name: str, start: int, stop: int) -> np.ndarray:
        with hdf5.opened(self.path) as file:
            at = hdf5.dataset(file, name)
            if not at.shape:
                return np.asarray(at[()])
            if (stop - start) * math.prod(at.shape[1:]) * at.dtype.itemsize > LIMIT:
                raise SourceError(f"'{name}' declares {at.shape}, more than an episode's arrays ever take; refused")
            return at[start:stop]

    def texts(self, name: str) -> list[str]:
        with hdf5.opened(self.path) as file:
            if "@" in name:
                where, _, attribute = name.rpartition("@")
                if attribute not in (held := self._texts_of(file, where)):
                    raise SourceError(f"its attribute '{name}' is no text")
                return [held[attribute]]
            at = self._opaque(file, name, "texts")
            rows = [at[()]] if not at.shape else at[:].reshape(-1).tolist()
            return [x if isinstance(x, str) else bytes(x).decode() for x in rows]

    def attributes(self, group: str) -> Mapping[str, str]:
        with hdf5.opened(self.path) as file:
            return self._texts_of(file, group)

    def _texts_of(self, file: Any, group: str) -> dict[str, str]:
        held = (hdf5.member(file, group) if group.strip("/") else file).attrs
        found = ((name, held[name]) for name in held)
        return {n: x if isinstance(x, str) else x.decode() for n, x in found if isinstance(x, (str, bytes))}

    def encoded(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        with hdf5.opened(self.path) as file:
            if self._arrays[name].kind == "numbers":
                at = hdf5.dataset(file, name)  # rows of bytes, padded with zeros: decoders stop at the image's end
            else:
                at = self._opaque(file, name, "bytes")
            for t in range(start, stop):
                yield bytes(at[t].tobytes() if isinstance(at[t], np.ndarray) else at[t])

    def _opaque(self, file: Any, name: str, kind: Kind) -> Any:
        """A data set of texts or of bytes of any length. Raises SourceError for others, and for storage elsewhere."""
        declared = self._arrays.get(name)
        if declared is None or declared.kind != kind:
            raise SourceError(f"'{name}' is {declared or 'not there'} instead of {kind}")
        at = hdf5.member(file, name)
        if at.external or at.is_virtual:
            raise SourceError(f"'{name}' stores its values in another file; refused")
        if math.prod(at.shape) > LIMIT // 16:
            raise SourceError(f"'{name}' declares {at.shape}; refused")
        return at


def _kind(dtype: np.dtype) -> Kind | None:
    import h5py

    if dtype.kind in "biuf":
        return "numbers"
    if dtype.kind == "S" or h5py.check_string_dtype(dtype):
        return "texts"
    return "bytes" if h5py.check_vlen_dtype(dtype) == np.uint8 else None


class ZarrTable(TableFile):
    """A zarr store of version 2, in a folder or a zip file."""

    @cached_property
    def _store(self) -> Zarr:
        with reading(self.path):
            return Zarr(self.path)

    @cached_property
    def _arrays(self) -> dict[str, Declared]:
        with reading(self.path):
            found = {name: self._store.array(name) for name in self._store.names()[:ARRAYS]}
            return {name: Declared(a.shape, "numbers", a.dtype) for name, a in found.items()}

    def arrays(self) -> Mapping[str, Declared]:
        return self._arrays

    def numbers(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._store.array(name).read(start, stop)

    def texts(self, name: str) -> list[str]:
        where, mark, attribute = name.rpartition("@")
        if not mark:
            raise SourceError(f"'{name}': texts of zarr stores are read from attributes, as '@{name}'")
        if attribute not in (held := self.attributes(where)):
            raise SourceError(f"there is no text '{attribute}' in {where.strip('/') or 'the store'}'s .zattrs")
        return [held[attribute]]

    def attributes(self, group: str) -> Mapping[str, str]:
        file = f"{group.strip('/')}/.zattrs".lstrip("/")
        content = parse_json(self._store.content(file, 1 << 20), file) if self._store.has(file) else {}
        return {n: x for n, x in content.items() if isinstance(x, str)} if isinstance(content, dict) else {}

    def encoded(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        for t in range(start, stop):
            yield self.numbers(name, t, t + 1).tobytes()


class NpzTable(TableFile):
    """An npz file."""

    @cached_property
    def _arrays(self) -> dict[str, Declared]:
        out = {}
        with reading(self.path), zipfile.ZipFile(self.path) as file:
            for member in file.infolist()[:ARRAYS]:
                if not member.filename.endswith(".npy"):
                    continue
                with file.open(member) as content:
                    shape, _, dtype = header(content, f"'{member.filename}'")  # type: ignore[arg-type]
                if kind := "numbers" if dtype.kind in "biuf" else "texts" if dtype.kind == "U" else "":
                    numeric = dtype if kind == "numbers" else None
                    out[member.filename.removesuffix(".npy")] = Declared(shape, kind, numeric)  # type: ignore[arg-type]
        return out

    def arrays(self) -> Mapping[str, Declared]:
        return self._arrays

    @cached_property
    def _read(self) -> dict[str, np.ndarray]:
        return {}

    def numbers(self, name: str, start: int, stop: int) -> np.ndarray:
        if name not in self._read:
            with reading(self.path):
                self._read[name] = read_npz(self.path, [name])[name]
        array = self._read[name]
        return array[start:stop] if array.ndim else array

    def texts(self, name: str) -> list[str]:
        declared = self._arrays.get(name)
        if declared is None or declared.kind != "texts" or math.prod(declared.shape) > LIMIT // 4096:
            raise SourceError(f"'{name}' is {declared or 'not there'} instead of texts")
        with reading(self.path), zipfile.ZipFile(self.path) as file, file.open(f"{name}.npy") as content:
            shape, _, dtype = header(content, f"'{name}'")  # type: ignore[arg-type]
            if math.prod(shape) * dtype.itemsize > LIMIT:
                raise SourceError(f"'{name}' declares {shape} texts of {dtype}; refused")
            return np.frombuffer(content.read(math.prod(shape) * dtype.itemsize), dtype).reshape(-1).tolist()

    def encoded(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        for row in self.numbers(name, start, stop):
            yield row.tobytes()


class ArrowTable(TableFile):
    """A parquet or a CSV file: a column is an array, of as many values a row as its lists are long.

    Times and durations are numbers of seconds.
    """

    grouped = False

    @cached_property
    def _table(self) -> Any:
        if self.path.suffix == ".parquet":
            return read_parquet(self.path)
        from pyarrow import csv

        if file_size(self.path) > LIMIT:
            raise SourceError(f"{self.path} has {file_size(self.path)} bytes, more than a table ever takes; refused")
        with reading(self.path):
            return csv.read_csv(self.path)

    @cached_property
    def _arrays(self) -> dict[str, Declared]:
        import pyarrow.types as types

        out, rows = {}, len(self._table)
        for name in self._table.column_names[:ARRAYS]:
            kind = self._table.schema.field(name).type
            if types.is_string(kind) or types.is_large_string(kind):
                out[name] = Declared((rows,), "texts")
            elif types.is_binary(kind) or types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                out[name] = Declared((rows,), "bytes")
            elif types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
                if types.is_floating(kind.value_type) or types.is_integer(kind.value_type):
                    first = self._table.column(name)[0].as_py() if rows else []
                    out[name] = Declared(
                        (rows, len(first or [])), "numbers", np.dtype(kind.value_type.to_pandas_dtype())
                    )
            elif types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind):
                out[name] = Declared((rows,), "numbers", np.dtype(kind.to_pandas_dtype()))
            elif _of_time(kind):
                out[name] = Declared((rows,), "numbers", np.dtype(np.float64))
        return out

    def arrays(self) -> Mapping[str, Declared]:
        return self._arrays

    def numbers(self, name: str, start: int, stop: int) -> np.ndarray:
        column = self._table.column(name).slice(start, stop - start)
        if column.null_count:
            raise SourceError(f"'{name}' has {column.null_count} empty cells")
        if _of_time(column.type):
            return column.to_numpy().astype(np.int64) * UNITS[column.type.unit]
        if len(self._arrays[name].shape) == 1:
            return column.to_numpy()
        flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        if len(flat) != len(column) * self._arrays[name].shape[1]:
            raise SourceError(f"'{name}' has lists of different lengths")
        return flat.reshape(len(column), -1)

    def texts(self, name: str) -> list[str]:
        return [x or "" for x in self._table.column(name).to_pylist()]

    def encoded(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        column = self._table.column(name)
        for t in range(start, stop):
            value = column[t].as_py()
            value = value.get("bytes") if isinstance(value, dict) else value
            if not isinstance(value, bytes):
                raise SourceError(f"'{name}' has no image in row {t}")
            yield value


def _of_time(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_timestamp(kind) or types.is_duration(kind)


FORMATS: Mapping[str, type[TableFile]] = {
    ".hdf5": Hdf5Table,
    ".h5": Hdf5Table,
    ".zarr": ZarrTable,
    ".zip": ZarrTable,
    ".npz": NpzTable,
    ".parquet": ArrowTable,
    ".csv": ArrowTable,
}
"""Readers by the ending of a file's name."""


def table_file(path: Path) -> TableFile:
    """The reader of a file. Raises SourceError for an ending that is not in `FORMATS`."""
    for ending in ("".join(path.suffixes[-2:]), path.suffix):
        if kind := FORMATS.get(".zarr" if ending == ".zarr.zip" else ending.lower()):
            return kind(path)
    raise SourceError(f"{path}: tables are {', '.join(FORMATS)}; convert it to one of these")


def stem(path: Path) -> str:
    """The name of a table without its ending."""
    name = path.name.removesuffix(".zip") if path.name.endswith(".zarr.zip") else path.name
    return Path(name).stem


def is_table(path: Path) -> bool:
    """True for a file, or a zarr store's folder, that `table_file` reads."""
    return path.suffix.lower() in FORMATS and (path.is_file() or path.suffix == ".zarr")


def by_number(names: Sequence[str]) -> list[str]:
    """Names sorted by the numbers in them: joint_2 before joint_10."""
    return sorted(names, key=lambda n: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", n)])


def short_names(names: Sequence[str]) -> list[str]:
    """The names of arrays by as few of their last parts as tell them apart, joined by "_"."""
    deepest = max((name.count("/") for name in names), default=0) + 1
    for depth in range(1, deepest + 1):
        out = ["_".join(name.split("/")[-depth:]) for name in names]
        if len(set(out)) == len(out):
            break
    return out if names else []
