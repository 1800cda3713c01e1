"""`wamkit compare`: many recipes under one budget."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from math import inf
from pathlib import Path
from typing import Annotated

from wamkit.cli.parse import COMMANDS, Options
from wamkit.config import AtMost, Between, Count, Processes


@dataclass(frozen=True)
class Compare(Options):
    """Train and evaluate the rows of a comparison under one budget, and write a page.

    The same command continues, and finished jobs are kept.
    """

    name: str
    """Name of the comparison; `wamkit list` names all."""
    _: KW_ONLY
    data: Path = Path("data/demos")
    """Data set folder, from `wamkit collect`."""
    out: Path = Path("docs/results")
    """Folder of the page. Its folder jobs/ receives one small JSON file for each finished job."""
    work: Path = Path("runs/compare")
    """Folder of the runs. It can be deleted once the JSON files exist."""
    only: tuple[str, ...] = ()
    """Rows to run; all if not given."""
    seeds: Count | None = None
    """Number of training seeds of each row to run; all if not given."""
    episodes: Annotated[int, Between(1, inf), AtMost(10**6)] | None = None
    """Held-out reset states a task; those of the comparison's protocol if not given, 20 where it has none."""
    held_out: Annotated[int, Between(1, inf), AtMost(10**6)] = 6
    """Validation episodes a task (one more of them off-expert) on which imagination is scored."""
    processes: Processes = 2
    """Worker processes of the evaluation."""
    executor: str = "local"
    """Executor of the jobs: local, processes of this machine; or ray, the cluster that RAY_ADDRESS names, else one
    that is started on this machine. The figures are the same."""
    cache_dir: Path | None = None
    """Folder of all caches; beside the data if not given, or in the user's cache where that cannot be written."""
    page: bool = False
    """Write the page from the JSON files that exist, and run nothing."""


@COMMANDS.register("compare")
def run(args: Compare) -> None:
    """Runs the jobs that are not finished, and writes the page."""
    from wamkit.data.format.hub import data_folder
    from wamkit.executors.base import executing_on
    from wamkit.experiments.comparisons import COMPARISONS
    from wamkit.files import caching_in, check_output

    COMPARISONS.get(args.name)().check_rows(args.name, args.only)
    data = data_folder(args.data)
    check_output(args.out / f"{args.name}.md")
    with caching_in(args.cache_dir), executing_on(args.executor):
        from wamkit.experiments.run import Setup, compare, write_comparison

        setup = Setup(data, args.out, args.work, args.episodes, args.held_out, args.processes)
        page = (
            write_comparison(args.name, setup)
            if args.page
            else compare(args.name, setup, only=args.only, seeds=args.seeds)
        )
    print(f"page: {page}")
