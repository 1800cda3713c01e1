"""Damage to single files, as functions of the file and a random generator that say what they did."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Damage = Callable[[Path, np.random.Generator], str]

DEEP = 200_000
WRONG: tuple[Any, ...] = (None, True, -1, 1.5, "x", "", [], {}, [[]], {"x": 1}, "/etc/hostname", 10**18, [1, 2, 3])


def truncated(path: Path, rng: np.random.Generator) -> str:
    data = path.read_bytes()
    keep = int(rng.integers(1, max(2, len(data))))
    path.write_bytes(data[:keep])
    return f"{path.name}: cut to {keep} of {len(data)} bytes"


def emptied(path: Path, rng: np.random.Generator) -> str:
    path.write_bytes(b"")
    return f"{path.name}: emptied"


def nested(path: Path, rng: np.random.Generator) -> str:
    path.write_bytes(b"[" * DEEP + b"]" * DEEP)
    return f"{path.name}: {DEEP} lists in each other"


def nested_value(path: Path, rng: np.random.Generator) -> str:
    """A deep value inside the right keys."""
    return _edited(path, rng, "@deep", (b'"@deep"', b'{"a":' * DEEP + b"1" + b"}" * DEEP))


def wrong_type(path: Path, rng: np.random.Generator) -> str:
    return _edited(path, rng, WRONG[int(rng.integers(len(WRONG)))])


def huge_number(path: Path, rng: np.random.Generator) -> str:
    return _edited(path, rng, "@huge", (b'"@huge"', b"1" + b"0" * 400), numbers=True)


def nan(path: Path, rng: np.random.Generator) -> str:
    word = (b"NaN", b"Infinity", b"-Infinity", b"1e400")[int(rng.integers(4))]
    return _edited(path, rng, "@nan", (b'"@nan"', word), numbers=True)


def negative(path: Path, rng: np.random.Generator) -> str:
    value = (-1, 0, 2**31, 10**9, 2**63, 10**12)[int(rng.integers(6))]
    return _edited(path, rng, value, numbers=True)


def missing_key(path: Path, rng: np.random.Generator) -> str:
    return _edited(path, rng, _GONE)


def doubled_key(path: Path, rng: np.random.Generator) -> str:
    data = _read(path)
    rows = data if isinstance(data, list) else [data]
    for row in rows:
        if isinstance(row, dict) and row:
            key = sorted(row)[int(rng.integers(len(row)))]
            text = json.dumps(row)
            _write(path, data, (json.dumps(row).encode(), (text[:-1] + f', {json.dumps(key)}: "twice"}}').encode()))
            return f"{path.name}: key {key} twice"
    return emptied(path, rng)


def not_utf8(path: Path, rng: np.random.Generator) -> str:
    data = bytearray(path.read_bytes())
    at = int(rng.integers(len(data)))
    data[at:at] = b"\xff\xfe"
    path.write_bytes(bytes(data))
    return f"{path.name}: bytes ff fe at {at}"


def a_list(path: Path, rng: np.random.Generator) -> str:
    path.write_bytes((b"[1, 2, 3]", b"{}", b"null", b'"x"', b"17")[int(rng.integers(5))])
    return f"{path.name}: {path.read_text()}"


def fifo(path: Path, rng: np.random.Generator) -> str:
    path.unlink()
    os.mkfifo(path)
    return f"{path.name}: a named pipe"


def device(path: Path, rng: np.random.Generator) -> str:
    path.unlink()
    path.symlink_to("/dev/zero")
    return f"{path.name}: a link to /dev/zero"


def folder(path: Path, rng: np.random.Generator) -> str:
    path.unlink()
    path.mkdir()
    return f"{path.name}: a folder"


def gone(path: Path, rng: np.random.Generator) -> str:
    path.unlink()
    return f"{path.name}: removed"


def flipped(path: Path, rng: np.random.Generator) -> str:
    data = bytearray(path.read_bytes())
    at, bit = int(rng.integers(len(data))), int(rng.integers(8))
    data[at] ^= 1 << bit
    path.write_bytes(bytes(data))
    return f"{path.name}: bit {bit} of byte {at}"


def zeroed(path: Path, rng: np.random.Generator) -> str:
    """A page of zeros, as a power cut may leave."""
    data = bytearray(path.read_bytes())
    at = int(rng.integers(len(data)))
    end = min(len(data), at + 4096)
    data[at:end] = bytes(end - at)
    path.write_bytes(bytes(data))
    return f"{path.name}: zeros from {at} to {end}"


JSON: dict[str, Damage] = {
    "truncated": truncated, "empty": emptied, "nested": nested, "nested_value": nested_value, "type": wrong_type,
    "huge": huge_number, "nan": nan, "negative": negative, "missing": missing_key, "twice": doubled_key,
    "not_utf8": not_utf8, "list": a_list, "fifo": fifo, "device": device, "folder": folder, "gone": gone,
}  # fmt: skip
"""Corruptions of a JSON file."""

BINARY: dict[str, Damage] = {
    "truncated": truncated, "empty": emptied, "flip": flipped, "zeros": zeroed, "fifo": fifo, "device": device,
    "folder": folder, "gone": gone,
}  # fmt: skip
"""Corruptions of any other file."""

_GONE = object()


def _edited(path: Path, rng: np.random.Generator, value: Any, swap: tuple = (b"", b""), numbers: bool = False) -> str:
    """Replaces one random value of a JSON or JSON-lines file. swap: replaced in the text afterwards.

    numbers: choose among numbers, if there are any.
    """
    data = _read(path)
    places = list(_places(data))
    if numbers:
        places = [p for p in places if type(p[0][p[1]]) in (int, float)] or places
    if not places:
        return a_list(path, rng)
    inside, key, where = places[int(rng.integers(len(places)))]
    if value is _GONE:
        del inside[key]
    else:
        inside[key] = value
    _write(path, data, swap)
    return f"{path.name}: {where} {'left out' if value is _GONE else f'= {value!r:.40}'}"


def _read(path: Path) -> Any:
    text = path.read_text()
    return [json.loads(x) for x in text.splitlines() if x] if path.suffix == ".jsonl" else json.loads(text)


def _write(path: Path, data: Any, swap: tuple[bytes, bytes]) -> None:
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(x) + "\n" for x in data)
    else:
        text = json.dumps(data)
    path.write_bytes(text.encode().replace(*swap) if swap[0] else text.encode())


def _places(x: Any, where: str = "") -> Iterator[tuple[Any, Any, str]]:
    """(container, key, name) of every value. Long lists of plain values count by their first three."""
    items = x.items() if isinstance(x, dict) else enumerate(x[:3]) if isinstance(x, list) else ()
    for key, value in items:
        name = f"{where}.{key}" if where else str(key)
        yield x, key, name
        yield from _places(value, name)
