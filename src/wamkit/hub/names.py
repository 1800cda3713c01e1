"""Names of repositories on the Hub, and the folders of its cache that they are downloaded to; URLs of object stores.

    hf://USER/NAME              the branch main
    hf://USER/NAME@REVISION     a branch, a tag or a commit
    hf://USER/NAME:FIRST-LAST   of a data set, the episodes from FIRST up to, but excluding, LAST
    s3://BUCKET/FOLDER          and :FIRST-LAST; so gs://, and other schemes that fsspec knows

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
_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+):/{1,3}(?P<path>[^/].*?)/*(?::(?P<episodes>\d+-\d+))?")
_CACHED = re.compile(r".*/(model|dataset)s--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})(?:/|$)(.*)")
URL_FILE = "url.txt"
"""File of the cache of `hub.objects` that holds a URL."""
_KEPT = re.compile(r"(.*)/snapshots/([0-9a-f]{32})(?:/.*)?")
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
    return HubName(found["repo"], found["revision"] or "main", _first_last(found["episodes"], text))


@dataclass(frozen=True)
class ObjectName:
    """The place of a data set or a run in an object store.

    scheme: "s3", "gs" or another one that fsspec knows.
    path: the bucket and what is in it, or however the scheme names a place.
    episodes: as in `HubName`.
    """

    scheme: str
    path: str
    episodes: tuple[int, int] | None = None

    def __str__(self) -> str:
        """The URL as it is written."""
        return f"{self.scheme}://{self.path}" + (":{}-{}".format(*self.episodes) if self.episodes else "")


def object_name(word: str | Path) -> ObjectName | None:
    """The place in an object store that `word` names; None for a name on the Hub or of this machine.

    Raises HubError for a malformed one.
    """
    text = str(word)
    if (found := _URL.fullmatch(text)) is None or found["scheme"] in ("hf", "file", "local") or Path(text).exists():
        return None
    path, parts = found["path"], found["path"].split("/")
    if not all(parts) or {".", ".."} & set(parts) or not path.isprintable() or set(path) & set("*?[\\"):
        raise HubError(f"'{text}' names no folder of an object store: write {found['scheme']}://BUCKET/FOLDER")
    return ObjectName(found["scheme"], path, _first_last(found["episodes"], text))


def remote_name(word: str | Path) -> HubName | ObjectName | None:
    """The data set on the Hub or in an object store that `word` names; None if it names a folder of this machine."""
    return hub_name(word) or object_name(word)


def _first_last(episodes: str | None, text: str) -> tuple[int, int] | None:
    if not episodes:
        return None
    first, last = map(int, episodes.split("-"))
    if not first < last:
        raise HubError(f"'{text}': the first episode must be below the last, as in {text.rpartition(':')[0]}:0-10")
    return first, last


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


def object_origin(path: str | Path) -> ObjectName | None:
    """The place in an object store of what lies at `path` in the cache of `hub.objects`; None elsewhere."""
    found = _KEPT.fullmatch(place := Path(path).absolute().as_posix())
    try:
        url = None if found is None else Path(found[1], URL_FILE).read_text()
    except OSError:
        return None
    if url is None or (name := object_name(url)) is None:
        return None
    episodes = _EPISODES.match(place.removeprefix(found[0][: found.end(2)]).strip("/"))  # type: ignore[index]
    return replace(name, episodes=(int(episodes[1]), int(episodes[2])) if episodes else None)


def named(path: str | Path) -> str:
    """The path as a command line names it: what was downloaded by its pinned name on the Hub, or by its URL."""
    return str(origin(path) or object_origin(path) or path)
