"""The recorded episodes that commands ask a run about."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from wamkit.cli.parse import peek
from wamkit.types import WamkitError

if TYPE_CHECKING:
    from wamkit.data.format.store import Store
    from wamkit.inference.model import Model
    from wamkit.runs.run import Run


def trained_on(folder: Path) -> Path:
    """The data set of the command that trained a run; of one on the Hub the commit that it learned from.

    Raises WamkitError where none is known or it is gone.
    """
    from wamkit.eval.report.card import history
    from wamkit.hub.names import remote_name
    from wamkit.runs.run import Run

    if hub := Run.open(folder).provenance.hub:
        return Path(hub)
    given = peek(shlex.split(history(folder)[1] or ""), "--data", "")
    if remote_name(given) is None and not (given and (Path(given) / "meta").is_dir()):
        where = f"its data were {given}, where there is no data set now" if given else "nothing says what its data were"
        raise WamkitError(f"{folder}: {where}; name recordings, --data DATA")
    return Path(given)


def recordings(run: Run, data: Path | None) -> Store | None:
    """The data set `data`, or the run's own where no environment made it; None where an environment records others.

    Raises StoreError for bad data, WamkitError where nothing says what the run's own were, or they are gone.
    """
    from wamkit.data.format.hub import data_folder
    from wamkit.data.format.store import Store

    if data is None and run.provenance.env.env:
        return None
    return Store.open(data_folder(data or trained_on(run.path)))


def chosen_episode(run: Run, model: Model, store: Store, episode: int | None) -> int:
    """`episode` of `store`, or the first that `run` was not trained on; says so where it was trained on the one.

    Raises EvaluationError where the data have other cameras or vectors than the model.
    """
    from wamkit.eval.recorded import check_shapes, unseen

    check_shapes(run, model, store)
    left = unseen(run, store)
    if episode is None:
        episode = int(left.argmax())
    if episode < len(left) and not left[episode]:
        print(f"note: {run.label} was trained on episode {episode} of {store.root}", flush=True)
    return episode
