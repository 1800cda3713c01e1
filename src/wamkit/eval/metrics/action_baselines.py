"""Errors of action chunks on recordings, and policies that have learned nothing. Arrays in, numbers out.

Chunks are float (W, A, a): W windows, A steps, a dimensions in the robot's own units.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Integer

from wamkit.metadata import Field

ZERO = -1
"""Stands for "the value 0 holds this dimension still", in place of the number of a state dimension."""
NEAR = 0.5
"""Largest distance of targets from the state, over their deviation, at which an action dimension is taken for the
state's target where nothing says so."""


def holding(
    action: Float[np.ndarray, "N a"],
    state: Float[np.ndarray, "N s"],
    action_names: Sequence[str],
    state_names: Sequence[str],
    fields: Sequence[Field] = (),
) -> Int64[np.ndarray, " a"]:
    """The state dimension whose value, taken as action, holds each action dimension still; `ZERO` where 0 does.

    action, state: of recorded steps.   fields: metadata of the action, as far as they are known.

    An "absolute" action is the target of a state dimension: that of the same name, or else the one that it stays
    nearest to. A "delta" or "velocity" is 0. Where no metadata say which, an action is absolute if it stays within
    `NEAR` deviations of a state dimension. Blind to controllers that drift or sag under a held target.
    """
    said = {i: f.representation for f in fields for i in range(f.start, f.stop)}
    out = np.full(action.shape[1], ZERO)
    for i, name in enumerate(action_names):
        if said.get(i) in ("delta", "relative", "velocity") or not state.shape[1]:
            continue
        apart = np.abs(action[:, i : i + 1] - state).mean(0)
        same = [j for j, other in enumerate(state_names) if other == name]
        j = same[0] if same else int(apart.argmin())
        if said.get(i) == "absolute" and same or apart[j] <= NEAR * action[:, i].std():
            out[i] = j
    return out


def standing_still(
    state: Float[np.ndarray, "W s"], holds: Int64[np.ndarray, " a"], steps: int
) -> Float64[np.ndarray, "W A a"]:
    """Chunks of `steps` actions that hold the robot where it is. holds: see `holding`."""
    still = np.where(holds == ZERO, 0.0, state[:, np.maximum(holds, 0)] if state.shape[1] else 0.0)
    return np.repeat(still[:, None].astype(np.float64), steps, 1)


def nearest(
    query: Float[np.ndarray, "W f"],
    reference: Float[np.ndarray, "R f"],
    allowed: Bool[np.ndarray, "W R"] | None = None,
    block: int = 256,
) -> Int64[np.ndarray, " W"]:
    """The row of `reference` at the least Euclidean distance of each row of `query`, -1 where none is allowed."""
    out = np.empty(len(query), np.int64)
    norm = np.square(reference).sum(1)
    for low in range(0, len(query), block):
        rows = slice(low, low + block)
        distance = norm - 2 * query[rows] @ reference.T
        if allowed is not None:
            distance = np.where(allowed[rows], distance, np.inf)
        best = distance.argmin(1)
        out[rows] = np.where(np.isfinite(distance[np.arange(len(best)), best]), best, -1)
    return out


def squared_error(
    answer: Float[np.ndarray, "W A a"], executed: Float[np.ndarray, "W A a"], unit: Float[np.ndarray, " a"]
) -> Float64[np.ndarray, "W A a"]:
    """Squared errors in squared `unit` of each dimension."""
    return np.square((answer.astype(np.float64) - executed) / unit)


def coverage(
    draws: Float[np.ndarray, "K W A a"], executed: Float[np.ndarray, "W A a"], level: float
) -> Float64[np.ndarray, " W"]:
    """Share of a window's executed values inside the central interval of K draws that holds `level` of them; best is
    the second value of `nominal`.

    An interval between two order statistics of K draws holds (distance) / (K + 1) of a further draw from the same
    distribution, whatever that is, so `nominal` is exact for a calibrated policy. Ties count as inside, which is too
    kind to a policy with one answer and an executed value equal to it.
    """
    low, high, _ = _order_statistics(len(draws), level)
    ordered = np.sort(draws, 0)
    inside = (executed >= ordered[low]) & (executed <= ordered[high])
    return inside.mean((1, 2), dtype=np.float64)


def nominal(draws: int, level: float) -> float:
    """Share of executed values that `coverage` finds for a calibrated policy; near `level`, as `draws` allows."""
    return _order_statistics(draws, level)[2]


def _order_statistics(draws: int, level: float) -> tuple[int, int, float]:
    cut = min(max(round((draws + 1) * (1 - level) / 2), 1), draws // 2)
    return cut - 1, draws - cut, (draws + 1 - 2 * cut) / (draws + 1)


def spread_and_error(
    draws: Float[np.ndarray, "K W A a"], executed: Float[np.ndarray, "W A a"], unit: Float[np.ndarray, " a"]
) -> tuple[Float64[np.ndarray, " W"], Float64[np.ndarray, " W"]]:
    """Variance of K draws, and the squared error of their mean, of each window; equal on average if calibrated.

    Both are unbiased for K draws and an executed value from one distribution: the error of a mean of K has
    1 + 1 / K of the variance, so it is divided by that (Fortin et al. 2014, doi:10.1175/JHM-D-14-0008.1).
    """
    k = len(draws)
    variance = (draws / unit).astype(np.float64).var(0, ddof=1).mean((1, 2))
    error = squared_error(draws.mean(0, dtype=np.float64), executed, unit).mean((1, 2)) / (1 + 1 / k)
    return variance, error


def repeats(
    answer: Float[np.ndarray, "W A a"],
    last: Float[np.ndarray, "W a"],
    executed: Float[np.ndarray, "W A a"],
    unit: Float[np.ndarray, " a"],
) -> tuple[Float64[np.ndarray, " W"], Float64[np.ndarray, " W"]]:
    """Squared distance of the answers, and of what was executed, from the action before the window, of each window.

    Their ratio is 0 for a policy that repeats its last action, and 1 for one that moves on as the recordings do. It
    says nothing of the direction.
    """
    before = np.broadcast_to(last[:, None], executed.shape)
    return tuple(squared_error(x, before, unit).mean((1, 2)) for x in (answer, executed))


def previous(
    action: Float[np.ndarray, "N a"],
    starts: Integer[np.ndarray, " W"],
    episode: Integer[np.ndarray, " N"],
    otherwise: Float[np.ndarray, "W a"],
) -> Float64[np.ndarray, "W a"]:
    """The executed action of the step before each window, `otherwise` at the first step of an episode."""
    before = np.maximum(starts - 1, 0)
    has = (starts > 0) & (episode[before] == episode[starts])
    return np.where(has[:, None], action[before], otherwise).astype(np.float64)
