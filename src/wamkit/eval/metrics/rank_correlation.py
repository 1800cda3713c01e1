"""Agreement of imagined with real success in ordering policies: correlations, MMRV, and the policies they hang on.

The unit is a policy, and few are ever compared, so the interval resamples policies and, within each, its episodes. It
speaks of policies like these only if they are independent: checkpoints of one training run are not. Use eight or more
independently trained ones that span most of [0, 1]: correlations rise with the range of the real scores alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Shaped
from scipy.stats import pearsonr, spearmanr

from wamkit.eval.metrics.intervals import percentile_interval
from wamkit.types import EvaluationError, Interval


def pearson(predicted: Float[np.ndarray, " N"], real: Float[np.ndarray, " N"]) -> float:
    """Pearson's correlation of N policies' scores. In [-1, 1], 1 for a rising line; blind to bias and to slope.

    Raises EvaluationError for fewer than three policies (two always lie on a line), unequal lengths, values that are
    not finite, or scores that are all the same, which have no correlation.
    """
    return float(pearsonr(*_varied(predicted, real)).statistic)


def spearman(predicted: Float[np.ndarray, " N"], real: Float[np.ndarray, " N"]) -> float:
    """Spearman's rank correlation of N policies' scores, ties sharing their mean rank. In [-1, 1]; blind to all but the
    order.

    Raises as `pearson`.
    Swapping two near equals costs as much as swapping the best and the worst neighbours; `mmrv` weighs that.
    """
    return float(spearmanr(*_varied(predicted, real)).statistic)


def mmrv(*, predicted: Float[np.ndarray, " N"], real: Float[np.ndarray, " N"]) -> float:
    """Mean maximum rank violation: 1/N sum_i max_j |R_i - R_j| 1[(S_i < S_j) != (R_i < R_j)], S predicted, R real.

    In the units of the real score, [0, max R - min R]: 0 orders all pairs right, lower is better. Source: Li et al.
    2024 (SimplerEnv, arXiv 2405.05941); their function takes the two sides in one order and is called in the other,
    which weighs violations by the predicted gap, so both are keywords here.
    Ties: equal real scores never count, since their gap is 0. A predicted tie of unequal policies counts as a violation
    for the worse of the two only (S_i < S_j is false where R_i < R_j is true, and both are false the other way round),
    whatever the order of the policies. So a predictor that gives all policies one score pays half of what a reversing
    one may. Raises EvaluationError for fewer than two policies, unequal lengths or values that are not finite.
    """
    s_N, r_N = _pair(predicted, real, least=2)
    gap_NN = np.abs(r_N[:, None] - r_N[None])
    violated_NN = (s_N[:, None] < s_N[None]) != (r_N[:, None] < r_N[None])
    return float((gap_NN * violated_NN).max(1).mean())


def drop_one(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    predicted: Float[np.ndarray, " N"],
    real: Float[np.ndarray, " N"],
) -> Float64[np.ndarray, " N"]:
    """`statistic(predicted, real)` without each policy in turn: where one entry is far from the rest, one policy rules.

    Raises EvaluationError as the statistic does, with the policy without which it is undefined.
    """
    out = np.empty(len(predicted))
    for i in range(len(out)):
        try:
            out[i] = statistic(np.delete(predicted, i), np.delete(real, i))
        except EvaluationError as error:
            raise EvaluationError(f"without policy {i}: {error}") from error
    return out


def nested_bootstrap(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    predicted: Shaped[np.ndarray, "N E"],
    real: Shaped[np.ndarray, "N R"],
    seed: int,
    *,
    bounds: tuple[float, float] = (-1.0, 1.0),
    draws: int = 2000,
    level: float = 0.95,
) -> Interval:
    """`statistic` of N policies' mean scores, with an interval from resampling policies and episodes within each.

    predicted: (N, E) imagined outcomes; real: (N, R) real ones; bool or finite. One column means that scores are taken
    as exact. bounds: the statistic's range. A draw without a value (fewer than two different scores) counts as the
    lower bound for the lower end and the upper for the upper: with three or four policies the interval rightly spans
    the range. Episodes are drawn for each policy by itself even if all share reset states, which makes the interval
    wider, not narrower. Raises EvaluationError as the statistic does, or for tables that do not agree.
    """
    imagined, actual = np.asarray(predicted, np.float64), np.asarray(real, np.float64)
    if imagined.ndim != 2 or actual.ndim != 2 or len(imagined) != len(actual) or 0 in imagined.shape + actual.shape:
        raise EvaluationError(
            f"need one row of outcomes a policy on both sides, not {imagined.shape} imagined and {actual.shape} real"
        )
    value, n = statistic(imagined.mean(1), actual.mean(1)), len(imagined)
    rng, values = np.random.default_rng(seed), np.full(draws, np.nan)
    for draw in range(draws):
        policy = rng.integers(n, size=(n, 1))
        s, r = (t[policy, rng.integers(t.shape[1], size=t.shape)].mean(1) for t in (imagined, actual))
        if np.ptp(s) > 0 and np.ptp(r) > 0:
            values[draw] = statistic(s, r)
    return percentile_interval(value, values, n, level, bounds)


@dataclass(frozen=True)
class Agreement:
    """Agreement of imagined with real success over `policies` policies.

    pearson, spearman in [-1, 1]; mmrv in [0, 1], lower is better; bias: mean imagined minus real success, in [-1, 1],
    above 0 flatters; it says nothing of order.   pearson_without, mmrv_without: the figures without each policy in turn
    (`drop_one`).
    """

    policies: int
    pearson: Interval
    spearman: Interval
    mmrv: Interval
    bias: float
    pearson_without: Float64[np.ndarray, " N"]
    mmrv_without: Float64[np.ndarray, " N"]


def agreement(
    predicted: Shaped[np.ndarray, "N E"],
    real: Shaped[np.ndarray, "N R"],
    seed: int,
    draws: int = 2000,
    level: float = 0.95,
) -> Agreement:
    """All figures of this module for N >= 4 policies' success, imagined (E episodes each) and real (R episodes each).

    Outcomes are bool or partial credit in [0, 1]. Raises EvaluationError as the parts do.
    """

    def violation(s: np.ndarray, r: np.ndarray) -> float:
        return mmrv(predicted=s, real=r)

    for side in (predicted, real):
        if not ((np.asarray(side) >= 0) & (np.asarray(side) <= 1)).all():
            raise EvaluationError("outcomes are success in [0, 1]")
    intervals = [
        nested_bootstrap(f, predicted, real, seed, bounds=bounds, draws=draws, level=level)
        for f, bounds in ((pearson, (-1.0, 1.0)), (spearman, (-1.0, 1.0)), (violation, (0.0, 1.0)))
    ]
    s_N, r_N = np.asarray(predicted, np.float64).mean(1), np.asarray(real, np.float64).mean(1)
    return Agreement(
        len(s_N),
        *intervals,
        bias=float((s_N - r_N).mean()),
        pearson_without=drop_one(pearson, s_N, r_N),
        mmrv_without=drop_one(violation, s_N, r_N),
    )


def _pair(a: Float[np.ndarray, " N"], b: Float[np.ndarray, " N"], least: int) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 1 or a.shape != b.shape or len(a) < least:
        raise EvaluationError(
            f"need one score a policy on both sides, of {least} policies or more: {a.shape}, {b.shape}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise EvaluationError("a policy's score is not finite; a policy that crashed has failed its episodes")
    return a, b


def _varied(predicted: Float[np.ndarray, " N"], real: Float[np.ndarray, " N"]) -> tuple[np.ndarray, np.ndarray]:
    pair = _pair(predicted, real, least=3)
    for scores, side in zip(pair, ("predicted", "real"), strict=True):
        if np.ptp(scores) == 0:
            raise EvaluationError(
                f"all {side} scores are {scores[0]:g}, so nothing correlates; add policies that differ"
            )
    return pair
