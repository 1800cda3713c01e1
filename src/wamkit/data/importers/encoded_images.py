"""PNG and JPEG images inside other files: the size that one declares is compared before it is unpacked."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

from wamkit.data.importers.base import SourceError, pixels

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of JPEG frames, which state the size
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a segment
_SCAN = 0xDA


def decode_image(data: bytes, what: str) -> UInt8[np.ndarray, "H W c"]:
    """Decodes a PNG or JPEG image; c is 1 for a grey one.

    what: its name, for errors.

    Raises SourceError for other data, and for an image of more than `PIXELS`.
    """
    from imagecodecs import jpeg_decode, png_decode

    if data.startswith(_PNG):
        pixels(int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big"), what)
        return _with_channels(png_decode(data))
    if not data.startswith(_JPEG):
        raise SourceError(f"'{what}' is neither PNG nor JPEG")
    sizes = list(_jpeg_sizes(data))
    if not sizes:
        raise SourceError(f"'{what}' is a JPEG image that does not state its size: it is damaged")
    for height, width in sizes:
        pixels(height, width, what)
    return _with_channels(jpeg_decode(data))


def _with_channels(image: np.ndarray) -> np.ndarray:
    return image[..., None] if image.ndim == 2 else image


def _jpeg_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """(H, W) in each frame header of a JPEG image, up to its first scan."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF and data[at + 1] != _SCAN:
        marker = data[at + 1]
        if marker in _FRAMES:
            yield int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        if marker == 0xFF or marker in _ALONE:  # 0xFF: a fill byte
            at += 1 if marker == 0xFF else 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
