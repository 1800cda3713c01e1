"""Switches that make one family several methods of the literature: each one changes what it says and nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from test_families import ask, losses, make

from conftest import random_batch
from wamkit.config import ConfigError
from wamkit.nn.attention_mask import TEACHER_FORCED, Program
from wamkit.nn.objectives import TargetConfig, sample_targets
from wamkit.types import Query


@pytest.mark.parametrize("program", [Program.JOINT, Program.VIDEO_THEN_ACTION, Program.ACTION_THEN_VIDEO])
def test_mot_imagining_before_acting(program, spec, normalizer, batch):
    """The same weights with and without imagination: actions change exactly where they may see the future."""
    plain, dreaming = (make("mot", spec, normalizer, program=program, imagine=i, policy_steps=3) for i in (False, True))
    a, b = (ask(m, Query.POLICY, batch).actions for m in (plain, dreaming))
    assert np.isfinite(b).all()
    assert np.allclose(a, b, rtol=1e-4, atol=1e-5) == (program is Program.ACTION_THEN_VIDEO)


def test_mot_asynchronous_and_partial_denoising_change_the_answer(spec, normalizer, batch):
    plain, slow = (make("mot", spec, normalizer, slow=n) for n in (1, 2))
    joint = [ask(m, Query.JOINT, batch) for m in (plain, slow)]
    assert not np.array_equal(joint[0].actions, joint[1].actions)
    assert np.array_equal(ask(plain, Query.POLICY, batch).actions, ask(slow, Query.POLICY, batch).actions)
    options = {"program": Program.VIDEO_THEN_ACTION, "imagine": True}
    whole, partial = (make("mot", spec, normalizer, partial=p, **options) for p in (0.0, 0.5))
    assert not np.array_equal(ask(whole, Query.POLICY, batch).actions, ask(partial, Query.POLICY, batch).actions)


def test_a_detached_head_teaches_the_video_expert_nothing(spec, normalizer, batch):
    """Cascaded: the policy's loss has no gradient in what imagines. Joint: it has."""
    for detach in (True, False):
        model = make("hidden_state", spec, normalizer, detach=detach)
        model(batch, torch.Generator().manual_seed(1), "head" if detach else "main")["policy"].sum().backward()
        video = [p for n, p in model.named_parameters() if n.startswith(("context", "experts.blocks.future"))]
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in video) != detach
        assert model.action.stream.head.weight.grad.abs().sum() > 0


def test_imagination_at_test_time_is_returned_with_the_actions(spec, normalizer, batch):
    off, on = (make("hidden_state", spec, normalizer, imagine=i) for i in (False, True))
    a, b, joint = ask(off, Query.POLICY, batch), ask(on, Query.POLICY, batch), ask(off, Query.JOINT, batch)
    assert a.future is None and not np.array_equal(a.actions, b.actions)
    assert np.array_equal(b.actions, joint.actions) and np.array_equal(b.future, joint.future)


def test_queries_are_keys_to_nobody_and_steps_are_causal(spec, normalizer, batch):
    """query_ar, to the bit: the policy does not hear of the future's queries, and the past does not see the present."""
    model = make("query_ar", spec, normalizer)
    policy = losses(model, batch)["policy"]
    with torch.no_grad():
        model.future.stream.queries.add_(1.0)
    after = losses(model, batch)
    assert torch.equal(after["policy"], policy)
    model = make("query_ar", dataclasses.replace(spec, past_offsets=(-4, -2)), normalizer)
    _, seen = model.attention_layout()  # now, text, -4, -2, action query, future query
    assert seen.int().tolist() == [
        [1, 1, 1, 1, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0],
    ]


def test_moving_averages_follow_and_are_saved_as_they_are(spec, normalizer, batch):
    model = make("align", spec, normalizer, decay=0.9)
    before = [p.clone() for p in model.teacher.parameters()]
    with torch.no_grad():
        for p in model.context.image.parameters():
            p.add_(1.0)
    model.after_step()
    for old, new, source in zip(before, model.teacher.parameters(), model.context.image.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * source)
    assert model.diagnostics(batch, "main")["spread_ema"] > 0


def test_several_teachers_each_have_their_loss(spec, normalizer, batch):
    model = make("align", spec, normalizer, teachers=("ema", "pixels"))
    assert {"policy", "align_ema", "align_pixels"} == set(losses(model, batch))


def test_jepa_predicts_each_frame_from_what_came_before(spec, normalizer, batch):
    """To the bit: the prediction of frame i does not hear of frame i, nor of a later transition's latents."""
    model = make("jepa", spec, normalizer)
    g = torch.Generator().manual_seed(0)
    cells, D = model.cell.shape
    s, z = torch.randn(2, 2, cells, D, generator=g), torch.randn(2, 2, 4, D, generator=g)
    predicted = model._roll(s, z)
    for later_s, later_z in ((s[:, 1:] + 1, z[:, 1:]), (s[:, 1:], z[:, 1:] + 1)):
        again = model._roll(torch.cat([s[:, :1], later_s], 1), torch.cat([z[:, :1], later_z], 1))
        assert torch.equal(predicted[:, 0], again[:, 0])
        assert not torch.equal(predicted[:, 1], again[:, 1])
    rolled = model.roll_out(batch)
    assert rolled.shape == (len(batch), 2, cells, D) and torch.isfinite(rolled).all()
    assert model.diagnostics(batch, "main")["target_std"] > 0.3


@pytest.mark.parametrize("name", ["unified", "mot"])
def test_off_expert_rows_are_silent_where_no_dynamics_are_trained(name, spec, normalizer, batch):
    """VideoVLA trains the joint alone, on data that may hold off-expert episodes."""
    model = make(name, spec, normalizer, targets=TargetConfig(shared_level=True, modes=(1.0, 0.0, 0.0, 0.0)))
    batch.is_demonstration[:3] = False
    found = losses(model, batch)
    assert all((found[k][:3] == 0).all() for k in ("policy", "action", "future")) and (found["future"][3:] > 0).all()


@pytest.mark.parametrize("name", ["unified", "mot"])
def test_one_noise_level_for_both_streams(name, spec, normalizer, batch):
    """PAD, VideoVLA: joint rows train both at one level, and a joint answer takes both down the same path."""
    joint_only = TargetConfig(shared_level=True, modes=(1.0, 0.0, 0.0, 0.0))
    model = make(name, spec, normalizer, targets=joint_only)
    drawn = sample_targets(batch, model.future, model.action, normalizer, joint_only, model.queries, torch.Generator())
    assert torch.equal(drawn.sigma["future"], drawn.sigma["action"])
    assert not torch.equal(drawn.sigma["future"], drawn.sigma["policy"])
    mixed = TargetConfig(shared_level=True)
    drawn = sample_targets(
        batch, model.future, model.action, normalizer, mixed, model.queries, torch.Generator().manual_seed(2)
    )
    given = [drawn.is_(q).flatten() for q in (Query.FORWARD, Query.VIDEO)]
    assert any(g.any() for g in given)
    assert (drawn.sigma["action"][given[0]] == 0).all() and (drawn.sigma["action"][given[1]] == 1).all()

    levels = []
    velocity = model._velocity
    model._velocity = lambda x, sigma, *rest: levels.append(sigma) or velocity(x, sigma, *rest)
    ask(model, Query.JOINT, batch)
    assert len(levels) == 3 and all(s["future"] == s["action"] for s in levels)
    with pytest.raises(ConfigError, match="program video_then_action denoises one stream after the other"):
        make(name, spec, normalizer, targets=joint_only, program=Program.VIDEO_THEN_ACTION)


DRAWN = [("bc", {}), ("unified", {"chunk_causal": True}), ("mot", {"chunk_causal": True})]
DRAWN += [("unified", {"program": p}) for p in (Program.JOINT, *TEACHER_FORCED)]


@pytest.mark.parametrize(("name", "options"), DRAWN)
def test_further_draws_estimate_the_same_loss_and_leave_the_others_alone(name, options, spec, normalizer):
    looking_back = dataclasses.replace(spec, past_offsets=(-8, -4)) if options.get("chunk_causal") else spec
    one, four = (make(name, looking_back, normalizer, policy_draws=n, proprio_noise=0.0, **options) for n in (1, 4))
    batch, seen = random_batch(looking_back, 6), {1: [], 4: []}
    with torch.no_grad():
        for seed in range(60):
            found = [m(batch, torch.Generator().manual_seed(seed), "main") for m in (one, four)]
            assert found[0].keys() == found[1].keys()
            for other in found[0].keys() - {"policy"}:
                torch.testing.assert_close(found[0][other], found[1][other])
            for n, losses in zip(seen, found, strict=True):
                seen[n].append(losses["policy"].mean().item())
    few, many = (np.array(x) for x in seen.values())
    assert abs(few.mean() - many.mean()) < 4 * np.hypot(few.std(), many.std()) / 60**0.5
    assert many.std() < 0.8 * few.std()


@pytest.mark.parametrize(("name", "options"), DRAWN[1:])
def test_rows_spared_the_joint_leave_the_expected_losses_as_they_were(name, options, spec, normalizer):
    looking_back = dataclasses.replace(spec, past_offsets=(-8, -4)) if options.get("chunk_causal") else spec
    whole, part = (
        make(name, looking_back, normalizer, joint_share=n, proprio_noise=0.0, **options) for n in (1.0, 0.4)
    )
    batch, means = random_batch(looking_back, 10), {1.0: [], 0.4: []}
    batch.is_demonstration[:] = torch.arange(10) > 1
    batch.has_action[:] = torch.arange(10) != 4
    trained = {n: torch.zeros(10) for n in ("policy", "action", "future")}
    with torch.no_grad():
        for seed in range(80):
            for share, model in zip(means, (whole, part), strict=True):
                losses = model(batch, torch.Generator().manual_seed(seed), "main")
                means[share].append([losses[n].mean().item() for n in sorted(losses)])
            trained = {n: trained[n] + (losses[n] > 0) for n in trained}
    expected, found = (np.array(x) for x in means.values())
    error = np.hypot(expected.std(0), found.std(0)) / 80**0.5
    assert (abs(expected.mean(0) - found.mean(0)) < 4 * error).all()

    both = trained["future"] + trained["action"]
    assert (trained["policy"][[0, 1, 4]] == 0).all() and (trained["policy"][[2, 3, 5, 6, 7, 8, 9]] == 80).all()
    assert (both[[0, 1, 4]] >= 80).all()  # no policy to train, so always the joint
    assert (trained["future"][[2, 3]] < 40).all() and (both[[2, 3]] > 0).all()
