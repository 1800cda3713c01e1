"""Tests of metrics themselves, on models of known rank.

A metric passes if it gives its best figure to the true outcome and a worse one to every model that is wrong in a way
that it claims to see, and if it falls as noise grows. Its blind spots are quoted from its documentation and checked as
well. The expectations are data (`expectations_action`, `expectations_video`); this module checks them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NOISE = "noise "
"""Prefix of answers that belong to the ladder of `Suite` alone, followed by the level of noise."""


@dataclass(frozen=True)
class Metric:
    """One figure and its expectations.

    functions: public functions that make it, "module.name" in `wamkit.eval`.   measure: the figure of a suite's answer.
    best: figure of the true outcome; -inf or inf where there is no end.
    tolerance: largest distance of the true outcome from the best, and least further distance of a wrong model.
    reads: attributes of an answer that it looks at; a model that has these right is not wrong for it.
    below: whether figures below the best are as good.
    blind: models that it does not find worse than the true outcome, each with a quotation from its documentation.
    undefined: models for which it has no figure (NaN), likewise.   varies: models without an expectation, and why.
    order: pairs of models, the better one first.   rises: whether it must get worse, or stay, along the ladder.
    scale: whether it claims to stay when every pixel is drawn as four; None where it sees no pixels.
    """

    name: str
    functions: tuple[str, ...]
    measure: Callable[[Any], float]
    best: float
    tolerance: float = 1e-6
    reads: tuple[str, ...] = ()
    below: bool = False
    blind: Mapping[str, str] = field(default_factory=dict)
    undefined: Mapping[str, str] = field(default_factory=dict)
    varies: Mapping[str, str] = field(default_factory=dict)
    order: tuple[tuple[str, str], ...] = ()
    rises: bool = True
    scale: bool | None = None
    fmt: str = ".3g"

    def badness(self, value: float) -> float:
        """Distance from the best; larger is worse, NaN stays."""
        if math.isinf(self.best):
            return -value if self.best > 0 else value
        return max(value - self.best, 0.0) if self.below and value == value else abs(value - self.best)


@dataclass(frozen=True)
class Suite:
    """Metrics of one kind of answer.

    answers: by model, the first is the true outcome.   ladder: names of answers that are ever farther from it.
    same: whether two answers agree in the attributes that a metric reads.   enlarged: an answer with every pixel drawn
    as four.
    """

    title: str
    how: str
    answers: Mapping[str, Any]
    metrics: tuple[Metric, ...]
    ladder: tuple[str, ...] = ()
    same: Callable[[Any, Any, tuple[str, ...]], bool] = lambda a, b, reads: False
    enlarged: Callable[[Any], Any] | None = None

    @property
    def models(self) -> list[str]:
        """Names of answers that are not on the ladder."""
        return [name for name in self.answers if not name.startswith(NOISE)]


SEEN, BLIND, SAME, VARIES, UNDEFINED, FAILS = "worse", "blind", "same", "varies", "undefined", "FAILS"


@dataclass(frozen=True)
class Judged:
    """Outcome of the test of one metric.

    values: by answer.   verdict: by model other than the first, one of `SEEN`, `BLIND` (as its documentation says),
    `SAME` (the model is right in what it reads), `UNDEFINED` (as its documentation says), `VARIES` and `FAILS`.
    identity: whether the true outcome has the best figure.   rising: Spearman's correlation of badness with the ladder.
    monotone: whether no farther rung is better.   order: pairs that came out the other way round.
    scale: largest relative change of a figure when every pixel is drawn as four; None where not asked.
    """

    metric: Metric
    values: Mapping[str, float]
    verdict: Mapping[str, str]
    identity: bool
    rising: float
    monotone: bool
    order: tuple[tuple[str, str], ...]
    scale: float | None

    @property
    def faults(self) -> list[str]:
        """Messages about expectations that do not hold."""
        m, found = self.metric, []
        if not self.identity:
            found.append(f"the true outcome has {self.values[next(iter(self.values))]:.6g}, not {m.best:g}")
        found += [f"{model}: {self.values[model]:.6g}" for model, v in self.verdict.items() if v == FAILS]
        found += [f"{a} ({self.values[a]:.6g}) is not better than {b} ({self.values[b]:.6g})" for a, b in self.order]
        if m.rises and not self.monotone:
            found.append("a farther rung of the ladder is better")
        if m.scale and self.scale is not None and not self.scale <= 1e-5:
            found.append(f"changes by {self.scale:.1e} when pixels are drawn as four, but claims not to")
        if m.scale is False and self.scale is not None and not self.scale > 1e-3:
            found.append("claims to depend on the resolution, but does not")
        return [f"{m.name}: {fault}" for fault in found]


def judge(suite: Suite, metric: Metric) -> Judged:
    """Measures every answer and compares the figures with the expectations."""
    values = {name: float(metric.measure(answer)) for name, answer in suite.answers.items()}
    first = suite.models[0]
    bad = {name: metric.badness(v) for name, v in values.items()}
    least = bad[first]
    verdict = {}
    for model in suite.models[1:]:
        if model in metric.varies:
            verdict[model] = VARIES
        elif metric.reads and suite.same(suite.answers[first], suite.answers[model], metric.reads):
            verdict[model] = SAME
        elif math.isnan(bad[model]):
            verdict[model] = UNDEFINED if model in metric.undefined else FAILS
        elif model in metric.blind:
            verdict[model] = BLIND if bad[model] <= least + metric.tolerance else FAILS
        else:
            verdict[model] = SEEN if bad[model] > least + metric.tolerance and model not in metric.undefined else FAILS
    ladder = np.array([bad[name] for name in (first, *suite.ladder)])
    identity = values[first] == metric.best if math.isinf(metric.best) else least <= metric.tolerance
    return Judged(
        metric,
        values,
        verdict,
        identity,
        _rising(ladder),
        bool(len(ladder) < 2 or (ladder[1:] >= ladder[:-1] - metric.tolerance).all()),
        tuple((a, b) for a, b in metric.order if not bad[a] < bad[b]),
        None if metric.scale is None or suite.enlarged is None else _scale(suite, metric, values),
    )


def _rising(ladder: np.ndarray) -> float:
    """Spearman's correlation with the order; NaN for too few rungs, or rungs that are all the same."""
    if len(ladder) < 3 or np.isnan(ladder).any() or ladder.min() == ladder.max():
        return math.nan
    rank = (ladder[:, None] > ladder).sum(1) + ((ladder[:, None] == ladder).sum(1) - 1) / 2
    return float(np.corrcoef(rank, np.arange(len(ladder)))[0, 1])


def _scale(suite: Suite, metric: Metric, values: Mapping[str, float]) -> float:
    assert suite.enlarged is not None
    worst = 0.0
    for model in suite.models:
        small, large = values[model], float(metric.measure(suite.enlarged(suite.answers[model])))
        if not (small == large or (math.isnan(small) and math.isnan(large))):
            worst = max(worst, abs(large - small) / max(abs(small), 1e-12))
    return worst


def judged(suites: Sequence[Suite]) -> list[tuple[Suite, list[Judged]]]:
    """Outcomes of all metrics, suite by suite."""
    return [(suite, [judge(suite, metric) for metric in suite.metrics]) for suite in suites]
