"""Snapshots of simulators: exact, compact, and without pickle."""

from __future__ import annotations

import numpy as np
import pytest
from damage import flip

from wamkit.data.format.snapshots import pack_snapshots, unpack_snapshots
from wamkit.data.format.store import Store, StoreError
from wamkit.types import Snapshot


def same(a, b):
    """Equal in every type and bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or a != a and b != b


def test_snapshots_come_back_bit_by_bit():
    def attributes(step):
        rng = np.random.default_rng(step)
        return {
            "generator": rng.bit_generator.state,
            "old_generator": np.random.RandomState(3).get_state(),
            "nested": {"a": [1, (2.5, None, True), {"b": ()}], 7: "seven", (1, 2): []},
            "numbers": (np.float64(0.1), np.float32(0.1), np.int64(-1), np.bool_(True), -0.0, float("nan"), 2**100),
            "arrays": [np.zeros((0, 3)), np.array(5.0), np.asfortranarray(rng.normal(size=(2, 3))), np.array([True])],
            "big_endian": np.array([1, 2], ">f4"),
            "text": np.array(["a", "bcd"]),
            "bytes": b"\x00\xff",
            "sometimes": None if step < 2 else np.arange(step),
        } | ({"only at 1": step} if step == 1 else {})

    model = {"body_pos": np.ones((3, 3)), "site_pos": np.ones((2, 3), np.float32)}
    snapshots = tuple(Snapshot(np.random.default_rng(t).normal(size=20), model, attributes(t)) for t in range(4))
    data = pack_snapshots(snapshots)
    assert data == pack_snapshots(snapshots)
    for wrote, read in zip(snapshots, unpack_snapshots(data), strict=True):
        assert same(wrote.physics, read.physics) and same(wrote.model, read.model)
        assert set(wrote.attributes) == set(read.attributes)
        assert all(same(wrote.attributes[k], read.attributes[k]) for k in wrote.attributes)
    first, second = unpack_snapshots(data)[:2]
    first.model["body_pos"][:] = 9  # a simulator may write into what it got
    assert (second.model["body_pos"] == 1).all()


def test_constant_parts_are_stored_once():
    rng, big = np.random.default_rng(0), np.random.default_rng(1).normal(size=1000)
    one, many = (
        len(pack_snapshots([Snapshot(rng.normal(size=2), {"geom": big}, {"x": big + 1})] * n)) for n in (1, 100)
    )
    assert many < one + 2000


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array([object()]), np.zeros(2, "f4,i4")])
def test_snapshots_of_other_things_are_refused(value):
    with pytest.raises(StoreError, match=r"attributes/thing\[0\]"):
        pack_snapshots([Snapshot(np.zeros(2), {}, {"thing": [value]})])


def test_damaged_or_missing_snapshots(copy):
    name = "snapshots/chunk-000/episode-000001.npz"
    flip(name, 200)(copy)
    with pytest.raises(StoreError, match=r"episode-000001.npz \(episode 1\): the snapshots cannot be read"):
        Store.open(copy).snapshots(1)
    (copy / name).unlink()
    with pytest.raises(StoreError, match="episode 1.*is missing"):
        Store.open(copy)
