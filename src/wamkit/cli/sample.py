"""`wamkit sample`: one query along one episode, as a video."""

from __future__ import annotations

import io
from dataclasses import KW_ONLY, dataclass
from math import inf
from pathlib import Path

from wamkit.cli.parse import COMMANDS, Options
from wamkit.config import check_bounds


@dataclass(frozen=True)
class Sample(Options):
    """Ask a run one of the five queries along a validation episode.

    Writes QUERY-EPISODE.npz and, if the query predicts images, QUERY-EPISODE.mp4.
    """

    run: Path
    """Run folder."""
    _: KW_ONLY
    query: str = "joint"
    """Query to ask: policy, video, forward, inverse or joint."""
    episode: int = 0
    """Index of the validation episode."""
    stride: int = 4
    """Steps between two queries."""
    seed: int = 0
    """Seed of the noise."""
    out: Path | None = None
    """Folder of the files; samples/ in the run folder if not given."""

    def __post_init__(self) -> None:
        check_bounds(self, episode=(0, inf), stride=(1, inf), seed=(0, 2**63 - 1))


@COMMANDS.register("sample")
def run(args: Sample) -> None:
    """Writes the files and prints their names.

    Raises WamkitError, before any work starts, for a query that the model does not support, and for an `out` that is no
    folder and cannot become one.
    """
    import numpy as np

    from wamkit.eval.held_out import validation_frames
    from wamkit.eval.suites.recording import query_recording
    from wamkit.files import atomic_write, make_folder
    from wamkit.inference.checks import unsupported
    from wamkit.inference.model import load
    from wamkit.runs.run import Run
    from wamkit.types import Query, UnsupportedQuery
    from wamkit.viz.images import difference, save_video, side_by_side

    query, opened = Query(args.query), Run.open(args.run)
    model = load(opened)
    if query not in model.queries:
        raise UnsupportedQuery(unsupported(model.name, query))
    folder = args.out or args.run / "samples"
    make_folder(folder)
    frames = validation_frames(args.run, opened.sources, opened.provenance.env, args.run / "eval", 6)
    answers = query_recording(model, frames, args.episode, query, stride=args.stride, seed=args.seed)
    stem, archive = folder / f"{query}-{args.episode:03d}", io.BytesIO()
    np.savez_compressed(archive, **{k: v for k, v in vars(answers).items() if v is not None})
    atomic_write(stem.with_suffix(".npz"), archive.getvalue())
    print(stem.with_suffix(".npz"))
    if answers.imagined is not None:
        columns = []
        for horizon in range(answers.real.shape[1]):
            for view in range(answers.real.shape[2]):
                real, imagined = answers.real[:, horizon, view], answers.imagined[:, horizon, view]
                columns += [real, imagined, difference(real, imagined)]
        print(save_video(stem.with_suffix(".mp4"), side_by_side(columns), 20 / args.stride, scale=4))
