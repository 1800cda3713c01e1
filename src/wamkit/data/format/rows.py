"""Checks of a LeRobotDataset's rows, the same for v2.1 and v3.0: types of columns, and clocks.

They are strict on what would be lost, and lenient on what lerobot itself reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wamkit.files import StoreError

_UNITS = {"milliseconds": 1_000, "microseconds": 1_000_000, "nanoseconds": 1_000_000_000}
_SLACK = 0.25  # fraction of a step by which the usual step of a clock may differ


def column_array(column: pa.ChunkedArray, feature: Mapping[str, Any]) -> np.ndarray:
    """The values of a column, (n, *shape), as the feature's dtype.

    feature: "dtype" and "shape"; "declared" is the dtype of info.json where state and actions are wanted in another.

    Lists, fixed or not, and every width of a number are read. Raises StoreError, without naming the column, for cells
    that are empty or of different lengths, and for numbers that the dtype cannot hold.
    """
    wanted = np.dtype(feature["dtype"])
    declared = np.dtype(feature.get("declared", wanted))
    try:
        values, depth = column.combine_chunks(), 0
        while _is_list(values.type):
            depth += 1
            fixed = pa.types.is_fixed_size_list(values.type)
            if not fixed and pc.count_distinct(pc.list_value_length(values)).as_py() > 1:
                raise ValueError("its cells are lists of different lengths")
            values = values.flatten()
        if values.null_count:
            row = values.is_null().index(True).as_py() * len(column) // len(values)
            raise ValueError(f"its cell in row {row} is empty, as pandas stores NaN")
        laid_flat = depth == 1 and "declared" not in feature  # further columns, whose values keep their order
        if len(feature["shape"]) > 1 and depth != len(feature["shape"]) and not laid_flat:
            raise ValueError(f"its cells have {depth} dimensions instead of {len(feature['shape'])}")
        if not (
            pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type)
        ):
            raise TypeError(f"it holds {values.type} instead of numbers")
        found = values.to_numpy(zero_copy_only=False)
        with np.errstate(invalid="ignore", over="ignore"):
            told = found.astype(declared, copy=False)
            out = told.astype(wanted)
        if declared.kind != "f" and declared != found.dtype and not np.array_equal(told, found):
            raise ValueError(f"it holds numbers that are no {declared}")
        if found.dtype.kind in "iu" and wanted.kind == "f" and not np.array_equal(out, found):
            raise ValueError(
                f"it holds whole numbers that {wanted} does not keep apart: subtract an offset, or take another unit"
            )
        return out.reshape(len(column), *feature["shape"])
    except (ValueError, TypeError, pa.ArrowException) as error:
        raise StoreError(f"{error}; info.json says {declared} {list(feature['shape'])}") from error


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)


def clock_fault(times: np.ndarray, fps: float) -> str:
    """The first timestamp of an episode that is half a step or more off, as text; "" if there is none.

    times: in seconds, (T,).

    Rows and frames are matched by number, so that the clock of a recorder may jitter, or jump where steps are missing.
    """
    off = ~(np.abs(times - np.arange(len(times)) / fps) <= 0.5 / fps)  # ~, since NaN is not less either
    if not off.any():
        return ""
    step = int(off.argmax())
    return f"timestamp of step {step} is {times[step]:g} s, which {fps:g} steps a second do not give"


def rate_fault(times: np.ndarray, starts: np.ndarray, fps: float) -> tuple[int, str] | None:
    """The first episode whose steps usually last longer, or shorter, than `fps` says, and the fault as text.

    times: timestamps of all episodes in seconds, (N,).
    starts: the first row of each episode, ascending, from 0.
    """
    if not len(times):
        return None
    steps = np.diff(times.astype(np.float64), prepend=np.nan) * fps
    steps[starts] = np.nan
    inside = np.diff(starts, append=len(times)) - 1
    sides = ((steps > 0) & (steps < 1 - _SLACK), steps > 1 + _SLACK)
    wrong = np.any([np.add.reduceat(side, starts) > 0.5 * inside for side in sides], axis=0) & (inside > 0)
    if not wrong.any():
        return None
    episode = int(wrong.argmax())
    rows = slice(starts[episode], starts[episode] + inside[episode] + 1)
    late = ~(np.abs(times[rows] * fps - np.arange(inside[episode] + 1)) <= 0.5)
    step = np.nanmedian(steps[rows])
    for unit, count in _UNITS.items():
        if abs(step / count - 1) < _SLACK:
            return episode, f"its timestamps count {unit}, and must be seconds; divide them by {count:,}"
    return episode, (
        f"its rows are not {fps:g} a second, from step {int(late.argmax())} on, but "
        f"{fps / step:.4g} by their timestamps; correct fps in meta/info.json if these are right"
    )
