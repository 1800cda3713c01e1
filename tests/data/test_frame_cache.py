"""The cache of decoded frames: built once, checked, rebuilt."""

from __future__ import annotations

import time

import numpy as np
import pytest
from forks import run
from recordings import LAYOUT, SIZE, fill, make_episode

from wamkit.data.format import frame_cache as cache_module
from wamkit.data.format.frame_cache import FrameCache
from wamkit.data.format.store import Store, StoreError
from wamkit.files import WriteError, cache_folder, caching_in


def test_cache_holds_what_is_decoded_and_is_built_once(copy, monkeypatch):
    store = Store.open(copy)
    cache = FrameCache.build_or_open(store)
    expected = np.concatenate([store.episode(e).images for e in range(3)])
    assert np.array_equal(cache.frames, expected) and len(cache) == 24
    index = np.array([[3, 20], [0, 3]])
    assert cache[index].shape == (2, 2, 2, 3, SIZE, SIZE) and np.array_equal(cache[index], expected[index])
    assert not cache.frames.flags.writeable
    monkeypatch.setattr(cache_module, "_build", lambda *_: pytest.fail("built twice"))
    assert FrameCache.build_or_open(Store.open(copy)).path == cache.path


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data.replace(b'"format"', b'"farmot"'),
        lambda data: data[:9000] + bytes([data[9000] ^ 4]) + data[9001:],
    ],
)
def test_a_damaged_cache_is_built_again(copy, damage):
    store = Store.open(copy)
    path = FrameCache.build_or_open(store).path
    good = path.read_bytes()
    path.write_bytes(damage(good))
    assert FrameCache.build_or_open(store).path == path and path.read_bytes() == good


def test_changed_recordings_get_a_new_cache(copy):
    store = Store.open(copy)
    small = FrameCache.build_or_open(store, size=(16, 16))
    assert small.frames.shape == (24, 2, 3, 16, 16)
    old = FrameCache.build_or_open(store)
    store.append(make_episode(3))
    new = FrameCache.build_or_open(store)
    assert len(new) == 33 and np.array_equal(new.frames[:24], old.frames)
    assert small.path.exists() and new.path.exists() and not old.path.exists()


def build(root):
    FrameCache.build_or_open(Store.open(root))


def test_cache_survives_kills_and_two_builders(copy):
    for delay in (0.01, 0.03, 0.05):
        process = run(build, copy)
        time.sleep(delay)
        process.kill()
        process.join()
    builders = [run(build, copy) for _ in range(2)]
    for process in builders:
        process.join()
        assert process.exitcode == 0
    store = Store.open(copy)
    assert np.array_equal(FrameCache.build_or_open(store).frames[7:15, 1], store.decode(1, "wrist"))
    assert [p.suffix for p in (copy / ".cache").iterdir()] == [".frames"]


def test_an_empty_store_has_no_frames(tmp_path):
    store = Store.create(tmp_path / "data", **LAYOUT)
    assert Store.open(tmp_path / "data").numeric()["action"].shape == (0, 2)
    with pytest.raises(StoreError, match="has no images"):
        FrameCache.build_or_open(store)


def test_caches_are_where_the_option_says(tmp_path):
    store = fill(tmp_path / "data", 1)
    with caching_in(tmp_path / "fast"):
        made = FrameCache.build_or_open(store)
        assert made.path.parent.parent == tmp_path / "fast" and cache_folder(store.root) == made.path.parent
    assert cache_folder(store.root) == store.root / ".cache" and not (store.root / ".cache").exists()
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="file: a file is in the way"), caching_in(tmp_path / "file"):
        pass
