"""One `rollout` for everything that acts in an environment: collection, evaluation and tests."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from wamkit.envs.base import Environment, observation
from wamkit.types import Episode, Observation, SceneFlow, Snapshot, WamkitError


@dataclass(frozen=True)
class Action:
    """What an actor may return in place of a bare array, when what it executes is not what should be learned.

    executed: float32 (a,), sent to the environment.   expert: float32 (a,), the clean label; None where there is none.
    """

    executed: np.ndarray
    expert: np.ndarray | None = None


class Actor(Protocol):
    """Anything that acts. Its state lives in the session, which the caller holds and passes back."""

    def act(self, observation: Observation, session: Any) -> tuple[np.ndarray | Action, Any]:
        """The next action, float32 (a,) in the environment's units, and the next session.

        An actor may also have `needs_images(session) -> bool`: whether its next call looks at the pictures. A policy that
        is inside a chunk of actions answers no, and the pictures are not drawn unless they are recorded.
        """


def rollout(
    env: Environment,
    actor: Actor,
    *,
    seed: int,
    session: Any = None,
    max_steps: int | None = None,
    skip: int = 0,
    steps_after_success: int | None = 0,
    record_images: bool = True,
    record_snapshots: bool = False,
    is_demonstration: bool = True,
    noise: float = 0.0,
) -> Episode:
    """Resets `env` with `seed`, lets `actor` act, and records the episode (row t: what was seen before action t).

    session: the actor's first session.   max_steps: recorded steps at most; None for the environment's own limit.
    skip: steps that are executed first but not recorded (and drawn only if the actor looks).
    steps_after_success: recorded steps beyond the first success; None to go on regardless.
    record_images, record_snapshots: whether the episode gets pictures (and scene points, where the environment has them) and one
    `Snapshot` for each row.
    is_demonstration, noise: written into the episode.
    `Episode.latency_s` holds the seconds of each call that looked at pictures; with a session that counts its `queries`, of
    each that asked the model.
    Raises WamkitError when an action has the wrong shape or is not finite, or when nothing could be recorded.
    """
    recorder = _Recorder()
    drawing = env.render_images
    try:
        env.render_images = (record_images and skip == 0) or _needs_images(actor, session)
        raw, truth = env.reset(seed=seed)
        left = None
        for step in range(-skip, max_steps if max_steps is not None else _FOREVER):
            if record_snapshots and step >= 0:
                recorder.snapshots.append(env.snapshot())
            looks, before, started = _needs_images(actor, session), session, time.perf_counter()
            action, session = actor.act(observation(raw, env.observation_space), session)
            if looks and step >= 0 and _asked(before, session):
                recorder.latency_s.append(time.perf_counter() - started)
            action = _checked(action, env, actor, step)
            env.render_images = (record_images and step >= -1) or _needs_images(actor, session)
            after, reward, terminated, truncated, info = env.step(action.executed)
            if step >= 0:
                recorder.add(raw, action, float(reward), info["success"])
                if record_images:
                    recorder.images.append(raw["images"])
                    if env.point_grid:
                        recorder.tracks.append((raw["point_cloud"], truth["point_body"], truth["body_pose"]))
                if info["success"] and left is None:
                    left = steps_after_success
                elif left is not None:
                    left -= 1
            raw, truth = after, info
            if left == 0 or terminated or truncated:
                recorder.ended = "terminated" if terminated else "truncated" if truncated else ""
                break
    finally:
        env.render_images = drawing
    if not recorder.action:
        raise WamkitError(
            f"{env.task}, seed {seed}: the episode ended within its {skip} skipped steps, nothing is recorded"
        )
    return recorder.episode(env, seed, is_demonstration, noise)


_FOREVER = 1_000_000_000
"""The environment's own truncation ends the episode long before."""


def _needs_images(actor: Actor, session: Any) -> bool:
    needs = getattr(actor, "needs_images", None)
    return True if needs is None else bool(needs(session))


def _asked(before: Any, after: Any) -> bool:
    """Whether the model was asked between two sessions; True where they do not count."""
    return getattr(after, "queries", 1) != getattr(before, "queries", 0)


def _checked(action: np.ndarray | Action, env: Environment, actor: Actor, step: int) -> Action:
    """The action as it will be executed: float32 (a,), finite, clipped to the action space; the label likewise."""
    if not isinstance(action, Action):
        action = Action(action)
    space, out = env.action_space, []
    for name, value in (("action", action.executed), ("expert label", action.expert)):
        value = np.asarray(action.executed if value is None else value, np.float32)
        if value.shape != space.shape or not np.isfinite(value).all():
            raise WamkitError(
                f"{type(actor).__name__}, step {step} of {env.task}: {name} must be {space.shape} finite numbers, found {value!r}"
            )
        out.append(np.clip(value, space.low, space.high))
    return Action(*out)


class _Recorder:
    def __init__(self) -> None:
        self.images: list[np.ndarray] = []
        self.proprio: list[np.ndarray] = []
        self.action: list[np.ndarray] = []
        self.expert: list[np.ndarray] = []
        self.reward: list[float] = []
        self.success: list[bool] = []
        self.snapshots: list[Snapshot] = []
        self.latency_s: list[float] = []
        self.tracks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.ended: Literal["", "terminated", "truncated"] = ""

    def add(self, raw: dict[str, Any], action: Action, reward: float, success: bool) -> None:
        self.proprio.append(raw["proprio"])
        self.action.append(action.executed)
        self.expert.append(action.executed if action.expert is None else action.expert)
        self.reward.append(reward)
        self.success.append(success)

    def episode(self, env: Environment, seed: int, is_demonstration: bool, noise: float) -> Episode:
        return Episode(
            task=env.task,
            text=env.text,
            seed=seed,
            fps=env.fps,
            cameras=tuple(env.cameras),
            images=np.stack(self.images) if self.images else None,
            proprio=np.stack(self.proprio),
            action=np.stack(self.action),
            action_expert=np.stack(self.expert),
            reward=np.array(self.reward, np.float32),
            success=np.array(self.success, bool),
            is_demonstration=is_demonstration,
            noise=noise,
            snapshots=tuple(self.snapshots) or None,
            latency_s=tuple(self.latency_s),
            tracks=SceneFlow(*map(np.stack, zip(*self.tracks, strict=True))) if self.tracks else None,
            ended=self.ended,
        )
