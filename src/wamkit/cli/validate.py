"""`wamkit validate`: the contents and the errors of a data set."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from wamkit.cli.parse import COMMANDS, Options
from wamkit.errors import WamkitError
from wamkit.hub.names import HubName, named, object_origin, origin


@dataclass(frozen=True)
class Validate(Options):
    """Report the contents and the errors of a data set on one page.

    Exits with 1 if there are errors.
    """

    data: Path
    """Data set folder."""
    _: KW_ONLY
    out: Path | None = None
    """File of the page; validate-NAME.html in the current folder if not given, never in the data set."""
    accept: bool = False
    """Record checksums of all files as they are now. Without it, data that changed after it was recorded is refused,
    for instance by LeRobot's tools."""
    every_frame: bool = False
    """Decode every frame of every video, instead of a few of each."""


@COMMANDS.register("validate")
def run(args: Validate) -> None:
    """Writes the page and prints the findings. Raises WamkitError if one of them is an error."""
    from wamkit.data.format.hub import data_folder, require_own
    from wamkit.data.format.metadata_io import load_metadata
    from wamkit.data.format.store import Store
    from wamkit.data.validate import accept, grouped, summary, validate
    from wamkit.files import atomic_write, check_output
    from wamkit.viz.dataset_report import dataset_page

    data = data_folder(args.data)
    page = args.out or _page_of(data)
    check_output(page)
    if args.accept:
        require_own(data)
        changes = accept(data)
        print("\n".join(["accepted:", *(f"  {name}" for name in changes)] if changes else ["nothing has changed"]))
    findings = validate(data, every_frame=args.every_frame)
    store, metadata = Store.open(data, mend=False), load_metadata(data)
    atomic_write(page, dataset_page(store, metadata, findings).encode())
    for name, value in summary(store, metadata):
        print(f"  {name:<10} {value}")
    for finding in grouped(findings):
        print(finding)
    print(f"page: {page}")
    if errors := sum(f.level == "error" for f in findings):
        raise WamkitError(f"{errors} errors in {named(data)}")


def _page_of(data: Path) -> Path:
    """The file of the page, in the current folder, or beside the data set where that is the current folder."""
    root, here, found = data.resolve(), Path.cwd(), origin(data) or object_origin(data)
    place = found.repo if isinstance(found, HubName) else found.path if found else root.name
    name = place.replace("/", "--")
    return (root.parent if here.is_relative_to(root) else here) / f"validate-{name}.html"
