"""A model asked all along a recording: what `wamkit sample` writes, and what reports show."""

from __future__ import annotations

import io
from dataclasses import dataclass
from math import inf
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from wamkit.checkpoint import load_checkpoint
from wamkit.config import atomic_write, within
from wamkit.data.files import make_folder
from wamkit.data.loader import Frames, Windows
from wamkit.eval.imagination import observations, window_starts
from wamkit.eval.pictures import difference, save_video, side_by_side
from wamkit.family import Family, unsupported
from wamkit.run import load
from wamkit.types import Query, UnsupportedQuery, WamkitError
from wamkit.worlds import held_out_frames


@dataclass(frozen=True)
class Film:
    """One recording asked at every `stride` steps: frames (T, V, 3, H, W) that were real and imagined, F horizons each, and
    imagined scene points (T, F, K, 3)."""

    now: np.ndarray
    real: np.ndarray
    imagined: np.ndarray | None
    actions: np.ndarray | None
    executed: np.ndarray
    points: np.ndarray | None = None


def film(model: Family, frames: Frames, episode: int, query: Query, *, stride: int = 2, seed: int = 0) -> Film:
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
    return Film(batch.obs.numpy(), batch.future.numpy(), out.future, out.actions, batch.action.numpy(), out.points)


def sample_episode(
    run: Path, query: Query, episode: int, *, stride: int = 4, seed: int = 0, out: Path | None = None
) -> list[Path]:
    """What `wamkit sample` does: one query along a held-out recording, as an npz and, where pictures come out, a video.

    Raises WamkitError, before any work starts, for an argument that is out of range, a query that the model doesn't
    know, or an `out` that is no folder and cannot become one.
    """
    given = SimpleNamespace(episode=episode, stride=stride, seed=seed)
    within(given, episode=(0, inf), stride=(1, inf), seed=(0, 2**63 - 1))
    model, saved = load(run), load_checkpoint(run)
    if (query := Query(query)) not in model.queries:
        raise UnsupportedQuery(unsupported(model.name, query))
    folder = out or run / "samples"
    make_folder(folder)
    f = film(model, held_out_frames(run, saved.config, 6), episode, query, stride=stride, seed=seed)
    stem, archive = folder / f"{query}-{episode:03d}", io.BytesIO()
    np.savez_compressed(archive, **{k: v for k, v in vars(f).items() if v is not None})
    atomic_write(stem.with_suffix(".npz"), archive.getvalue())
    paths = [stem.with_suffix(".npz")]
    if f.imagined is not None:
        views = range(f.real.shape[2])
        columns = [
            x
            for k in range(f.real.shape[1])
            for v in views
            for x in (f.real[:, k, v], f.imagined[:, k, v], difference(f.real[:, k, v], f.imagined[:, k, v]))
        ]
        paths.append(save_video(stem.with_suffix(".mp4"), side_by_side(columns), 20 / stride, scale=4))
    return paths
