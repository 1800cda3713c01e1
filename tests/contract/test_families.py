"""What every registered family must fulfil; a new family is tested by being registered."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from conftest import POINTS, random_batch
from wamkit.config import ConfigError
from wamkit.data.loading.windows import observations
from wamkit.families.base import FAMILIES, Family
from wamkit.inference.model import Model
from wamkit.inference.policy import Policy
from wamkit.nn import Backbone
from wamkit.nn.attention_mask import closure
from wamkit.types import NotFinite, Observation, ObservationError, Query, UnsupportedQuery

NAMES = FAMILIES.names()


def make(name: str, spec, normalizer, seed: int = 0, **options) -> Family:
    """A small model with all parameters random, so that nothing is hidden by zero initialisation."""
    cls = FAMILIES.get(name)
    spec = dataclasses.replace(spec, point_grid=POINTS if cls.needs_point_cloud else 0)
    torch.manual_seed(seed)
    model = cls(cls.Config(**{"width": 32, "depth": 2, "heads": 2} | options), spec, normalizer)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return model


def losses(model: Family, batch, seed: int = 1) -> dict[str, torch.Tensor]:
    out = {}
    for stage in model.stages():
        out |= model(batch, torch.Generator().manual_seed(seed), stage.name)
    return out


def ask(model: Family, query: Query, batch, rows: slice = slice(None), seeds=None, **kw):
    obs = observations(batch)[rows]
    given = {
        Query.FORWARD: {"actions": batch.action.numpy()[rows]},
        Query.INVERSE: {"future": batch.future.numpy()[rows]},
    }.get(query, {})
    seeds = list(range(len(batch)))[rows] if seeds is None else seeds
    return Model(model).sample(obs, query, seed=seeds, **({"steps": 3} | given | kw))


def queries() -> list[tuple[str, Query]]:
    return [(n, q) for n in NAMES for q in sorted(FAMILIES.get(n).queries)]


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_one_finite_number_a_row(name, spec, normalizer, batch):
    model, positive = make(name, spec, normalizer), set()
    for seed in range(6):  # in one draw a loss may concern no row
        out = losses(model, batch, seed)
        for key, value in out.items():
            assert value.shape == (len(batch),) and torch.isfinite(value).all(), key
        positive |= {key for key, value in out.items() if (value > 0).any()}
    assert positive == set(out)


FUTURES = {"future", "codec", "latent", "align_pixels", "align_ema", "align_pretrained"}
"""Losses that compare what is imagined with the images of the future."""


@pytest.mark.parametrize("name", [n for n in NAMES if not FAMILIES.get(n).needs_point_cloud])
def test_absent_views_are_in_no_loss_of_the_future(name, spec, normalizer, batch):
    model = make(name, spec, normalizer).eval()
    every = dataclasses.replace(batch, view_valid=torch.ones(len(batch), spec.views, dtype=torch.bool))
    for key, value in losses(model, every).items():
        assert torch.allclose(value, losses(model, batch)[key], atol=1e-5), key
    none = dataclasses.replace(every, view_valid=torch.zeros_like(every.view_valid))
    out = losses(model, none)
    for key in FUTURES & set(out):
        assert (out[key] == 0).all(), key


@pytest.mark.parametrize("name", NAMES)
def test_encoder_backbone_blocks_and_codec_are_declared(name, spec, normalizer, batch):
    model = make(name, spec, normalizer)
    assert isinstance(model.context, torch.nn.Module)
    inside = [p for block in model.blocks() for p in block.parameters()]
    names = {id(p): n for n, p in model.named_parameters()}
    assert inside and len({id(p) for p in inside}) == len(inside)
    assert {names[id(p)] for p in inside} == {n for n in names.values() if ".blocks." in n}
    assert model.backbones and set(model.backbones) == {m for m in model.modules() if isinstance(m, Backbone)}
    assert (model.codec is None) == (Model(model).reconstruct(batch) is None)
    if model.codec is not None:
        assert model.features(batch, "codec") == {} and model.features(batch, "main").keys()


@pytest.mark.parametrize(("name", "query"), queries())
def test_one_observation_has_no_batch_axis_and_a_list_has_one(name, query, spec, normalizer, batch):
    model = make(name, spec, normalizer)
    listed = ask(model, query, batch, slice(0, 1))
    given = {
        Query.FORWARD: {"actions": batch.action[0].numpy()},
        Query.INVERSE: {"future": batch.future[0].numpy()},
    }.get(query, {})
    alone = Model(model).sample(observations(batch)[0], query, seed=0, steps=3, **given)
    for field in ("actions", "future", "point_cloud"):
        one, several = getattr(alone, field), getattr(listed, field)
        assert (one is None) == (several is None)
        assert one is None or (several.shape == (1, *one.shape) and np.array_equal(one, several[0]))
    assert len(alone.memory) == len(listed.memory)


def test_actions_are_clipped_where_their_bounds_are_known(spec, normalizer, batch):
    family, obs = make("unified", spec, normalizer), observations(batch)
    free = Model(family).sample(obs, "joint", seed=0)
    bounds = [(0.9, 1.5), *[(-100.0, 100.0)] * (spec.action_dim - 1)]
    held = Model(family, action_bounds=bounds).sample(obs, "joint", seed=0)
    assert free.actions[..., 0].min() < 0.9 and free.actions[..., 0].max() > 1.5
    assert np.array_equal(held.actions[..., 0], np.clip(free.actions[..., 0], np.float32(0.9), np.float32(1.5)))
    assert np.array_equal(held.actions[..., 1:], free.actions[..., 1:]) and np.array_equal(held.future, free.future)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_of_a_stage_gets_a_finite_gradient(name, spec, normalizer, batch):
    model = make(name, spec, normalizer)
    for stage in model.stages():
        model.zero_grad(set_to_none=True)
        for seed in range(4):  # over several draws every mode occurs
            sum(v.sum() for v in model(batch, torch.Generator().manual_seed(seed), stage.name).values()).backward()
        for key, p in model.named_parameters():
            if key.startswith(stage.prefixes):
                assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0, (stage.name, key)


@pytest.mark.parametrize("name", NAMES)
def test_features_made_ahead_change_nothing(name, spec, normalizer, batch):
    """Losses are the same whether the trainer hands in the features of a frozen part, or the family computes them."""
    model = make(name, spec, normalizer)
    for stage in model.stages():
        ahead = dataclasses.replace(batch, features=model.features(batch, stage.name))
        assert all(len(v) == len(batch) and not v.requires_grad for v in ahead.features.values())
        a, b = (model(x, torch.Generator().manual_seed(1), stage.name) for x in (batch, ahead))
        assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", NAMES)
def test_losses_in_bfloat16_are_those_of_float32_but_for_rounding(name, spec, normalizer, batch):
    """Where the processor multiplies bfloat16, a family computes its losses in float32, with finite gradients."""
    model = make(name, spec, normalizer)
    exact = losses(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = losses(model, batch)
    for key, value in rounded.items():
        assert value.dtype is torch.float32, key
        torch.testing.assert_close(value, exact[key], rtol=0.1, atol=0.02)
    sum(v.sum() for v in rounded.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_influence_each_other(name, spec, normalizer, batch):
    """Perturbing row 0 leaves the losses of all other rows as they were."""
    model = make(name, spec, normalizer)
    other = dataclasses.replace(
        batch, obs=batch.obs.clone(), proprio=batch.proprio.clone(), action=batch.action.clone()
    )
    other.obs[0], other.proprio[0], other.action[0] = 255 - other.obs[0], -other.proprio[0], other.action[0] + 1
    changed = set()
    for seed in range(6):  # a loss may not concern row 0 in one draw
        before, after = losses(model, batch, seed), losses(model, other, seed)
        for key in before:
            torch.testing.assert_close(before[key][1:], after[key][1:], rtol=1e-5, atol=1e-6)
        changed |= {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == set(before)


@pytest.mark.parametrize("name", NAMES)
def test_rows_without_actions_or_imitation_are_silent(name, spec, normalizer, batch):
    """What actions such rows hold changes no loss by a bit, and their action losses are zero."""
    model = make(name, spec, normalizer)
    action_losses = [k for k in losses(model, batch) if k in ("policy", "action")]
    mute = dataclasses.replace(batch, has_action=torch.zeros(len(batch), dtype=torch.bool))
    noisy = dataclasses.replace(
        mute, action=torch.randn_like(mute.action) * 9, action_expert=torch.randn_like(mute.action) * 9
    )
    a, b = losses(model, mute), losses(model, noisy)
    for key in a:
        assert torch.equal(a[key], b[key]), key
    for key in action_losses:
        assert (a[key] == 0).all()
    off = dataclasses.replace(batch, is_demonstration=torch.zeros(len(batch), dtype=torch.bool))
    assert (losses(model, off).get("policy", torch.zeros(1)) == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_padded_steps_are_silent(name, spec, normalizer, batch):
    """Values behind a mask change no loss by a bit."""
    model = make(name, spec, normalizer)
    batch.action_valid[:, 5:] = False
    batch.frame_valid[:, 1] = False
    other = dataclasses.replace(
        batch, action=batch.action.clone(), action_expert=batch.action_expert.clone(), future=batch.future.clone()
    )
    other.action[:, 5:], other.action_expert[:, 5:], other.future[:, 1] = 9.0, -9.0, 255 - batch.future[:, 1]
    full = dataclasses.replace(
        batch,
        action_valid=torch.ones_like(batch.action_valid),
        frame_valid=torch.ones_like(batch.frame_valid),
    )
    changed = set()
    for seed in range(6):
        a, b, c = (losses(model, x, seed) for x in (batch, other, full))
        assert all(torch.equal(a[key], b[key]) for key in a)
        changed |= {key for key in a if not torch.equal(a[key], c[key])}
    assert changed and changed >= set(a) & {"policy", "action", "future"}  # a penalty on weights needs no truth


@pytest.mark.parametrize("name", NAMES)
def test_looking_back(name, spec, normalizer):
    """Earlier observations count in training and sampling, and are silent before the episode began."""
    spec = dataclasses.replace(spec, past_offsets=(-4, -2))
    model, batch = make(name, spec, normalizer), random_batch(spec, 3)
    batch.past_valid[0, 0] = False
    hidden, seen = (dataclasses.replace(batch, past=batch.past.clone()) for _ in range(2))
    hidden.past[0, 0], seen.past[0, 1] = 255 - batch.past[0, 0], 255 - batch.past[0, 1]
    a, b, c = (losses(model, x) for x in (batch, hidden, seen))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)
    for query in model.queries:
        x, y, z = (ask(model, query, part) for part in (batch, hidden, seen))
        for field in ("actions", "future"):
            if getattr(x, field) is not None:
                assert np.array_equal(getattr(x, field), getattr(y, field))
                assert not np.array_equal(getattr(x, field)[0], getattr(z, field)[0])


@pytest.mark.parametrize("name", NAMES)
def test_overfits_one_batch(name, spec, normalizer):
    batch = random_batch(spec, 4)
    model = make(name, spec, normalizer)
    for stage in model.stages():
        chosen = [p for k, p in model.named_parameters() if k.startswith(stage.prefixes)]
        optimizer = torch.optim.Adam(chosen, 3e-3)
        curve = []
        for step in range(120):
            total = sum(v.mean() for v in model(batch, torch.Generator().manual_seed(step % 8), stage.name).values())
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            curve.append(total.item())
        assert np.mean(curve[-8:]) < 0.5 * np.mean(curve[:8]), (stage.name, curve[0], curve[-1])


@pytest.mark.parametrize(("name", "query"), queries())
def test_query_returns_what_it_says(name, query, spec, normalizer, batch):
    out = ask(make(name, spec, normalizer), query, batch)
    wants_action = query in (Query.POLICY, Query.INVERSE, Query.JOINT)
    wants_future = query in (Query.VIDEO, Query.FORWARD, Query.JOINT)
    assert (out.actions is not None) == wants_action
    assert (out.future is not None) == wants_future
    if out.actions is not None:
        assert out.actions.shape == (len(batch), spec.chunk, spec.action_dim) and out.actions.dtype == np.float32
        assert np.isfinite(out.actions).all()
    if out.future is not None:
        assert out.future.shape == (len(batch), len(spec.frame_offsets), spec.views, 3, spec.height, spec.width)
        assert out.future.dtype == np.uint8
    if out.point_cloud is not None:
        assert out.point_cloud.shape == (len(batch), len(spec.frame_offsets), POINTS**2, 3)
        assert out.point_cloud.dtype == np.float32 and np.isfinite(out.point_cloud).all()


@pytest.mark.parametrize(("name", "query"), queries())
def test_same_seed_same_sample_in_any_order(name, query, spec, normalizer, batch):
    """No state hides in the model: other questions in between change nothing, and another seed changes the answer."""
    model = make(name, spec, normalizer)
    first = ask(model, query, batch)
    for other in model.queries:
        ask(model, other, batch, seeds=[99] * len(batch))
    again = ask(model, query, batch)
    different = ask(model, query, batch, seeds=[7] * len(batch))
    for field in ("actions", "future", "point_cloud"):
        a, b, c = (getattr(x, field) for x in (first, again, different))
        if a is not None:
            assert np.array_equal(a, b) and np.array_equal(a, c) == (query in model.deterministic)


@pytest.mark.parametrize("name,query", queries())
def test_more_denoising_steps_are_taken_where_they_are_asked_for(name, query, spec, normalizer, batch):
    model = make(name, spec, normalizer).eval()
    if not model.denoises(query):
        pytest.skip("no denoising steps")
    few, many = (ask(model, query, batch, slice(0, 2), steps=n) for n in (1, 3))
    wanted = [(a, b) for a, b in ((few.actions, many.actions), (few.future, many.future)) if a is not None]
    assert any(not np.array_equal(a, b) for a, b in wanted)


@pytest.mark.parametrize(("name", "query"), queries())
def test_a_row_alone_equals_the_row_in_a_batch(name, query, spec, normalizer, batch):
    model = make(name, spec, normalizer)
    together, alone = ask(model, query, batch), ask(model, query, batch, rows=slice(2, 3))
    if together.actions is not None:
        np.testing.assert_allclose(together.actions[2:3], alone.actions, rtol=1e-4, atol=1e-5)
    if together.future is not None:
        assert np.abs(together.future[2:3].astype(int) - alone.future.astype(int)).max() <= 1


@pytest.mark.parametrize("name", [n for n in NAMES if Query.FORWARD in FAMILIES.get(n).queries])
def test_forward_dynamics_depends_on_the_action(name, spec, normalizer, batch):
    model = make(name, spec, normalizer)
    a, b = ask(model, Query.FORWARD, batch), ask(model, Query.FORWARD, batch, actions=-batch.action.numpy())
    assert not np.array_equal(a.future, b.future)


@pytest.mark.parametrize("name", NAMES)
def test_unsupported_query_names_who_can(name, spec, normalizer, batch):
    model = make(name, spec, normalizer)
    for query in set(Query) - model.queries:
        with pytest.raises(UnsupportedQuery, match="unified"):
            ask(model, query, batch)


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load_gives_the_same_answers(name, spec, normalizer, batch):
    model, other = make(name, spec, normalizer, seed=0), make(name, spec, normalizer, seed=1)
    other.load_state_dict(model.state_dict())
    for query in model.queries:
        a, b = ask(model, query, batch), ask(other, query, batch)
        assert a.actions is None or np.array_equal(a.actions, b.actions)
        assert a.future is None or np.array_equal(a.future, b.future)


def wrong_observations():
    yield "images", lambda o: dataclasses.replace(o, images=None), "images are missing"
    yield "images", lambda o: dataclasses.replace(o, images=o.images.astype(np.float32)), "images: expected uint8"
    yield (
        "images",
        lambda o: dataclasses.replace(o, images=o.images[..., :16]),
        r"expected uint8 \(2, 3, 32, 32\) as in training",
    )
    yield "proprio", lambda o: dataclasses.replace(o, proprio=o.proprio[:3]), "proprio: expected float32"
    yield (
        "proprio",
        lambda o: dataclasses.replace(o, proprio=np.full_like(o.proprio, np.nan)),
        "not all values are finite",
    )
    yield "text", lambda o: dataclasses.replace(o, text=" "), "text: expected an instruction"


@pytest.mark.parametrize(("field", "spoil", "message"), list(wrong_observations()), ids=range(6))
def test_a_wrong_observation_is_named(field, spoil, message, spec, normalizer, batch):
    model = make("bc", spec, normalizer)
    good = Observation(batch.obs[0].numpy(), batch.proprio[0].numpy(), "open it")
    Model(model).sample(good, "policy")
    with pytest.raises(ObservationError, match=message):
        Model(model).sample([good, spoil(good)], "policy")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 30, "heads": 4}, r"width 30 is not a multiple of heads, 4: 28 or 32 would fit"),
        ({"width": 15, "heads": 3}, r"width 15 must be even: 14 or 16 would fit"),
        ({"width": 0}, "width = 0: must be at least 1"),
        ({"depth": -1}, "depth = -1: must be at least 1"),
        ({"heads": 0}, "heads = 0: must be at least 1"),
        ({"actions_per_token": 3}, r"window.chunk 8 is not a multiple of actions_per_token, 3: 6 or 9 would fit"),
        ({"codec_share": 1.0}, "codec_share = 1.0: must be between 0.01 and 0.99"),
        ({"denoising_steps": 0}, "denoising_steps = 0: must be at least 1"),
        ({"proprio_noise": float("nan")}, "proprio_noise = nan"),
    ],
    ids=lambda x: str(x)[:30],
)
def test_sizes_that_do_not_fit_say_what_would(name, options, message, spec, normalizer):
    cls = FAMILIES.get(name)
    if missing := set(options) - {f.name for f in dataclasses.fields(cls.Config)}:
        pytest.skip(f"{name} has no {missing}")
    with pytest.raises(ConfigError, match=message):
        cls(cls.Config(**options), spec, normalizer)


def test_numbers_that_are_not_the_robots_are_refused(spec, normalizer, batch):
    model = make("unified", spec, normalizer)
    (obs,) = observations(batch.rows(torch.tensor([0])))
    actions = batch.action[0].numpy()
    with pytest.raises(ObservationError, match="proprio: 1e.38 lies .* deviations"):
        Model(model).sample(dataclasses.replace(obs, proprio=np.full_like(obs.proprio, 1e38)), "policy")
    with pytest.raises(ObservationError, match="actions: not all values are finite"):
        Model(model).sample(obs, "forward", actions=np.full(actions.shape, 1e300))
    with pytest.raises(ObservationError, match="action: 1e.38 lies .* deviations"):
        Model(model).sample(obs, "forward", actions=np.full(actions.shape, 1e38))


def test_a_question_that_makes_no_sense_is_refused(spec, normalizer, batch):
    model = make("unified", spec, normalizer)
    (obs,) = observations(batch.rows(torch.tensor([0])))
    with pytest.raises(ObservationError, match=r"no query 'polcy' \(did you mean 'policy'\?\)"):
        Model(model).sample(obs, "polcy")
    with pytest.raises(ObservationError, match="expected a wamkit.Observation or a list of them, got NoneType"):
        Model(model).sample(None)
    for steps in (0, -1, 1.5):
        with pytest.raises(ObservationError, match="steps = "):
            Model(model).sample(obs, steps=steps)
    for seed in (-1, 0.5, "a", [[1]]):
        with pytest.raises(ObservationError, match="seed = "):
            Model(model).sample(obs, seed=seed)
    a, b = Model(model).sample(obs, seed=np.int64(3)), Model(model).sample(obs, seed=[3])
    assert np.array_equal(a.actions, b.actions)


def test_a_wrong_past_is_named(spec, normalizer):
    spec = dataclasses.replace(spec, past_offsets=(-4, -2))
    model, batch = make("bc", spec, normalizer), random_batch(spec, 1)
    (good,) = observations(batch)
    Model(model).sample(good, "policy")
    with pytest.raises(
        ObservationError, match=r"looks back at the steps \(-4, -2\), so expected 2 observations .*got 1"
    ):
        Model(model).sample(dataclasses.replace(good, past=good.past[:1]), "policy")
    earlier = dataclasses.replace(good.past[1], images=None)
    with pytest.raises(ObservationError, match="observation 0, 2 steps ago: images are missing"):
        Model(model).sample(dataclasses.replace(good, past=(None, earlier)), "policy")


def test_given_fields_are_checked(spec, normalizer, batch):
    model = make("unified", spec, normalizer)
    obs = Observation(batch.obs[0].numpy(), batch.proprio[0].numpy(), "open it")
    with pytest.raises(ObservationError, match="needs actions of shape"):
        Model(model).sample(obs, "forward")
    with pytest.raises(ObservationError, match="takes no actions"):
        Model(model).sample(obs, "policy", actions=batch.action[0].numpy())
    with pytest.raises(ObservationError, match="actions: expected floating"):
        Model(model).sample(obs, "forward", actions=np.zeros((1, 2), np.float32))
    with pytest.raises(ObservationError, match="not all values are finite"):
        Model(model).sample(obs, "forward", actions=np.full((spec.chunk, spec.action_dim), np.inf, np.float32))
    with pytest.raises(ObservationError, match="need 1 seeds"):
        Model(model).sample(obs, "policy", seed=[1, 2])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_given_and_known_hears_of_nothing_else(name, spec, normalizer):
    """The present context sees no noisy or queried token through any number of layers (the transitive closure)."""
    segments, seen = make(name, spec, normalizer).attention_layout()
    assert seen.shape == (len(segments), len(segments)) and seen.dtype is torch.bool
    reach = closure(seen)
    known = [i for i, s in enumerate(segments) if s.stream in ("context", "now", "text")]
    others = [i for i, s in enumerate(segments) if s.stream not in ("context", "now", "text", "slots")]
    assert known and not reach[known][:, others].any()


def same_answer(a, b) -> bool:
    pairs = ((getattr(a, k), getattr(b, k)) for k in ("actions", "future", "point_cloud"))
    return all((x is None) == (y is None) and (x is None or np.array_equal(x, y)) for x, y in pairs)


@pytest.mark.parametrize(("name", "query"), queries())
def test_nan_in_any_part_is_an_error_or_changes_nothing(name, query, spec, normalizer, batch):
    """Pixels and codes made of NaN look like any others, so answers are checked before they become that."""
    model, one = make(name, spec, normalizer, depth=1), slice(0, 1)
    whole, refused = ask(model, query, batch, one, steps=1), 0
    for part, values in model.named_parameters():
        kept = values.detach().clone()
        with torch.no_grad():
            values.fill_(float("nan"))
        try:
            assert same_answer(ask(model, query, batch, one, steps=1), whole), part
        except NotFinite as error:
            assert f"the query '{query}' of this '{name}': " in str(error)
            refused += 1
        with torch.no_grad():
            values.copy_(kept)
    assert refused > 3


def test_a_policy_and_an_embodiment_never_answer_with_nan(spec, normalizer, batch):
    model = Model(make("unified", spec, normalizer))
    model.family.normalizer.std_action[0] = float("inf")
    message = "the query 'policy' of this 'unified': actions: the model computed NaN or infinite values"
    with pytest.raises(NotFinite, match=message):
        Policy(model).act(observations(batch)[0])
    with pytest.raises(NotFinite, match="the query 'joint' of this 'unified': actions"):
        model.sample(observations(batch)[:2], "joint")
