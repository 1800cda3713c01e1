"""Recipes are complete runs: each family has one of the demo's size and one of the literature's, compared fairly."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from wamkit.config import from_dict, to_dict
from wamkit.experiments.run import trunk_size
from wamkit.families.base import FAMILIES, Family
from wamkit.nn.normalizer import Normalizer
from wamkit.runs.config import RunConfig, TrainConfig, WindowConfig, family_class
from wamkit.runs.recipes import RECIPES
from wamkit.types import Spec

SMALL = Spec(cameras=("corner",), height=64, width=64, proprio_dim=4, action_dim=4)
BIG = Spec(cameras=("front", "wrist"), height=256, width=256, proprio_dim=14, action_dim=14)


def on_meta(run: RunConfig, spec: Spec) -> Family:
    """The model without memory behind its weights."""
    spec = dataclasses.replace(spec, chunk=run.window.chunk, past_offsets=run.window.past_offsets)
    if family_class(run.family).needs_point_cloud:  # it drives a hand, whatever the robot
        spec = dataclasses.replace(spec, point_grid=32, proprio_dim=4, action_dim=4)
    with torch.device("meta"):
        sizes = {"proprio": spec.proprio_dim, "action": spec.action_dim, "point_flow": 3}
        numbers = Normalizer({k: (torch.zeros(n), torch.ones(n)) for k, n in sizes.items()})
        return family_class(run.family)(run.model, spec, numbers)


def test_every_family_has_both_recipes():
    families = {RECIPES.get(n)().family for n in RECIPES.names()}
    assert families >= {f for f in FAMILIES.names() if FAMILIES.get(f).__module__.startswith("wamkit.")}
    small = {n.removeprefix("metaworld-") for n in RECIPES.names() if n.startswith("metaworld-")}
    assert small == {n.removeprefix("large-") for n in RECIPES.names() if n.startswith("large-")}


@pytest.mark.parametrize("name", [n for n in RECIPES.names() if n.startswith("metaworld-")])
def test_trunks_of_the_small_recipes_are_equal_within_five_percent(name):
    reference = trunk_size(on_meta(RECIPES.get("metaworld-unified")(), SMALL))
    assert trunk_size(on_meta(RECIPES.get(name)(), SMALL)) == pytest.approx(reference, rel=0.05)


@pytest.mark.parametrize("name", [n for n in RECIPES.names() if n.startswith("large-")])
def test_large_recipes_build_and_come_back_from_json(name):
    run = RECIPES.get(name)()
    model = on_meta(run, BIG)
    assert sum(p.numel() for p in model.parameters()) > 3e8
    assert from_dict(type(run.model), to_dict(run.model)) == run.model
    assert from_dict(TrainConfig, to_dict(run.train)) == run.train
    assert from_dict(WindowConfig, to_dict(run.window)) == run.window
    assert RECIPES.get(name).__doc__
