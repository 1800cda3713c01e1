"""Rank agreement against SciPy, the formula spelled out, a known truth, and judges that must be found out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import pearsonr, spearmanr

from wamkit.eval.metrics.rank_correlation import agreement, drop_one, mmrv, nested_bootstrap, pearson, spearman
from wamkit.types import EvaluationError

SCORES = arrays(np.float64, (2, 7), elements=st.integers(0, 8).map(lambda k: k / 8))


def outcomes(rng: np.random.Generator, rates: np.ndarray, episodes: int) -> np.ndarray:
    return rng.random((len(rates), episodes)) < rates[:, None]


def test_correlations_are_scipys():
    a, b = np.random.default_rng(0).random((2, 9))
    b[3] = b[4]
    assert pearson(a, b) == pytest.approx(pearsonr(a, b).statistic)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)


@settings(max_examples=60, deadline=None)
@given(SCORES, st.permutations(range(7)))
def test_mmrv_is_the_formula_whatever_the_order_of_policies(scores, order):
    s, r = scores
    n = len(s)
    formula = sum(max(abs(r[i] - r[j]) * ((s[i] < s[j]) != (r[i] < r[j])) for j in range(n)) for i in range(n)) / n
    assert mmrv(predicted=s, real=r) == pytest.approx(formula)
    assert mmrv(predicted=s[order], real=r[order]) == pytest.approx(formula)
    assert mmrv(predicted=r, real=r) == 0 <= formula <= np.ptp(r)
    assert mmrv(predicted=2 * s - 1, real=r) == pytest.approx(formula)  # only the order of predictions counts


def test_mmrv_ties_and_sides():
    assert mmrv(predicted=np.array([0.5, 0.5]), real=np.array([0.8, 0.5])) == pytest.approx(0.15)  # the worse one pays
    assert mmrv(predicted=np.array([0.8, 0.5]), real=np.array([0.5, 0.5])) == 0  # no gap, no violation
    s, r = np.array([0.1, 0.9, 0.5]), np.array([0.2, 0.3, 0.6])
    assert mmrv(predicted=s, real=r) == pytest.approx((0 + 0.3 + 0.3) / 3)
    assert mmrv(predicted=r, real=s) == pytest.approx((0 + 0.4 + 0.4) / 3)
    assert mmrv(predicted=-r, real=r) == pytest.approx((0.4 + 0.3 + 0.4) / 3)


def test_one_policy_that_carries_a_correlation_is_found():
    real = np.array([0.30, 0.31, 0.29, 0.30, 0.32, 0.95])
    predicted = np.array([0.52, 0.50, 0.51, 0.49, 0.50, 0.99])
    assert pearson(predicted, real) > 0.99
    without = drop_one(pearson, predicted, real)
    assert without[:5].min() > 0.99 and abs(without[5]) < 0.5
    with pytest.raises(EvaluationError, match="without policy 2: all real scores"):
        drop_one(pearson, np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.5, 0.5, 0.9, 0.5]))


def test_good_judge_flatterer_and_coin():
    rng, rates = np.random.default_rng(0), np.linspace(0.1, 0.9, 10)
    real = outcomes(rng, rates, 50)
    good = agreement(outcomes(rng, rates, 50), real, seed=0, draws=500)
    assert good.policies == 10 and good.pearson.low > 0.75 and good.mmrv.high < 0.25 and abs(good.bias) < 0.05
    assert len(good.pearson_without) == len(good.mmrv_without) == 10
    kind = agreement(outcomes(rng, 0.5 + rates / 2, 50), real, seed=0, draws=500)
    assert kind.spearman.low > 0 and kind.bias == pytest.approx(0.25, abs=0.05)
    coin = agreement(outcomes(rng, np.full(10, 0.5), 50), real, seed=0, draws=500)
    assert not coin.pearson.excludes(0) and coin.mmrv.value > good.mmrv.high
    assert agreement(real, real, seed=0, draws=50).mmrv.value == 0


def test_interval_spans_policies_and_episodes():
    rng, rates = np.random.default_rng(0), np.linspace(0.2, 0.8, 8)
    real, few, many = (outcomes(rng, rates, e) for e in (100, 10, 100))
    widths = [i.high - i.low for i in (nested_bootstrap(pearson, x, real, 0, draws=500) for x in (few, many))]
    assert widths[0] > 1.5 * widths[1]
    exact = nested_bootstrap(pearson, few.mean(1, keepdims=True), real.mean(1, keepdims=True), 0, draws=500)
    assert exact.high - exact.low > 0.01  # policies are resampled even where scores are taken as exact
    assert nested_bootstrap(pearson, few, real, 3, draws=50) == nested_bootstrap(pearson, few, real, 3, draws=50)


def test_nested_interval_covers_the_truth():
    """Policies whose true imagined and real rates correlate at 0.8; scores are 60 episodes each."""
    rng, hits = np.random.default_rng(0), 0
    for trial in range(40):
        z = rng.multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]], size=12)
        imagined, real = (outcomes(rng, np.clip(0.5 + 0.2 * z[:, k], 0, 1), 60) for k in (0, 1))
        interval = nested_bootstrap(pearson, imagined, real, trial, draws=100)
        hits += interval.low <= 0.8 <= interval.high
    assert hits >= 34, hits


def test_few_policies_know_nothing():
    real, predicted = np.array([[0.1], [0.5], [0.9]]), np.array([[0.2], [0.5], [0.8]])
    wide = nested_bootstrap(pearson, predicted, real, 0, draws=300)
    assert (wide.value, wide.low) == (pytest.approx(1.0), -1.0)  # one draw in nine holds a single policy


def test_agreements_that_cannot_be_had():
    rng = np.random.default_rng(0)
    some = rng.random((5, 20)) < 0.5
    for predicted, real, message in [
        (np.ones((5, 20), bool), some, "all predicted scores are 1"),
        (some, np.zeros((5, 20), bool), "all real scores are 0"),
        (some[:2], some[:2], "3 policies or more"),
        (some[:3], some, "one row of outcomes a policy"),
        (2.0 * some, some, r"success in \[0, 1\]"),
        (np.where(some, np.nan, 1.0), some, r"success in \[0, 1\]"),
    ]:
        with pytest.raises(EvaluationError, match=message):
            agreement(predicted, real, seed=0, draws=20)
    with pytest.raises(EvaluationError, match="not finite"):
        pearson(np.array([0.1, np.nan, 0.3]), np.array([0.1, 0.2, 0.3]))
    with pytest.raises(EvaluationError, match="2 policies or more"):
        mmrv(predicted=np.ones(1), real=np.ones(1))
