"""Queries about windows of recorded episodes: batches of rows, one noise per window, and what each query is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32, Int64

from wamkit.data.loading.windows import Frames, observations, window_starts
from wamkit.inference.model import Model
from wamkit.types import Batch, Query, Sample, Spec

BATCH = 64


def whole_windows(frames: Frames, spec: Spec, stride: int) -> Int64[np.ndarray, " N"]:
    """First rows of every `stride`-th window whose action chunk and futures end within its episode."""
    return window_starts(frames, max(*spec.frame_offsets, spec.chunk), stride)


def row_batches(count: int, size: int = BATCH) -> Iterator[np.ndarray]:
    """The numbers below `count` in consecutive batches."""
    return (np.arange(low, min(low + size, count)) for low in range(0, count, size))


def window_seeds(starts: Sequence[int], seed: int = 0) -> list[int]:
    """One seed per window, drawn from `seed` and its first row, so that all queries of a window share one noise."""
    return [seed + 7919 * int(start) for start in starts]


def query_windows(
    model: Model,
    batch: Batch,
    query: Query,
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    actions: Float32[np.ndarray, "B A a"] | None = None,
) -> Sample:
    """Answer of `model` for every window of `batch`.

    Forward dynamics is given `actions`, or the executed ones. Inverse dynamics is given the true future.
    """
    given = {
        Query.FORWARD: {"actions": batch.action.numpy() if actions is None else actions},
        Query.INVERSE: {"future": batch.future.numpy()},
    }.get(query, {})
    return model.sample(observations(batch), query, seed=seeds, steps=steps, **given)
