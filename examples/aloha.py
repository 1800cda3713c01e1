"""gym-aloha's cube transfer with a scripted expert (`pip install gym-aloha`): the right arm hands a cube to the left.

    wamkit collect --env gym --out data/aloha --options id=examples.aloha:AlohaTransferCube-v0 state=agent_pos \\
        image=examples.aloha:VIEWS expert=examples.aloha:Transfer ...

docs/environments.md has the whole command. Two things differ from `gym_aloha/AlohaTransferCube-v0`: actions, which are
the joints' target angles, have the joints' ranges for bounds (there -1 to 1, which excludes the arms' own first pose),
and a step renders no images (there three of 480x640), since wamkit draws those that it needs. Physics, starts, rewards
and success are gym-aloha's.
"""

from __future__ import annotations

from typing import Any

import gym_aloha.constants
import gymnasium
import mujoco
import numpy as np
from dm_control import mujoco as dm
from dm_control.rl import control
from gym_aloha.env import AlohaEnv
from gym_aloha.tasks.sim import TransferCubeTask
from scipy.spatial.transform import Rotation, Slerp

VIEWS = {
    "front": {"lookat": [0, 0.5, 0.15], "distance": 0.8, "azimuth": 90, "elevation": -20},
    "top": {"lookat": [0.05, 0.5, 0.1], "distance": 0.75, "azimuth": 90, "elevation": -89},
}
"""Two cameras that see where the cube may lie, and where the arms meet, from nearer than the model's own."""

ARMS = ("left", "right")
_TIP = 0.14  # metres from the frame of a gripper forwards to the middle between its fingers
_STEP = gym_aloha.constants.DT  # seconds
_MEET = np.array([0.0, 0.5, 0.25])  # metres: where the arms hand over


class AlohaTransferCube(AlohaEnv):
    """gym-aloha's cube transfer, with bounded actions and without images."""

    def __init__(self, render_mode: str | None = None):
        super().__init__("transfer_cube", "pixels_agent_pos", render_mode)
        state = self.observation_space["agent_pos"]
        self.observation_space = gymnasium.spaces.Dict({"agent_pos": state})
        low, high = self.model.jnt_range[:16].T
        arms = [0, 1, 2, 3, 4, 5], [8, 9, 10, 11, 12, 13]
        bounds = [np.concatenate([x[arms[0]], [grip], x[arms[1]], [grip]]) for x, grip in ((low, 0.0), (high, 1.0))]
        self.action_space = gymnasium.spaces.Box(*(b.astype(np.float32) for b in bounds), dtype=np.float32)

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
        cube[2] = 0.02  # metres: as it lies on the table, on which it is dropped
        home = {arm: _Pose.of(sim.data, arm) for arm in ARMS}
        pick = home["right"].turned("y", 60)
        meet = home["right"].turned("y", 20)
        right = [
            (0, home["right"], 0.0),
            (50, pick.at(cube + [0, 0, 0.1]), 1.0),
            (75, pick.at(cube + [0, 0, 0.01]), 1.0),
            (85, pick.at(cube + [0, 0, 0.01]), 0.0),
            (95, pick.at(cube + [0, 0, 0.01]), 0.0),
            (150, meet.at(_MEET), 0.0),
            (190, meet.at(_MEET), 0.0),
            (200, meet.at(_MEET), 1.0),
            (230, meet.at(_MEET + [0.15, 0, 0]), 1.0),
        ]
        take = home["left"].turned("x", 90)
        left = [
            (0, home["left"], 0.0),
            (90, take.at(_MEET + [-0.15, 0, 0]), 1.0),
            (150, take.at(_MEET + [-0.1, 0, 0]), 1.0),
            (175, take.at(_MEET), 1.0),
            (185, take.at(_MEET), 0.0),
            (200, take.at(_MEET), 0.0),
            (230, take.at(_MEET + [-0.1, 0, 0]), 0.0),
        ]
        self._path = np.hstack(
            [_path(sim.model, sim.data, arm, way) for arm, way in zip(ARMS, (left, right), strict=True)]
        )

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """The action for the present step, float32 (14,): joint angles in radians and openings from 0 to 1, per arm."""
        step = round((self._env.data.time - self._start) / _STEP)
        return self._path[min(step, len(self._path) - 1)].astype(np.float32)


class _Pose:
    """A place of the middle between a gripper's fingers, metres (3,), and its orientation."""

    def __init__(self, place: np.ndarray, rotation: Rotation):
        self.place, self.rotation = place, rotation

    @classmethod
    def of(cls, data: Any, arm: str) -> _Pose:
        frame = data.body(f"vx300s_{arm}/gripper_link")
        rotation = Rotation.from_matrix(frame.xmat.reshape(3, 3))
        return cls(frame.xpos + rotation.apply([_TIP, 0, 0]), rotation)

    def at(self, place: np.ndarray) -> _Pose:
        return _Pose(np.asarray(place), self.rotation)

    def turned(self, axis: str, degrees: float) -> _Pose:
        """Turned about an axis of its own."""
        return _Pose(self.place, self.rotation * Rotation.from_euler(axis, degrees, degrees=True))


def _path(model: Any, data: Any, arm: str, way: list[tuple[int, _Pose, float]]) -> np.ndarray:
    """Targets (steps, 7) of an arm along `way`: tuples of a step, a pose, and an opening from 0 to 1."""
    steps, poses, openings = zip(*way, strict=True)
    at = np.arange(steps[-1] + 1)
    places = np.stack([np.interp(at, steps, [p.place[k] for p in poses]) for k in range(3)], 1)
    rotations = Slerp(steps, Rotation.concatenate([p.rotation for p in poses]))(at)
    trial = mujoco.MjData(model)
    trial.qpos[:] = data.qpos
    angles = [_solved(model, trial, arm, _Pose(p, r)) for p, r in zip(places, rotations, strict=True)]
    return np.column_stack([angles, np.interp(at, steps, openings)])


def _solved(model: Any, trial: Any, arm: str, pose: _Pose, iterations: int = 6, damping: float = 1e-2) -> np.ndarray:
    """Angles (6,) of an arm for a pose of its gripper, by damped least squares from those that `trial` holds."""
    first = 8 * ARMS.index(arm)
    joints, body = slice(first, first + 6), model.body(f"vx300s_{arm}/gripper_link").id
    to_place, to_turn = np.zeros((3, model.nv)), np.zeros((3, model.nv))
    for _ in range(iterations):
        mujoco.mj_kinematics(model, trial)
        mujoco.mj_comPos(model, trial)
        now = _Pose.of(trial, arm)
        mujoco.mj_jac(model, trial, to_place, to_turn, now.place, body)
        jacobian = np.vstack([to_place[:, joints], 0.2 * to_turn[:, joints]])
        error = np.concatenate([pose.place - now.place, 0.2 * (pose.rotation * now.rotation.inv()).as_rotvec()])
        change = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + damping**2 * np.eye(6), error)
        low, high = model.jnt_range[joints].T
        trial.qpos[joints] = np.clip(trial.qpos[joints] + change, low, high)
    return trial.qpos[joints].copy()
