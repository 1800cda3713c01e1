"""The six programs on one trunk: what each lets be asked, and that nothing passes where it must not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from test_families import ask, losses, make

from wamkit.nn.attention_mask import ACTION, FUTURE, Program, sees_other
from wamkit.types import Query, UnsupportedQuery

BOTH = {Query.POLICY, Query.VIDEO, Query.JOINT}
ANSWERS = {
    Program.JOINT: BOTH | {Query.FORWARD, Query.INVERSE},
    Program.ACTION_NOISY_TO_VIDEO: BOTH | {Query.FORWARD},
    Program.VIDEO_NOISY_TO_ACTION: BOTH | {Query.INVERSE},
    Program.DECOUPLED: BOTH,
    Program.VIDEO_THEN_ACTION: BOTH | {Query.INVERSE},
    Program.ACTION_THEN_VIDEO: BOTH | {Query.FORWARD},
}
PROGRAMMED = ("unified", "mot")
programs = pytest.mark.parametrize(("name", "program"), [(n, p) for n in PROGRAMMED for p in Program])


@programs
def test_answers_what_the_program_lets_through(name, program, spec, normalizer, batch):
    model = make(name, spec, normalizer, program=program)
    assert model.queries == ANSWERS[program]
    for query in Query:
        if query in model.queries:
            out = ask(model, query, batch)
            assert out.actions is None or np.isfinite(out.actions).all()
        else:
            with pytest.raises(
                UnsupportedQuery, match=f"this '{name}' was configured so that it cannot answer '{query}'"
            ):
                ask(model, query, batch)


@programs
def test_one_set_of_weights_fits_all_programs(name, program, spec, normalizer):
    model = make(name, spec, normalizer, program=program)
    keys = model.load_state_dict(make(name, spec, normalizer, seed=3).state_dict(), strict=False)
    assert not keys.missing_keys and not keys.unexpected_keys


@programs
def test_losses_see_what_the_program_shows_and_no_more(name, program, spec, normalizer, batch):
    """To the bit: other futures change the action's loss only where actions see futures, and the other way round."""
    model = make(name, spec, normalizer, program=program)
    before = losses(model, batch)
    assert all(torch.isfinite(v).all() for v in before.values())
    futures = losses(model, dataclasses.replace(batch, future=255 - batch.future))
    actions = losses(model, dataclasses.replace(batch, action=batch.action + 1))
    assert torch.equal(before["policy"], futures["policy"])
    assert torch.equal(before["action"], futures["action"]) == (not sees_other(program, ACTION, FUTURE))
    assert torch.equal(before["future"], actions["future"]) == (not sees_other(program, FUTURE, ACTION))


@programs
def test_what_goes_first_does_not_hear_of_what_follows(name, program, spec, normalizer, batch):
    """The joint query's first stream is the marginal itself; the second one follows from it."""
    model = make(name, spec, normalizer, program=program)
    joint = ask(model, Query.JOINT, batch)
    video, policy = ask(model, Query.VIDEO, batch), ask(model, Query.POLICY, batch)
    alone = {
        ACTION: np.allclose(joint.actions, policy.actions, rtol=1e-4, atol=1e-5),
        FUTURE: (joint.future != video.future).mean() < 1e-3,  # rounding may tip a pixel by a level
    }
    assert alone[ACTION] == (not sees_other(program, ACTION, FUTURE))
    assert alone[FUTURE] == (not sees_other(program, FUTURE, ACTION))


@programs
def test_off_expert_rows_are_evidence_for_dynamics_alone(name, program, spec, normalizer, batch):
    """Where a program learns no dynamics, what random actions did teaches nothing."""
    model = make(name, spec, normalizer, program=program)
    off = dataclasses.replace(batch, is_demonstration=torch.zeros(len(batch), dtype=torch.bool))
    seen = {
        k: any((losses(model, off, seed)[k] > 0).any() for seed in range(4)) for k in ("policy", "action", "future")
    }
    assert seen == {
        "policy": False,
        "action": Query.INVERSE in model.queries,
        "future": Query.FORWARD in model.queries,
    }
