"""Simulator snapshots of one episode as one .npz file, without pickle.

A snapshot is a tree of plain Python values and arrays. Every column (`physics`, each model field, each attribute)
stores the list of its *distinct* values and, for each step, an index into that list, so constants are stored once.
Arrays are pooled by type and shape. The rest is JSON, with a one-key object for each type that JSON lacks:

    {"tuple": [...]}  {"dict": [[key, value], ...]}  {"bytes": "00ff"}  {"array": [pool, row]}  {"scalar": [pool, row]}
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from wamkit.data.format.npz import unpack_npz
from wamkit.files import StoreError, parse_json
from wamkit.types import Snapshot

_VERSION = 1
_OVERHEAD = 64  # bytes of a Python object, roughly
_MOST = 1 << 31  # bytes of all snapshots of an episode: a few bytes of a file can refer to one large array many times


class _Pools:
    """Distinct arrays, grouped by type and shape."""

    def __init__(self) -> None:
        self.stacks: dict[tuple[str, tuple[int, ...]], list[np.ndarray]] = {}
        self._rows: dict[tuple[str, tuple[int, ...], bytes], list[int]] = {}

    def add(self, array: np.ndarray, where: str) -> list[int]:
        if array.dtype.hasobject or array.dtype.names:
            raise StoreError(
                f"snapshot: {where} is an array of {array.dtype}, which cannot be saved; use a plain numeric dtype"
            )
        key = (array.dtype.str, array.shape)
        stack = self.stacks.setdefault(key, [])
        pool = list(self.stacks).index(key)
        place = self._rows.setdefault((*key, array.tobytes()), [pool, len(stack)])
        if place[1] == len(stack):
            stack.append(np.ascontiguousarray(array).reshape(array.shape))
        return place


def _encode(value: Any, pools: _Pools, where: str) -> Any:
    if isinstance(value, np.ndarray):
        return {"array": pools.add(value, where)}
    if isinstance(value, np.generic):  # before float and bool: np.float64 is a float
        return {"scalar": pools.add(np.asarray(value), where)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is bytes:
        return {"bytes": value.hex()}
    if type(value) is list:
        return [_encode(v, pools, f"{where}[{i}]") for i, v in enumerate(value)]
    if type(value) is tuple:
        return {"tuple": [_encode(v, pools, f"{where}[{i}]") for i, v in enumerate(value)]}
    if type(value) is dict:
        return {"dict": [[_encode(k, pools, where), _encode(v, pools, f"{where}[{k!r}]")] for k, v in value.items()]}
    raise StoreError(
        f"snapshot: {where} is a {type(value).__name__}, which cannot be saved; use plain values and arrays only"
    )


class _Decoder:
    """Builds the values that `_encode` described, as long as they take less than `_MOST` bytes together."""

    def __init__(self, pools: Sequence[np.ndarray]):
        self._pools, self._left = pools, _MOST

    def value(self, tree: Any) -> Any:
        self._spend(_OVERHEAD)
        if isinstance(tree, list):
            return [self.value(v) for v in tree]
        if not isinstance(tree, dict):
            return tree
        ((kind, content),) = tree.items()
        if kind == "array":
            array = self._pools[content[0]][content[1], ...]
            self._spend(array.nbytes)
            return array.copy()  # a copy, because the simulator may write into it
        if kind == "scalar":
            return self._pools[content[0]][content[1]]
        if kind == "bytes":
            self._spend(len(content))
            return bytes.fromhex(content)
        if kind == "tuple":
            return tuple(self.value(v) for v in content)
        if kind == "dict":
            return {self.value(k): self.value(v) for k, v in content}
        raise StoreError(f"snapshot: unknown kind of value {kind!r}")

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise StoreError(f"the snapshots take more than {_MOST} bytes")


def pack_snapshots(snapshots: Sequence[Snapshot]) -> bytes:
    """The bytes of an .npz file of `snapshots`. Equal snapshots give equal bytes.

    Raises StoreError, naming the attribute, for a value other than None, bool, int, float, str, bytes, list, tuple,
    dict, a NumPy scalar or an array of plain type.
    """
    pools, columns = _Pools(), {}
    for step, snapshot in enumerate(snapshots):
        row = {"physics": snapshot.physics}
        row |= {f"model/{k}": v for k, v in snapshot.model.items()} | {
            f"attributes/{k}": v for k, v in snapshot.attributes.items()
        }
        for name, value in row.items():
            rows, values = columns.setdefault(name, ([-1] * len(snapshots), {}))  # -1: this step has no such column
            text = json.dumps(_encode(value, pools, name))
            rows[step] = values.setdefault(text, len(values))
    index = {
        "version": _VERSION,
        "steps": len(snapshots),
        "columns": {
            name: {"rows": rows, "values": [json.loads(v) for v in values]} for name, (rows, values) in columns.items()
        },
    }
    arrays = {}
    for number, ((dtype, shape), stack) in enumerate(pools.stacks.items()):
        arrays[f"pool_{number}"] = np.empty((len(stack), *shape), dtype)  # np.stack would change the byte order
        arrays[f"pool_{number}"][:] = stack
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, index=np.frombuffer(json.dumps(index, separators=(",", ":")).encode(), np.uint8), **arrays
    )
    return buffer.getvalue()


def unpack_snapshots(data: bytes) -> tuple[Snapshot, ...]:
    """The snapshots in the bytes of an .npz file, equal in every type and bit to those that were packed.

    Raises StoreError for damaged bytes, a newer version, and more than 2 GiB.
    """
    arrays = unpack_npz(data, "the snapshots")
    try:
        index = parse_json(arrays["index"].tobytes(), "the index of the snapshots", finite=False)
        if index["version"] != _VERSION:
            raise StoreError(
                f"snapshots of version {index['version']}; this wamkit reads version {_VERSION}: update it"
            )
        decoder = _Decoder([arrays[f"pool_{i}"] for i in range(len(arrays) - 1)])
        return tuple(_snapshot(index["columns"], step, decoder) for step in range(index["steps"]))
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise StoreError(f"the snapshots cannot be read ({error})") from error


def _snapshot(columns: dict[str, Any], step: int, decoder: _Decoder) -> Snapshot:
    parts: dict[str, dict[str, Any]] = {"physics": {}, "model": {}, "attributes": {}}
    for name, column in columns.items():
        part, _, key = name.partition("/")
        if (row := column["rows"][step]) >= 0:
            parts[part][key] = decoder.value(column["values"][row])
    return Snapshot(physics=parts["physics"][""], model=parts["model"], attributes=parts["attributes"])
