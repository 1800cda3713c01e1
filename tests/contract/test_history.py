"""Chunk-causal history: what was read of a moment stands for it, whoever asks, and for ever."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from test_families import ask, losses, make

from conftest import random_batch
from wamkit.config import ConfigError
from wamkit.data.loading.windows import observations
from wamkit.inference.model import Model
from wamkit.inference.policy import Policy
from wamkit.nn.attention_mask import Program, closure, expand
from wamkit.types import KVMemory, ObservationError, Query, WamkitError

FAMILIES = ("unified", "mot")
WAYS = [("unified", {}), ("unified", {"conditioning": "cross"}), ("unified", {"program": Program.ACTION_THEN_VIDEO})]
WAYS += [("mot", {}), ("mot", {"program": Program.VIDEO_THEN_ACTION}), ("mot", {"imagine": True})]


@pytest.fixture
def spec(spec):
    return dataclasses.replace(spec, past_offsets=(-6, -4, -2))


def near(a, b) -> bool:
    """Actions equal within 1e-5 in the robot's units, images within one of their 256 levels."""
    assert (a.actions is None, a.future is None) == (b.actions is None, b.future is None)
    acts = a.actions is None or np.allclose(a.actions, b.actions, atol=1e-5, rtol=1e-5)
    return acts and (a.future is None or np.abs(a.future.astype(int) - b.future).max() <= 1)


@pytest.mark.parametrize(("name", "options"), WAYS)
def test_remembering_equals_reading_again(name, options, spec, normalizer):
    """For every query, rows with a whole past, half of one and none, alone and mixed with observations."""
    model, batch = make(name, spec, normalizer, chunk_causal=True, **options), random_batch(spec, 3)
    batch.past_valid[1, :2], batch.past_valid[2] = False, False
    obs = observations(batch)
    for query in sorted(model.queries):
        given = {
            Query.FORWARD: {"actions": batch.action.numpy()},
            Query.INVERSE: {"future": batch.future.numpy()},
        }.get(query, {})
        read = Model(model).sample(obs, query, seed=0, steps=3, **given)
        for some in (slice(None), slice(1, 2)):
            rows = []
            for o in obs:
                past = [
                    Model(model).encode_history(p) if p and i in range(3)[some] else p for i, p in enumerate(o.past)
                ]
                rows.append(dataclasses.replace(o, past=tuple(past)))
            assert near(read, Model(model).sample(rows, query, seed=0, steps=3, **given))


@pytest.mark.parametrize(("name", "options"), WAYS)
def test_losses_see_the_past_where_there_was_one(name, options, spec, normalizer):
    model, batch = make(name, spec, normalizer, chunk_causal=True, **options), random_batch(spec, 3)
    batch.past_valid[:, 0] = False
    before = losses(model, batch)
    hidden, shown = batch.past.clone(), batch.past.clone()
    hidden[:, 0], shown[:, 1] = 255 - hidden[:, 0], 255 - shown[:, 1]
    silent, heard = (losses(model, dataclasses.replace(batch, past=p)) for p in (hidden, shown))
    assert all(torch.equal(before[k], silent[k]) for k in before)
    assert all((before[k] != heard[k]).any() for k in ("policy", "future"))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_learns_from_the_past(name, spec, normalizer):
    model, batch = make(name, spec, normalizer, chunk_causal=True), random_batch(spec, 6)
    for seed in range(4):
        sum(v.sum() for v in model(batch, torch.Generator().manual_seed(seed), "main").values()).backward()
    trained = model.stages()[1].prefixes
    for key, p in model.named_parameters():
        if key.startswith(trained):
            assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0, key
    assert model.history.age.grad.abs().amin((1, 2, 3, 4, 5)).gt(0).any()


@pytest.mark.parametrize("name", FAMILIES)
def test_which_moment_was_when_matters(name, spec, normalizer):
    """Two moments that change places are another past: ages differ although keys are kept."""
    model, batch = make(name, spec, normalizer, chunk_causal=True), random_batch(spec, 2)
    swapped = dataclasses.replace(batch, past=batch.past.flip(1), past_proprio=batch.past_proprio.flip(1))
    a, b = (ask(model, Query.POLICY, x).actions for x in (batch, swapped))
    assert np.abs(a - b).max() > 1e-3
    with torch.no_grad():
        model.history.age.zero_()
    a, b = (ask(model, Query.POLICY, x).actions for x in (batch, swapped))
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_moments_hear_of_nothing_but_themselves(name, spec, normalizer):
    """Of no other moment, nor of the instruction: so what was read of them never changes."""
    model = make(name, spec, normalizer, chunk_causal=True)
    segments, seen_SS = model.attention_layout()
    reach = closure(expand(seen_SS, segments))
    starts = np.cumsum([0, *(s.length for s in segments)])
    for i, segment in enumerate(segments):
        if segment.stream in ("context", "text"):
            assert reach[starts[i] : starts[i + 1]].sum(1).tolist() == [segment.length] * segment.length
    (obs,) = observations(random_batch(spec, 1))
    other = dataclasses.replace(obs, text="close it")
    assert torch.equal(Model(model).encode_history(obs).keys, Model(model).encode_history(other).keys)
    assert not np.array_equal(Model(model).sample(obs, "policy").actions, Model(model).sample(other, "policy").actions)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("replan", [2, 3])
def test_a_session_that_remembers_acts_as_one_that_reads_again(name, replan, spec, normalizer):
    """Whatever the rhythm: at 2 every moment was asked at and is remembered, at 3 most must be read late."""
    model = make(name, spec, normalizer, chunk_causal=True)
    script = observations(random_batch(dataclasses.replace(spec, past_offsets=()), 14))
    took, sessions = [], []
    for use_memory in (True, False):
        policy, session, actions = Policy(Model(model), replan_every=replan, use_memory=use_memory), None, []
        for obs in script:
            action, session = policy.act(obs, session)
            actions.append(action)
        took.append(np.stack(actions))
        sessions.append(session)
    np.testing.assert_allclose(took[0], took[1], atol=1e-5, rtol=1e-5)
    kept = [[isinstance(o, KVMemory) for _, o in s.seen] for s in sessions]
    assert any(kept[0]) and not any(kept[1])


def test_what_cannot_be_remembered_says_so(spec, normalizer):
    model, other = (make("unified", spec, normalizer, chunk_causal=True) for _ in range(2))
    together = make("unified", spec, normalizer)
    (obs,) = observations(random_batch(spec, 1))
    foreign = dataclasses.replace(obs, past=(Model(other).encode_history(obs), None, None))
    for m in (model, together):
        with pytest.raises(ObservationError, match="past: holds the memory of another model"):
            Model(m).sample(foreign, "policy")
    with pytest.raises(WamkitError, match="this 'unified' keeps no memory"):
        Model(together).encode_history(obs)
    with pytest.raises(ConfigError, match="chunk_causal looks back at window.past_offsets, which are empty"):
        make("mot", dataclasses.replace(spec, past_offsets=()), normalizer, chunk_causal=True)
    with pytest.raises(ConfigError, match="conditioning adaln has none: prefix or cross would fit"):
        make("unified", spec, normalizer, chunk_causal=True, conditioning="adaln")
