"""`wamkit report`: several evaluated runs on one page."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from wamkit.cli.parse import COMMANDS, Options


@dataclass(frozen=True)
class ReportRuns(Options):
    """Show several evaluated runs side by side on one page.

    Writes the page and a JSON file of the same name.
    """

    runs: tuple[Path, ...]
    """Run folders or files of `wamkit export`, each with an evaluation by `wamkit eval` under the same protocol."""
    _: KW_ONLY
    out: Path = Path("report.html")
    """File of the page."""
    evaluation: str = ""
    """Folder in the first run's eval/ of the evaluation to show, as `wamkit eval` printed it; by default eval/ itself.
    Of the other runs it is the one with the same options."""


@COMMANDS.register("report")
def run(args: ReportRuns) -> None:
    """Prints the figures that the runs share, and writes the page."""
    from wamkit.files import check_output
    from wamkit.runs.config import home, require_run

    folders = [home(require_run(path)) for path in args.runs]
    check_output(args.out)
    check_output(args.out.with_suffix(".json"))
    from wamkit.eval.report.overview import overview

    print(f"page: {overview(folders, args.out, args.evaluation)}")
