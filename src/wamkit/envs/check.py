"""Executable checks of the environment contract, after Gymnasium's checker."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from gymnasium import spaces

from wamkit.envs.base import Environment, observation
from wamkit.types import Snapshot, WamkitError
from wamkit.workers import run_parallel

Factory = Callable[[], Environment]
Trace = list[tuple[dict[str, Any], float, bool, np.ndarray]]
"""One tuple an instant: observation dictionary, reward, success, physics vector. The first one is the reset's."""


def check_env(factory: Factory, *, seed: int = 0, steps: int = 20) -> list[str]:
    """Runs every check on environments made by `factory`, which must be picklable (it also runs in a new process).

    Returns the names of the checks in the order in which they passed. Those of what the environment lacks are left
    out, see `LEFT_OUT`. Raises WamkitError for the first that failed, with the values that differ, by how much, and
    the usual causes.
    """
    passed: list[str] = []
    for name, check in _CHECKS.items():
        if passed and name in _left_out(factory):
            continue
        try:
            check(factory, seed, steps)
        except Exception as error:
            detail = error if isinstance(error, _Failed) else f"{type(error).__name__}: {error}"
            causes = f"; usual causes: {_CAUSES[name]}" if isinstance(error, _Differs) else ""
            raise WamkitError(f"environment check {name!r} failed: {detail}{causes}") from error
        passed.append(name)
    return passed


class _Failed(WamkitError):
    """The finding of a check."""


class _Differs(_Failed):
    """The finding that two episodes, which should be one and the same, differ."""


def _left_out(factory: Factory) -> tuple[str, ...]:
    """The checks of what the environment lacks."""
    env = factory()
    try:
        lacks = (not env.takes_snapshots(), not env.seeded)
    finally:
        env.close()
    return tuple(name for lack, (names, _) in zip(lacks, LEFT_OUT.values(), strict=True) if lack for name in names)


def _demand(condition: Any, finding: str) -> None:
    if not condition:
        raise _Failed(finding)


def _demand_same(a: Trace, b: Trace, what: str, images: bool = True) -> None:
    found = _difference(a, b, images)
    if found:
        raise _Differs(f"{what}: {found}")


def _physics(env: Environment) -> np.ndarray:
    return env.snapshot().physics if env.takes_snapshots() else np.zeros(0)


def _play(env: Environment, start: int | Snapshot, actions: np.ndarray, render: bool = True) -> Trace:
    """Resets (start: a seed) or restores (start: a snapshot), then executes the actions, float32 (n, a)."""
    if isinstance(start, Snapshot):
        raw, success = env.restore(start, render=render), False
    else:
        raw, info = env.reset(seed=start, render=render)
        success = info["success"]
    return [(raw, 0.0, success, _physics(env)), *_play_on(env, actions, render)]


def _play_on(env: Environment, actions: np.ndarray, render: bool = True) -> Trace:
    trace: Trace = []
    for action in actions:
        raw, reward, _, _, info = env.step(action, render=render)
        trace.append((raw, reward, info["success"], _physics(env)))
    return trace


def _difference(a: Trace, b: Trace, images: bool = True) -> str:
    """Describes the first difference of two traces; "" if they agree byte for byte."""
    for t, ((raw_a, *rest_a), (raw_b, *rest_b)) in enumerate(zip(a, b, strict=True)):
        parts = {"reward": (rest_a[0], rest_b[0]), "success": (rest_a[1], rest_b[1]), "physics": (rest_a[2], rest_b[2])}
        parts["proprio"] = (raw_a["proprio"], raw_b["proprio"])
        if images:
            parts["images"] = (raw_a["images"], raw_b["images"])
        found = [f"{name} {_by_how_much(x, y)}" for name, (x, y) in parts.items() if not np.array_equal(x, y)]
        if found:
            return f"after {t} steps differ {', '.join(found)}"
    return ""


def _by_how_much(x: Any, y: Any) -> str:
    """How many values differ, and the two that differ most."""
    x, y = np.atleast_1d(x), np.atleast_1d(y)
    if x.shape != y.shape:
        return f"(shapes {x.shape} and {y.shape})"
    apart = np.abs(x.astype(float) - y.astype(float))
    count, at = int((x != y).sum()), np.unravel_index(int(np.nanargmax(apart)), x.shape)
    place = ", ".join(map(str, at))
    values = f"{x[at]:.10g} and {y[at]:.10g}" if x.dtype != bool else f"{x[at]} and {y[at]}"
    return f"({count} of {x.size} values, most at [{place}]: {values})"


def _actions(env: Environment, seed: int, n: int) -> np.ndarray:
    """Smooth seeded actions over the whole range, float32 (n, a)."""
    rng, space = np.random.default_rng(seed), env.action_space
    actions = np.repeat(rng.uniform(space.low, space.high, (n // 5 + 1, *space.shape)), 5, axis=0)
    return actions[:n].astype(np.float32)


def _check_contract(factory: Factory, seed: int, steps: int) -> None:
    env = factory()
    for name in ("cameras", "fps", "task", "text", "robot_type", "proprio_names", "action_names", "Config"):
        _demand(hasattr(env, name), f"attribute {name!r} is missing")
    _demand(isinstance(env.observation_space, spaces.Dict), "observation_space must be a gymnasium Dict")
    _demand(isinstance(env.action_space, spaces.Box), "action_space must be a gymnasium Box")
    _demand(env.action_space.shape == (len(env.action_names),), "action_names must name every action dimension")
    state = env.observation_space["proprio"]
    _demand(state.shape == (len(env.proprio_names),), "proprio_names must name every dimension")
    _demand(env.observation_space["images"].shape[0] == len(env.cameras), "cameras must name every view")
    known = env.tasks()  # none where the options name the task
    _demand(not known or env.task in known, f"task {env.task!r} is not among tasks()")
    raw, info = env.reset(seed=seed)
    for action in _actions(env, seed, steps):
        _demand(type(info.get("success")) is bool, f"info['success'] must be a bool, found {info.get('success')!r}")
        observation(raw, env.observation_space)
        _demand(
            env.observation_space.contains(raw),
            f"the observation is outside observation_space: proprio {raw['proprio']}",
        )
        raw, reward, terminated, truncated, info = env.step(action)
        _demand(np.isfinite(reward), f"reward {reward} is not finite")
        touched, remaining = info.get("touched", False), info.get("remaining", 0.0)
        _demand(type(touched) is bool, f"info['touched'], where there is one, must be a bool, found {touched!r}")
        known = isinstance(remaining, float) and 0 <= remaining < np.inf
        _demand(known, f"info['remaining'], where there is one, must be a float from 0 on, found {remaining!r}")
        _demand(type(terminated) is bool and type(truncated) is bool, "terminated and truncated must be bool")
    expert = env.expert()
    if expert is not None:
        action = expert(np.random.default_rng(seed))
        _demand(env.action_space.contains(action), f"the expert's action {action!r} is outside action_space")
    env.close()


def _check_determinism(factory: Factory, seed: int, steps: int) -> None:
    env = factory()
    actions = _actions(env, seed, steps)
    first = _play(env, seed, actions)
    _play(env, seed + 1, actions[: steps // 2])
    _demand_same(first, _play(env, seed, actions), "the same seed and actions after another episode")
    env.close()
    again = factory()
    _demand_same(first, _play(again, seed, actions), "the same seed and actions in another instance")
    again.close()


def _check_variety(factory: Factory, seed: int, steps: int) -> None:
    env = factory()
    traces = [_play(env, seed + k, _actions(env, seed, steps)) for k in range(3)]
    env.close()
    starts = [trace[0][0]["images"] for trace in traces]
    _demand(any(not np.array_equal(starts[0], other) for other in starts[1:]), "three seeds start with the same image")
    for name, before, after in zip(env.cameras, traces[0][0][0]["images"], traces[0][-1][0]["images"], strict=True):
        _demand(not np.array_equal(before, after), f"camera {name!r}: the image stays the same while the robot moves")
        _demand(before.std() > 0, f"camera {name!r}: the image has one colour")


def _check_render_switch(factory: Factory, seed: int, steps: int) -> None:
    env = factory()
    actions = _actions(env, seed, steps)
    rendered, blind = _play(env, seed, actions), _play(env, seed, actions, render=False)
    if env.takes_snapshots():
        _demand("images" not in env.restore(env.snapshot(), render=False), "restore(..., render=False) returns images")
    env.close()
    _demand(all("images" not in raw for raw, *_ in blind), "observations hold images with render=False")
    _demand_same(rendered, blind, "with and without rendering", images=False)


def _check_two_at_once(factory: Factory, seed: int, steps: int) -> None:
    """The image of one environment must not be another's, as happens with several software OpenGL contexts."""
    alone = []
    for k in range(2):
        env = factory()
        alone.append(_play(env, seed + k, _actions(env, seed, 2)))
        env.close()
    pair = factory(), factory()
    together = [_play(env, seed + k, _actions(env, seed, 2)) for k, env in enumerate(pair)]
    together[0] = _play(pair[0], seed, _actions(pair[0], seed, 2))
    for env in pair:
        env.close()
    for k in range(2):
        what = f"environment {k + 1} of two in one process does not show the same as alone"
        _demand_same(alone[k], together[k], what)


def _check_snapshot(factory: Factory, seed: int, steps: int) -> None:
    """An episode continues from a snapshot byte for byte, in the same environment and in a new one."""
    env = factory()
    actions = _actions(env, seed, 2 * steps)
    _play(env, seed, actions[:steps])
    snapshot = env.snapshot()
    on = _play_on(env, actions[steps:])
    _play(env, seed + 1, actions[:2])
    again = f"and {steps} actions replayed"
    _demand_same(on, _play(env, snapshot, actions[steps:])[1:], f"a snapshot restored in the same environment {again}")
    env.close()
    fresh = _play_fresh(factory, (snapshot, actions[steps:]))
    _demand_same(on, fresh[1:], f"a snapshot restored in a new environment {again}")


def _check_new_process(factory: Factory, seed: int, steps: int) -> None:
    """Snapshots and seeds give the same in another process; two seeds show different images there."""
    env = factory()
    actions = _actions(env, seed, 2 * steps)
    started = _play(env, seed, actions[:steps])
    snapshot = env.snapshot() if env.takes_snapshots() else None
    on = _play_on(env, actions[steps:])
    env.close()
    starts = [] if snapshot is None else [(snapshot, actions[steps:])]
    starts += [(seed + k, actions[:steps]) for k in range(2)]
    play, what = partial(_play_fresh, factory), lambda _: "an episode"
    *restored, same, other = run_parallel(starts, play, processes=1, desc="new process", describe=what, progress=False)
    for trace in restored:
        _demand_same(on, trace[1:], f"a snapshot restored in a new process and {steps} actions replayed")
    _demand_same(started, same, "the same seed and actions in another process")
    shown = [trace[-1][0]["images"] for trace in (started, other)]
    _demand(not np.array_equal(*shown), "another seed in another process shows the same image")


def _play_fresh(factory: Factory, episode: tuple[int | Snapshot, np.ndarray]) -> Trace:
    """Plays from a start (see `_play`) with these actions in a new environment."""
    env = factory()
    try:
        return _play(env, *episode)
    finally:
        env.close()


_CHECKS: dict[str, Callable[[Factory, int, int], None]] = {
    "contract": _check_contract,
    "determinism": _check_determinism,
    "variety": _check_variety,
    "render switch": _check_render_switch,
    "snapshot": _check_snapshot,
    "two at once": _check_two_at_once,
    "new process": _check_new_process,
}

LEFT_OUT = {
    "it takes no snapshots": (
        ("snapshot",),
        "what compares actions from one state, such as --suite full, leaves it out",
    ),
    "its resets do not follow their seed": (
        ("determinism", "render switch", "two at once", "new process"),
        "an evaluation cannot be repeated, and may meet starts that were trained on",
    ),
}
"""Lack of an environment, snapshots and seeds in this order -> the checks left out, and what follows from it."""

_UNSEEDED = "random numbers that self.np_random does not draw; something of the last episode that reset() keeps (a "
_UNSEEDED += "controller's target, a counter, a warm start of the solver); the clock of the machine"

_CAUSES = {
    "determinism": _UNSEEDED,
    "render switch": "rendering advances the simulator, or draws random numbers of the dynamics (with --env gym: draw "
    "by camera:NAME or a free camera in place of render, or take render=always)",
    "snapshot": "the snapshot lacks a part of the state (velocities, a controller's target, a counter of steps, the "
    "state of a random generator, changed parameters of the model: put them into `attributes` or `model`) or shares "
    "memory with the environment (copy arrays); restore() leaves caches of the simulator as they were (mj_forward)",
    "two at once": "two environments share an OpenGL context (with --env gym: draw by camera:NAME or a free camera in "
    "place of render), or variables of their module or class",
    "new process": "hash() of a text, the order of a set, or a variable of the module that earlier calls changed; "
    + _UNSEEDED,
}
"""Check in which episodes are compared -> causes of a difference, the most frequent first."""
