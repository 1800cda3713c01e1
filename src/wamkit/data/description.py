"""Metadata that names and values tell, for data sets whose files state none, and answers that complete it.

LeRobot's features name the dimensions (`shoulder_pan.pos`, `x`, `roll`, `gripper`) and the cameras. What names and
values do not tell stays open: a wrong guess would be trained without an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from wamkit import config as cfg
from wamkit.config import ConfigError, nearest
from wamkit.data.claims import Values, gripper_direction, representation
from wamkit.data.format.camera_roles import camera_by_name
from wamkit.data.format.metadata_io import load_metadata
from wamkit.data.format.store import Store
from wamkit.hub.names import object_origin
from wamkit.metadata import DatasetMetadata, Field

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
_UNITS = {"deg": "deg", "degree": "deg", "degrees": "deg", "rad": "rad", "radian": "rad", "radians": "rad"}
_UNITS |= {"mm": "mm", "cm": "cm", "m": "m", "meter": "m", "meters": "m", "metre": "m", "metres": "m"}
_ANGLES, _LENGTHS = ("joint", "rotation"), ("position", "gripper")
_OPENS = ("so100", "so101", "aloha", "koch")
"""Robots whose grippers are open at their largest value."""


def described(store: Store, embodiment: str = "") -> DatasetMetadata:
    """The metadata of a data set: what its files state, completed by what names and values tell (`inferred`).

    embodiment: the robot, where the files do not state it.
    """
    given, layout = load_metadata(store.root), store.layout
    place = object_origin(store.root)
    label = Path(place.path).name if place else store.root.name
    stated = given or DatasetMetadata(f"LeRobotDataset, {label}", layout.robot_type, rate=layout.fps)
    robot = stated.embodiment or layout.robot_type or embodiment
    stated = replace(stated, embodiment=robot, rate=stated.rate or layout.fps)
    inferred = list(stated.inferred)
    parts: dict[str, tuple[Field, ...]] = {}
    for part, names in (("state", layout.proprio_names), ("action", layout.action_names)):
        known = {i for f in getattr(stated, part) for i in range(f.start, f.stop)}
        new = fields_by_name(names, known, {f.name for f in getattr(stated, part)})
        inferred += [f"{part}.{f.name}" for f in new]
        parts[part] = (*getattr(stated, part), *new)
    cameras = dict(stated.cameras)
    for camera in layout.cameras:
        if camera not in cameras and (facts := camera_by_name(camera, len(layout.cameras))):
            cameras[camera] = facts
            inferred.append(f"cameras.{camera}")
    return _by_values(replace(stated, **parts, cameras=cameras, inferred=tuple(inferred)), store)


def _by_values(metadata: DatasetMetadata, store: Store) -> DatasetMetadata:
    """Entries that the source and the names leave open and the values, or the robot, tell."""
    if not metadata.inferred and all(f.representation and (f.larger or f.kind != "gripper") for f in metadata.action):
        return metadata
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
        by_name = f"action.{f.name}" in metadata.inferred
        if not f.representation and f.kind != "other":
            absolute = "absolute" if by_name and (same or f.kind == "gripper") else ""
            follows = before if f.kind == "rotation" else ""
            if told_by := representation(f, metadata, values) or follows or absolute:
                f = replace(f, representation=told_by)  # type: ignore[arg-type]
                inferred += [] if by_name else [f"action.{f.name}.representation"]
        if not f.larger and (sign := gripper_direction(f, metadata, values)):
            f = replace(f, larger=sign[0])  # type: ignore[arg-type]
            inferred.append(f"action.{f.name}.larger")
        before = f.representation if f.kind == "position" else before
        action.append(f)
    return replace(metadata, action=tuple(action), inferred=tuple(inferred))


def fields_by_name(
    names: Sequence[str], known: Set[int] = frozenset(), used: Set[str] = frozenset()
) -> tuple[Field, ...]:
    """Fields of the dimensions with these names; neighbours of one kind are one field.

    known: dimensions that are described already, and are left out.
    used: names that are taken.
    """
    runs: list[list[int]] = []
    kinds, used = [_kind(name) for name in names], set(used)
    for i in (i for i in range(len(names)) if i not in known):
        joined = runs and runs[-1][-1] == i - 1 and kinds[i][:4] == kinds[i - 1][:4] and kinds[i][1] != "gripper"
        runs[-1].append(i) if joined else runs.append([i])
    out: list[Field] = []
    for run in runs:
        side, kind, form, unit, larger = kinds[run[0]]
        turns = tuple(_tokens(names[i])[0][-1] for i in run) if kind == "rotation" else ()
        rotation = _ROTATIONS.get(turns, "")
        name = plain = "_".join(w for w in (side, kind if kind != "joint" else "joints") if w)
        number = 1
        while name in used:
            number, name = number + 1, f"{plain}_{number + 1}"
        used.add(name)
        out.append(
            Field(name, run[0], run[-1] + 1, kind, form, rotation, unit=unit, larger=larger)  # type: ignore[arg-type]
        )
    return tuple(out)


def field_by_name(name: str, start: int, stop: int, part: str) -> Field:
    """The field `name` of the state or the action ("state", "action"), of which only the name as a whole tells."""
    _, kind, form, unit, larger = _kind(name)
    known = kind in ("joint", "gripper")  # "x" of six numbers, or "roll", would be the name of one of them
    form = form or ("absolute" if part == "state" or known and name.lower().endswith("position") else "")
    if not known:
        return Field(name, start, stop, "other", form)  # type: ignore[arg-type]
    return Field(name, start, stop, kind, form, unit=unit, larger=larger)  # type: ignore[arg-type]


def _kind(name: str) -> tuple[str, str, str, str, str]:
    """Meaning that a dimension's name tells: side, kind, representation, unit, effect of a larger gripper value."""
    tokens, unit = _tokens(name)
    side, kind, form, larger = _meaning(tokens)
    fits = kind in (_ANGLES if unit.startswith(("deg", "rad")) else _LENGTHS)
    return side, kind, form, unit if fits else "", larger


def _meaning(tokens: Sequence[str]) -> tuple[str, str, str, str]:
    """Side, kind, representation, and effect of a larger gripper value, as far as the words of a name tell."""
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


def _tokens(name: str) -> tuple[list[str], str]:
    """The words of a name and its unit: `left_shoulder_pan.pos (rad)` has left, shoulder, pan, and "rad"."""
    words = [w for w in re.split(r"[^a-z0-9]+", name.lower()) if w]
    words = [w for w in words if not w.isdecimal()]
    rate = words[2:] and words[-1] == "s" and words[-2] in _UNITS
    words = words[:-1] if rate else words
    unit = _UNITS.get(words[-1], "") if words[1:] else ""
    words = words[:-1] if unit else words
    words = words[:-1] if words[1:] and words[-1] == "pos" else words
    return ([*words, "velocity"], f"{unit}/s") if rate else (words, unit)


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
            if f.kind == "joint" and not f.unit:
                out[f"{entry}.unit"] = "rad, deg, or 1 for a scale of the recorder's own, as -100 to 100"
            if f.kind == "position" and not f.unit:
                out[f"{entry}.unit"] = "m, mm, or 1 for a command in [-1, 1]"
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
            last = attribute if attribute in {f.name for f in fields(Field)} else "kind"
            entries = ["embodiment", *(f"{p}.{f['name']}.{last}" for p in ("state", "action") for f in data[p])]
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
