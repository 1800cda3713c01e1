"""Does the world go the way a policy imagined, and does that foretell success?

While a policy acts it imagines, with every chunk of actions, what will be seen `offset` steps later; then that is seen. An episode in which
nothing moves is imagined easily and fails (arXiv:2605.07514 finds its consistency fooled by that), so the motion stands beside every
figure, and how well it foretells success by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from wamkit.envs.base import held_out_seeds
from wamkit.eval.metrics.image import TAU
from wamkit.eval.suites.closed_loop import Protocol
from wamkit.inference.policy import Session
from wamkit.rollout.loop import Transition, rollout
from wamkit.runs.run import Run
from wamkit.types import UNDEFINED, EvaluationError, Interval
from wamkit.workers import run_parallel


@dataclass(frozen=True)
class Foreseen:
    """One episode: Q moments at which something was imagined that was then seen.

    error: mean squared error of what was imagined, in [0, 1], (Q,).   motion: of the picture before, that is how much changed, (Q,).
    """

    task: str
    seed: int
    success: bool
    error: Float[np.ndarray, " Q"]
    motion: Float[np.ndarray, " Q"]

    @property
    def skill(self) -> float:
        """1 - error / motion over the episode: 1 is foreseen exactly, 0 as if nothing would move. NaN where nothing moved."""
        return 1 - float(self.error.sum() / self.motion.sum()) if self.motion.sum() else float("nan")


class ForecastErrors:
    """Observer of a policy: errors of the frame imagined `offset` steps ahead, once that step is seen.

    frame: index of that frame among the policy's imagined ones.   offset: at most the steps between two queries.
    """

    def __init__(self, frame: int, offset: int):
        self.frame, self.offset = frame, offset
        self.pairs: list[tuple[float, float]] = []
        self._forecast: tuple[int, UInt8[np.ndarray, "V 3 H W"], UInt8[np.ndarray, "V 3 H W"]] | None = None

    def __call__(self, t: Transition) -> None:
        images, future = t.observation.images, t.next_session.future
        if self._forecast is not None and t.step == self._forecast[0] and images is not None:
            self.pairs.append(_errors(self._forecast[1], self._forecast[2], images))
        if t.queried and future is not None:
            self._forecast = t.step + self.offset, future[self.frame], images


def _errors(imagined: np.ndarray, before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Mean squared errors of what was imagined and of the picture before, on pixels that move in either; 0 and 0 if none do."""
    a, b, c = (x.astype(np.float32) / 255 for x in (imagined, before, after))
    moves = ((np.abs(c - b) > TAU) | (np.abs(a - b) > TAU)).any(-3, keepdims=True)
    return float((np.square(a - c) * moves).mean()), float((np.square(b - c) * moves).mean())


LEAST = 5
"""Failures, and successes, from which areas under the ROC curve are given: resampling one failure would claim certainty."""


def _work(job: tuple[Run, Protocol, str, int]) -> Foreseen:
    run, p, task, seed = job
    policy, env = replace(p, query="joint").make_policy(run), p.env.make(task)
    errors = ForecastErrors(policy.model.spec.frame_offsets.index(p.replan_every), p.replan_every)
    try:
        episode = rollout(env, policy, seed=seed, session=Session(seed), record_images=False, observers=[errors])
    finally:
        env.close()
    error, motion = np.array(errors.pairs, np.float64).reshape(-1, 2).T
    return Foreseen(task, seed, episode.succeeded, error, motion)


def foreseen(run: Run, protocol: Protocol, *, processes: int = 2) -> list[Foreseen]:
    """Plays the protocol's episodes with the query `joint` and keeps what came of what was imagined. The same on any number of processes.

    Raises EvaluationError where the model imagines nothing `replan_every` steps ahead, which is when it looks again.
    """
    offsets = run.spec.frame_offsets
    if protocol.replan_every not in offsets:
        raise EvaluationError(
            f"the model imagines {offsets} steps ahead, but looks again after {protocol.replan_every}: replan after one of those"
        )
    jobs = [(run, protocol, t, s) for t in protocol.env.tasks for s in held_out_seeds(protocol.episodes)]
    work = run_parallel(
        jobs, _work, processes=processes, desc="foreseen", unit="episode", describe=lambda j: f"{j[2]}, seed {j[3]}"
    )
    with closing(work):
        return list(work)


@dataclass(frozen=True)
class Foretelling:
    """How well figures of an episode tell success from failure: areas under the ROC curve, 0.5 is a guess, 1 is always.

    skill: by how well the world was foreseen.   motion: by how much moved, the competitor that imagines nothing.
    Both are ranked within their task, so that easy tasks do not pass for good foresight; NaN where a task never has both outcomes, or fewer than
    `LEAST` episodes have one of them.
    """

    episodes: int
    failures: int
    skill: Interval
    motion: Interval


def foretelling(episodes: Sequence[Foreseen], seed: int = 0, draws: int = 2000) -> Foretelling:
    """See `Foretelling`; intervals resample episodes within tasks. Raises EvaluationError where there are none."""
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
        x = np.nan_to_num(x, nan=-np.inf)  # an episode in which nothing moved foretells failure
        value = auc(x, success, task)
        if np.isnan(value) or min(success.sum(), (~success).sum()) < LEAST:
            out[name] = UNDEFINED
            continue
        found = []
        for _ in range(draws):
            rows = np.concatenate([rng.choice(np.flatnonzero(task == t), (task == t).sum()) for t in np.unique(task)])
            found.append(auc(x[rows], success[rows], task[rows]))
        low, high = np.nanquantile(found, (0.025, 0.975))
        out[name] = Interval(value, float(low), float(high))
    return Foretelling(len(episodes), int((~success).sum()), **out)


def auc(x: Float[np.ndarray, " N"], success: Bool[np.ndarray, " N"], task: np.ndarray) -> float:
    """Share of pairs of a success and a failure of one task in which the success has the greater `x`, ties half; NaN without such a pair."""
    better = pairs = 0.0
    for t in np.unique(task):
        good, bad = x[(task == t) & success], x[(task == t) & ~success]
        better += (good[:, None] > bad).sum() + (good[:, None] == bad).sum() / 2
        pairs += len(good) * len(bad)
    return better / pairs if pairs else float("nan")
