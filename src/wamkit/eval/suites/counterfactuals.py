"""Counterfactuals: several true futures of one state, to compare with the futures that a model predicts.

States are taken along an expert's episodes. From each, the simulator replays on-expert chunks (the one taken there, and
those of other moments of the task) and off-expert chunks (every action dimension at both its ends, no motion, a random
walk).
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from wamkit.envs.base import VALIDATION_SEED_BASE
from wamkit.envs.spec import EnvSpec
from wamkit.rollout.replay import expert_episode, observed, off_expert_chunks, rollout_from
from wamkit.types import EvaluationError, Observation, Spec
from wamkit.workers import run_parallel

OTHERS = 3
"""Number of on-expert chunks from other moments of the episode."""

FIRST_SEED = VALIDATION_SEED_BASE + 900_000
"""States are taken from episodes reset with this seed and those after it, which neither training nor closed loop
uses."""


@dataclass(frozen=True)
class Counterfactuals:
    """One state and its K true futures.

    task, seed, step: the episode, and the step in it.   obs: the observation at the state.   names: of the chunks.
    actions: float32 (K, A, a), as executed.   future: uint8 (K, F, V, 3, H, W), images at the model's horizons.
    reward: float64 (K,), sum over the chunk.   expert: bool (K,), whether the chunk is on-expert.
    """

    task: str
    seed: int
    step: int
    obs: Observation
    names: tuple[str, ...]
    actions: Float32[np.ndarray, "K A a"]
    future: UInt8[np.ndarray, "K F V 3 H W"]
    reward: Float64[np.ndarray, " K"]
    expert: Bool[np.ndarray, " K"]

    def only(self, expert: bool) -> Counterfactuals:
        """The chunks of one kind; the chunk without motion counts as off-expert."""
        rows = np.flatnonzero(self.expert == expert)
        names = tuple(self.names[i] for i in rows)
        arrays = (x[rows] for x in (self.actions, self.future, self.reward, self.expert))
        return Counterfactuals(self.task, self.seed, self.step, self.obs, names, *arrays)


def _work(job: tuple[EnvSpec, Spec, str, int, int]) -> list[Counterfactuals]:
    """`count` evenly spaced states of one episode, whose other chunks are the other on-expert ones."""
    where, spec, task, seed, count = job
    env, rng = where.shared(task), np.random.default_rng((seed, 5))
    episode = expert_episode(env, seed)
    last = len(episode) - spec.chunk
    if last < 1 or episode.snapshots is None:
        raise EvaluationError(f"{task}, seed {seed}: {len(episode)} steps, less than a chunk of {spec.chunk}")
    chunk_at = lambda t: episode.action[t : t + spec.chunk]  # noqa: E731
    out = []
    for t in np.unique(np.linspace(0, last, count + 2).astype(int)[1:-1]).tolist():
        distant = [k for k in range(0, last + 1, max(1, last // 12)) if abs(k - t) >= spec.chunk // 2]
        others = sorted(rng.permutation(distant)[:OTHERS].tolist())
        on_expert = {"taken": chunk_at(t)} | {f"of step {k}": chunk_at(k) for k in others}
        chunks = on_expert | off_expert_chunks(env, spec.chunk, rng)
        actions = np.stack(list(chunks.values()))
        future, reward = rollout_from(env, episode.snapshots[t], actions, spec.frame_offsets)
        expert, obs = np.array([name in on_expert for name in chunks]), observed(episode, t, spec.past_offsets)
        out.append(Counterfactuals(task, seed, t, obs, tuple(chunks), actions, future, reward, expert))
    return out


def counterfactuals(
    env: EnvSpec, spec: Spec, *, episodes: int = 6, moments: int = 2, processes: int = 2
) -> list[Counterfactuals]:
    """`moments` states of each of `episodes` episodes a task, from reset states that nothing was trained on.

    The same on any number of processes. Raises EvaluationError as `rollout_from`, and for an episode shorter than a
    chunk.
    """
    jobs = [(env, spec, task, FIRST_SEED + i, moments) for task in env.tasks for i in range(episodes)]
    work = run_parallel(
        jobs, _work, processes=processes, desc="replay", unit="episode", describe=lambda j: f"{j[2]}, seed {j[3]}"
    )
    with closing(work):
        return [state for states in work for state in states]
