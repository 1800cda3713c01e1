"""Features of observations, of every family: their shape, what they depend on, and that queries use the same."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from test_families import NAMES, ask, make

from conftest import random_batch
from wamkit.data.loading.windows import observations
from wamkit.families.base import FAMILIES
from wamkit.inference.model import Model
from wamkit.nn import Backbone
from wamkit.types import Embedding, NotFinite, Query

WAYS = [(name, {}) for name in NAMES]
WAYS += [("unified", {"conditioning": kind}) for kind in ("channel", "cross", "adaln")]
WAYS += [(name, {"chunk_causal": True}) for name in ("unified", "mot")]
WIDTH = 32  # of the networks that `make` builds
SLOTS = {"shared_rep"}
IMAGES_ALONE = {name for name in NAMES if FAMILIES.get(name).images_alone}


def made(name, options, spec, normalizer):
    past = (-4, -2) if options.get("chunk_causal") else ()
    family = make(name, dataclasses.replace(spec, past_offsets=past), normalizer, **options)
    return family.eval(), random_batch(family.spec, 3)


@pytest.mark.parametrize(("name", "options"), WAYS)
def test_one_vector_an_observation_and_one_a_token(name, options, spec, normalizer):
    family, batch = made(name, options, spec, normalizer)
    model, obs = Model(family), observations(batch)
    several, alone = model.embed(obs), model.embed(obs[1])
    cells = 2 * 2 * 2  # of 16 pixels, in two views of 32 x 32
    kinds = ("slots",) * 2 * cells if name in SLOTS else ("image",) * cells
    kinds += () if name in SLOTS | IMAGES_ALONE else ("proprio", "text")
    assert isinstance(several, Embedding) and several.kinds == alone.kinds == kinds
    assert several.tokens.shape == (3, len(kinds), WIDTH) and several.vector.shape == (3, WIDTH)
    assert alone.tokens.shape == (len(kinds), WIDTH) and alone.vector.shape == (WIDTH,)
    assert model.embed(obs[:1]).vector.shape == (1, WIDTH)
    for x in (several.tokens, several.vector, alone.vector):
        assert isinstance(x, np.ndarray) and x.dtype == np.float32 and np.isfinite(x).all()
    np.testing.assert_allclose(several.vector, several.tokens.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(alone.tokens, several.tokens[1], rtol=1e-4, atol=1e-5)
    assert np.array_equal(model.embed(obs).tokens, several.tokens)


@pytest.mark.parametrize(("name", "options"), WAYS)
def test_they_follow_the_observation_and_nothing_else(name, options, spec, normalizer):
    family, batch = made(name, options, spec, normalizer)
    model = Model(family)
    first = model.embed(observations(batch))
    assert all(not np.allclose(first.vector[i], first.vector[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    other = {
        "images": dataclasses.replace(batch, obs=255 - batch.obs),
        "proprio": dataclasses.replace(batch, proprio=batch.proprio + 1),
        "text": dataclasses.replace(batch, text=["lift the cup"] * 3),
    }
    for key, changed in other.items():
        same = np.allclose(model.embed(observations(changed)).vector, first.vector)
        assert same == (name in IMAGES_ALONE and key != "images"), key
    torch.manual_seed(99)
    unseen = dataclasses.replace(batch, action=batch.action + 1, future=255 - batch.future)
    assert np.array_equal(model.embed(observations(unseen)).tokens, first.tokens)


@pytest.mark.parametrize(("name", "options"), [w for w in WAYS if w[1].get("conditioning") is None])
def test_they_are_what_the_last_block_reads_when_the_model_is_asked(name, options, spec, normalizer, monkeypatch):
    family, batch = made(name, options, spec, normalizer)
    if options.get("chunk_causal"):
        batch.past_valid[:] = False
    read, last = [], family.backbones[0].layers()[-1]
    where = last.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    if name in SLOTS:
        where.remove()
        where = family.bridge.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    query = next(q for q in (Query.POLICY, Query.FORWARD, Query.INVERSE) if q in family.queries)
    ask(family, query, batch)
    where.remove()
    tokens = Model(family).embed(observations(batch)).tokens
    length = tokens.shape[1]
    states = [next(iter(x.values())) if isinstance(x, dict) else x for x in read]
    # Where history is read moment by moment, the rows are moments, the present one first.
    states = [x[:: len(x) // 3] for x in states]
    assert any(x.shape[1] >= length and np.allclose(x[:, :length], tokens, rtol=1e-4, atol=1e-5) for x in states)


def test_a_family_of_one_block_gives_the_encoders_tokens(spec, normalizer, batch):
    torch.manual_seed(0)
    family = make("bc", spec, normalizer)
    shallow = type(family)(dataclasses.replace(family.config, depth=1), spec, normalizer).eval()
    expected = torch.cat([t.values for t in shallow.context(batch, normalizer)], 1)
    tokens = Model(shallow).embed(observations(batch)).tokens
    np.testing.assert_allclose(tokens, expected.detach(), rtol=1e-5, atol=1e-6)


def test_values_that_are_not_finite_are_refused(spec, normalizer, batch):
    family = make("bc", spec, normalizer)
    with torch.no_grad():
        family.context.grid[0, 0] = float("nan")
    with pytest.raises(NotFinite, match="features: the model computed NaN"):
        Model(family).embed(observations(batch))


def test_a_family_that_defines_none_says_so(spec, normalizer, batch):
    class Other(Backbone):
        def layers(self):
            return []

    family = make("bc", spec, normalizer)
    family.declare(Other())
    with pytest.raises(Exception, match="the family 'bc' does not define `embed`"):
        Model(family).embed(observations(batch))
