"""gym-aloha's cube transfer with a scripted expert (`pip install gym-aloha`): the right arm hands a cube to the left.

    wamkit collect --env gym --out data/aloha --options id=examples.aloha:AlohaTransferCube-v0 state=agent_pos \\
        image=examples.aloha:VIEWS expert=examples.aloha:Transfer ...

docs/environments.md has the whole command. Two things differ from `gym_aloha/AlohaTransferCube-v0`: actions, which are
the joints' target angles, have bounds that hold the arms' first pose and what the task needs (there -1 to 1, which does
not), and a step renders no images (there three of 480x640), since wamkit draws those that it needs. Physics, starts,
rewards and success are gym-aloha's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import gym_aloha.constants
import gymnasium
import mujoco
import numpy as np
from dm_control import mujoco as dm
from dm_control.rl import control
from gym_aloha.env import AlohaEnv
from gym_aloha.tasks.sim import TransferCubeTask

VIEWS = {
    "front": {"lookat": [0, 0.5, 0.15], "distance": 0.8, "azimuth": 90, "elevation": -20},
    "top": {"lookat": [0.05, 0.5, 0.1], "distance": 0.75, "azimuth": 90, "elevation": -89},
}
"""Two cameras that see where the cube may lie, and where the arms meet, from nearer than the model's own."""

ARMS = ("left", "right")
_BOUNDS = ((-1, 1), (-1.3, 0.6), (0, 1.5), (-0.5, 0.5), (-1, 1), (-0.5, 2), (0, 1))
"""Lowest and highest target of an arm's joints, radians, and of its opening: the part of their range that it needs."""
_TIP = 0.14  # metres from the frame of a gripper forwards to the middle between its fingers
_STEP = gym_aloha.constants.DT  # seconds
_MEET = np.array([0.0, 0.5, 0.25])  # metres: where the arms hand over


class AlohaTransferCube(AlohaEnv):
    """gym-aloha's cube transfer, with bounded actions and without images."""

    def __init__(self, render_mode: str | None = None):
        super().__init__("transfer_cube", "pixels_agent_pos", render_mode)
        state = self.observation_space["agent_pos"]
        self.observation_space = gymnasium.spaces.Dict({"agent_pos": state})
        bounds = np.array([*_BOUNDS, *_BOUNDS], np.float32).T
        self.action_space = gymnasium.spaces.Box(*bounds, dtype=np.float32)

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """One step of 20 ms. Where random targets throw the simulation out of balance, the episode ends."""
        try:
            return super().step(action)
        except control.PhysicsError:
            return {"agent_pos": self._env.task.get_qpos(self._env.physics)}, 0.0, True, False, {"is_success": False}

    @property
    def model(self) -> Any:
        """The simulator's MjModel."""
        return self._env.physics.model.ptr

    @property
    def data(self) -> Any:
        """The simulator's MjData."""
        return self._env.physics.data.ptr

    def _make_env_task(self, task_name: str) -> control.Environment:
        physics = dm.Physics.from_xml_path(str(gym_aloha.constants.ASSETS_DIR / "bimanual_viperx_transfer_cube.xml"))
        return control.Environment(physics, _WithoutImages(), float("inf"), control_timestep=_STEP)

    def _format_raw_obs(self, raw_obs: Any) -> dict[str, Any]:
        return {"agent_pos": raw_obs["qpos"]}


class _WithoutImages(TransferCubeTask):
    def get_observation(self, physics: Any) -> dict[str, Any]:
        return {"qpos": self.get_qpos(physics)}


gymnasium.register("AlohaTransferCube-v0", AlohaTransferCube, max_episode_steps=300)


class Transfer:
    """Plans both arms' paths when an episode starts, as joint angles by inverse kinematics, and follows them.

    env: `AlohaTransferCube`, just reset.   Noise does not stop it: targets are absolute, so the arms come back to them.
    """

    def __init__(self, env: Any):
        sim = env.unwrapped
        self._env, self._start = sim, sim.data.time
        cube = sim.data.joint("red_box_joint").qpos[:3].copy()
        cube[2] = 0.03  # metres: it is dropped on the table, and held a little above its middle
        down, flat = np.radians(60), np.radians(20)
        right = [
            _Pose(0, _tip(sim.data, "right"), -0.1, 0.0, 0.0),
            _Pose(50, cube + [0, 0, 0.09], down, 0.0, 1.0),
            _Pose(75, cube, down, 0.0, 1.0),
            _Pose(85, cube, down, 0.0, 0.0),
            _Pose(95, cube, down, 0.0, 0.0),
            _Pose(150, _MEET, flat, 0.0, 0.0),
            _Pose(190, _MEET, flat, 0.0, 0.0),
            _Pose(200, _MEET, flat, 0.0, 1.0),
            _Pose(230, _MEET + [0.15, 0, 0], flat, 0.0, 1.0),
        ]
        across = np.pi / 2  # its fingers are above and below the cube, those of the right arm beside it
        left = [
            _Pose(0, _tip(sim.data, "left"), -0.1, 0.0, 0.0),
            _Pose(90, _MEET + [-0.15, 0, 0], 0.0, across, 1.0),
            _Pose(150, _MEET + [-0.1, 0, 0], 0.0, across, 1.0),
            _Pose(175, _MEET, 0.0, across, 1.0),
            _Pose(185, _MEET, 0.0, across, 0.0),
            _Pose(200, _MEET, 0.0, across, 0.0),
            _Pose(230, _MEET + [-0.1, 0, 0], 0.0, across, 0.0),
        ]
        self._path = np.hstack(
            [_path(sim.model, sim.data, arm, way) for arm, way in (("left", left), ("right", right))]
        )

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """The action for the present step, float32 (14,): per arm six angles, radians, and an opening, 0 to 1."""
        step = round((self._env.data.time - self._start) / _STEP)
        return self._path[min(step, len(self._path) - 1)].astype(np.float32)


class _Pose(NamedTuple):
    """The gripper of an arm at a step.

    place: of the middle between its fingers, metres (3,).   pitch: radians down from the horizontal.
    roll: radians about its own axis.   opening: 0 to 1.
    """

    step: int
    place: np.ndarray
    pitch: float
    roll: float
    opening: float


def _tip(data: Any, arm: str) -> np.ndarray:
    """The middle between the fingers of an arm, metres (3,)."""
    frame = data.body(f"vx300s_{arm}/gripper_link")
    return frame.xpos + _TIP * frame.xmat.reshape(3, 3)[:, 0]


def _path(model: Any, data: Any, arm: str, way: list[_Pose]) -> np.ndarray:
    """Targets (steps, 7) of an arm along `way`: six joint angles and an opening, straight from pose to pose."""
    steps = np.arange(way[-1].step + 1)
    known = np.array([[*pose.place, pose.pitch, pose.roll, pose.opening] for pose in way])
    wanted = np.stack([np.interp(steps, [pose.step for pose in way], column) for column in known.T], 1)
    trial = mujoco.MjData(model)
    trial.qpos[:] = data.qpos
    angles = [_solved(model, trial, arm, x[:3], x[3], x[4]) for x in wanted]
    return np.column_stack([angles, wanted[:, 5]])


def _solved(model: Any, trial: Any, arm: str, place: np.ndarray, pitch: float, roll: float) -> np.ndarray:
    """Angles (6,) of an arm, by Newton's method from those that `trial` holds.

    The forearm does not roll, so that the arm stays in a vertical plane, in which its pitch is the sum of three angles.
    """
    first = 8 * ARMS.index(arm)
    joints, body = first + np.array([0, 1, 2, 4]), model.body(f"vx300s_{arm}/gripper_link").id
    trial.qpos[first + 3], trial.qpos[first + 5] = 0.0, roll
    jacobian, moves = np.array([[0.0] * 4] * 3 + [[0, 1, 1, 1]]), np.zeros((3, model.nv))
    for _ in range(6):
        mujoco.mj_kinematics(model, trial)
        mujoco.mj_comPos(model, trial)
        tip = _tip(trial, arm)
        mujoco.mj_jac(model, trial, moves, None, tip, body)
        jacobian[:3] = moves[:, joints]
        error = np.array([*(place - tip), pitch - trial.qpos[joints[1:]].sum()])
        change = np.linalg.solve(jacobian.T @ jacobian + 1e-6 * np.eye(4), jacobian.T @ error)
        low, high = model.jnt_range[joints].T
        trial.qpos[joints] = np.clip(trial.qpos[joints] + np.clip(change, -0.2, 0.2), low, high)
    return trial.qpos[first : first + 6].copy()
