"""Real-time chunking: a chunk that begins with the actions which the robot takes while it is computed.

An answer takes time, and until it comes the robot goes on with the chunk before. An answer that knows nothing of these
actions may contradict them, and the arm jerks where one chunk takes over from the other. So a query is given what is
left of the chunk before (`Ahead`): the first actions of it are decided, since they will be taken before the answer is
there.

Two ways: a model that learned with prefixes (`train.prefix`) holds the decided actions without noise and denoises what
comes after them (arXiv:2512.05964). Any other one that denoises its actions is guided towards what is left, by a
gradient in every denoising step (arXiv:2506.07339).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from wamkit.families.base import Family
from wamkit.types import Batch, ObservationError, UnsupportedQuery


@dataclass(frozen=True)
class Ahead:
    """Actions that are left of the chunk before, from the step of the observation on.

    actions: float (P, a), P from 1 up to the length of a chunk, in the robot's units.
    decided: how many of them will be taken before the answer is there; all, if not given.
    """

    actions: np.ndarray
    decided: int | None = None


def checked(ahead: Ahead, chunk: int, action_dim: int) -> Ahead:
    """`ahead` with float32 actions and a number of decided ones. Raises ObservationError, naming the field."""
    actions = np.asarray(ahead.actions)
    fits = actions.ndim == 2 and 1 <= len(actions) <= chunk and actions.shape[1] == action_dim
    if not fits or actions.dtype.kind != "f":
        raise ObservationError(
            f"ahead: actions: expected float (1 to {chunk}, {action_dim}), got {actions.dtype} {actions.shape}"
        )
    if not np.isfinite(actions).all():
        raise ObservationError("ahead: actions: not all values are finite")
    decided = len(actions) if ahead.decided is None else ahead.decided
    if isinstance(decided, bool) or not isinstance(decided, (int, np.integer)) or not 0 <= decided <= len(actions):
        raise ObservationError(
            f"ahead: decided: expected a whole number from 0 to the {len(actions)} actions given, got {decided!r}"
        )
    return Ahead(actions.astype(np.float32), int(decided))


def padded(ahead: Sequence[Ahead | None], chunk: int, action_dim: int) -> np.ndarray:
    """The actions of every row as a whole chunk (B, A, a): the last one repeated, zeros for a row without any."""
    out = np.zeros((len(ahead), chunk, action_dim), np.float32)
    for row, given in zip(out, ahead, strict=True):
        if given is not None:
            row[: len(given.actions)], row[len(given.actions) :] = given.actions, given.actions[-1]
    return out


def with_ahead(batch: Batch, ahead: Sequence[Ahead | None], family: Family, learned: int) -> tuple[Batch, list[int]]:
    """A query's batch whose answers begin with given actions, and the number of these in each row, for `begun`.

    batch: its `action` holds them, as of `padded`.
    learned: longest prefix that training gave (`train.prefix`). All rows are guided where it gave none, and where a row
        has more decided, or ends within a token.
    Raises UnsupportedQuery for a family that does not denoise its actions.
    """
    if family.denoised is None:
        raise UnsupportedQuery(
            f"the family {family.name!r} does not denoise its actions, so they cannot begin with given ones: join its "
            "chunks by ensembling"
        )
    size = family.denoised.per_token
    steps = [0 if g is None else whole_tokens(g, size) for g in ahead]
    longest = -(-learned // size) * size
    held = all(g is None or (g.decided or 0) <= n <= longest for g, n in zip(ahead, steps, strict=True))
    if learned and held:
        return replace(batch, prefix=torch.tensor(steps)), steps
    left = [(0, 0) if g is None else (len(g.actions), g.decided or 0) for g in ahead]
    weights = [soft_weights(*row, batch.action.shape[1]) for row in left]
    return replace(batch, guide=torch.from_numpy(np.stack(weights))), [decided for _, decided in left]


def whole_tokens(ahead: Ahead, size: int) -> int:
    """Steps to hold: the decided ones, and those that share a token of `size` steps with them, as far as these are
    given."""
    decided = ahead.decided or 0
    up = -(-decided // size) * size
    return up if up <= len(ahead.actions) else decided // size * size


def soft_weights(left: int, decided: int, chunk: int) -> np.ndarray:
    """Weights (A,) of the actions of a chunk, of which `left` are given: 1 for decided ones, then falling to 0.

    Source: arXiv:2506.07339, eq. 5.

    Examples:
        >>> (100 * soft_weights(4, 2, 6)).round().tolist()
        [100.0, 100.0, 37.0, 8.0, 0.0, 0.0]
    """
    at = np.arange(chunk)
    c = np.clip((left - at) / (left - decided + 1), 0, 1)
    falling = c * np.expm1(c) / np.expm1(1)
    return np.where(at < decided, 1, np.where(at < left, falling, 0)).astype(np.float32)


def begun(actions: np.ndarray, ahead: Sequence[Ahead | None], steps: Sequence[int]) -> np.ndarray:
    """Answers (B, A, a), of which row i begins with the first `steps[i]` given actions themselves, to the bit."""
    out = actions.copy()
    for row, given, n in zip(out, ahead, steps, strict=True):
        if given is not None:
            row[:n] = given.actions[:n]
    return out
