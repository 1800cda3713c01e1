"""Embodiments: conversion between the vectors of many robots and one unified space, in training and at run time.

State and actions consist of fields (`wamkit.metadata`). Fields of several robots with the same meaning (kind,
representation, reference, frame, unit, size) share a slot in the unified vector. Others, and those whose meaning is not
known, get slots of their own, and a mask marks the dimensions that a robot has, so nothing is supervised towards
padding.

Encoding a field:

- A rotation becomes rot6d, six values without jumps. Rotations from step to step stay in their own representation.
- A pose may become relative to the robot's pose at the start of the chunk (UMI, arXiv:2402.10329).
- Values are normalised by statistics of their (embodiment, control mode). rot6d is not normalised. Grippers, often
  binary, are scaled by their range.
- A gripper whose larger values do the opposite of those in a slot that it shares changes its sign.
- A dimension that never moved is encoded as 0. Of an action it comes back exactly as recorded, whatever a model says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8

from wamkit.data.rotations import from_matrix, to_matrix
from wamkit.errors import nearest
from wamkit.metadata import DatasetMetadata, Field
from wamkit.nn.scaling import LIMIT, Normalisation, is_constant, measured
from wamkit.types import Observation, ObservationError, WamkitError

Normaliser = Literal["mean_std", "quantiles", "min_max", "none"]
NORMALISERS: Mapping[str, Normaliser] = {"rotation": "none", "gripper": "min_max"}
"""Normalisers by field kind. All other kinds use the normalisation of the run."""


@dataclass(frozen=True)
class FieldSlot:
    """A field of a robot and its slot in the unified vector.

    field: the field's dimensions in the robot's own vector, and their meaning.
    at, size: first dimension and size of the slot.
    relative: true for poses encoded relative to the robot's pose at the start of the chunk.
    shift, scale: `size` values each; the encoded value is (x - shift) / scale, and 0 where scale is, in dimensions
        that never moved. Empty without normalisation.
    limit: largest absolute value after normalisation; 0 for none.
    turned: true for a gripper that is encoded with the opposite sign.
    """

    field: Field
    at: int
    size: int
    relative: bool = False
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    limit: float = 0.0
    turned: bool = False

    @property
    def is_rot6d(self) -> bool:
        """True for a rotation that is encoded as rot6d."""
        return bool(self.field.rotation) and self.field.representation in ("absolute", "relative")

    @property
    def own(self) -> slice:
        """The dimensions in the robot's own vector."""
        return slice(self.field.start, self.field.stop)

    @property
    def unified(self) -> slice:
        """The dimensions in the unified vector."""
        return slice(self.at, self.at + self.size)


@dataclass(frozen=True)
class Embodiment:
    """The conversion between one robot, under one control mode, and a model's unified space.

    S and U are the sizes of the unified state and action, s and a those of the robot's own.

    name, control_mode: of the robot.
    views: for each view of the model, the index of the robot's camera that it shows; -1 for none.
    state, action: the robot's fields and their slots.
    state_size, action_size: S and U.
    locked: dimensions of the robot's own action that never moved, and their value, which `decode_action` gives them.
    """

    name: str
    control_mode: str
    views: tuple[int, ...]
    state: tuple[FieldSlot, ...]
    action: tuple[FieldSlot, ...]
    state_size: int
    action_size: int
    locked: tuple[tuple[int, float], ...] = ()

    def has_state(self) -> Bool[np.ndarray, " S"]:
        """The dimensions of the unified state that this robot has."""
        return _mask(self.state, self.state_size)

    def has_action(self) -> Bool[np.ndarray, " U"]:
        """The dimensions of the unified action that this robot has."""
        return _mask(self.action, self.action_size)

    @property
    def own_action_size(self) -> int:
        """a, the number of action dimensions of the robot itself."""
        return max((p.field.stop for p in self.action), default=0)

    @property
    def own_state_size(self) -> int:
        """s, the number of state dimensions of the robot itself."""
        return max((p.field.stop for p in self.state), default=0)

    def has_view(self) -> Bool[np.ndarray, " V"]:
        """The views of the model that this robot has."""
        return np.array([v >= 0 for v in self.views])

    def seen_cameras(self) -> Bool[np.ndarray, " V"]:
        """The cameras that the model sees, up to the last of them: those of `to_robot_views`."""
        return np.isin(np.arange(max(self.views) + 1), self.views)

    def encode_state(self, state: Float[np.ndarray, "... s"]) -> Float[np.ndarray, "... S"]:
        """The robot's state in the unified space, float32; 0 in dimensions that it lacks."""
        out = np.zeros((*state.shape[:-1], self.state_size), np.float32)
        for slot in self.state:
            out[..., slot.unified] = _normalised(_written(state[..., slot.own], slot), slot)
        return out

    def decode_state(self, unified: Float[np.ndarray, "... S"]) -> Float[np.ndarray, "... s"]:
        """The state in the robot's own units, float32: the inverse of `encode_state`, up to its limits."""
        out = np.zeros((*unified.shape[:-1], self.own_state_size), np.float32)
        for slot in self.state:
            out[..., slot.own] = self._absolute(slot, _unscaled(unified[..., slot.unified], slot), out)
        return out

    def encode_action(
        self, action: Float[np.ndarray, "B A a"], state: Float[np.ndarray, "B s"]
    ) -> Float[np.ndarray, "B A U"]:
        """Chunks of actions in the unified space, float32; 0 in dimensions that the robot lacks.

        state: the robot's own state before each chunk.
        """
        out = np.zeros((*action.shape[:-1], self.action_size), np.float32)
        for slot in self.action:
            x = np.asarray(action[..., slot.own], np.float64)
            out[..., slot.unified] = _normalised(self._relative(slot, x, state), slot)
        return out

    def decode_action(
        self, unified: Float[np.ndarray, "B A U"], state: Float[np.ndarray, "B s"]
    ) -> Float[np.ndarray, "B A a"]:
        """Chunks of actions in the robot's own units, float32: the inverse of `encode_action`, up to its limits."""
        out = np.zeros((*unified.shape[:-1], self.own_action_size), np.float32)
        for slot in self.action:
            out[..., slot.own] = self._absolute(slot, _unscaled(unified[..., slot.unified], slot), state)
        for dimension, value in self.locked:  # poses that are relative to the robot's hold them only roughly
            out[..., dimension] = value
        return out

    def to_model_views(self, images: UInt8[np.ndarray, "... V 3 H W"]) -> UInt8[np.ndarray, "... v 3 H W"]:
        """The robot's camera images as the model's views; black for views that it lacks."""
        out = np.zeros((*images.shape[:-4], len(self.views), *images.shape[-3:]), np.uint8)
        for here, camera in enumerate(self.views):
            if camera >= 0:
                out[..., here, :, :, :] = images[..., camera, :, :, :]
        return out

    def to_model_mask(self, seen: Bool[np.ndarray, "... V"]) -> Bool[np.ndarray, "... v"]:
        """The model's views that the robot has and sees. seen: the robot's cameras with an image."""
        out = np.zeros((*seen.shape[:-1], len(self.views)), bool)
        for view, camera in enumerate(self.views):
            out[..., view] = camera >= 0 and seen[..., camera]
        return out

    def to_robot_views(self, images: UInt8[np.ndarray, "... v 3 H W"]) -> UInt8[np.ndarray, "... V 3 H W"]:
        """The model's views as the robot's camera images; black for cameras that the model does not see."""
        cameras = max(self.views) + 1
        out = np.zeros((*images.shape[:-4], cameras, *images.shape[-3:]), np.uint8)
        for view, camera in enumerate(self.views):
            if camera >= 0:
                out[..., camera, :, :, :] = images[..., view, :, :, :]
        return out

    def observation(self, obs: Observation) -> Observation:
        """The robot's observation in the model's views and unified space.

        Raises ObservationError for an observation with the wrong number of state dimensions or cameras.
        """
        size, cameras = self.own_state_size, max(self.views) + 1
        if np.shape(obs.proprio) != (size,):
            raise ObservationError(
                f"proprio: the robot '{self.name}' has {size} state dimensions, got shape {np.shape(obs.proprio)}"
            )
        if obs.images is not None and len(obs.images) < cameras:
            raise ObservationError(
                f"images: the robot '{self.name}' has at least {cameras} cameras, got {len(obs.images)}"
            )
        images = None if obs.images is None else self.to_model_views(obs.images)
        seen = np.ones(cameras, bool) if obs.view_valid is None else np.asarray(obs.view_valid)
        if seen.dtype != bool or seen.ndim != 1 or len(seen) < cameras:
            raise ObservationError(
                f"view_valid: expected bool ({cameras},), one a camera, got {seen.dtype} {seen.shape}"
            )
        views = None if obs.view_valid is None else self.to_model_mask(seen)
        return replace(obs, images=images, proprio=self.encode_state(obs.proprio), view_valid=views)

    def _start(self, slot: FieldSlot, state: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Position (B, 1, 3) and rotation (B, 1, 3, 3), at the start of the chunk, of the arm that `slot` moves."""
        arm = [p for p in self.action if p.relative and p.field.kind == slot.field.kind].index(slot)
        of = lambda kind: [p.field for p in self.state if p.field.kind == kind]  # noqa: E731
        positions, rotations = of("position"), of("rotation")
        p = positions[arm] if arm < len(positions) else None
        r = rotations[arm] if arm < len(rotations) else None
        return (
            None if p is None else np.asarray(state[:, None, p.start : p.stop], np.float64),
            None if r is None else to_matrix(state[:, None, r.start : r.stop], r.rotation),
        )

    def _relative(self, slot: FieldSlot, x: np.ndarray, state: np.ndarray) -> np.ndarray:
        if not slot.relative:
            return _written(x, slot)
        p, R = self._start(slot, state)
        if slot.field.kind == "rotation":
            return from_matrix(R.swapaxes(-1, -2) @ to_matrix(x, slot.field.rotation), "rot6d")
        away = x - p
        return away if R is None else np.einsum("bkij,bali->balj", R, away[:, :, None])[:, :, 0]

    def _absolute(self, slot: FieldSlot, x: np.ndarray, state: np.ndarray) -> np.ndarray:
        if not slot.relative:
            x = -x if slot.turned else x
            return from_matrix(to_matrix(x, "rot6d"), slot.field.rotation) if slot.is_rot6d else x
        p, R = self._start(slot, state)
        if slot.field.kind == "rotation":
            return from_matrix(R @ to_matrix(x, "rot6d"), slot.field.rotation)
        return p + (x if R is None else np.einsum("bkij,balj->bali", R, x[:, :, None])[:, :, 0])


def _mask(slots: Sequence[FieldSlot], size: int) -> np.ndarray:
    out = np.zeros(size, bool)
    for slot in slots:
        out[slot.unified] = True
    return out


def _written(x: np.ndarray, slot: FieldSlot) -> np.ndarray:
    """A rotation as rot6d, and a turned gripper with the opposite sign. Other values are unchanged."""
    x = -x if slot.turned else x
    return from_matrix(to_matrix(x, slot.field.rotation), "rot6d") if slot.is_rot6d else x


def _normalised(x: np.ndarray, slot: FieldSlot) -> np.ndarray:
    if not slot.scale:
        return x
    scale = np.array(slot.scale)
    out = np.divide(x - np.array(slot.shift), scale, out=np.zeros(x.shape), where=scale != 0)
    return out.clip(-slot.limit, slot.limit) if slot.limit else out


def _unscaled(x: np.ndarray, slot: FieldSlot) -> np.ndarray:
    """The inverse of `_normalised`, up to its limit."""
    x = np.asarray(x, np.float64)
    return x * np.array(slot.scale) + np.array(slot.shift) if slot.scale else x


@dataclass(frozen=True)
class SourceData:
    """One data set, for `fit`.

    metadata: the meaning of its dimensions and cameras.
    state: (N, s).
    action: (N, a); a = 0 for video without actions.
    episode: int64 (N,), the episode of each row.
    cameras: in the order of its images.
    """

    metadata: DatasetMetadata
    state: np.ndarray
    action: np.ndarray
    episode: np.ndarray
    cameras: tuple[str, ...]


def fit(
    sources: Sequence[SourceData],
    views: Sequence[str],
    *,
    relative: bool = True,
    chunk: int = 16,
    normalisers: Mapping[str, Normaliser] | None = None,
    normalisation: Normalisation = "mean_std",
) -> tuple[Embodiment, ...]:
    """The embodiment of each source. Sources with the same (embodiment, control mode, fields) share their statistics.

    views: camera roles ("scene", "wrist", "ego") in the order of the model's views; "scene+ego" takes whichever there
        is. Of several cameras with one role the first is used.
    relative: convert absolute end-effector poses to poses relative to the robot's pose at the start of the chunk.
    chunk: steps of an action chunk.
    normalisers: by field name or kind; they take precedence over NORMALISERS.
    normalisation: of all other fields.

    Raises WamkitError for dimensions without metadata, and for a source without a camera among `views`.
    """
    normalisers = normalisers or {}
    for s in sources:
        _require_metadata(s)
    groups: dict[tuple, list[SourceData]] = {}
    for s in sources:
        groups.setdefault(_robot(s.metadata), []).append(s)
    taken: dict[str, dict[tuple, tuple[int, int, str]]] = {"state": {}, "action": {}}
    slots = {key: _slots(group[0].metadata, relative, taken) for key, group in groups.items()}
    sizes = {k: sum(size for _, size, _ in t.values()) for k, t in taken.items()}
    out: dict[tuple, Embodiment] = {}
    for key, group in groups.items():
        plain = Embodiment(key[0], key[1], (), *slots[key], sizes["state"], sizes["action"])
        state = np.concatenate([plain.encode_state(s.state) for s in group])
        labelled = [s for s in group if s.action.shape[1]]
        action = np.concatenate([np.zeros((0, sizes["action"])), *(_chunks(plain, s, chunk) for s in labelled)])
        out[key] = replace(
            plain,
            state=tuple(_scaled(p, state[:, p.unified], normalisers, normalisation) for p in plain.state),
            action=tuple(_scaled(p, action[:, p.unified], normalisers, normalisation) for p in plain.action),
            locked=_locked(plain.action, [s.action for s in labelled]),
        )
    return tuple(replace(out[_robot(s.metadata)], views=views_of(s.metadata, s.cameras, views)) for s in sources)


def _robot(metadata: DatasetMetadata) -> tuple:
    """What data sets that share their statistics agree in."""
    return metadata.embodiment, metadata.control_mode, metadata.state, metadata.action


def _require_metadata(source: SourceData) -> None:
    m = source.metadata
    for name, fields, size in (("state", m.state, source.state.shape[1]), ("action", m.action, source.action.shape[1])):
        described = sum(f.stop - f.start for f in fields)
        if described != size and not (name == "action" and size == 0):
            raise WamkitError(
                f"{m.source}: {described} of {size} dimensions of its {name} have metadata; describe the others by "
                "`wamkit describe`, or a model would take them for something else"
            )
    if (m.state or m.action) and not m.embodiment:
        raise WamkitError(f"{m.source}: its robot is not known; name its embodiment by `wamkit describe`")


def _slots(
    metadata: DatasetMetadata, relative: bool, taken: dict[str, dict]
) -> tuple[tuple[FieldSlot, ...], tuple[FieldSlot, ...]]:
    """The slots of a robot's state and of its actions.

    taken: for "state" and "action", meaning -> (first dimension, size, effect of a larger value) of the slots so far.
        New meanings are appended.
    """
    out: list[tuple[FieldSlot, ...]] = []
    starts = {kind: sum(f.kind == kind for f in metadata.state) for kind in ("position", "rotation")}
    for name in ("state", "action"):
        count: dict[tuple, int] = {}
        relatives = dict.fromkeys(starts, 0)
        row = []
        for f in getattr(metadata, name):
            rel = name == "action" and relative and f.representation == "absolute" and f.kind in starts
            rel = rel and relatives[f.kind] < starts[f.kind]  # the state must hold the pose at the start
            if rel:
                relatives[f.kind] += 1
            slot = FieldSlot(f, 0, 0, rel)
            size = 6 if slot.is_rot6d else f.stop - f.start
            rotation = "" if slot.is_rot6d else f.rotation
            meaning = (f.kind, "relative" if rel else f.representation, "" if rel else f.frame, rotation, f.unit, size)
            meaning += ("target",) if f.reference == "target" else ()
            meaning += () if _is_known(f) else (_robot(metadata),)  # what it means elsewhere is anyone's guess
            count[meaning] = count.get(meaning, -1) + 1  # a second arm has a slot of its own
            used = taken[name]
            new = sum(n for _, n, _ in used.values()), size, f.larger
            at, _, larger = used.setdefault((*meaning, count[meaning]), new)
            row.append(replace(slot, at=at, size=size, turned=larger != f.larger))
        out.append(tuple(row))
    return out[0], out[1]


def _is_known(field: Field) -> bool:
    """True for a field that states all by which its values can be compared with those of another robot."""
    stated = field.larger if field.kind == "gripper" else field.rotation or field.kind != "rotation"
    return field.kind != "other" and bool(field.representation and stated)


def _chunks(embodiment: Embodiment, source: SourceData, chunk: int) -> np.ndarray:
    """Unified actions, (N, U), of chunks that follow one another in each episode: every row once, for statistics."""
    row, episode = np.arange(len(source.episode)), source.episode
    first = np.searchsorted(episode, episode)  # of each row's episode
    starts = np.flatnonzero((row - first) % chunk == 0)
    steps = starts[:, None] + np.arange(chunk)
    inside = np.minimum(steps, len(row) - 1)
    kept = (steps < len(row)) & (episode[inside] == episode[starts][:, None])
    return embodiment.encode_action(source.action[inside], source.state[starts])[kept]


def _scaled(
    slot: FieldSlot, x: np.ndarray, normalisers: Mapping[str, Normaliser], normalisation: Normalisation
) -> FieldSlot:
    """The slot with shift and scale measured on `x`, (N, size), by the normaliser of its field."""
    field, plain = slot.field, slot.field.kind == "rotation" and not slot.is_rot6d
    usual = normalisation if plain else NORMALISERS.get(field.kind, normalisation)
    own = normalisers.get(field.name, normalisers.get(field.kind, usual))
    if not len(x):
        return slot
    shift, scale = measured(x.astype(np.float64), "min_max" if own == "none" else own)
    constant = is_constant(shift, scale)
    if own == "none":
        if not constant.any():
            return slot
        shift, scale = np.where(constant, shift, 0), np.ones(len(scale))
    scale = np.where(constant, 0, scale)
    limit = LIMIT if own == "quantiles" else 0.0
    return replace(slot, shift=tuple(shift.tolist()), scale=tuple(scale.tolist()), limit=limit)


def _locked(slots: Sequence[FieldSlot], actions: Sequence[np.ndarray]) -> tuple[tuple[int, float], ...]:
    """The dimensions of a robot's own actions, (N, a) each, that never move, with their values.

    One number alone of a rotation may change its meaning with the others: a rotation is locked whole, or not at all.
    """
    x = np.concatenate(actions) if actions else np.zeros((0, 0))
    if not len(x):
        return ()
    shift, scale = measured(x, "mean_std")
    constant, out = is_constant(shift, scale), []
    for field in (slot.field for slot in slots):
        if field.kind != "rotation" or constant[field.start : field.stop].all():
            out += [(i, float(np.float32(shift[i]))) for i in range(field.start, field.stop) if constant[i]]
    return tuple(out)


def views_of(metadata: DatasetMetadata, cameras: Sequence[str], views: Sequence[str]) -> tuple[int, ...]:
    """For each of the `views` of a model, by roles, the index among `cameras` of the one that it shows; -1 for none.

    Raises WamkitError where the role of a camera is not known, and where none is one of `views`.
    """
    known, name = metadata.cameras, metadata.source
    roles = [known[c].role for c in cameras if c in known]
    if len(roles) < len(cameras):
        missing = [c for c in cameras if c not in known]
        raise WamkitError(f"{name}: the role of camera {missing[0]} is not known; name it by `wamkit describe`")
    out = tuple(next((roles.index(r) for r in v.split("+") if r in roles), -1) for v in views)
    if all(v < 0 for v in out):
        near = nearest(views[0], roles)
        has = ", ".join(roles)
        raise WamkitError(f"{name}: none of its cameras is one of {', '.join(views)}; it has {has}{near}")
    return out
