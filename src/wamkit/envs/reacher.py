"""Gymnasium's Reacher, a planar arm of two joints, with images: another robot with another action space and scene.

The arm and the ball are Gymnasium's `reacher.xml`. Unlike there, actions are not torques but changes of the joints'
targets, which a stiff servo follows, and success is the fingertip on the ball.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import numpy as np

from wamkit.config import AtMost, Between, Checked, Side
from wamkit.envs.base import Environment, Expert, check_task, observation_spaces, register_env
from wamkit.envs.mujoco_state import read_state, write_state
from wamkit.envs.rendering import Renderer, check_rendered, load_mujoco
from wamkit.metadata import CameraFacts, DatasetMetadata, Field
from wamkit.types import Snapshot, WamkitError

JOINT_STEP = 0.1
"""Radians by which an action of 1 moves a joint's target."""

NEAR = 0.02
"""Distance between fingertip and ball, in metres, below which the ball is reached."""

_BALL_RADIUS = 0.018  # metres; Gymnasium's is half of that, hardly visible in 64x64 pixels

_LINKS = (0.1, 0.11)  # metres: shoulder to elbow, elbow to fingertip
_SUBSTEPS = 2  # of 0.01 s
_STIFFNESS, _DAMPING = 2.0, 0.2  # servo gains: motor command per radian, and per radian a second

_METADATA = DatasetMetadata(
    source="Gymnasium's Reacher",
    embodiment="reacher",
    control_mode="joint delta",
    rate=50.0,
    licence="MIT",
    state=(
        Field("joints", 0, 2, "joint", unit="rad"),
        Field("joint_speeds", 2, 4, "joint", "velocity", unit="rad/s"),
    ),
    action=(Field("joints", 0, 2, "joint", "delta", unit="1"),),
    cameras={"top": CameraFacts("scene")},
)


@dataclass(frozen=True)
class ReacherConfig(Checked):
    """Options of `Reacher`."""

    task: str = "reach"
    height: Side = 64
    """Pixels."""
    width: Side = 64
    """Pixels."""
    supersample: Annotated[int, Between(1, inf), AtMost(16)] = 3
    """Factor by which images are rendered larger and averaged down."""
    max_steps: Annotated[int, Between(1, inf), AtMost(10**6)] = 100
    """Number of steps after which an episode is truncated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rendered(self.height, self.width, self.supersample)


@register_env("reacher")
class Reacher(Environment):
    """A planar arm of two joints that reaches for a ball (Gymnasium, MuJoCo)."""

    Config = ReacherConfig
    robot_type = "reacher"
    cameras = ("top",)
    proprio_names = ("shoulder", "elbow", "shoulder_speed", "elbow_speed")
    action_names = ("shoulder_turn", "elbow_turn")
    fps = 50.0
    text = "bring the finger to the red ball"
    dataset_metadata = _METADATA
    metadata = {"render_modes": [], "render_fps": 50}

    def __init__(self, config: ReacherConfig):
        check_task("reacher", config.task, self.tasks())
        self.config, self.task = config, config.task
        self._mujoco = mujoco = load_mujoco()
        scene = Path(gymnasium.__file__).parent / "envs/mujoco/assets/reacher.xml"
        spec = mujoco.MjSpec.from_file(str(scene))
        spec.worldbody.add_camera(name="top", pos=[0, 0, 0.6], fovy=45)
        spec.geom("target").size = [_BALL_RADIUS, 0, 0]
        spec.worldbody.add_light(pos=[0, 0, 2], dir=[0, 0, -1])
        self._model = spec.compile()
        self._model.vis.quality.offsamples = 0
        self._model.vis.global_.offwidth = config.supersample * config.width
        self._model.vis.global_.offheight = config.supersample * config.height
        self._data = mujoco.MjData(self._model)
        mujoco.mj_forward(self._model, self._data)
        size = {"height": config.height, "width": config.width, "supersample": config.supersample}
        self._renderer = Renderer(mujoco, self._model, self._data, cameras=self.cameras, **size)
        self._target, self._steps, self._was_reset = np.zeros(2), 0, False
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        bound = np.full(4, np.inf, np.float32)
        self.observation_space = observation_spaces(1, config.height, config.width, -bound, bound)

    @classmethod
    def tasks(cls) -> tuple[str, ...]:
        return ("reach",)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None, render: bool = True):
        """Starts the episode of `seed`: the arm anywhere, the ball where the arm can reach."""
        if seed is None and not self._was_reset:
            raise WamkitError("the first reset needs a seed: reset(seed=...)")
        super().reset(seed=seed, options=options)
        self._mujoco.mj_resetData(self._model, self._data)
        angle, away = self.np_random.uniform(0, 2 * np.pi), self.np_random.uniform(0.07, 0.19)
        joints = self.np_random.uniform((-np.pi, 0.5), (np.pi, 2.5))  # bent to one side, as the expert keeps it
        self._data.qpos[:] = [*joints, away * np.cos(angle), away * np.sin(angle)]
        self._target, self._steps, self._was_reset = self._data.qpos[:2].copy(), 0, True
        self._mujoco.mj_forward(self._model, self._data)
        return self._observe(render), {"success": self._reached()}

    def step(self, action: np.ndarray, render: bool = True):
        """One step of 1/50 s. action: float (2,), changes of the joints' targets in units of `JOINT_STEP`, clipped to
        [-1, 1]."""
        action = self._checked_action(action)
        if not self._was_reset:
            raise WamkitError("step before the first reset: call reset(seed=...)")
        self._target = self._target + JOINT_STEP * action
        for _ in range(_SUBSTEPS):
            q, v = self._data.qpos[:2], self._data.qvel[:2]
            self._data.ctrl[:] = np.clip(_STIFFNESS * (self._target - q) - _DAMPING * v, -1, 1)
            self._mujoco.mj_step(self._model, self._data)
        # Until this is called, positions of bodies are those before the step.
        self._mujoco.mj_kinematics(self._model, self._data)
        self._steps += 1
        away = float(np.linalg.norm(self._away()))
        told = {"success": self._reached(), "remaining": max(0.0, away - NEAR)}
        return self._observe(render), -away, False, self._steps >= self.config.max_steps, told

    def expert(self) -> Expert:
        """Moves both joints towards the ball, by inverse kinematics."""

        def act(rng: np.random.Generator) -> np.ndarray:
            ball, (a, b) = self._data.qpos[2:4], _LINKS
            cosine = np.clip((ball @ ball - a * a - b * b) / (2 * a * b), -1, 1)
            elbow = np.arccos(cosine)
            shoulder = np.arctan2(ball[1], ball[0]) - np.arctan2(b * np.sin(elbow), a + b * cosine)
            error = np.array([shoulder, elbow]) - self._target
            error[0] = (error[0] + np.pi) % (2 * np.pi) - np.pi
            return np.clip(error / JOINT_STEP, -1, 1).astype(np.float32)

        return act

    def snapshot(self) -> Snapshot:
        physics = read_state(self._mujoco, self._model, self._data)
        return Snapshot(physics, {}, {"task": self.task, "target": self._target.copy(), "steps": self._steps})

    def restore(self, snapshot: Snapshot, render: bool = True) -> dict[str, Any]:
        self._check_task(snapshot)
        write_state(self._mujoco, self._model, self._data, snapshot.physics)
        self._target, self._steps = snapshot.attributes["target"].copy(), snapshot.attributes["steps"]
        self._was_reset = True
        return self._observe(render)

    def close(self) -> None:
        self._renderer.close()
        super().close()

    def _away(self) -> np.ndarray:
        return self._data.body("fingertip").xpos - self._data.body("target").xpos

    def _reached(self) -> bool:
        return bool(np.linalg.norm(self._away()) < NEAR)

    def _observe(self, render: bool) -> dict[str, Any]:
        q, v = self._data.qpos[:2], self._data.qvel[:2]
        raw: dict[str, Any] = {"proprio": np.concatenate([q, v]).astype(np.float32), "text": self.text}
        if render:
            raw["images"] = self._renderer.render()
        return raw
