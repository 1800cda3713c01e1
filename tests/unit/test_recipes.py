"""Recipes are complete runs: each family has one of the demo's size and one of the literature's, compared fairly."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from wamkit.config import from_dict, to_dict
from wamkit.experiments.run import trunk_size
from wamkit.families.base import FAMILIES, Family
from wamkit.nn.normalizer import Normalizer
from wamkit.runs.config import RunConfig, TrainConfig, WindowConfig, family_class
from wamkit.runs.meta_model import meta_model
from wamkit.runs.recipes import ON_VIDEO_MODELS, RECIPES, VIDEO_MODELS
from wamkit.runs.sizing import lines, sizes_of
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


def test_every_family_has_a_recipe_for_two_cores_and_a_fitted_one():
    families = {RECIPES.get(n)().family for n in RECIPES.names()}
    assert families >= {f for f in FAMILIES.names() if FAMILIES.get(f).__module__.startswith("wamkit.")}
    small = {n.removeprefix("metaworld-") for n in RECIPES.names() if n.startswith("metaworld-")}
    assert small <= set(RECIPES.names())


@pytest.mark.parametrize("name", [n for n in RECIPES.names() if n.startswith("metaworld-")])
def test_trunks_of_the_small_recipes_are_equal_within_five_percent(name):
    reference = trunk_size(on_meta(RECIPES.get("metaworld-unified")(), SMALL))
    assert trunk_size(on_meta(RECIPES.get(name)(), SMALL)) == pytest.approx(reference, rel=0.05)


@pytest.mark.parametrize("name", [f"{base}-{family}" for base in VIDEO_MODELS for family in ON_VIDEO_MODELS])
def test_recipes_on_video_models_build_and_come_back_from_json(name):
    pytest.importorskip("diffusers", reason="the extra `pretrained` is not installed")
    run = RECIPES.get(name)()
    assert sum(p.numel() for p in meta_model(run).parameters()) > 1e9
    assert from_dict(type(run.model), to_dict(run.model)) == run.model
    assert from_dict(TrainConfig, to_dict(run.train)) == run.train
    assert from_dict(WindowConfig, to_dict(run.window)) == run.window
    assert RECIPES.get(name).__doc__


def test_sizes_are_those_that_were_published():
    """Fast-WAM's windows of LIBERO: parameters of the transformer, and arithmetic as counted elsewhere (TFLOP)."""
    pytest.importorskip("diffusers", reason="the extra `pretrained` is not installed")
    model = meta_model(RECIPES.get("wan2.2-ti2v-5b-mot")())
    sizes = sizes_of(model)
    assert sizes.parameters["backbone"] == 4_999_787_712
    assert sizes.encode == pytest.approx(3.27, rel=0.01) and sizes.encode_one == pytest.approx(0.47, rel=0.02)
    assert sizes.decode == pytest.approx(17.1, rel=0.01)
    video, expert = 2.79, 0.10  # of each of the two problems with actions
    assert sizes.forward == pytest.approx(video + 2 * expert, rel=0.02)
    assert 1.02 + 0.47 < sizes.query < 2.1
    assert sizes.adapters == 30 * 128 * (8 * (3072 + 3072) + 2 * (3072 + 14336))
    assert sizes.fits(24) == 0 < sizes.fits(80, adapted=True) < sizes.fits(141, adapted=True)
    measured = 3.0 * 2**30  # of the video's tokens, by a layer of real width; the expert's come to it
    assert measured < sizes.kept < 1.35 * measured
    page = "\n".join(lines(sizes))
    assert "backbone 5,000 M" in page and "H200" in page
    guide = (Path(__file__).parents[2] / "docs/pretrained.md").read_text()
    shown = [
        line for line in guide.splitlines() if line.startswith(("  arithmetic", "  autoencoder", "  policy query"))
    ]
    assert len(shown) == 3 and all(line in page for line in shown)
