"""Queries about windows of recorded episodes: batches of rows, one noise per window, and what each query is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float32, Int64

from wamkit.data.embodiment import Embodiment
from wamkit.data.loading.windows import Frames, observations, window_starts
from wamkit.inference.model import Model
from wamkit.types import Batch, Query, Sample, Spec

BATCH = 64


def whole_windows(frames: Frames, spec: Spec, stride: int) -> Int64[np.ndarray, " N"]:
    """First rows of every `stride`-th window whose action chunk and futures end within its episode."""
    return window_starts(frames, max(*spec.frame_offsets, spec.chunk), stride)


def answerable(batch: Batch, robot: Embodiment | None) -> Batch:
    """Windows of recorded episodes with the cameras that a model sees, as its answers have them.

    robot: the embodiment that acts; None for a model whose views are the cameras.

    Of a robot, cameras after the last one that the model sees are left out. Others that it does not see are black, and
    `view_valid` says so, as it does where the recording lacks a view.
    """
    if robot is None:
        return batch
    sees = torch.from_numpy(robot.seen_cameras())
    V = len(sees)
    valid = sees.repeat(len(batch), 1) if batch.view_valid is None else batch.view_valid[:, :V] & sees
    images = {k: getattr(batch, k)[..., :V, :, :, :] * sees[:, None, None, None] for k in ("obs", "future", "past")}
    return replace(batch, **images, view_valid=None if valid.all() else valid)


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
