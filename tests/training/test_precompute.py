"""Features computed ahead, in memory and on disk."""

from __future__ import annotations

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from small_runs import SMALL, trainer

from wamkit.data.loading.feature_cache import cached_features
from wamkit.training.precompute import FeatureCache


def test_features_are_computed_ahead_where_that_is_less_work(tmp_path):
    """Each window's row is what the family makes of that window alone; a short stage or augmented images get none."""
    a = trainer(tmp_path / "a")
    stage = a.model.stages()[-1]
    a.precompute.prepare(stage, 12)
    assert len(a.windows.features["latents"]) == len(a.windows.frames)
    batch = a.windows.batch(3)
    alone = a.model.features(dataclasses.replace(batch, features={}), stage.name)["latents"]
    torch.testing.assert_close(batch.features["latents"], alone, rtol=1e-4, atol=1e-5)
    a.precompute.prepare(a.model.stages()[0], 12)
    assert a.windows.features == {}
    a.precompute.prepare(stage, 4)
    assert a.windows.features == {}, "36 windows, but only 32 rows to train on"
    moving = trainer(tmp_path / "b", dataclasses.replace(SMALL, shift=2))
    moving.precompute.prepare(stage, 12)
    assert moving.windows.features == {}


def test_features_are_kept_on_disk_for_the_next_run_with_the_same_encoder(tmp_path):
    """The same values as without; read where encoder and data are the same, made again where the file is damaged."""
    plain = trainer(tmp_path / "plain")
    stage = plain.model.stages()[-1]
    plain.precompute.prepare(stage, 12)
    folder = tmp_path / "kept"

    def prepared(name, data="d", changed=False, limit=10**8, made=True, apart=None):
        new = trainer(tmp_path / name, cache=FeatureCache(folder, data, limit))
        if apart is not None:  # as pretrained encoders are held: outside of the parameters
            encoder = torch.nn.Linear(2, 2)
            torch.nn.init.constant_(encoder.weight, apart), torch.nn.init.zeros_(encoder.bias)
            object.__setattr__(new.model.context.image, "encoder", encoder)
        if changed:
            with torch.no_grad():
                for n, p in new.model.named_parameters():
                    if not n.startswith(stage.prefixes):
                        p.add_(torch.linspace(-0.1, 0.1, p.numel()).reshape(p.shape))
        calls = []
        features = new.model.features
        new.model.features = lambda *a: calls.append(a) or features(*a)
        new.precompute.prepare(stage, 12)
        assert (len(calls) > 1) == made, name  # one batch is always made, to know how large all would be
        return new.windows.features

    first = prepared("a")["latents"]
    assert isinstance(first, np.memmap) and np.array_equal(first, plain.windows.features["latents"])
    assert np.array_equal(prepared("b", made=False)["latents"], first)
    assert not np.array_equal(prepared("c", changed=True)["latents"], first)
    prepared("d", data="other")
    assert len(list(folder.iterdir())) == 3
    prepared("d1", apart=0.5), prepared("d2", apart=0.5, made=False), prepared("d3", apart=0.25)
    assert len(list(folder.iterdir())) == 5, "a pretrained encoder with other weights has features of its own"
    file = next(folder.glob("*/latents.npy"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    for path in folder.glob("*/latents.npy"):
        path.write_bytes(content)
    assert np.array_equal(prepared("e")["latents"], plain.windows.features["latents"])
    room = int(1.5 * sum(p.stat().st_size for p in file.parent.iterdir()))
    prepared("f", limit=room, made=False)
    assert len(list(folder.iterdir())) == 1  # what was used longest ago has gone
    assert prepared("g", limit=100)["latents"].base is None  # too large for the disk: in memory


def rows_of(first: int, last: int) -> np.ndarray:
    return np.arange(first, last, dtype=np.float32)[:, None] * [1, 10]


def test_what_was_made_before_an_interruption_is_not_made_again(tmp_path):
    asked = []

    def parts(first, last, fails=False):
        for at in range(first, last, 2):
            if fails and at == 14:
                raise KeyboardInterrupt
            asked.append(at)
            yield {"x": rows_of(at, min(at + 2, last))}

    with pytest.raises(KeyboardInterrupt):
        cached_features(tmp_path, "key", 19, lambda a, b: parts(a, b, fails=True), 10**6, shard=4)
    assert asked == [0, 2, 4, 6, 8, 10, 12] and not (tmp_path / "key").exists()
    content = bytearray((tmp_path / ".key.draft/x.npy").read_bytes())
    content[-19 * 16 + 5 * 16] ^= 1  # a row of the second shard, on the disk
    (tmp_path / ".key.draft/x.npy").write_bytes(content)
    asked.clear()
    found = cached_features(tmp_path, "key", 19, parts, 10**6, shard=4)
    assert asked == [4, 6, 12, 14, 16, 18] and np.array_equal(found["x"], rows_of(0, 19))
    assert sorted(p.name for p in (tmp_path / "key").iterdir()) == ["checksums.json", "x.npy"]
    assert list(tmp_path.iterdir()) == [tmp_path / "key"]
    asked.clear()
    assert np.array_equal(cached_features(tmp_path, "key", 19, parts, 10**6)["x"], rows_of(0, 19)) and not asked


def test_processes_that_want_the_same_features_divide_them(tmp_path):
    """Locks are of open files, so threads stand in for processes."""
    asked, lock = [], threading.Lock()

    def parts(first, last):
        with lock:
            asked.append(first)
        time.sleep(0.01)
        yield {"x": rows_of(first, last)}

    with ThreadPoolExecutor(3) as pool:
        every = list(pool.map(lambda _: cached_features(tmp_path, "key", 40, parts, 10**6, shard=4), range(3)))
    assert sorted(asked) == list(range(0, 40, 4))
    assert all(np.array_equal(found["x"], rows_of(0, 40)) for found in every)
