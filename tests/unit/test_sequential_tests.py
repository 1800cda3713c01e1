"""Evidence across tasks, seeds and time: closed forms, SciPy, coverage under a known truth, and the edges."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import betabinom, binom, mannwhitneyu, trim_mean

from wamkit.eval.metrics.intervals import clopper_pearson, wilson
from wamkit.eval.metrics.sequential_tests import (
    PairedEProcess,
    episodes_needed,
    iqm,
    log_e_value,
    mean_success,
    outcome_tables,
    probability_of_improvement,
)
from wamkit.types import EvaluationError


def paired_outcomes(rng, shape, p_first, p_second, correlation):
    """Two bool arrays with these rates, whose entries correlate pairwise (Pearson)."""
    both = p_first * p_second + correlation * math.sqrt(p_first * (1 - p_first) * p_second * (1 - p_second))
    u = rng.random(shape)
    return u < p_first, (u < both) | ((u >= p_first) & (u < p_first + p_second - both))


# --- across tasks and training seeds


def test_records_become_tables():
    task, train, state = ["b", "b", "a", "a"], [1, 0, 0, 1], [7, 7, 3, 3]
    tables = outcome_tables(task, train, state, np.array([True, False, True, True]))
    assert list(tables) == ["b", "a"] and tables["b"].tolist() == [[0.0], [1.0]] and tables["a"].shape == (2, 1)
    for keep, message in [([0, 1, 2], "1 episodes are missing"), ([0, 0, 1], "repeat"), ([], "at least one")]:
        task_k, train_k, state_k = ([column[i] for i in keep] for column in (task, train, state))
        with pytest.raises(EvaluationError, match=message):
            outcome_tables(task_k, train_k, state_k, np.ones(len(keep), bool))


def test_fixed_tasks_with_one_run_match_the_binomial_spread():
    easy, hard = np.arange(200)[None] < 180, np.arange(200)[None] < 60
    interval = mean_success({"easy": easy, "hard": hard}, seed=0)
    spread = 1.96 * math.sqrt((0.9 * 0.1 + 0.3 * 0.7) / 200) / 2
    assert interval.value == pytest.approx(0.6)
    assert (interval.low, interval.high) == pytest.approx((0.6 - spread, 0.6 + spread), abs=0.006)
    pooled = wilson(240, 400)  # ignores that tasks differ, which stratification takes out
    assert interval.high - interval.low < pooled.high - pooled.low
    assert interval == mean_success({"easy": easy, "hard": hard}, seed=0)


def test_new_tasks_and_new_training_seeds_widen_the_interval():
    rng = np.random.default_rng(0)
    rates = rng.beta(2, 2, size=30)
    one_run = {str(k): rng.random((1, 20)) < p for k, p in enumerate(rates)}
    fixed, new = (mean_success(one_run, seed=0, new_tasks=n) for n in (False, True))
    assert new.value == fixed.value
    assert new.high - new.low > 1.5 * (fixed.high - fixed.low)
    lucky = np.array([[0.3], [0.6], [0.9]])  # three training seeds that differ more than reset states do
    runs = {str(k): rng.random((3, 20)) < lucky for k in range(10)}
    alone = mean_success({k: t.reshape(1, -1) for k, t in runs.items()}, seed=0)
    nested = mean_success(runs, seed=0)
    assert nested.high - nested.low > 3 * (alone.high - alone.low)


def test_training_seeds_that_share_reset_states_do_not_multiply_them():
    """Four runs that fail on the same reset states know no more of new ones than one run does."""
    states = np.random.default_rng(0).random((1, 40)) < 0.5
    one, four = (mean_success({"t": states.repeat(s, 0)}, seed=0) for s in (1, 4))
    assert four.high - four.low == pytest.approx(one.high - one.low, rel=0.15)


def test_intervals_cover_the_truth():
    rng, covered = np.random.default_rng(1), {False: 0, True: 0}
    for trial in range(150):
        rates = rng.beta(4, 2, size=25)
        outcomes = {str(k): rng.random((1, 15)) < p for k, p in enumerate(rates)}
        for new_tasks, truth in ((False, rates.mean()), (True, 4 / 6)):
            interval = mean_success(outcomes, trial, new_tasks=new_tasks, draws=500)
            covered[new_tasks] += interval.low <= truth <= interval.high
    assert all(0.89 <= hits / 150 <= 1.0 for hits in covered.values()), covered


def test_clean_sweeps_are_not_certain():
    sweep = {k: np.ones((3, 20), bool) for k in "abcd"}
    assert mean_success(sweep, seed=0) == clopper_pearson(80, 80)
    assert mean_success(sweep, seed=0, new_tasks=True) == clopper_pearson(4, 4)
    assert mean_success({k: ~t for k, t in sweep.items()}, seed=0) == clopper_pearson(0, 80)
    mixed = mean_success({"a": sweep["a"], "b": ~sweep["b"]}, seed=0)
    assert mixed.value == 0.5 and not math.isnan(mixed.low)


@pytest.mark.parametrize(
    ("outcomes", "new_tasks", "message"),
    [
        ({}, False, "need tasks"),
        ({"a": np.ones((1, 5)), "b": np.ones((2, 5))}, False, "one number of training seeds"),
        ({"a": np.ones((1, 1))}, False, "one reset state"),
        ({"a": np.ones((1, 5))}, True, "one task says nothing"),
        ({"a": np.full((1, 5), 2.0)}, False, "in \\[0, 1\\]"),
        ({"a": np.full((1, 5), np.nan)}, False, "in \\[0, 1\\]"),
        ({"a": np.ones(5)}, False, "outcomes are a table"),
    ],
)
def test_means_that_cannot_be_had(outcomes, new_tasks, message):
    with pytest.raises(EvaluationError, match=message):
        mean_success(outcomes, 0, new_tasks=new_tasks)


def test_iqm_is_scipys_trimmed_mean_and_shrugs_off_an_outlier():
    rng = np.random.default_rng(0)
    scores = rng.normal(0.5, 0.1, (5, 12))
    interval = iqm(scores, seed=0, draws=1000)
    assert interval.value == pytest.approx(trim_mean(scores.ravel(), 0.25))
    assert interval.low < interval.value < interval.high
    scores[0, 0] = 1e6
    assert iqm(scores, seed=0, draws=100).value == pytest.approx(interval.value, abs=0.02)
    with pytest.raises(EvaluationError, match="one training seed"):
        iqm(scores[:1], seed=0)


def test_probability_of_improvement_is_mann_whitney():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 6, (7, 3)) / 5, rng.integers(0, 5, (9, 3)) / 5
    u = [mannwhitneyu(first[:, k], second[:, k]).statistic / 63 for k in range(3)]
    forth, back = probability_of_improvement(first, second, seed=0), probability_of_improvement(second, first, seed=0)
    assert forth.value == pytest.approx(np.mean(u)) == pytest.approx(1 - back.value)
    assert forth.low < forth.value < forth.high
    assert probability_of_improvement(first, first, seed=0).value == 0.5
    same = np.ones((3, 2))
    assert probability_of_improvement(same, same, seed=0).value == 0.5
    won = probability_of_improvement(first + 2, second, seed=0)
    least = 1 - clopper_pearson(0, 7).high  # of 7 training seeds: that all draws agree is no certainty
    assert (won.value, won.low, won.high) == (1.0, pytest.approx(least), 1.0) and won.excludes(0.5)
    with pytest.raises(EvaluationError, match="3 and 2 tasks"):
        probability_of_improvement(first, second[:, :2], seed=0)


# --- while episodes come in


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.floats(0.5, 8))
def test_e_value_is_the_beta_binomial_over_a_fair_coin(w, l, prior):  # noqa: E741
    n = w + l
    expected = betabinom.logpmf(w, n, prior, prior) - binom_log(n, w) + n * math.log(2)
    assert float(log_e_value(w, l, prior)) == pytest.approx(expected, abs=1e-6)
    assert log_e_value(w, l, prior) == log_e_value(l, w, prior)


def binom_log(n, k):
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def test_e_value_is_a_fair_bet_between_equals():
    """Its expectation is exactly 1 after any number of discordant pairs."""
    for n in (1, 7, 40):
        w = np.arange(n + 1)
        chance = np.exp([binom_log(n, k) - n * math.log(2) for k in w])
        assert np.exp(log_e_value(w, n - w)) @ chance == pytest.approx(1.0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60), st.data())
def test_pairs_one_by_one_or_at_once(pairs, data):
    cut = data.draw(st.integers(0, len(pairs)))
    table = np.array(pairs, bool).reshape(-1, 2)
    at_once = PairedEProcess().update(table[:, 0], table[:, 1])
    in_two = PairedEProcess().update(table[:cut, 0], table[:cut, 1]).update(table[cut:, 0], table[cut:, 1])
    one_by_one, peak = PairedEProcess(), 1.0
    for first, second in pairs:
        one_by_one = one_by_one.update(first, second)
        peak = max(peak, one_by_one.e)
    assert at_once == in_two == one_by_one and at_once.pairs == len(pairs)
    assert at_once.p_value == pytest.approx(1 / peak) and at_once.decided == (peak >= 20)
    mirrored = PairedEProcess().update(table[:, 1], table[:, 0])
    assert mirrored.e == at_once.e and {mirrored.winner, at_once.winner} in ({None}, {"first", "second"})


def test_a_decision_stays():
    won = PairedEProcess().update(np.ones(8, bool), np.zeros(8, bool))
    assert won.winner == "first" and won.e == pytest.approx(2**8 / 9) and won.episodes_left() == 0
    assert not PairedEProcess().update(np.ones(7, bool), np.zeros(7, bool)).decided
    later = won.update(np.zeros(40, bool), np.ones(40, bool))
    assert later.winner == "first" and later.p_value <= won.p_value < 0.05
    assert PairedEProcess(alpha=0.2).update(np.ones(5, bool), np.zeros(5, bool)).decided


def test_pairs_that_agree_say_nothing():
    for outcome in (True, False):
        test = PairedEProcess().update(np.full(500, outcome), np.full(500, outcome))
        assert (test.e, test.p_value, test.winner, test.episodes_left()) == (1.0, 1.0, None, None)
    assert PairedEProcess().update(True, True).pairs == 1
    assert PairedEProcess().episodes_left() is None


def test_peeking_at_equals_is_wrong_at_most_one_time_in_twenty():
    """4000 comparisons of equal policies, looked at after each of 1000 episodes: e-values hold, McNemar does not."""
    rng = np.random.default_rng(0)
    signs = rng.choice(np.array([0, 0, 0, 1, -1], np.int16), (4000, 1000))  # 40 % of pairs discordant
    w, l = np.cumsum(signs == 1, 1, dtype=np.int16), np.cumsum(signs == -1, 1, dtype=np.int16)  # noqa: E741
    wrong = (log_e_value(w, l).max(1) >= math.log(20)).mean()
    assert wrong <= 0.05 and wrong > 0.01, wrong
    exact = binom.ppf(0.025, np.arange(1001), 0.5)  # fewer wins or losses than this: McNemar's p is below 5 %
    peeked = (np.minimum(w, l) < exact[w + l]).any(1).mean()
    assert peeked > 0.2, peeked


@pytest.mark.parametrize(
    ("rates", "correlation", "low", "high"), [((0.5, 0.7), 0.3, 45, 85), ((0.7, 0.8), 0.5, 110, 170)]
)
def test_power_and_forecast_agree_with_simulation(rates, correlation, low, high):
    rng = np.random.default_rng(0)
    first, second = paired_outcomes(rng, (1500, 700), *rates, correlation)
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] == pytest.approx(correlation, abs=0.01)
    decided = log_e_value(np.cumsum(first & ~second, 1), np.cumsum(second & ~first, 1)) >= math.log(20)
    stop = np.where(decided.any(1), decided.argmax(1) + 1, 10_000)
    assert low <= np.median(stop) <= high, np.median(stop)
    for power in (0.5, 0.8):
        forecast = episodes_needed(*rates, correlation=correlation, power=power)
        assert (stop <= forecast).mean() == pytest.approx(power, abs=0.035)
    right = [PairedEProcess().update(a, b).winner == "second" for a, b in zip(first[:100], second[:100], strict=True)]
    assert np.mean(right) > 0.97
    assert episodes_needed(*rates) > episodes_needed(*rates, correlation=correlation)


def test_forecast_from_what_has_been_seen():
    rng = np.random.default_rng(0)
    order = np.arange(60)
    seen = PairedEProcess().update((order < 6) | (order >= 20), order >= 6)
    assert (seen.first_only, seen.second_only, seen.pairs, seen.decided) == (6, 14, 60, False)
    left = seen.episodes_left()
    more_first = rng.random((2000, left))
    win, loss = seen.first_only / 60, seen.second_only / 60
    w = seen.first_only + np.cumsum(more_first < win, 1)
    l = seen.second_only + np.cumsum((more_first >= win) & (more_first < win + loss), 1)  # noqa: E741
    assert (log_e_value(w, l).max(1) >= math.log(20)).mean() == pytest.approx(0.8, abs=0.035)
    assert seen.episodes_left(0.5) < left < seen.episodes_left(0.95)


def test_forecast_edges():
    assert episodes_needed(1.0, 0.0) == 8  # 2^8 / 9 is the first to pass 20
    assert episodes_needed(0.9, 0.5) < episodes_needed(0.9, 0.7) < episodes_needed(0.9, 0.8)
    assert episodes_needed(0.5, 0.7) == episodes_needed(0.7, 0.5)
    for call, message in [
        (lambda: episodes_needed(0.5, 0.5), "different success rates"),
        (lambda: episodes_needed(0.5, 1.2), "different success rates"),
        (lambda: episodes_needed(0.1, 0.9, correlation=0.9), "allow correlations in"),
        (lambda: episodes_needed(0.5, 0.502), "so near 1/2"),
        (lambda: episodes_needed(0.5, 0.7, power=1.0), "power lies"),
        (lambda: PairedEProcess(alpha=0.0), "alpha"),
        (lambda: PairedEProcess().update(np.ones(3), np.ones(3)), "bool outcomes"),
        (lambda: PairedEProcess().update(np.ones(3, bool), np.ones(2, bool)), "bool outcomes"),
    ]:
        with pytest.raises(EvaluationError, match=message):
            call()
