"""Images stored one by one, as PNG or JPEG in a column of the data files; `wamkit.data.format.video` stores videos.

lerobot stores features of the type "image" like this. wamkit does so for cameras whose images must be exact, and for
all depth maps.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
from jaxtyping import UInt8, UInt16

from wamkit.data.format.copied import VideoCopy
from wamkit.data.format.depth import tiff
from wamkit.data.format.orientation import turn_of
from wamkit.data.format.parquet import chunks, open_parquet, parquet_errors, stored_columns
from wamkit.data.format.schema import LARGEST_SIDE, Layout
from wamkit.data.format.video import RgbConverter, Video, decoding_errors, empty_frames, encode_frames
from wamkit.files import StoreError

Encoded = bytes | Sequence[bytes] | VideoCopy
"""One camera's images of an episode as they are stored: an MP4 video, one PNG a step, or a video file to copy."""

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_CRITICAL = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_AT_ONCE, _BYTES = 16, 1 << 30  # encoded images in memory, and the bytes that they may be
_SAMPLE = 8  # images of an episode from which its statistics are computed


def encode_png(image: UInt8[np.ndarray, "H W 3"] | UInt16[np.ndarray, "H W"], level: int = 1) -> bytes:
    """A lossless PNG of an RGB image, uint8 (H, W, 3), or of a 16-bit grey image, uint16 (H, W).

    level: zlib's compression level, 0 to 9.

    Rows are stored as differences to the row above. Raises StoreError for another type or shape.
    """
    kind = image.dtype, *image.shape[2:]
    if image.ndim not in (2, 3) or not image.size or kind not in ((np.uint8, 3), (np.uint16,)):
        raise StoreError(f"cannot encode {image.dtype} {image.shape}; expected uint8 (H, W, 3) or uint16 (H, W)")
    bits, colour = (8, 2) if image.ndim == 3 else (16, 0)
    rows = image.astype(image.dtype.newbyteorder(">")).reshape(len(image), -1).view(np.uint8)
    filtered = np.full((len(rows), rows.shape[1] + 1), 2, np.uint8)
    filtered[:, 1:] = rows
    filtered[1:, 1:] -= rows[:-1]
    header = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], bits, colour, 0, 0, 0)
    body = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered, level)), (b"IEND", b""))
    return _PNG + b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in body)


def encode_camera(frames: Iterable[UInt8[np.ndarray, "H W 3"]], layout: Layout, camera: str, count: int) -> Encoded:
    """Encodes one camera's images of an episode the way that `layout` stores them.

    frames: RGB images, uint8 (H, W, 3), one at a time.
    count: how many there must be.

    Raises StoreError for an image of another type or shape, and for a wrong number of them.
    """
    size = layout.size(camera)
    if camera not in layout.stills:
        return encode_frames(frames, layout.fps, size, count)
    out = []
    for number, image in enumerate(frames):
        if image.dtype != np.uint8 or image.shape != (*size, 3):
            raise StoreError(f"image {number} is {image.dtype} {image.shape} instead of uint8 {(*size, 3)}")
        out.append(encode_png(image))
    if len(out) != count:
        raise StoreError(f"there are {len(out)} images for {count} steps")
    return out


def checksum(encoded: Encoded) -> str:
    """The SHA-256 of a video, or of PNG images one after the other."""
    if isinstance(encoded, VideoCopy):
        return encoded.sha256
    total = hashlib.sha256()
    for part in [encoded] if isinstance(encoded, bytes) else encoded:
        total.update(part)
    return total.hexdigest()


def sample_frames(
    encoded: Mapping[str, Encoded], layout: Layout, camera: str, steps: int
) -> UInt8[np.ndarray, "n 3 H W"]:
    """A few of the images that are about to be stored, decoded. Raises StoreError where they do not fit the episode."""
    picked = np.unique(np.linspace(0, steps - 1, _SAMPLE).astype(int)).tolist()
    given, size, stills = encoded[camera], layout.size(camera), camera in layout.stills
    data = given.path if isinstance(given, VideoCopy) else given
    try:
        if isinstance(data, bytes | Path) == stills or stills and len(data) != steps:
            raise StoreError(f"the store has {f'{steps} PNG' if stills else 'MP4'} for this camera")
        if not stills:
            with Video(data, layout.fps, size, steps) as video:
                if video.count > steps and isinstance(data, bytes):
                    raise StoreError(f"it has {video.count} frames instead of {steps}")
                return video.frames(picked)
        out, rgb = np.empty((len(picked), 3, *size), np.uint8), RgbConverter()
        for row, i in enumerate(picked):
            rgb.write(decode_image(data[i], size), out[row])
        return out
    except StoreError as error:
        what = "images do" if stills else "video does"
        raise StoreError(
            f"camera {camera}: the {what} not fit the episode: {error}; encode its {steps} frames again"
        ) from error


class StillImages:
    """The images of one camera in a data file, with the interface of `Video`: frame k is the image of row k.

    path: the data file.
    key: its column of images. Only this column is read, a few images at a time; file names in it are ignored.
    shape: the (H, W) that images must have.
    total: the number of rows that the file must have.

    Raises StoreError, without naming the file, when it cannot be read. For one thread at a time.
    """

    def __init__(self, path: Path, key: str, shape: tuple[int, int], total: int):
        self._key, self._shape, self._rgb = key, shape, RgbConverter()
        with _parquet():
            # By default pyarrow reads a whole row group, that is an episode, before it returns the first row.
            self._file = open_parquet(path, buffer_size=1 << 16, pre_buffer=False)
            schema, rows = self._file.schema_arrow, self._file.metadata.num_rows
            found = list(stored_columns(self._file, schema, (key,)))
        kind, self._leaves = found[0] if len(found) == 1 else (pa.null(), range(0))
        self._ends = list(
            accumulate(self._file.metadata.row_group(g).num_rows for g in range(self._file.num_row_groups))
        )
        self._group, self._first, self._cells = -1, 0, pa.array([])  # where reading has come to
        members = {f.name: f.type for f in kind} if pa.types.is_struct(kind) else {}
        if rows != total or members.get("bytes") not in (pa.binary(), pa.large_binary()):
            self.close()
            wanted = f"{total} images {{bytes: binary, path: string}}"
            raise StoreError(f"column {key!r} holds {rows} times {kind} instead of {wanted}")

    def frames(
        self, numbers: Sequence[int], size: tuple[int, int] | None = None, start: int = 0
    ) -> UInt8[np.ndarray, "N 3 H W"]:
        """RGB images by number.

        numbers: ascending, counted from row `start`.
        size: (H, W) to resize to, by area averaging; None for the stored size.

        Raises StoreError, naming the number, for an image that is missing, damaged or of another size.
        """
        out = empty_frames((len(numbers), 3, *(size or self._shape)))
        for row, image in enumerate(self.iter_frames(numbers, start)):
            self._rgb.write(image, out[row], turn_of(image))
        return out

    def iter_frames(self, numbers: Sequence[int], start: int = 0) -> Iterator[av.VideoFrame]:
        """Images by number, one at a time, as PyAV decodes them. numbers, start: as in `frames`."""
        for number, data in self._stored(numbers, start):
            with self._naming(number):
                image = decode_image(data, self._shape)
            yield image

    def depth(self, numbers: Sequence[int], start: int = 0) -> np.ndarray:
        """Depth maps by number, in their stored units, uint16 or float32. numbers, start: as in `frames`.

        Raises StoreError as `frames` does, and for anything but PNG with 16 bits a pixel or TIFF.
        """
        maps: list[np.ndarray] = []
        for number, data in self._stored(numbers, start):
            with self._naming(number):
                maps.append(depth_map(data, self._shape))
                if maps[-1].dtype != maps[0].dtype:
                    raise StoreError(f"its pixels are {maps[-1].dtype}, those of the first map {maps[0].dtype}")
        with decoding_errors():
            return np.stack(maps) if maps else np.empty((0, *self._shape), np.uint16)

    def _stored(self, numbers: Sequence[int], start: int) -> Iterator[tuple[int, bytes]]:
        """(number, encoded image) of the images `numbers`."""
        for number in numbers:
            with self._naming(number):
                cell = self.cell(start + number)
                if not cell.get("bytes"):
                    named = f", only its name {cell['path']!r}" if cell.get("path") else ""
                    raise StoreError(f"it is not in the file{named}; wamkit reads embedded images only")
            yield number, cell["bytes"]

    def cell(self, row: int) -> dict[str, Any]:
        """The cell of a row, {} where there is none.

        Reading goes on where it has come to; it begins anew for another row group, or to go back.
        Row groups without a row that is asked for are skipped.
        """
        group = bisect_right(self._ends, row)
        if row < 0 or group == len(self._ends):
            raise StoreError("it is missing")
        if group != self._group or row < self._first:
            self._group, self._first, self._cells = group, ([0, *self._ends])[group], pa.array([])
            with _parquet():
                self._batches = self._file.iter_batches(self._at_once(group), [group], [self._key], use_threads=False)
        while row >= self._first + len(self._cells):
            with _parquet():
                batch = next(self._batches, None)
            if batch is None:
                raise StoreError("it is missing")
            self._first, self._cells = self._first + len(self._cells), batch.column(self._key)
        return self._cells[row - self._first].as_py() or {}

    def _at_once(self, group: int) -> int:
        """The images to read at a time. One that occurs often is stored once, so each may be as large as all."""
        with _parquet():
            size = max(c.total_uncompressed_size for c in chunks(self._file, group, self._leaves))
        if size > _BYTES:
            raise StoreError(f"column {self._key!r} declares {size} bytes in a row group, more than {_BYTES}")
        return min(_AT_ONCE, _BYTES // max(1, size))

    @contextlib.contextmanager
    def _naming(self, number: int) -> Iterator[None]:
        """Adds column and image number to errors raised inside."""
        try:
            yield
        except StoreError as error:
            raise StoreError(f"{self._key}, step {number}: {error}") from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> StillImages:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def has_images(path: Path, key: str, total: int) -> bool:
    """True if one of the `total` rows of a data file has an image, or the name of one, in its column `key`."""
    with open_parquet(path) as file, _parquet():
        kinds = [kind for kind, _ in stored_columns(file, file.schema_arrow, (key,))]
    if not kinds or pa.types.is_null(kinds[0]):
        return False
    with StillImages(path, key, (1, 1), total) as images:
        return any(any(images.cell(row).values()) for row in range(total))


def decode_image(data: bytes, shape: tuple[int, int]) -> av.VideoFrame:
    """Decodes a PNG or JPEG colour image of the size `shape` (H, W).

    Raises StoreError for other data, damage or another size. Larger images are refused before they are decompressed.
    """
    if data.startswith(_PNG):
        data, bits, _ = _png(data, shape)
        if bits > 8:
            raise StoreError(
                f"it has {bits} bits a channel; if it is a depth map, meta/info.json must mark it by is_depth_map, "
                "else write it with 8 bits"
            )
        return _decoded("png", data, shape)
    if data.startswith(_JPEG):
        return _decoded("mjpeg", data, shape)
    raise StoreError("it is neither PNG nor JPEG; write it as one of these")


def depth_map(data: bytes, shape: tuple[int, int]) -> np.ndarray:
    """Decodes a depth map of the size `shape` (H, W), in its stored units, uint16 or float32.

    data: PNG with 16 bits a pixel, or lerobot's TIFF.

    Raises StoreError as `decode_image` does.
    """
    if not data.startswith(_PNG):
        return tiff(data, shape)
    data, bits, colour = _png(data, shape)
    if (bits, colour) != (16, 0):
        raise StoreError(f"it is PNG with {bits} bits of colour type {colour} instead of 16 bits of grey: no depth map")
    return _decoded("png", data, shape).to_ndarray()


def _png(data: bytes, shape: tuple[int, int]) -> tuple[bytes, int, int]:
    """(PNG without ancillary chunks, bits a channel, colour type). Ancillary chunks, such as texts, may be bombs.

    Raises StoreError for a PNG that is cut off or declares another size.
    """
    parts, at = [_PNG], len(_PNG)
    while at + 12 <= len(data) and parts[-1][4:8] != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind in _CRITICAL:
            parts.append(data[at : at + 12 + length])
        at += 12 + length
    if parts[-1][4:8] != b"IEND" or parts[1][4:8] != b"IHDR" or len(parts[1]) != 25:
        raise StoreError("it is cut off or damaged")
    width, height, bits, colour = struct.unpack_from(">IIBB", parts[1], 8)
    _check_size((height, width), shape)
    return b"".join(parts), bits, colour


def _decoded(codec: str, data: bytes, shape: tuple[int, int]) -> av.VideoFrame:
    if max(shape) > LARGEST_SIDE:
        raise StoreError(
            f"meta/info.json declares images of {shape[0]}x{shape[1]}, more than {LARGEST_SIDE} a side; refused"
        )
    context = av.CodecContext.create(codec, "r")
    # FFmpeg counts whole blocks of up to 64 pixels a side. Larger images are not decompressed.
    most = (shape[0] + 64) * (shape[1] + 64)
    context.thread_count, context.options = 1, {"err_detect": "crccheck+explode", "max_pixels": str(most)}
    with decoding_errors():
        frame = next(iter(context.decode(av.Packet(data))), None)
    if frame is None:
        raise StoreError("it cannot be decoded")
    _check_size(turn_of(frame).size((frame.height, frame.width)), shape)
    return frame


def _check_size(have: tuple[int, int], shape: tuple[int, int]) -> None:
    if have != shape:
        raise StoreError(f"it is {have[0]}x{have[1]} instead of {shape[0]}x{shape[1]}")


def _parquet() -> contextlib.AbstractContextManager[None]:
    return parquet_errors("it", "")  # whoever opened the file names it
