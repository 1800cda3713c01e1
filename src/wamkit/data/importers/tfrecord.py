"""Helpers for importers of TFRecord files with tf.train.Example messages, without TensorFlow or protobuf.

A file is a sequence of records: length (8 bytes, little endian), its CRC (4), the message, its CRC (4). CRCs are
CRC-32C, rotated and shifted ("masked"). A tf.train.Example is a protobuf message:
features { feature { key, value { bytes | float | int64 list } } }.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wamkit.data.importers.base import SourceError, reading

RECORD = 2**32
"""Bytes of a record that is still read: an episode with its encoded images."""
_POLYNOMIAL = 0x82F63B78  # Castagnoli's, reversed


def _table() -> list[int]:
    out = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        out.append(value)
    return out


_TABLE = _table()


def crc32c(data: bytes) -> int:
    """The CRC-32C (RFC 3720) of `data`, by google-crc32c, or slowly without it."""
    try:
        import google_crc32c
    except ImportError:
        crc = 0xFFFFFFFF
        for byte in data:
            crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
        return crc ^ 0xFFFFFFFF
    return int(google_crc32c.value(data))


def masked(crc: int) -> int:
    """A CRC in TFRecord's masked form."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def offsets(path: Path) -> list[int]:
    """Byte offsets of the records of a file, of which only the heads are read. Raises SourceError if it is cut off."""
    out, size = [], path.stat().st_size
    with reading(path), path.open("rb") as file:
        at = 0
        while at < size:
            head = file.read(12)
            if len(head) < 12 or masked(crc32c(head[:8])) != struct.unpack("<I", head[8:])[0]:
                raise SourceError(f"record {len(out)} is damaged or cut off")
            (length,) = struct.unpack("<Q", head[:8])
            if length > RECORD or at + 16 + length > size:
                raise SourceError(f"record {len(out)} declares {length} bytes, more than the file has; is it cut off?")
            out.append(at)
            at += 16 + length
            file.seek(at)
    return out


def record(path: Path, at: int, episode: str = "") -> bytes:
    """The message of the record at byte offset `at`. Raises SourceError if its CRC is wrong."""
    with reading(path, episode), path.open("rb") as file:
        file.seek(at)
        (length,) = struct.unpack("<Q", file.read(12)[:8])
        if length > min(RECORD, path.stat().st_size - at):
            raise SourceError("it is shorter than it was: the file is being changed")
        message = file.read(length)
        if masked(crc32c(message)) != struct.unpack("<I", file.read(4))[0]:
            raise SourceError("its CRC is wrong: the file is damaged")
        return message


def example(message: bytes) -> dict[str, Any]:
    """The features of a tf.train.Example by name: lists of bytes, or arrays of float32 or int64."""
    out: dict[str, Any] = {}
    for number, features in _fields(message):
        for key, entry in _fields(_message(features)) if number == 1 else ():
            if key != 1:
                continue
            parts = dict(_fields(_message(entry)))
            if 1 not in parts:
                raise SourceError("a feature has no name: this is not a tf.train.Example")
            out[bytes(_message(parts[1])).decode()] = _values(parts.get(2, b""))
    return out


def _values(feature: Any) -> Any:
    for kind, packed in _fields(_message(feature)):
        items = _fields(_message(packed))
        if kind == 1:
            return [bytes(_message(v)) for _, v in items]
        if kind == 2:  # floats, packed or one by one
            return np.frombuffer(b"".join(bytes(_message(v)) for _, v in items), "<f4")
        if kind == 3:
            values = array("Q")  # eight bytes a number, where a list takes up to forty
            for _, v in items:
                values.extend([v] if isinstance(v, int) else _varints(v))
            return np.frombuffer(values, np.uint64).astype(np.int64) if values else np.empty(0, np.int64)
    return []


def _message(value: Any) -> Any:
    """The content of a field with a length. `bytes` of a number n would be n zeros, however large it is."""
    if isinstance(value, int):
        raise SourceError("a number in place of a message: this is not a tf.train.Example")
    return value


def _fields(message: Any) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message as (number, content): bytes, or an int for varints."""
    view, at = memoryview(message), 0
    while at < len(view):
        tag, at = _varint(view, at)
        kind, number = tag & 7, tag >> 3
        if kind == 0:
            value, at = _varint(view, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(view, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise SourceError(f"a field of kind {kind}: this is not a tf.train.Example")
        if at + size > len(view):
            raise SourceError("a field ends after its message: this is not a tf.train.Example")
        yield number, view[at : at + size]
        at += size


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(view) or shift > 63:
            raise SourceError("a number ends after its message: this is not a tf.train.Example")
        byte = view[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _varints(view: memoryview) -> Iterator[int]:
    at = 0
    while at < len(view):
        value, at = _varint(view, at)
        yield value
