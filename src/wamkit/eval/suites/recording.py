"""Queries along one recorded episode, for `wamkit sample` and the videos of reports."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wamkit.data.format.store import Store
from wamkit.data.loading.dataset import open_frames
from wamkit.data.loading.windows import Frames, Windows
from wamkit.eval.queries import answerable, query_windows, whole_windows
from wamkit.inference.model import Model
from wamkit.types import Query, WamkitError
from wamkit.viz.rerun_recording import EpisodeRecording


@dataclass(frozen=True)
class RecordedQuery:
    """Answers at T instants of one episode.

    now: uint8 (T, V, 3, H, W), the observed frames.   real, imagined: uint8 (T, F, V, 3, H, W), true and imagined
    futures.   actions, executed: float32 (T, A, a), answered and executed chunks.   point_cloud: (T, F, K, 3), imagined
    scene points. None where the model does not answer that.   views: those that the episode has and the model sees;
    others are black.
    """

    now: np.ndarray
    real: np.ndarray
    imagined: np.ndarray | None
    actions: np.ndarray | None
    executed: np.ndarray
    point_cloud: np.ndarray | None = None
    views: tuple[int, ...] = (0,)


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
    batch = answerable(Windows(frames, model.spec, seed=0, batch_size=1).gather(starts), model.embodiment)
    out = query_windows(model, batch, query, [seed] * len(starts))
    views = range(batch.obs.shape[1]) if batch.view_valid is None else np.flatnonzero(batch.view_valid[0]).tolist()
    now, real, executed = (x.numpy() for x in (batch.obs, batch.future, batch.action))
    return RecordedQuery(now, real, out.future, out.actions, executed, out.point_cloud, tuple(views))


def episode_recording(
    model: Model, store: Store, size: tuple[int, int], episode: int, query: Query, stride: int, seed: int
) -> EpisodeRecording:
    """An episode of `store`, and answers to `query` at every `stride` steps of it, for `viz.rerun_recording`.

    size: (H, W) to resize its images to, those of the model.   Raises as `query_recording`.
    """
    frames, layout = open_frames(store, size)[0], store.layout
    answers = query_recording(model, frames, episode, query, stride=stride, seed=seed)
    rows = np.flatnonzero(frames.episode == episode)
    return EpisodeRecording(
        text=frames.text_at(rows[0]),
        fps=layout.fps,
        cameras=store.cameras,
        state_names=layout.proprio_names,
        action_names=layout.action_names,
        images=frames.images[rows],
        state=frames.proprio[rows],
        action=frames.action[rows],
        stride=stride,
        horizons=model.spec.frame_offsets,
        imagined=answers.imagined,
        answered=answers.actions,
    )
