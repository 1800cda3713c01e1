"""MetaWorld (Yu et al. 2019, arXiv 1910.10897): 50 table-top tasks of a Sawyer arm in MuJoCo.

Needs the package `metaworld`. Images are rendered off-screen, in software (OSMesa) unless MUJOCO_GL chooses otherwise.
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf
from typing import Annotated, Any, ClassVar

import gymnasium
import numpy as np

from wamkit.config import AtMost, Between, ConfigError, Side
from wamkit.envs.base import Environment, Expert, check_task, observation_spaces, register_env
from wamkit.envs.depth_points import ScenePoints
from wamkit.envs.ground_truth import GroundTruth
from wamkit.envs.metaworld_tasks import INSTRUCTIONS
from wamkit.envs.mujoco_bodies import TrackedBodies
from wamkit.envs.mujoco_state import read_state, write_state
from wamkit.envs.rendering import Renderer, check_rendered, load_mujoco
from wamkit.envs.variation import FACTORS, Factors, Variation
from wamkit.errors import nearest
from wamkit.metadata import CameraFacts, DatasetMetadata, Field
from wamkit.types import Snapshot, WamkitError

_PROPRIO_LOW = np.array([-0.525, 0.348, -0.0525, 0.0], np.float32)
_PROPRIO_HIGH = np.array([0.525, 1.025, 0.7, 1.0], np.float32)
_CLOSE_CORNER2 = (0.75, 0.075, 0.7)
"""Position of `corner2` in most MetaWorld papers; from its default position the object looks half as wide."""

_METADATA = DatasetMetadata(
    source="MetaWorld",
    embodiment="sawyer",
    control_mode="end-effector delta",
    rate=80.0,
    licence="MIT",
    state=(
        Field("hand", 0, 3, "position", frame="world", unit="m"),
        Field("gripper", 3, 4, "gripper", unit="1", larger="opens"),
    ),
    # Displacement of the hand's target in centimetres, within -1 and 1; the gripper's effort, 1 to close.
    action=(
        Field("hand", 0, 3, "position", "delta", frame="world", unit="cm"),
        Field("gripper", 3, 4, "gripper", unit="1", larger="closes"),
    ),
)

_NO_DISTANCE = ("assembly-v3", "box-close-v3", "disassemble-v3", "door-open-v3", "hammer-v3")
"""Tasks in whose `info` MetaWorld leaves the distance to the goal at 0."""

_BULKY = ("mesh_", "tex_", "hfield_", "skin_", "bvh_", "oct_", "name", "paths", "text_")
"""Model fields that no reset changes; comparing them with the pristine model would be slow."""

_PLAIN = (bool, int, float, str, type(None), np.generic)


@dataclass(frozen=True)
class MetaWorldConfig(Factors):
    """Options of `MetaWorld`, including those of `Factors`."""

    task: str
    """One of the 50 task names, e.g. `drawer-open-v3`."""
    height: Side = 64
    """Pixels."""
    width: Side = 64
    """Pixels."""
    supersample: Annotated[int, Between(1, inf), AtMost(16)] = 3
    """Factor by which images are rendered larger and averaged down. At 64x64 the time of a frame is that of its
    vertices, so 3 takes 15 % longer than 1. Without it edges jump by whole pixels, and the model cannot see where
    within a pixel they are."""
    coarse_meshes: bool = True
    """Render meshes with vertices within 4 mm merged: invisible at this size, and a frame takes a third less time. Turn
    it off for large images."""
    cameras: tuple[str, ...] = ("corner2",)
    """One image each: topview, corner, corner2, corner3, corner4, behindGripper, gripperPOV."""
    goal_markers: bool = False
    """Render MuJoCo's sites. Off, because the goal is one of them: a coloured ball that no real scene has reveals where
    the object must go, and for look-alike tasks even which task it is."""
    reset_low: tuple[float, ...] | None = None
    """Lower corner of the range of random resets; None for the task's own."""
    reset_high: tuple[float, ...] | None = None
    """Upper corner, likewise."""
    max_steps: Annotated[int, Between(1, inf), AtMost(10**6)] = 200
    """Number of MetaWorld's steps, of 1/80 s, after which an episode is truncated."""
    repeat: Annotated[int, Between(1, inf), AtMost(80)] = 1
    """MetaWorld's steps that an action lasts: 4 make a loop of 20 Hz, in which the arm is as fast as in one of 80."""
    text: str | None = None
    """Instruction in place of the task's own."""
    sway: Annotated[float, Between(0, 0.3)] = 0.0
    """Amplitude in metres of a smooth motion of the first camera, as of one worn on a head. It depends on seed and
    step."""
    point_grid: Annotated[int, Between(0, inf), AtMost(1024)] = 0
    """Side of a square grid of scene points, as a depth camera at the first camera gives them; 0 for none. Recordings
    then also hold the motion of every point, from which families that imagine points learn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rendered(self.height, self.width, self.supersample)
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ConfigError(f"cameras = {self.cameras}: must be named once each, at least one")
        if self.text is not None and not self.text.strip():
            raise ConfigError("text is empty: must be an instruction, or None for the task's own")
        if self.point_grid and self.distractors:
            raise ConfigError(f"distractors = {self.distractors}: must be 0 with point_grid, which does not see them")


@register_env("metaworld")
class MetaWorld(Environment):
    """The 50 manipulation tasks of MetaWorld (Sawyer arm, MuJoCo)."""

    Config = MetaWorldConfig
    robot_type = "sawyer"
    proprio_names = ("hand_x", "hand_y", "hand_z", "gripper_open")
    action_names = ("dx", "dy", "dz", "gripper_close")
    fps = 80.0
    tracked_bodies = TrackedBodies.names
    metadata = {"render_modes": [], "render_fps": 80}
    factors: ClassVar[Mapping[str, str]] = FACTORS

    def __init__(self, config: MetaWorldConfig):
        check_task("metaworld", config.task, INSTRUCTIONS)
        self.config, self.task, self.cameras = config, config.task, tuple(config.cameras)
        self.fps = 80 / config.repeat
        self.metadata = {**self.metadata, "render_fps": round(self.fps)}
        self.text = config.text or INSTRUCTIONS[config.task]
        roles = {c: CameraFacts("wrist" if c == "gripperPOV" else "scene") for c in self.cameras}
        self.dataset_metadata = replace(_METADATA, cameras=roles, rate=self.fps)
        self._mujoco, registry, policies = _load()
        self._sim, solid = _build(registry[config.task], config)
        self._policy = policies[config.task]()
        self._variation = Variation(self._mujoco, config, self._sim, config.cameras[0])
        self._renderer = Renderer(
            self._mujoco,
            self._sim.model,
            self._sim.data,
            cameras=config.cameras,
            height=config.height,
            width=config.width,
            supersample=config.supersample,
            sites=config.goal_markers,
            change=self._variation.change if config.changes_scene else None,
        )
        self.point_grid, self.bodies = config.point_grid, _BODIES if config.point_grid else 0
        self._points = (
            _scene_points(self._mujoco, self._sim, solid, config, self._renderer) if config.point_grid else None
        )
        self._fields = _small_fields(self._sim.model)
        self._pristine_fields = {name: field.copy() for name, field in self._fields.items()}
        self._fixed = {k for k, v in vars(self._sim).items() if not _is_plain(v) or _views_simulator(v)}
        self._pristine_attributes = copy.deepcopy({k: v for k, v in vars(self._sim).items() if k not in self._fixed})
        self._bodies: TrackedBodies | None = None
        self._was_reset = False
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.observation_space = observation_spaces(
            len(self.cameras), config.height, config.width, _PROPRIO_LOW, _PROPRIO_HIGH, config.point_grid
        )

    @classmethod
    def tasks(cls) -> tuple[str, ...]:
        return tuple(INSTRUCTIONS)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None, render: bool = True):
        """Starts the episode of `seed`; without a seed, of the next one in the last seed's stream."""
        if seed is None and not self._was_reset:
            raise WamkitError("the first reset needs a seed: reset(seed=...)")
        super().reset(seed=seed, options=options)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        sim = self._sim
        # MetaWorld leaves the last episode's objects in the model while it moves the hand to its start: start clean.
        self._set_fields({})
        self._set_attributes({}, keep_views=False)
        self._variation.begin(seed)
        sim.seed(seed)
        sim.reset()
        # Some tasks move a body without telling the simulator; their first observation would show the old position.
        self._mujoco.mj_forward(sim.model, sim.data)
        sim._prev_obs = sim._get_curr_obs_combined_no_goal()
        space = sim.sawyer_observation_space
        sim._last_stable_obs = np.clip(sim._get_obs(), space.low, space.high)
        if self.config.sway:
            sim.sway_phase = np.random.default_rng((seed, 3)).uniform(0, 2 * np.pi, 6)
        self._was_reset = True
        raw, points = self._observe(render)
        return raw, {"success": False, **points}

    def step(self, action: np.ndarray, render: bool = True):
        """One step of `repeat` / 80 s. action: float (4,), hand displacement in 1/80 s (1 is 1 cm) and gripper effort,
        clipped to [-1, 1]. The reward is the sum over these, success that of any."""
        action = self._checked_action(action)
        if not self._was_reset:
            raise WamkitError("step before the first reset: call reset(seed=...)")
        reward, success = 0.0, False
        for _ in range(self.config.repeat):
            _, gained, _, _, info = self._sim.step(action)
            reward, success = reward + float(gained), success or bool(info["success"])
            if truncated := self._sim.curr_path_length >= self.config.max_steps:
                break
        raw, points = self._observe(render)
        told = {"success": success, "touched": self._tracked().touched(self._sim.data)}
        if self.task.startswith("reach-"):
            del told["touched"]  # there is nothing to touch
        if self.task not in _NO_DISTANCE:
            told["remaining"] = float(info["obj_to_target"])
        return raw, reward, False, truncated, told | points

    def expert(self) -> Expert:
        """MetaWorld's scripted policy, which reads the simulator's full state."""
        return lambda rng: np.clip(self._policy.get_action(self._sim._last_stable_obs), -1.0, 1.0).astype(np.float32)

    def snapshot(self) -> Snapshot:
        """See `Snapshot`. Attributes are those that differ from a new simulator's, plus the task and the generator."""
        sim = self._sim
        model = {k: v.copy() for k, v in self._fields.items() if not np.array_equal(v, self._pristine_fields[k])}
        attributes: dict[str, Any] = {"task": self.task, "np_random": json.dumps(sim.np_random.bit_generator.state)}
        for key, value in vars(sim).items():
            if key in self._fixed or key in _RANDOM or _views_simulator(value):
                continue
            if not _is_plain(value):
                raise WamkitError(f"{self.task}: cannot record attribute {key!r} of type {type(value).__name__}")
            if key not in self._pristine_attributes or not _same(value, self._pristine_attributes[key]):
                attributes[key] = copy.deepcopy(value)
        return Snapshot(read_state(self._mujoco, sim.model, sim.data), model, attributes)

    def restore(self, snapshot: Snapshot, render: bool = True) -> dict[str, Any]:
        self._check_task(snapshot)
        if not self._was_reset:
            # Only a reset makes the attributes that are views of the simulator's memory, e.g. door-lock's
            # `obj_init_pos`.
            self.reset(seed=0, render=False)
        attributes = {k: v for k, v in snapshot.attributes.items() if k not in ("task", "np_random")}
        self._set_fields(snapshot.model)
        self._set_attributes(attributes, keep_views=True)
        sim = self._sim
        sim.np_random.bit_generator.state = json.loads(snapshot.attributes["np_random"])
        write_state(self._mujoco, sim.model, sim.data, snapshot.physics)
        return self._observe(render)[0]

    def ground_truth(self, masks: bool = True) -> GroundTruth:
        """See `TrackedBodies`. Masks are those of the first camera."""
        geoms = self._renderer.segmentation()[0] if masks else None
        return self._tracked().ground_truth(read_state(self._mujoco, self._sim.model, self._sim.data), geoms)

    def close(self) -> None:
        self._renderer.close()
        super().close()

    def _tracked(self) -> TrackedBodies:
        if self._bodies is None:
            model = self._sim.model
            robot = model.body_rootid == model.body("base").id
            self._bodies = TrackedBodies(self._mujoco, model, robot, model.body("right_hand").id)
        return self._bodies

    def _observe(self, render: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """The observation, and for `info` the ground truth of its scene points."""
        raw, points = {"proprio": self._sim._last_stable_obs[:4].astype(np.float32), "text": self.text}, {}
        if not render:
            return raw, points
        with self._variation.camera():
            raw["images"] = self._render_swaying() if self.config.sway else self._renderer.render()
            if self._points:
                raw["point_cloud"], points["point_body"] = self._points.cast(self._sim.data)
                points["body_pose"] = self._points.body_pose(self._sim.data)
        return raw, points

    def _render_swaying(self) -> np.ndarray:
        """Images with the first camera displaced along a smooth path with a random phase."""
        sim, camera = self._sim, self._sim.model.camera(self.cameras[0]).id
        angle = sim.sway_phase + sim.curr_path_length * 2 * np.pi / _SWAY_STEPS
        position, turn = sim.data.cam_xpos[camera].copy(), sim.data.cam_xmat[camera].copy()
        sim.data.cam_xpos[camera] += self.config.sway * np.sin(angle[:3])
        tilt = np.zeros(4)
        self._mujoco.mju_euler2Quat(tilt, self.config.sway / 2 * np.sin(angle[3:]), "xyz")
        rotation = np.zeros(9)
        self._mujoco.mju_quat2Mat(rotation, tilt)
        sim.data.cam_xmat[camera] = (turn.reshape(3, 3) @ rotation.reshape(3, 3)).reshape(-1)
        try:
            return self._renderer.render()
        finally:
            sim.data.cam_xpos[camera], sim.data.cam_xmat[camera] = position, turn

    def _set_fields(self, changed: dict[str, np.ndarray]) -> None:
        for name, field in self._fields.items():
            value = changed.get(name, self._pristine_fields[name])
            if not np.array_equal(field, value):
                field[...] = value

    def _set_attributes(self, changed: dict[str, Any], keep_views: bool) -> None:
        attributes = vars(self._sim)
        for key in [k for k in attributes if k not in self._fixed and k not in _RANDOM]:
            if not (keep_views and _views_simulator(attributes[key])):
                del attributes[key]
        for key, value in (self._pristine_attributes | changed).items():
            if key not in attributes:
                attributes[key] = copy.deepcopy(value)


_RANDOM = ("_np_random", "_np_random_seed")

_SWAY_STEPS = np.array([110, 140, 170, 130, 160, 190])
"""Periods of the swaying camera in steps: three translations, then three rotations."""

_BODIES = 40
"""Rows of `body_pose`, the same for all tasks, of which none has more than 39 bodies."""


def _scene_points(mujoco: Any, sim: Any, solid: Any, config: MetaWorldConfig, renderer: Renderer) -> ScenePoints:
    """Scene points of the first camera. The robot is everything that hangs on its base."""
    return ScenePoints(
        mujoco,
        solid,
        camera=sim.model.camera(config.cameras[0]).id,
        side=config.point_grid,
        aspect=config.width / config.height,
        turned=renderer.turned[0],
        robot=solid.body_rootid == solid.body("base").id,
        poses=_BODIES,
    )


def shared_reset_range(tasks: Iterable[str]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The reset range common to all `tasks`, as (reset_low, reset_high) for `MetaWorldConfig`.

    With it, a seed starts look-alike tasks (faucet-open-v3, faucet-close-v3) from the same state. Raises WamkitError
    for ranges that do not overlap.
    """
    registry, tasks = _load()[1], tuple(tasks)
    for task in tasks:
        check_task("metaworld", task, INSTRUCTIONS)
    spaces = [_simulator(registry[task])._random_reset_space for task in tasks]
    if len({space.shape for space in spaces}) > 1:
        raise WamkitError(f"the reset ranges of {', '.join(tasks)} have different dimensions")
    low, high = np.max([s.low for s in spaces], axis=0), np.min([s.high for s in spaces], axis=0)
    if (low > high).any():
        raise WamkitError(f"the reset ranges of {', '.join(tasks)} do not overlap")
    return tuple(low.tolist()), tuple(high.tolist())


def _load() -> tuple[Any, dict[str, type], dict[str, type]]:
    """mujoco, the simulators by task, the scripted policies by task."""
    mujoco = load_mujoco()
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        from metaworld.policies import ENV_POLICY_MAP
    except ImportError as error:
        advice = "pip install 'wamkit[metaworld]'"
        raise WamkitError(f"the package metaworld cannot be imported ({error}): {advice}") from error
    # The scripted policies warn at most steps that their actions will be clipped, as is intended.
    warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high")
    return mujoco, ALL_V3_ENVIRONMENTS, ENV_POLICY_MAP


@lru_cache(maxsize=4)
def _compiled(path: str) -> Any:
    """The model in a file. Kept, since compiling its meshes is most of the time that making an environment takes."""
    return load_mujoco().MjModel.from_xml_path(path)


def _copied(sim: Any) -> tuple[Any, Any]:
    """Model and data of a simulator, in place of `MujocoEnv._initialize_simulation`, which compiles the model anew."""
    model = copy.copy(_compiled(sim.fullpath))
    return model, load_mujoco().MjData(model)


def _simulator(cls: type) -> Any:
    """A simulator as MetaWorld makes it."""
    return type(cls.__name__, (cls,), {"_initialize_simulation": _copied})()


def _build(cls: type, config: MetaWorldConfig) -> tuple[Any, Any]:
    """The bare simulator, ready for seeded resets, with cheap rendering and the close camera; and its model with full
    meshes."""
    sim = _simulator(cls)
    sim._freeze_rand_vec, sim.seeded_rand_vec, sim._set_task_called = False, True, True
    # Otherwise the scripted experts get a goal of zeros, because the observation is clipped to this (cached) space.
    sim._partially_observable = False
    del sim.sawyer_observation_space
    sim.observation_space = sim.sawyer_observation_space
    sim.max_path_length = sys.maxsize
    if config.reset_low is not None or config.reset_high is not None:
        space = sim._random_reset_space
        low = np.array(space.low if config.reset_low is None else config.reset_low, np.float64)
        high = np.array(space.high if config.reset_high is None else config.reset_high, np.float64)
        if low.shape != space.shape or high.shape != space.shape or (low > high).any():
            raise WamkitError(
                f"reset range of {config.task}: expected {space.shape[0]} values each, low <= high, "
                f"found {config.reset_low} and {config.reset_high}"
            )
        sim._random_reset_space = gymnasium.spaces.Box(low, high, dtype=np.float64)
    model = sim.model
    names = [model.camera(i).name for i in range(model.ncam)]
    for camera in config.cameras:
        if camera not in names:
            raise WamkitError(
                f"unknown camera {camera!r} of metaworld{nearest(camera, names)}; known: {', '.join(names)}"
            )
    # As shipped (4096 pixel shadow map, four samples a pixel) a software frame takes 200 to 400 ms; like this, about
    # 12.
    model.vis.quality.offsamples, model.vis.quality.shadowsize = 0, 0
    model.vis.global_.offwidth = config.supersample * config.width
    model.vis.global_.offheight = config.supersample * config.height
    model.cam_pos[model.camera("corner2").id] = _CLOSE_CORNER2
    solid = copy.copy(model) if config.point_grid else model
    if config.coarse_meshes:
        _coarsen_meshes(model)
    return sim, solid


_CELL = 0.004
"""Metres. Vertices of a mesh that share a cell of this size are merged; a pixel is three times as wide."""


def _coarsen_meshes(model: Any) -> None:
    """Merges the vertices of every rendered mesh within `_CELL` and drops the faces that collapse (vertex clustering,
    Rossignac and Borrel 1993). The time of a software frame is that of its 68,000 faces, of which a third stays, at 44
    dB to the full image. Contacts are computed from other arrays (convex hulls), so the physics is the same to the bit.
    """
    for mesh in range(model.nmesh):
        vertices = slice(model.mesh_vertadr[mesh], model.mesh_vertadr[mesh] + model.mesh_vertnum[mesh])
        start, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
        cells = np.floor(model.mesh_vert[vertices] / _CELL).astype(np.int64)
        _, first, cell = np.unique(cells, axis=0, return_index=True, return_inverse=True)
        corners = cell.reshape(-1)[model.mesh_face[start : start + count]]
        a, b, c = corners.T
        whole = np.flatnonzero((a != b) & (b != c) & (a != c))
        _, once = np.unique(np.sort(corners[whole], axis=1), axis=0, return_index=True)
        kept = whole[np.sort(once)]
        end = start + len(kept)
        model.mesh_face[start:end] = first[corners[kept]]
        for per_corner in (model.mesh_facenormal, model.mesh_facetexcoord):
            if len(per_corner) >= start + count:
                per_corner[start:end] = per_corner[start + kept]
        model.mesh_facenum[mesh] = len(kept)


def _small_fields(model: Any) -> dict[str, np.ndarray]:
    names = [name for name in dir(model) if not name.startswith(("_", *_BULKY))]
    return {name: value for name in names if isinstance(value := getattr(model, name), np.ndarray)}


def _views_simulator(value: Any) -> bool:
    """True for a view of MuJoCo's memory, an array that changes as the simulator does."""
    while isinstance(value, np.ndarray):
        if value.base is None:
            return False
        value = value.base
    return type(value).__module__.startswith("mujoco") or type(value).__name__ == "PyCapsule"


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    return isinstance(value, (*_PLAIN, np.ndarray))


def _same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return bool(a == b)
