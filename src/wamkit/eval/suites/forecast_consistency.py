"""Forecast consistency: does the imagined future match the executed one, and does the error predict success?

A policy imagines, with every chunk of actions, the frame `offset` steps later, which is then observed. An episode in
which nothing moves is easy to imagine and fails (arXiv:2605.07514 finds its consistency fooled by that). So the motion
stands beside every figure, with its own prediction of success.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from wamkit.data.image_transform import ImageTransform
from wamkit.envs.base import held_out_seeds
from wamkit.eval.metrics.image import TAU
from wamkit.eval.metrics.intervals import bootstrap_ratio, percentile_interval
from wamkit.eval.protocols import Protocol
from wamkit.eval.registry import EVALUATIONS, Context, Evaluation
from wamkit.eval.results import ACTION, EvalResult, Row, Table
from wamkit.inference.policy import Session
from wamkit.rollout.loop import Transition, rollout
from wamkit.runs.run import Run
from wamkit.types import UNDEFINED, EvaluationError, Interval, Query
from wamkit.workers import run_parallel


@dataclass(frozen=True)
class ForecastEpisode:
    """One episode with Q forecasts that were then observed.

    error: mean squared error of the imagined frame, in [0, 1], (Q,).   motion: mean squared error of the frame before,
    which is the amount of change, (Q,).
    """

    task: str
    seed: int
    success: bool
    error: Float[np.ndarray, " Q"]
    motion: Float[np.ndarray, " Q"]

    @property
    def skill(self) -> float:
        """1 - error / motion over the episode: 1 is exact, 0 as if nothing would move. NaN where nothing moved."""
        return 1 - float(self.error.sum() / self.motion.sum()) if self.motion.sum() else float("nan")


class ForecastErrors:
    """Observer of a policy: errors of the frame imagined `offset` steps ahead, once that step is seen.

    frame: index of that frame among the policy's imagined ones.   offset: at most the steps between two queries.
    image: brings what is seen to the size of what is imagined, where these differ.
    """

    def __init__(self, frame: int, offset: int, image: ImageTransform | None = None):
        self.frame, self.offset, self._image = frame, offset, image
        self.pairs: list[tuple[float, float]] = []
        self._forecast: tuple[int, UInt8[np.ndarray, "V 3 H W"], UInt8[np.ndarray, "V 3 H W"]] | None = None

    def __call__(self, t: Transition) -> None:
        images, future = t.observation.images, t.next_session.future
        images = images if images is None or self._image is None else self._image(images)
        if self._forecast is not None and t.step == self._forecast[0] and images is not None:
            self.pairs.append(_errors(self._forecast[1], self._forecast[2], images))
        if t.queried and future is not None:
            self._forecast = t.step + self.offset, future[self.frame], images


def _errors(imagined: np.ndarray, before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Mean squared errors of the imagined frame and of the frame before, on pixels that move in either."""
    a, b, c = (x.astype(np.float32) / 255 for x in (imagined, before, after))
    moves = ((np.abs(c - b) > TAU) | (np.abs(a - b) > TAU)).any(-3, keepdims=True)
    return float((np.square(a - c) * moves).mean()), float((np.square(b - c) * moves).mean())


LEAST = 5
"""Least number of failures, and of successes, for an area under the ROC curve: resampling one would claim certainty."""


def _work(job: tuple[Run, Protocol, str, int]) -> ForecastEpisode:
    run, p, task, seed = job
    policy, env = replace(p, query="joint").make_policy(run), p.env.make(task)
    spec, every = policy.model.spec, policy.replan_every
    errors = ForecastErrors(spec.frame_offsets.index(every), every, ImageTransform.of(spec))
    try:
        episode = rollout(env, policy, seed=seed, session=Session(seed), record_images=False, observers=[errors])
    finally:
        env.close()
    error, motion = np.array(errors.pairs, np.float64).reshape(-1, 2).T
    return ForecastEpisode(task, seed, episode.succeeded, error, motion)


def forecast_episodes(run: Run, protocol: Protocol, *, processes: int = 2) -> list[ForecastEpisode]:
    """Plays the protocol's episodes with the query `joint` and compares forecasts with observations.

    The result does not depend on the number of processes. Raises EvaluationError for a model that does not imagine the
    frame `replan_every` steps ahead, which is the next one that it observes.
    """
    offsets, protocol = run.spec.frame_offsets, protocol.replanning(run)
    if protocol.replan_every not in offsets:
        raise EvaluationError(
            f"the model imagines {offsets} steps ahead, but observes again after {protocol.replan_every}: "
            "replan after one of those"
        )
    jobs = [(run, protocol, t, s) for t in protocol.env.tasks for s in held_out_seeds(protocol.episodes)]
    work = run_parallel(
        jobs, _work, processes=processes, desc="forecast", unit="episode", describe=lambda j: f"{j[2]}, seed {j[3]}"
    )
    with closing(work):
        return list(work)


@dataclass(frozen=True)
class SuccessPrediction:
    """Prediction of success by figures of an episode: areas under the ROC curve, 0.5 is a guess, 1 is perfect.

    skill: by the skill of the forecast.   motion: by the amount of motion, a baseline that imagines nothing.
    Episodes are ranked within their task, so that easy tasks do not pass for good forecasts. NaN where no task has both
    outcomes, or fewer than `LEAST` episodes have one of them.
    """

    episodes: int
    failures: int
    skill: Interval
    motion: Interval


def success_prediction(episodes: Sequence[ForecastEpisode], seed: int = 0, draws: int = 2000) -> SuccessPrediction:
    """Areas under the ROC curve; intervals resample episodes within tasks. Raises EvaluationError without episodes."""
    if not episodes:
        raise EvaluationError("there are no episodes")
    task = np.unique([e.task for e in episodes], return_inverse=True)[1]
    success = np.array([e.success for e in episodes])
    values = {
        "skill": np.array([e.skill for e in episodes]),
        "motion": np.array([e.motion.mean() if len(e.motion) else 0.0 for e in episodes]),
    }
    out: dict[str, Any] = {}
    rng = np.random.default_rng(seed)
    for name, x in values.items():
        x = np.nan_to_num(x, nan=-np.inf)  # an episode in which nothing moved predicts failure
        value = auc(x, success, task)
        if np.isnan(value) or min(success.sum(), (~success).sum()) < LEAST:
            out[name] = UNDEFINED
            continue
        found = []
        for _ in range(draws):
            rows = np.concatenate([rng.choice(np.flatnonzero(task == t), (task == t).sum()) for t in np.unique(task)])
            found.append(auc(x[rows], success[rows], task[rows]))
        units = int(min(success.sum(), (~success).sum()))
        out[name] = percentile_interval(value, np.array(found), units, bounds=(0.0, 1.0))
    return SuccessPrediction(len(episodes), int((~success).sum()), **out)


def auc(x: Float[np.ndarray, " N"], success: Bool[np.ndarray, " N"], task: np.ndarray) -> float:
    """Share of pairs of a success and a failure of one task in which the success has the greater `x`; ties count half.

    NaN without such a pair.
    """
    better = pairs = 0.0
    for t in np.unique(task):
        good, bad = x[(task == t) & success], x[(task == t) & ~success]
        better += (good[:, None] > bad).sum() + (good[:, None] == bad).sum() / 2
        pairs += len(good) * len(bad)
    return better / pairs if pairs else float("nan")


def consistency_table(episodes: Sequence[ForecastEpisode], replan_every: int | None) -> Table:
    """Skill of the forecast, and how well it predicts success. replan_every: steps between forecast and observation."""
    prediction, names = success_prediction(episodes), [f"{e.task} {e.seed}" for e in episodes]
    error, motion = (np.array([getattr(e, k).sum() for e in episodes]) for k in ("error", "motion"))
    rows = []
    if motion.sum():
        r = bootstrap_ratio(error, motion, np.unique(names, return_inverse=True)[1], seed=0, bounds=(0.0, inf))
        note = f"of the frame {replan_every} steps later; 1 is exact, 0 as if nothing would move"
        skill = Interval(1 - r.value, 1 - r.high, 1 - r.low, r.level)
        rows.append(Row("skill", "skill of its forecast", skill.value, skill, fmt=".3f", note=note))
    auc_note = "area under the ROC curve within tasks; 0.5 is a guess"
    for key, name, x, note in (
        ("auc.skill", "success predicted by the forecast", prediction.skill, auc_note),
        ("auc.motion", "success predicted by motion alone", prediction.motion, "a baseline that imagines nothing"),
    ):
        if not x.undefined:
            rows.append(Row(key, name, x.value, x, fmt=".2f", note=note))
    how = f"{prediction.episodes} episodes in which it acts on the query `joint`; {prediction.failures} failed."
    how += " Too few of one outcome for a prediction." if prediction.skill.undefined else ""
    return Table("forecast_consistency", "Does the world go as it imagined?", how, tuple(rows), ACTION)


@EVALUATIONS.register("forecast_consistency")
class ForecastConsistency(Evaluation):
    """Error of the forecast while the policy acts on it."""

    suite, order = "full", 80

    def needs(self, context: Context) -> bool:
        model = context.model
        return Query.JOINT in model.queries and context.protocol.replan_every in model.spec.frame_offsets

    def run(self, context: Context) -> EvalResult:
        episodes = forecast_episodes(context.run, context.protocol, processes=context.options.processes)
        return EvalResult((consistency_table(episodes, context.protocol.replan_every),))
