"""Durable files, and careful reading of files that others wrote.

After a kill or a power cut a file that was written here holds its old content or all of its new content. Reading
compares what a file declares with what is allowed before it reads or builds anything, and every fault, whatever its
cause, is a StoreError that names the file.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, NoReturn

from wamkit.errors import WamkitError

RESTORE = "restore it from a copy, or make it again"
"""Advice about a file that cannot be read."""

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # possessive: a damaged one takes no quadratic time
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_DEEPER = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_KINDS = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}


class StoreError(WamkitError):
    """A file or a data set is missing, damaged, in another format, in use, or cannot take what it was given."""


class WriteError(StoreError, OSError):
    """A file could not be written (disk full, no permission). Whatever stood in its place is unchanged."""


def read_json(path: str | Path, *, max_bytes: int = 64 << 20, max_depth: int = 64, finite: bool = True) -> Any:
    """The content of a JSON file.

    max_bytes: size of a file that is still read.
    max_depth: lists and objects within each other.
    finite: refuse NaN and infinities.

    Raises StoreError, naming the file, as `read_bytes` and `parse_json` do.
    """
    return parse_json(read_bytes(path, max_bytes), str(path), max_depth=max_depth, finite=finite)


def parse_json(data: bytes | str, where: str, *, max_depth: int = 64, finite: bool = True) -> Any:
    """The value of a JSON text.

    data: bytes as `decoded` reads them.
    where: what the text is, for errors: a file, or a file and a line.
    max_depth, finite: as in `read_json`.

    Raises StoreError for anything else: damaged text, deeper nesting (found before it is parsed), numbers that a
    float cannot hold, and halves of characters, which cannot be written again.
    """
    try:
        text = decoded(data) if isinstance(data, bytes) else data
        if _depth(text.encode()) > max_depth:
            raise ValueError(f"lists and objects are nested more than {max_depth} deep")
        strict = {"parse_constant": _no_number, "parse_float": _float} if finite else {}
        value = json.loads(text, parse_int=_int, **strict)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except ValueError as error:  # also UnicodeError and JSONDecodeError
        raise StoreError(f"{where} cannot be read as JSON ({error}); {RESTORE}") from error
    return value


def read_text(path: str | Path, max_bytes: int = 64 << 20) -> str:
    """The text of a file, as `decoded` reads it. Raises StoreError as `read_bytes` does, and for another encoding."""
    try:
        return decoded(read_bytes(path, max_bytes))
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
        raise StoreError(f"{path} is not UTF-8 text ({reason}); save it as UTF-8") from error


def decoded(data: bytes) -> str:
    """The text of a file without its byte order mark: UTF-16 where the mark says so, as Windows writes it, else UTF-8.

    Raises UnicodeDecodeError for anything else: UTF-32, and UTF-16 without a mark, seem to have characters of value 0.
    """
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode(encoding := "utf-16" if wide else "utf-8-sig")
    if (at := text.find("\0")) >= 0:
        raise UnicodeDecodeError(encoding, data, at, at + 1, "a character of value 0")
    return text


def _depth(text: bytes) -> int:
    """The number of lists and objects within each other; at least that where the text is damaged."""
    if (most := text.count(b"[") + text.count(b"{")) < 2:
        return most
    brackets = _STRING.sub(b"", text).translate(None, _NO_BRACKET)
    return max(accumulate(map(_DEEPER.__getitem__, brackets)), default=0)


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _float(digits: str) -> float:
    number = float(digits)
    return number if abs(number) < float("inf") else _no_number(_shortened(digits))


def _int(digits: str) -> int:
    return int(digits) if len(digits) < 300 else _no_number(_shortened(digits))


def _shortened(digits: str) -> str:
    return digits if len(digits) < 20 else f"{digits[:8]}... of {len(digits)} characters"


def read_bytes(path: str | Path, max_bytes: int = 64 << 20) -> bytes:
    """The bytes of a regular file of at most `max_bytes`, compared before any are read. Raises StoreError."""
    if (size := file_size(path)) > max_bytes:
        raise StoreError(f"{path} has {size} bytes, and at most {max_bytes} are read; {RESTORE}")
    try:
        with open(path, "rb") as file:
            # Python allocates what it is asked for. The file may have been replaced since its size was compared.
            return file.read(min(max_bytes, os.fstat(file.fileno()).st_size + 1))
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}); {RESTORE}") from error


def file_size(path: str | Path) -> int:
    """The size of a regular file in bytes.

    Raises StoreError where there is none, and for folders, pipes and devices, which may never end.
    """
    try:
        facts = os.stat(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StoreError(f"{path} cannot be read ({reason}); {RESTORE}") from error
    if not stat.S_ISREG(facts.st_mode):
        kind = _KINDS.get(stat.S_IFMT(facts.st_mode), "special file")
        raise StoreError(f"{path} is a {kind}, not a file; {RESTORE}")
    return facts.st_size


def visible(root: Path, pattern: str) -> list[Path]:
    """The files and folders below `root` that match a glob pattern, sorted.

    Names that begin with "." are left alone, as a shell does: macOS writes `._NAME` beside NAME on foreign disks and
    `.DS_Store` into folders, and notebooks keep copies in `.ipynb_checkpoints`.
    """
    found = (p for p in root.glob(pattern) if not any(n.startswith(".") for n in p.relative_to(root).parts))
    return sorted(found)


def inside(root: str | Path, name: str | Path) -> Path:
    """The path of `name` in the folder `root`, whether or not it exists.

    name: relative to `root`.

    Raises StoreError where it leads out: an absolute name, "..", or a link to elsewhere. A link may lead to another
    place in `root`, and to `blobs/` beside the `snapshots/` in which `root` lies, or beside the folder of both: so
    downloads from a hub are laid out, and what several repositories share.
    """
    path, step = Path(root, name), str(root)
    for part in os.fspath(name).split("/"):
        step = f"{step}/{part}"
        if part == ".." or os.path.islink(step):
            break
    else:
        if not os.path.isabs(name):
            return path
    top, target = Path(os.path.realpath(root)), Path(os.path.realpath(path))
    repos = [p.parent for p in (top, *top.parents) if p.name == "snapshots"]
    hubs = [place / "blobs" for repo in repos for place in (repo, repo.parent)]
    if os.path.isabs(name) or not any(target.is_relative_to(place) for place in (top, *hubs)):
        raise StoreError(
            f"{root}: '{name}' leads out of this folder; correct the name, or put the file in place of a link"
        )
    return path


def atomic_write(path: str | Path, data: bytes) -> None:
    """Writes `data` to `path` by temporary file, fsync and rename. Creates missing folders.

    Raises WriteError when the disk refuses; `path` is then as it was.
    """
    _write_whole(Path(path), (data,))


def atomic_copy(path: str | Path, source: Path, sha256: str) -> None:
    """Writes the content of the file `source` to `path`, as `atomic_write` does.

    sha256: the checksum that the content must have. It is read in blocks.

    Raises StoreError, with `path` as it was, where `source` cannot be read or has other content by now.
    """

    def blocks() -> Iterator[bytes]:
        total = hashlib.sha256()
        try:
            with open(source, "rb") as file:
                while block := file.read(1 << 20):
                    total.update(block)
                    yield block
        except OSError as error:
            raise StoreError(f"{source} cannot be read ({error.strerror}); {RESTORE}") from error
        if total.hexdigest() != sha256:
            raise StoreError(f"{source} changed while it was copied; do it again when nothing writes to it")

    _write_whole(Path(path), blocks())


def _write_whole(path: Path, blocks: Iterable[bytes]) -> None:
    """Puts a file of these blocks, one after the other, in place of `path`."""
    make_folder(path.parent)
    if not (path.is_file() or path.is_symlink() or not path.exists()):
        raise WriteError(f"could not write {path}: it is a {kind_of(path)}; name a file")
    if path.parent not in _swept:
        _swept.add(path.parent)
        _sweep(path.parent)
    draft = temporary(path)
    try:
        with open(draft, "wb") as file:
            file.writelines(blocks)
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
    # The numbers keep two processes out of each other's file, and tell which process is dead.
    return path.with_name(f".{path.name}.{_machine()}.{os.getpid()}.tmp")


def remove_leftovers(path: Path) -> None:
    """Removes the temporary files and folders that killed writers of `path` left behind, and of dead ones beside it.

    Call it under `exclusive`: it would also remove those of a process that is writing now.
    """
    for left in path.parent.glob(f".{path.name}*.tmp"):
        _remove(left)
    _sweep(path.parent)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for files that are needed for a moment. Those of killed processes are removed."""
    place = Path(tempfile.gettempdir())
    _sweep(place)
    folder = temporary(place / "wamkit")
    folder.mkdir(exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder) as inside_it:  # several threads may need one each
            yield Path(inside_it)
    finally:
        with contextlib.suppress(OSError):  # another thread is still using it
            folder.rmdir()


_TEMPORARY = re.compile(r"\..+?(?:\.(\d+))?\.(\d+)\.tmp")
_ABANDONED_S = 24 * 3600.0
_swept: set[Path] = set()
"""Folders that this process has cleaned."""


def _sweep(folder: Path) -> None:
    """Removes temporary files and folders in `folder` whose process is dead.

    Processes of other machines cannot be seen: theirs are removed when they were not touched for a day.
    """
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        found = [(Path(e.path), match) for e in entries if (match := _TEMPORARY.fullmatch(e.name))]
    for path, match in found:
        with contextlib.suppress(OSError):  # another process was faster, or it belongs to another user
            here = match[1] == str(_machine())
            if not _alive(int(match[2])) if here else time.time() - path.stat().st_mtime > _ABANDONED_S:
                _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@functools.cache
def _machine() -> int:
    """A number for the machine, or the container, in which process ids have a meaning."""
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        space = 0
    return zlib.crc32(f"{socket.gethostname()} {space}".encode())


def kind_of(path: Path) -> str:
    """The kind of thing that stands at `path`: file, link, folder, pipe, socket or device."""
    mode = os.lstat(path).st_mode
    return {stat.S_IFLNK: "link", stat.S_IFSOCK: "socket", **_KINDS}.get(stat.S_IFMT(mode), "file")


def check_place(path: str | Path) -> None:
    """Raises WriteError, before any work, where `path` cannot be written as a file.

    A link, a folder, a pipe or a device is in its place, or its folder cannot be made or written.
    """
    path = Path(path)
    if path.parts[:1] == ("hf:",):
        raise WriteError(
            f"could not write {path}: it is on the Hub; name a place of this machine, and `wamkit push` it"
        )
    if re.fullmatch("[a-z][a-z0-9+.-]+:", path.parts[0] if path.parts else "") and not os.path.lexists(path.parts[0]):
        raise WriteError(
            f"could not write {path}: it is in an object store; name a place of this machine, and upload it"
        )
    if os.path.lexists(path) and (kind := kind_of(path)) != "file":
        raise WriteError(f"could not write {path}: it is a {kind}; name a file, or move it away")
    folder = next(p for p in path.parents if os.path.lexists(p) or p == p.parent)
    if not folder.is_dir():
        raise WriteError(
            f"could not write {folder}: a {kind_of(folder)} is in the way: move it, or choose another folder"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise WriteError(f"could not write {path}: {folder} does not allow it; check its permissions, or name another")


def check_output(path: str | Path, ours: Callable[[Path], bool] | None = None) -> None:
    """Raises WriteError, before any work, unless wamkit may write the file `path`: also where it is another's file.

    ours: recognises what wamkit wrote; by default the mark that pages, drawings and JSON files of wamkit have.
    """
    path = Path(path)
    check_place(path)
    if path.exists() and not (ours or _marked)(path):
        raise WriteError(f"could not write {path}: a file that wamkit did not write is there; move it, or name another")


_MARK = re.compile(
    rb'name="generator" content="wamkit"|Made by `wamkit|"made_by"'
    rb"|img-src data:; media-src data: blob:|<style>\nsvg \{ font: 12px system-ui, sans-serif; fill: #3b4350; \}"
)
"""Marks of what wamkit wrote. Drawings, and pages of the first versions, have none but their own style and policy."""


def _marked(path: Path) -> bool:
    with open(path, "rb") as file:
        return _MARK.search(file.read(1 << 16)) is not None


def make_folder(folder: Path) -> None:
    """Creates `folder` and its parents, durably. Raises WriteError naming the one that cannot be created."""
    for part in (*reversed(folder.parents), folder):
        try:
            if not part.is_dir():
                part.mkdir(exist_ok=True)
                fsync_folder(part.parent)
        except OSError as error:
            raise write_error(part, error) from error


CACHE_DIR = "WAMKIT_CACHE_DIR"
"""Environment variable that names a folder for all caches. Worker processes inherit it."""


@contextlib.contextmanager
def caching_in(folder: Path | None) -> Iterator[None]:
    """Makes all caches inside the block in `folder`; None leaves their places as they are.

    Raises WriteError, before any work, where none can be made there.
    """
    before = os.environ.get(CACHE_DIR)
    if folder is not None:
        check_place(folder / "frames")
        os.environ[CACHE_DIR] = os.path.abspath(folder)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(CACHE_DIR, None)
        else:
            os.environ[CACHE_DIR] = before


def cache_folder(root: Path) -> Path:
    """The folder for what can be computed again from the data in `root`.

    It is `.cache` there. Where that cannot be written, it is a folder of its own under $XDG_CACHE_HOME/wamkit, by
    default ~/.cache/wamkit. $WAMKIT_CACHE_DIR, see `caching_in`, names another place for all of them.
    """
    own = hashlib.sha256(os.path.realpath(root).encode()).hexdigest()[:16]
    if chosen := os.environ.get(CACHE_DIR):
        return Path(chosen, own)
    here = inside(root, ".cache")
    if os.access(here if here.exists() else root, os.W_OK | os.X_OK):
        return here
    homes = os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")
    # A user without a home has "~", and a relative path would depend on where the command is run.
    base = next((home for home in homes if os.path.isabs(home)), tempfile.gettempdir())
    return Path(base, "wamkit", own)


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
