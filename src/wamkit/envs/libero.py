"""LIBERO (Liu et al. 2023, arXiv 2306.03310): 130 tasks of a Panda arm in MuJoCo (robosuite), from fixed initial states.

Needs the package `hf-libero`, which brings the tasks and their initial states, and its pictures and meshes, which the package fetches
when they are first needed (docs/cli.md says how both are installed beside wamkit's own PyTorch).

Seeds. HELD_OUT_SEED_BASE + k starts from the k-th of a task's 50 published initial states, as openpi's evaluation does in its k-th
trial: an initial state says nothing of where fixtures stand, so the simulator is seeded with `Config.seed` and reset k + 1 times
first. Any other seed places objects by LIBERO's own samplers. Then come ten steps of doing nothing, in which objects settle.

What is easily got wrong: MuJoCo's pictures are upside down, and turning them by half a turn, as models of OpenVLA's lineage do, mirrors
them (`turn`). The instruction is that of the task's file name, which is not always what the task's definition says. The gripper
opens at -1 and closes at 1. Turns are angles up to 2 pi about an axis, as robosuite writes them.

Run on the real simulator, software drawing, hf-libero 0.1.4, robosuite 1.4.0, MuJoCo 3.3: all of `wamkit.envs.check`, and resets that
equal robosuite's own hard resets to the byte, for one task each of three suites. No published policy was run here.
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import torch

from wamkit.config import ConfigError, check_bounds, nearest
from wamkit.envs.base import HELD_OUT_SEED_BASE, VALIDATION_SEED_BASE, Environment, observation_spaces, register_env
from wamkit.envs.rendering import load_mujoco
from wamkit.metadata import CameraFacts, DatasetMetadata, Field
from wamkit.types import Snapshot, WamkitError

MAX_STEPS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
"""Steps of an episode by suite, as OpenVLA and openpi cap them: a little more than the longest demonstration takes."""

WAIT = 10
"""Steps of `NOTHING` before the first observation; not counted."""

_FIXTURES = ("body_pos", "body_quat")
"""Fields of the model in which LIBERO places what has no joint."""

NOTHING = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)

CAMERAS = {"agentview": "scene", "robot0_eye_in_hand": "wrist"}

_MEANING = DatasetMetadata(
    source="LIBERO",
    embodiment="Panda",
    control_mode="OSC_POSE delta",
    rate=20.0,
    licence="MIT",
    state=(
        Field("eef_position", 0, 3, "position", frame="world", unit="m"),
        Field("eef_rotation", 3, 6, "rotation", rotation="axis_angle", frame="world"),
        Field("gripper", 6, 8, "gripper", unit="m"),
    ),
    action=(
        Field("eef_position", 0, 3, "position", "delta", frame="base", unit="1"),
        Field("eef_rotation", 3, 6, "rotation", "delta", "axis_angle", frame="base", unit="1"),
        Field("gripper", 6, 7, "gripper", unit="1"),
    ),
)


@dataclass(frozen=True)
class LiberoConfig:
    """Options of `Libero`."""

    task: str
    """One of the 130 task names, e.g. `put_the_bowl_on_the_stove`."""
    height: int = 128
    """Pixels; `drawn` must be a multiple."""
    width: int = 128
    """Pixels, likewise."""
    drawn: int = 256
    """Pixels a side of the picture that is drawn; it is averaged down."""
    turn: Literal["flipped", "rotated"] = "flipped"
    """How pictures are brought upright, as of the importer `libero`: flipped is right; rotated is what OpenVLA's lineage learned from."""
    cameras: tuple[str, ...] = tuple(CAMERAS)
    """One picture each: agentview, robot0_eye_in_hand."""
    max_steps: int | None = None
    """An episode is truncated after so many steps; None for the suite's own number."""
    seed: int = 7
    """Of where fixtures stand when an initial state is used: 7 as openpi, 0 as OpenVLA."""

    def __post_init__(self) -> None:
        check_bounds(self, height=(1, inf), width=(1, inf), drawn=(1, inf), seed=(0, 2**32 - 1))
        check_bounds(self, **({} if self.max_steps is None else {"max_steps": (1, inf)}))
        if self.drawn % self.height or self.drawn % self.width:
            raise ConfigError(f"drawn = {self.drawn}: must be a multiple of {self.height} and {self.width}")
        if not self.cameras or len(set(self.cameras)) != len(self.cameras) or set(self.cameras) - set(CAMERAS):
            raise ConfigError(f"cameras = {self.cameras}: must be of {', '.join(CAMERAS)}, once each, at least one")


# ---------------------------------------------------------------------------------------------------- without a simulator


def instruction(task: str) -> str:
    """What the robot is told: the task's name in words, without the scene that the longer suites put before it."""
    return re.sub(r"^[A-Z_]+_SCENE\d+_", "", task).replace("_", " ")


def picture(raw: np.ndarray, height: int, width: int, turn: str) -> np.ndarray:
    """MuJoCo's picture uint8 (n, n, 3), its lowest row first, as uint8 (3, height, width): upright and averaged down."""
    upright = raw[::-1, ::-1] if turn == "rotated" else raw[::-1]
    n, m = len(raw) // height, raw.shape[1] // width
    blocks = upright.transpose(2, 0, 1).reshape(3, height, n, width, m).sum((2, 4), np.uint32)
    return ((blocks + n * m // 2) // (n * m)).astype(np.uint8)


def proprio(position: np.ndarray, quaternion: np.ndarray, fingers: np.ndarray) -> np.ndarray:
    """float32 (8,): the hand's place (3,), its turn from a unit quaternion x, y, z, w as angle (0 .. 2 pi) times axis (3,), and
    the places of its two fingers (2,)."""
    w = np.clip(quaternion[3], -1.0, 1.0)
    sine = np.sqrt(1.0 - w * w)
    turn = 2 * np.arccos(w) / sine * quaternion[:3] if sine > 1e-8 else np.zeros(3)
    return np.concatenate([position, turn, fingers]).astype(np.float32)


def initial_states(path: Path) -> np.ndarray:
    """The initial states of a `.pruned_init` file, float64 (n, 1 + nq + nv): time, positions, speeds.

    The file is a pickle within a torch archive; nothing but a plain array is let through. Raises WamkitError for any other file.
    """
    rebuild = np.empty(0).__reduce__()[0]  # NumPy's function that makes an array, under the two names it has had
    plain = [np.ndarray, np.dtype, type(np.dtype(np.float64))]
    names = [(rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    try:
        with torch.serialization.safe_globals([*plain, *names]):
            states = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise WamkitError(f"{path} is no file of initial states ({reason}): install hf-libero again") from error
    if not isinstance(states, np.ndarray) or states.dtype != np.float64 or states.ndim != 2 or not len(states):
        raise WamkitError(f"{path} holds no table of initial states: install hf-libero again")
    return states


# ------------------------------------------------------------------------------------------------------- the simulator


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
        if config.task not in known:
            raise WamkitError(f"unknown libero task {config.task!r}{nearest(config.task, known)}")
        self.config, self.task, self.text = config, config.task, instruction(config.task)
        self.cameras, self.suite = tuple(config.cameras), known[config.task]
        roles = {c: CameraFacts(CAMERAS[c], config.turn) for c in self.cameras}
        self.meaning = replace(_MEANING, cameras=roles)
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
        """All suites' tasks, in LIBERO's order. Raises WamkitError without the package."""
        return tuple(task for tasks in suites().values() for task in tasks)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """See the module's docstring."""
        if seed is None and not self._was_reset:
            raise WamkitError("the first reset needs a seed: reset(seed=...)")
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        k = seed - HELD_OUT_SEED_BASE if HELD_OUT_SEED_BASE <= seed < VALIDATION_SEED_BASE else None
        state = self._initial(k) if k is not None else None
        self._place(*((seed % 2**32, 1) if k is None else (self.config.seed, k + 1)))
        if state is not None:
            self._env.set_init_state(state)
        for _ in range(WAIT):
            self._env.step(NOTHING)
        self._steps, self._was_reset = 0, True
        return self._observe(), {"success": bool(self._env.check_success())}

    def step(self, action: np.ndarray):
        """One step of 1/20 s. action: float (7,): 1 is 5 cm of the hand's way, 0.5 rad of its turn, closing; clipped to [-1, 1]."""
        action = np.asarray(action, np.float32)
        if action.shape != (7,) or not np.isfinite(action).all():
            raise WamkitError(f"libero action: expected 7 finite numbers, found {action!r}")
        if not self._was_reset:
            raise WamkitError("step before the first reset: call reset(seed=...)")
        _, reward, success, _ = self._env.step(np.clip(action, -1.0, 1.0))
        self._steps += 1
        return self._observe(), float(reward), False, self._steps >= self._max_steps, {"success": bool(success)}

    def expert(self) -> None:
        """There is none: collect with `--episodes 0`, import LIBERO's demonstrations with `wamkit import libero`."""
        return None

    def snapshot(self) -> Snapshot:
        model, data, spec = self._model, self._data, self._mujoco.mjtState.mjSTATE_INTEGRATION
        physics = np.empty(self._mujoco.mj_stateSize(model, spec))
        self._mujoco.mj_getState(model, data, physics, spec)
        fixtures = {name: getattr(model, name).copy() for name in _FIXTURES}
        gripper = np.array(self._gripper.current_action, np.float64)
        return Snapshot(physics, fixtures, {"task": self.task, "steps": self._steps, "gripper": gripper})

    def restore(self, snapshot: Snapshot) -> dict[str, Any]:
        if snapshot.attributes.get("task") != self.task:
            raise WamkitError(f"a snapshot of {snapshot.attributes.get('task')!r} cannot be restored in {self.task!r}")
        for name, value in snapshot.model.items():
            getattr(self._model, name)[...] = value
        spec = self._mujoco.mjtState.mjSTATE_INTEGRATION
        self._mujoco.mj_setState(self._model, self._data, snapshot.physics, spec)
        self._mujoco.mj_forward(self._model, self._data)
        # mj_forward overwrites the solver's warm start, which is part of the state.
        self._mujoco.mj_setState(self._model, self._data, snapshot.physics, spec)
        self._env.robots[0].controller.update(force=True)
        self._gripper.current_action = snapshot.attributes["gripper"].copy()
        self._env._post_process()  # lights of what is switched on
        self._steps, self._was_reset = int(snapshot.attributes["steps"]), True
        return self._observe()

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
                "LIBERO asks at its first import where data sets should go, and writes config.yaml to "
                f"{folder}: answer it once, python -c 'import libero.libero'"
            )
        try:
            from libero.libero.envs import OffScreenRenderEnv

            definition = package() / "bddl_files" / self.suite / f"{self.task}.bddl"
            size = {"camera_heights": self.config.drawn, "camera_widths": self.config.drawn}
            return OffScreenRenderEnv(
                bddl_file_name=str(definition), use_camera_obs=False, hard_reset=False, ignore_done=True, **size
            )
        except ImportError as error:
            raise WamkitError(f"the package hf-libero cannot be imported ({error}); {_ADVICE}") from error
        except OSError as error:
            raise WamkitError(
                f"LIBERO cannot build {self.task} ({error}): its meshes and pictures must lie in {package() / 'assets'}"
            ) from error

    def _place(self, seed: int, times: int) -> None:
        """Seeds LIBERO and resets it `times` times, to the byte as its own hard resets do, which build the model anew for seconds."""
        before = np.random.get_state()  # LIBERO draws from NumPy's own generator, which is not ours to change
        try:
            np.random.seed(seed)
            for k in range(times):
                # Objects within others are placed by where these stand, so these must stand as in the model's file.
                for name, value in self._pristine.items():
                    getattr(self._model, name)[...] = value
                # Each time the model is built, LIBERO adds its initializers of joints to their list again, and so draws once more.
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
                    f"{self.task}: initial states of {self._states.shape[1]} numbers, the simulator has {width}: "
                    "install hf-libero again"
                )
        if k >= len(self._states):
            raise WamkitError(f"{self.task} has {len(self._states)} initial states: ask for no more episodes a task")
        return self._states[k]

    def _observe(self) -> dict[str, Any]:
        # After a step MuJoCo's places of bodies are those before it until they are computed; this leaves the solver alone.
        self._mujoco.mj_kinematics(self._model, self._data)
        self._mujoco.mj_camlight(self._model, self._data)
        robot = self._env.robots[0]
        w, x, y, z = self._data.body(robot.robot_model.eef_name).xquat
        hand, fingers = self._data.site_xpos[robot.eef_site_id], self._data.qpos[robot._ref_gripper_joint_pos_indexes]
        raw: dict[str, Any] = {"proprio": proprio(hand, np.array([x, y, z, w]), fingers), "text": self.text}
        if self.render_images:
            c = self.config
            drawn = (self._env.sim.render(camera_name=n, width=c.drawn, height=c.drawn) for n in self.cameras)
            raw["images"] = np.stack([picture(d, c.height, c.width, c.turn) for d in drawn])
        return raw


_ADVICE = "docs/cli.md says how it is installed without another PyTorch"


def package() -> Path:
    """Where LIBERO's tasks and initial states lie. Raises WamkitError where the package is missing. Imports nothing of it."""
    found = importlib.util.find_spec("libero")
    places = [Path(p) / "libero" for p in (found.submodule_search_locations or ())] if found else []
    for place in places:
        if (place / "benchmark/libero_suite_task_map.py").exists():
            return place
    raise WamkitError(f"LIBERO needs the package hf-libero; {_ADVICE}")


@lru_cache(maxsize=1)
def suites() -> dict[str, tuple[str, ...]]:
    """Task names by suite, in LIBERO's order. Raises WamkitError where the package is missing."""
    tasks = runpy.run_path(str(package() / "benchmark/libero_suite_task_map.py"))["libero_task_map"]
    return {suite: tuple(tasks[suite]) for suite in MAX_STEPS}
