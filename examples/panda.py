"""A scripted expert and two cameras for the Franka arm of panda-gym, on PyBullet (`pip install panda-gym`).

    wamkit collect --env gym --out data/panda --options id=examples.panda:PandaRedGoal-v0 \\
        image=examples.panda:VIEWS expert=examples.panda:PickPlace ...

docs/environments.md has the whole command. `examples.panda` is found from the folder above this one. One thing differs
from `PandaPickAndPlace-v3`: the goal is red. There it is transparent green, which PyBullet's software renderer draws as
it draws the block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from panda_gym.envs import PandaPickAndPlaceEnv

_STEP = 0.15  # metres of distance for an action of 1, which moves the hand by 5 cm
_OVER = 0.06  # metres above the block at which the gripper moves sideways
_GRIPPED = 0.045  # metres between the fingers that hold the block; 0.08 when open


def _view(yaw: float) -> Callable[[Any], np.ndarray]:
    """A camera that looks at the table from the side that `yaw`, degrees, names."""

    def image(env: Any) -> np.ndarray:
        """uint8 (192, 192, 3)."""
        sim = env.unwrapped.sim
        return sim.render(192, 192, target_position=np.array([0.0, 0.0, 0.08]), distance=0.62, yaw=yaw, pitch=-30)

    return image


VIEWS = {"left": _view(35.0), "right": _view(145.0)}
"""Two cameras that see the table and what is above it. The arm comes from between them."""


class PandaRedGoal(PandaPickAndPlaceEnv):
    """panda-gym's pick and place with a red goal, drawn in software."""

    def __init__(self, render_mode: str = "rgb_array", **kwargs: Any):
        super().__init__(render_mode=render_mode, **{"renderer": "Tiny", **kwargs})
        body = self.sim._bodies_idx["target"]
        self.sim.physics_client.changeVisualShape(body, -1, rgbaColor=[0.9, 0.1, 0.1, 1.0])


gymnasium.register("PandaRedGoal-v0", PandaRedGoal, max_episode_steps=50)


class PickPlace:
    """Grasps the block and carries it to the goal. A function of the simulator's state alone.

    env: `PandaRedGoal`, or PandaPickAndPlace, with actions that move the hand.
    """

    def __init__(self, env: Any):
        self._env = env.unwrapped

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """The action for the present state, float32 (4,): displacement in units of 5 cm, and the gripper, 1 to open."""
        robot, task = self._env.robot, self._env.task
        hand, block = np.array(robot.get_ee_position()), task.get_achieved_goal()
        sideways = np.linalg.norm(block[:2] - hand[:2])
        if sideways > 0.02 or abs(block[2] - hand[2]) > 0.02:
            target = block + [0.0, 0.0, _OVER] if sideways > 0.015 else block
            return _action(target - hand, 1.0)
        if robot.get_fingers_width() > _GRIPPED:
            return _action(block - hand, -1.0)
        return _action(task.goal - block, -1.0)


def _action(way: np.ndarray, gripper: float) -> np.ndarray:
    """Moves along `way`, metres (3,): a third of it, or as far as one step allows."""
    return np.clip([*(way / _STEP), gripper], -1.0, 1.0).astype(np.float32)
