"""One space for the numbers of many robots, and the way there and back: the same code in training and at run time.

A robot's state and actions are fields (`data.meaning`). Fields of several robots that mean the same (kind, representation, frame, size)
share a place in the unified vector; others get places of their own, and a mask says which numbers a robot has: nothing is supervised
towards padding. On the way rotations become six numbers without jumps, poses may become relative to where the robot was when the chunk
began (UMI, arXiv:2402.10329), and each field is brought to about unit scale by statistics of its own (embodiment, control mode). A binary
gripper or a rotation in six numbers is not divided by its deviation. Small turns from step to step stay as they are written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8

from wamkit.config import nearest
from wamkit.data.rotations import from_matrix, to_matrix
from wamkit.metadata import DatasetMetadata, Field
from wamkit.types import Observation, ObservationError, WamkitError

Normaliser = Literal["mean_std", "quantiles", "min_max", "none"]
NORMALISERS: Mapping[str, Normaliser] = {"rotation": "none", "gripper": "min_max"}
"""By a field's kind; all others by mean and deviation."""


@dataclass(frozen=True)
class FieldSlot:
    """A field of a robot, and its place in the unified vector.

    at, size: of that place.   relative: whether poses are measured from where the robot was when the chunk began.
    shift, scale: what is subtracted, then divided by; one number a place.
    """

    field: Field
    at: int
    size: int
    relative: bool = False
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    @property
    def turned(self) -> bool:
        """Whether it is a rotation that becomes six numbers."""
        return bool(self.field.rotation) and self.field.representation in ("absolute", "relative")

    @property
    def raw(self) -> slice:
        return slice(self.field.start, self.field.stop)

    @property
    def here(self) -> slice:
        return slice(self.at, self.at + self.size)


@dataclass(frozen=True)
class Embodiment:
    """A robot under one control mode, as a model knows it.

    views: for each view of the model, the number of the robot's camera that it shows; -1 for none.
    state, action: its parts, in unified vectors of state_size and action_size numbers.
    """

    name: str
    control_mode: str
    views: tuple[int, ...]
    state: tuple[FieldSlot, ...]
    action: tuple[FieldSlot, ...]
    state_size: int
    action_size: int

    def has_state(self) -> Bool[np.ndarray, " S"]:
        """Which unified numbers of the state this robot has."""
        return _mask(self.state, self.state_size)

    def has_action(self) -> Bool[np.ndarray, " U"]:
        """The same of actions."""
        return _mask(self.action, self.action_size)

    def has_view(self) -> Bool[np.ndarray, " V"]:
        """Which views it has."""
        return np.array([v >= 0 for v in self.views])

    def encode_state(self, state: Float[np.ndarray, "... s"]) -> Float[np.ndarray, "... S"]:
        """The robot's state in unified numbers, float32; 0 where it has none."""
        out = np.zeros((*state.shape[:-1], self.state_size), np.float32)
        for part in self.state:
            out[..., part.here] = _normalised(_written(state[..., part.raw], part), part)
        return out

    def encode_action(
        self, action: Float[np.ndarray, "B A a"], state: Float[np.ndarray, "B s"]
    ) -> Float[np.ndarray, "B A U"]:
        """Chunks of actions in unified numbers, float32; `state` is the robot's own, before each chunk."""
        out = np.zeros((*action.shape[:-1], self.action_size), np.float32)
        for part in self.action:
            x = np.asarray(action[..., part.raw], np.float64)
            out[..., part.here] = _normalised(self._relative(part, x, state), part)
        return out

    def decode_action(
        self, unified: Float[np.ndarray, "B A U"], state: Float[np.ndarray, "B s"]
    ) -> Float[np.ndarray, "B A a"]:
        """The inverse of `encode_action`: float32, in the robot's own units."""
        size = max((p.field.stop for p in self.action), default=0)
        out = np.zeros((*unified.shape[:-1], size), np.float32)
        for part in self.action:
            x = np.asarray(unified[..., part.here], np.float64)
            if part.scale:
                x = x * np.array(part.scale) + np.array(part.shift)
            out[..., part.raw] = self._absolute(part, x, state)
        return out

    def to_model_views(self, images: UInt8[np.ndarray, "... V 3 H W"]) -> UInt8[np.ndarray, "... v 3 H W"]:
        """The robot's pictures as the model's views; black where it has none."""
        out = np.zeros((*images.shape[:-4], len(self.views), *images.shape[-3:]), np.uint8)
        for here, camera in enumerate(self.views):
            if camera >= 0:
                out[..., here, :, :, :] = images[..., camera, :, :, :]
        return out

    def to_robot_views(self, images: UInt8[np.ndarray, "... v 3 H W"]) -> UInt8[np.ndarray, "... V 3 H W"]:
        """The inverse of `see`: the model's views as the robot's cameras; black for those that the model is not shown."""
        cameras = max(self.views) + 1
        out = np.zeros((*images.shape[:-4], cameras, *images.shape[-3:]), np.uint8)
        for view, camera in enumerate(self.views):
            if camera >= 0:
                out[..., camera, :, :, :] = images[..., view, :, :, :]
        return out

    def observation(self, obs: Observation) -> Observation:
        """What the robot sees, as the model is shown it: its views, its state in unified numbers.

        Raises ObservationError for an observation that is not this robot's.
        """
        numbers, cameras = max((p.field.stop for p in self.state), default=0), max(self.views) + 1
        if np.shape(obs.proprio) != (numbers,):
            raise ObservationError(
                f"proprio: the robot '{self.name}' has {numbers} numbers, got {np.shape(obs.proprio)}"
            )
        if obs.images is not None and len(obs.images) < cameras:
            raise ObservationError(
                f"images: the robot '{self.name}' has at least {cameras} cameras, got {len(obs.images)}"
            )
        images = None if obs.images is None else self.to_model_views(obs.images)
        return replace(obs, images=images, proprio=self.encode_state(obs.proprio))

    # ------------------------------------------------------------------------------------------------------------- poses

    def _start(self, part: FieldSlot, state: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Position (B, 1, 3) and rotation (B, 1, 3, 3) of the arm that `part` moves, when the chunk began."""
        number = [p for p in self.action if p.relative and p.field.kind == part.field.kind].index(part)
        of = lambda kind: [p.field for p in self.state if p.field.kind == kind]  # noqa: E731
        positions, rotations = of("position"), of("rotation")
        p = positions[number] if number < len(positions) else None
        r = rotations[number] if number < len(rotations) else None
        return (
            None if p is None else np.asarray(state[:, None, p.start : p.stop], np.float64),
            None if r is None else to_matrix(state[:, None, r.start : r.stop], r.rotation),
        )

    def _relative(self, part: FieldSlot, x: np.ndarray, state: np.ndarray) -> np.ndarray:
        if not part.relative:
            return _written(x, part)
        p, R = self._start(part, state)
        if part.field.kind == "rotation":
            return from_matrix(R.swapaxes(-1, -2) @ to_matrix(x, part.field.rotation), "rot6d")
        away = x - p
        return away if R is None else np.einsum("bkij,bali->balj", R, away[:, :, None])[:, :, 0]

    def _absolute(self, part: FieldSlot, x: np.ndarray, state: np.ndarray) -> np.ndarray:
        if not part.relative:
            return from_matrix(to_matrix(x, "rot6d"), part.field.rotation) if part.turned else x
        p, R = self._start(part, state)
        if part.field.kind == "rotation":
            return from_matrix(R @ to_matrix(x, "rot6d"), part.field.rotation)
        return p + (x if R is None else np.einsum("bkij,balj->bali", R, x[:, :, None])[:, :, 0])


def _mask(parts: Sequence[FieldSlot], size: int) -> np.ndarray:
    out = np.zeros(size, bool)
    for part in parts:
        out[part.here] = True
    return out


def _written(x: np.ndarray, part: FieldSlot) -> np.ndarray:
    """A rotation as six numbers; all else as it is."""
    return from_matrix(to_matrix(x, part.field.rotation), "rot6d") if part.turned else x


def _normalised(x: np.ndarray, part: FieldSlot) -> np.ndarray:
    return (x - np.array(part.shift)) / np.array(part.scale) if part.scale else x


# ---------------------------------------------------------------------------------------------------------------- fitting


@dataclass(frozen=True)
class SourceData:
    """What is known of one source: its meaning, its numbers, and which actions belong to one chunk.

    state: (N, s).   action: (N, a), a = 0 for a robot shown as video.   episode: int64 (N,).   cameras: in the order of its pictures.
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
) -> tuple[Embodiment, ...]:
    """Embodiments of the sources, one each; sources of one (embodiment, control mode) share their statistics.

    views: roles ("scene", "wrist", "ego") in the order of the model's views, "scene+ego" for whichever there is; of several cameras of
    one role the first is taken.
    relative: whether absolute end-effector poses become relative to where the robot was when the chunk began.
    normalisers: by a field's name or kind, before NORMALISERS.
    Raises WamkitError for numbers whose meaning nobody gave, and for robots without a camera among `views`.
    """
    normalisers = {**NORMALISERS, **(normalisers or {})}
    for s in sources:
        _require_metadata(s)
    groups: dict[tuple[str, str], list[SourceData]] = {}
    for s in sources:
        groups.setdefault((s.metadata.embodiment, s.metadata.control_mode), []).append(s)
    places: dict[str, dict[tuple, tuple[int, int]]] = {"state": {}, "action": {}}
    parts = {key: _parts(group[0].metadata, relative, places) for key, group in groups.items()}
    sizes = {k: sum(size for _, size in p.values()) for k, p in places.items()}
    out: dict[tuple[str, str], Embodiment] = {}
    for key, group in groups.items():
        plain = Embodiment(key[0], key[1], (), *parts[key], sizes["state"], sizes["action"])
        state = np.concatenate([plain.encode_state(s.state) for s in group])
        labelled = [s for s in group if s.action.shape[1]]
        action = np.concatenate([np.zeros((0, sizes["action"])), *(_chunks(plain, s, chunk) for s in labelled)])
        out[key] = replace(
            plain,
            state=tuple(_scaled(p, state[:, p.here], normalisers) for p in plain.state),
            action=tuple(_scaled(p, action[:, p.here], normalisers) for p in plain.action),
        )
    return tuple(
        replace(out[(s.metadata.embodiment, s.metadata.control_mode)], views=_views(s, views)) for s in sources
    )


def _require_metadata(source: SourceData) -> None:
    m = source.metadata
    for name, fields, size in (("state", m.state, source.state.shape[1]), ("action", m.action, source.action.shape[1])):
        if (said := sum(f.stop - f.start for f in fields)) != size and not (name == "action" and size == 0):
            raise WamkitError(
                f"{m.source}: {said} of {size} numbers of its {name} have a meaning; say what the others are in meta/wamkit.json, "
                "or a model would learn them as something that they are not"
            )
    if (m.state or m.action) and not m.embodiment:
        raise WamkitError(f"{m.source}: which robot this is nobody said; name its embodiment in meta/wamkit.json")


def _parts(
    metadata: DatasetMetadata, relative: bool, places: dict[str, dict]
) -> tuple[tuple[FieldSlot, ...], tuple[FieldSlot, ...]]:
    """The parts of a robot's state and actions; fields that mean something new get a place at the end."""
    out: list[tuple[FieldSlot, ...]] = []
    starts = {kind: sum(f.kind == kind for f in metadata.state) for kind in ("position", "rotation")}
    for name in ("state", "action"):
        seen: dict[tuple, int] = {}
        moving = dict.fromkeys(starts, 0)
        row = []
        for f in getattr(metadata, name):
            moved = name == "action" and relative and f.representation == "absolute" and f.kind in starts
            moved = moved and moving[f.kind] < starts[f.kind]  # the state must say from where
            if moved:
                moving[f.kind] += 1
            part = FieldSlot(f, 0, 0, moved)
            size = 6 if part.turned else f.stop - f.start
            written = "" if part.turned else f.rotation
            means = (f.kind, "relative" if moved else f.representation, "" if moved else f.frame, written, f.unit, size)
            seen[means] = seen.get(means, -1) + 1  # the second arm's is another place than the first's
            taken = places[name]
            at, _ = taken.setdefault((*means, seen[means]), (sum(n for _, n in taken.values()), size))
            row.append(replace(part, at=at, size=size))
        out.append(tuple(row))
    return out[0], out[1]


def _chunks(embodiment: Embodiment, source: SourceData, chunk: int) -> np.ndarray:
    """Unified actions of chunks that begin at every `chunk`-th step, (n, U): what statistics are made of."""
    starts = np.arange(0, len(source.action), chunk)
    steps = starts[:, None] + np.arange(chunk)
    inside = (steps < len(source.action)) & (
        source.episode[np.minimum(steps, len(source.action) - 1)] == source.episode[starts][:, None]
    )
    steps = np.minimum(steps, len(source.action) - 1)
    return embodiment.encode_action(source.action[steps], source.state[starts])[inside]


def _scaled(part: FieldSlot, x: np.ndarray, normalisers: Mapping[str, Normaliser]) -> FieldSlot:
    """The part with shift and scale of its kind, measured on `x` (N, size)."""
    usual = "mean_std" if part.field.kind == "rotation" and not part.turned else part.field.kind
    kind = normalisers.get(part.field.name, normalisers.get(usual, "mean_std"))
    if kind == "none" or not len(x):
        return part
    x = x.astype(np.float64)
    if kind == "mean_std":
        shift, scale = x.mean(0), x.std(0)
    else:
        low, high = (x.min(0), x.max(0)) if kind == "min_max" else np.quantile(x, (0.01, 0.99), axis=0)
        shift, scale = (low + high) / 2, (high - low) / 2
    scale = np.where(scale > 1e-6, scale, 1.0)  # a number that never moves becomes 0, not noise
    return replace(part, shift=tuple(shift.tolist()), scale=tuple(scale.tolist()))


def _views(source: SourceData, views: Sequence[str]) -> tuple[int, ...]:
    roles = [
        facts.role for facts in (source.metadata.cameras[c] for c in source.cameras if c in source.metadata.cameras)
    ]
    if len(roles) < len(source.cameras):
        missing = [c for c in source.cameras if c not in source.metadata.cameras]
        raise WamkitError(
            f"{source.metadata.source}: what camera {missing[0]} looks at nobody said; say so in meta/wamkit.json"
        )
    out = tuple(next((roles.index(r) for r in v.split("+") if r in roles), -1) for v in views)
    if all(v < 0 for v in out):
        near = nearest(views[0], roles)
        raise WamkitError(
            f"{source.metadata.source}: none of its cameras is one of {', '.join(views)}; it has {', '.join(roles)}{near}"
        )
    return out
