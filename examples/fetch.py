"""Scripted experts and a task for the Fetch robot of gymnasium-robotics (`pip install gymnasium-robotics`).

    wamkit collect --env gym --out data/lift --options id=gymnasium_robotics:FetchPickAndPlace-v4 name=lift \\
        image=examples.fetch:VIEWS success=examples.fetch:lifted expert=examples.fetch:Lift ...

docs/environments.md has the whole commands. `examples.fetch` is found from the folder above this one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

LIFTED = 0.1
"""Metres above where the block lies on the table, from which it counts as lifted."""

VIEWS = {
    "left": {"lookat": [1.3, 0.75, 0.6], "distance": 0.85, "azimuth": 135, "elevation": -25},
    "right": {"lookat": [1.3, 0.75, 0.6], "distance": 0.85, "azimuth": 225, "elevation": -25},
}
"""Two cameras that see the table and what is above it. The arm, which comes from between them, hides the goal from one
of them at most. From the environment's own view the block is a pixel or two."""

_TABLE = 0.425  # metres: height of the block's centre on the table
_STEP = 0.15  # metres of distance for an action of 1, which moves the gripper's target by 5 cm
_OVER = 0.05  # metres above the block at which the gripper moves sideways
_GRIPPED = 0.056  # metres between the fingers that hold the block; 0.1 when open


def lifted(env: Any) -> bool:
    """True if the block is `LIFTED` above the table. env: a Fetch environment with a block."""
    return bool(_site(env, "object0")[2] > _TABLE + LIFTED)


class PickPlace:
    """Grasps the block and carries it to the red goal. A function of the simulator's state alone.

    env: FetchPickAndPlace, any version with MuJoCo's own bindings.
    """

    def __init__(self, env: Any):
        self._env = env.unwrapped

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """The action for the present state, float32 (4,): displacement in units of 5 cm, and the gripper, 1 to open."""
        hand, block = _site(self._env, "robot0:grip"), _site(self._env, "object0")
        sideways = np.linalg.norm(block[:2] - hand[:2])
        if sideways > 0.02 or abs(block[2] - hand[2]) > 0.02:
            target = block + [0.0, 0.0, _OVER] if sideways > 0.015 else block
            return _action(target - hand, 1.0)
        fingers = sum(self._env.data.joint(f"robot0:{side}_gripper_finger_joint").qpos[0] for side in "rl")
        if fingers > _GRIPPED:
            return _action(block - hand, -1.0)
        return _action(self.goal(block) - block, -1.0)

    def goal(self, block: np.ndarray) -> np.ndarray:
        """The block's target position, metres (3,)."""
        return self._env.goal


class Lift(PickPlace):
    """Grasps the block and lifts it straight up."""

    def goal(self, block: np.ndarray) -> np.ndarray:
        return np.array([*block[:2], _TABLE + LIFTED + 0.05])


def _site(env: Any, name: str) -> np.ndarray:
    return env.unwrapped.data.site(name).xpos.copy()


def _action(way: np.ndarray, gripper: float) -> np.ndarray:
    """Moves along `way`, metres (3,): a third of it, or as far as one step allows."""
    return np.clip([*(way / _STEP), gripper], -1.0, 1.0).astype(np.float32)
