"""The policy runtime: chunks, replanning, sessions that belong to the caller."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from wamkit.families.base import FAMILIES
from wamkit.inference.model import Model
from wamkit.inference.policy import Policy, Session
from wamkit.types import Observation, UnsupportedQuery, WamkitError


@pytest.fixture
def model(spec, normalizer):
    torch.manual_seed(0)
    cls = FAMILIES.get("unified")
    return Model(cls(cls.Config(width=32, depth=1, heads=2, denoising_steps=2), spec, normalizer).eval())


@pytest.fixture
def obs(spec):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (spec.views, 3, spec.height, spec.width), np.uint8)
    return Observation(images, rng.standard_normal(spec.proprio_dim, np.float32), "open it")


def test_replans_after_so_many_actions(model, obs):
    policy, session, chunks = Policy(model, replan_every=3), None, []
    for step in range(7):
        assert policy.needs_images(session) == (step % 3 == 0)
        action, session = policy.act(obs, session)
        chunks.append(session.chunk)
        assert np.array_equal(action, session.chunk[step % 3])
    assert session.queries == 3
    assert chunks[0] is chunks[2] and not np.array_equal(chunks[2], chunks[3])  # new noise, new chunk


def test_sessions_are_independent_and_repeatable(model, obs):
    policy = Policy(model, replan_every=2)

    def play(seed, steps=5):
        session, out = Session(seed), []
        for _ in range(steps):
            action, session = policy.act(obs, session)
            out.append(action)
        return np.stack(out)

    first = play(1)
    other = play(2)
    assert np.array_equal(play(1), first) and not np.array_equal(first, other)


def test_a_session_is_not_changed_by_acting(model, obs):
    policy = Policy(model)
    _, session = policy.act(obs, None)
    kept = (session.used, session.queries, session.chunk.copy())
    policy.act(obs, session)
    assert (session.used, session.queries) == kept[:2] and np.array_equal(session.chunk, kept[2])


def test_looks_back_at_what_the_session_saw(spec, normalizer):
    """A policy with history asks exactly what one would ask who kept every observation; pictures that it does not need
    may be missing, and one that it needs is asked for."""
    spec = replace(spec, past_offsets=(-5, -2))
    torch.manual_seed(0)
    cls = FAMILIES.get("unified")
    model = Model(cls(cls.Config(width=32, depth=1, heads=2), spec, normalizer).eval())
    rng = np.random.default_rng(0)
    picture, numbers = (spec.views, 3, spec.height, spec.width), spec.proprio_dim
    all_seen = [
        Observation(rng.integers(0, 256, picture, np.uint8), rng.standard_normal(numbers, np.float32), "open it")
        for _ in range(9)
    ]
    policy, session, drawn = Policy(model, replan_every=3), None, []
    for step, obs in enumerate(all_seen):
        drawn.append(policy.needs_images(session))
        shown = obs if drawn[-1] else replace(obs, images=None)
        before, (_, session) = session, policy.act(shown, session)
        if step % 3 == 0:
            past = tuple(all_seen[step + o] if step + o >= 0 else None for o in (-5, -2))
            noise = int(np.random.SeedSequence((0, step // 3)).generate_state(1, np.uint64)[0] >> 1)
            asked = model.sample(replace(obs, past=past), "policy", seed=[noise])
            assert np.array_equal(session.chunk, asked.actions)
    assert drawn == [True, True, False] * 3  # 0 3 6 now, 1 4 7 as two (and five) steps ago
    assert len(session.seen) <= 5
    with pytest.raises(WamkitError, match="looks back at step 1"):
        policy.act(all_seen[0], replace(before, step=6, used=3, seen=()))


def test_joint_is_a_policy_too_and_others_are_not(model, obs):
    action, _ = Policy(model, query="joint").act(obs)
    assert action.shape == (model.spec.action_dim,)
    with pytest.raises(WamkitError, match="acts on the query 'policy' or 'joint'"):
        Policy(model, query="forward")
    with pytest.raises(WamkitError, match="replan_every must lie in 1 .. 8"):
        Policy(model, replan_every=9)
    with pytest.raises(WamkitError, match="replan_every must lie in"):
        Policy(model, replan_every=1.5)
    with pytest.raises(WamkitError, match="a policy needs a model, as `wamkit.load` returns; got str"):
        Policy("runs/first")
    with pytest.raises(WamkitError, match="seed = -1"):
        Policy(model, seed=-1)


def test_bc_has_no_joint(spec, normalizer):
    cls = FAMILIES.get("bc")
    with pytest.raises(UnsupportedQuery, match="families that do: .*unified"):
        Policy(Model(cls(cls.Config(width=32, depth=1, heads=2), spec, normalizer)), query="joint")
