"""Uploads to the Hub: one commit with exactly the files of a run or of a data set."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wamkit.hub.client import KINDS, SIGN_IN, api, asking, library, quiet, require_online
from wamkit.hub.names import HubError, HubName, Kind

CARD = "README.md"
_GIVEN = (CARD, ".gitattributes")  # files that a new repository may have


@dataclass(frozen=True)
class Upload:
    """The content of a repository.

    files: what it shall hold, by name: bytes, or a file of this machine.
    mark: the file by which a repository that wamkit may write to is known.
    owned: folders, and names of files, that are all the upload's own: what else is there is removed.
    tag: moves to the new commit, where that is on the branch main; "" for none.
    """

    kind: Kind
    files: Mapping[str, bytes | Path]
    mark: str
    owned: tuple[str, ...]
    tag: str = ""

    def sizes(self) -> dict[str, int]:
        """The size of each file in bytes."""
        return {k: len(v) if isinstance(v, bytes) else v.stat().st_size for k, v in self.files.items()}

    def stale(self, names: list[str]) -> list[str]:
        """Those of the files `names` of the repository that are not among `files`, but `owned`."""
        return [n for n in names if n not in self.files and any(n == o or n.startswith(f"{o}/") for o in self.owned)]


def push(name: HubName, upload: Upload, *, private: bool = False, message: str) -> str:
    """Writes `upload` to the repository `name` as one commit on the branch that it names, and returns the commit.

    The repository and the branch are made if they are not there. private: make it visible to its owner alone; one that
    exists stays as it is.

    Raises HubError before anything is written without a token, or where the repository holds what wamkit did not write,
    and where the Hub refuses.
    """
    if name.is_pinned:
        raise HubError(f"{name} names a commit, which cannot be written to: name a branch, or none")
    if library().get_token() is None:
        raise HubError(f"there is no token to write to {name} with: sign in with one that may write ({SIGN_IN})")
    with asking(name, upload.kind):
        require_online()
        present = _present(name, upload)
        if present is None:
            api().create_repo(name.repo, repo_type=upload.kind, private=private, exist_ok=True)
        if name.revision != "main":
            api().create_branch(name.repo, branch=name.revision, repo_type=upload.kind, exist_ok=True)
        with quiet(len(upload.files)):
            done = api().create_commit(
                name.repo,
                _operations(upload, present or []),
                commit_message=message,
                repo_type=upload.kind,
                revision=name.revision,
            )
        if upload.tag and name.revision == "main":
            _move_tag(name, upload, done.oid)
    return str(done.oid)


def _present(name: HubName, upload: Upload) -> list[str] | None:
    """The files of the branch that is written to; None where there is no such repository.

    Raises HubError where they are not ours.
    """
    errors = library().errors
    try:
        info = api().repo_info(name.repo, repo_type=upload.kind, revision=name.revision, timeout=10)
    except errors.GatedRepoError:
        raise
    except errors.RevisionNotFoundError:
        info = api().repo_info(name.repo, repo_type=upload.kind, timeout=10)
    except errors.RepositoryNotFoundError:
        return None
    files = [entry.rfilename for entry in info.siblings or []]
    if upload.mark not in files and not set(files) <= set(_GIVEN):
        what = next(f for f in files if f not in _GIVEN)
        raise HubError(
            f"{name} holds what wamkit did not write ({what}, but no {upload.mark}): name another {KINDS[upload.kind]}"
        )
    return files


def _operations(upload: Upload, present: list[str]) -> list[Any]:
    hub = library()
    adding = [
        hub.CommitOperationAdd(k, v if isinstance(v, bytes) else str(v.resolve())) for k, v in upload.files.items()
    ]
    return adding + [hub.CommitOperationDelete(name, is_folder=False) for name in upload.stale(present)]


def _move_tag(name: HubName, upload: Upload, commit: str) -> None:
    with contextlib.suppress(library().errors.RevisionNotFoundError):
        api().delete_tag(name.repo, tag=upload.tag, repo_type=upload.kind)
    api().create_tag(name.repo, tag=upload.tag, revision=commit, repo_type=upload.kind)
