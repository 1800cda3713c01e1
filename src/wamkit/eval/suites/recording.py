"""Queries along one recorded episode, for `wamkit sample` and the videos of reports."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wamkit.data.loading.windows import Frames, Windows
from wamkit.eval.queries import query_windows, whole_windows
from wamkit.inference.model import Model
from wamkit.types import Query, WamkitError


@dataclass(frozen=True)
class RecordedQuery:
    """Answers at T instants of one episode.

    now: uint8 (T, V, 3, H, W), the observed frames.   real, imagined: uint8 (T, F, V, 3, H, W), true and imagined
    futures.   actions, executed: float32 (T, A, a), answered and executed chunks.   point_cloud: (T, F, K, 3), imagined
    scene points. None where the model does not answer that.
    """

    now: np.ndarray
    real: np.ndarray
    imagined: np.ndarray | None
    actions: np.ndarray | None
    executed: np.ndarray
    point_cloud: np.ndarray | None = None


def query_recording(
    model: Model, frames: Frames, episode: int, query: Query, *, stride: int = 2, seed: int = 0
) -> RecordedQuery:
    """Asks `query` at every `stride` steps of `episode`, with one noise. Raises WamkitError for an episode without
    windows.
    """
    starts = whole_windows(frames, model.spec, stride)
    starts = starts[frames.episode[starts] == episode]
    if not len(starts):
        raise WamkitError(
            f"episode {episode} of {frames.episode[-1] + 1}, counted from 0, is missing or shorter than a window: "
            f"name another one"
        )
    batch = Windows(frames, model.spec, seed=0, batch_size=1).gather(starts)
    out = query_windows(model, batch, query, [seed] * len(starts))
    return RecordedQuery(
        batch.obs.numpy(), batch.future.numpy(), out.future, out.actions, batch.action.numpy(), out.point_cloud
    )
