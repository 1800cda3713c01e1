"""`wamkit validate`: the contents and the errors of a data set."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from wamkit.cli.parse import COMMANDS, Options
from wamkit.errors import WamkitError


@dataclass(frozen=True)
class Validate(Options):
    """Report the contents and the errors of a data set on one page.

    Exits with 1 if there are errors.
    """

    data: Path
    """Data set folder."""
    _: KW_ONLY
    out: Path | None = None
    """File of the page; validate.html in the data set folder if not given."""
    every_frame: bool = False
    """Decode every frame of every video, instead of a few of each."""


@COMMANDS.register("validate")
def run(args: Validate) -> None:
    """Writes the page and prints the findings. Raises WamkitError if one of them is an error."""
    from wamkit.data.format.episode_index import require_data
    from wamkit.data.format.metadata_io import load_metadata
    from wamkit.data.format.store import Store
    from wamkit.data.validate import summary, validate
    from wamkit.files import atomic_write, check_output
    from wamkit.viz.dataset_report import dataset_page

    page = args.out or args.data / "validate.html"
    require_data(args.data)
    check_output(page)
    findings = validate(args.data, every_frame=args.every_frame)
    store, metadata = Store.open(args.data), load_metadata(args.data)
    atomic_write(page, dataset_page(store, metadata, findings).encode())
    for name, value in summary(store, metadata):
        print(f"  {name:<10} {value}")
    for finding in findings:
        print(finding)
    print(f"page: {page}")
    if errors := sum(f.level == "error" for f in findings):
        raise WamkitError(f"{errors} errors in {args.data}")
