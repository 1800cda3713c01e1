"""`wamkit sample`: one query along one episode, as a video."""

from __future__ import annotations

import io
import zipfile
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from wamkit.cli.parse import COMMANDS, Options
from wamkit.cli.recordings import chosen_episode, recordings
from wamkit.config import Count, Episodes, Seed


@dataclass(frozen=True)
class Sample(Options):
    """Ask a run one of the five queries along a validation episode, or along a recorded one (--data).

    Writes QUERY-EPISODE.npz and, if the query predicts images, QUERY-EPISODE.mp4. Another stride, seed,
    number of episodes or data set is part of the names.
    """

    run: Path
    """Run folder, or file of `wamkit export`."""
    _: KW_ONLY
    query: str = "joint"
    """Query to ask: policy, video, forward, inverse or joint."""
    episode: Episodes | None = None
    """Index of the episode; if not given, the first, of recordings the first that the run was not trained on."""
    stride: Count = 4
    """Steps between two queries."""
    seed: Seed = 0
    """Seed of the noise."""
    held_out: Count = 6
    """Validation episodes a task, as of `wamkit eval`, whose recordings it reads where there are such."""
    data: Path | None = None
    """Data set of the episode. If not given, the run's own where no environment made it; else it is recorded in the
    environment."""
    embodiment: str = ""
    """Data set of a mixture whose robot recorded the episode."""
    out: Path | None = None
    """Folder of the files; samples/ in the run folder if not given."""


@COMMANDS.register("sample")
def run(args: Sample) -> None:
    """Writes the files and prints their names.

    Raises WamkitError, before any work starts, for a query that the model does not support, and for an `out` that is no
    folder and cannot become one.
    """
    import numpy as np

    from wamkit.files import atomic_write, make_folder
    from wamkit.runs.config import home, require_run
    from wamkit.types import Query, UnsupportedQuery

    query = Query(args.query)
    path = require_run(args.run)
    folder = args.out or home(path) / "samples"
    _checked(folder, args, args.episode or 0)
    from wamkit.data.loading.dataset import open_frames
    from wamkit.eval.held_out import acting_model, require_env, validation_store
    from wamkit.eval.suites.recording import query_recording
    from wamkit.inference.checks import unsupported
    from wamkit.runs.run import Run
    from wamkit.viz.images import difference, save_video, side_by_side

    opened = Run.open(path)
    embodiment = args.embodiment or opened.provenance.env.embodiment
    model = acting_model(opened, embodiment)
    if query not in model.queries:
        raise UnsupportedQuery(unsupported(model.name, query))
    store, episode = recordings(opened, args.data), args.episode or 0
    if store is not None:
        episode = chosen_episode(opened, model, store, args.episode)
    stem = _checked(folder, args, episode)
    make_folder(folder)
    if store is None:
        require_env(opened)
        env = opened.provenance.env
        store = validation_store(path, opened.learned_from, env, opened.home / "eval", args.held_out)
    frames = open_frames(store, opened.image_size)[0]
    answers = query_recording(model, frames, episode, query, stride=args.stride, seed=args.seed)
    archive = io.BytesIO()
    np.savez_compressed(archive, **{k: v for k, v in vars(answers).items() if v is not None})
    atomic_write(stem.with_suffix(".npz"), archive.getvalue())
    print(stem.with_suffix(".npz"))
    if answers.imagined is not None:
        columns = []
        for horizon in range(answers.real.shape[1]):
            for view in answers.views:
                real, imagined = answers.real[:, horizon, view], answers.imagined[:, horizon, view]
                columns += [real, imagined, difference(real, imagined)]
        print(save_video(stem.with_suffix(".mp4"), side_by_side(columns), 20 / args.stride, scale=4))


def _checked(folder: Path, args: Sample, episode: int) -> Path:
    """The files without their endings. Raises WamkitError where one of them could not be written."""
    from wamkit.files import check_output

    other = {k: getattr(args, k) for k in ("stride", "seed", "held_out") if getattr(args, k) != getattr(Sample, k)}
    other |= {} if args.data is None else {"of": args.data.name}
    asked = "".join(f"-{k.replace('_', '-')}-{value}" for k, value in other.items())
    stem = folder / f"{args.query}-{episode:03d}{asked}"
    check_output(stem.with_suffix(".npz"), _answers)
    check_output(stem.with_suffix(".mp4"), lambda path: _answers(path.with_suffix(".npz")))
    return stem


def _answers(path: Path) -> bool:
    """True if the file holds answers that this command wrote."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return {"now.npy", "real.npy"} <= set(archive.namelist())
