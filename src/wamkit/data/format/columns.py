"""Columns that hold the state and the actions, by the names that the field's tools give them.

LeRobot calls them `observation.state` and `action`. openpi's converters call them `state` and `actions`, others keep
them in parts. Names that are known are taken; where columns only look like a state or actions, the user is asked:
`columns` of meta/wamkit.json, or an option of the importer, says which they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wamkit.files import StoreError

STATE, ACTION = "observation.state", "action"
_KNOWN = {
    STATE: ("state", "states", "proprio", "proprioception", "robot_state", "agent_pos", "qpos"),
    ACTION: ("action", "actions"),
}
_LIKELY = {
    STATE: {"state", "states", "proprio", "joint", "joints", "qpos", "eef", "ee", "tcp", "cartesian", "gripper", "arm"},
    ACTION: {"action", "actions", "command", "commands", "control", "controls"},
}
_NOT_STATE = _LIKELY[ACTION] | {"vel", "velocity", "effort", "torque", "environment", "env", "qvel", "next", "expert"}
OPTIONS = {"state": STATE, "action": ACTION}
"""Names in `columns` of meta/wamkit.json, and the vectors that they mean."""


def vectors_of(
    features: Mapping[str, Any], stated: Mapping[str, Sequence[str]] = {}, taken: Sequence[str] = ()
) -> dict[str, tuple[str, ...]]:
    """The columns that form `observation.state` and `action`, side by side; () where there is none.

    features: of info.json.
    stated: "state" and "action" -> columns, which are then taken as they are.
    taken: columns with another meaning.

    Raises StoreError for a stated column that is no vector of numbers.
    """
    out: dict[str, tuple[str, ...]] = {}
    for name, vector in OPTIONS.items():
        if name in stated:
            for column in stated[name]:
                if not _is_vector(features.get(column), matrix=True):
                    has = ", ".join(k for k, f in features.items() if _is_vector(f) and k not in taken)
                    raise StoreError(f"column '{column}', named as its {name}, is no vector of numbers; it has {has}")
            out[vector] = tuple(stated[name])
        elif vector in features:
            out[vector] = (vector,)
        else:
            named = [k for k in features if k not in taken and _plain(k) in _KNOWN[vector]]
            found = [k for k in named if _is_vector(features[k], matrix=True)]
            out[vector] = tuple(found) if len(found) == 1 else ()
    return out


def doubtful(
    features: Mapping[str, Any], stated: Mapping[str, Sequence[str]] = {}, taken: Sequence[str] = ()
) -> dict[str, tuple[str, ...]]:
    """Columns that may hold the state or the actions, by "state" and "action", where `vectors_of` recognises none."""
    out, vectors = {}, vectors_of(features, stated, taken)
    words = {k: set(_plain(k).replace(".", "_").split("_")) for k, f in features.items() if _is_vector(f)}
    used = {*taken, *(c for columns in vectors.values() for c in columns)}
    # A single whole number may be an index, and a truth value a mark: they join others, and ask nothing alone.
    is_measured = lambda k: features[k]["dtype"].startswith("float") or features[k]["shape"][0] > 1  # noqa: E731
    for name, vector in OPTIONS.items():
        likely = tuple(
            k
            for k, w in words.items()
            if k not in used and w & _LIKELY[vector] and not (vector == STATE and w & _NOT_STATE)
        )
        if not vectors[vector] and name not in stated and any(map(is_measured, likely)):
            out[name] = likely
    return out


def which(found: Mapping[str, Sequence[str]], option: str) -> str:
    """The question which of the columns `found` by `doubtful` are the state or the actions.

    option: how to say it, with `{name}` and `{columns}`; the first question is asked.
    """
    name, columns = next(iter(found.items()))
    listed = ", ".join(f"'{c}'" for c in columns[:8]) + ("" if len(columns) <= 8 else f" and {len(columns) - 8} more")
    return f"its {name} may be in {listed}; say which by {option.format(name=name, columns=list(columns))}"


def _plain(column: str) -> str:
    """A column's name as it is looked up: without the folder of observations that some put before it."""
    name = column.lower().replace("/", ".")
    for prefix in ("observation.", "observations.", "obs."):
        name = name.removeprefix(prefix)
    return name


def _is_vector(feature: Any, matrix: bool = False) -> bool:
    """True for a feature of numbers, or truth values, with one dimension.   matrix: with more, too."""
    try:
        return np.dtype(feature["dtype"]).kind in "biuf" and (matrix or len(feature["shape"]) == 1)
    except (TypeError, LookupError):
        return False
