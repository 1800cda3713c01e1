"""A second backbone and a second autoencoder under every family: the contract holds, and blocks read their marks."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import second_parts
import test_families as contract
import torch
from test_families import NAMES, ask, losses, make

from conftest import random_batch
from wamkit.config import ConfigError
from wamkit.data.loading.windows import observations
from wamkit.families.base import FAMILIES
from wamkit.inference.model import Model
from wamkit.nn import BACKBONES, FrameCodec, ImageTokens, Mixture, Tokens, image_positions, present
from wamkit.nn.options import BackboneConfig
from wamkit.types import Query, WamkitError

OTHER = {"backbone": BackboneConfig("rope"), "codec": "cells8"}
CLAIMS = (
    contract.test_losses_are_one_finite_number_a_row,
    contract.test_every_parameter_of_a_stage_gets_a_finite_gradient,
    contract.test_rows_without_actions_or_imitation_are_silent,
    contract.test_padded_steps_are_silent,
    contract.test_save_and_load_gives_the_same_answers,
)
ASKED = (
    contract.test_query_returns_what_it_says,
    contract.test_same_seed_same_sample_in_any_order,
    contract.test_a_row_alone_equals_the_row_in_a_batch,
)


def other(name: str) -> dict[str, Any]:
    """The second parts that a family has options for."""
    fields = {f.name for f in dataclasses.fields(FAMILIES.get(name).Config)}
    experts = "action_width" in fields  # which have no other backbone
    return {k: v for k, v in OTHER.items() if k in fields and not (experts and k == "backbone")}


SWAPPED = [n for n in NAMES if other(n)]


@pytest.fixture
def swapped(monkeypatch):
    """The contract tests build their models with the second parts; the names of those that they built."""
    built = []

    def build(name, *args, **more):
        built.append(name)
        model = make(name, *args, **(other(name) | more))
        assert {type(m) for m in model.modules()} & {second_parts.Rope, second_parts.Cells8}
        return model

    monkeypatch.setattr(contract, "make", build)
    return built


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", SWAPPED)
def test_the_contract_holds(claim, name, swapped, spec, normalizer, batch):
    claim(name, spec, normalizer, batch)
    assert set(swapped) == {name}


@pytest.mark.parametrize("name", [n for n in SWAPPED if "backbone" in other(n)])
def test_rows_do_not_influence_each_other(name, monkeypatch, swapped, spec, normalizer, batch):
    """On another backbone alone: the loss of an autoencoder that sees no current frame does not depend on it."""
    monkeypatch.delitem(OTHER, "codec")
    contract.test_rows_do_not_influence_each_other(name, spec, normalizer, batch)
    assert set(swapped) == {name}


@pytest.mark.parametrize("claim", ASKED, ids=lambda f: f.__name__)
@pytest.mark.parametrize(("name", "query"), [(n, q) for n, q in contract.queries() if n in SWAPPED])
def test_every_query_is_answered(claim, name, query, swapped, spec, normalizer, batch):
    claim(name, query, spec, normalizer, batch)
    assert set(swapped) == {name}


@pytest.mark.parametrize("name", SWAPPED)
def test_the_past_and_the_layout_hold(name, swapped, spec, normalizer):
    contract.test_looking_back(name, spec, normalizer)
    contract.test_what_is_given_and_known_hears_of_nothing_else(name, spec, normalizer)
    assert set(swapped) == {name}


def test_every_family_has_a_part_to_swap():
    assert set(SWAPPED) == set(NAMES)


@pytest.mark.parametrize("conditioning", ["prefix", "cross"])
def test_memory_equals_reading_again(conditioning, spec, normalizer):
    spec = dataclasses.replace(spec, past_offsets=(-4, -2))
    model = Model(make("unified", spec, normalizer, chunk_causal=True, conditioning=conditioning, **OTHER))
    for obs in observations(random_batch(spec, 2)):
        kept = dataclasses.replace(obs, past=tuple(model.encode_history(p) for p in obs.past))
        a, b = (model.sample(o, Query.POLICY, seed=1).actions for o in (obs, kept))
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("conditioning", ["channel", "adaln", "cross"])
def test_every_conditioning_runs_on_another_backbone(conditioning, spec, normalizer, batch):
    model = make("unified", spec, normalizer, conditioning=conditioning, **OTHER)
    assert all(torch.isfinite(v).all() for v in losses(model, batch).values())
    for query in Query:
        ask(model, query, batch)


def test_positions_and_levels_reach_the_blocks():
    """Keys turn by position, so a shift of all positions changes nothing and a shift of one token something; levels
    modulate; the small transformer reads neither."""
    torch.manual_seed(0)
    x, place = torch.randn(2, 4, 24), torch.randn(4, 3) * 8
    moved = place.clone()
    moved[0] += 3.0
    for name, reads in (("rope", True), ("transformer", False)):
        trunk = BACKBONES.get(name)(24, 2, 2)
        run = lambda position, sigma, trunk=trunk: trunk([Tokens(x, "any", position, sigma)])[0][0]  # noqa: E731
        base = run(place, torch.tensor([0.3]))
        torch.testing.assert_close(run(place + torch.tensor([4.0, 32.0, 16.0]), torch.tensor([0.3])), base)
        assert torch.equal(run(moved, torch.tensor([0.3])), base) != reads
        assert torch.equal(run(place, torch.tensor([0.7])), base) != reads
        assert torch.equal(run(place, torch.tensor([0.3, 0.7]))[0], base[0])


@pytest.mark.parametrize("name", NAMES)
def test_every_pass_of_the_main_backbone_knows_its_positions(name, spec, normalizer, batch, monkeypatch):
    """In training and sampling, and noise levels wherever something is noisy."""
    spec = dataclasses.replace(spec, past_offsets=(-4,))
    batch = random_batch(spec, 3)
    model, seen = make(name, spec, normalizer), []
    backbone = model.backbones[0]
    run = type(backbone).forward if isinstance(backbone, Mixture) else None

    def spy(parts, *args, **kw):
        seen.extend(t for s in parts.values() for t in s) if run else seen.extend(parts)
        return original(parts, *args, **kw)

    entry = "forward" if run else "run"
    original = getattr(backbone, entry)
    monkeypatch.setattr(backbone, entry, spy)
    losses(model, batch)
    for query in model.queries:
        ask(model, query, batch)
    assert seen and all(t.position is not None and t.position.shape == (len(t), 3) for t in seen)
    noisy = [t for t in seen if t.kind == "future"] if name in ("unified", "mot", "cascade_geom") else []
    assert all(t.sigma is not None for t in noisy)


def test_image_tokens_stand_where_their_pixels_are(spec, normalizer, batch):
    places = image_positions(spec, ImageTokens.stride, -4)
    assert places[0].tolist() == [-4, 8, 8] and places[-1].tolist() == [-4, 24, 56] and len(places) == 8
    model = make("unified", spec, normalizer, codec="cells8")
    assert model.future.cells == 32 and model.future.channels == 16
    context = model.context(batch, normalizer)
    image = context[0].values
    found = model.future.present(context).unflatten(1, model.future.grid)
    torch.testing.assert_close(found, image.unflatten(1, (2, 4)).repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert len(context) == 3 and len(model.context(batch, normalizer)[0]) == model.context.cells


def test_sizes_are_checked_against_the_strides(spec, normalizer):
    for size, message in ((40, "image height 40 is not a multiple of the stride, 16: 32 or 48 would fit"),):
        with pytest.raises(ConfigError, match=message):
            make("bc", dataclasses.replace(spec, height=size), normalizer)
    assert FrameCodec.stride == 16 and present(spec) == spec


def test_an_unknown_backbone_is_named(spec, normalizer):
    with pytest.raises(WamkitError, match="unknown backbone 'rop'"):
        make("bc", spec, normalizer, backbone=BackboneConfig("rop"))
