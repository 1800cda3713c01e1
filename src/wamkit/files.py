"""Errors and durable files of the data layer: a file holds all of its new content or is as it was."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from wamkit.errors import WamkitError

_NO_ROOM = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
_IN_THE_WAY = {errno.EEXIST, errno.ENOTDIR}


class StoreError(WamkitError):
    """A data set on disk is missing, damaged, of another format, or cannot take what it was given."""


def temporary(path: Path) -> Path:
    """Where `path` is written before it is renamed; a leftover of a kill is overwritten by the next attempt."""
    return path.with_name(f".{path.name}.tmp")


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Creates `folder` and its parents, durably. Raises StoreError naming the one that cannot be made."""
    try:
        if not folder.is_dir():
            make_folder(folder.parent)
            folder.mkdir(exist_ok=True)
            sync_folder(folder.parent)
    except OSError as error:
        raise write_error(folder, error) from error


def write_error(path: Path, error: OSError) -> StoreError:
    """What to tell the user when `path` could not be written."""
    hint = "free some space" if error.errno in _NO_ROOM else "check the folder's permissions and disk"
    hint = "a file is in the way, move it or name another folder," if error.errno in _IN_THE_WAY else hint
    return StoreError(
        f"could not write {path}: {error.strerror or error}; {hint} and run again, nothing that was stored is lost"
    )


def write_atomic(path: Path, data: bytes) -> None:
    """Writes `data` to `path` by temporary file, fsync and rename.

    After a kill or a power cut `path` holds its old content or all of `data`. Call it under `exclusive`: two writers of
    the same path would share a temporary file. Raises StoreError when the disk refuses; `path` is then as it was.
    """
    try:
        make_folder(path.parent)
        with open(temporary(path), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary(path), path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary(path).unlink(missing_ok=True)
        raise write_error(path, error) from error


@contextlib.contextmanager
def exclusive(folder: Path, wait: bool = False) -> Iterator[None]:
    """Holds `folder` against other writing processes; the system lets go when this process ends, however it ends.

    Raises StoreError if another process holds it and `wait` is false.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise write_error(folder, error) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(f"{folder}: another process is writing here; wait for it to end") from error
        yield
    finally:
        os.close(handle)
