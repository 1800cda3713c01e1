"""Messages of openpi's protocol: what is sent comes back, and what is malformed is refused in one line."""

from __future__ import annotations

import random
import subprocess
import sys

import msgpack
import numpy as np
import pytest
from frames import MALFORMED
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from wamkit_client.protocol import MAX_AXES, ProtocolError, pack, unpack

NUMBERS = st.one_of(
    npst.boolean_dtypes(), npst.integer_dtypes(), npst.unsigned_integer_dtypes(), npst.floating_dtypes()
)
ARRAYS = NUMBERS.flatmap(
    lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=8))
MESSAGES = st.dictionaries(st.text(max_size=8), st.one_of(ARRAYS, PLAIN, st.lists(PLAIN, max_size=3)), max_size=6)


def same(a, b):
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or a != a and b != b


@settings(max_examples=200, deadline=None)
@given(MESSAGES)
def test_what_is_sent_comes_back(message):
    assert same(message, unpack(pack(message)))


def test_arrays_are_written_as_openpi_writes_them():
    """Its codec: entries of bytes, C order whatever the array's, the type as NumPy writes it."""
    fortran = np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3))
    assert msgpack.unpackb(pack({"a": fortran, "b": np.float32(0.5)}), raw=False) == {
        "a": {b"__ndarray__": True, b"data": np.arange(6, dtype=">i2").tobytes(), b"dtype": ">i2", b"shape": [2, 3]},
        "b": {b"__npgeneric__": True, b"data": 0.5, b"dtype": "<f4"},
    }
    assert not unpack(pack(fortran)).flags.writeable
    assert unpack(pack(np.zeros((1,) * MAX_AXES, bool))).ndim == MAX_AXES


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_message_is_refused_in_one_line(name):
    with pytest.raises(ProtocolError) as caught:
        unpack(MALFORMED[name])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_what_has_no_form_is_not_sent():
    for bad in (np.array(["a"]), np.array([object()]), np.zeros(1, "i4,f4"), object(), {"x": {1, 2}}, 2**64):
        with pytest.raises(ProtocolError, match="cannot be sent"):
            pack({"x": bad})


def test_the_size_of_a_message_is_compared_first():
    with pytest.raises(ProtocolError, match="a message of 101 bytes is larger than 100"):
        unpack(b"\xdb" + bytes(100), max_bytes=100)


def test_mutated_messages_are_read_or_refused():
    """Bytes changed, cut, repeated: nothing else than a message or ProtocolError comes of them."""
    rng = random.Random(0)
    message = {"observation/images/front": np.zeros((4, 4, 3), np.uint8), "prompt": "go", "x": {"y": [1, 2.5, None]}}
    seeds, refused = [pack(message), *MALFORMED.values()], 0
    for _ in range(20_000):
        data = bytearray(rng.choice(seeds)[:4096])
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(data) + 1)
            match rng.randrange(4):
                case 0:
                    data[place : place + 1] = bytes([rng.randrange(256)])
                case 1:
                    del data[place : place + rng.randint(1, 8)]
                case 2:
                    data[place:place] = rng.choice((b"\xdd\xff\xff\xff\xff", b"\x81", b"\xc4\x04", b"\x00\xff"))
                case 3:
                    data[place:place] = data[: rng.randint(0, 64)]
        try:
            unpack(bytes(data))
        except ProtocolError as error:
            refused += 1
            assert "\n" not in str(error)
    assert 5_000 < refused < 20_000


def test_the_client_needs_no_torch_and_is_there_at_once():
    code = (
        "import sys, wamkit_client; wamkit_client.connect; print([m for m in ('torch', 'wamkit') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
