"""PushT (Chi et al. 2023, arXiv 2303.04137): a round pusher slides a T onto its mark in a plane. Needs the package
`gym-pusht`.

The physics, the images and the measure of success are gym-pusht's own. Unlike there an episode continues after success,
as in wamkit's other environments: the caller decides when to stop.

A snapshot holds the seed and all actions since. `restore` replays them, at about 0.1 ms a step, because PyMunk does not
expose all that its next step depends on: the correction of overlapping bodies, the contact impulses that warm-start the
solver, the nearest features, the order of contacts in its tree. Rebuilt from positions and velocities before each step,
13 of 20 episodes deviated by more than a pixel within 80 steps. The replay is exact to the byte on a machine with the
same packages. Where the bodies do not end up as recorded, `restore` raises an error instead of continuing from another
state. Limitation: a snapshot cannot hold a state that was not reached by acting.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import inf
from typing import Annotated, Any

import gymnasium
import numpy as np

from wamkit.config import AtMost, Between, Checked, Side
from wamkit.envs.base import Environment, Expert, check_task, observation_spaces, register_env
from wamkit.envs.pusht_expert import Planner
from wamkit.metadata import CameraFacts, DatasetMetadata, Field
from wamkit.types import Snapshot, WamkitError

SIDE = 512.0
"""Side of gym-pusht's square world in pixels, the unit of all positions whatever the size of the image."""

SUCCESS_COVERAGE = 0.95
"""Share of the mark that the T must cover, exclusive, for success."""

_METADATA = DatasetMetadata(
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
class PushTConfig(Checked):
    """Options of `PushT`."""

    task: str = "push-t"
    height: Side = 64
    """Pixels. gym-pusht renders 512x512 and subsamples; published policies saw 96x96."""
    width: Side = 64
    """Pixels."""
    max_steps: Annotated[int, Between(1, inf), AtMost(10**6)] = 300
    """Number of steps after which an episode is truncated."""


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
    dataset_metadata = _METADATA
    metadata = {"render_modes": [], "render_fps": 10}

    def __init__(self, config: PushTConfig):
        check_task("pusht", config.task, self.tasks())
        self.config, self.task = config, config.task
        size = {"observation_width": config.width, "observation_height": config.height}
        self._sim = _load()(obs_type="state", render_mode="rgb_array", **size)
        self._sim._handle_collision = self._collided  # every episode's space is given it
        self._touched = False
        self._start: int | None = None
        self._actions: list[np.ndarray] = []
        self.action_space = gymnasium.spaces.Box(0.0, SIDE, (2,), np.float32)
        bound = np.full(2, np.inf, np.float32)  # the pusher may overshoot the walls, which stop the T alone
        self.observation_space = observation_spaces(1, config.height, config.width, -bound, bound)

    @classmethod
    def tasks(cls) -> tuple[str, ...]:
        return ("push-t",)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None, render: bool = True):
        """Starts the episode of `seed`, from gym-pusht's own distribution of initial states."""
        if seed is None and self._start is None:
            raise WamkitError("the first reset needs a seed: reset(seed=...)")
        super().reset(seed=seed, options=options)
        self._start, self._actions = int(self.np_random.integers(2**31)) if seed is None else seed, []
        self._sim.reset(seed=self._start)
        return self._observe(render), {"success": self.coverage() > SUCCESS_COVERAGE}

    def step(self, action: np.ndarray, render: bool = True):
        """One step of 1/10 s.

        action: float (2,), target position of the pusher in px, clipped to [0, 512].
        The reward is the covered share of the mark divided by 0.95, at most 1, as in gym-pusht.
        """
        action = self._checked_action(action)
        if self._start is None:
            raise WamkitError("step before the first reset: call reset(seed=...)")
        self._actions.append(action)
        self._touched = False
        _, reward, _, _, info = self._sim.step(action)
        truncated = len(self._actions) >= self.config.max_steps
        told = {"success": bool(info["is_success"]), "touched": self._touched}
        told["remaining"] = max(0.0, SUCCESS_COVERAGE - float(info["coverage"]))
        return self._observe(render), float(reward), False, truncated, told

    def coverage(self) -> float:
        """Share of the mark that the T covers."""
        return float(self._sim._get_coverage())

    def expert(self) -> Expert:
        """See `pusht_expert`. It executes a planned push to its end, and plans anew if the episode is not where it left
        it."""
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
        """See the module's docstring.

        physics: position and velocity of the pusher, then position, velocity, angle and angular velocity of the T.
        """
        actions = np.array(self._actions, np.float32).reshape(-1, 2)
        return Snapshot(self._bodies(), {}, {"task": self.task, "seed": self._start, "actions": actions})

    def restore(self, snapshot: Snapshot, render: bool = True) -> dict[str, Any]:
        """See `Environment.restore`. Raises WamkitError where replaying the actions leads to another state."""
        self._check_task(snapshot)
        recorded = snapshot.attributes
        self._start, self._actions = int(recorded["seed"]), [a.copy() for a in recorded["actions"]]
        self._sim.reset(seed=self._start)
        self._sim._get_coverage = lambda: 0.0  # takes most of a step, and is not needed here
        for action in self._actions:
            self._sim.step(action)
        del self._sim._get_coverage  # the class's own again
        if not np.array_equal(self._bodies(), snapshot.physics):
            raise WamkitError(
                "pusht: replaying the snapshot's actions leads to another state: the snapshot is damaged, or was made "
                "with other versions of gym-pusht, pymunk or NumPy, or on another processor; record it again here"
            )
        return self._observe(render)

    def _collided(self, arbiter: Any, space: Any, data: Any) -> None:
        """gym-pusht's handler of collisions, which counts those with walls too; notes those with the pusher."""
        type(self._sim)._handle_collision(self._sim, arbiter, space, data)
        self._touched |= any(shape.body is self._sim.agent for shape in arbiter.shapes)

    def _bodies(self) -> np.ndarray:
        pusher, block = self._sim.agent, self._sim.block
        parts = (*pusher.position, *pusher.velocity, *block.position, *block.velocity)
        return np.array([*parts, block.angle, block.angular_velocity], np.float64)

    def _observe(self, render: bool) -> dict[str, Any]:
        raw: dict[str, Any] = {"proprio": np.array(self._sim.agent.position, np.float32), "text": self.text}
        if render:
            raw["images"] = np.ascontiguousarray(self._sim._render().transpose(2, 0, 1)[None])
        return raw


def _load() -> type:
    """gym-pusht's environment. Raises WamkitError, with a remedy, where it cannot be imported."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        from gym_pusht.envs import PushTEnv
    except ImportError as error:
        raise WamkitError(f"the package gym-pusht cannot be imported ({error}): pip install 'wamkit[pusht]'") from error
    return PushTEnv
