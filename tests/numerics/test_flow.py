"""The sampler on fields with known answers, and the schedules that make the five queries."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wamkit.nn.flow import denoise, euler, hold, interpolate, one_after_the_other, shift_sigma, slow, uniform_sigma
from wamkit.nn.heads import masked_mean


def gaussian_velocity(x: torch.Tensor, sigma: float, mean: float, deviation: float) -> torch.Tensor:
    """E[eps - x0 | x_sigma = x] for x0 ~ N(mean, deviation^2): linear regression of a Gaussian on a Gaussian."""
    a, b = 1 - sigma, sigma
    variance = a**2 * deviation**2 + b**2
    gain = (b - a * deviation**2) / variance
    return -mean + gain * (x - a * mean)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_exact_velocity_recovers_the_gaussian(shift):
    """With the exact velocity the flow maps noise onto the data: mean and deviation come out, in every stream."""
    g = torch.Generator().manual_seed(0)
    eps = {"action": torch.randn(4000, generator=g), "future": torch.randn(4000, generator=g)}
    law = {"action": (2.0, 0.5), "future": (-1.0, 0.2)}

    def velocity(state, sigma):
        return {k: gaussian_velocity(x, sigma[k], *law[k]) for k, x in state.items()}

    out = euler(velocity, eps, {k: denoise(200, shift) for k in eps})
    for k, (mean, deviation) in law.items():
        assert out[k].mean().item() == pytest.approx(mean, abs=0.03)
        assert out[k].std().item() == pytest.approx(deviation, rel=0.05)
        # The map is monotone and affine: each sample is where its own noise says.
        torch.testing.assert_close(out[k], mean + deviation * eps[k], atol=0.05, rtol=0.05)


def test_partial_slow_and_consecutive_schedules_recover_the_gaussian():
    """Every kind of schedule moves along the same flow: a stopped stream lies on the path, all others arrive."""
    g = torch.Generator().manual_seed(0)
    eps = {"a": torch.randn(4000, generator=g), "z": torch.randn(4000, generator=g)}
    law = {"a": (2.0, 0.5), "z": (-1.0, 0.2)}

    def velocity(state, sigma):
        return {k: gaussian_velocity(x, sigma[k], *law[k]) for k, x in state.items()}

    first, second = one_after_the_other(denoise(200, 3.0, until=0.4), denoise(100))
    assert len(first) == len(second) == 301 and first[200:] == (0.4,) * 101 and second[:200] == (1.0,) * 200
    out = euler(velocity, eps, {"z": first, "a": second})
    assert out["a"].mean().item() == pytest.approx(2.0, abs=0.03)
    assert out["z"].mean().item() == pytest.approx(0.6 * -1.0, abs=0.03)  # E[x_sigma] = (1 - sigma) E[x]
    assert out["z"].std().item() == pytest.approx(math.hypot(0.6 * 0.2, 0.4), rel=0.05)
    out = euler(velocity, eps, {"z": denoise(400), "a": slow(denoise(400), 4)})
    for k, (mean, deviation) in law.items():
        assert (out[k].mean().item(), out[k].std().item()) == pytest.approx((mean, deviation), abs=0.04)


def test_a_slow_schedule_moves_at_every_nth_step():
    assert slow(denoise(4), 2) == (1.0, 1.0, 0.5, 0.5, 0.0) and slow(denoise(5), 1) == denoise(5)
    assert slow(denoise(3), 2) == pytest.approx((1.0, 1.0, 1 / 3, 0.0))
    with pytest.raises(ValueError, match="at least one denoising step"):
        denoise(0)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_a_constant_velocity_is_integrated_exactly(steps):
    x, eps = torch.tensor([3.0, -2.0]), torch.tensor([0.5, 0.25])
    out = euler(lambda s, _: {"a": eps - x}, {"a": eps}, {"a": denoise(steps)})
    torch.testing.assert_close(out["a"], x)


def test_streams_that_hold_come_back_bit_for_bit():
    start = {"a": torch.randn(3), "z": torch.randn(3)}
    seen = []

    def velocity(state, sigma):
        seen.append(dict(sigma))
        return {"a": state["z"], "z": torch.full((3,), math.nan)}

    out = euler(velocity, start, {"a": denoise(4), "z": hold(0, 4)})
    assert torch.equal(out["z"], start["z"]) and not torch.equal(out["a"], start["a"])
    assert [s["a"] for s in seen] == [1.0, 0.75, 0.5, 0.25] and all(s["z"] == 0 for s in seen)


@given(st.integers(1, 50), st.floats(0.2, 8))
def test_schedules_start_at_noise_and_end_clean(steps, shift):
    levels = denoise(steps, shift)
    assert len(levels) == steps + 1 and levels[0] == 1.0 and levels[-1] == 0.0
    assert all(a > b for a, b in zip(levels, levels[1:], strict=False))


def test_schedules_must_agree():
    with pytest.raises(ValueError, match="one schedule each"):
        euler(lambda s, _: s, {"a": torch.zeros(1)}, {"a": denoise(2), "z": denoise(2)})
    with pytest.raises(ValueError, match="at least one"):
        denoise(0)


@given(st.integers(1, 64), st.integers(0, 2**31))
def test_noise_levels_are_stratified(count, seed):
    sigma = uniform_sigma(count, torch.Generator().manual_seed(seed))
    assert torch.equal((sigma * count).long().clamp(max=count - 1).sort().values, torch.arange(count))


def test_path_ends_are_data_and_noise():
    x, eps = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert torch.equal(interpolate(x, eps, torch.zeros(2)), x)
    torch.testing.assert_close(interpolate(x, eps, torch.ones(2)), eps)
    assert shift_sigma(torch.tensor(0.5), 3.0).item() == pytest.approx(0.75)


def test_masked_mean_divides_by_what_is_valid():
    error = torch.tensor([[[1.0], [3.0], [99.0]], [[5.0], [99.0], [99.0]], [[9.0], [9.0], [9.0]]])
    valid = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=torch.bool).unsqueeze(-1)
    assert masked_mean(error, valid).tolist() == [2.0, 5.0, 0.0]
