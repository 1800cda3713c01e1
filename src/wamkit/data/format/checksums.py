"""Checksums of a data set's files, by which a change is found that still parses: `meta/checksums.json`.

    {"version": 1, "files": {"meta/info.json": ["<SHA-256>"], "collect.json": ["", "<SHA-256>"], ...}}

The small files are listed there. Two checksums are those before and after a replacement, "" where there was no file:
the list is written before and after, so a kill at any moment leaves a file that fits. The files of meta/episodes are
not listed, since the list would grow with the data set and be written for each episode. Instead each is sealed: it
contains its own SHA-256, computed with zeros in its place, and those of the episode's other files. `accept` lists what
no seal covers, after other programs edited the files. A data set without checksums.json and seals is not compared.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from wamkit.files import (
    StoreError,
    atomic_write,
    exclusive,
    inside,
    make_folder,
    parse_json,
    read_bytes,
    remove_leftovers,
    visible,
)

FILE = "meta/checksums.json"
SEAL = "wamkit/seal"
"""Key of the seal in the metadata of a parquet file."""
UNSEALED = "sha256=" + 64 * "0"
"""Value of the seal before `seal` fills it in."""
_BEFORE = b"\x18\x0b%b\x18Gsha256=" % SEAL.encode()  # as Thrift writes the key, and the value up to the checksum
SMALL = (
    *(f"meta/{name}" for name in ("info.json", "tasks.parquet", "stats.json", "wamkit.json", "modality.json")),
    "collect.json",
    "import.json",
)
"""The small files of a data set."""
_MOST = 1 << 29  # bytes of a list: that of 100,000 episodes whose files are all listed has 70 MB
_SMALLEST = 1 << 24  # bytes of a file whose beginning is looked at before it is read
_LARGE = ("data/", "videos/", "snapshots/", "meta/episodes/")
"""Folders of files that are compared when they are read anyway, rather than when a data set is opened."""


class Checksums:
    """The checksums of one data set, and the files that were found to differ from them.

    root: folder of the data set.
    files: accepted checksums by path within it, "" for an absent file; None where there is no list.
    compared: False to compare nothing.
    changed: descriptions of files that differ.
    """

    def __init__(self, root: Path, files: Mapping[str, list[str]] | None = None, compared: bool = True):
        self.root, self.files, self.compared = root, files, compared
        self.changed: list[str] = []
        self._intact: dict[Path, tuple[int, int, int]] = {}

    def accepted(self, path: Path, recorded: str | None) -> list[str]:
        """The checksums that a file may have; [] if none is known.

        recorded: its checksum in the sealed facts of its episode.
        """
        listed = (self.files or {}).get(path.relative_to(self.root).as_posix())
        return (listed or ([recorded] if recorded else [])) if self.compared else []

    def compare(self, path: Path, content: bytes | None, recorded: str | None = None) -> None:
        """Notes the file in `changed` if its content is not what was recorded. None reads it in blocks."""
        known = self.accepted(path, recorded)
        if known and (digest_of(path) if content is None else sha256(content)) not in known:
            self.changed.append(path.relative_to(self.root).as_posix())

    def compare_facts(self, path: Path, content: bytes) -> None:
        """The same for a file of meta/episodes, which is sealed or listed."""
        if not is_sealed(content) and sha256(content) not in self.accepted(path, None):
            self.changed.append(path.relative_to(self.root).as_posix())

    def miss(self) -> None:
        """Notes that the list is missing, because an intact seal tells that there was one."""
        self.changed = [f"{FILE} is missing"] * self.compared

    def compare_small(self) -> None:
        """Compares the listed files that every use of the data set may read."""
        for name, known in ((n, k) for n, k in (self.files or {}).items() if not n.startswith(_LARGE)):
            if (digest := digest_of(inside(self.root, name))) in known:
                continue
            now = _read(self.root) or {}  # another process may have replaced the file since the list was read
            if digest not in now.get(name, []):
                self.changed.append(name if digest else f"{name} is missing")

    def verify(self, path: Path, recorded: str | None) -> None:
        """Raises StoreError, without naming the file, if a large file differs. It is read once as long as it stays."""
        known, facts = self.accepted(path, recorded), path.stat()
        seen = facts.st_size, facts.st_mtime_ns, facts.st_ino
        if not known or self._intact.get(path) == seen:
            return
        if digest_of(path) not in known:
            raise changed(self.root)
        self._intact[path] = seen

    def refuse(self) -> None:
        """Raises StoreError if files differ. Call it after all of them have been read, so that they are not damaged."""
        if not self.changed:
            return
        more = f" and {len(self.changed) - 3} more" if len(self.changed) > 3 else ""
        raise StoreError(
            f"{self.root}: files differ from what was recorded, though they can be read: "
            f"{', '.join(self.changed[:3])}{more}; {_advice(self.root)}"
        )


def changed(root: Path) -> StoreError:
    """The error for a file whose content is not what was recorded; the caller names the file."""
    return StoreError(
        "its content has changed since it was recorded "
        f"(`wamkit validate {root} --accept` accepts it, if it was edited)"
    )


def _advice(root: Path) -> str:
    return (
        "restore it from a copy, or, if LeRobot's tools or you edited it, "
        f"accept it with `wamkit validate {root} --accept`"
    )


def load(root: Path, *, compare: bool = True) -> Checksums:
    """The checksums of a data set, or none to compare. Raises StoreError if their file is damaged."""
    return Checksums(root, _read(root) if compare else None, compare)


def is_pending(root: Path) -> bool:
    """True if a kill left a file that may have its old or its new content."""
    return any(len(known) > 1 for known in (_read(root) or {}).values())


def write(root: Path, contents: Mapping[str, bytes]) -> None:
    """Replaces or adds small files of a data set by path, and their checksums where it has any."""
    make_folder(root)
    with exclusive(root, wait=True):
        replace(root, contents)


def replace(root: Path, contents: Mapping[str, bytes], *, new: bool = False) -> None:
    """As `write`, for a caller that holds the lock of `root`. Files are replaced in the given order.

    new: begin the checksums of a new data set.
    """
    files = _read(root)
    if files is None and not new:
        for name, content in contents.items():
            remove_leftovers(inside(root, name))
            atomic_write(inside(root, name), content)
        return
    files = files or {}
    pending = [name for name, known in files.items() if len(known) > 1]
    present = {name: digest_of(inside(root, name)) for name in {*contents, *pending}}
    settled = files | {name: [present[name]] for name in pending if present[name] in files[name]}
    after = settled | {name: [sha256(content)] for name, content in contents.items()}
    todo = [name for name in contents if [present[name]] != after[name]]
    between = after | {name: [*settled.get(name, [present[name]]), *after[name]] for name in todo}
    for listed, names in ((between, todo), (after, [])):
        if listed != _read(root):
            remove_leftovers(root / FILE)
            atomic_write(root / FILE, _json(listed))
        for name in names:
            remove_leftovers(inside(root, name))
            atomic_write(inside(root, name), contents[name])


def survey(root: Path, recorded: Mapping[Path, str | None]) -> tuple[dict[str, str], list[str]]:
    """The checksums to list for the files of a data set as they are now, and descriptions of those that changed.

    recorded: the files of all episodes, with their checksums where their facts have them.
    """
    try:
        before = _read(root)
        changes = [f"{FILE} is missing"] if before is None else []
    except StoreError:
        before, changes = None, [f"{FILE} is damaged"]
    small = [path for path in (root / name for name in SMALL) if path.exists()]
    facts = dict.fromkeys(visible(root / "meta/episodes", "**/*.parquet"))
    files = {}
    for path in [*small, *facts, *recorded]:
        name, digest = path.relative_to(root).as_posix(), digest_of(path)
        covered = digest == recorded.get(path) or path in facts and is_sealed(path.read_bytes())
        if not covered:
            files[name] = digest
        if before is not None and digest not in before.get(name, []) and not (covered and name not in before):
            changes.append(name)
    gone = [n for n, known in (before or {}).items() if "" not in known and not (root / n).exists()]
    return files, changes + [f"{name} is missing" for name in gone]


def accept(root: Path, files: Mapping[str, str]) -> None:
    """Lists `files` in place of what was listed. Call it under the lock of `root`."""
    remove_leftovers(root / FILE)
    atomic_write(root / FILE, _json({name: [digest] for name, digest in files.items()}))


def seal(content: bytes) -> bytes:
    """A parquet file that was written with the metadata SEAL: UNSEALED, with its checksum in that place."""
    start = content.rindex(_BEFORE) + len(_BEFORE)
    return content[:start] + sha256(content).encode() + content[start + 64 :]


def is_sealed(content: bytes) -> bool:
    """True if a parquet file has a seal that fits its content."""
    before, mark, rest = content.rpartition(_BEFORE)
    return bool(mark) and rest[:64] == sha256(before + mark + 64 * b"0" + rest[64:]).encode()


def sha256(content: bytes) -> str:
    """The SHA-256 of `content`, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def digest_of(path: Path) -> str:
    """The SHA-256 of a file's content, read in blocks; "" if there is no such file. Raises StoreError naming it.

    A large file that begins with zeros has "zeros" instead, and is not read: a crash leaves such files, of any
    size, and none of the formats begins so.
    """
    if not path.is_file():  # neither a folder nor a pipe, which would never end
        return ""
    try:
        with open(path, "rb") as file:
            if not any(file.read(64)) and file.seek(0, os.SEEK_END) > _SMALLEST:
                return "zeros"
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}); check its permissions and the disk") from error


def _json(files: Mapping[str, list[str]]) -> bytes:
    return (json.dumps({"version": 1, "files": files}, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _read(root: Path) -> dict[str, list[str]] | None:
    path = root / FILE
    try:
        if not path.exists():
            return None
        content = read_bytes(path, _MOST)
        files = parse_json(content, str(path))["files"]
        if content != _json(files):
            raise ValueError("it is not as it was written")
        for name, known in files.items():
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or not isinstance(known, list):
                raise ValueError(f"it lists {name!r}")
    except (StoreError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} is damaged ({error}); {_advice(root)}") from error
    return files
