"""The loop in which everything acts: collection, closed-loop evaluation, replays, and policies inside a world model."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from gymnasium import spaces

from wamkit.envs.base import observation
from wamkit.types import Episode, Observation, SceneFlow, Snapshot, WamkitError


class NothingRecorded(WamkitError):
    """An episode ended within its skipped steps."""


class Env(Protocol):
    """Anything that can be acted in: a simulator, or a world model in its place (`wamkit.imagination.env`).

    Observations, actions and `info` are those of `wamkit.envs.base.Environment`. `render` says for each call whether
    the observation that it returns needs images.
    """

    task: str
    text: str
    fps: float
    cameras: tuple[str, ...]
    point_grid: int
    observation_space: spaces.Dict
    action_space: spaces.Box

    def reset(self, *, seed: int, render: bool = True) -> tuple[dict[str, Any], dict[str, Any]]: ...

    def step(
        self, action: np.ndarray, render: bool = True
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]: ...


@dataclass(frozen=True)
class Action:
    """Returned by an actor in place of a bare array where the executed action differs from the one to learn from.

    executed: float32 (a,), sent to the environment.   expert: float32 (a,), the clean label; None where there is none.
    """

    executed: np.ndarray
    expert: np.ndarray | None = None


class Actor(Protocol):
    """Anything that acts. Its state lives in the session, which the caller holds and passes back.

    A subclass has to define `act` alone.
    """

    def act(self, observation: Observation, session: Any) -> tuple[np.ndarray | Action, Any]:
        """The next action, float32 (a,) in the environment's units, and the next session."""

    def needs_images(self, session: Any) -> bool:
        """True if the next `act` looks at images.

        A policy inside a chunk of actions does not, which saves rendering.
        """
        return True

    def queried(self, before: Any, after: Any) -> bool:
        """True if the `act` between these two sessions asked a model, so that its time is a latency."""
        return True


@dataclass(frozen=True)
class Transition:
    """One step of a rollout.

    step: its index, 0 for the first recorded one.
    observation, info, session: before the action.   next_observation, next_info, next_session: after it.
    action: as executed, float32, clipped to the action space, with its label.
    queried: whether the actor looked at images and asked a model.   seconds: time that the actor took.
    snapshot: the simulator's state before the action, where it was asked for.
    """

    step: int
    observation: Observation
    info: Mapping[str, Any]
    session: Any
    action: Action
    next_observation: Observation
    next_info: Mapping[str, Any]
    next_session: Any
    reward: float
    terminated: bool
    truncated: bool
    queried: bool
    seconds: float
    snapshot: Snapshot | None = None

    @property
    def success(self) -> bool:
        """True if the task is done after the step."""
        return bool(self.next_info["success"])


Observer = Callable[[Transition], object]
"""Called after every recorded step of a rollout, in order. `list.append` is one."""


def transitions(
    env: Env,
    actor: Actor,
    start: Callable[[bool], tuple[dict[str, Any], Mapping[str, Any]]],
    *,
    session: Any = None,
    first: int = 0,
    render: Callable[[int], bool] = lambda step: False,
    snapshot: Callable[[], Snapshot] | None = None,
    text: str | None = None,
) -> Iterator[Transition]:
    """Acts without end: the caller decides when to stop.

    start: resets or restores the environment; takes whether to render and returns (observation dictionary, info).
    session: the actor's first session.   first: index of the first step.
    render: whether the images before step t are wanted; they are also rendered wherever the actor needs them.
    snapshot: `env.snapshot` to record the state before every step from 0 on.
    text: an instruction in place of the environment's.
    Raises WamkitError for an action with the wrong shape or values that are not finite.
    """

    def seen(raw: dict[str, Any]) -> Observation:
        obs = observation(raw, env.observation_space)
        return replace(obs, text=text) if text else obs

    looks = actor.needs_images(session)
    raw, info = start(render(first) or looks)
    now = seen(raw)
    for step in itertools.count(first):
        state = snapshot() if snapshot and step >= 0 else None
        started = time.perf_counter()
        chosen, after = actor.act(now, session)
        seconds = time.perf_counter() - started
        action = _checked(chosen, env, actor, step)
        looks_next = actor.needs_images(after)
        raw, reward, terminated, truncated, next_info = env.step(action.executed, render=render(step + 1) or looks_next)
        then, queried = seen(raw), looks and actor.queried(session, after)
        ends = (bool(terminated), bool(truncated))
        yield Transition(
            step, now, info, session, action, then, next_info, after, float(reward), *ends, queried, seconds, state
        )
        now, info, session, looks = then, next_info, after, looks_next


def rollout(
    env: Env,
    actor: Actor,
    *,
    seed: int,
    session: Any = None,
    max_steps: int | None = None,
    skip: int = 0,
    steps_after_success: int | None = 0,
    record_images: bool = True,
    snapshot: Callable[[], Snapshot] | None = None,
    is_demonstration: bool = True,
    noise: float = 0.0,
    text: str | None = None,
    observers: Sequence[Observer] = (),
) -> Episode:
    """Resets `env` with `seed`, lets `actor` act, and records the episode: row t holds the observation before action t.

    session: the actor's first session.
    max_steps: largest number of recorded steps; None for the environment's own limit.
    skip: number of steps that are executed first and not recorded, and rendered only where the actor looks.
    steps_after_success: recorded steps beyond the first success; None to ignore success.
    record_images: whether the episode gets images, and scene points where the environment has them.
    snapshot: `env.snapshot` to record the simulator's state at each row.
    is_demonstration, noise: written into the episode.
    text: an instruction in place of the environment's.
    observers: called with every recorded step.
    `Episode.latency_s` holds the seconds of every call in which the actor looked at images and asked its model.
    Raises WamkitError for an action with the wrong shape or values that are not finite, and NothingRecorded for an
    episode that ended within its skipped steps.
    """
    recorder = _Recorder(record_images, bool(env.point_grid))
    remaining = None
    steps = transitions(
        env,
        actor,
        lambda render: env.reset(seed=seed, render=render),
        session=session,
        first=-skip,
        render=lambda step: record_images and step >= 0,
        snapshot=snapshot,
        text=text,
    )
    for t in steps if max_steps is None else itertools.islice(steps, skip + max_steps):
        if t.step >= 0:
            recorder(t)
            for observer in observers:
                observer(t)
            if t.success and remaining is None:
                remaining = steps_after_success
            elif remaining is not None:
                remaining -= 1
        if remaining == 0 or t.terminated or t.truncated:
            recorder.ended = "terminated" if t.terminated else "truncated" if t.truncated else ""
            break
    if not recorder.action:
        raise NothingRecorded(
            f"{env.task}, seed {seed}: the episode ended within its {skip} skipped steps, nothing is recorded"
        )
    return recorder.episode(env, seed, is_demonstration, noise, text)


def _checked(action: np.ndarray | Action, env: Env, actor: Actor, step: int) -> Action:
    """The action as it will be executed: float32 (a,), finite, clipped to the action space; the label likewise."""
    if not isinstance(action, Action):
        action = Action(action)
    space, out = env.action_space, []
    for name, value in (("action", action.executed), ("expert label", action.expert)):
        value = np.asarray(action.executed if value is None else value, np.float32)
        if value.shape != space.shape or not np.isfinite(value).all():
            raise WamkitError(
                f"{type(actor).__name__}, step {step} of {env.task}: {name} must be {space.shape} finite values, "
                f"found {value!r}"
            )
        out.append(np.clip(value, space.low, space.high))
    return Action(*out)


class _Recorder:
    """Observer that collects the rows of an episode."""

    def __init__(self, images: bool, point_cloud: bool) -> None:
        self._with_images, self._with_points = images, images and point_cloud
        self.images: list[np.ndarray] = []
        self.proprio: list[np.ndarray] = []
        self.action: list[np.ndarray] = []
        self.expert: list[np.ndarray] = []
        self.reward: list[float] = []
        self.success: list[bool] = []
        self.snapshots: list[Snapshot] = []
        self.latency_s: list[float] = []
        self.scene_flow: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.ended: Literal["", "terminated", "truncated"] = ""
        self.touched: list[bool | None] = []
        self.remaining: list[float | None] = []

    def __call__(self, t: Transition) -> None:
        self.proprio.append(t.observation.proprio)
        self.action.append(t.action.executed)
        self.expert.append(t.action.executed if t.action.expert is None else t.action.expert)
        self.reward.append(t.reward)
        self.success.append(t.success)
        self.touched.append(t.next_info.get("touched"))
        self.remaining.append(t.next_info.get("remaining"))
        if t.snapshot is not None:
            self.snapshots.append(t.snapshot)
        if t.queried:
            self.latency_s.append(t.seconds)
        if self._with_images and t.observation.images is not None:
            self.images.append(t.observation.images)
        if self._with_points and t.observation.point_cloud is not None:
            self.scene_flow.append((t.observation.point_cloud, t.info["point_body"], t.info["body_pose"]))

    def episode(self, env: Env, seed: int, is_demonstration: bool, noise: float, text: str | None) -> Episode:
        return Episode(
            task=env.task,
            text=text or env.text,
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
            scene_flow=SceneFlow(*map(np.stack, zip(*self.scene_flow, strict=True))) if self.scene_flow else None,
            ended=self.ended,
            touched=None if None in self.touched else np.array(self.touched, bool),
            remaining=None if None in self.remaining else np.array(self.remaining, np.float64),
        )
