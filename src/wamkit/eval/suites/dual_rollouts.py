"""Rollouts of policies from shared reset states, in the simulator and inside a world model; results are cached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from wamkit.config import digest
from wamkit.data.image_transform import ImageTransform
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
from wamkit.rollout.replay import ActionSequence
from wamkit.runs.run import Run
from wamkit.types import Interval, Observation
from wamkit.workers import run_parallel

BATCH = 64
"""Largest number of chunks that are imagined at once."""

Start = tuple[str, int, Observation]
"""Task, seed, and the observation after that reset."""


@dataclass(frozen=True)
class PairedRollouts:
    """R starts, a world model, and a classifier that reads success off images.

    folder: of the cache.
    key: JSON-able, everything that world model, classifier and starts depend on.
    replan_every: executed actions of each chunk.
    max_steps: of an imagined rollout.
    """

    folder: Path
    key: Sequence[Any]
    world: Model
    classifier: SuccessClassifier
    env: EnvSpec
    starts: tuple[Start, ...]
    replan_every: int
    max_steps: int
    processes: int

    def simulated_episodes(self, run: Run, which: Sequence[int]) -> list[tuple[bool, UInt8[np.ndarray, "Q V 3 H W"]]]:
        """Success in the simulator from each of these starts, and the images at each of the policy's queries.

        After a success the episode continues to the next query.
        """
        rows = [(self.starts[i][0], self.starts[i][1]) for i in which]
        jobs = []
        for task in self.env.tasks:
            seeds = [s for t, s in rows if t == task]
            for low in range(0, len(seeds), SEEDS_PER_JOB):
                jobs.append((self.env, run, task, tuple(seeds[low : low + SEEDS_PER_JOB]), self.replan_every))
        work = run_parallel(
            jobs, _simulate, processes=self.processes, desc=f"real {run.name}", unit="job", describe=lambda j: j[2]
        )
        with closing(work):
            return [episode for part in work for episode in part]

    def simulated(self, run: Run) -> tuple[Bool[np.ndarray, " R"], Bool[np.ndarray, " R"]]:
        """Success of a policy in the simulator, and success as the classifier reads it off the simulator's images."""

        def compute() -> dict[str, np.ndarray]:
            episodes = self.simulated_episodes(run, range(len(self.starts)))
            image, classifier = ImageTransform.of(self.world.spec), self.classifier
            read = [classifier.read(image(seen))[0].max() >= classifier.threshold for _, seen in episodes]
            return {"real": np.array([success for success, _ in episodes]), "classified": np.array(read)}

        arrays = self._cached("simulated", {"run": run.digest}, compute)
        return arrays["real"], arrays["classified"]

    def imagined_rollouts(self, run: Run, candidates: int = 1, spread: float = 0.0) -> Iterator[ImaginedRollout]:
        """Rollouts of a policy inside the world model, a batch of starts at a time.

        candidates, spread: see `imagined_rollout`.
        """
        policy, size = opened(run), max(1, BATCH // candidates)
        for low in range(0, len(self.starts), size):
            yield imagined_rollout(
                policy,
                self.world,
                self.classifier,
                [obs for *_, obs in self.starts[low : low + size]],
                replan_every=self.replan_every,
                max_steps=self.max_steps,
                seed=low,
                candidates=candidates,
                spread=spread,
            )

    def imagined(
        self, run: Run, candidates: int = 1, spread: float = 0.0
    ) -> tuple[Bool[np.ndarray, " R"], Float32[np.ndarray, "R T a"]]:
        """Success and executed actions of `imagined_rollouts`."""

        def compute() -> dict[str, np.ndarray]:
            parts = list(self.imagined_rollouts(run, candidates, spread))
            return {k: np.concatenate([getattr(p, k) for p in parts]) for k in ("success", "actions")}

        key = {"run": run.digest, "max_steps": self.max_steps, "spread": spread, "candidates": candidates}
        arrays = self._cached("imagined", key, compute)
        return arrays["success"], arrays["actions"]

    def executed(self, actions: Float32[np.ndarray, "R T a"]) -> Bool[np.ndarray, " R"]:
        """Success of given actions in the simulator, one sequence for each start."""
        jobs = [(self.env, task, seed, actions[i]) for i, (task, seed, _) in enumerate(self.starts)]
        work = run_parallel(
            jobs,
            _execute,
            processes=self.processes,
            desc="execute",
            unit="episode",
            describe=lambda j: f"{j[1]}, seed {j[2]}",
        )
        with closing(work):
            return np.array(list(work))

    def _cached(
        self, name: str, key: Mapping[str, Any], compute: Callable[[], dict[str, np.ndarray]]
    ) -> dict[str, Any]:
        return cached_arrays(self.folder / "parts" / f"{name}-{digest([key, *self.key])}.npz", compute)


def starts(env: EnvSpec, episodes: int, processes: int) -> tuple[Start, ...]:
    """The first `episodes` held-out reset states of each task."""
    jobs = [(env, task, held_out_seeds(episodes)) for task in env.tasks]
    work = run_parallel(jobs, _starts, processes=processes, desc="starts", unit="task", describe=lambda j: j[1])
    with closing(work):
        return tuple(start for part in work for start in part)


def _starts(job: tuple[EnvSpec, str, tuple[int, ...]]) -> list[Start]:
    where, task, seeds = job
    env = where.shared(task)
    return [(task, s, observation(env.reset(seed=s)[0], env.observation_space)) for s in seeds]


def _simulate(job: tuple[EnvSpec, Run, str, tuple[int, ...], int]) -> list[tuple[bool, np.ndarray]]:
    """Success and queried images, uint8 (Q, V, 3, H, W), of each episode; the last image follows a success."""
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


def _execute(job: tuple[EnvSpec, str, int, np.ndarray]) -> bool:
    where, task, seed, actions = job
    sequence = ActionSequence(actions)
    episode = rollout(where.shared(task), sequence, seed=seed, session=0, max_steps=len(actions), record_images=False)
    return episode.succeeded


@dataclass(frozen=True)
class PolicyOutcome:
    """Outcomes of one policy by task and reset state.

    imagined: bool (R,), inside the world model, as the classifier reads it.   real: bool (R,), in the simulator.
    classified: bool (R,), as the classifier reads it off the simulator's images of the same episodes. Where that is
        wrong, the classifier is to blame and not the world model.
    """

    run: Run
    imagined: np.ndarray
    real: np.ndarray
    classified: np.ndarray


def success_interval(outcomes: np.ndarray) -> Interval:
    """Success rate with Wilson's interval."""
    return wilson(int(outcomes.sum()), len(outcomes))
