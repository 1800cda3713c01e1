"""Answers that begin with actions which are decided already: what every family does with them, and what is learned."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from test_families import NAMES, make

from wamkit.config import ConfigError
from wamkit.data.loading.windows import observations
from wamkit.families.base import FAMILIES
from wamkit.inference.model import Model
from wamkit.inference.realtime import Ahead
from wamkit.nn import flow
from wamkit.nn.flow import Guide
from wamkit.training.step import check_prefix, with_prefix
from wamkit.types import Batch, ObservationError, Query, UnsupportedQuery

DENOISING = ["align", "bc", "hidden_state", "jepa", "latent_action", "mot", "shared_rep", "unified"]
ACTING = [n for n in NAMES if Query.POLICY in FAMILIES.get(n).queries]


def left(batch: Batch, steps: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(steps, batch.action.shape[2])).astype(np.float32)


def answers(family, batch, learned=4, **kw):
    return Model(family, prefix=learned).sample(observations(batch), "policy", seed=0, steps=3, **kw).actions


@pytest.mark.parametrize("name", DENOISING)
@pytest.mark.parametrize("learned", [4, 0])
def test_an_answer_begins_with_what_is_decided_and_goes_on_from_it(name, learned, spec, normalizer, batch):
    """Held by a model that learned so, guided in any other."""
    family, rows = make(name, spec, normalizer).eval(), len(batch)
    ahead = [Ahead(left(batch, 6, seed=i), 4) for i in range(rows)]
    found, free = answers(family, batch, learned, ahead=ahead), answers(family, batch, learned)
    for i in range(rows):
        assert np.array_equal(found[i, :4], ahead[i].actions[:4])
    assert np.isfinite(found).all() and not np.allclose(found[:, 4:], free[:, 4:], atol=1e-4)
    change = np.repeat(np.float32([[1], [0]]), [4, 2], axis=0)
    other = [Ahead(ahead[0].actions + change, 4), *ahead[1:]]
    again = answers(family, batch, learned, ahead=other)
    assert np.array_equal(again[1:], found[1:]) and not np.allclose(again[0, 4:], found[0, 4:], atol=1e-4)
    alone = Model(family, prefix=learned).sample(observations(batch)[0], "policy", seed=0, steps=3, ahead=ahead[0])
    assert np.allclose(alone.actions, found[0], atol=1e-4)


@pytest.mark.parametrize("name", DENOISING)
def test_held_actions_alone_matter_to_a_model_that_learned_prefixes(name, spec, normalizer, batch):
    """What comes after the decided actions is not read, unless it shares a token with them."""
    family, given = make(name, spec, normalizer).eval(), left(batch, 7)
    change = np.zeros_like(given)
    change[4:] = 1
    first, second = (answers(family, batch, ahead=[Ahead(x, 3)] * len(batch)) for x in (given, given + change))
    assert np.array_equal(first, second) and np.array_equal(first[0, :4], given[:4])  # a token holds four


@pytest.mark.parametrize(
    ("count", "decided", "learned", "held"),
    [(3, 3, 0, 0), (2, 1, 0, 0), (3, 3, 8, 0), (7, 7, 8, 0), (8, 7, 8, 8), (8, 0, 0, 0), (8, 0, 8, 0), (4, 4, 2, 4)],
)
def test_whatever_is_left_the_answer_begins_with_it(count, decided, learned, held, spec, normalizer, batch):
    """Where a token would be held in part, and where nothing was learned, it is guided: never left to chance."""
    family, given = make("bc", spec, normalizer).eval(), left(batch, count)
    one = batch.rows(torch.tensor([0]))
    found = answers(family, one, learned, ahead=[Ahead(given, decided)])[0]
    assert np.array_equal(found[: max(decided, held)], given[: max(decided, held)])
    free = answers(family, one, learned)[0]
    if held < spec.chunk:
        assert np.allclose(found[held:], free[held:], atol=1e-5) == (learned > 0 and decided == 0)
    with torch.inference_mode():
        assert np.array_equal(answers(family, one, learned, ahead=[Ahead(given, decided)])[0], found)


@pytest.mark.parametrize("name", [n for n in ACTING if n not in DENOISING])
def test_other_families_say_that_they_cannot(name, spec, normalizer, batch):
    family = make(name, spec, normalizer).eval()
    assert family.denoised is None
    with pytest.raises(UnsupportedQuery, match="join its chunks by ensembling"):
        answers(family, batch, ahead=[Ahead(left(batch, 4))] * len(batch))
    with pytest.raises(ConfigError, match=r"train\.prefix = 4: the family .* does not denoise"):
        check_prefix(family, 4)


def test_what_does_not_fit_is_refused_by_name(spec, normalizer, batch):
    model, obs = Model(make("bc", spec, normalizer)), observations(batch)
    for ahead, said in (
        (Ahead(left(batch, 9)), r"ahead: actions: expected float \(1 to 8, 4\), got float32 \(9, 4\)"),
        (Ahead(np.zeros((3, 5), np.float32)), r"got float32 \(3, 5\)"),
        (Ahead(np.zeros((3, 4), np.int64)), "got int64"),
        (Ahead(np.full((3, 4), np.nan, np.float32)), "not all values are finite"),
        (Ahead(left(batch, 3), 4), "decided: expected a whole number from 0 to the 3 actions given, got 4"),
        (Ahead(np.full((3, 4), 1e9, np.float32)), "deviations from what training saw"),
    ):
        with pytest.raises(ObservationError, match=said):
            model.sample(obs[0], "policy", ahead=ahead)
    with pytest.raises(ObservationError, match="3 observations need as many|need as many"):
        model.sample(obs, "policy", ahead=[Ahead(left(batch, 3))])
    with pytest.raises(ObservationError, match="takes no actions ahead"):
        joint = Model(make("unified", spec, normalizer))
        joint.sample(obs[0], "inverse", future=batch.future[0].numpy(), ahead=Ahead(left(batch, 3)))
    with pytest.raises(ConfigError, match="a chunk has 8 actions, 4 a token; choose at most 4"):
        check_prefix(model.family, 5)


@pytest.mark.parametrize("name", DENOISING)
def test_a_given_action_is_no_label(name, spec, normalizer, batch):
    """The loss of a row reads what was executed in its prefix, and labels after it alone."""
    family = make(name, spec, normalizer)
    stage = family.stages()[-1].name
    given = dataclasses.replace(batch, prefix=torch.full((len(batch),), 4))

    def loss(b: Batch) -> torch.Tensor:
        return family(b, torch.Generator().manual_seed(1), stage)["policy"]

    def changed(field: str, steps: slice) -> Batch:
        values = getattr(given, field).clone()
        values[:, steps] += 1
        return dataclasses.replace(given, **{field: values})

    first = loss(given)
    assert (first > 0).any()
    assert torch.allclose(loss(changed("action_expert", slice(0, 4))), first, atol=1e-6)
    assert not torch.allclose(loss(changed("action_expert", slice(4, 8))), first, atol=1e-4)
    assert not torch.allclose(loss(changed("action", slice(0, 4))), first, atol=1e-4)


@pytest.mark.parametrize("name", ["bc", "mot", "unified"])
def test_every_chunk_of_a_row_has_a_prefix_of_its_own(name, spec, normalizer, batch):
    """A row learns to act with given actions and without, at several noise levels and in the joint."""
    family = make(name, spec, normalizer, policy_draws=3)
    stage = family.stages()[-1].name
    assert family.problems == (3 if name == "bc" else 4)

    def losses(b: Batch) -> dict[str, torch.Tensor]:
        return family(b, torch.Generator().manual_seed(1), stage)

    def given(b: Batch, problem: int) -> Batch:
        prefix = torch.zeros(len(b), family.problems, dtype=torch.int64)
        prefix[:, problem] = 4
        return dataclasses.replace(b, prefix=prefix)

    def changed(field: str) -> Batch:
        values = getattr(batch, field).clone()
        values[:, :4] += 1
        return dataclasses.replace(batch, **{field: values})

    none, other = losses(batch), changed("action")
    assert torch.allclose(losses(other)["policy"], none["policy"], atol=1e-6)
    for draw in range(3):
        found = losses(given(batch, draw))["policy"]
        assert not torch.allclose(losses(given(other, draw))["policy"], found, atol=1e-4)
        assert not torch.allclose(losses(given(changed("action_expert"), draw))["policy"], found, atol=1e-4)
    if name != "bc":
        joint = losses(given(batch, 3))
        assert torch.equal(joint["policy"], none["policy"]) and not torch.equal(joint["action"], none["action"])


def test_half_of_the_chunks_are_given_from_one_to_the_longest(spec):
    batch = Batch.random(spec, 4000)
    steps = with_prefix(batch, 5, torch.Generator().manual_seed(0), problems=3).prefix
    assert steps.shape == (4000, 3)
    for of in steps.T:
        shares = torch.bincount(of, minlength=6) / 4000
        assert shares[0].item() == pytest.approx(0.5, abs=0.03) and len(shares) == 6
        assert shares[1:].tolist() == pytest.approx([0.1] * 5, abs=0.02)
    both = (steps > 0).sum(1)
    assert torch.bincount(both).div(4000).tolist() == pytest.approx([1 / 8, 3 / 8, 3 / 8, 1 / 8], abs=0.03)


def two_ways(spec, normalizer, prefix: int):
    """A policy of a robot that goes left or right, at random, for a whole chunk; nothing in the image says which."""
    torch.manual_seed(0)
    family = FAMILIES.get("bc").Config(width=32, depth=1, heads=2, actions_per_token=2)
    model = FAMILIES.get("bc")(family, spec, normalizer)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    g = torch.Generator().manual_seed(1)
    base = Batch.random(spec, 1)
    one = Batch.cat([base] * 32)
    mean, std = (x.view(1, 1, -1) for x in (normalizer.mean_action, normalizer.std_action))
    for _ in range(400):
        way = torch.randint(0, 2, (32, 1, 1), generator=g) * 2.0 - 1
        action = mean + std * way.expand(-1, spec.chunk, spec.action_dim)
        batch = dataclasses.replace(one, action=action, action_expert=action)
        batch = with_prefix(batch, prefix, g) if prefix else batch
        optimizer.zero_grad()
        model(batch, g)["policy"].mean().backward()
        optimizer.step()
    return Model(model.eval(), prefix=prefix), observations(base)[0], mean[0], std[0]


@pytest.mark.parametrize("prefix", [4, 0])
def test_a_trained_policy_goes_on_the_way_that_it_went(prefix, spec, normalizer):
    model, obs, mean, std = two_ways(spec, normalizer, prefix)
    way = lambda actions: (((torch.from_numpy(actions) - mean) / std)[..., 4:, :]).mean((-1, -2))  # noqa: E731
    free = way(model.sample([obs] * 40, "policy", seed=0).actions)
    assert 8 < (free > 0).sum() < 32 and (free.abs() > 0.5).float().mean() > 0.8  # either way, not the mean of both
    for side in (-1.0, 1.0):
        ahead = Ahead((mean + side * std).expand(4, -1).numpy(), 4)
        found = way(model.sample([obs] * 40, "policy", seed=0, ahead=[ahead] * 40).actions)
        assert (side * found > 0.5).float().mean() > 0.95


def test_guidance_draws_to_the_target_where_it_has_weight():
    """Data N(2, 0.5^2) in two dimensions, of which one is guided to 1: it comes near, and the other one stays."""
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(500, 1, 2, generator=g)

    def velocity(state, sigma):
        a, b, x = 1 - sigma["a"], sigma["a"], state["a"]
        return {"a": -2 + (b - a * 0.25) / (a**2 * 0.25 + b**2) * (x - 2 * a)}

    target = torch.ones(500, 1, 2)
    guide = Guide(target, torch.tensor([1.0, 0.0]).expand(500, 1, 2))
    free = flow.euler(velocity, {"a": noise}, {"a": flow.denoise(20)})["a"]
    drawn = flow.euler(velocity, {"a": noise}, {"a": flow.denoise(20)}, {"a": guide})["a"]
    assert torch.equal(drawn[..., 1], free[..., 1]) and not drawn.requires_grad
    assert (drawn[..., 0] - 1).abs().mean() < 0.2 < 0.9 < (free[..., 0] - 1).abs().mean()
    assert [guide.strength(s) for s in (0.0, 0.5, 1.0)] == [0.0, 2.0, 5.0]
