"""PushT (Chi et al. 2023, arXiv 2303.04137): a round pusher slides a T onto its mark, in a plane. Needs the package `gym-pusht`.

The physics, the pictures and the measure of success are gym-pusht's own. Unlike there an episode goes on after success, as in
wamkit's other environments: who plays decides when to stop.

Snapshots hold the seed and all actions since, and `restore` plays them again (some 0.1 ms a step), because PyMunk does not give
away all that its next step depends on: how far overlapping bodies are pushed apart, contact impulses that warm the solver, features
that were nearest, the order of contacts in its tree. Built anew from positions and speeds before each step, 13 of 20 episodes strayed
by more than a pixel in 80 steps. Played again, all of it is exact, to the byte, on a machine with the same packages; where the
bodies do not come out as recorded, `restore` says so instead of going on from elsewhere. What a snapshot can't do is hold a state
that was never reached by acting.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import inf
from typing import Any

import gymnasium
import numpy as np

from wamkit.config import check_bounds
from wamkit.envs.base import Environment, Expert, observation_spaces, register_env
from wamkit.envs.pusht_expert import Planner
from wamkit.metadata import CameraFacts, DatasetMetadata, Field
from wamkit.types import Snapshot, WamkitError

SIDE = 512.0
"""Pixels of gym-pusht's square world, in which all positions are given whatever the size of the picture."""

SOLVED = 0.95
"""Share of the mark that the T must cover, and more."""

_MEANING = DatasetMetadata(
    source="gym-pusht",
    embodiment="pusher",
    control_mode="absolute position",
    rate=10.0,
    licence="Apache-2.0",
    state=(Field("pusher", 0, 2, "position", frame="world", unit="px"),),
    action=(Field("pusher", 0, 2, "position", frame="world", unit="px"),),
    cameras={"top": CameraFacts("scene")},
)


@dataclass(frozen=True)
class PushTConfig:
    """Options of `PushT`."""

    task: str = "push-t"
    height: int = 64
    """Pixels. gym-pusht draws 512x512 and takes every so many pixels of that; published policies saw 96x96."""
    width: int = 64
    """Pixels."""
    max_steps: int = 300
    """An episode is truncated after so many steps."""

    def __post_init__(self) -> None:
        check_bounds(self, height=(1, inf), width=(1, inf), max_steps=(1, inf))


@register_env("pusht")
class PushT(Environment):
    """A round pusher slides a T onto its mark (gym-pusht, PyMunk)."""

    Config = PushTConfig
    robot_type = "pusher"
    cameras = ("top",)
    proprio_names = ("pusher_x", "pusher_y")
    action_names = ("wanted_x", "wanted_y")
    fps = 10.0
    noise_range = 0.1
    text = "push the T onto the green mark"
    meaning = _MEANING
    metadata = {"render_modes": [], "render_fps": 10}

    def __init__(self, config: PushTConfig):
        if config.task not in self.tasks():
            raise WamkitError(f"unknown pusht task {config.task!r}; known: {', '.join(self.tasks())}")
        self.config, self.task = config, config.task
        size = {"observation_width": config.width, "observation_height": config.height}
        self._sim = _load()(obs_type="state", render_mode="rgb_array", **size)
        self._start: int | None = None
        self._actions: list[np.ndarray] = []
        self.action_space = gymnasium.spaces.Box(0.0, SIDE, (2,), np.float32)
        bound = np.full(2, np.inf, np.float32)  # the pusher may overshoot the walls, which stop the T alone
        self.observation_space = observation_spaces(1, config.height, config.width, -bound, bound)

    @classmethod
    def tasks(cls) -> tuple[str, ...]:
        return ("push-t",)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Starts the episode that `seed` stands for, from gym-pusht's own distribution of starts."""
        if seed is None and self._start is None:
            raise WamkitError("the first reset needs a seed: reset(seed=...)")
        super().reset(seed=seed)
        self._start, self._actions = int(self.np_random.integers(2**31)) if seed is None else seed, []
        self._sim.reset(seed=self._start)
        return self._observe(), {"success": self.coverage() > SOLVED}

    def step(self, action: np.ndarray):
        """One step of 1/10 s. action: float (2,), where the pusher should go, px, clipped to [0, 512]. The reward is the
        share of the mark that is covered over 0.95, at most 1, as in gym-pusht."""
        action = np.asarray(action, np.float32)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise WamkitError(f"pusht action: expected 2 finite numbers, found {action!r}")
        if self._start is None:
            raise WamkitError("step before the first reset: call reset(seed=...)")
        action = np.clip(action, 0.0, SIDE)
        self._actions.append(action)
        _, reward, _, _, info = self._sim.step(action)
        truncated = len(self._actions) >= self.config.max_steps
        return self._observe(), float(reward), False, truncated, {"success": bool(info["is_success"])}

    def coverage(self) -> float:
        """Share of the mark that the T covers."""
        return float(self._sim._get_coverage())

    def expert(self) -> Expert:
        """See `pusht_expert`. It carries a planned push out to its end, and plans anew where the episode is another than it knew."""
        planner, plan, due = Planner(self._sim, type(self._sim)()), list[np.ndarray](), None

        def act(rng: np.random.Generator) -> np.ndarray:
            nonlocal plan, due
            now = (self._start, len(self._actions))
            if not plan or due != now:
                plan = planner.plan(rng)
            due = (self._start, len(self._actions) + 1)
            return plan.pop(0)

        return act

    def snapshot(self) -> Snapshot:
        """physics: place and speed of the pusher, place, speed, angle and its speed of the T; see the module's docstring."""
        actions = np.array(self._actions, np.float32).reshape(-1, 2)
        return Snapshot(self._bodies(), {}, {"task": self.task, "seed": self._start, "actions": actions})

    def restore(self, snapshot: Snapshot) -> dict[str, Any]:
        """See `Environment.restore`. Raises WamkitError where playing the actions again leads elsewhere."""
        known = snapshot.attributes
        if known.get("task") != self.task:
            raise WamkitError(f"a snapshot of {known.get('task')!r} cannot be restored in {self.task!r}")
        self._start, self._actions = int(known["seed"]), [a.copy() for a in known["actions"]]
        self._sim.reset(seed=self._start)
        self._sim._get_coverage = lambda: 0.0  # most of a step, and not wanted
        for action in self._actions:
            self._sim.step(action)
        del self._sim._get_coverage  # the class's own again
        if not np.array_equal(self._bodies(), snapshot.physics):
            raise WamkitError(
                "pusht: the recorded actions lead elsewhere than recorded: the snapshot is damaged, or was made with other "
                "versions of gym-pusht, pymunk or NumPy, or on another kind of processor; record it again here"
            )
        return self._observe()

    def _bodies(self) -> np.ndarray:
        pusher, block = self._sim.agent, self._sim.block
        parts = (*pusher.position, *pusher.velocity, *block.position, *block.velocity)
        return np.array([*parts, block.angle, block.angular_velocity], np.float64)

    def _observe(self) -> dict[str, Any]:
        raw: dict[str, Any] = {"proprio": np.array(self._sim.agent.position, np.float32), "text": self.text}
        if self.render_images:
            raw["images"] = np.ascontiguousarray(self._sim._render().transpose(2, 0, 1)[None])
        return raw


def _load() -> type:
    """gym-pusht's environment. Raises WamkitError, with what to do, where it can't be imported."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        from gym_pusht.envs import PushTEnv
    except ImportError as error:
        raise WamkitError(f"the package gym-pusht cannot be imported ({error}): pip install 'wamkit[pusht]'") from error
    return PushTEnv
