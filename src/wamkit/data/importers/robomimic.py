"""robomimic and its descendants: one HDF5 file with a group a demonstration (robomimic v0.1 to 0.5, MimicGen, DexMimicGen).

    data                     attrs env_args: JSON with env_name and env_kwargs
    data/demo_0              attrs num_samples
    data/demo_0/actions      float64 (T, 7): OSC_POSE deltas in [-1, 1] for position and axis-angle, then the gripper
    data/demo_0/obs/...      what was seen before each action; pictures uint8 (T, H, W, 3), upright
    data/demo_0/dones        ends of the episode; rewards: 1 once the task is done

Where a file was recorded without pictures (`states` alone), robomimic's own `dataset_states_to_obs.py` must render them first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wamkit.data.format.metadata_io import CameraFacts, DatasetMetadata, Field
from wamkit.data.format.schema import Layout
from wamkit.data.importers.base import IMPORTERS, Importer, Recording, SourceError, checked
from wamkit.data.importers.hdf5 import array, dataset, json_attribute, opened, sorted_by_number, stored_frames

STATE = (
    Field("eef_position", 0, 3, "position", frame="world", unit="m"),
    Field("eef_rotation", 3, 7, "rotation", rotation="quat_xyzw", frame="world"),
    Field("gripper", 7, 9, "gripper", unit="m"),
)
KEYS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")


@dataclass(frozen=True)
class RobomimicOptions:
    """Of the importer `robomimic`."""

    text: str = ""
    """The instruction, which the format has no place for; the environment's name if empty."""
    filter: str = ""
    """Only the demonstrations of this filter key ("train", "20_percent"), of those in `mask`."""


@IMPORTERS.register("robomimic")
class Robomimic(Importer):
    """Demonstrations of robomimic, MimicGen and their like: HDF5, OSC_POSE deltas."""

    Options = RobomimicOptions
    options: RobomimicOptions

    def _describe(self) -> tuple[dict, str]:
        with opened(self.root) as file:
            if "data" not in file or not len(file["data"]):
                raise SourceError(
                    f"{self.root}: there is no group 'data' with demonstrations in it; is it robomimic's?"
                )
            return json_attribute(file["data"], "env_args"), sorted_by_number(file["data"])[0]

    def _cameras(self) -> dict[str, tuple[int, int]]:
        with opened(self.root) as file:
            obs = file[f"data/{self._describe()[1]}/obs"]
            found = {k: dataset(obs, k) for k in sorted(obs) if k.endswith("_image")}
            return {k.removesuffix("_image"): x.shape[1:3] for k, x in found.items()}

    def layout(self) -> Layout:
        env, first = self._describe()
        with opened(self.root, first) as file:
            actions = dataset(file, f"data/{first}/actions").shape[1]
        sizes = list(self._cameras().items())
        state = [f"{f.name}_{i}" for f in STATE for i in range(f.stop - f.start)]
        return Layout(
            cameras=tuple(name for name, _ in sizes),
            image_shape=(3, *(sizes[0][1] if sizes else (1, 1))),
            proprio_names=tuple(state),
            action_names=tuple(f"{f.name}_{i}" for f in _action(actions) for i in range(f.stop - f.start)),
            fps=float(env.get("env_kwargs", {}).get("control_freq", 20)),
            robot_type=str(env.get("env_kwargs", {}).get("robots", ["robot"])[0]),
            sizes=tuple(s for _, s in sizes) if len({s for _, s in sizes}) > 1 else (),
            expert=False,
        )

    def metadata(self) -> DatasetMetadata:
        env, _ = self._describe()
        layout = self.layout()
        role = lambda name: "wrist" if "eye_in_hand" in name else "scene"  # noqa: E731
        return DatasetMetadata(
            source=f"robomimic, {env.get('env_name', 'unknown environment')}",
            embodiment=layout.robot_type,
            control_mode="OSC_POSE delta",
            rate=layout.fps,
            state=STATE,
            action=_action(len(layout.action_names)),
            cameras={c: CameraFacts(role(c)) for c in layout.cameras},
        )

    def episodes(self) -> Sequence[str]:
        with opened(self.root) as file:
            if not self.options.filter:
                return sorted_by_number(file["data"])
            masks = sorted(file["mask"]) if "mask" in file else []
            if self.options.filter not in masks:
                raise SourceError(
                    f"{self.root}: there is no filter '{self.options.filter}'; there are {', '.join(masks) or 'none'}"
                )
            return sorted_by_number(n.decode() for n in array(file["mask"], self.options.filter))

    def read(self, name: str) -> Recording:
        with opened(self.root, name) as file:
            demo, env = file["data"][name], json_attribute(file["data"], "env_args")
            actions = array(demo, "actions")
            T, text = len(actions), self.options.text or env.get("env_name", "")
            state = np.concatenate([checked(array(demo, f"obs/{k}"), (T, -1), k) for k in KEYS], 1)
            rewards = array(demo, "rewards") if "rewards" in demo else np.zeros(T)
            done = np.asarray(rewards).reshape(T) > 0
            keys = {c: f"data/{name}/obs/{c}_image" for c in self._cameras()}
            return Recording(
                name=name,
                text=text,
                task=env.get("env_name", ""),
                state=state,
                action=checked(actions, (T, -1), "actions"),
                images={c: lambda key=key: stored_frames(self.root, key, name) for c, key in keys.items()},
                success=done,
                reward=np.asarray(rewards, np.float32).reshape(T),
            )


def _action(size: int) -> tuple[Field, ...]:
    """What the numbers of an action are: robosuite's OSC_POSE for 7, unnamed otherwise (two arms, other controllers)."""
    if size != 7:
        return (Field("action", 0, size, "other"),)
    return (
        Field("eef_position", 0, 3, "position", "delta", frame="base", unit="1"),
        Field("eef_rotation", 3, 6, "rotation", "delta", "axis_angle", frame="base", unit="1"),
        Field("gripper", 6, 7, "gripper", unit="1"),
    )
