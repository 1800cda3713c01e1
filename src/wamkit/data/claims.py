"""Claims of metadata, compared with the values that they describe.

Actions that are labelled deltas must move the state, absolute ones must be where the state goes, a gripper must answer
its command in the direction that the labels give, and values must be possible in their unit. Where there is too little
movement to tell, nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import pi

import numpy as np
from jaxtyping import Float, Int

from wamkit.metadata import DatasetMetadata, Field

ROWS, SWITCHES = 50, 4
"""Rows, and changes of a gripper's command, from which something can be told."""
SURE, UNSURE = 0.8, 0.5
"""Fraction of the variance that a label must explain to fit, and of which the other must stay below."""
LAGS = (1, 2, 4, 8)
"""Steps after which a gripper may have answered its command."""
MOST = {("joint", "rad"): 4 * pi, ("position", "m"): 10.0, ("gripper", "m"): 1.0, ("rotation", "rad"): 4 * pi}
"""Largest value that a kind and its unit make possible: two turns, the reach of a room, an opened hand."""
SMALLER = {"rad": "deg", "m": "mm"}
LEAST = {("joint", "deg"): (pi, "rad"), ("position", "mm"): (2.0, "m"), ("gripper", "mm"): (0.2, "m")}
"""Value that a field which moves exceeds in its unit, and the unit that otherwise fits."""


@dataclass(frozen=True)
class Misfit:
    """A label that the values contradict.

    entry: its place, as in "action.gripper.larger".
    label, fits: the label as it stands, and the one that the values fit; "" where none is known.
    reason: what the values say.
    """

    entry: str
    label: str
    fits: str
    reason: str


@dataclass(frozen=True)
class Values:
    """The numbers of a data set: state (N, s), action (N, a) and the episode of each row (N,)."""

    state: Float[np.ndarray, "N s"]
    action: Float[np.ndarray, "N a"]
    episode: Int[np.ndarray, " N"]


def misfits(metadata: DatasetMetadata, values: Values) -> Iterator[Misfit]:
    """The labels of `metadata`, whose fields lie within the vectors, that the values contradict."""
    for f in metadata.action:
        label = f.representation
        if (found := representation(f, metadata, values)) and label in ("absolute", "delta") and found != label:
            says = "are where the state goes next" if found == "absolute" else "are in proportion to how it moves"
            yield Misfit(f"action.{f.name}.representation", label, found, f"its values {says}")
        sign = gripper_direction(f, metadata, values) if f.larger else None
        if sign is not None and sign[0] != f.larger:
            reason = f"state.{sign[1].name} {'rises' if sign[1].larger == sign[0] else 'falls'} with it"
            yield Misfit(f"action.{f.name}.larger", f.larger, sign[0], reason)
    for name, fields, x in (("state", metadata.state, values.state), ("action", metadata.action, values.action)):
        for f in fields:
            yield from _impossible(f"{name}.{f.name}", f, x[:, f.start : f.stop])


def representation(field: Field, metadata: DatasetMetadata, values: Values) -> str:
    """ "absolute" or "delta", whichever the values of an action field fit; "" where neither is sure."""
    inside = values.episode[1:] == values.episode[:-1]
    if (of := _counterpart(field, metadata)) is None or inside.sum() < ROWS:
        return ""
    now, after = (x[:, of.start : of.stop].astype(np.float64)[inside] for x in (values.state[:-1], values.state[1:]))
    a = values.action[:-1, field.start : field.stop].astype(np.float64)[inside]
    moves = after.std(0) > 1e-6
    if not moves.any():
        return ""
    now, after, a = now[:, moves], after[:, moves], a[:, moves]
    absolute = 1 - (np.square(a - after).mean(0) / after.var(0)).mean()
    motion = after - now
    gain = np.maximum((a * motion).sum(0) / np.maximum(np.square(a).sum(0), 1e-12), 0)
    delta = 1 - (np.square(motion - gain * a).sum(0) / np.maximum(np.square(motion).sum(0), 1e-12)).mean()
    if absolute >= SURE and delta < UNSURE:
        return "absolute"
    return "delta" if delta >= UNSURE and absolute < UNSURE else ""


def gripper_direction(field: Field, metadata: DatasetMetadata, values: Values) -> tuple[str, Field] | None:
    """The effect of a larger command of a gripper, and the field of the state that tells; None where none is sure."""
    if field.kind != "gripper" or field.representation != "absolute" or len(values.episode) < ROWS:
        return None
    command = values.action[:, field.start].astype(np.float64)
    inside = values.episode[1:] == values.episode[:-1]
    high = command > (command.min() + command.max()) / 2
    if (high[1:] != high[:-1])[inside].sum() < SWITCHES:
        return None
    for of in (f for f in _side(metadata.state, field) if f.kind == "gripper" and f.larger):
        opening = values.state[:, of.start].astype(np.float64)
        found = [_correlation(command, opening, values.episode, lag) for lag in LAGS]
        best = max(found, key=abs)
        if abs(best) >= UNSURE:
            return (of.larger if best > 0 else _OTHER[of.larger]), of
    return None


_OTHER = {"opens": "closes", "closes": "opens"}


def _correlation(command: np.ndarray, answer: np.ndarray, episode: np.ndarray, lag: int) -> float:
    inside = episode[lag:] == episode[:-lag]
    x, y = command[:-lag][inside], answer[lag:][inside]
    if len(x) < ROWS or not x.std() or not y.std():
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def _counterpart(field: Field, metadata: DatasetMetadata) -> Field | None:
    """The field of the state that an action field moves: of the same kind and size, on the same side."""
    if field.kind in ("rotation", "pose", "gripper"):
        return None
    size = field.stop - field.start
    fits = [
        f
        for f in metadata.state
        if f.kind == field.kind and f.stop - f.start == size and f.representation == "absolute"
    ]
    same = [f for f in metadata.action if f.kind == field.kind and f.stop - f.start == size]
    return fits[same.index(field)] if len(fits) >= len(same) else None


def _side(fields: tuple[Field, ...], field: Field) -> Iterator[Field]:
    """The fields of the same arm: all but those that name the other side."""
    other = {"left": "right", "right": "left"}
    side = next((s for s in other if s in field.name), "")
    return (f for f in fields if not side or other[side] not in f.name)


def _impossible(entry: str, f: Field, x: np.ndarray) -> Iterator[Misfit]:
    """Values that the unit or the representation of a field makes impossible."""
    if len(x) < ROWS:
        return
    of, largest = (f.kind, f.unit), float(np.abs(x).max())
    if f.representation == "absolute" and of in MOST and largest > MOST[of]:
        yield Misfit(f"{entry}.unit", f.unit, SMALLER[f.unit], f"it reaches {largest:g}")
    elif f.representation == "absolute" and of in LEAST and 0 < largest < LEAST[of][0] and np.ptp(x, 0).all():
        yield Misfit(f"{entry}.unit", f.unit, LEAST[of][1], f"it stays below {largest:.3g}")
    if f.rotation.startswith("quat") and f.stop - f.start == 4 and f.representation == "absolute":
        length = np.linalg.norm(x, axis=1)
        if np.abs(np.median(length) - 1) > 0.05:
            yield Misfit(f"{entry}.rotation", f.rotation, "", f"its values have a length of {np.median(length):.3g}")
