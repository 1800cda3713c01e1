"""Expectations of metrics of actions on recordings, as data (see `judge`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from wamkit.eval.metatest.judge import NOISE, Metric, Suite
from wamkit.eval.metrics.action_baselines import coverage, nominal, repeats, spread_and_error, squared_error

DRAWS = 16


@dataclass(frozen=True)
class RecordedChunks:
    """A policy's answers to W windows: answer (W, A, a), and draws (K, W, A, a)."""

    answer: np.ndarray
    draws: np.ndarray


def recorded_suite(windows: int = 2000) -> Suite:
    """Metrics of actions on recordings (`suites.offline_actions`), of an arm that follows a target with some noise."""
    rng = np.random.default_rng(0)
    state = rng.normal(0, 1, (windows, 1, 2))
    level = state + np.cumsum(rng.normal(0, 0.5, (windows, 4, 2)), 1)  # what a demonstrator would aim at
    executed = level + rng.normal(0, 0.3, level.shape)
    last, still = state[:, 0], np.broadcast_to(state, level.shape)
    unit, aside = np.ones(2), rng.normal(0, 1, level.shape)
    true = RecordedChunks(executed, level + rng.normal(0, 0.3, (DRAWS, *level.shape)))

    def always(answer: np.ndarray) -> RecordedChunks:
        return RecordedChunks(answer, np.broadcast_to(answer, true.draws.shape))

    other = rng.permutation(windows)
    answers = {
        "executed": true,
        "standing still": always(still),
        "mean action": always(np.broadcast_to(executed.mean((0, 1)), level.shape)),
        "mirrored": RecordedChunks(2 * still - executed, 2 * still - true.draws),
        "another moment": RecordedChunks(executed[other], true.draws[:, other]),
        "biased": RecordedChunks(executed + 1, true.draws + 1),
        "too sure": replace(true, draws=level + (true.draws - level) / 3),
        "too unsure": replace(true, draws=level + (true.draws - level) * 3),
    }
    for noise in (0.25, 0.5, 1.0, 2.0):
        answers[f"{NOISE}{noise:g}"] = RecordedChunks(executed + noise * aside, true.draws + noise * aside)

    def over_still(a: RecordedChunks) -> float:
        return float(squared_error(a.answer, executed, unit).sum() / squared_error(still, executed, unit).sum())

    def change(a: RecordedChunks) -> float:
        moved, did = repeats(a.answer, last, executed, unit)
        return float(moved.sum() / did.sum())

    def inside(level: float) -> Callable[[RecordedChunks], float]:
        return lambda a: float(coverage(a.draws, executed, level).mean())

    def spread(a: RecordedChunks) -> float:
        variance, error = spread_and_error(a.draws, executed, unit)
        return float(variance.sum() / error.sum())

    home = "metrics.action_baselines."
    metrics = (
        Metric(
            "error / standing still",
            (f"{home}squared_error",),
            over_still,
            0.0,
            reads=("answer",),
            order=(("standing still", "mirrored"), ("standing still", "another moment")),
        ),
        Metric(
            "change / recorded change",
            (f"{home}repeats",),
            change,
            1.0,
            reads=("answer",),
            blind={"mirrored": "says nothing of the direction"},
            varies={"mean action": "far from some last actions", "another moment": "far from the last action"},
        ),
        Metric("inside 50 %", (f"{home}coverage",), inside(0.5), nominal(DRAWS, 0.5), tolerance=0.02, reads=("draws",)),
        Metric("inside 90 %", (f"{home}coverage",), inside(0.9), nominal(DRAWS, 0.9), tolerance=0.02, reads=("draws",)),
        Metric("spread / error", (f"{home}spread_and_error",), spread, 1.0, tolerance=0.05, reads=("draws",)),
    )

    def same(a: RecordedChunks, b: RecordedChunks, reads: tuple[str, ...]) -> bool:
        return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in reads)

    how = f"{windows} windows of a made-up arm that follows a target with noise."
    return Suite(
        "Does it act as in the recordings?",
        how,
        answers,
        metrics,
        tuple(name for name in answers if name.startswith(NOISE)),
        same,
    )
