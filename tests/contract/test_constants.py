"""A dimension that never moved in training: on a robot, a command for it is a command that nobody ever gave."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from test_families import NAMES, ask, losses, make, queries

from wamkit.families.base import FAMILIES
from wamkit.nn import Normalizer

ACTS = [(name, query) for name, query in queries() if query.wants_action]
LOCKED = {1: -1.7, 2: 0.0}
"""Action dimensions that never moved, and where they stood: one by rounding alone, one exactly."""


def locked(limit: float = 0.0) -> Normalizer:
    """Statistics in which two action dimensions and one of proprioception are constant."""
    action = (torch.tensor([0.3, LOCKED[1], LOCKED[2], 2.5]), torch.tensor([0.5, 2e-7, 0.0, 1.0]))
    proprio = (torch.tensor([0.1, 0.2, 300.0, 0.0, -1.0]), torch.tensor([1.0, 0.7, 2e-5, 0.6, 1.2]))
    flow = (torch.zeros(3), torch.full((3,), 0.05))
    statistics = {"proprio": proprio, "action": action, "point_flow": flow}
    return Normalizer(statistics, {"action": limit, "proprio": limit} if limit else None)


@pytest.mark.parametrize(("name", "query"), ACTS)
def test_a_locked_dimension_comes_back_as_recorded_whatever_the_weights_say(name, query, spec, batch):
    model = make(name, spec, locked())
    actions = ask(model, query, batch).actions
    for dimension, value in LOCKED.items():
        assert (torch.tensor(actions[..., dimension]) == value).all(), (dimension, actions[..., dimension])
    assert actions[..., 0].std() > 0


@pytest.mark.parametrize("name", NAMES)
def test_what_never_moved_is_no_input(name, spec, batch):
    """Networks never saw a dimension move, so where it stands now changes neither losses nor answers."""
    model = make(name, spec, locked())
    moved = dataclasses.replace(batch, proprio=batch.proprio.clone(), past_proprio=batch.past_proprio.clone())
    moved.proprio[:, 2] += 5
    moved.past_proprio[..., 2] -= 5
    if not FAMILIES.get(name).needs_point_cloud:  # geometry takes the hand's position from it
        a, b = losses(model, batch), losses(model, moved)
        assert all(torch.equal(a[k], b[k]) for k in a)
    for query in sorted(model.queries):
        answers = [ask(model, query, x) for x in (batch, moved)]
        for field in ("actions", "future"):
            one, other = (getattr(answer, field) for answer in answers)
            if one is not None and not FAMILIES.get(name).needs_point_cloud:
                assert (one == other).all(), (query, field)


@pytest.mark.parametrize("name", NAMES)
def test_an_outlier_weighs_no_more_than_the_limit(name, spec, batch):
    """With a limit, losses do not depend on how far outside it a value lies."""
    model = make(name, spec, locked(limit=3.0))
    far = []
    for distance in (1e3, 1e6):
        wild = dataclasses.replace(batch, action=batch.action.clone(), action_expert=batch.action_expert.clone())
        wild.action[0, 0, 0] = wild.action_expert[0, 0, 0] = distance
        far.append(losses(model, wild))
    assert all(torch.equal(far[0][k], far[1][k]) for k in far[0])
    assert all(torch.isfinite(x).all() for x in far[0].values())
