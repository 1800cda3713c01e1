"""`DatasetMetadata` on disk: meta/wamkit.json, and meta/modality.json, where GR00T looks up fields by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wamkit.config import ConfigError, load_json, to_bytes
from wamkit.data.format import checksums
from wamkit.data.format.camera_roles import camera_by_name
from wamkit.data.format.schema import MOST_VALUES, is_whole, shown
from wamkit.files import StoreError, inside, read_json
from wamkit.metadata import DatasetMetadata, Field

FILE = "meta/wamkit.json"
MODALITY = "meta/modality.json"


def save_metadata(root: Path, metadata: DatasetMetadata) -> None:
    """Writes both files into the data set at `root`."""
    checksums.write(root, {FILE: to_bytes(metadata), MODALITY: to_bytes(modality(metadata))})


def complete_metadata(root: Path, metadata: DatasetMetadata) -> None:
    """Writes meta/wamkit.json of a data set that others may have recorded, with its checksum where it has any.

    meta/modality.json follows where wamkit wrote it; another's stays as it is.
    """
    before, contents = load_metadata(root), {FILE: to_bytes(metadata)}
    if before is not None and (root / MODALITY).exists() and read_json(inside(root, MODALITY)) == modality(before):
        contents[MODALITY] = to_bytes(modality(metadata))
    checksums.write(root, contents)


def load_metadata(root: Path) -> DatasetMetadata | None:
    """The metadata in meta/wamkit.json, or else in meta/modality.json; None where there is neither.

    Raises StoreError for a damaged file.
    """
    try:
        if (root / FILE).exists():
            return load_json(DatasetMetadata, inside(root, FILE))
        if (root / MODALITY).exists():
            return from_modality(read_json(inside(root, MODALITY)))
        return None
    except (StoreError, ConfigError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise StoreError(f"{root}: its metadata cannot be read ({error}); restore or remove that file") from error


_GROOT = {
    "quat_xyzw": "quaternion",
    "euler_xyz": "euler_angles_rpy",
    "axis_angle": "axis_angle",
    "rot6d": "rotation_6d",
}


def modality(metadata: DatasetMetadata) -> dict[str, Any]:
    """The content of GR00T's modality.json: the place of each field, by name."""
    out: dict[str, Any] = {}
    for part, key in (("state", "observation.state"), ("action", "action")):
        out[part] = {}
        for f in getattr(metadata, part):
            entry = {"start": f.start, "end": f.stop, "original_key": key, "absolute": f.representation == "absolute"}
            out[part][f.name] = entry | ({"rotation_type": _GROOT[f.rotation]} if f.rotation in _GROOT else {})
    out["video"] = {name: {"original_key": f"observation.images.{name}"} for name in metadata.cameras}
    return out | {"annotation": {"human.task_description": {"original_key": "task_index"}}}


def from_modality(data: Mapping[str, Any]) -> DatasetMetadata:
    """The fields described by a modality.json, and the cameras whose names tell their roles.

    It does not state the robot or units.
    Fields of columns other than `observation.state` and `action` are left out.
    """
    turn = {v: k for k, v in _GROOT.items()}
    parts: dict[str, tuple[Field, ...]] = {}
    for part, column in (("state", "observation.state"), ("action", "action")):
        entries = data.get(part, {})
        for name, entry in entries.items():
            if not all(is_whole(entry[end], 0, MOST_VALUES) for end in ("start", "end")):
                raise ValueError(f"{part}.{name} is {shown(entry)}, not dimensions from a start to an end")
        parts[part] = tuple(
            Field(
                name,
                entry["start"],
                entry["end"],
                "rotation" if entry.get("rotation_type") else "other",
                "absolute" if entry.get("absolute", True) else "delta",
                turn.get(entry.get("rotation_type"), ""),
            )
            for name, entry in entries.items()
            if entry.get("original_key", column) == column
        )
    names = [
        (entry or {}).get("original_key", name).removeprefix("observation.images.")
        for name, entry in data.get("video", {}).items()
    ]
    cameras = {name: facts for name in names if (facts := camera_by_name(name, len(names)))}
    inferred = tuple(f"cameras.{name}" for name in cameras)
    source = "LeRobotDataset with modality.json"
    return DatasetMetadata(source, embodiment="", cameras=cameras, inferred=inferred, **parts)
