"""Share of simulated samples whose 95 % interval holds the truth, for figures that come in clusters.

Usage: python benchmarks/coverage.py
Samples of 8, 28 and 100 clusters: success at three rates, of one episode a cluster or of five that resemble each other;
paired differences of success; errors with a light and a heavy tail; ratios of errors. Beside `bootstrap_ratio`, the
percentile interval and BCa of the same draws. A row names the misses below and above, since an interval that is right
on one side alone may cover by luck, and the median width over that of the percentile interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import tyro

from wamkit.eval.metrics.intervals import bootstrap_ratio

NORMAL = NormalDist()
SUCCESS, DIFFERENCE, ERRORS = (0.0, 1.0), (-1.0, 1.0), (0.0, math.inf)


@dataclass(frozen=True)
class Args:
    """Size of the simulation."""

    samples: int = 2000
    """Samples of each row."""
    draws: int = 1000
    """Bootstrap draws of each sample."""
    clusters: tuple[int, ...] = (8, 28, 100)
    """Numbers of clusters."""


@dataclass(frozen=True)
class Figure:
    """A figure whose truth is known. sample: generator, clusters -> numerator and denominator of each cluster."""

    name: str
    truth: float
    bounds: tuple[float, float]
    sample: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


def success(rate: float, episodes: int, alike: float = 0.3) -> Figure:
    """A success rate. alike: correlation of two episodes of one cluster."""

    def sample(rng: np.random.Generator, k: int) -> tuple[np.ndarray, np.ndarray]:
        a, b = (x * (1 - alike) / alike for x in (rate, 1 - rate))
        own = rng.beta(a, b, k) if episodes > 1 else np.full(k, rate)
        return rng.binomial(episodes, own).astype(float), np.full(k, float(episodes))

    return Figure(f"success {rate:.0%}, {episodes} a cluster", rate, SUCCESS, sample)


def paired(lost: float, won: float) -> Figure:
    """A difference of success on the same reset states, of two training seeds, which agree on a third of them."""

    def sample(rng: np.random.Generator, k: int) -> tuple[np.ndarray, np.ndarray]:
        u = rng.random((k, 2))
        u = np.where(rng.random((k, 1)) < 0.3, u[:, :1], u)
        return ((u < won).astype(float) - (u > 1 - lost)).sum(1), np.full(k, 2.0)

    return Figure(f"difference, {lost:.0%} lost and {won:.0%} won", won - lost, DIFFERENCE, sample)


def errors(tail: float) -> Figure:
    """A mean error of clusters whose own are lognormal. tail: standard deviation of their logarithm."""

    def sample(rng: np.random.Generator, k: int) -> tuple[np.ndarray, np.ndarray]:
        windows = rng.lognormal(0, tail, (k, 1)) * rng.lognormal(0, 0.5, (k, 5))
        return windows.sum(1), np.full(k, 5.0)

    return Figure(f"error, tail {tail:g}", math.exp(tail**2 / 2 + 0.125), ERRORS, sample)


def ratios(tail: float) -> Figure:
    """A ratio of two errors, of clusters of three to seven windows that are hard or easy for both."""

    def sample(rng: np.random.Generator, k: int) -> tuple[np.ndarray, np.ndarray]:
        hard = rng.lognormal(0, tail, k) * rng.integers(3, 8, k)
        return 0.8 * hard * rng.lognormal(0, 0.4, k), hard * rng.lognormal(0, 0.4, k)

    return Figure(f"ratio of errors, tail {tail:g}", 0.8, ERRORS, sample)


FIGURES = (
    *(success(rate, episodes) for episodes in (1, 5) for rate in (0.5, 0.9, 0.98)),
    paired(0.05, 0.02),
    paired(0.2, 0.05),
    *(make(tail) for make in (errors, ratios) for tail in (0.5, 1.0)),
)


def percentile_and_bca(top: np.ndarray, bottom: np.ndarray, draws: int, seed: int) -> list[tuple[float, float]]:
    """The percentile interval and the BCa interval (Efron and Tibshirani 1993, chapters 13 and 14)."""
    k, value = len(top), top.sum() / bottom.sum()
    count = np.random.default_rng(seed).multinomial(k, np.full(k, 1 / k), size=draws)
    found = np.sort((count @ top) / (count @ bottom))
    left = (top.sum() - top) / (bottom.sum() - bottom)
    off = left.mean() - left
    spread = (off**2).sum()
    skew = (off**3).sum() / (6 * spread**1.5) if spread else 0.0
    below = np.clip((found < value).mean() + (found == value).mean() / 2, 1 / draws, 1 - 1 / draws)
    shift = NORMAL.inv_cdf(float(below))
    out = []
    for corrected in (False, True):
        ends = []
        for z in (-1.96, 1.96):
            moved = shift + (shift + z) / (1 - skew * (shift + z)) if corrected else z
            ends.append(float(found[min(draws - 1, int(NORMAL.cdf(moved) * draws))]))
        out.append((ends[0], ends[1]))
    return out


def main(args: Args) -> None:
    print(f"{'figure':<34} {'clusters':>8}  {'bootstrap_ratio':>22} {'width':>6}  {'percentile':>10} {'BCa':>6}")
    for figure in FIGURES:
        for k in args.clusters:
            rng, rows = np.random.default_rng(k), []
            for seed in range(args.samples):
                top, bottom = figure.sample(rng, k)
                x = bootstrap_ratio(top, bottom, np.arange(k), seed, args.draws, bounds=figure.bounds)
                others = percentile_and_bca(top, bottom, args.draws, seed)
                hits = [low <= figure.truth + 1e-12 and figure.truth - 1e-12 <= high for low, high in others]
                width = others[0][1] - others[0][0]
                rows.append([figure.truth < x.low - 1e-12, figure.truth > x.high + 1e-12, *hits, x.high - x.low, width])
            above, below, percentile, bca = np.array(rows)[:, :4].mean(0)
            own, other = np.median(np.array(rows)[:, 4:], axis=0)
            covered = f"{1 - above - below:6.1%} ({below:.1%}, {above:.1%})"
            wide = f"{own / other:6.2f}" if other else f"{'':>6}"
            print(f"{figure.name:<34} {k:>8}  {covered:>22} {wide}  {percentile:>10.1%} {bca:>6.1%}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
