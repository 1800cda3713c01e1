"""Gymnasium's Reacher (a planar arm of two joints) with pictures: another robot, another action space, another simulator's scene.

The arm and the ball are Gymnasium's `reacher.xml`. Unlike there, actions are not torques but turns of the joints' targets, which a
stiff servo follows, and an episode ends in success when the fingertip is on the ball.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from wamkit.config import check_bounds
from wamkit.envs.base import Environment, Expert, observation_spaces, register_env
from wamkit.envs.rendering import Pictures, load_mujoco
from wamkit.metadata import CameraFacts, DatasetMetadata, Field
from wamkit.types import Snapshot, WamkitError

TURN = 0.1
"""Radians by which an action of 1 moves a joint's target."""

NEAR = 0.02
"""Metres between fingertip and ball at which the ball is reached."""

_BALL = 0.018  # metres, twice Gymnasium's, of which 64x64 pixels show little

_LINKS = (0.1, 0.11)  # metres: shoulder to elbow, elbow to fingertip
_SUBSTEPS = 2  # of 0.01 s
_STIFFNESS, _DAMPING = 2.0, 0.2  # of the servo: motor command a radian, and a radian a second

_MEANING = DatasetMetadata(
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
class ReacherConfig:
    """Options of `Reacher`."""

    task: str = "reach"
    height: int = 64
    """Pixels."""
    width: int = 64
    """Pixels."""
    supersample: int = 3
    """Pictures are drawn so many times larger and averaged down."""
    max_steps: int = 100
    """An episode is truncated after so many steps."""

    def __post_init__(self) -> None:
        check_bounds(self, height=(1, inf), width=(1, inf), supersample=(1, inf), max_steps=(1, inf))


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
    meaning = _MEANING
    metadata = {"render_modes": [], "render_fps": 50}

    def __init__(self, config: ReacherConfig):
        if config.task not in self.tasks():
            raise WamkitError(f"unknown reacher task {config.task!r}; known: {', '.join(self.tasks())}")
        self.config, self.task = config, config.task
        self._mujoco = mujoco = load_mujoco()
        scene = Path(gymnasium.__file__).parent / "envs/mujoco/assets/reacher.xml"
        spec = mujoco.MjSpec.from_file(str(scene))
        spec.worldbody.add_camera(name="top", pos=[0, 0, 0.6], fovy=45)
        spec.geom("target").size = [_BALL, 0, 0]
        spec.worldbody.add_light(pos=[0, 0, 2], dir=[0, 0, -1])
        self._model = spec.compile()
        self._model.vis.quality.offsamples = 0
        self._model.vis.global_.offwidth = config.supersample * config.width
        self._model.vis.global_.offheight = config.supersample * config.height
        self._data = mujoco.MjData(self._model)
        mujoco.mj_forward(self._model, self._data)
        size = {"height": config.height, "width": config.width, "supersample": config.supersample}
        self._pictures = Pictures(mujoco, self._model, self._data, cameras=self.cameras, **size)
        self._target, self._steps, self._was_reset = np.zeros(2), 0, False
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        bound = np.full(4, np.inf, np.float32)
        self.observation_space = observation_spaces(1, config.height, config.width, -bound, bound)

    @classmethod
    def tasks(cls) -> tuple[str, ...]:
        return ("reach",)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Starts the episode that `seed` stands for: the arm anywhere, the ball where the arm can reach."""
        if seed is None and not self._was_reset:
            raise WamkitError("the first reset needs a seed: reset(seed=...)")
        super().reset(seed=seed)
        self._mujoco.mj_resetData(self._model, self._data)
        angle, away = self.np_random.uniform(0, 2 * np.pi), self.np_random.uniform(0.07, 0.19)
        joints = self.np_random.uniform((-np.pi, 0.5), (np.pi, 2.5))  # bent to one side, as the expert keeps it
        self._data.qpos[:] = [*joints, away * np.cos(angle), away * np.sin(angle)]
        self._target, self._steps, self._was_reset = self._data.qpos[:2].copy(), 0, True
        self._mujoco.mj_forward(self._model, self._data)
        return self._observe(), {"success": self._reached()}

    def step(self, action: np.ndarray):
        """One step of 1/50 s. action: float (2,), turns of the joints' targets in tenths of a radian, clipped to [-1, 1]."""
        action = np.asarray(action, np.float32)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise WamkitError(f"reacher action: expected 2 finite numbers, found {action!r}")
        if not self._was_reset:
            raise WamkitError("step before the first reset: call reset(seed=...)")
        self._target = self._target + TURN * np.clip(action, -1, 1)
        for _ in range(_SUBSTEPS):
            q, v = self._data.qpos[:2], self._data.qvel[:2]
            self._data.ctrl[:] = np.clip(_STIFFNESS * (self._target - q) - _DAMPING * v, -1, 1)
            self._mujoco.mj_step(self._model, self._data)
        # Positions of bodies are those before a step until this is called.
        self._mujoco.mj_kinematics(self._model, self._data)
        self._steps += 1
        away = float(np.linalg.norm(self._away()))
        return self._observe(), -away, False, self._steps >= self.config.max_steps, {"success": self._reached()}

    def expert(self) -> Expert:
        """Turns both joints towards where the ball is, by inverse kinematics."""

        def act(rng: np.random.Generator) -> np.ndarray:
            wanted, (a, b) = self._data.qpos[2:4], _LINKS
            cosine = np.clip((wanted @ wanted - a * a - b * b) / (2 * a * b), -1, 1)
            elbow = np.arccos(cosine)
            shoulder = np.arctan2(wanted[1], wanted[0]) - np.arctan2(b * np.sin(elbow), a + b * cosine)
            left = np.array([shoulder, elbow]) - self._target
            left[0] = (left[0] + np.pi) % (2 * np.pi) - np.pi
            return np.clip(left / TURN, -1, 1).astype(np.float32)

        return act

    def snapshot(self) -> Snapshot:
        spec = self._mujoco.mjtState.mjSTATE_INTEGRATION
        physics = np.empty(self._mujoco.mj_stateSize(self._model, spec))
        self._mujoco.mj_getState(self._model, self._data, physics, spec)
        return Snapshot(physics, {}, {"task": self.task, "target": self._target.copy(), "steps": self._steps})

    def restore(self, snapshot: Snapshot) -> dict[str, Any]:
        if snapshot.attributes.get("task") != self.task:
            raise WamkitError(f"a snapshot of {snapshot.attributes.get('task')!r} cannot be restored in {self.task!r}")
        spec = self._mujoco.mjtState.mjSTATE_INTEGRATION
        self._mujoco.mj_setState(self._model, self._data, snapshot.physics, spec)
        self._mujoco.mj_forward(self._model, self._data)
        self._mujoco.mj_setState(
            self._model, self._data, snapshot.physics, spec
        )  # mj_forward changes the solver's start
        self._target, self._steps = snapshot.attributes["target"].copy(), snapshot.attributes["steps"]
        self._was_reset = True
        return self._observe()

    def close(self) -> None:
        self._pictures.close()
        super().close()

    def _away(self) -> np.ndarray:
        return self._data.body("fingertip").xpos - self._data.body("target").xpos

    def _reached(self) -> bool:
        return bool(np.linalg.norm(self._away()) < NEAR)

    def _observe(self) -> dict[str, Any]:
        q, v = self._data.qpos[:2], self._data.qvel[:2]
        raw: dict[str, Any] = {"proprio": np.concatenate([q, v]).astype(np.float32), "text": self.text}
        if self.render_images:
            raw["images"] = self._pictures.draw()
        return raw
