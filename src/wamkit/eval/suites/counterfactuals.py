"""One state of a simulator, many futures: snapshots along an expert's episodes, and what each of several chunks of actions does there.

On-expert branches are chunks of demonstrations: what was done here, and what was done in other moments of the task. Off-expert branches
go to both ends of every action, hold still, and wander.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from wamkit.envs.base import VALIDATION_SEED_BASE, Environment, observation
from wamkit.envs.spec import EnvSpec
from wamkit.types import EvaluationError, Observation, Snapshot, Spec, WamkitError
from wamkit.workers import run_parallel

STILL = "still"
"""The branch in which nothing is done."""

OTHERS = 3
"""On-expert branches besides the one that was taken: chunks of other moments of the task."""

FIRST_SEED = VALIDATION_SEED_BASE + 900_000
"""Episodes that states are taken from are reset with this seed and those after it: neither trained on nor played from."""


@dataclass(frozen=True)
class Moment:
    """A state in an expert's episode. step: how far into it.   state: the simulator's.   obs: what was seen there."""

    step: int
    state: Snapshot
    obs: Observation


@dataclass(frozen=True)
class Episode:
    """An expert's episode without noise, up to success. moments: its steps.   actions: float32 (T, a).   success: whether it came to it."""

    moments: tuple[Moment, ...]
    actions: Float32[np.ndarray, "T a"]
    success: bool


@dataclass(frozen=True)
class Counterfactuals:
    """One state and its K true futures.

    task, seed, step: which episode, and how far into it.   obs: what was seen there.   names: of the branches.
    actions: float32 (K, A, a), what was carried out.   future: uint8 (K, F, V, 3, H, W), what was then seen, `offsets` steps ahead.
    reward: float64 (K,), the sum of the environment's rewards over the chunk.   expert: bool (K,), on-expert branches.
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
        """The branches of one kind; off-expert ones with the one in which nothing is done."""
        rows = np.flatnonzero(self.expert == expert)
        names = tuple(self.names[i] for i in rows)
        arrays = (x[rows] for x in (self.actions, self.future, self.reward, self.expert))
        return Counterfactuals(self.task, self.seed, self.step, self.obs, names, *arrays)


def rollout_from(
    env: Environment, start: Snapshot, actions: Float32[np.ndarray, "K A a"], offsets: Sequence[int]
) -> tuple[UInt8[np.ndarray, "K F V 3 H W"], Float64[np.ndarray, " K"]]:
    """Carries out every chunk from the same state: what is seen `offsets` steps later, and the rewards' sum.

    Branches do not touch each other: any order gives the same bytes. Raises EvaluationError where an environment breaks that.
    """
    futures, rewards = [], []
    for chunk in actions:
        env.restore(start, render=False)
        seen, total = [], 0.0
        for step, action in enumerate(chunk, 1):
            raw, reward, *_ = env.step(action, render=step in offsets)
            total += float(reward)
            if step in offsets:
                seen.append(raw["images"])
        futures.append(np.stack(seen))
        rewards.append(total)
    env.restore(start, render=False)
    if not np.array_equal(env.snapshot().physics, start.physics):
        raise EvaluationError(f"{env.task}: a restored state is not the one that was taken; run `wamkit check-env`")
    return np.stack(futures), np.array(rewards)


def off_expert(env: Environment, chunk: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Chunks, float32 (A, a), that no demonstration holds: nothing, each action to both its ends, and a smooth random walk."""
    low, high = env.action_space.low, env.action_space.high
    nothing = np.clip(np.zeros_like(low), low, high)
    out = {STILL: nothing}
    for i, name in enumerate(env.action_names):
        for sign, end in (("-", low), ("+", high)):
            out[sign + name] = nothing.copy()
            out[sign + name][i] = end[i]
    chunks = {k: np.repeat(v[None], chunk, 0) for k, v in out.items()}
    knots = rng.uniform(low, high, (chunk // 4 + 2, len(low)))
    at = np.arange(chunk) / 4
    walk = [np.interp(at, np.arange(len(knots)), knots[:, i]) for i in range(len(low))]
    return {k: v.astype(np.float32) for k, v in (chunks | {"wander": np.stack(walk, 1)}).items()}


def expert_episode(env: Environment, seed: int, past: Sequence[int] = ()) -> Episode:
    """The scripted expert plays, without noise, and every state on its way is kept. Raises WamkitError where there is no expert."""
    expert = env.expert()
    if expert is None:
        raise WamkitError(
            f"{env.robot_type}, {env.task}: there is no scripted expert, and states are taken from what one does"
        )
    rng = np.random.default_rng((seed, 4))
    states, seen, actions, done, success = [], [], [], False, False
    raw, _ = env.reset(seed=seed)
    while not (success or done):
        states.append(env.snapshot())
        seen.append(observation(raw, env.observation_space))
        actions.append(np.clip(expert(rng), env.action_space.low, env.action_space.high).astype(np.float32))
        raw, _, terminated, truncated, info = env.step(actions[-1])
        success, done = bool(info["success"]), terminated or truncated
    moments = []
    for t, (state, now) in enumerate(zip(states, seen, strict=True)):
        before = tuple(seen[t + o] if t + o >= 0 else None for o in past)
        moments.append(Moment(t, state, Observation(now.images, now.proprio, now.text, before, now.point_cloud)))
    return Episode(tuple(moments), np.stack(actions), success)


def _work(job: tuple[EnvSpec, Spec, str, int, int]) -> list[Counterfactuals]:
    """`count` states of one episode, evenly spread; its other chunks are the other on-expert branches."""
    where, spec, task, seed, count = job
    env, rng = where.shared(task), np.random.default_rng((seed, 5))
    episode = expert_episode(env, seed, spec.past_offsets)
    last = len(episode.actions) - spec.chunk
    if last < 1:
        raise EvaluationError(f"{task}, seed {seed}: {len(episode.actions)} steps, less than a chunk of {spec.chunk}")
    chunk_at = lambda t: episode.actions[t : t + spec.chunk]  # noqa: E731
    out = []
    for t in np.unique(np.linspace(0, last, count + 2).astype(int)[1:-1]).tolist():
        away = [k for k in range(0, last + 1, max(1, last // 12)) if abs(k - t) >= spec.chunk // 2]
        others = sorted(rng.permutation(away)[:OTHERS].tolist())
        on = {"taken": chunk_at(t)} | {f"of step {k}": chunk_at(k) for k in others}
        chunks = on | off_expert(env, spec.chunk, rng)
        done = np.stack(list(chunks.values()))
        future, reward = rollout_from(env, episode.moments[t].state, done, spec.frame_offsets)
        expert = np.array([name in on for name in chunks])
        out.append(Counterfactuals(task, seed, t, episode.moments[t].obs, tuple(chunks), done, future, reward, expert))
    return out


def counterfactuals(
    env: EnvSpec, spec: Spec, *, episodes: int = 6, moments: int = 2, processes: int = 2
) -> list[Counterfactuals]:
    """`moments` states of each of `episodes` episodes a task, from reset states that nothing was trained on, with their branches.

    The same on any number of processes. Raises EvaluationError as `branch` does, and for an episode that is shorter than a chunk.
    """
    jobs = [(env, spec, task, FIRST_SEED + i, moments) for task in env.tasks for i in range(episodes)]
    work = run_parallel(
        jobs, _work, processes=processes, desc="branches", unit="episode", describe=lambda j: f"{j[2]}, seed {j[3]}"
    )
    with closing(work):
        return [state for states in work for state in states]
