"""`wamkit rerun`: an episode and what a model answers about it, to be looked at in Rerun."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wamkit.cli.parse import COMMANDS, Options
from wamkit.cli.recordings import chosen_episode, recordings
from wamkit.config import Count, Episodes, Seed

if TYPE_CHECKING:
    from wamkit.types import Query


@dataclass(frozen=True)
class Rerun(Options):
    """Write a validation episode with the imagined future as a recording of Rerun.

    It has cameras, imagined frames, state, executed and answered actions on one timeline. The viewer of Rerun opens it:
    `rerun FILE.rrd`.
    """

    run: Path
    """Run folder, or file of `wamkit export`."""
    _: KW_ONLY
    episode: Episodes | None = None
    """Index of the episode; if not given, the first, of recordings the first that the run was not trained on."""
    query: str = ""
    """Query to ask: policy, video, forward, inverse or joint; if not given, joint or another that imagines."""
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
    """File to write, *.rrd; rerun/episode-N.rrd in the run folder if not given."""


@COMMANDS.register("rerun")
def run(args: Rerun) -> None:
    """Writes the file and prints how to open it.

    Raises WamkitError, before any work starts, for a query that the model does not support, and where `out` cannot be
    written or holds another file.
    """
    import importlib.util

    from wamkit.files import check_output
    from wamkit.runs.config import home, require_run
    from wamkit.types import Query

    if args.query:
        Query(args.query)
    path = require_run(args.run)
    check_output(_file(args, home(path), args.episode or 0), _recording)
    if importlib.util.find_spec("rerun") is None:
        raise ModuleNotFoundError("No module named 'rerun'", name="rerun")
    from wamkit.eval.held_out import acting_model, require_env, validation_store
    from wamkit.eval.suites.recording import episode_recording
    from wamkit.files import make_folder
    from wamkit.runs.run import Run
    from wamkit.viz.rerun_recording import save_recording

    opened = Run.open(path)
    embodiment = args.embodiment or opened.provenance.env.embodiment
    model = acting_model(opened, embodiment)
    query = _query(args.query, model.queries, model.name)
    store, number = recordings(opened, args.data), args.episode or 0
    if store is not None:
        number = chosen_episode(opened, model, store, args.episode)
    out = _file(args, home(path), number)
    check_output(out, _recording)
    if store is None:
        require_env(opened)
        env = opened.provenance.env
        store = validation_store(path, opened.learned_from, env, opened.home / "eval", args.held_out)
    episode = episode_recording(model, store, opened.image_size, number, query, args.stride, args.seed)
    make_folder(out.parent)
    save_recording(out, episode, f"{opened.digest[:8]}-{number}-{query}-{args.stride}-{args.seed}")
    if episode.imagined is None:
        print(f"note: this '{model.name}' imagines no frames when asked '{query}', so the recording has none")
    print(f"{out}\nopen it: rerun {out}")


def _file(args: Rerun, folder: Path, episode: int) -> Path:
    return args.out or folder / f"rerun/episode-{episode:03d}.rrd"


def _query(asked: str, known: frozenset[Query], name: str) -> Query:
    """The query asked for, or the first that the model answers. Raises UnsupportedQuery where it answers it not."""
    from wamkit.inference.checks import unsupported
    from wamkit.types import Query, UnsupportedQuery

    if asked and asked not in known:
        raise UnsupportedQuery(unsupported(name, Query(asked)))
    order = (Query.JOINT, Query.FORWARD, Query.VIDEO, Query.POLICY, Query.INVERSE)
    return Query(asked) if asked else next(q for q in order if q in known)


def _recording(path: Path) -> bool:
    """True if the file is a recording that this command wrote."""
    with path.open("rb") as file:
        start = file.read(1 << 16)
    return start.startswith(b"RRF") and b"wamkit" in start
