"""A model asked all along a recording: what `wamkit sample` writes, and what reports show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wamkit.data.loading.windows import Frames, Windows, observations, window_starts
from wamkit.inference.model import Model
from wamkit.types import Query, WamkitError


@dataclass(frozen=True)
class RecordedQuery:
    """One recording asked at every `stride` steps: frames (T, V, 3, H, W) that were real and imagined, F horizons each, and
    imagined scene points (T, F, K, 3)."""

    now: np.ndarray
    real: np.ndarray
    imagined: np.ndarray | None
    actions: np.ndarray | None
    executed: np.ndarray
    point_cloud: np.ndarray | None = None


def query_recording(
    model: Model, frames: Frames, episode: int, query: Query, *, stride: int = 2, seed: int = 0
) -> RecordedQuery:
    """Asks `query` at every `stride` steps of recording `episode`."""
    reach = max(*model.spec.frame_offsets, model.spec.chunk)
    starts = window_starts(frames, reach, stride)
    starts = starts[frames.episode[starts] == episode]
    if not len(starts):
        raise WamkitError(
            f"there is no recording {episode} longer than {reach} steps; there are {frames.episode[-1] + 1}, numbered from 0"
        )
    batch = Windows(frames, model.spec, seed=0, batch_size=1).gather(starts)
    given = {Query.FORWARD: {"actions": batch.action.numpy()}, Query.INVERSE: {"future": batch.future.numpy()}}.get(
        query, {}
    )
    out = model.sample(observations(batch), query, seed=[seed] * len(starts), **given)
    return RecordedQuery(
        batch.obs.numpy(), batch.future.numpy(), out.future, out.actions, batch.action.numpy(), out.point_cloud
    )
