"""Intervals and paired tests. Wilson for display, Clopper-Pearson for claims, a clustered bootstrap for ratios.

Windows cut from one episode are not independent, so every bootstrap here resamples whole clusters (episodes, or reset
states when training seeds share them), never rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped
from scipy.stats import binomtest

from wamkit.eval import EvaluationError


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval; `low <= high`, both may be infinite, all three NaN where undefined."""

    value: float
    low: float
    high: float
    level: float = 0.95

    def excludes(self, point: float) -> bool:
        """True if the whole interval lies on one side of `point`; false where undefined."""
        return self.low > point or self.high < point

    @property
    def undefined(self) -> bool:
        return math.isnan(self.value)


UNDEFINED = Interval(math.nan, math.nan, math.nan)


def wilson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a success rate in [0, 1] (Wilson 1927, without continuity correction).

    Its coverage is near `level` on average, which suits display; at few trials and extreme rates it can fall below
    (0.86 at worst for 10 trials at 95 %), so a claim or a safety bound uses `clopper_pearson`.
    """
    return _binomial(successes, trials, level, "wilson")


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """The exact interval of a success rate in [0, 1] (Clopper and Pearson 1934): covers at least `level`, always."""
    return _binomial(successes, trials, level, "exact")


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
) -> Interval:
    """sum(numerator) / sum(denominator) with a percentile interval from resampling whole clusters.

    Row i of both vectors is one window, `cluster[i]` the episode it came from. The ratio of sums is the ratio of
    means when the rows agree, and stays defined for windows whose own denominator is 0. With ones as denominator
    it is a clustered mean. Source: Efron and Tibshirani 1993, chapter 13 (percentile), section 8.6 (clusters).

    One cluster says nothing about spread: the interval is then (-inf, inf). A draw whose denominator is 0 counts as
    +inf. Blind spot: below about 10 clusters percentile intervals are too narrow.
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
    sums_K2 = np.stack([np.bincount(row, top), np.bincount(row, bottom)], axis=1)
    value, k = float(top.sum() / bottom.sum()), len(sums_K2)
    if k == 1:
        return Interval(value, -math.inf, math.inf, level)
    counts_NK = np.random.default_rng(seed).multinomial(k, np.full(k, 1 / k), size=draws)
    above, below = (counts_NK @ sums_K2).T
    ratios = np.divide(above, below, out=np.full(draws, np.inf), where=below != 0)
    tail = (1 - level) / 2
    low = np.quantile(ratios, tail, method="lower")  # no interpolation: an infinite draw must not turn into NaN
    high = np.quantile(ratios, 1 - tail, method="higher")
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
    return bootstrap_ratio(error, reference, cluster, seed, draws, level)


@dataclass(frozen=True)
class McNemar:
    """Paired successes on the same reset states: how often only one of the two solved it, and the exact p-value."""

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
