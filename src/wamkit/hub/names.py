"""Names of repositories on the Hub, and the folders of its cache that they are downloaded to.

    hf://USER/NAME              the branch main
    hf://USER/NAME@REVISION     a branch, a tag or a commit
    hf://USER/NAME:FIRST-LAST   of a data set, the episodes from FIRST up to, but excluding, LAST

A run may be named without `hf://` where no file or folder has that name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from wamkit.errors import WamkitError

Kind = Literal["model", "dataset"]
"""Kinds of repositories."""

COMMIT = re.compile("[0-9a-f]{40}")
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}"
_NAME = re.compile(
    rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[\w.-]+(?:/[\w.-]+)*))?(?::(?P<episodes>\d+-\d+))?", re.A
)
_PREFIX = re.compile("hf:/{1,2}")  # a Path has one slash
_CACHED = re.compile(r".*/(model|dataset)s--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})(?:/|$)(.*)")
_EPISODES = re.compile(r"\.cache/episodes-(\d+)-(\d+)(?:/|$)")


class HubError(WamkitError):
    """A repository on the Hub cannot be named, found, read, trusted or written."""


@dataclass(frozen=True)
class HubName:
    """The name of a repository at a revision.

    repo: "user/name".
    revision: a branch, a tag or a commit.
    episodes: of a data set, the (first, last) episodes, without the last; None for all.
    """

    repo: str
    revision: str = "main"
    episodes: tuple[int, int] | None = None

    def __str__(self) -> str:
        """The name as it is written; that of a repository of another hub is the same."""
        at = "" if self.revision == "main" else f"@{self.revision}"
        return f"hf://{self.repo}{at}" + (":{}-{}".format(*self.episodes) if self.episodes else "")

    @property
    def is_pinned(self) -> bool:
        """True if the revision is a commit, which never changes."""
        return COMMIT.fullmatch(self.revision) is not None

    def at(self, commit: str) -> HubName:
        """The same name, pinned to a commit."""
        return replace(self, revision=commit)


def hub_name(word: str | Path, *, prefixed: bool = True) -> HubName | None:
    """The repository that `word` names; None if it names a file or a folder of this machine.

    prefixed: take names with `hf://` alone. Without, "user/name" is one too where neither it nor the folder "user"
        exists.

    Raises HubError for a malformed name after `hf://`.
    """
    text = str(word)
    prefix = _PREFIX.match(text)
    if prefix is None and (prefixed or not _may_be_remote(Path(text))):
        return None
    found = _NAME.fullmatch(text[prefix.end() :] if prefix else text)
    if found is None or "--" in found["repo"] or ".." in text:
        if prefix is None:
            return None
        raise HubError(f"'{text}' names nothing on the Hub: write hf://USER/NAME, hf://USER/NAME@REVISION")
    episodes = tuple(map(int, found["episodes"].split("-"))) if found["episodes"] else None
    if episodes is not None and not episodes[0] < episodes[1]:
        raise HubError(f"'{text}': the first episode must be below the last, as in hf://{found['repo']}:0-10")
    return HubName(found["repo"], found["revision"] or "main", episodes)  # type: ignore[arg-type]


def _may_be_remote(path: Path) -> bool:
    return not path.is_absolute() and not path.exists() and not Path(path.parts[0] if path.parts else "").exists()


def cache_place(name: HubName, kind: Kind, cache: Path) -> Path:
    """The folder of a pinned name in a cache of the Hub."""
    return cache / f"{kind}s--{name.repo.replace('/', '--')}" / "snapshots" / name.revision


def origin(path: str | Path) -> HubName | None:
    """The name, pinned, of what lies at `path` in a cache of the Hub, whoever downloaded it; None elsewhere."""
    found = _CACHED.fullmatch(Path(path).absolute().as_posix())
    if found is None:
        return None
    episodes = _EPISODES.match(found[5])
    return HubName(f"{found[2]}/{found[3]}", found[4], (int(episodes[1]), int(episodes[2])) if episodes else None)


def named(path: str | Path) -> str:
    """The path as a command line names it: what was downloaded by its pinned name on the Hub."""
    return str(origin(path) or path)
