"""LIBERO (Liu et al. 2023, arXiv 2306.03310): 130 tasks of a Panda arm in MuJoCo (robosuite), from fixed initial
states.

Needs the package `hf-libero`, which contains the tasks and their initial states, and its textures and meshes, which the
package downloads when they are first needed. docs/environments.md describes the installation beside wamkit's own
PyTorch.

Seeds. HELD_OUT_SEED_BASE + k starts from the k-th of a task's 50 published initial states, as openpi's evaluation does
in its k-th trial. An initial state does not contain the positions of fixtures, so the simulator is first seeded with
`Config.seed` and reset k + 1 times. Any other seed places objects by LIBERO's own samplers. Ten steps without motion
follow, in which objects settle.

Pitfalls. MuJoCo's images are upside down, and rotating them by half a turn, as models of OpenVLA's lineage do, mirrors
them (`turn`). The instruction is the one in the task's file name, which does not always agree with the task's
definition. The gripper opens at -1 and closes at 1. Rotations are angles up to 2 pi about an axis, as in robosuite.

Tested on the real simulator with software rendering, hf-libero 0.1.4, robosuite 1.4.0 and MuJoCo 3.3: all of
`wamkit.envs.check`, and resets that equal robosuite's own hard resets to the byte, for one task each of three suites.
No published policy was run here.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium
import numpy as np

from wamkit.config import AtMost, Between, Checked, ConfigError, Side
from wamkit.envs.base import (
    HELD_OUT_SEED_BASE,
    VALIDATION_SEED_BASE,
    Environment,
    check_task,
    observation_spaces,
    register_env,
)
from wamkit.envs.libero_tasks import INSTALLATION, MAX_STEPS, package, suites
from wamkit.envs.mujoco_state import read_state, write_state
from wamkit.envs.rendering import load_mujoco
from wamkit.metadata import CameraFacts, DatasetMetadata, Field
from wamkit.types import Snapshot, WamkitError

WAIT = 10
"""Steps of `NO_MOTION` before the first observation, not counted."""

_FIXTURES = ("body_pos", "body_quat")
"""Model fields in which LIBERO places bodies that have no joint."""

NO_MOTION = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)

CAMERAS = {"agentview": "scene", "robot0_eye_in_hand": "wrist"}

_METADATA = DatasetMetadata(
    source="LIBERO",
    embodiment="Panda",
    control_mode="OSC_POSE delta",
    rate=20.0,
    licence="MIT",
    state=(
        Field("eef_position", 0, 3, "position", frame="world", unit="m"),
        Field("eef_rotation", 3, 6, "rotation", rotation="axis_angle", frame="world"),
        Field("gripper", 6, 8, "gripper", unit="m", larger="opens"),
    ),
    action=(
        Field("eef_position", 0, 3, "position", "delta", frame="base", unit="1", reference="state"),
        Field("eef_rotation", 3, 6, "rotation", "delta", "axis_angle", frame="base", unit="1", reference="state"),
        Field("gripper", 6, 7, "gripper", unit="1", larger="closes"),
    ),
)


@dataclass(frozen=True)
class LiberoConfig(Checked):
    """Options of `Libero`."""

    task: str
    """One of the 130 task names, e.g. `put_the_bowl_on_the_stove`."""
    height: Side = 128
    """Pixels; `render_size` must be a multiple."""
    width: Side = 128
    """Pixels, likewise."""
    render_size: Side = 256
    """Side in pixels of the rendered image, which is averaged down."""
    turn: Literal["flipped", "rotated"] = "flipped"
    """Method of turning images upright, as in the importer `libero`: flipped is correct; OpenVLA's lineage was trained
    on rotated ones."""
    cameras: tuple[str, ...] = tuple(CAMERAS)
    """One image each: agentview, robot0_eye_in_hand."""
    max_steps: Annotated[int, Between(1, inf), AtMost(10**6)] | None = None
    """Number of steps after which an episode is truncated; None for the suite's own."""
    seed: Annotated[int, Between(0, 2**32 - 1)] = 7
    """Seed of the positions of fixtures when an initial state is used: openpi uses 7, OpenVLA 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.render_size % self.height or self.render_size % self.width:
            raise ConfigError(f"render_size = {self.render_size}: must be a multiple of {self.height} and {self.width}")
        if not self.cameras or len(set(self.cameras)) != len(self.cameras) or set(self.cameras) - set(CAMERAS):
            raise ConfigError(f"cameras = {self.cameras}: must be of {', '.join(CAMERAS)}, once each, at least one")


def instruction(task: str) -> str:
    """The instruction: the task's name in words, without the scene that the longer suites put before it."""
    return re.sub(r"^[A-Z_]+_SCENE\d+_", "", task).replace("_", " ")


def upright_image(raw: np.ndarray, height: int, width: int, turn: str) -> np.ndarray:
    """MuJoCo's image, uint8 (n, n, 3) with the lowest row first, as uint8 (3, height, width): upright and averaged
    down."""
    upright = raw[::-1, ::-1] if turn == "rotated" else raw[::-1]
    n, m = len(raw) // height, raw.shape[1] // width
    blocks = upright.transpose(2, 0, 1).reshape(3, height, n, width, m).sum((2, 4), np.uint32)
    return ((blocks + n * m // 2) // (n * m)).astype(np.uint8)


def proprio(position: np.ndarray, quaternion: np.ndarray, fingers: np.ndarray) -> np.ndarray:
    """Proprioception, float32 (8,): position of the hand (3,), its rotation as angle (0 .. 2 pi) times axis (3,),
    positions of its two fingers (2,).

    quaternion: unit, x, y, z, w.
    """
    w = np.clip(quaternion[3], -1.0, 1.0)
    sine = np.sqrt(1.0 - w * w)
    turn = 2 * np.arccos(w) / sine * quaternion[:3] if sine > 1e-8 else np.zeros(3)
    return np.concatenate([position, turn, fingers]).astype(np.float32)


def initial_states(path: Path) -> np.ndarray:
    """The initial states of a `.pruned_init` file, float64 (n, 1 + nq + nv): time, positions, velocities.

    The file is a pickle within a torch archive, of which only a plain array is loaded. Raises WamkitError for any other
    content.
    """
    import torch

    rebuild = np.empty(0).__reduce__()[0]  # NumPy's constructor of arrays, under both of its names
    plain = [np.ndarray, np.dtype, type(np.dtype(np.float64))]
    names = [(rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    try:
        with torch.serialization.safe_globals([*plain, *names]):
            states = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise WamkitError(f"{path} is not a file of initial states ({reason}): install hf-libero again") from error
    if not isinstance(states, np.ndarray) or states.dtype != np.float64 or states.ndim != 2 or not len(states):
        raise WamkitError(f"{path} does not hold a table of initial states: install hf-libero again")
    return states


@register_env("libero")
class Libero(Environment):
    """The tasks of LIBERO's five suites (Panda arm, robosuite, MuJoCo)."""

    Config = LiberoConfig
    robot_type = "Panda"
    proprio_names = ("x", "y", "z", "turn_x", "turn_y", "turn_z", "finger_left", "finger_right")
    action_names = ("dx", "dy", "dz", "turn_x", "turn_y", "turn_z", "gripper_close")
    fps = 20.0
    metadata = {"render_modes": [], "render_fps": 20}

    def __init__(self, config: LiberoConfig):
        known = {task: suite for suite, tasks in suites().items() for task in tasks}
        check_task("libero", config.task, known)
        self.config, self.task, self.text = config, config.task, instruction(config.task)
        self.cameras, self.suite = tuple(config.cameras), known[config.task]
        roles = {c: CameraFacts(CAMERAS[c], config.turn) for c in self.cameras}
        self.dataset_metadata = replace(_METADATA, cameras=roles)
        self._mujoco, self._states = load_mujoco(), None
        self._max_steps = config.max_steps or MAX_STEPS[self.suite]
        self._env, self._steps, self._was_reset = self._build(), 0, False
        fresh = self._mujoco.MjModel.from_xml_string(self._env.env.model.get_xml())
        self._pristine = {name: getattr(fresh, name).copy() for name in _FIXTURES}
        self._joints = list(self._env.env.object_property_initializers)
        self._place(0, 1)  # hides robosuite's markers, which a snapshot restored before the first reset would show
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (7,), np.float32)
        bound = np.full(8, np.inf, np.float32)
        self.observation_space = observation_spaces(len(self.cameras), config.height, config.width, -bound, bound)

    @classmethod
    def tasks(cls) -> tuple[str, ...]:
        """All suites' tasks, in LIBERO's order. Raises WamkitError if LIBERO is not installed."""
        return tuple(task for tasks in suites().values() for task in tasks)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None, render: bool = True):
        """Starts the episode of `seed`; the module's docstring describes the seeds."""
        if seed is None and not self._was_reset:
            raise WamkitError("the first reset needs a seed: reset(seed=...)")
        super().reset(seed=seed, options=options)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        k = seed - HELD_OUT_SEED_BASE if HELD_OUT_SEED_BASE <= seed < VALIDATION_SEED_BASE else None
        state = self._initial(k) if k is not None else None
        self._place(*((seed % 2**32, 1) if k is None else (self.config.seed, k + 1)))
        if state is not None:
            self._env.set_init_state(state)
        for _ in range(WAIT):
            self._env.step(NO_MOTION)
        self._steps, self._was_reset = 0, True
        return self._observe(render), {"success": bool(self._env.check_success())}

    def step(self, action: np.ndarray, render: bool = True):
        """One step of 1/20 s.

        action: float (7,), clipped to [-1, 1]; 1 moves the hand by 5 cm, rotates it by 0.5 rad, closes the gripper.
        """
        action = self._checked_action(action)
        if not self._was_reset:
            raise WamkitError("step before the first reset: call reset(seed=...)")
        _, reward, success, _ = self._env.step(action)
        self._steps += 1
        return self._observe(render), float(reward), False, self._steps >= self._max_steps, {"success": bool(success)}

    def expert(self) -> None:
        """None: collect with `--episodes 0`, and import LIBERO's demonstrations with `wamkit import libero`."""
        return None

    def snapshot(self) -> Snapshot:
        physics = read_state(self._mujoco, self._model, self._data)
        fixtures = {name: getattr(self._model, name).copy() for name in _FIXTURES}
        gripper = np.array(self._gripper.current_action, np.float64)
        return Snapshot(physics, fixtures, {"task": self.task, "steps": self._steps, "gripper": gripper})

    def restore(self, snapshot: Snapshot, render: bool = True) -> dict[str, Any]:
        self._check_task(snapshot)
        for name, value in snapshot.model.items():
            getattr(self._model, name)[...] = value
        write_state(self._mujoco, self._model, self._data, snapshot.physics)
        self._env.robots[0].controller.update(force=True)
        self._gripper.current_action = snapshot.attributes["gripper"].copy()
        self._env._post_process()  # lights of switched-on appliances
        self._steps, self._was_reset = int(snapshot.attributes["steps"]), True
        return self._observe(render)

    def close(self) -> None:
        self._env.close()
        super().close()

    @property
    def _model(self) -> Any:
        return self._env.sim.model._model

    @property
    def _data(self) -> Any:
        return self._env.sim.data._data

    @property
    def _gripper(self) -> Any:
        return self._env.robots[0].gripper

    def _build(self) -> Any:
        folder = Path(os.environ.get("LIBERO_CONFIG_PATH", "~/.libero")).expanduser()
        if not (folder / "config.yaml").exists():
            raise WamkitError(
                "LIBERO asks at its first import for the folder of its data sets and writes config.yaml to "
                f"{folder}: answer it once, python -c 'import libero.libero'"
            )
        try:
            from libero.libero.envs import OffScreenRenderEnv

            definition = package() / "bddl_files" / self.suite / f"{self.task}.bddl"
            size = {"camera_heights": self.config.render_size, "camera_widths": self.config.render_size}
            return OffScreenRenderEnv(
                bddl_file_name=str(definition), use_camera_obs=False, hard_reset=False, ignore_done=True, **size
            )
        except ImportError as error:
            raise WamkitError(f"the package hf-libero cannot be imported ({error}); {INSTALLATION}") from error
        except OSError as error:
            raise WamkitError(
                f"LIBERO cannot build {self.task} ({error}): its meshes and textures must be in {package() / 'assets'}"
            ) from error

    def _place(self, seed: int, times: int) -> None:
        """Seeds LIBERO and resets it `times` times.

        The result equals its own hard resets to the byte, which take seconds, as they build the model anew.
        """
        before = np.random.get_state()  # LIBERO uses NumPy's global generator, which is not ours to change
        try:
            np.random.seed(seed)
            for k in range(times):
                # Objects inside others are placed relative to these, which must be where the model's file puts them.
                for name, value in self._pristine.items():
                    getattr(self._model, name)[...] = value
                # Each time the model is built, LIBERO appends its joint initializers to their list again, and so
                # samples once more.
                self._env.env.object_property_initializers = self._joints * (k + 2)
                self._env.reset()
        finally:
            np.random.set_state(before)
        self._gripper.current_action = np.zeros(self._gripper.dof)  # only a hard reset, of seconds, makes a new gripper

    def _initial(self, k: int) -> np.ndarray:
        if self._states is None:
            self._states = initial_states(package() / "init_files" / self.suite / f"{self.task}.pruned_init")
            width = 1 + self._model.nq + self._model.nv
            if self._states.shape[1] != width:
                raise WamkitError(
                    f"{self.task}: initial states have {self._states.shape[1]} values, the simulator {width}: "
                    "install hf-libero again"
                )
        if k >= len(self._states):
            raise WamkitError(f"{self.task} has {len(self._states)} initial states, the most episodes to evaluate")
        return self._states[k]

    def _observe(self, render: bool) -> dict[str, Any]:
        # After a step MuJoCo's positions of bodies are those before it until they are computed; the solver is
        # unaffected.
        self._mujoco.mj_kinematics(self._model, self._data)
        self._mujoco.mj_camlight(self._model, self._data)
        robot = self._env.robots[0]
        w, x, y, z = self._data.body(robot.robot_model.eef_name).xquat
        hand, fingers = self._data.site_xpos[robot.eef_site_id], self._data.qpos[robot._ref_gripper_joint_pos_indexes]
        raw: dict[str, Any] = {"proprio": proprio(hand, np.array([x, y, z, w]), fingers), "text": self.text}
        if render:
            c = self.config
            size = {"width": c.render_size, "height": c.render_size}
            large = (self._env.sim.render(camera_name=name, **size) for name in self.cameras)
            raw["images"] = np.stack([upright_image(x, c.height, c.width, c.turn) for x in large])
        return raw
