"""ManiSkill: `trajectory.<observations>.<control>.<backend>.h5` with a JSON file of the same name.

    traj_0/actions                       float32 (T, a)
    traj_0/obs/agent/qpos, qvel          float32 (T + 1, n); with "state" observations obs is an array (T + 1, s)
    traj_0/obs/sensor_data/<camera>/rgb  uint8 (T + 1, H, W, 3)
    traj_0/success, terminated, truncated   bool (T,)
    *.json                               env_info: env_id, env_kwargs
                                         episodes: episode_id, control_mode, elapsed_steps

There is one more observation than actions. The last, which no action follows, is dropped. Files recorded without
observations (`none`) must be replayed first: python -m mani_skill.trajectory.replay_trajectory -o rgb.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from typing import Annotated, Any

import numpy as np

from wamkit.config import Between, Checked
from wamkit.data.format.schema import Layout
from wamkit.data.importers.base import (
    IMPORTERS,
    ImageStream,
    Importer,
    Recording,
    SourceError,
    camera_facts,
    camera_layout,
    checked,
    entry,
    first_seen,
    reading,
    words,
)
from wamkit.data.importers.hdf5 import (
    array,
    columns,
    has,
    images_in,
    member,
    names,
    opened,
    sorted_by_number,
    stored_frames,
)
from wamkit.files import read_json
from wamkit.metadata import DatasetMetadata, Field


@dataclass(frozen=True)
class ManiSkillOptions(Checked):
    """Options of the importer `maniskill`."""

    text: str = ""
    """The instruction; the environment's name in words if empty."""
    rate: Annotated[float, Between(1, 1000)] = 20.0
    """Control steps a second, ManiSkill's default."""


@IMPORTERS.register("maniskill")
class ManiSkill(Importer):
    """ManiSkill's trajectories: HDF5 and JSON, one more observation than actions."""

    Options = ManiSkillOptions
    options: ManiSkillOptions

    @cached_property
    def _about(self) -> dict[str, Any]:
        path = self.root.with_suffix(".json")
        with reading(path):
            if not path.exists():
                raise SourceError("it is missing: ManiSkill writes it beside the h5 file")
            about = read_json(path)
            env, episodes = entry(about, "env_info", dict), entry(about, "episodes", list)
            words(entry(env, "env_id"), "env_id")
            modes = {words(entry(e, "control_mode"), f"control_mode of episode {i}") for i, e in enumerate(episodes)}
            if len(modes) != 1:
                listed = ", ".join(sorted(modes)) or "none"
                raise SourceError(f"its episodes have the control modes {listed}; keep those of one mode in a file")
            words(entry(env, "env_kwargs", dict, {}).get("robot_uids", "panda"), "robot_uids in env_kwargs")
            return about

    @property
    def _env(self) -> str:
        return self._about["env_info"]["env_id"]

    def _observed(self, trajectory: Any) -> list[str]:
        """Names of the arrays that form the state."""
        if not has(trajectory, "obs"):
            raise SourceError(f"{trajectory.name} was recorded without observations; replay it with -o rgb")
        if not hasattr(member(trajectory, "obs"), "keys"):
            return ["obs"]
        if not (found := [f"obs/agent/{k}" for k in ("qpos", "qvel") if has(trajectory, f"obs/agent/{k}")]):
            raise SourceError(f"{trajectory.name} has neither obs/agent/qpos nor obs/agent/qvel; replay it with -o rgb")
        return found

    def _cameras(self, trajectory: Any) -> list[str]:
        return [c for c in names(trajectory, "obs/sensor_data") if has(trajectory, f"obs/sensor_data/{c}/rgb")]

    def layout(self) -> Layout:
        episodes = self.episodes()
        if not episodes:
            raise SourceError(f"{self.root}: there is no traj_0 in it; is it ManiSkill's?")
        with opened(self.root) as file:
            first = member(file, episodes[0])
            state = [f"{k.split('/')[-1]}_{i}" for k in self._observed(first) for i in range(columns(first, k))]
            action = columns(first, "actions")
            seen = first_seen((name, self._cameras(member(file, name))) for name in episodes)
            sizes = {c: images_in(file, f"{name}/obs/sensor_data/{c}/rgb").shape[1:3] for c, name in seen.items()}
        return Layout(
            **camera_layout(sizes),
            proprio_names=tuple(state),
            action_names=tuple(f"action_{i}" for i in range(action)),
            fps=self.options.rate,
            robot_type=self._about["env_info"].get("env_kwargs", {}).get("robot_uids", "panda"),
            expert=False,
        )

    def metadata(self) -> DatasetMetadata:
        layout, control = self.layout(), self._about["episodes"][0]["control_mode"]
        with opened(self.root) as file:
            first = member(file, self.episodes()[0])
            ends = np.cumsum([0, *(columns(first, k) for k in self._observed(first))]).tolist()
            parts = dict(zip((k.split("/")[-1] for k in self._observed(first)), pairwise(ends), strict=True))
        low, high = parts.get("qpos", (0, 0))
        state = tuple(f for name, (a, b) in parts.items() for f in _state(name, a, b, layout.robot_type))
        return DatasetMetadata(
            source=f"ManiSkill, {self._env}",
            embodiment=layout.robot_type,
            control_mode=control,
            rate=layout.fps,
            state=state,
            action=_action(control, len(layout.action_names), high - low, layout.robot_type),
            cameras=camera_facts(layout.cameras),
        )

    def episodes(self) -> Sequence[str]:
        with opened(self.root) as file:
            return sorted_by_number(k for k in file if k.startswith("traj_"))

    def read(self, name: str) -> Recording:
        task = "".join(f" {c.lower()}" if c.isupper() else c for c in self._env.partition("-")[0]).strip()
        with opened(self.root, name) as file:
            trajectory = member(file, name)
            actions = array(trajectory, "actions")
            T = len(actions)
            state = [checked(array(trajectory, k), (T + 1, -1), k)[:-1] for k in self._observed(trajectory)]
            success = None
            if has(trajectory, "success"):
                success = checked(array(trajectory, "success").reshape(-1)[:T], (T,), "success").astype(bool)
            return Recording(
                name=name,
                text=self.options.text or task,
                task=self._env,
                state=np.concatenate(state, 1),
                action=checked(actions, (T, -1), "actions"),
                images={c: self._images(name, c, T) for c in self._cameras(trajectory)},
                success=success,
            )

    def _images(self, name: str, camera: str, steps: int) -> ImageStream:
        key = f"{name}/obs/sensor_data/{camera}/rgb"
        return lambda: islice(stored_frames(self.root, key, name, steps + 1), steps)


def _is_panda(robot: str, size: int) -> bool:
    """True for Franka's arm with its own gripper: seven joints and two fingers, which slide."""
    return robot in ("panda", "panda_wristcam") and size == 9


def _state(name: str, a: int, b: int, robot: str) -> tuple[Field, ...]:
    """The fields of a part of the state. Joints turn or slide, which the file does not say but of known robots."""
    if name == "obs":
        return (Field(name, a, b, "other"),)
    about = "velocity" if name == "qvel" else "absolute"
    if not _is_panda(robot, b - a):
        return (Field(name, a, b, "joint", about),)
    turns, slides = ("rad/s", "m/s") if name == "qvel" else ("rad", "m")
    fingers = Field(f"{name}_gripper", b - 2, b, "gripper", about, unit=slides, larger="opens")
    return (Field(name, a, b - 2, "joint", about, unit=turns), fingers)


def _action(control: str, size: int, joints: int, robot: str) -> tuple[Field, ...]:
    """The fields of an action by the name of its controller: arms first, the gripper's command last.

    A gripper has more joints than commands. If there is a command for each of the `joints`, there is thus no gripper.
    Its command is a target in [-1, 1], the open end 1, for the panda; other robots' commands differ.
    """
    delta = "delta" if "delta" in control else "absolute"
    reference = "" if delta == "absolute" else "target" if "target" in control else "state"
    control = control.replace("target_", "")
    known = robot in ("panda", "panda_wristcam")
    grip = (Field("gripper", size - 1, size, "gripper", "absolute", unit="1", larger="opens"),)
    grip = grip if known else (Field("gripper", size - 1, size, "gripper", ""),)
    if "ee_delta_pose" in control and size == 7:
        return (
            Field("eef_position", 0, 3, "position", "delta", frame="base", unit="1", reference=reference),
            Field("eef_rotation", 3, 6, "rotation", "delta", "euler_xyz", frame="base", unit="1", reference=reference),
            *grip,
        )
    if "ee_delta_pos" in control and size == 4:
        return (Field("eef_position", 0, 3, "position", "delta", frame="base", unit="1", reference=reference), *grip)
    if "joint" in control and "vel" not in control and size > 1:
        arm = size if size == joints else size - 1
        unit = "1" if delta == "delta" else "rad" if known else ""
        joints_field = Field("joints", 0, arm, "joint", delta, unit=unit, reference=reference)
        return (joints_field, *grip[: size - arm])
    return (Field("action", 0, size, "other", representation=""),)
