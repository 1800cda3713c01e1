"""Durable files: after a kill or a power cut a file holds its old content or all of its new content."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from wamkit.errors import WamkitError


class StoreError(WamkitError):
    """A file or a data set is missing, damaged, in another format, in use, or cannot take what it was given."""


class WriteError(StoreError, OSError):
    """A file could not be written (disk full, no permission). Whatever stood in its place is unchanged."""


def atomic_write(path: str | Path, data: bytes) -> None:
    """Writes `data` to `path` by temporary file, fsync and rename. Creates missing folders.

    Raises WriteError when the disk refuses; `path` is then as it was.
    """
    path = Path(path)
    make_folder(path.parent)
    draft = temporary(path)
    try:
        with open(draft, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
        fsync_folder(path.parent)  # without it a power cut may undo the rename
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def temporary(path: Path) -> Path:
    """The place where this process writes `path` before it renames it."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")  # the id keeps two processes out of each other's file


def remove_leftovers(path: Path) -> None:
    """Removes the temporary files and folders that killed writers of `path` left behind.

    Call it under `exclusive`: it would also remove those of a process that is writing now.
    """
    for left in path.parent.glob(f".{path.name}*.tmp"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Creates `folder` and its parents, durably. Raises WriteError naming the one that cannot be created."""
    for part in (*reversed(folder.parents), folder):
        try:
            if not part.is_dir():
                part.mkdir(exist_ok=True)
                fsync_folder(part.parent)
        except OSError as error:
            raise write_error(part, error) from error


def fsync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def exclusive(folder: Path, wait: bool = False) -> Iterator[None]:
    """Locks `folder` against other writing processes. The lock ends with the block or the process, however it ends.

    wait: wait for another process to release it, instead of raising StoreError.
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


def write_error(path: str | Path, error: OSError) -> WriteError:
    """The error to raise when `path` could not be written: the reason and what to do."""
    return WriteError(f"could not write {path}: {error.strerror or error}; {advice_for(error)}")


def advice_for(error: OSError) -> str:
    """Advice about a file that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return "free some space and run the same command again; nothing that was stored is lost"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return "a file is in the way: move it, or choose another folder"
    return "check the folder's permissions and the disk, or choose another folder"
