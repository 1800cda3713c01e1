"""`wamkit rerun`: an episode and what a model answers about it, to be looked at in Rerun."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wamkit.cli.parse import COMMANDS, Options
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
    episode: Episodes = 0
    """Index of the episode."""
    query: str = ""
    """Query to ask: policy, video, forward, inverse or joint; if not given, joint or another that imagines."""
    stride: Count = 4
    """Steps between two queries."""
    seed: Seed = 0
    """Seed of the noise."""
    held_out: Count = 6
    """Validation episodes a task, as of `wamkit eval`, whose recordings it reads where there are such."""
    data: Path | None = None
    """Data set of the episode; recorded in the environment of the run's data if not given."""
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

    from wamkit.data.format.hub import data_folder
    from wamkit.files import check_output
    from wamkit.runs.config import home, require_run
    from wamkit.types import Query

    if args.query:
        Query(args.query)
    path = require_run(args.run)
    data = None if args.data is None else data_folder(args.data)
    out = args.out or home(path) / f"rerun/episode-{args.episode:03d}.rrd"
    check_output(out, _recording)
    if importlib.util.find_spec("rerun") is None:
        raise ModuleNotFoundError("No module named 'rerun'", name="rerun")
    from wamkit.eval.held_out import acting_model, require_env, validation_store
    from wamkit.eval.recorded import check_shapes
    from wamkit.eval.suites.recording import episode_recording
    from wamkit.files import make_folder
    from wamkit.runs.run import Run
    from wamkit.viz.rerun_recording import save_recording

    opened = Run.open(path)
    model = acting_model(opened, args.embodiment or opened.provenance.env.embodiment)
    query = _query(args.query, model.queries, model.name)
    if data is None:
        env = opened.provenance.env
        if env.env:
            require_env(opened)
        store = validation_store(path, opened.sources, env, opened.home / "eval", args.held_out)
    else:
        from wamkit.data.format.store import Store

        store = Store.open(data)
        check_shapes(opened, model, store)
    episode = episode_recording(model, store, opened.image_size, args.episode, query, args.stride, args.seed)
    make_folder(out.parent)
    save_recording(out, episode, f"{opened.digest[:8]}-{args.episode}-{query}-{args.stride}-{args.seed}")
    if episode.imagined is None:
        print(f"note: this '{model.name}' imagines no frames when asked '{query}', so the recording has none")
    print(f"{out}\nopen it: rerun {out}")


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
