"""Strategies of one optimisation step."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small_runs import SMALL, frames, same, small_model, state, trainer

from conftest import POINTS
from wamkit.families.base import FAMILIES
from wamkit.registry import load_package
from wamkit.training.metrics import read_metrics
from wamkit.training.optim import muon_matrices
from wamkit.training.precision import native_bf16
from wamkit.training.step import CpuThreads, SingleDevice, make_step
from wamkit.types import WamkitError


def test_loss_weights_scale_gradients(tmp_path):
    t, u = trainer(tmp_path / "a"), trainer(tmp_path / "b", dataclasses.replace(SMALL, weights=(("codec", 3.0),)))
    stage = t.model.stages()[0]
    for x in (t, u):
        x.strategy.begin(stage)
    batch = t.windows.batch(0)
    _, ga = t.strategy.gradients(batch, step=0, part=0, rows=8)
    _, gb = u.strategy.gradients(batch, step=0, part=0, rows=8)
    for a, b in zip(ga, gb, strict=True):
        torch.testing.assert_close(3 * a, b)


def test_in_bfloat16_threads_do_not_decide_the_result(tmp_path):
    """Six runs agree to the bit, though two threads share one process (autocast's cache once made them differ)."""
    config = dataclasses.replace(SMALL, precision="bf16", steps=6)
    runs = []
    for i in range(6):
        trainer(tmp_path / str(i), config).run()
        runs.append(state(tmp_path / str(i)))
    assert all(same(runs[0], other) for other in runs[1:])


def test_precision_follows_the_processor():
    assert native_bf16("cuda") and isinstance(native_bf16("cpu"), bool)


ONE = dataclasses.replace(SMALL, threads=1)
SINGLE = dataclasses.replace(ONE, device="cpu:0")
"""A device like any other, on which `SingleDevice` runs."""


@pytest.mark.parametrize(("optimizer", "family"), [("muon", "unified"), ("adamw", "unified"), ("adamw", "bc")])
def test_both_strategies_take_the_same_steps(tmp_path, optimizer, family):
    """Gradients are equal to the bit here; tolerances allow for sums of several gradients in another order."""
    rows, runs = [], []
    for name, config, strategy in (("threads", ONE, CpuThreads), ("single", SINGLE, SingleDevice)):
        t = trainer(tmp_path / name, dataclasses.replace(config, optimizer=optimizer), family)
        assert type(t.strategy) is strategy
        t.run()
        metrics = read_metrics(tmp_path / name / "metrics.jsonl")
        rows.append([{k: v for k, v in row.items() if k not in ("stage", "seconds", "wait")} for _, row in metrics])
        runs.append(state(tmp_path / name))
    assert len(rows[0]) == 12
    for a, b in zip(*rows, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    for name, x in runs[0].items():
        torch.testing.assert_close(x, runs[1][name], rtol=1e-5, atol=1e-6, msg=name)


def test_a_single_device_resumes_to_the_bit(tmp_path):
    trainer(tmp_path / "whole", SINGLE).run()
    t = trainer(tmp_path / "cut", SINGLE)
    save = t._save

    def stop(*args):
        save(*args)
        raise KeyboardInterrupt

    t._save = stop
    with pytest.raises(KeyboardInterrupt):
        t.run()
    trainer(tmp_path / "cut", SINGLE).run()
    assert same(state(tmp_path / "whole"), state(tmp_path / "cut"))


@pytest.mark.parametrize("config", [ONE, SINGLE], ids=["threads", "single"])
def test_only_what_a_stage_trains_moves_and_what_has_no_influence_still_decays(config):
    """A parameter of the stage that no loss depends on has a gradient of zero: weight decay moves it. Others rest."""
    config = dataclasses.replace(config, weight_decay=0.5)
    model = small_model()
    model.context.unused = torch.nn.Parameter(torch.ones(3))
    step, windows = make_step(model, config), frames().windows(model.spec, seed=0, batch_size=8)
    codec, main = model.stages()
    step.begin(main)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    result = step(windows.batch(0), 0, lr=0.1)
    assert bool(result.finite) and all(p.grad is None for p in model.parameters())
    for name, p in model.named_parameters():
        if name.startswith(codec.prefixes):
            assert torch.equal(p, before[name]) and not p.requires_grad, name
    torch.testing.assert_close(model.context.unused.detach(), torch.full((3,), 1 - 0.1 * 0.5))


def test_gradient_norm_and_clipping_are_the_same_for_both_strategies():
    """The norm is that before clipping: a tenfold loss has a tenfold norm.

    AdamW's first moment is a tenth of the clipped gradient, so it has a tenth of the largest norm allowed.
    """
    norms = []
    for config in (ONE, SINGLE):
        for factor in (1.0, 10.0):
            config = dataclasses.replace(config, optimizer="adamw", clip=1e-3, weights=(("codec", factor),))
            model = small_model()
            step, windows = make_step(model, config), frames().windows(model.spec, seed=0, batch_size=8)
            step.begin(model.stages()[0])
            norms.append(step(windows.batch(0), 0, lr=1e-3).norm.item())
            moments = [state["exp_avg"] for state in step.optimizer.parts[0].state.values()]
            assert torch.nn.utils.get_total_norm(moments).item() == pytest.approx(0.1 * 1e-3, rel=1e-5)
    assert norms[2:] == pytest.approx(norms[:2], rel=1e-6) and norms[1] == pytest.approx(10 * norms[0], rel=1e-5)


load_package("wamkit.families")


@pytest.mark.parametrize("name", FAMILIES.names())
def test_muon_moves_convolutions_and_matrices_of_blocks(name, spec, normalizer):
    """Blocks are declared. In all families here their names contain `.blocks.`, and no other name does."""
    cls = FAMILIES.get(name)
    spec = dataclasses.replace(spec, point_grid=POINTS if cls.needs_point_cloud else 0)
    model = cls(cls.Config(width=32, depth=1, heads=2), spec, normalizer)
    shapes = {n: p.ndim for n, p in model.named_parameters()}
    expected = {n for n, ndim in shapes.items() if ndim == 4 or (".blocks." in n and ndim == 2)}
    assert set(muon_matrices(model)) == expected and any(".blocks." in n for n in expected)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_a_stage_that_learns_nothing_is_refused(device, monkeypatch):
    """No gradient at all is an error, for the model would stay as it is in silence."""
    model = small_model()
    monkeypatch.setattr(model, "forward", lambda batch, *_: {"policy": torch.zeros(len(batch), requires_grad=True)})
    step = make_step(model, dataclasses.replace(SMALL, device=device))
    step.begin(model.stages()[-1])
    with pytest.raises(WamkitError, match="no parameter of the stage 'main' of 'unified' has a gradient"):
        step(frames().windows(model.spec, seed=0, batch_size=8).batch(0), 0, 1e-3)
