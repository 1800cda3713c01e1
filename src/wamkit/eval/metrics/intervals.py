"""Intervals and tests for a fixed number of episodes. Wilson for display, Clopper-Pearson for claims, and one
studentised interval for whatever comes in clusters.

Windows cut from one episode are not independent, so every interval here takes whole clusters (episodes, or reset
states when training seeds share them), never rows. Tests here are decided once, after the last episode;
`sequential_tests` holds the one that may be looked at all the time, and what spans tasks and training seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float, Float64, Integer, Shaped
from scipy.stats import barnard_exact, binomtest
from scipy.stats import t as student

from wamkit.types import EvaluationError, Interval


def wilson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a success rate in [0, 1] (Wilson 1927, without continuity correction).

    Its coverage is near `level` on average, which suits display; at few trials and extreme rates it can fall below
    (0.86 at worst for 10 trials at 95 %), so a claim or a safety bound uses `clopper_pearson`.

    Examples:
        >>> rate = wilson(19, 20)
        >>> round(rate.value, 2), round(rate.low, 2), round(rate.high, 2)
        (0.95, 0.76, 0.99)
    """
    return _binomial(successes, trials, level, "wilson")


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """The exact interval of a success rate in [0, 1] (Clopper and Pearson 1934): covers at least `level`, always."""
    return _binomial(successes, trials, level, "exact")


def mean_rate(rates: Sequence[Interval]) -> Interval:
    """The mean of independent success rates, each with its interval.

    Its ends are as far from it as the root of the squared distances of all ends from their rates, divided by their
    number (MOVER, Zou and Donner 2008): an interval that keeps its width where every rate is 0 or 1.

    Examples:
        >>> mean = mean_rate([wilson(20, 20), wilson(10, 20)])
        >>> round(mean.value, 2), round(mean.low, 2), round(mean.high, 2)
        (0.75, 0.62, 0.85)
    """
    n = len(rates)
    value = sum(r.value for r in rates) / n
    below = math.sqrt(sum((r.value - r.low) ** 2 for r in rates)) / n
    above = math.sqrt(sum((r.high - r.value) ** 2 for r in rates)) / n
    return Interval(value, value - below, value + above, rates[0].level)


def _binomial(successes: int, trials: int, level: float, method: str) -> Interval:
    if not 0 <= successes <= trials or trials < 1:
        raise EvaluationError(
            f"{successes} successes of {trials} trials is not a rate; need 0 <= successes <= trials >= 1"
        )
    low, high = binomtest(int(successes), int(trials)).proportion_ci(level, method=method)
    return Interval(successes / trials, float(low), float(high), level)


def bootstrap_ratio(
    numerator: Shaped[np.ndarray, " N"],
    denominator: Shaped[np.ndarray, " N"],
    cluster: Integer[np.ndarray, " N"],
    seed: int,
    draws: int = 10_000,
    level: float = 0.95,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """sum(numerator) / sum(denominator) of windows that come in clusters, with a studentised interval.

    Row i of both vectors is one window, `cluster[i]` the episode it came from. The ratio of sums is the ratio of
    means when the rows agree, and stays defined for windows whose own denominator is 0. With ones as denominator
    it is a clustered mean. bounds: the range of the ratio, so (0, inf) of errors and (-1, 1) of differences of success.

    Without two finite bounds the interval is that of the bootstrap-t: whole clusters are resampled, each draw is
    divided by its own standard error (linearised), and the tails are widened for few clusters (`_tail`); for bounds of
    (0, inf) on a logarithmic scale, from 8 clusters on: with 4 to 7 it is the jackknife's (`_jackknife`), as draws of
    so few often have next to no spread of their own. With two, one cluster at each bound is added, as Agresti and Coull
    add successes and failures, and the interval is Student's: so it keeps a width where all clusters nearly agree.
    Where they do agree, see `unseen`. A nominal 95 % of both covers 93 % or more of what benchmarks/coverage.py draws,
    at 8, 28 and 100 clusters; at 4 to 7 the jackknife's covers 91 to 98 %. Sources: Efron and Tibshirani 1993, section
    12.5 (bootstrap-t); Hesterberg 2015 (tails).

    One cluster says nothing about spread: the interval is then `bounds`. A draw whose denominator is 0 counts as
    -inf for the lower end and as inf for the upper.
    Raises EvaluationError for unequal lengths, no rows, values that are not finite, or a denominator sum that is 0.
    """
    top, bottom = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    if not len(top) == len(bottom) == len(cluster) or len(top) == 0:
        raise EvaluationError(f"need equally many rows, at least one: {len(top)}, {len(bottom)}, {len(cluster)} given")
    if not (np.isfinite(top).all() and np.isfinite(bottom).all()):
        raise EvaluationError("the bootstrap was given values that are not finite; drop the invalid windows first")
    if bottom.sum() == 0:
        raise EvaluationError("the denominator sums to 0, so the ratio is undefined")
    _, row = np.unique(cluster, return_inverse=True)
    above_K, below_K = np.bincount(row, top), np.bincount(row, bottom)
    value, k = float(top.sum() / bottom.sum()), len(above_K)
    rest_K = above_K - value * below_K
    if k == 1:
        return Interval(value, *bounds, level)
    if np.abs(rest_K).max() <= 1e-12 * np.abs(above_K).max():
        return unseen(value, k, level, bounds)
    if np.isfinite(bounds).all():
        low, high = _adjusted(above_K, below_K, level, bounds)
    elif bounds[0] == 0 and 4 <= k < 8:
        low, high = _jackknife(above_K, below_K, level)
    else:
        low, high = _bootstrap_t(value, rest_K, below_K, seed, draws, level, positive=bounds[0] == 0)
    return Interval(value, max(min(low, value), bounds[0]), min(max(high, value), bounds[1]), level)


def _error(
    count_NK: np.ndarray, rest_K: np.ndarray, below_K: np.ndarray
) -> tuple[Float64[np.ndarray, " N"], Float64[np.ndarray, " N"]]:
    """Distance of each draw's ratio from that of all clusters, and its linearised standard error.

    count_NK: how often each cluster was drawn.   rest_K: numerator less the ratio of all times the denominator.
    """
    k = len(rest_K)
    with np.errstate(divide="ignore", invalid="ignore"):
        below_N = count_NK @ below_K
        off_N = np.where(below_N == 0, math.nan, (count_NK @ rest_K) / below_N)
        square_N = count_NK @ rest_K**2 - 2 * off_N * (count_NK @ (rest_K * below_K))
        square_N = np.maximum(square_N + off_N**2 * (count_NK @ below_K**2), 0.0)
        return off_N, np.sqrt(square_N * k / (k - 1)) / np.abs(below_N)


def _bootstrap_t(
    value: float, rest_K: np.ndarray, below_K: np.ndarray, seed: int, draws: int, level: float, positive: bool
) -> tuple[float, float]:
    """Ends of the studentised interval of a ratio; positive: on a logarithmic scale.

    A draw of one cluster k times shows no spread and is left out. Two or three clusters have hardly other draws: then
    it is Student's, and open where one of them has all of the denominator.
    """
    k = len(rest_K)
    scale = value if positive else 1.0  # by the delta method, the error of log x is that of x over x
    error = float(_error(np.ones((1, k)), rest_K, below_K)[1][0]) / scale
    if k < 4:
        half = math.inf if (below_K == below_K.sum()).any() else float(student.ppf((1 + level) / 2, k - 1))
        t = Interval(0.0, -half, half, level)
    else:
        count_NK = np.random.default_rng(seed).multinomial(k, np.full(k, 1 / k), size=draws)
        off_N, error_N = _error(count_NK[(count_NK > 0).sum(1) > 1], rest_K, below_K)
        with np.errstate(divide="ignore", invalid="ignore"):
            if positive:
                off_N, error_N = np.log1p(off_N / value), error_N / (value + off_N)
            t_N = np.where(np.isfinite(off_N) & (off_N != 0), off_N / error_N, off_N)
        t = percentile_interval(0.0, t_N, k, level)
    with np.errstate(over="ignore"):
        ends = -error * np.array([t.high, t.low])
        low, high = value * np.exp(ends) if positive else value + ends
    return float(low), float(high)


def _jackknife(above_K: np.ndarray, below_K: np.ndarray, level: float) -> tuple[float, float]:
    """Ends of the interval of a positive ratio by the spread of its logarithm without each of its clusters in turn.

    Student's with k - 3 degrees of freedom, at least 2. Open where one cluster has all of numerator or denominator.
    Source: Efron and Tibshirani 1993, chapter 11.
    """
    k, value = len(above_K), above_K.sum() / below_K.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        left_K = np.log((above_K.sum() - above_K) / (below_K.sum() - below_K))
    if not np.isfinite(left_K).all():
        return 0.0, math.inf
    error = math.sqrt((k - 1) / k * np.square(left_K - left_K.mean()).sum())
    half = float(student.ppf((1 + level) / 2, max(2, k - 3))) * error
    return float(value * math.exp(-half)), float(value * math.exp(min(half, 700.0)))


def _adjusted(above_K: np.ndarray, below_K: np.ndarray, level: float, bounds: tuple[float, float]) -> tuple[float, ...]:
    """Student's interval of a ratio after one more cluster of mean size at each of its bounds."""
    size = below_K.mean()
    above, below = np.append(above_K, np.multiply(bounds, size)), np.append(below_K, [size, size])
    n, middle = len(above), above.sum() / below.sum()
    _, error = _error(np.ones((1, n)), above - middle * below, below)
    half = float(student.ppf((1 + level) / 2, n - 1) * error[0])
    return float(middle) - half, float(middle) + half


def unseen(value: float, units: int, level: float, bounds: tuple[float, float]) -> Interval:
    """The interval of a figure of which all `units` (episodes, policies) agree, so that they show no spread.

    A share of unlike units up to Clopper and Pearson's bound for none seen may have gone unseen, and each may have been
    at a bound: 0 of 18 against 0 of 18 is a difference of 0 within 18.5 points. Open where the figure has no bound.
    """
    share = clopper_pearson(0, units, level).high
    low, high = (value + share * (bound - value) if bound != value else value for bound in bounds)
    return Interval(value, low, high, level)


def _tail(level: float, units: int) -> float:
    """Share of the draws beyond each end of an interval from `units` units: at most (1 - level) / 2, its limit.

    A bootstrap of n units has a variance of (n - 1) / n of the right one, and knows not how uncertain that is itself:
    the tail is that of a normal distribution beyond Student's quantile times sqrt(n / (n - 1)) (Hesterberg 2015).
    """
    if not 0 < level < 1:
        raise EvaluationError(f"a confidence level lies between 0 and 1, not at {level}")
    if units < 2:
        return 0.0
    return NormalDist().cdf(-math.sqrt(units / (units - 1)) * float(student.ppf((1 + level) / 2, units - 1)))


def clustered_median(
    values: Float[np.ndarray, " N"],
    cluster: Integer[np.ndarray, " N"],
    seed: int,
    draws: int = 1000,
    level: float = 0.95,
) -> Interval:
    """The median of non-negative values that come in clusters, with a percentile interval from resampling clusters.

    For times: a query of 1 s among many of 20 ms leaves it as it is. One cluster says nothing about spread.
    Raises EvaluationError for no values.
    """
    values, (ids, row) = np.asarray(values, np.float64), np.unique(cluster, return_inverse=True)
    if len(values) == 0 or len(values) != len(row) or not np.isfinite(values).all():
        raise EvaluationError(f"a median needs finite values, a cluster each: {len(values)} and {len(row)} given")
    median = float(np.median(values))
    if len(ids) == 1:
        return Interval(median, 0.0, math.inf, level)
    order = np.argsort(values)
    counts = resample_counts(np.random.default_rng(seed), draws, len(ids))
    drawn = np.empty(draws)
    for i, count in enumerate(counts):
        below = np.cumsum(count[row[order]])
        drawn[i] = values[order[np.searchsorted(below, below[-1] / 2)]]
    found = percentile_interval(median, drawn, len(ids), level, (0.0, math.inf))
    return Interval(median, min(found.low, median), max(found.high, median), level)


def resample_counts(rng: np.random.Generator, draws: int, n: int) -> Integer[np.ndarray, "draws n"]:
    """Counts of each of `n` units in bootstrap draws of `n` units with replacement."""
    unit_Nn = rng.integers(n, size=(draws, n)) + n * np.arange(draws)[:, None]  # faster than `rng.multinomial`
    return np.bincount(unit_Nn.ravel(), minlength=draws * n).reshape(draws, n)


def percentile_interval(
    value: float,
    draws: Float[np.ndarray, " draws"],
    units: int,
    level: float = 0.95,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """`value` with the middle of its bootstrap draws, `level` of them or a little more.

    units: how many units (episodes, policies, tasks) were resampled: the fewer, the wider, see `_tail`.
    bounds: the range of the figure. A NaN marks a draw in which it is undefined (one policy drawn N times has no
    correlation). It counts as `bounds[0]` for the lower end and as `bounds[1]` for the upper, so that it widens the
    interval and never hides. Where all draws are alike, see `unseen`.
    """
    tail, undefined = _tail(level, units), np.isnan(draws)
    if len(draws) > 1 and (draws == value).all():
        return unseen(value, units, level, bounds)
    # no interpolation: an infinite draw must not turn into NaN
    low = np.quantile(np.where(undefined, bounds[0], draws), tail, method="lower")
    high = np.quantile(np.where(undefined, bounds[1], draws), 1 - tail, method="higher")
    return Interval(value, float(low), float(high), level)


def paired_ratio(
    error: Float[np.ndarray, " N"],
    reference: Float[np.ndarray, " N"],
    cluster: Integer[np.ndarray, " N"],
    seed: int,
    draws: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """error / reference, pooled over windows that were scored twice (true against shuffled actions, say).

    Both errors of a window travel together in every draw, so what makes windows easy or hard cancels. Below 1 the
    first is better; `interval.excludes(1)` is the two-sided test. Both must be non-negative. Raises as
    `bootstrap_ratio`.
    """
    if min(np.min(error, initial=0.0), np.min(reference, initial=0.0)) < 0:
        raise EvaluationError("paired_ratio compares errors, and one of them is negative")
    return bootstrap_ratio(error, reference, cluster, seed, draws, level, bounds=(0.0, math.inf))


def two_sample_ratio(
    first: Float[np.ndarray, " N"],
    first_cluster: Integer[np.ndarray, " N"],
    second: Float[np.ndarray, " M"],
    second_cluster: Integer[np.ndarray, " M"],
    level: float = 0.95,
) -> Interval:
    """Mean of one sample of positive values over that of another one, both of windows that come in clusters.

    Welch's interval of the difference of logarithms, whose standard errors are those of clustered means (delta method).
    (0, inf) where either sample is one cluster. Raises EvaluationError unless both means are positive.
    """
    parts = [_log_mean(x, c) for x, c in ((first, first_cluster), (second, second_cluster))]
    difference, errors = parts[0][0] - parts[1][0], np.array([error for _, error, _ in parts])
    value = math.exp(difference)
    if not np.isfinite(errors).all():
        return Interval(value, 0.0, math.inf, level)
    variance = np.square(errors)
    freedom = variance.sum() ** 2 / max(
        sum(v**2 / (n - 1) for v, (_, _, n) in zip(variance, parts, strict=True)), 1e-300
    )
    half = float(student.ppf((1 + level) / 2, max(freedom, 1.0))) * math.sqrt(variance.sum())
    return Interval(value, math.exp(difference - half), math.exp(min(difference + half, 700.0)), level)


def _log_mean(values: np.ndarray, cluster: np.ndarray) -> tuple[float, float, int]:
    """Logarithm of the mean, its standard error over clusters (inf for one), and the number of clusters."""
    values, mean = np.asarray(values, np.float64), float(np.mean(values)) if len(values) else 0.0
    if mean <= 0:
        raise EvaluationError(f"two_sample_ratio needs positive means, not {mean:g}")
    _, row = np.unique(cluster, return_inverse=True)
    rest_K, below_K = np.bincount(row, values - mean), np.bincount(row)
    k = len(below_K)
    error = float(_error(np.ones((1, k)), rest_K, below_K)[1][0]) / mean if k > 1 else math.inf
    return math.log(mean), error, k


@dataclass(frozen=True)
class McNemar:
    """Paired successes on the same reset states: counts of states where only one succeeds, and the exact p-value."""

    first_only: int
    second_only: int
    p_value: float


def mcnemar(first: Bool[np.ndarray, " N"], second: Bool[np.ndarray, " N"]) -> McNemar:
    """Exact two-sided McNemar test that two policies succeed equally often (McNemar 1947, binomial form).

    Row i of both is the same reset state. Only discordant rows carry evidence; with none, p = 1.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.dtype != bool or second.dtype != bool or first.shape != second.shape or first.ndim != 1:
        raise EvaluationError(
            f"need two bool vectors of one length, not {first.dtype}{first.shape}, {second.dtype}{second.shape}"
        )
    only = int((first & ~second).sum()), int((second & ~first).sum())
    p_value = float(binomtest(only[0], sum(only)).pvalue) if sum(only) else 1.0
    return McNemar(*only, p_value)


def sign_flip(differences: Integer[np.ndarray, " S"]) -> float:
    """Exact two-sided p-value of paired differences that are as likely of either sign (Fisher 1935, section 21).

    One whole number for each reset state, the successes of one policy less those of another one over all training
    seeds: outcomes on the same state are alike, so the sign of their sum is flipped as a whole. With one seed it is
    McNemar's test.
    """
    sizes = [int(abs(d)) for d in differences if d]
    chance = np.zeros(2 * sum(sizes) + 1)  # of each sum, from the least to the largest
    chance[len(chance) // 2] = 1.0
    for size in sizes:
        chance = (np.roll(chance, size) + np.roll(chance, -size)) / 2
    sums = abs(np.arange(len(chance)) - len(chance) // 2)
    return min(1.0, float(chance[sums >= abs(int(np.sum(differences)))].sum()))


def paired_difference(first: Bool[np.ndarray, " N"], second: Bool[np.ndarray, " N"], level: float = 0.95) -> Interval:
    """Success of the second less that of the first from the same reset states, in [-1, 1] (Bonett and Price 2012).

    An adjusted Wald interval: one discordant pair each way is added, so that it keeps a width where no pair is
    discordant. Row i of both is the same reset state. Coverage is near `level` from some 10 pairs on. Raises
    EvaluationError as `mcnemar`, for no rows too.
    """
    pairs, n = mcnemar(first, second), len(first)
    if n == 0 or not 0 < level < 1:
        raise EvaluationError(f"need pairs and a confidence level between 0 and 1, not {n} pairs and {level}")
    lost, gained = (pairs.first_only + 1) / (n + 2), (pairs.second_only + 1) / (n + 2)
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt((lost + gained - (gained - lost) ** 2) / (n + 2))
    value, middle = (pairs.second_only - pairs.first_only) / n, gained - lost
    return Interval(value, max(-1.0, middle - half), min(1.0, middle + half), level)


def barnard(first_successes: int, first_trials: int, second_successes: int, second_trials: int) -> float:
    """Two-sided p-value of Barnard's exact test that two policies succeed equally often, on unpaired episodes.

    The table's probability is maximised over the unknown common rate (Barnard 1945), with the pooled score statistic.
    More powerful than Fisher's test, which fixes both margins. 1 where nobody or everybody succeeds. For policies that
    started from the same reset states use `mcnemar`. Takes seconds beyond about 500 trials a side.
    Raises EvaluationError for counts that are no rates.
    """
    for successes, trials in ((first_successes, first_trials), (second_successes, second_trials)):
        if not 0 <= successes <= trials or trials < 1:
            raise EvaluationError(f"{successes} successes of {trials} trials is not a rate")
    successes_2 = [int(first_successes), int(second_successes)]
    failures_2 = [int(first_trials) - successes_2[0], int(second_trials) - successes_2[1]]
    return min(1.0, float(barnard_exact([successes_2, failures_2]).pvalue))


def holm(p_values: Float[np.ndarray, " K"]) -> Float64[np.ndarray, " K"]:
    """p-values of K tasks adjusted for asking K times, in the order given (Holm 1979).

    Calling significant what lies at or below alpha keeps the chance of one false claim or more at or below alpha,
    however the tests depend on each other. Raises EvaluationError for none, or for values outside [0, 1].
    """
    p_K = np.asarray(p_values, np.float64)
    if p_K.ndim != 1 or not len(p_K) or not ((p_K >= 0) & (p_K <= 1)).all():
        raise EvaluationError(f"Holm's correction takes a vector of p-values in [0, 1], not {p_values}")
    order = np.argsort(p_K)
    stepped = np.maximum.accumulate(p_K[order] * np.arange(len(p_K), 0, -1))
    adjusted = np.empty_like(p_K)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted
