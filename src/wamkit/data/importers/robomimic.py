"""robomimic and its descendants (robomimic v0.1 to 0.5, MimicGen, DexMimicGen): HDF5, a group for each demonstration.

    data                     attrs env_args: JSON with env_name and env_kwargs
    data/demo_0              attrs num_samples
    data/demo_0/actions      float64 (T, 7): OSC_POSE for position and axis-angle, then the gripper (1 closes);
                             deltas in [-1, 1], or absolute poses in metres where env_args say so:
                             control_delta false (robosuite 1.4), input_type absolute (robosuite 1.5);
                             where they name no controller, its values tell, or --options.control
    data/demo_0/obs/...      observations before each action; images uint8 (T, H, W, 3), upright
    data/demo_0/dones        ends of the episode
    data/demo_0/rewards      1 once the task is done

A file recorded without images (`states` only) first needs robomimic's own `dataset_states_to_obs.py`, which renders
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wamkit.config import Checked
from wamkit.data.format.schema import Layout
from wamkit.data.importers.base import (
    IMPORTERS,
    Importer,
    Recording,
    SourceError,
    camera_facts,
    camera_layout,
    checked,
    dimension_names,
    first_seen,
    real,
    words,
)
from wamkit.data.importers.hdf5 import (
    arguments,
    array,
    columns,
    control,
    has,
    images_in,
    json_attribute,
    member,
    names,
    opened,
    sorted_by_number,
    stored_frames,
)
from wamkit.errors import nearest
from wamkit.metadata import DatasetMetadata, Field

STATE = (
    Field("eef_position", 0, 3, "position", frame="world", unit="m"),
    Field("eef_rotation", 3, 7, "rotation", rotation="quat_xyzw", frame="world"),
    Field("gripper", 7, 9, "gripper", unit="m", larger="opens"),
)
KEYS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")


@dataclass(frozen=True)
class RobomimicOptions(Checked):
    """Options of the importer `robomimic`."""

    text: str = ""
    """The instruction, which the format does not contain; the environment's name if empty."""
    filter: str = ""
    """Import only the demonstrations of this filter key ("train", "20_percent"), one of those in `mask`."""
    control: Literal["", "delta", "absolute"] = ""
    """Reference of the actions, where env_args do not state that of the file."""


@IMPORTERS.register("robomimic")
class Robomimic(Importer):
    """Demonstrations of robomimic, MimicGen and their like: HDF5, OSC_POSE, deltas or absolute poses."""

    Options = RobomimicOptions
    options: RobomimicOptions

    def _describe(self) -> tuple[dict, str]:
        """The environment's arguments and the name of the first demonstration."""
        with opened(self.root) as file:
            if not (demos := names(file, "data")):
                raise SourceError("there is no group 'data' with demonstrations in it; is it robomimic's?")
            return json_attribute(member(file, "data"), "env_args"), sorted_by_number(demos)[0]

    def _cameras(self) -> dict[str, tuple[int, int]]:
        with opened(self.root) as file:
            demos = sorted_by_number(names(file, "data"))
            found = first_seen((d, [k for k in names(file, f"data/{d}/obs") if k.endswith("_image")]) for d in demos)
            sizes = {k: images_in(file, f"data/{d}/obs/{k}").shape[1:3] for k, d in found.items()}
            return {k.removesuffix("_image"): size for k, size in sizes.items()}

    def layout(self) -> Layout:
        _, first = self._describe()
        with opened(self.root, first) as file:
            actions = columns(file, f"data/{first}/actions")
            kwargs = arguments(member(file, "data"))
            robots = kwargs.get("robots", "robot")
            robot = words(robots[0] if isinstance(robots, list) and robots else robots, "robots in env_args")
            rate = real(kwargs.get("control_freq", 20), "control_freq in env_args", 0.01, 1000)
        return Layout(
            **camera_layout(self._cameras()),
            proprio_names=dimension_names(STATE),
            action_names=dimension_names(self._action(actions)),
            fps=rate,
            robot_type=robot,
            expert=False,
        )

    def metadata(self) -> DatasetMetadata:
        env, _ = self._describe()
        layout, (kind, reference, _) = self.layout(), self._controller()
        return DatasetMetadata(
            source=f"robomimic, {env.get('env_name', 'unknown environment')}",
            embodiment=layout.robot_type,
            control_mode=f"{kind} {reference}".strip(),
            rate=layout.fps,
            state=STATE,
            action=self._action(len(layout.action_names)),
            cameras=camera_facts(layout.cameras),
        )

    def _controller(self) -> tuple[str, str, str]:
        """Name of the arm's controller, "delta", "absolute" or "", and the frame of its targets; see the module."""
        with opened(self.root) as file:
            kind, reference, frame = control(member(file, "data"))
        reference = self.options.control or reference
        usual = {"delta": "base", "absolute": "world", "": ""}[reference]
        return kind or "OSC_POSE", reference, frame or usual

    def _action(self, size: int) -> tuple[Field, ...]:
        """The fields of an action: those of OSC_POSE and OSC_POSITION, else unnamed (two arms, other controllers)."""
        kind, representation, frame = self._controller()
        reference, unit = ("state", "1") if representation == "delta" else ("", "")
        about: dict[str, Any] = {"representation": representation, "frame": frame, "reference": reference}
        gripper = Field("gripper", size - 1, size, "gripper", unit="1", larger="closes")
        metres = "m" if representation == "absolute" else unit
        position = Field("eef_position", 0, 3, "position", unit=metres, **about)
        if kind in ("OSC_POSE", "IK_POSE") and size == 7:
            rotation = Field("eef_rotation", 3, 6, "rotation", rotation="axis_angle", unit=unit, **about)
            return position, rotation, gripper
        if kind == "OSC_POSITION" and size == 4:
            return position, gripper
        return (Field("action", 0, size, "other", representation=""),)

    def episodes(self) -> Sequence[str]:
        with opened(self.root) as file:
            if not self.options.filter:
                return sorted_by_number(names(file, "data"))
            masks = names(file, "mask")
            if self.options.filter not in masks:
                near, known = nearest(self.options.filter, masks), ", ".join(masks) or "none"
                raise SourceError(f"there is no filter '{self.options.filter}'{near}; there are {known}")
            chosen = array(file, f"mask/{self.options.filter}")
            if chosen.dtype.kind != "S":
                raise SourceError(f"mask/{self.options.filter} holds {chosen.dtype} instead of names")
            return sorted_by_number(n.decode() for n in chosen.reshape(-1).tolist())

    def read(self, name: str) -> Recording:
        with opened(self.root, name) as file:
            demo, env = member(file, f"data/{name}"), json_attribute(member(file, "data"), "env_args")
            actions, task = array(demo, "actions"), words(env.get("env_name", ""), "env_name in env_args")
            T = len(actions)
            state = np.concatenate([checked(array(demo, f"obs/{k}"), (T, -1), k) for k in KEYS], 1)
            reward = array(demo, "rewards") if has(demo, "rewards") else np.zeros(T, np.float32)
            reward = checked(reward.reshape(-1), (T,), "rewards")
            seen = [k for k in names(file, f"data/{name}/obs") if k.endswith("_image")]
            keys = {k.removesuffix("_image"): f"data/{name}/obs/{k}" for k in seen}
            return Recording(
                name=name,
                text=self.options.text or task,
                task=task,
                state=state,
                action=checked(actions, (T, -1), "actions"),
                images={c: lambda key=key: stored_frames(self.root, key, name, T) for c, key in keys.items()},
                success=reward > 0,
                reward=reward,
            )
