"""What the numbers of a data set mean: robots, units, frames, clocks, cameras, licence. Kept in meta/wamkit.json.

LeRobot's format names the dimensions of a vector and says no more; a policy that reads axis-angle as Euler angles trains without
an error. Importers state what the source's own code and documents say, and leave empty what they do not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wamkit.config import ConfigError, load_json, save_json
from wamkit.data.files import StoreError

FILE = "meta/wamkit.json"
MODALITY = "meta/modality.json"


@dataclass(frozen=True)
class Field:
    """Numbers `start` .. `stop` - 1 of `observation.state` or `action`.

    representation: of actions, "absolute" values, "delta" from one step to the next, "relative" to where the robot was when the chunk
    began, or a "velocity".   rotation: how a turn is written, where this is one.   frame: what it is measured in.
    unit: "m", "rad", "1" for what has none (a command between -1 and 1), "" where the source does not say.
    """

    name: str
    start: int
    stop: int
    kind: Literal["joint", "position", "rotation", "pose", "gripper", "base", "hand", "other"]
    representation: Literal["absolute", "delta", "relative", "velocity"] = "absolute"
    rotation: Literal["", "quat_xyzw", "quat_wxyz", "axis_angle", "euler_xyz", "rot6d", "matrix"] = ""
    frame: Literal["", "base", "world", "camera", "tool"] = ""
    unit: str = ""


@dataclass(frozen=True)
class CameraFacts:
    """role: what it looks at.   turned: what an importer did to bring pictures upright.   intrinsics: the 3x3 matrix, row by
    row, in pixels of the stored pictures; empty where unknown."""

    role: Literal["scene", "wrist", "ego", "other"] = "scene"
    turned: Literal["", "flipped", "rotated"] = ""
    intrinsics: tuple[float, ...] = ()


@dataclass(frozen=True)
class Meaning:
    """See the module's docstring.

    source: the format and what is known of where it came from.   licence: of the data; "" where the source does not say.
    embodiment, control_mode: statistics are shared by data sets in which both are equal.   rate: control steps a second.
    offset: 1 if the source recorded what was seen *after* each action. Importers shift: in a store, row t was seen before action t.
    """

    source: str
    embodiment: str
    control_mode: str = ""
    rate: float = 0.0
    licence: str = ""
    offset: Literal[0, 1] = 0
    state: tuple[Field, ...] = ()
    action: tuple[Field, ...] = ()
    cameras: Mapping[str, CameraFacts] = field(default_factory=dict)

    def check(self, state: int, action: int) -> None:
        """Raises StoreError unless the fields lie within vectors of these sizes and do not overlap."""
        for name, fields_, size in (("state", self.state, state), ("action", self.action, action)):
            at = 0
            for f in sorted(fields_, key=lambda f: f.start):
                if not at <= f.start < f.stop <= size:
                    raise StoreError(
                        f"{name}.{f.name} is said to be {f.start} .. {f.stop} of {size} numbers, after {at}; correct the meaning"
                    )
                at = f.stop


def save_meaning(root: Path, meaning: Meaning) -> None:
    """Writes meta/wamkit.json, and meta/modality.json, by which GR00T finds fields by name."""
    save_json(root / FILE, meaning)
    save_json(root / MODALITY, modality(meaning))


def load_meaning(root: Path) -> Meaning | None:
    """What meta/wamkit.json says, or else what meta/modality.json does; None where there is neither.

    Raises StoreError naming the file where it is damaged.
    """
    try:
        if (root / FILE).exists():
            return load_json(Meaning, root / FILE)
        if (root / MODALITY).exists():
            return from_modality(json.loads((root / MODALITY).read_bytes()))
        return None
    except (ConfigError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{root}: what its numbers mean cannot be read ({error}); restore or remove that file"
        ) from error


_GROOT = {
    "quat_xyzw": "quaternion",
    "euler_xyz": "euler_angles_rpy",
    "axis_angle": "axis_angle",
    "rot6d": "rotation_6d",
}


def modality(meaning: Meaning) -> dict[str, Any]:
    """GR00T's modality.json: where each field lies, by name."""
    out: dict[str, Any] = {}
    for part, key in (("state", "observation.state"), ("action", "action")):
        out[part] = {}
        for f in getattr(meaning, part):
            entry = {"start": f.start, "end": f.stop, "original_key": key, "absolute": f.representation == "absolute"}
            out[part][f.name] = entry | ({"rotation_type": _GROOT[f.rotation]} if f.rotation in _GROOT else {})
    out["video"] = {name: {"original_key": f"observation.images.{name}"} for name in meaning.cameras}
    return out | {"annotation": {"human.task_description": {"original_key": "task_index"}}}


def from_modality(data: Mapping[str, Any]) -> Meaning:
    """What a modality.json says of fields and cameras; robot and units it does not."""
    turn = {v: k for k, v in _GROOT.items()}
    parts: dict[str, tuple[Field, ...]] = {}
    for part in ("state", "action"):
        parts[part] = tuple(
            Field(
                name,
                entry["start"],
                entry["end"],
                "rotation" if entry.get("rotation_type") else "other",
                "absolute" if entry.get("absolute", True) else "delta",
                turn.get(entry.get("rotation_type"), ""),
            )
            for name, entry in data.get(part, {}).items()
        )
    cameras = {
        (entry or {}).get("original_key", name).removeprefix("observation.images."): CameraFacts()
        for name, entry in data.get("video", {}).items()
    }
    return Meaning(source="LeRobotDataset with modality.json", embodiment="", cameras=cameras, **parts)
