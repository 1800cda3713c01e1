"""Intervals and tests against published figures, exact coverage and planted effects."""

import math

import numpy as np
import pytest
from scipy.stats import binom, fisher_exact
from scipy.stats import t as student

from wamkit.eval.metrics.intervals import (
    barnard,
    bootstrap_ratio,
    clopper_pearson,
    clustered_median,
    holm,
    mcnemar,
    mean_rate,
    paired_difference,
    paired_ratio,
    percentile_interval,
    sign_flip,
    two_sample_ratio,
    wilson,
)
from wamkit.types import UNDEFINED, EvaluationError, Interval


def test_wilson_known_answers():
    for successes, trials, low, high in [
        (49, 50, 0.895, 0.996),
        (490, 500, 0.964, 0.989),
        (0, 20, 0.0, 0.161),
        (20, 20, 0.839, 1.0),
    ]:
        interval = wilson(successes, trials)
        assert interval.value == successes / trials
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=6e-4)


def test_clopper_pearson_known_answer_and_guarantee():
    assert clopper_pearson(0, 10).high == pytest.approx(1 - 0.025**0.1, abs=1e-9)
    trials, rates = 10, np.linspace(0.01, 0.99, 99)
    for make, at_least in [(clopper_pearson, 0.95), (wilson, 0.83)]:
        intervals = [make(k, trials) for k in range(trials + 1)]
        coverage = [
            sum(binom.pmf(k, trials, p) for k, i in enumerate(intervals) if i.low <= p <= i.high) for p in rates
        ]
        assert min(coverage) >= at_least


@pytest.mark.parametrize("bad", [(3, 2), (-1, 5), (0, 0)])
def test_rates_that_are_none(bad):
    with pytest.raises(EvaluationError, match="not a rate"):
        wilson(*bad)


def test_bootstrap_is_seeded_and_covers():
    rng, hits = np.random.default_rng(0), 0
    for trial in range(200):
        below = rng.uniform(1, 2, 40)
        above = 0.5 * below + rng.normal(0, 0.1, 40)
        interval = bootstrap_ratio(above, below, np.arange(40), seed=trial, draws=1000)
        hits += interval.low <= 0.5 <= interval.high
    assert 0.90 <= hits / 200 <= 0.99
    first, again, other = (bootstrap_ratio(above, below, np.arange(40), seed=s, draws=1000) for s in (1, 1, 2))
    assert first == again != other


def test_bootstrap_resamples_episodes_not_windows():
    rng = np.random.default_rng(0)
    per_episode = rng.normal(1, 0.5, 20)
    windows, episode = per_episode.repeat(50), np.arange(20).repeat(50)
    clustered = bootstrap_ratio(windows, np.ones(1000), episode, seed=0)
    naive = bootstrap_ratio(windows, np.ones(1000), np.arange(1000), seed=0, draws=2000)
    assert clustered.value == pytest.approx(per_episode.mean())
    errors = per_episode.std(ddof=1) / math.sqrt(20), windows.std() / math.sqrt(1000)
    students = [2 * student.ppf(0.975, n - 1) * e for n, e in zip((20, 1000), errors, strict=True)]
    for interval, width, more in zip((clustered, naive), students, (1.15, 1.05), strict=True):
        assert width * 0.95 < interval.high - interval.low < width * more


def test_bootstrap_pools_rather_than_averages_ratios():
    assert bootstrap_ratio(
        np.array([1.0, 9.0]), np.array([1.0, 99.0]), np.array([0, 1]), seed=0
    ).value == pytest.approx(0.1)


def test_bootstrap_edges():
    one = bootstrap_ratio(np.array([1.0, 2.0]), np.array([2.0, 4.0]), np.array([7, 7]), seed=0)
    assert (one.value, one.low, one.high) == (0.5, -math.inf, math.inf) and not one.excludes(1)
    sparse = bootstrap_ratio(np.ones(3), np.array([0.0, 0.0, 1.0]), np.arange(3), seed=0)
    assert sparse.high == math.inf and not math.isnan(sparse.low)
    assert not UNDEFINED.excludes(0) and UNDEFINED.undefined
    for top, bottom, message in [
        ([1.0], [0.0], "sums to 0"),
        ([np.nan], [1.0], "not finite"),
        ([1.0, 2.0], [1.0], "equally many"),
        ([], [], "at least one"),
    ]:
        with pytest.raises(EvaluationError, match=message):
            bootstrap_ratio(np.array(top), np.array(bottom), np.arange(len(top)), seed=0)


def test_pairing_beats_not_pairing():
    rng = np.random.default_rng(0)
    hardness = rng.lognormal(0, 2, 60)  # windows differ a lot; the effect of 20 % does not
    error, reference, episode = 0.8 * hardness, hardness * rng.uniform(0.95, 1.05, 60), np.arange(60)
    paired = paired_ratio(error, reference, episode, seed=0)
    assert paired.excludes(1) and paired.value == pytest.approx(0.8, abs=0.05)
    assert not paired_ratio(error, rng.permutation(reference), episode, seed=0).excludes(1)
    assert not paired_ratio(reference, reference, episode, seed=0).excludes(1)
    with pytest.raises(EvaluationError, match="negative"):
        paired_ratio(-error, reference, episode, seed=0)


def test_signs_of_states_are_flipped_as_a_whole():
    """With one seed it is McNemar's test; states that go alike in three seeds are no more evidence than in one."""
    first, second = np.array([1, 1, 1, 1, 1, 0, 0, 1], bool), np.array([0, 0, 0, 0, 0, 1, 0, 1], bool)
    apart = first.astype(int) - second
    assert sign_flip(apart) == pytest.approx(mcnemar(first, second).p_value) == pytest.approx(14 / 64)
    assert sign_flip(3 * apart) == sign_flip(apart) and sign_flip(np.zeros(5, int)) == 1.0
    assert sign_flip(np.array([2, 1])) == 0.5  # of -3, -1, 1, 3 the first and the last are as far from 0
    rng = np.random.default_rng(0)
    found = [sign_flip(3 * rng.integers(-1, 2, 20)) for _ in range(400)]
    assert np.mean(np.array(found) < 0.05) < 0.05


@pytest.mark.parametrize("clusters", [4, 5, 6, 7])
def test_intervals_of_a_few_clusters_cover_and_stay_of_use(clusters):
    """By the bootstrap-t, which is for more, those of five reached from a hundredth to a hundred times the ratio."""
    rng, hits, widths = np.random.default_rng(clusters), [], []
    for seed in range(400):
        hard = rng.lognormal(0, 0.5, clusters) * rng.integers(3, 8, clusters)
        error = 0.8 * hard * rng.lognormal(0, 0.4, clusters)
        found = paired_ratio(error, hard * rng.lognormal(0, 0.4, clusters), np.arange(clusters), seed, draws=10)
        hits.append(found.low <= 0.8 <= found.high)
        widths.append(found.high / found.low)
    assert 0.93 < np.mean(hits) < 0.99 and np.median(widths) < 12
    one = paired_ratio(np.eye(clusters)[0], np.ones(clusters), np.arange(clusters), 0)
    assert (one.low, one.high) == (0.0, np.inf)


def test_a_ratio_of_two_samples_covers_the_true_one():
    rng, hits, true = np.random.default_rng(0), 0, 3.0

    def sample(clusters: int, mean: float):
        cluster = np.repeat(np.arange(clusters), 20)
        return mean * np.exp(rng.normal(-0.08, 0.4, clusters))[cluster] * rng.exponential(1, len(cluster)), cluster

    for _ in range(400):
        found = two_sample_ratio(*sample(6, true), *sample(20, 1.0))
        hits += found.low <= true <= found.high
    assert hits / 400 == pytest.approx(0.94, abs=0.03) and found.high / found.low < 4
    one = two_sample_ratio(*sample(1, true), *sample(20, 1.0))
    assert (one.low, one.high) == (0.0, np.inf)
    with pytest.raises(EvaluationError, match="positive means"):
        two_sample_ratio(np.zeros(3), np.arange(3), np.ones(3), np.arange(3))


def test_mcnemar_known_answers():
    first = np.array([True] * 8 + [False] * 2 + [True] * 30)
    second = np.array([False] * 8 + [True] * 2 + [True] * 30)
    result = mcnemar(first, second)
    assert (result.first_only, result.second_only) == (8, 2)
    assert result.p_value == pytest.approx(2 * binom.cdf(2, 10, 0.5)) == pytest.approx(0.109375)
    assert mcnemar(second, first).p_value == pytest.approx(result.p_value)
    assert mcnemar(first, first).p_value == 1.0
    with pytest.raises(EvaluationError, match="bool vectors"):
        mcnemar(first.astype(int), second)


def test_paired_difference_known_answer_and_coverage():
    first, second = np.array([True] * 6 + [False] * 14), np.array([True] * 4 + [False] * 10 + [True] * 6)
    found = paired_difference(first, second)  # 2 lost, 6 gained of 20: (7 - 3) / 22 and its adjusted Wald half width
    half = 1.959964 * math.sqrt((3 / 22 + 7 / 22 - (4 / 22) ** 2) / 22)
    assert found.value == 0.2 and (found.low, found.high) == pytest.approx((4 / 22 - half, 4 / 22 + half))
    backwards = paired_difference(second, first)
    assert (backwards.value, backwards.low, backwards.high) == pytest.approx((-0.2, -found.high, -found.low))
    same = paired_difference(first, first)
    assert same.value == 0 and same.low < 0 < same.high and same.high == -same.low
    rng = np.random.default_rng(0)
    for n, lost, gained in [(20, 0.2, 0.0), (20, 0.1, 0.1), (80, 0.3, 0.05)]:
        draws = rng.multinomial(n, [lost, gained, 1 - lost - gained], 1000)
        covered = 0
        for x, y, _ in draws:
            a, b = np.zeros(n, bool), np.zeros(n, bool)
            a[:x], b[n - y :] = True, True
            found = paired_difference(a, b)
            covered += found.low <= gained - lost <= found.high
        assert covered / 1000 > 0.93, (n, lost, gained)
    with pytest.raises(EvaluationError, match="0 pairs"):
        paired_difference(first[:0], first[:0])


def test_barnard_known_answers():
    assert barnard(7, 15, 12, 15) == pytest.approx(0.0681534, abs=1e-5)  # Mato and Andres 1997, SciPy's example
    assert barnard(7, 15, 12, 15) == pytest.approx(barnard(12, 15, 7, 15))
    assert barnard(5, 5, 0, 5) == pytest.approx(2 * 0.5**10, rel=1e-6)  # the extreme tables at the common rate 1/2
    assert barnard(0, 9, 0, 4) == barnard(9, 9, 4, 4) == barnard(1, 1, 1, 1) == 1.0
    assert barnard(7, 15, 12, 15) < fisher_exact([[7, 12], [8, 3]]).pvalue
    for bad in [(3, 2, 0, 1), (0, 0, 1, 1)]:
        with pytest.raises(EvaluationError, match="not a rate"):
            barnard(*bad)


def test_holm_known_answer_and_guarantee():
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.4])).tolist() == [0.4] and holm(np.array([0.9, 0.8])).max() == 1.0
    p_values = np.random.default_rng(0).random((4000, 6))
    false_claims = np.mean([(holm(p) <= 0.05).any() for p in p_values])
    assert false_claims == pytest.approx(1 - (1 - 0.05 / 6) ** 6, abs=0.01)
    for bad in ([], [0.5, 1.2], [np.nan]):
        with pytest.raises(EvaluationError, match="p-values in"):
            holm(np.array(bad))


def test_undefined_draws_widen_a_percentile_interval():
    draws = np.concatenate([np.linspace(0, 1, 90), np.full(10, np.nan)])
    assert percentile_interval(0.5, draws, 1000, bounds=(-1, 2)) == Interval(0.5, -1.0, 2.0)
    assert percentile_interval(0.5, draws[:90], 1000).low >= 0
    with pytest.raises(EvaluationError, match="confidence level"):
        percentile_interval(0.5, draws, 1000, level=95)


def test_few_units_widen_a_percentile_interval():
    draws = np.random.default_rng(0).normal(size=100_000)
    many, few, two = (percentile_interval(0.0, draws, n) for n in (10_000, 8, 2))
    assert many.high == pytest.approx(1.96, abs=0.03)
    assert few.high == pytest.approx(math.sqrt(8 / 7) * student.ppf(0.975, 7), abs=0.06)  # Hesterberg 2015
    assert (two.low, two.high) == (draws.min(), draws.max())


def test_two_and_three_clusters_have_the_interval_of_student():
    for x in ([1.0, 2.0], [1.0, 2.0, 4.0]):
        found = bootstrap_ratio(np.array(x), np.ones(len(x)), np.arange(len(x)), seed=0)
        half = student.ppf(0.975, len(x) - 1) * np.std(x, ddof=1) / math.sqrt(len(x))
        assert (found.low, found.high) == pytest.approx((np.mean(x) - half, np.mean(x) + half))
    four = bootstrap_ratio(np.array([1.0, 2.0, 4.0, 5.0]), np.ones(4), np.arange(4), seed=0)
    assert 0 < four.high - four.low < math.inf


def test_intervals_of_errors_are_positive_and_scale_free():
    x = np.random.default_rng(0).lognormal(0, 1, 9)
    one, percent = (bootstrap_ratio(s * x, np.ones(9), np.arange(9), seed=0, bounds=(0.0, math.inf)) for s in (1, 100))
    assert 0 < one.low < one.value < one.high < math.inf
    assert (percent.low, percent.high) == pytest.approx((100 * one.low, 100 * one.high))
    rare = bootstrap_ratio(np.eye(9)[0], np.ones(9), np.arange(9), seed=0, bounds=(0.0, math.inf))
    assert rare.low >= 0 and rare.high == math.inf  # draws without the one error show no spread
    lost = bootstrap_ratio(np.ones(5), np.eye(5)[0], np.arange(5), seed=0, bounds=(0.0, math.inf))
    assert (lost.low, lost.high) == (0.0, math.inf)  # and those without a denominator have no ratio


def test_what_all_clusters_agree_on_is_not_certain():
    """0 of 18 against 0 of 18, 18 of 18 against 18 of 18, and 18 of 18 by itself: exact bounds, no width of 0."""
    ones, state = np.ones(18), np.arange(18)
    seen = clopper_pearson(0, 18).high
    gap = bootstrap_ratio(np.zeros(18), ones, state, seed=0, bounds=(-1.0, 1.0))
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.0, -seen, seen)) and seen == pytest.approx(
        0.185, abs=1e-3
    )
    rate = bootstrap_ratio(ones, ones, state, seed=0, bounds=(0.0, 1.0))
    exact = clopper_pearson(18, 18)
    assert (rate.value, rate.low, rate.high) == pytest.approx((1.0, exact.low, 1.0))
    same = paired_ratio(ones, ones, state, seed=0)  # an error may be of any size
    assert (same.value, same.high) == (1.0, math.inf) and same.low == pytest.approx(1 - seen) and not same.excludes(1)
    alike = percentile_interval(1.0, np.ones(500), 8, bounds=(-1.0, 1.0))  # the order of 8 policies, right in each draw
    assert (alike.low, alike.high) == pytest.approx((1 - 2 * clopper_pearson(0, 8).high, 1.0))
    one = bootstrap_ratio(ones, ones, np.zeros(18, int), seed=0, bounds=(0.0, 1.0))
    assert (one.low, one.high) == (0.0, 1.0)


@pytest.mark.parametrize("clusters", [8, 28, 100])
@pytest.mark.parametrize("kind", ["half succeed", "most succeed", "most succeed, by episode", "paired", "errors"])
def test_intervals_of_clusters_cover(kind, clusters):
    """A sample of benchmarks/coverage.py: 150 samples each, of which 95 % should be covered, and 89 % must."""
    rng, covered = np.random.default_rng([clusters, len(kind)]), 0
    ones, bounds = np.ones(5 * clusters), (-1.0, 1.0) if kind == "paired" else (0.0, 1.0)
    cluster = np.arange(clusters).repeat(5)
    for trial in range(150):
        if kind == "errors":
            x, bounds = rng.lognormal(0, 0.5, clusters).repeat(5) * rng.lognormal(0, 0.5, len(ones)), (0.0, math.inf)
            truth = math.exp(0.25)
        elif kind == "paired":
            u = np.where(rng.random(clusters) < 0.5, rng.random(clusters), 0.5).repeat(5)
            x, truth = (u < 0.1).astype(float) - (u > 0.95), 0.5 * (0.1 - 0.05)
        else:
            truth = 0.5 if kind.startswith("half") else 0.9
            rate = rng.beta(9 * 2 / 3, 2 / 3, clusters).repeat(5) if "by episode" in kind else truth
            x = (rng.random(len(ones)) < rate).astype(float)
        found = bootstrap_ratio(x, ones, cluster, trial, draws=400, bounds=bounds)
        covered += found.low <= truth <= found.high
    assert covered / 150 > 0.89, f"{covered / 150:.1%} of the intervals cover"


def test_a_median_of_times_shrugs_off_one_slow_query_and_has_an_interval():
    rng = np.random.default_rng(0)
    times = rng.normal(20, 2, (30, 10)) + rng.normal(0, 1, (30, 1))  # episodes differ
    slow = times.copy()
    slow[0, 0] = 1e4
    episode = np.arange(30).repeat(10)
    found, jolted = (clustered_median(x.ravel(), episode, seed=0) for x in (times, slow))
    assert found.value == np.median(times) and jolted.value == pytest.approx(found.value, abs=0.2)
    assert found.low < found.value < found.high < found.value + 2 and jolted.high < found.high + 0.5
    assert clustered_median(np.array([3.0, 5.0]), np.array([0, 0]), seed=0) == Interval(4.0, 0.0, math.inf)
    with pytest.raises(EvaluationError, match="a median needs finite values"):
        clustered_median(np.array([]), np.array([], int), seed=0)


def test_mean_of_rates_covers_where_a_plain_interval_has_no_width():
    """Of 2,000 draws of four groups, sure ones among them; a normal interval of the mean would cover 0.6 to 0.9."""
    rng, truth, trials = np.random.default_rng(0), np.array([1.0, 0.98, 0.9, 0.5]), np.array([280, 110, 60, 50])
    hits = 0
    for _ in range(2000):
        mean = mean_rate([wilson(int(k), int(n)) for k, n in zip(rng.binomial(trials, truth), trials, strict=True)])
        hits += mean.low <= truth.mean() <= mean.high
    assert 0.93 < hits / 2000 < 0.99
    alone = mean_rate([clopper_pearson(3, 10)])
    assert (alone.low, alone.high) == pytest.approx((clopper_pearson(3, 10).low, clopper_pearson(3, 10).high))
