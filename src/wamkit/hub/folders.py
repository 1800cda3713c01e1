"""Folders of other programs' models: on this machine, or downloaded from the Hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from wamkit.hub.names import HubError, hub_name

PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
"""Endings of files that are never read."""


def model_folder(path: str, places: Sequence[str], wanted: Callable[[str], bool]) -> Path:
    """The folder `path`; or, for a name on the Hub, that of its download.

    places: folders of the repository that are downloaded, "" for its top.   wanted: says which files of them.

    Raises HubError where there is none, and where it cannot be downloaded.
    """
    if Path(path).is_dir():
        return Path(path)
    if Path(path).exists() or (name := hub_name(path, prefixed=False)) is None:
        raise HubError(f"there is no folder {path}, and it is no name on the Hub, USER/NAME, either")
    from wamkit.hub.download import snapshot

    found = snapshot(name, "model")
    if found.reached:
        found.fetch([file for place in places for file in found.listing(place) if wanted(file)])
        found.remember()
    return found.folder
