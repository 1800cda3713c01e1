"""The messages of openpi's protocol: MessagePack with NumPy arrays, checked before anything is made of them.

An array is `{b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [2, 3]}`, and a NumPy scalar
`{b"__npgeneric__": True, b"data": value, b"dtype": "<f4"}`. Only numbers and truth values are taken: an array of
objects would be made of addresses that the sender chose.
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgpack
import numpy as np

MAX_BYTES = 16 * 2**20
"""Most bytes of a message, unless another limit is given."""
MAX_AXES, MAX_ENTRIES, MAX_CONTAINERS, MAX_DEPTH = 8, 1024, 256, 16
"""Most axes of an array, entries of a list or a mapping, lists and mappings in all, and within each other."""
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
_ARRAY = {b"__ndarray__", b"data", b"dtype", b"shape"}
_SCALAR = {b"__npgeneric__", b"data", b"dtype"}


class ProtocolError(ValueError):
    """A message is malformed, or holds what the protocol has no form for. One line says what."""


def pack(message: Any) -> bytes:
    """The bytes of a message: dictionaries, lists, texts, numbers, truth values, None, and NumPy arrays of numbers.

    Raises ProtocolError for an array of another type.
    """
    try:
        return msgpack.packb(message, default=_packed)
    except (TypeError, ValueError, OverflowError) as error:
        raise error if isinstance(error, ProtocolError) else ProtocolError(f"cannot be sent: {error}") from None


def unpack(data: bytes | bytearray | memoryview, max_bytes: int = MAX_BYTES) -> Any:
    """The message of `data`. Arrays are read-only.

    Raises ProtocolError for what is not a message of the protocol, or larger than `max_bytes`.
    """
    if len(data) > max_bytes:
        raise ProtocolError(f"a message of {len(data):,} bytes is larger than {max_bytes:,}")
    count = 0

    def counted(container: Any) -> Any:  # an empty list is a byte of the message and sixty of memory
        nonlocal count
        count += 1
        if count > MAX_CONTAINERS:
            raise ProtocolError(f"more than {MAX_CONTAINERS} lists and mappings")
        return container

    try:
        message = msgpack.unpackb(
            data,
            object_hook=lambda entries: _unpacked(counted(entries)),
            list_hook=counted,
            max_array_len=MAX_ENTRIES,
            max_map_len=MAX_ENTRIES,
            max_ext_len=0,
        )
    except ProtocolError:
        raise
    except (msgpack.exceptions.UnpackException, ValueError, TypeError, OverflowError, RecursionError) as error:
        said = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise ProtocolError(f"not a message in MessagePack: {said}") from None
    _check_depth(message, MAX_DEPTH)
    return message


def _packed(value: Any) -> dict[bytes, Any]:
    if isinstance(value, (np.ndarray, np.generic)):
        if not _DTYPE.fullmatch(value.dtype.str):
            raise ProtocolError(f"an array of type {value.dtype} cannot be sent: numbers and truth values alone can")
        if isinstance(value, np.ndarray):
            return {
                b"__ndarray__": True,
                b"data": value.tobytes(),
                b"dtype": value.dtype.str,
                b"shape": value.shape,
            }
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise ProtocolError(f"a value of type {type(value).__name__} cannot be sent")


def _unpacked(entries: dict[Any, Any]) -> Any:
    """The array or scalar that a mapping stands for, or the mapping itself."""
    if b"__ndarray__" in entries:
        return _array(entries)
    return _scalar(entries) if b"__npgeneric__" in entries else entries


def _array(entries: dict[Any, Any]) -> np.ndarray:
    if set(entries) != _ARRAY:
        raise ProtocolError("an array has the entries __ndarray__, data, dtype and shape, as bytes, and no others")
    dtype, shape, data = _dtype(entries[b"dtype"]), entries[b"shape"], entries[b"data"]
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n <= MAX_BYTES for n in shape):
        raise ProtocolError("the shape of an array is a list of numbers that are not negative")
    if len(shape) > MAX_AXES:
        raise ProtocolError(f"an array has {len(shape)} axes, more than {MAX_AXES}")
    if not isinstance(data, bytes):
        raise ProtocolError("the data of an array are bytes")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ProtocolError(f"an array of shape {shape} and type {dtype} has {len(data)} bytes of data")
    if dtype.kind == "b" and data.strip(b"\x00\x01"):
        raise ProtocolError("an array of truth values holds others than 0 and 1")
    return np.frombuffer(data, dtype).reshape(shape)


def _scalar(entries: dict[Any, Any]) -> np.generic:
    if set(entries) != _SCALAR or not isinstance(entries[b"data"], (bool, int, float)):
        raise ProtocolError("a NumPy scalar has the entries __npgeneric__, data (a number) and dtype, and no others")
    given, out = entries[b"data"], "a NumPy scalar is out of the range of its type"
    try:
        with np.errstate(all="ignore"):
            value = _dtype(entries[b"dtype"]).type(given)
    except (OverflowError, ValueError):  # the second for NaN as a whole number
        raise ProtocolError(out) from None
    if np.isfinite(given) and not np.isfinite(value):
        raise ProtocolError(out)
    return value


def _dtype(name: Any) -> np.dtype:
    if isinstance(name, bytes):
        name = name.decode("ascii", "replace")
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        shown = name[:16] if isinstance(name, str) else type(name).__name__
        raise ProtocolError(f"an array has the type {shown!r}: numbers and truth values alone are taken")
    return np.dtype(name)


def _check_depth(message: Any, left: int) -> None:
    if isinstance(message, (dict, list)):
        if left == 0:
            raise ProtocolError(f"more than {MAX_DEPTH} lists and mappings within each other")
        for value in message.values() if isinstance(message, dict) else message:
            _check_depth(value, left - 1)
