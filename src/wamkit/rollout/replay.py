"""Counterfactual replays: chunks of actions executed from one state of a simulator, and the episodes that states come
from."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from wamkit.data.image_transform import ImageTransform
from wamkit.envs.base import Environment, Expert
from wamkit.rollout.loop import Actor, rollout, transitions
from wamkit.types import Episode, EvaluationError, Observation, Snapshot, Spec, WamkitError

STILL = "still"
"""Name of the chunk without motion in `off_expert_chunks`."""


@dataclass(frozen=True)
class ScriptedExpert(Actor):
    """Executes the expert's own actions. Its session is a random generator."""

    expert: Expert

    def needs_images(self, session: np.random.Generator) -> bool:
        """Never: the expert reads the simulator's state."""
        return False

    def act(self, observation: Observation, session: np.random.Generator) -> tuple[np.ndarray, np.random.Generator]:
        return self.expert(session), session


@dataclass(frozen=True)
class ActionSequence(Actor):
    """Executes given actions, float32 (T, a), one after the other. Its session is the index of the next one."""

    actions: np.ndarray

    def needs_images(self, session: int) -> bool:
        """Never."""
        return False

    def act(self, observation: Observation, session: int) -> tuple[np.ndarray, int]:
        return self.actions[session], session + 1


def expert_episode(env: Environment, seed: int) -> Episode:
    """An episode of the scripted expert without noise, up to success, with a snapshot of every step.

    Raises WamkitError for an environment without an expert.
    """
    expert = env.expert()
    if expert is None:
        raise WamkitError(
            f"{env.robot_type}, {env.task}: states are taken from a scripted expert's episodes; it has none"
        )
    rng = np.random.default_rng((seed, 4))
    return rollout(env, ScriptedExpert(expert), seed=seed, session=rng, snapshot=env.snapshot)


def shown_at(episode: Episode, spec: Spec) -> Episode:
    """The episode with its images at the size of `spec`, as a model of it sees them."""
    return episode if episode.images is None else replace(episode, images=ImageTransform.of(spec)(episode.images))


def observed(episode: Episode, step: int, past: Sequence[int] = ()) -> Observation:
    """The observation at a step of a recorded episode, with those at the steps `past` (negative) before it.

    A past step before the episode's start is None.
    """
    before = tuple(observed(episode, step + o) if step + o >= 0 else None for o in past)
    images = None if episode.images is None else episode.images[step]
    points = None if episode.scene_flow is None else episode.scene_flow.points[step]
    return Observation(images, episode.proprio[step], episode.texts()[step], before, points)


def replay(
    env: Environment, start: Snapshot, actions: Float32[np.ndarray, "A a"], offsets: Sequence[int]
) -> tuple[UInt8[np.ndarray, "F V 3 H W"], float]:
    """Executes a chunk of actions from `start`, whatever happens: the images `offsets` steps later, and the sum of
    rewards."""

    def restore(render: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        return env.restore(start, render=render), {}

    steps = transitions(env, ActionSequence(actions), restore, session=0, render=lambda step: step in offsets)
    played = list(itertools.islice(steps, len(actions)))
    images = [t.next_observation.images for t in played if t.step + 1 in offsets]
    return np.stack([x for x in images if x is not None]), sum(t.reward for t in played)


def rollout_from(
    env: Environment, start: Snapshot, actions: Float32[np.ndarray, "K A a"], offsets: Sequence[int]
) -> tuple[UInt8[np.ndarray, "K F V 3 H W"], Float64[np.ndarray, " K"]]:
    """Replays K chunks from the same state: images `offsets` steps later, and sums of rewards.

    Replays do not affect each other: any order gives the same bytes. Raises EvaluationError where an environment breaks
    that.
    """
    futures, rewards = zip(*(replay(env, start, chunk, offsets) for chunk in actions), strict=True)
    env.restore(start, render=False)
    if not np.array_equal(env.snapshot().physics, start.physics):
        raise EvaluationError(
            f"{env.task}: a restored state differs from the one that was taken; run `wamkit check-env`"
        )
    return np.stack(futures), np.array(rewards)


def off_expert_chunks(env: Environment, chunk: int, rng: np.random.Generator) -> dict[str, Float32[np.ndarray, "A a"]]:
    """Chunks that no demonstration holds, by name: no motion, each action dimension at both its ends, a smooth random
    walk."""
    low, high = env.action_space.low, env.action_space.high
    no_motion = np.clip(np.zeros_like(low), low, high)
    actions = {STILL: no_motion}
    for i, name in enumerate(env.action_names):
        for sign, end in (("-", low), ("+", high)):
            actions[sign + name] = no_motion.copy()
            actions[sign + name][i] = end[i]
    chunks = {k: np.repeat(v[None], chunk, 0) for k, v in actions.items()}
    knots = rng.uniform(low, high, (chunk // 4 + 2, len(low)))
    at = np.arange(chunk) / 4
    walk = [np.interp(at, np.arange(len(knots)), knots[:, i]) for i in range(len(low))]
    return {k: v.astype(np.float32) for k, v in (chunks | {"wander": np.stack(walk, 1)}).items()}
