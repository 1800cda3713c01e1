"""Arrays in zarr stores of version 2, in a folder or a zip file, from untrusted sources.

    <array>/.zarray      JSON: shape, chunks, dtype, order, compressor
    <array>/0.0, 0.1 ... the chunks, each of the full size, also at the edges

The zarr package lets a file choose any codec, one that unpickles among them, and unpacks whatever a chunk declares.
Here codecs are those of a list, and a chunk unpacks into as many bytes as the array says.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np

from wamkit.data.importers.base import LIMIT, SourceError, entry, inside, whole
from wamkit.files import parse_json, read_bytes, visible
from wamkit.types import WamkitError

BYTES = {"blosc": {}, "zstd": {}, "zlib": {}, "gzip": {}, "bz2": {}, "lz4": {"header": True}}
"""Codecs of bytes, by their names in .zarray and in imagecodecs, with arguments of their decoders."""
IMAGES = ("jpegxl", "jpeg", "jpeg2k", "png", "webp")
"""Codecs of images: "imagecodecs_jpegxl" in .zarray is imagecodecs' jpegxl_decode."""
_CHUNKS = 2**20  # chunks of an array that is read at once
_MORE = 1 << 16  # bytes by which a packed chunk may be larger than an unpacked one


class Zarr:
    """A zarr store of version 2, open for reading.

    path: its folder or zip file.

    Raises SourceError for a damaged archive, and for names that lead out of it.
    """

    def __init__(self, path: Path):
        self._path = path
        self._zip = None if path.is_dir() else zipfile.ZipFile(path)
        self._members = {} if self._zip is None else {m.filename: m for m in self._zip.infolist()}
        for name, member in self._members.items():
            if name.startswith(("/", "\\")) or ".." in name.split("/"):
                raise SourceError(f"{path}: '{name}' leads out of the archive; refused")
            if member.file_size > LIMIT or member.file_size > 1000 * max(member.compress_size, 1000):
                raise SourceError(f"{path}: '{name}' declares {member.file_size} bytes; refused")

    def arrays(self, group: str) -> list[str]:
        """The names of the arrays in a group, sorted."""
        if self._zip is None:
            return [p.name for p in visible(self._path / group, "*") if (p / ".zarray").exists()]
        found = (re.fullmatch(rf"{re.escape(group)}/([^/]+)/\.zarray", name) for name in self._members)
        return sorted(m[1] for m in found if m)

    def names(self) -> list[str]:
        """The names of all arrays, with those of their groups, sorted."""
        if self._zip is None:
            return [str(p.parent.relative_to(self._path)) for p in _array_files(self._path)]
        return sorted(name.removesuffix("/.zarray") for name in self._members if name.endswith("/.zarray"))

    def has(self, name: str) -> bool:
        """True if there is a file called `name`."""
        return name in self._members if self._zip else inside(self._path, name).exists()

    def content(self, name: str, most: int) -> bytes:
        """The bytes of the file `name`. Raises SourceError where there are none, or more than `most`."""
        if not self.has(name):
            raise SourceError(f"{name} is missing; its content is lost")
        if self._zip is None:
            return read_bytes(inside(self._path, name), most)
        member = self._members[name]
        if member.file_size > most or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise SourceError(f"{name} declares {member.file_size} bytes, more than the {most} of its place; refused")
        return self._zip.read(member)

    def array(self, name: str) -> Array:
        """The array `name`, unread. Raises SourceError for one that is not of numbers, or packed in an unknown way."""
        about, where = parse_json(self.content(f"{name}/.zarray", 1 << 20), f"{name}/.zarray"), f"{name}/.zarray: "
        if entry(about, "zarr_format", int) != 2:
            raise SourceError(f"{where}zarr_format is {about['zarr_format']}, and version 2 is read")
        if about.get("filters"):
            raise SourceError(f"{where}filters are not read; refused")
        shape, chunks = (
            tuple(whole(n, f"{where}{key}", low, 2**40) for n in entry(about, key, list))
            for key, low in (("shape", 0), ("chunks", 1))
        )
        dtype = entry(about, "dtype", str)
        if not re.fullmatch("[<>|][biuf][1248]", dtype) or len(shape) != len(chunks) or not 0 < len(shape) <= 8:
            raise SourceError(f"{where}{dtype[:20]} {list(shape)} in chunks of {list(chunks)} is no array of numbers")
        if math.prod(chunks) * np.dtype(dtype).itemsize > LIMIT:
            raise SourceError(f"{where}chunks of {list(chunks)} {dtype} are larger than any array; refused")
        order, separator = about.get("order", "C"), about.get("dimension_separator", ".")
        if order not in ("C", "F") or separator not in (".", "/"):
            raise SourceError(f"{where}order {order!r} and dimension_separator {separator!r} are unknown")
        packed = about.get("compressor")
        codec = "" if packed is None else entry(packed, "id", str)
        if codec and codec not in BYTES and codec.removeprefix("imagecodecs_") not in IMAGES:
            raise SourceError(
                f"{where}the compressor {codec[:40]!r} is not one of {', '.join((*BYTES, *IMAGES))}; refused"
            )
        return Array(self, name, shape, chunks, np.dtype(dtype), order, separator, codec)


def _array_files(root: Path) -> list[Path]:
    """The files that describe an array in the folder of a store, sorted. Hidden folders are left alone."""
    return [p / ".zarray" for p in visible(root, "**/*") if (p / ".zarray").is_file()]


@dataclass(frozen=True)
class Array:
    """An array of a zarr store, unread."""

    store: Zarr
    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype
    order: str
    separator: str
    codec: str

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The rows from `start` to `stop`; all by default.

        Raises SourceError for more than LIMIT bytes, and for chunks that are missing or damaged, before anything is
        allocated for the array.
        """
        stop = self.shape[0] if stop is None else stop
        shape = (stop - start, *self.shape[1:])
        if (size := math.prod(shape) * self.dtype.itemsize) > LIMIT:
            raise SourceError(f"{self.name} declares {size} bytes, more than such an array ever takes; refused")
        first, grid = start // self.chunks[0], [-(-n // c) for n, c in zip(shape, self.chunks, strict=True)]
        grid[0] = -(-stop // self.chunks[0]) - first
        if math.prod(grid) > _CHUNKS:
            raise SourceError(f"{self.name} declares {math.prod(grid)} chunks, more than an array is cut into; refused")
        places = [(first + place[0], *place[1:]) for place in product(*map(range, grid))]
        for place in places:
            if not self.store.has(self._file(place)):
                raise SourceError(f"{self._file(place)} is missing; its content is lost")
        out = np.empty(shape, self.dtype)
        for place in places:
            low = [p * c for p, c in zip(place, self.chunks, strict=True)]
            low[0] -= start
            into = tuple(slice(max(a, 0), min(a + c, n)) for a, c, n in zip(low, self.chunks, shape, strict=True))
            out[into] = self._chunk(place)[
                tuple(slice(s.start - a, s.stop - a) for s, a in zip(into, low, strict=True))
            ]
        return out

    def rows(self, numbers: np.ndarray) -> Iterator[np.ndarray]:
        """The rows `numbers`, one at a time."""
        for row in numbers.tolist():
            yield self.read(row, row + 1)[0]

    def holds(self, row: int) -> bool:
        """True if the first chunk of a row is there."""
        return self.store.has(self._file((row // self.chunks[0], *(0 for _ in self.shape[1:]))))

    def _file(self, place: tuple[int, ...]) -> str:
        return f"{self.name}/{self.separator.join(map(str, place))}"

    @cached_property
    def _size(self) -> int:
        return math.prod(self.chunks) * self.dtype.itemsize

    def _chunk(self, place: tuple[int, ...]) -> np.ndarray:
        file = self._file(place)
        data = self.store.content(file, self._size + self._size // 8 + _MORE)
        if self.codec:
            try:
                import imagecodecs
            except ImportError as error:
                raise WamkitError("packed arrays need the package imagecodecs: pip install 'wamkit[import]'") from error
            decode = getattr(imagecodecs, f"{self.codec.removeprefix('imagecodecs_')}_decode")
            try:
                if self.codec not in BYTES:
                    image = tuple(n for i, n in enumerate(self.chunks) if i or n > 1)
                    return decode(data, out=np.empty(image, self.dtype)).reshape(self.chunks)
                data = decode(data, out=self._size + 1, **BYTES[self.codec])  # one more: some stop silently
            except (RuntimeError, ValueError) as error:
                raise SourceError(f"{file} is damaged ({error}); fetch it again") from error
        if len(data) != self._size:
            raise SourceError(f"{file} unpacks to {len(data)} bytes instead of {self._size}; fetch it again")
        return np.frombuffer(data, self.dtype).reshape(self.chunks, order="C" if self.order == "C" else "F")
