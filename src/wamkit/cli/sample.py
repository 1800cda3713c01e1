"""`wamkit sample`: one query along one episode, as a video."""

from __future__ import annotations

import io
from math import inf
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from wamkit.config import check_bounds
from wamkit.eval.held_out import validation_frames
from wamkit.eval.suites.recording import query_recording
from wamkit.files import atomic_write, make_folder
from wamkit.inference.checks import unsupported
from wamkit.inference.model import load
from wamkit.runs.checkpoint import load_checkpoint
from wamkit.types import Query, UnsupportedQuery
from wamkit.viz.images import difference, save_video, side_by_side


def sample_episode(
    run: Path, query: Query, episode: int, *, stride: int = 4, seed: int = 0, out: Path | None = None
) -> list[Path]:
    """What `wamkit sample` does: one query along a held-out recording, as an npz and, where pictures come out, a video.

    Raises WamkitError, before any work starts, for an argument that is out of range, a query that the model doesn't
    know, or an `out` that is no folder and cannot become one.
    """
    given = SimpleNamespace(episode=episode, stride=stride, seed=seed)
    check_bounds(given, episode=(0, inf), stride=(1, inf), seed=(0, 2**63 - 1))
    model, saved = load(run), load_checkpoint(run)
    if (query := Query(query)) not in model.queries:
        raise UnsupportedQuery(unsupported(model.name, query))
    folder = out or run / "samples"
    make_folder(folder)
    f = query_recording(model, validation_frames(run, saved.config, 6), episode, query, stride=stride, seed=seed)
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
