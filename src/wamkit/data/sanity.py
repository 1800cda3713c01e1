"""Values that are finite and cannot be meant. One action of 3e38 makes all others 0 once they are normalised.

A value is taken for a fault where its distance from the median of its dimension is FAR times that which all but the
farthest thousandth of the values keep, and all but two. A rare movement of a joint that mostly rests is thus no fault,
but one value unlike all others is. Faults in up to a tenth of the values, and among few values, are found if they are
ABSURD.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import numpy as np

from wamkit.data.format.schema import BODY_POSE, POINT_BODY, POINTS, VECTORS
from wamkit.data.format.store import Store
from wamkit.files import StoreError

FAR, ABSURD = 100.0, 1e6
_FEW = 50  # values; among fewer, nothing but what is ABSURD is far
_LEAST = 0.1  # usual distance in a dimension that is constant; in m, rad or half ranges of a command
_UNIT = 0.01  # largest error of a quaternion's length


@dataclass(frozen=True)
class Fault:
    """A value that cannot be meant, the worst of its column.

    episode, step: its place.   message: the value, and what is usual.
    normalised: True in the state and the actions, where normalisation by quantiles clips it.
    """

    episode: int
    step: int
    message: str
    normalised: bool


def require_sane(store: Store, clipped: bool = False) -> list[str]:
    """Raises StoreError, naming episode and step, if a column that is trained on has values that cannot be meant.

    clipped: True where they are normalised by quantiles, which makes such values of the state and the actions harmless:
        the notes that are returned say where they are.
    """
    notes = []
    for fault in faults(store):
        found = f"{store.root} (episode {fault.episode}, step {fault.step}): {fault.message}"
        if not clipped or not fault.normalised:
            remedy = "correct it, or leave the episode out"
            remedy += "; `train --train.normalisation quantiles` clips it" if fault.normalised else ""
            raise StoreError(f"{found}; {remedy}")
        notes.append(f"{found}; normalisation by quantiles clips it")
    return notes


def faults(store: Store) -> Iterator[Fault]:
    """The faults in the state, the actions, and the scene points of a store, at most one for each dimension."""
    columns, layout = store.numeric(), store.layout
    names = {"observation.state": layout.proprio_names} | dict.fromkeys(VECTORS[1:], layout.action_names)
    checked = {key: (columns[key], names[key]) for key in VECTORS if key != VECTORS[2] or layout.expert}
    if layout.point_grid:
        checked[POINTS] = columns[POINTS].reshape(store.frames, -1, 4)[..., :3], tuple("xyz")
        checked[BODY_POSE] = columns[BODY_POSE].reshape(store.frames, -1, 7)[..., :3], tuple("xyz")
    for key, (values, dimensions) in checked.items():
        for i, name in enumerate(dimensions):
            if found := _farthest(values[..., i].reshape(store.frames, -1)):
                row, message = found
                yield Fault(*_place(store, row), f"{key}, {name}: {message}", key in VECTORS)
    if layout.point_grid:
        body, pose = columns[POINT_BODY], columns[BODY_POSE].reshape(store.frames, -1, 7)
        off = np.abs(np.linalg.norm(pose[..., 3:], axis=-1) - 1) > _UNIT
        for wrong, message in (
            (
                (body < 0) | (body >= pose.shape[1]),
                f"{POINT_BODY}: it names a body other than 0 to {pose.shape[1] - 1}",
            ),
            (off, f"{BODY_POSE}: a rotation is no unit quaternion"),
        ):
            if wrong.any():
                yield Fault(*_place(store, int(np.flatnonzero(wrong.any(1))[0])), message, False)


def _farthest(values: np.ndarray) -> tuple[int, str] | None:
    """The row of the value of (N, n) that is farthest from usual, and a description; None if all are usual."""
    if not values.size or float(values.max()) - float(values.min()) <= FAR * _LEAST:
        return None
    x = values.astype(np.float64).ravel()
    middle = float(np.median(x))
    away = np.abs(x - middle)
    most, nearly_all = int(0.9 * len(x)), max(0, len(x) - 1 - max(2, len(x) // 1000))
    ranked = np.partition(away, (most, nearly_all))
    usual = max(float(ranked[nearly_all]), _LEAST)
    limit = min(FAR * usual if len(x) >= _FEW else inf, ABSURD * max(float(ranked[most]), 1.0))
    if away.max() <= limit:
        return None
    worst, count = int(away.argmax()), int((away > limit).sum())
    more = f", and {count - 1} more values are as far" if count > 1 else ""
    return worst // values.shape[1], f"{x[worst]:g}, which is far from the median {middle:g}{more}"


def _place(store: Store, row: int) -> tuple[int, int]:
    columns = store.numeric()
    return int(columns["episode_index"][row]), int(columns["frame_index"][row])
