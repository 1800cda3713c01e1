"""Malformed messages by name: each must be refused in one line."""

from __future__ import annotations

import msgpack
import numpy as np
from wamkit_client.protocol import pack


def array(data=b"12345678", dtype="<f4", shape=(2,), **more):
    entries = {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": list(shape)}
    return msgpack.packb({"x": {**entries, **{k.encode(): v for k, v in more.items()}}})


MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "unused byte": b"\xc1",
    "cut off": pack({"x": np.zeros(4, np.float32)})[:-3],
    "two messages": pack({}) + pack({}),
    "huge list": b"\xdd\xff\xff\xff\xff",
    "huge mapping": b"\xdf\xff\xff\xff\xff",
    "huge text": b"\xdb\xff\xff\xff\xff",
    "huge bytes": b"\xc6\xff\xff\xff\xff",
    "deep": b"\x91" * 100_000 + b"\x90",
    "deeper than allowed": b"\x91" * 40 + b"\x90",
    "many empty lists": b"\xdc\x01\x00" + b"\x90" * 256,
    "number as a key": msgpack.packb({1: 2}),
    "list as a key": b"\x81\x90\x01",
    "text that is not UTF-8": b"\xa2\xff\xfe",
    "extension": b"\x81\xa1x\xd4\x05\x00",
    "timestamp": b"\x81\xa1x\xd6\xff\x00\x00\x00\x01",
    "objects": array(dtype="|O", shape=(1,)),
    "objects in bytes": array(dtype=b"|O", shape=(1,)),
    "void": array(dtype="|V8", shape=(1,)),
    "structure": array(dtype="i4,f4", shape=(1,)),
    "structure by list": array(dtype=[["a", "<f4"]], shape=(2,)),
    "complex": array(dtype="<c8", shape=(1,)),
    "text array": array(dtype="<U2", shape=(1,)),
    "bytes array": array(dtype="|S8", shape=(1,)),
    "dates": array(dtype="<M8[s]", shape=(1,)),
    "long doubles": array(data=b"0" * 16, dtype="<f16", shape=(1,)),
    "repeated type": array(dtype="1000000f4", shape=(2,)),
    "type of another kind": array(dtype=4),
    "fewer bytes": array(shape=(3,)),
    "more bytes": array(shape=(1,)),
    "negative side": array(shape=(-2,)),
    "two negative sides": array(shape=(-1, -2)),
    "overflowing sides": array(data=b"", shape=(2**32, 2**32)),
    "fraction as a side": array(shape=(2.0,)),
    "truth value as a side": array(shape=(True, 2)),
    "too many axes": array(shape=(1,) * 8 + (2,)),
    "shape of another kind": msgpack.packb(
        {"x": {b"__ndarray__": True, b"data": b"1234", b"dtype": "<f4", b"shape": {"a": 1}}}
    ),
    "data as text": array(data="12345678"),
    "no data": msgpack.packb({"x": {b"__ndarray__": True, b"dtype": "<f4", b"shape": [1]}}),
    "further entries": array(order="F"),
    "truth values of 2": array(data=b"\x02", dtype="|b1", shape=(1,)),
    "scalar of objects": msgpack.packb({"x": {b"__npgeneric__": True, b"data": 1, b"dtype": "|O"}}),
    "scalar out of range": msgpack.packb({"x": {b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}}),
    "half out of range": msgpack.packb({"x": {b"__npgeneric__": True, b"data": 1e6, b"dtype": "<f2"}}),
    "scalar of text": msgpack.packb({"x": {b"__npgeneric__": True, b"data": "1", b"dtype": "<f4"}}),
    "NaN as a whole number": msgpack.packb({"x": {b"__npgeneric__": True, b"data": float("nan"), b"dtype": "<i4"}}),
}
