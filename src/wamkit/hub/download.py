"""Downloads from the Hub into its own cache, which other programs share.

A repository is read at one commit. What the Hub declares is compared before anything is downloaded, and what arrives is
compared with it. Nothing is unpickled, and no code of a repository runs.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from wamkit.files import StoreError, atomic_write, read_text
from wamkit.hub.client import Unreachable, api, asking, cache, endpoint, library, quiet, require_online, uncut
from wamkit.hub.names import COMMIT, HubError, HubName, Kind, cache_place

AT_ONCE = 8
"""Files that are downloaded at the same time."""
_ASKED = 500  # files that one request asks about
_MOST = 1 << 20  # files that a listing may have


@dataclass(frozen=True)
class RemoteFile:
    """A file as the Hub describes it.

    size: bytes.   sha256: of the content, or "" where the Hub has `sha1` alone: that of the content as git stores it.
    """

    size: int
    sha256: str = ""
    sha1: str = ""

    def fits(self, path: Path) -> bool:
        """True if the file at `path` is the one described."""
        if path.stat().st_size != self.size:
            return False
        digest = hashlib.sha256() if self.sha256 else hashlib.sha1(b"blob %d\0" % self.size)
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest() == (self.sha256 or self.sha1)


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit, and the folder of the cache that its files are downloaded to.

    asked: the name that was asked for.   name: the same with the commit.   reached: False where the Hub did not answer.
    """

    asked: HubName
    name: HubName
    kind: Kind
    folder: Path
    reached: bool = True

    def fetch(self, names: Collection[str], expected: Mapping[str, RemoteFile] | None = None) -> Path:
        """Downloads the files `names` that are not in the cache, and returns the folder with all of them.

        expected: files that are described elsewhere too; they must fit both descriptions.

        Raises HubError for files that the repository lacks, that do not fit on the disk, or that arrive damaged.
        """
        missing = [n for n in names if not (self.folder / _safe(n)).exists()]
        if missing:
            found = self.describe(missing)
            if lost := [n for n in missing if n not in found]:
                raise HubError(f"{self.name} holds no file {lost[0]}; name another revision")
            for name, file in (expected or {}).items():
                if name in found and (found[name].size, found[name].sha256) != (file.size, file.sha256):
                    raise HubError(f"{self.name}: {name} is not the file that was pushed; ask its maker to push again")
            self._download(found)
        return self.folder

    def describe(self, names: Iterable[str]) -> dict[str, RemoteFile]:
        """Sizes and checksums of those of the files `names` that the repository has."""
        wanted, out = list(names), dict[str, RemoteFile]()
        with asking(self.name, self.kind):
            require_online()
            for first in range(0, len(wanted), _ASKED):
                asked = wanted[first : first + _ASKED]
                for entry in api().get_paths_info(
                    self.name.repo, asked, revision=self.name.revision, repo_type=self.kind
                ):
                    out |= {k: v for k, v in _described(entry).items() if k in asked}
        return out

    def listing(self, folder: str = "") -> dict[str, RemoteFile]:
        """Sizes and checksums of all files below a folder of the repository, or of those at its top."""
        out: dict[str, RemoteFile] = {}
        with asking(self.name, self.kind):
            require_online()
            found = api().list_repo_tree(
                self.name.repo,
                folder or None,
                recursive=bool(folder),
                revision=self.name.revision,
                repo_type=self.kind,
            )
            for entry in found:
                out |= _described(entry)
                if len(out) > _MOST:
                    raise HubError(f"{self.name} lists more than {_MOST} files in {folder or 'its top folder'}")
        return out

    def remember(self) -> None:
        """Notes the commit under the revision that was asked for, as the cache of the Hub has it, for use offline."""
        if self.reached and not self.asked.is_pinned:
            atomic_write(_ref(self.asked, self.kind), self.name.revision.encode())

    def _download(self, files: Mapping[str, RemoteFile]) -> None:
        total = sum(file.size for file in files.values())
        place = next(p for p in (self.folder, *self.folder.parents) if p.exists())
        if total > (free := shutil.disk_usage(place).free):
            raise HubError(
                f"{self.name} has {total / 1e9:.2f} GB to download, and {place} has {free / 1e9:.2f} GB free: free "
                "some space, or choose another disk with HF_HOME"
            )
        print(f"downloading {self.name}: {len(files)} files, {total / 1e6:.1f} MB", file=sys.stderr, flush=True)
        with quiet(len(files)), ThreadPoolExecutor(min(AT_ONCE, len(files))) as pool:
            list(pool.map(self._get, files, files.values()))

    def _get(self, name: str, file: RemoteFile) -> None:
        with asking(self.name, self.kind):
            download = partial(
                library().hf_hub_download,
                self.name.repo,
                name,
                repo_type=self.kind,
                revision=self.name.revision,
                library_name="wamkit",
                endpoint=endpoint(),
            )
            got = uncut(download)
        path = Path(got)
        if path != self.folder / name:
            raise HubError(f"{self.name}: {name} arrived as {path}, of another commit; run the same command again")
        if not file.fits(path):
            for place in (path.resolve(), path):
                place.unlink(missing_ok=True)
            raise HubError(
                f"{self.name}: {name} arrived damaged, its checksum is not the one that the Hub lists; it was removed, "
                "run the same command again"
            )


def snapshot(name: HubName, kind: Kind) -> Snapshot:
    """The commit that a name stands for now.

    Without a network it is the one that was last downloaded under this name, and a note says so.
    Raises HubError if the Hub has no such repository or revision, and Unreachable without a network and a download.
    """
    if name.is_pinned:
        return Snapshot(name, name, kind, cache_place(name, kind, cache()))
    try:
        with asking(name, kind):
            require_online()
            commit, reached = api().repo_info(name.repo, repo_type=kind, revision=name.revision, timeout=10).sha, True
    except Unreachable as error:
        commit, reached = _known(name, kind), False
        if commit is None:
            raise Unreachable(f"{name} was not downloaded before, and {error}") from error
        print(f"note: {error}; {name} is used as it was last downloaded ({commit[:12]})", file=sys.stderr, flush=True)
    if not isinstance(commit, str) or COMMIT.fullmatch(commit) is None:
        raise HubError(f"the Hub names no commit of {name}: check HF_ENDPOINT")
    pinned = name.at(commit)
    return Snapshot(name, pinned, kind, cache_place(pinned, kind, cache()), reached)


def _ref(name: HubName, kind: Kind) -> Path:
    """The file of the cache that holds the commit of a branch or a tag."""
    return cache_place(name, kind, cache()).parents[1] / "refs" / name.revision


def _known(name: HubName, kind: Kind) -> str | None:
    try:
        text = read_text(_ref(name, kind), 100).strip()
    except StoreError:
        return None
    return text if COMMIT.fullmatch(text) else None


def _described(entry: Any) -> dict[str, RemoteFile]:
    """A file of a listing; nothing for a folder."""
    size, lfs = getattr(entry, "size", None), getattr(entry, "lfs", None)
    if size is None:
        return {}
    return {_safe(entry.path): RemoteFile(size, lfs.sha256) if lfs else RemoteFile(size, sha1=entry.blob_id)}


def _safe(name: str) -> str:
    """The name of a file in a repository. Raises HubError for one that would lead out of its folder."""
    parts = name.split("/")
    if not all(parts) or {".", ".."} & set(parts) or "\\" in name or not name.isprintable():  # "/a" begins with ""
        raise HubError(f"the repository has a file named {name[:100]!r}, which leads elsewhere; report it to the Hub")
    return name
