"""Scales of values, and the normaliser that uses them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wamkit.nn.normalizer import Normalizer
from wamkit.nn.scaling import LIMIT, is_constant, measured

MODES = ("mean_std", "quantiles", "min_max")


def normalizer(x: np.ndarray, how: str) -> Normalizer:
    shift, scale = map(torch.from_numpy, measured(x, how))
    return Normalizer({"action": (shift, scale)}, {"action": LIMIT} if how == "quantiles" else None)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, (12, 3), elements=st.floats(-1000, 1000, width=32)), st.sampled_from(MODES))
def test_decoding_is_the_inverse_of_encoding_within_the_limit(x, how):
    n, values = normalizer(x, how), torch.from_numpy(x)
    z = n.encode("action", values)
    inside = n.deviations("action", values) <= LIMIT if how == "quantiles" else torch.ones_like(values, dtype=bool)
    back = n.decode("action", z)
    assert torch.allclose(back[inside], values[inside], rtol=1e-5, atol=2e-3)
    assert z.abs().max() <= (12**0.5 + 1e-3 if how == "mean_std" else LIMIT)


@pytest.mark.parametrize("how", MODES)
@pytest.mark.parametrize("value", [0.0, 0.1, -0.7, 1 / 3, 12345.678, -1e-3])
def test_a_constant_comes_back_bit_for_bit(how, value):
    """Also where the mean of many equal numbers is not quite that number."""
    x = np.full((1001, 1), value, np.float32)
    n = normalizer(x, how)
    assert n.encode("action", torch.full((1, 1), 7.0)) == 0
    for z in (-3.0, 0.0, 1.0, 1e6):
        assert n.decode("action", torch.full((1, 1), z)).item() == x[0, 0]


def test_rounding_is_no_movement_and_a_small_movement_is():
    rng = np.random.default_rng(0)
    noise = rng.uniform(-1, 1, (500, 1))
    for centre, amplitude, constant in (
        (0.5, 6e-8, True),  # float32, one digit up or down
        (1000.0, 1e-4, True),  # the same far from zero
        (0.0, 1e-6, True),  # a micrometre
        (0.0, 1e-5, False),
        (1000.0, 0.01, False),
        (-3.0, 1e-4, False),
    ):
        for how in MODES:
            assert is_constant(*measured((centre + amplitude * noise).astype(np.float32), how)) == constant, how


def test_a_gripper_that_rarely_moves_keeps_both_of_its_commands():
    """It is open in all but one of 500 steps: both quantiles are the open one."""
    for rare, others in ((1.0, -1.0), (0.04, 0.0), (-1.0, 0.0)):
        x = np.full((500, 1), others, np.float32)
        x[250] = rare
        n = normalizer(x, "quantiles")
        z = n.encode("action", torch.from_numpy(x))
        assert sorted(set(z.flatten().tolist())) == [-1.0, 1.0]
        torch.testing.assert_close(n.decode("action", z), torch.from_numpy(x))
    three = np.repeat(np.float32([0, 1, -1]), (970, 22, 8))[:, None]  # -1 lies outside both quantiles
    n = normalizer(three, "quantiles")
    assert n.decode("action", n.encode("action", torch.from_numpy(three))).flatten().tolist() == three[:, 0].tolist()


def test_an_outlier_flattens_the_rest_unless_quantiles_normalise():
    x = np.random.default_rng(0).standard_normal((240, 1)).astype(np.float32)
    x[13] = 30
    rest = np.delete(x, 13, 0)
    spread = {}
    for how in MODES:
        n = normalizer(x, how)
        spread[how] = n.encode("action", torch.from_numpy(rest)).std().item()
        assert n.encode("action", torch.from_numpy(x)).abs().max() <= 16
    clean = {how: normalizer(rest, how).encode("action", torch.from_numpy(rest)).std().item() for how in MODES}
    assert spread["quantiles"] > 0.9 * clean["quantiles"]
    assert spread["mean_std"] < 0.55 * clean["mean_std"] and spread["min_max"] < 0.2 * clean["min_max"]
    assert normalizer(x, "quantiles").encode("action", torch.tensor([[30.0]])) == LIMIT


def test_weights_of_earlier_versions_do_not_hide_a_constant():
    """They hold a deviation of 1; the statistics beside them say 0."""
    n = Normalizer({"action": (torch.tensor([0.5, 0.2]), torch.tensor([0.0, 2.0]))})
    assert set(n.state_dict()) == {"mean_action", "std_action"}
    n.load_state_dict({"mean_action": torch.tensor([0.5, 0.2]), "std_action": torch.tensor([1.0, 2.0])})
    assert n.decode("action", torch.ones(1, 2)).tolist() == [[0.5, pytest.approx(2.2)]]


def test_without_rows_nothing_is_scaled():
    for how in MODES:
        shift, scale = measured(np.zeros((0, 2), np.float32), how)
        assert shift.tolist() == [0, 0] and scale.tolist() == [1, 1]
