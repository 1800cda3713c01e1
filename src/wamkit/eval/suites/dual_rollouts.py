"""Where policies are played twice from the same reset states: inside a world model, and in the simulator. What was played is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from wamkit.config import digest
from wamkit.envs.base import held_out_seeds, observation
from wamkit.envs.spec import EnvSpec
from wamkit.eval.cache import cached_arrays
from wamkit.eval.metrics.intervals import wilson
from wamkit.eval.suites.closed_loop import SEEDS_PER_JOB
from wamkit.imagination.env import ImaginedRollout, imagined_rollout
from wamkit.imagination.success_classifier import SuccessClassifier
from wamkit.inference.model import Model, opened
from wamkit.inference.policy import Policy, Session
from wamkit.rollout.loop import Transition, rollout
from wamkit.runs.run import Run
from wamkit.types import Interval, Observation
from wamkit.workers import run_parallel

BATCH = 64

Start = tuple[str, int, Observation]
"""Task, seed, and what is seen after that reset."""


@dataclass(frozen=True)
class PairedRollouts:
    """R starts, a world model and a judge of its pictures.

    folder: where finished parts are kept.   key: JSON-able, all that world model, judge and starts are made of.
    replan_every: actions taken of each chunk.   max_steps: of a dream.
    """

    folder: Path
    key: Sequence[Any]
    world: Model
    judge: SuccessClassifier
    env: EnvSpec
    starts: tuple[Start, ...]
    replan_every: int
    max_steps: int
    processes: int

    def played(self, run: Run, which: Sequence[int]) -> list[tuple[bool, UInt8[np.ndarray, "Q V 3 H W"]]]:
        """Success in the simulator from each of these starts, and what the policy saw whenever it was asked; where it succeeds, also after."""
        rows = [(self.starts[i][0], self.starts[i][1]) for i in which]
        jobs = []
        for task in self.env.tasks:
            seeds = [s for t, s in rows if t == task]
            for low in range(0, len(seeds), SEEDS_PER_JOB):
                jobs.append((self.env, run, task, tuple(seeds[low : low + SEEDS_PER_JOB]), self.replan_every))
        work = run_parallel(
            jobs, _watch, processes=self.processes, desc=f"real {run.name}", unit="job", describe=lambda j: j[2]
        )
        with closing(work):
            return [episode for part in work for episode in part]

    def watched(self, run: Run) -> tuple[Bool[np.ndarray, " R"], Bool[np.ndarray, " R"]]:
        """What becomes of a policy in the simulator, and what the judge makes of the simulator's pictures."""

        def play() -> dict[str, np.ndarray]:
            episodes = self.played(run, range(len(self.starts)))
            judged = [self.judge.read(seen)[0].max() >= self.judge.threshold for _, seen in episodes]
            return {"real": np.array([success for success, _ in episodes]), "judged": np.array(judged)}

        kept = self._kept("watched", {"run": run.digest}, play)
        return kept["real"], kept["judged"]

    def dreams(self, run: Run, candidates: int = 1, spread: float = 0.0) -> Iterator[ImaginedRollout]:
        """What becomes of a policy inside the world model, a batch of starts at a time. candidates, spread: see `dream`."""
        policy, few = opened(run), max(1, BATCH // candidates)
        for low in range(0, len(self.starts), few):
            yield imagined_rollout(
                policy,
                self.world,
                self.judge,
                [obs for *_, obs in self.starts[low : low + few]],
                replan_every=self.replan_every,
                max_steps=self.max_steps,
                seed=low,
                candidates=candidates,
                spread=spread,
            )

    def dreamed(
        self, run: Run, candidates: int = 1, spread: float = 0.0
    ) -> tuple[Bool[np.ndarray, " R"], Float32[np.ndarray, "R T a"]]:
        """Outcomes and actions of these dreams."""

        def go() -> dict[str, np.ndarray]:
            parts = list(self.dreams(run, candidates, spread))
            return {k: np.concatenate([getattr(p, k) for p in parts]) for k in ("success", "actions")}

        key = {"run": run.digest, "max_steps": self.max_steps, "spread": spread, "candidates": candidates}
        kept = self._kept("dream", key, go)
        return kept["success"], kept["actions"]

    def carried_out(self, actions: Float32[np.ndarray, "R T a"]) -> Bool[np.ndarray, " R"]:
        """Whether the simulator, too, succeeds with these actions, one after the other."""
        jobs = [(self.env, task, seed, actions[i]) for i, (task, seed, _) in enumerate(self.starts)]
        work = run_parallel(
            jobs,
            _carry_out,
            processes=self.processes,
            desc="carry out",
            unit="episode",
            describe=lambda j: f"{j[1]}, seed {j[2]}",
        )
        with closing(work):
            return np.array(list(work))

    def _kept(self, name: str, key: Mapping[str, Any], make: Callable[[], dict[str, np.ndarray]]) -> dict[str, Any]:
        """Arrays that were made under `key` before, or are now."""
        return cached_arrays(self.folder / "parts" / f"{name}-{digest([key, *self.key])}.npz", make)


def starts(env: EnvSpec, episodes: int, processes: int) -> tuple[Start, ...]:
    """The first `episodes` held-out reset states of each task."""
    jobs = [(env, task, held_out_seeds(episodes)) for task in env.tasks]
    work = run_parallel(jobs, _first, processes=processes, desc="starts", unit="task", describe=lambda j: j[1])
    with closing(work):
        return tuple(start for part in work for start in part)


# ---------------------------------------------------------------------------------------------------- in worker processes


def _first(job: tuple[EnvSpec, str, tuple[int, ...]]) -> list[Start]:
    where, task, seeds = job
    env = where.shared(task)
    return [(task, s, observation(env.reset(seed=s)[0], env.observation_space)) for s in seeds]


def _watch(job: tuple[EnvSpec, Run, str, tuple[int, ...], int]) -> list[tuple[bool, np.ndarray]]:
    """Success of each episode and its pictures uint8 (Q, V, 3, H, W), the last of them after the success, where there is one."""
    where, run, task, seeds, replan_every = job
    env, policy = where.shared(task), Policy(opened(run), replan_every=replan_every)
    out = []
    for seed in seeds:
        played: list[Transition] = []
        episode = rollout(
            env,
            policy,
            seed=seed,
            session=Session(seed),
            record_images=False,
            steps_after_success=replan_every,
            observers=[played.append],
        )
        out.append((episode.succeeded, np.stack([t.observation.images for t in played if t.queried])))
    return out


def _carry_out(job: tuple[EnvSpec, str, int, np.ndarray]) -> bool:
    """Whether the simulator, too, succeeds with these actions, one after the other."""
    where, task, seed, actions = job
    env = where.shared(task)
    env.reset(seed=seed, render=False)
    for action in actions:
        *_, truncated, info = env.step(action, render=False)
        if info["success"] or truncated:
            return bool(info["success"])
    return False


@dataclass(frozen=True)
class PolicyOutcome:
    """One policy: outcomes by task and reset state, bool (R,). dreamed: as the judge sees dreams.   real: as the simulator says.
    judged: as the judge sees the simulator's pictures of the same episodes; where that is wrong, the judge is to blame, not the dreams."""

    run: Run
    dreamed: np.ndarray
    real: np.ndarray
    judged: np.ndarray


def success_interval(outcomes: np.ndarray) -> Interval:
    return wilson(int(outcomes.sum()), len(outcomes))
