"""Scenes of elementary physics: objects that drop, slide, collide, topple, pass behind a wall or are pushed (MuJoCo).

Tabletop manipulation contains almost no free fall, free collision or occlusion. These scenes contain little else, so
that a world model can be compared with physical laws. A scene follows from task and seed alone (`physics_scenes`), and
the ground truth of any instant can be read from its snapshot, so a data set only stores images and snapshots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Annotated, Any, ClassVar

import gymnasium
import numpy as np

from wamkit.config import AtMost, Between, Checked, Share, Side
from wamkit.envs.base import Environment, Expert, check_task, observation_spaces, register_env
from wamkit.envs.ground_truth import GroundTruth
from wamkit.envs.mujoco_state import read_state, write_state
from wamkit.envs.physics_scenes import OBJECTS, TEXTS, TIMESTEP, build, sample_scene
from wamkit.envs.rendering import Renderer, check_rendered, load_mujoco
from wamkit.metadata import CameraFacts, DatasetMetadata, Field
from wamkit.types import Snapshot, WamkitError

SPEED = 0.3
"""Speed of the pusher at an action of 1, in m/s."""

MOVED = 0.05
"""Metres by which the object must be displaced in `push`."""

AT_REST = (0.02, 0.2, 5)
"""An object is at rest when slower than this (m/s, rad/s) for this many steps."""

_FAR = 1.0  # metres beyond which distances are not measured
_SUBSTEPS = round(1 / 50 / TIMESTEP)

_METADATA = DatasetMetadata(
    source="wamkit's physics suite",
    embodiment="pusher",
    control_mode="velocity",
    rate=50.0,
    licence="Apache-2.0",
    state=(
        Field("place", 0, 2, "position", frame="world", unit="m"),
        Field("speed", 2, 4, "position", "velocity", frame="world", unit="m/s"),
    ),
    action=(Field("speed", 0, 2, "position", "velocity", frame="world", unit="1"),),
    cameras={"front": CameraFacts("scene")},
)


@dataclass(frozen=True)
class PhysicsConfig(Checked):
    """Options of `Physics`."""

    task: str = "drop"
    height: Side = 64
    """Pixels."""
    width: Side = 64
    """Pixels."""
    supersample: Annotated[int, Between(1, inf), AtMost(16)] = 3
    """Factor by which images are rendered larger and averaged down."""
    max_steps: Annotated[int, Between(1, inf), AtMost(10**6)] = 150
    """Number of steps after which an episode is truncated."""
    jitter: Share = 0.0
    """Relative difference of mass, friction, speed and position from the seed's scene: another take, for a real-to-real
    ceiling."""
    take: Annotated[int, Between(0, inf), AtMost(10**6)] = 0
    """Index of the other take."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rendered(self.height, self.width, self.supersample)


@register_env("physics")
class Physics(Environment):
    """Objects drop, slide, collide, topple, are hidden or pushed, with complete ground truth (MuJoCo).

    Only `push` has a pusher; in other tasks actions are ignored and proprioception is zero. Success in `push`: the
    object was displaced by `MOVED`. In other tasks: everything has come to rest.
    """

    Config = PhysicsConfig
    robot_type = "pusher"
    cameras = ("front",)
    proprio_names = ("x", "y", "x_speed", "y_speed")
    action_names = ("x_speed", "y_speed")
    fps = 50.0
    dataset_metadata = _METADATA
    rigid_bodies = True
    second_take: ClassVar[Mapping[str, Any]] = {"jitter": 0.05, "take": 1}
    tracked_bodies = tuple(f"object{k}" for k in range(OBJECTS))
    metadata = {"render_modes": [], "render_fps": 50}

    def __init__(self, config: PhysicsConfig):
        check_task("physics", config.task, self.tasks())
        self.config, self.task, self.text = config, config.task, TEXTS[config.task]
        self._mujoco, self._scene_of, self._renderer = load_mujoco(), None, None
        self._steps = self._steps_at_rest = 0
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        bound = np.full(4, np.inf, np.float32)
        self.observation_space = observation_spaces(1, config.height, config.width, -bound, bound)

    @classmethod
    def tasks(cls) -> tuple[str, ...]:
        return tuple(TEXTS)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None, render: bool = True):
        """Starts the scene of `seed`."""
        if seed is None and self._scene_of is None:
            raise WamkitError("the first reset needs a seed: reset(seed=...)")
        super().reset(seed=seed, options=options)
        seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self._build(seed, self.config.jitter, self.config.take)
        self._mujoco.mj_resetData(self._model, self._data)
        for k, item in enumerate(self._scene.objects):
            joint = self._data.joint(self._model.body(f"object{k}").jntadr[0])
            self._mujoco.mju_negQuat(back := np.empty(4), item.quaternion)
            self._mujoco.mju_rotVecQuat(spin := np.empty(3), item.spin, back)  # MuJoCo's is in the body's axes
            joint.qvel[:] = [*item.velocity, *spin]
        self._steps = self._steps_at_rest = 0
        self._mujoco.mj_forward(self._model, self._data)
        self._touched = np.zeros((OBJECTS, OBJECTS + 2), bool)
        self._touch()
        return self._observe(render), {"success": False}

    def step(self, action: np.ndarray, render: bool = True):
        """One step of 1/50 s. action: float (2,), the pusher's velocity in units of `SPEED`, clipped to [-1, 1]."""
        action = self._checked_action(action)
        if self._scene_of is None:
            raise WamkitError("step before the first reset: call reset(seed=...)")
        if self._scene.pusher is not None:
            self._data.ctrl[:] = SPEED * action
        self._touched = np.zeros_like(self._touched)
        for _ in range(_SUBSTEPS):
            self._mujoco.mj_step(self._model, self._data)
            self._touch()
        # Until this is called, positions of bodies are those before the step.
        self._mujoco.mj_kinematics(self._model, self._data)
        self._steps += 1
        self._steps_at_rest = self._steps_at_rest + 1 if self._slow() else 0
        success = self._done()
        told: dict[str, Any] = {"success": success}
        if self._scene.pusher is not None:
            told |= {"touched": bool(self._touched[:, -1].any()), "remaining": max(0.0, MOVED - self._displacement())}
        return self._observe(render), float(success), False, self._steps >= self.config.max_steps, told

    def expert(self) -> Expert:
        """In `push`, moves straight towards the object; in other tasks, does nothing."""

        def act(rng: np.random.Generator) -> np.ndarray:
            if self._scene.pusher is None:
                return np.zeros(2, np.float32)
            ahead = self._data.body("object0").xpos[:2] - self._data.body("pusher").xpos[:2]
            return (ahead / max(float(np.abs(ahead).max()), 1e-6)).astype(np.float32)

        return act

    def snapshot(self) -> Snapshot:
        physics = read_state(self._mujoco, self._model, self._data)
        seed, jitter, take = self._scene_of
        attributes = {"task": self.task, "seed": seed, "jitter": jitter, "take": take}
        passed = {"steps": self._steps, "still": self._steps_at_rest, "touched": self._touched.copy()}
        return Snapshot(physics, {}, attributes | passed)

    def restore(self, snapshot: Snapshot, render: bool = True) -> dict[str, Any]:
        self._check_task(snapshot)
        recorded = snapshot.attributes
        self._build(recorded["seed"], recorded["jitter"], recorded["take"])
        write_state(self._mujoco, self._model, self._data, snapshot.physics)
        self._steps, self._steps_at_rest = recorded["steps"], recorded["still"]
        self._touched = np.array(recorded["touched"], bool)
        return self._observe(render)

    def ground_truth(self, masks: bool = True) -> GroundTruth:
        """See `Environment.ground_truth`; complete but for bodies that the scene does not have."""
        if self._scene_of is None:
            raise WamkitError("ground truth before the first reset: call reset(seed=...)")
        mujoco, model, aside, n = self._mujoco, self._model, self._aside, len(self._scene.objects)
        mujoco.mj_setState(model, aside, read_state(mujoco, model, self._data), mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_forward(model, aside)
        nan = np.full((OBJECTS, 10), np.nan)
        pose, motion, constant = nan[:, :7].copy(), nan[:, :6].copy(), nan.copy()
        for k, item in enumerate(self._scene.objects):
            body = model.body(f"object{k}")
            pose[k] = [*aside.xpos[body.id], *aside.xquat[body.id]]
            mujoco.mj_objectVelocity(model, aside, mujoco.mjtObj.mjOBJ_XBODY, body.id, motion[k], 0)
            constant[k, :7] = [body.mass[0], *_inertia(item.shape, item.size, body.mass[0]), *item.size]
        mask = None
        if masks:
            geoms = self._renderer.segmentation()[0]
            ids = [model.geom(f"object{k}").id for k in range(n)] + [-2] * (OBJECTS - n)
            mask = (geoms == np.array(ids)[:, None, None])[None]
        pusher = aside.body("pusher").xpos[:2].copy() if self._scene.pusher is not None else np.full(2, np.nan)
        return GroundTruth(
            position=pose[None, :, :3],
            quaternion=pose[None, :, 3:],
            velocity=motion[None, :, 3:],
            angular_velocity=motion[None, :, :3],
            contact=self._touched[None].copy(),
            distance=self._distances()[None],
            mask=mask,
            pusher=pusher[None],
            exists=np.arange(OBJECTS) < n,
            mass=constant[:, 0],
            inertia=constant[:, 1:4],
            size=constant[:, 4:7],
        )

    def distances(
        self,
        position: np.ndarray,
        quaternion: np.ndarray | None = None,
        pusher: np.ndarray | None = None,
        to: str | None = None,
    ) -> np.ndarray:
        """See `Environment.distances`; `build` names the geoms."""
        out = np.empty(position.shape[:2])
        names = [self._model.geom(i).name for i in range(self._model.ngeom)]
        if to is not None and to not in names:
            raise WamkitError(f"this scene has no {to!r}; it has {', '.join(names)}")
        state = read_state(self._mujoco, self._model, self._data)
        for t, positions in enumerate(position):
            self._mujoco.mj_setState(self._model, self._aside, state, self._mujoco.mjtState.mjSTATE_INTEGRATION)
            for k in np.flatnonzero(np.isfinite(positions[: len(self._scene.objects)]).all(-1)):
                joint = self._aside.joint(self._model.body(f"object{k}").jntadr[0])
                joint.qpos[:3] = positions[k]
                if quaternion is not None:
                    joint.qpos[3:] = quaternion[t, k]
            if pusher is not None and self._scene.pusher is not None:
                for axis, name in enumerate(("pusher_x", "pusher_y")):
                    self._aside.joint(name).qpos[0] = pusher[t, axis] - self._scene.pusher[axis]
            self._mujoco.mj_kinematics(self._model, self._aside)
            out[t] = np.where(np.isfinite(positions).all(-1), self._distances(to), np.nan)
        return out

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
        super().close()

    def _build(self, *scene_of: Any) -> None:
        """Builds the model of this scene, unless it is the present one."""
        if scene_of == self._scene_of:
            return
        self.close()
        config, mujoco = self.config, self._mujoco
        self._scene = sample_scene(self.task, *scene_of)
        n = config.supersample
        self._model = build(mujoco, self._scene, n * config.height, n * config.width)
        self._data, self._aside = mujoco.MjData(self._model), mujoco.MjData(self._model)
        mujoco.mj_forward(self._model, self._data)
        size = {"height": config.height, "width": config.width, "supersample": n}
        self._renderer = Renderer(mujoco, self._model, self._data, cameras=self.cameras, **size)
        columns = {f"object{k}": k for k in range(OBJECTS)} | {"pusher": OBJECTS + 1}  # of `GroundTruth.contact`
        names = [self._model.geom(i).name for i in range(self._model.ngeom)]
        self._column = np.array([columns.get(name, OBJECTS) for name in names])
        self._scene_of = scene_of

    def _touch(self) -> None:
        """Adds the contacts of the last substep to those of this step."""
        pairs = self._column[self._data.contact.geom]
        for one, other in (pairs.T, pairs.T[::-1]):
            self._touched[one[one < OBJECTS], other[one < OBJECTS]] = True

    def _distances(self, to: str | None = None) -> np.ndarray:
        """float64 (N,), of the state in `_aside`, see `GroundTruth` and `distances`."""
        out = np.full(OBJECTS, np.nan)
        for k in range(len(self._scene.objects)):
            mine = self._model.geom(f"object{k}").id
            solid = np.flatnonzero(self._model.geom_contype) if to is None else [self._model.geom(to).id]
            others = [i for i in solid if i != mine]
            measure = self._mujoco.mj_geomDistance
            out[k] = min((measure(self._model, self._aside, mine, i, _FAR, None) for i in others), default=np.nan)
        return out

    def _slow(self) -> bool:
        speed, angular_speed, _ = AT_REST
        for k in range(len(self._scene.objects)):
            v = self._data.joint(self._model.body(f"object{k}").jntadr[0]).qvel
            if np.linalg.norm(v[:3]) > speed or np.linalg.norm(v[3:]) > angular_speed:
                return False
        return True

    def _done(self) -> bool:
        if self._scene.pusher is None:
            return self._steps_at_rest >= AT_REST[2]
        return self._displacement() > MOVED

    def _displacement(self) -> float:
        """Metres by which the first object lies off its start."""
        return float(np.linalg.norm(self._data.body("object0").xpos - self._scene.objects[0].position))

    def _observe(self, render: bool) -> dict[str, Any]:
        proprio = np.zeros(4, np.float32)
        if self._scene.pusher is not None:
            motion = [self._data.joint(name).qvel[0] for name in ("pusher_x", "pusher_y")]
            proprio[:] = [*self._data.body("pusher").xpos[:2], *motion]
        raw: dict[str, Any] = {"proprio": proprio, "text": self.text}
        if render:
            raw["images"] = self._renderer.render()
        return raw


def _inertia(shape: str, size: np.ndarray, mass: float) -> np.ndarray:
    """Principal moments of a homogeneous solid about its own axes, float64 (3,), kg m^2. size: half extents in
    metres."""
    squares = size**2
    if shape == "sphere":
        return 0.4 * mass * squares
    x, y, z = squares / 3 if shape == "box" else squares / np.array([4, 4, 3])
    return mass * np.array([y + z, x + z, x + y])
