"""Remedies: what to do about a damaged or contradictory data set depends on who made it.

Readers of single files do not know that. They advise `RESTORE`, and whoever opens a data set replaces that by the
advice for this one.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from wamkit import files
from wamkit.data.format import checksums
from wamkit.data.format.parquet import RESTORE
from wamkit.files import StoreError, read_json

IMPORTED = "import.json"
"""The file in which an import records its source."""
_GENERIC = (RESTORE, files.RESTORE)
_Opener = TypeVar("_Opener", bound=Callable[..., Any])
_HUB = re.compile(r"/datasets--([^/]+?)--([^/]+)/snapshots/")


def remedy(root: Path) -> str:
    """The advice for the data set at `root`: the command that makes it again, where it is known."""
    imported, info = _content(root / IMPORTED), _content(root / "meta/info.json")
    if imported:
        source, verb = str(imported.get("source"))[:200], "labelled" if is_labelled(imported) else "imported"
        return f"it was {verb} from {source}: remove {root} and run `{_command(root, imported)}` again"
    if not info or (root / checksums.FILE).exists() or (root / "collect.json").exists():
        return RESTORE
    if name := _HUB.search(f"{root.resolve()}/"):
        again = f"fetch it again: hf download {name[1]}/{name[2]} --repo-type dataset --force-download"
    else:
        again = "fetch it again where it comes from (of the hub: hf download NAME --repo-type dataset)"
    version = str(info.get("codebase_version"))[:20]
    return f"wamkit did not make this data set (it is LeRobotDataset {version}): {again}, or ask its maker"


LABELLED = "label"
"""The format in import.json of a data set that `wamkit label` made: its episodes come from another data set."""


def is_labelled(imported: Mapping[str, Any]) -> bool:
    """True if `imported`, the content of import.json, is that of a data set that `wamkit label` made."""
    return imported.get("format") == LABELLED


def _command(root: Path, imported: Mapping[str, Any]) -> str:
    """The command that made the data set at `root`. imported: the content of its import.json."""
    source = str(imported.get("source"))[:200]
    if is_labelled(imported):
        return f"wamkit label {source} --with {str(imported.get('run'))[:200]} --out {root}"
    return f"wamkit import {str(imported.get('format'))[:40]} {source} --out {root}"


@contextlib.contextmanager
def advised(root: Path) -> Iterator[None]:
    """Replaces the general advice in errors raised inside by that for the data set at `root`."""
    try:
        yield
    except StoreError as error:
        if (message := with_advice(str(error), lambda: remedy(root))) != str(error):
            raise StoreError(message) from error
        raise


def advising(opener: _Opener) -> _Opener:
    """A class method that opens the data set in its first argument, with the advice for that one in its errors."""

    @functools.wraps(opener)
    def opened(cls: type, root: Any, *args: Any, **more: Any) -> Any:
        with advised(Path(root)):
            return opener(cls, root, *args, **more)

    return cast(_Opener, opened)


def with_advice(message: str, advice: Callable[[], str]) -> str:
    """`message` with the text that `advice()` returns in place of the general advice, if that is in it."""
    for general in _GENERIC:
        if general in message:
            message = message.replace(general, advice())
    return message


def _content(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path) if path.exists() else None
    except StoreError:  # the advice is general then; the fault itself has been named
        content = None
    return content if isinstance(content, dict) else {}
