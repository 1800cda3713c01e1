"""`wamkit browse`: a data set in the browser."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from wamkit.cli.parse import COMMANDS, Options
from wamkit.config import Between


@dataclass(frozen=True)
class Browse(Options):
    """Show a data set in the browser: videos in step with states, actions and texts.

    Ctrl-C ends it.
    """

    data: Path
    """Data set folder."""
    _: KW_ONLY
    port: Annotated[int, Between(0, 65535)] = 8000
    """Port of the page; 0 takes any that is free."""
    host: str = "127.0.0.1"
    """Address of the page. With another address than this one, others on the network can see the data."""
    open_browser: bool = True
    """Open the page in a browser, where there is a screen."""


@COMMANDS.register("browse")
def run(args: Browse) -> None:
    """Serves the page until Ctrl-C."""
    from wamkit.data.format.hub import data_folder
    from wamkit.viz.dataset_browser import browse

    browse(data_folder(args.data), host=args.host, port=args.port, open_browser=args.open_browser)
