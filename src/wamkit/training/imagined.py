"""Looks at imagined frames during training: when, at which windows, and by which query."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, UInt8

from wamkit.data.loading.mixture import MixedWindows
from wamkit.data.loading.windows import Windows, observations
from wamkit.families.base import Family
from wamkit.inference.model import Model
from wamkit.types import Batch, Query

LOOKS = 4
"""Most looks in a training."""
EVERY = 200
"""Fewest steps between two looks, so that they take less than a hundredth of the time."""
QUERIES = (Query.FORWARD, Query.JOINT, Query.VIDEO)
"""Queries that imagine. The first that a family answers is asked: given actions, there is one right future."""


def is_shown(step: int, steps: int) -> bool:
    """True after the last step of each of LOOKS equal parts of training, or of fewer where it is short."""
    parts = min(LOOKS, steps // EVERY)
    return parts * step // steps > parts * (step - 1) // steps


def shown_windows(windows: Windows | MixedWindows, count: int) -> Int64[np.ndarray, " N"]:
    """Numbers of `count` windows, spread over episodes that are not learned from or, where there are none, over all.

    Windows that end in their episode come first; of a mixture, any are taken.
    """
    rows = np.arange(len(windows))
    if isinstance(windows, Windows):
        frames = windows.frames
        whole = rows + max(windows.spec.frame_offsets) < frames.ends()
        unseen = ~np.isin(rows, frames.rows())
        rows = next(rows[wanted] for wanted in (whole & unseen, whole, rows >= 0) if wanted.any())
    return rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]


def futures(family: Family, batch: Batch) -> UInt8[np.ndarray, "B F V 3 H W"] | None:
    """Futures that `family` imagines for the windows of `batch`; None for a family that imagines no images.

    Every draw comes from generators of its own, with the seed 0, so that a look changes nothing that is learned.
    """
    query = next((q for q in QUERIES if q in family.queries), None)
    if query is None:
        return None
    given = {"actions": batch.action.numpy()} if query is Query.FORWARD else {}
    model = Model(family, optional_views=family.spec.cameras)
    return model.sample(observations(batch), query, **given).future
