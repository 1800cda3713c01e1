"""`discrete`: one vocabulary, two orders, a cache that changes nothing, and decoding in rounds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from test_families import ask, losses, make

from wamkit.config import ConfigError, from_dict
from wamkit.data.loading.windows import observations
from wamkit.families.discrete import UNKNOWN, DiscreteConfig
from wamkit.inference.model import Model
from wamkit.nn.attention_mask import ACTION, FUTURE, closure
from wamkit.nn.autoencoders.frame_codec import FrameCodec
from wamkit.nn.autoencoders.future import CodeConfig
from wamkit.nn.backbones.base import Tokens, joined
from wamkit.nn.backbones.transformer import Read
from wamkit.types import Query

WAYS = [{"decode": "ar"}, {"decode": "ar", "action_mask": False}, {"decode": "parallel"}]


def test_every_token_has_one_id_in_one_table(spec, normalizer, batch):
    model = make("discrete", spec, normalizer)
    words = model.vocabulary
    ranges = [range(words.words), *(range(words.start[k], words.start[k] + words.size[k]) for k in (FUTURE, ACTION))]
    ids = [i for r in ranges for i in r] + [*words.begin.values(), words.blank]
    assert sorted(ids) == list(range(words.table.num_embeddings)) and words.head.out_features == len(ids)
    for name, codes, own in (
        (FUTURE, model.future.encode(batch), ranges[1]),
        (ACTION, model.bins(batch.action), ranges[2]),
    ):
        codes[0, 0, 0] = UNKNOWN
        assert set(model._ids(name, codes).unique().tolist()) <= {*own, words.begin[name], words.blank}


def test_actions_come_back_up_to_half_a_bin_and_what_is_clipped_is_counted(spec, normalizer, batch):
    model = make("discrete", spec, normalizer, reach=2.0, bins=101)
    x = normalizer.encode("action", batch.action)
    back = normalizer.encode("action", model.actions(model.bins(batch.action)))
    torch.testing.assert_close(back, x.clamp(-2, 2), atol=0.02 + 1e-5, rtol=0)
    assert model.diagnostics(batch, "main")["clipped"] == pytest.approx((x.abs() > 2).float().mean().item())
    assert 1 <= model.diagnostics(batch, "codec")["codes"] <= model.future.encode(batch).numel()


def test_latents_are_rounded_with_the_gradient_of_what_is_rounded():
    torch.manual_seed(0)
    codec = FrameCodec((2, 2), channels=2, levels=5)
    codec.encoder[-1].weight.data.mul_(20)
    z = codec.encode(torch.rand(4, 1, 3, 32, 32) * 2 - 1, torch.rand(4, 3, 32, 32) * 2 - 1)
    assert z.shape == (4, 1, 4, 8) and len(z.unique()) >= 5
    torch.testing.assert_close(((z + 1) * 2).round() / 2 - 1, z, atol=1e-6, rtol=0)
    assert z.abs().max() <= 1 + 1e-6
    z.sum().backward()
    assert codec.encoder[-1].weight.grad.abs().sum() > 0


def test_a_code_says_the_latents_exactly(spec, normalizer, batch):
    model = make("discrete", spec, normalizer, codes=CodeConfig(2, 6, 3))
    direct = model.future.latents.decode(model.future.latents.encode(batch), batch.obs)
    assert (Model(model).reconstruct(batch).int() - direct.int()).abs().max() <= 1


@pytest.mark.parametrize("way", WAYS[:2], ids=str)
@pytest.mark.parametrize("query", list(Query))
def test_the_cache_changes_nothing(way, query, spec, normalizer, batch, monkeypatch):
    """Trunk outputs while writing are those of one pass without a cache over the sequence that was written."""
    model = make("discrete", spec, normalizer, temperature=1.0, action_temperature=1.0, **way)
    passes, on = [], Read.on

    def spy(self, parts, at):
        y, after = on(self, parts, at)
        passes.append((joined(parts), at, y))
        return y, after

    monkeypatch.setattr(Read, "on", spy)
    ask(model, query, batch)
    x, at, y = (torch.cat([p[i] for p in passes], 0 if i == 1 else 1) for i in range(3))
    first = FUTURE if query in (Query.VIDEO, Query.INVERSE, Query.JOINT) else ACTION
    mask = model._mask(first)[at][:, at]
    with torch.inference_mode():
        (whole,), _ = model.trunk([Tokens(x, "any")], mask)
    torch.testing.assert_close(whole, y, atol=1e-5, rtol=1e-5)
    actions = model.length[ACTION] - 1 if not way.get("action_mask", True) else spec.action_dim
    if query is Query.POLICY:  # the context, then one pass for each dimension or token; no frame
        assert len(passes) == 1 + actions and at.max() < model.at[FUTURE]


def test_steps_ignore_the_actions_of_other_steps(spec, normalizer):
    """Through any number of layers, with WorldVLA's mask; without it, they hear of what was written before."""
    for masked in (True, False):
        model = make("discrete", spec, normalizer, action_mask=masked)
        reach = closure(model._mask(ACTION))
        a = slice(model.at[ACTION], model.at[FUTURE])
        step = torch.arange(model.length[ACTION]) // (1 + spec.action_dim)
        same, earlier = step.unsqueeze(1) == step, step.unsqueeze(1) > step
        expected = (same if masked else same | earlier) & torch.ones_like(same).tril()
        assert torch.equal(reach[a, a], expected)
        assert reach[model.at[FUTURE] :, a].all() and not closure(model._mask(FUTURE))[model.at[FUTURE] :, a].any()


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_what_is_written_first_is_the_marginal_itself(way, spec, normalizer, batch):
    options = {"temperature": 1.0, "policy_steps": 3} | way
    cot, world = (make("discrete", spec, normalizer, joint=order, **options) for order in ("cot", "world"))
    a, b = ask(cot, Query.JOINT, batch), ask(world, Query.JOINT, batch)
    assert (a.future != ask(cot, Query.VIDEO, batch).future).mean() < 1e-3
    np.testing.assert_allclose(b.actions, ask(cot, Query.POLICY, batch).actions, atol=1e-5)
    assert not np.array_equal(a.actions, b.actions) and not np.array_equal(a.future, b.future)


def test_sampling_follows_the_probabilities(spec, normalizer):
    model = make("discrete", spec, normalizer, codes=CodeConfig(2, 2, 2))
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])
    words = model.vocabulary
    words.head.weight.data.zero_()
    words.head.bias.data[words.start[FUTURE] : words.start[FUTURE] + 4] = 2 * p.log()
    u = (torch.arange(1000).unsqueeze(0) + 0.5) / 1000
    codes, _, sure = words.choose(FUTURE, torch.zeros(1, 1000, 32), u, 2.0)
    assert torch.bincount(codes.flatten()).tolist() == [100, 200, 300, 400]
    torch.testing.assert_close(sure[0, [0, 999]], torch.tensor([0.1, 0.4]))


def test_the_answer_at_temperature_0_is_the_mean(spec, normalizer):
    model = make("discrete", spec, normalizer, bins=5)
    words = model.vocabulary
    words.head.weight.data.zero_()
    words.head.bias.data[words.start[ACTION] :][:5] = torch.tensor([0.5, 1e-9, 1e-9, 0.25, 0.25]).log()
    codes, value, _ = words.choose(ACTION, torch.zeros(1, 1, 32), torch.zeros(1, 1), 0.0, mean=True)
    assert codes.item() == 2 and value.item() == pytest.approx(1.75)  # 0 * 0.5 + 3 * 0.25 + 4 * 0.25


def test_rounds_fill_in_all_slots_and_keep_what_they_wrote(spec, normalizer, batch, monkeypatch):
    model = make("discrete", spec, normalizer, decode="parallel", temperature=1.0)
    states, table = [], model.vocabulary.table.forward
    monkeypatch.setattr(model.vocabulary.table, "forward", lambda ids: states.append(ids.clone()) or table(ids))
    Model(model).sample(observations(batch)[:1], "joint", seed=0, steps=5)
    blank, L = model.vocabulary.blank, model.length[FUTURE]
    future = [s for s in states if s.shape[-1] == L]
    left = [(s == blank).sum().item() for s in future]
    assert left == [int(L * np.cos(np.pi / 2 * k / 5) + 1e-9) for k in range(6)] and left[-1] == 0
    for before, after in zip(future, future[1:], strict=False):
        assert torch.equal(before[before != blank], after[before != blank])


def test_only_blanks_are_trained_in_parallel(spec, normalizer, batch):
    """A row that is shown all of its first modality has no loss there, and one in the other."""
    model = make("discrete", spec, normalizer, decode="parallel", clean=1.0, frames_first=1.0)
    out = losses(model, batch)
    assert (out["future"] == 0).all() and (out["action"] > 0).any() and (out["policy"] == 0).all()
    model = make("discrete", spec, normalizer, decode="parallel", clean=0.0, frames_first=1.0)
    assert (losses(model, batch)["future"] > 0).any()


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_rows_are_evidence_for_what_they_show(way, spec, normalizer, batch):
    """Off-expert rows: forward dynamics (actions first) and inverse dynamics (frames first). Without actions: video."""
    off = dataclasses.replace(batch, is_demonstration=torch.zeros(len(batch), dtype=torch.bool))
    frames, actions = (make("discrete", spec, normalizer, frames_first=f, clean=0.0, **way) for f in (1.0, 0.0))
    a, b = losses(frames, off), losses(actions, off)
    assert (a["future"] == 0).all() and (a["action"] > 0).any()
    assert (b["policy"] == 0).all() and (b["future"] > 0).any() and (b["action"] == 0).all()
    mute = dataclasses.replace(batch, has_action=torch.zeros(len(batch), dtype=torch.bool))
    out = actions(mute, torch.Generator().manual_seed(0))
    assert (out["future"] > 0).any()
    sum(v.sum() for v in out.values()).backward()
    rows = slice(actions.vocabulary.start[ACTION], None)
    assert actions.place_action.grad is None or (actions.place_action.grad == 0).all()
    assert (actions.vocabulary.head.weight.grad[rows] == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codes": {"cell": 1, "numbers": 6}}, r"cell \* numbers = 6: must be a multiple of 4 .*, 8 for example"),
        ({"codes": {"levels": 17}}, r"17 \*\* 4 codes: must be at most 65536"),
        ({"codes": {"levels": 1}}, "levels = 1: must be at least 2"),
        ({"bins": 1}, "bins = 1: must be at least 2"),
        ({"temperature": -1.0}, "temperature = -1.0: must be at least 0"),
        ({"frames_first": 1.5}, "frames_first = 1.5: must be between 0 and 1"),
    ],
)
def test_what_makes_no_vocabulary_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(DiscreteConfig, options)
