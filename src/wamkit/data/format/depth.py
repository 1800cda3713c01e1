"""Depth maps: their units, and lerobot's two encodings of them, quantised video and embedded TIFF.

A video of depth maps holds 12-bit codes c. lerobot 0.6 states in meta/info.json how they were quantised. With
z(c) = low + c / 4095 (high - low), the distance is

    z                        low, high: `video.depth_min`, `video.depth_max`, in metres
    e^z - `video.shift`      with `video.use_log`; low, high: the logarithms of those two plus the shift
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt16

from wamkit.data.format.schema import info_of
from wamkit.files import StoreError

_CODES = 4096
_FARTHEST = 1e6  # metres
_TAGS = (256, 257, 258, 259, 273, 277, 279, 339)  # those that are used: a file may have 65,535, each as large as itself
_METRES = ("video.depth_min", "video.depth_max", "video.shift")


def millimetres(stored: np.ndarray, feature: Mapping[str, Any]) -> UInt16[np.ndarray, "*n"]:
    """Stored depth in millimetres, rounded.

    stored: codes of a video, or pixels of PNG or TIFF images.
    feature: the entry of info.json that describes them.

    Raises StoreError where the feature does not state its unit or quantisation.
    """
    if feature["dtype"] == "video":
        return _rounded(1000 * distances(info_of(feature)))[np.minimum(stored, _CODES - 1)]
    unit = info_of(feature).get("depth_unit") or ("m" if stored.dtype.kind == "f" else "mm")  # lerobot's defaults
    if unit not in ("m", "mm"):
        raise StoreError(f"meta/info.json says depth_unit {unit!r}; wamkit knows 'm' and 'mm'")
    return _rounded(1000 * stored.astype(np.float32)) if unit == "m" else _rounded(stored)


def distances(info: Mapping[str, Any]) -> np.ndarray:
    """The distance in metres of each code in a video of depth maps, float32 (4096,).

    Raises StoreError where `info` does not state the quantisation, or states an impossible one. It is never guessed.
    """
    values = [info.get(name) for name in _METRES]
    if not isinstance(info.get("video.use_log"), bool) or not all(isinstance(x, int | float) for x in values):
        missing = [name for name in (*_METRES, "video.use_log") if info.get(name) is None]
        raise StoreError(
            f"the quantisation of its depth is not known: meta/info.json lacks {missing or 'numbers'}; "
            "convert it to 16-bit PNG"
        )
    low, high, shift = map(float, values)
    if not -shift < low < high < _FARTHEST or not shift < _FARTHEST:
        raise StoreError(f"depth from {low} to {high} m with a shift of {shift} m is impossible")
    ends = (math.log(low + shift), math.log(high + shift)) if info["video.use_log"] else (low, high)
    codes = np.arange(_CODES, dtype=np.float32) * ((ends[1] - ends[0]) / (_CODES - 1)) + ends[0]
    return np.clip(np.exp(codes) - shift if info["video.use_log"] else codes, low, high)


def _rounded(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint16:
        return values
    return np.nan_to_num(np.rint(values), nan=0, posinf=0, neginf=0).clip(0, 65_535).astype(np.uint16)


def tiff(data: bytes, shape: tuple[int, int]) -> np.ndarray:
    """The pixels of an uncompressed TIFF, uint16 or float32 (H, W), as lerobot 0.6 embeds depth.

    shape: the (H, W) that it must have.

    Raises StoreError for any other content.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        raise StoreError("it is neither PNG nor TIFF")
    try:
        tags = _tags(data, order)
        height, width = tags[257][0], tags[256][0]
        kind = {(16, 1): "u2", (32, 3): "f4"}.get((tags.get(258, (1,))[0], tags.get(339, (1,))[0]))
        if kind is None or tags.get(259, (1,)) != (1,) or tags.get(277, (1,)) != (1,):
            raise StoreError("it is a TIFF, but not an uncompressed one of uint16 or float32")
        if (height, width) != shape:
            raise StoreError(f"it is {height}x{width} instead of {shape[0]}x{shape[1]}")
        if sum(tags[279]) != height * width * int(kind[1]):  # before they are cut out: they may overlap
            raise StoreError(f"it is a TIFF with {sum(tags[279])} bytes of pixels for {height}x{width}")
        strips = [data[at : at + size] for at, size in zip(tags[273], tags[279], strict=True)]
    except (struct.error, LookupError, ValueError) as error:
        raise StoreError("it is a TIFF that is cut off or damaged") from error
    if sum(map(len, strips)) != height * width * int(kind[1]):
        raise StoreError(f"it is a TIFF with {sum(map(len, strips))} bytes of pixels for {height}x{width}")
    pixels = b"".join(strips)
    return np.frombuffer(pixels, order + kind).reshape(shape).astype(kind)


def _tags(data: bytes, order: str) -> dict[int, tuple[int, ...]]:
    """The integers in a TIFF's first directory, by tag."""
    start = struct.unpack_from(order + "I", data, 4)[0]
    out = {}
    for i in range(struct.unpack_from(order + "H", data, start)[0]):
        entry = start + 2 + 12 * i
        tag, kind, count = struct.unpack_from(order + "HHI", data, entry)
        if tag not in _TAGS or (letter := {3: "H", 4: "I"}.get(kind)) is None or count > len(data):
            continue
        small = count * struct.calcsize(order + letter) <= 4
        where = entry + 8 if small else struct.unpack_from(order + "I", data, entry + 8)[0]
        out[tag] = struct.unpack_from(f"{order}{count}{letter}", data, where)
    return out
