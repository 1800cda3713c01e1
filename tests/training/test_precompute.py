"""Features computed ahead, in memory and on disk."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from small_runs import SMALL, trainer

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
