"""Metadata that names and values tell, for data sets whose files state none, and answers that complete it.

LeRobot's features name the dimensions (`shoulder_pan.pos`, `x`, `roll`, `gripper`) and the cameras. What names and
values do not tell stays open: a wrong guess would be trained without an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from wamkit import config as cfg
from wamkit.config import ConfigError, nearest
from wamkit.data.claims import Values, gripper_direction, representation
from wamkit.data.format.metadata_io import load_metadata
from wamkit.data.format.store import Store
from wamkit.metadata import CameraFacts, DatasetMetadata, Field

_GRIPPER = {"gripper", "grip", "jaw", "claw", "pincher"}
_JOINTS = {
    *("joint", "joints", "shoulder", "elbow", "wrist", "waist", "forearm", "hip", "knee", "ankle", "torso", "neck"),
    *("pan", "lift", "flex"),
}
_HAND = {"eef", "ee", "tcp", "hand", "end", "effector", "rot", "rotation", "euler", "delta", "pos", "position", "d"}
_TURNS = {"roll": "euler", "pitch": "euler", "yaw": "euler", "rx": "turn", "ry": "turn", "rz": "turn"}
_TURNS |= dict.fromkeys(("qx", "qy", "qz", "qw"), "quaternion")
_ROTATIONS = {
    ("roll", "pitch", "yaw"): "euler_xyz",
    ("qx", "qy", "qz", "qw"): "quat_xyzw",
    ("qw", "qx", "qy", "qz"): "quat_wxyz",
}
_OPENS = ("so100", "so101", "aloha", "koch")
"""Robots whose grippers are open at their largest value."""
_ROLES = {
    "wrist": ("wrist", "hand", "gripper", "palm"),
    "ego": ("ego", "head"),
    "scene": (
        *("scene", "top", "front", "side", "left", "right", "high", "low", "overhead", "exterior", "external", "third"),
        *(
            "agentview",
            "static",
            "base",
            "corner",
            "laptop",
            "phone",
            "webcam",
            "image",
            "rgb",
            "primary",
            "up",
            "main",
        ),
    ),
}


def described(store: Store, embodiment: str = "") -> DatasetMetadata:
    """The metadata of a data set: what its files state, completed by what names and values tell (`inferred`).

    embodiment: the robot, where the files do not state it.
    """
    given, layout = load_metadata(store.root), store.layout
    stated = given or DatasetMetadata(f"LeRobotDataset, {store.root.name}", layout.robot_type, rate=layout.fps)
    robot = stated.embodiment or layout.robot_type or embodiment
    stated = replace(stated, embodiment=robot, rate=stated.rate or layout.fps)
    inferred = list(stated.inferred)
    parts: dict[str, tuple[Field, ...]] = {}
    for part, names in (("state", layout.proprio_names), ("action", layout.action_names)):
        known = {i for f in getattr(stated, part) for i in range(f.start, f.stop)}
        new = _fields(names, known, {f.name for f in getattr(stated, part)})
        inferred += [f"{part}.{f.name}" for f in new]
        parts[part] = (*getattr(stated, part), *new)
    cameras = dict(stated.cameras)
    for camera in layout.cameras:
        if camera not in cameras and (role := _role(camera, len(layout.cameras))):
            cameras[camera] = CameraFacts(role)  # type: ignore[arg-type]  # one of its roles
            inferred.append(f"cameras.{camera}")
    found = replace(stated, **parts, cameras=cameras, inferred=tuple(inferred))
    return _by_values(found, store) if found.inferred else found


def _by_values(metadata: DatasetMetadata, store: Store) -> DatasetMetadata:
    """Entries of inferred fields that names leave open and the values, or the robot, tell."""
    columns, inferred = store.numeric(), list(metadata.inferred)
    values = Values(columns["observation.state"], columns["action"], columns["episode_index"])
    same = store.layout.action_names == store.layout.proprio_names  # a follower's targets, as its leader gives them

    def told(part: str, f: Field) -> Field:
        if f"{part}.{f.name}" not in metadata.inferred:
            return f
        if f.kind == "gripper" and not f.larger and metadata.embodiment.lower().startswith(_OPENS):
            f = replace(f, larger="opens")
        return replace(f, representation="absolute") if part == "state" and not f.representation else f

    metadata = replace(metadata, state=tuple(told("state", f) for f in metadata.state))
    metadata = replace(metadata, action=tuple(told("action", f) for f in metadata.action))
    action, before = [], ""
    for f in metadata.action:
        if f"action.{f.name}" in metadata.inferred:
            if not f.representation and f.kind != "other":
                absolute = "absolute" if same or f.kind == "gripper" else ""
                follows = before if f.kind == "rotation" else ""
                told_by = representation(f, metadata, values) or follows or absolute
                f = replace(f, representation=told_by)  # type: ignore[arg-type]
            if (sign := gripper_direction(f, metadata, values)) and not f.larger:
                f = replace(f, larger=sign[0])  # type: ignore[arg-type]
                inferred.append(f"action.{f.name}.larger")
        before = f.representation if f.kind == "position" else before
        action.append(f)
    return replace(metadata, action=tuple(action), inferred=tuple(inferred))


def _fields(names: Sequence[str], known: set[int], used: set[str]) -> tuple[Field, ...]:
    """Fields of the dimensions with these names, but those that are `known`; neighbours of one kind are one field."""
    runs: list[list[int]] = []
    kinds = [_kind(name) for name in names]
    for i in (i for i in range(len(names)) if i not in known):
        joined = runs and runs[-1][-1] == i - 1 and kinds[i][:3] == kinds[i - 1][:3] and kinds[i][1] != "gripper"
        runs[-1].append(i) if joined else runs.append([i])
    out: list[Field] = []
    for run in runs:
        side, kind, form, larger = kinds[run[0]]
        rotation = _ROTATIONS.get(tuple(_tokens(names[i])[-1] for i in run), "") if kind == "rotation" else ""
        name = plain = "_".join(w for w in (side, kind if kind != "joint" else "joints") if w)
        number = 1
        while name in used:
            number, name = number + 1, f"{plain}_{number + 1}"
        used.add(name)
        out.append(
            Field(name, run[0], run[-1] + 1, kind, form, rotation, larger=larger)  # type: ignore[arg-type]
        )
    return tuple(out)


def _kind(name: str) -> tuple[str, str, str, str]:
    """What a dimension's name tells: side, kind, representation ("" if open), and effect of a larger gripper value."""
    tokens = _tokens(name)
    words, last = set(tokens), tokens[-1] if tokens else ""
    side = next((s for s in ("left", "right") if s in words), "")
    form = "velocity" if words & {"vel", "velocity"} else "delta" if "delta" in words or last in _DELTAS else ""
    rest = words - {side, *_HAND}
    if words & _GRIPPER:
        closes, opens = (any(w.startswith(start) for w in words) for start in ("clos", "open"))
        return side, "gripper", form, "closes" if closes else "opens" if opens or "width" in words else ""
    if rest and rest <= {*"xyz", *_DELTAS}:
        return side, "position", form, ""
    if rest and rest <= _TURNS.keys():
        return side, "rotation", form, ""
    if words & _JOINTS:
        return side, "joint", form, ""
    return side, "other", form, ""


_DELTAS = ("dx", "dy", "dz")


def _tokens(name: str) -> list[str]:
    """The words of a name: `left_shoulder_pan.pos` has left, shoulder, pan."""
    words = [w for w in re.split(r"[^a-z0-9]+", name.lower()) if w]
    words = [w for w in words if not w.isdecimal()]
    return words[:-1] if len(words) > 1 and words[-1] == "pos" else words


def _role(camera: str, cameras: int) -> str:
    """The role that a camera's name tells; "" if none. The only camera of a data set is taken for the scene's."""
    words = [w for w in re.split(r"[^a-z]+", camera.lower()) if w]
    found = (role for role, starts in _ROLES.items() if any(w.startswith(starts) for w in words))
    return next(found, "scene" if cameras == 1 else "")


def unknown(metadata: DatasetMetadata, store: Store) -> dict[str, str]:
    """Entries that a mixture needs and that are open, with the possible answers."""
    acts = bool(metadata.state or metadata.action)
    out = {"embodiment": "name of the robot"} if acts and not metadata.embodiment else {}
    for part in ("state", "action"):
        for f in getattr(metadata, part):
            entry = f"{part}.{f.name}"
            if f.kind == "other":
                out[f"{entry}.kind"] = "joint, position, rotation, gripper, base or hand"
            elif not f.representation:
                out[f"{entry}.representation"] = "absolute, delta, relative or velocity"
            if f.kind == "gripper" and not f.larger:
                out[f"{entry}.larger"] = "opens or closes"
            if f.kind == "rotation" and not f.rotation:
                out[f"{entry}.rotation"] = "quat_xyzw, quat_wxyz, axis_angle, euler_xyz, rot6d or matrix"
    open_cameras = (c for c in store.layout.cameras if c not in metadata.cameras)
    return out | {f"cameras.{c}.role": "scene, wrist, ego or other" for c in open_cameras}


def answered(metadata: DatasetMetadata, answers: Mapping[str, Any]) -> DatasetMetadata:
    """The metadata with entries set: "embodiment", "action.gripper.larger", "cameras.top.role", ...

    "action.NAME" = "3:6" makes a field of dimensions 3 to 5, out of fields of kind "other". Raises ConfigError, naming
    the entry, for an unknown one or a wrong value.
    """
    for entry, value in answers.items():
        part, _, rest = entry.partition(".")
        name, _, attribute = rest.rpartition(".")
        data = cfg.to_dict(metadata)
        if part in ("state", "action") and re.fullmatch(r"\d+:\d+", str(value)):
            metadata = _carved(metadata, part, rest, *map(int, str(value).split(":")))
            continue
        if not rest and part in ("source", "embodiment", "control_mode", "licence", "rate"):
            data[part] = float(value) if part == "rate" and not isinstance(value, str) else value
        elif part == "columns" and rest in ("state", "action"):
            data["columns"][rest] = [] if value == "none" else str(value).split(",")
        elif part in ("state", "action") and (field := next((f for f in data[part] if f["name"] == name), None)):
            field[attribute] = str(value)
        elif part == "cameras" and attribute:
            data["cameras"].setdefault(name, {})[attribute] = value
        else:
            entries = ["embodiment", *(f"{p}.{f['name']}.kind" for p in ("state", "action") for f in data[p])]
            raise ConfigError(f"--set {entry}: there is no such entry{nearest(entry, entries)}; see docs/data.md")
        data["inferred"] = [e for e in data["inferred"] if e not in (entry, f"{part}.{name}")]
        try:
            metadata = cfg.from_dict(DatasetMetadata, data)
        except ConfigError as error:
            raise ConfigError(f"--set {entry}={value}: {error}") from error
    return metadata


def _carved(metadata: DatasetMetadata, part: str, name: str, start: int, stop: int) -> DatasetMetadata:
    """The metadata with a field of dimensions `start` to `stop` - 1, cut out of fields of kind "other"."""
    kept = []
    for f in getattr(metadata, part):
        if f.stop <= start or f.start >= stop or f.name == name:
            kept += [f] if f.name != name else []
            continue
        if f.kind != "other":
            raise ConfigError(f"--set {part}.{name}={start}:{stop}: {part}.{f.name} has {f.start}:{f.stop} of these")
        before, after = replace(f, stop=start), replace(f, name=f"{f.name}_{stop}", start=stop)
        kept += [g for g in (before, after) if g.start < g.stop]
    kind = next((k for k in _KINDS if k in name), "other")
    new = Field(name, start, stop, kind, "absolute" if part == "state" else "")  # type: ignore[arg-type]
    return replace(metadata, **{part: tuple(sorted([*kept, new], key=lambda f: f.start))})


_KINDS = ("joint", "position", "rotation", "gripper", "base", "hand")
