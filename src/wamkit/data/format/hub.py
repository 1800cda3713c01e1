"""Data sets on the Hub, `hf://USER/NAME`, and in object stores, `s3://BUCKET/FOLDER`, wherever a folder is named.

They are downloaded to the Hub's own cache, and to that of `hub.objects`. Of `hf://USER/NAME:FIRST-LAST` only the
metadata and the files that these episodes need are, and its folder is a data set of these episodes alone, numbered from
0; so of `s3://BUCKET/FOLDER:FIRST-LAST`.
"""

from __future__ import annotations

from pathlib import Path

from wamkit.data.format import checksums
from wamkit.data.format.episode_index import Row, placed_rows, read_info, require_data
from wamkit.data.format.selection import select
from wamkit.files import StoreError, atomic_write
from wamkit.hub.download import RemoteFile, Snapshot, snapshot
from wamkit.hub.names import HubError, HubName, ObjectName, hub_name, object_name, object_origin, origin, remote_name
from wamkit.hub.objects import ObjectFolder, object_folder

INFO = "meta/info.json"
ROOT_FILES = ("collect.json", "import.json")
"""Files at the top of a data set."""
_COMPLETE = ".cache/metadata"  # file that says that all metadata of a commit are there
_MOST_METADATA = 4 << 30  # bytes


def data_folder(path: str | Path) -> Path:
    """The folder of the data set at `path`, downloaded first where `path` is a name on the Hub.

    Raises StoreError if there is no data set, and HubError for a name that cannot be downloaded.
    """
    root = local(path)
    require_data(root)
    return root


def local(path: str | Path) -> Path:
    """The same for a folder that need not exist."""
    name = remote_name(path)
    return Path(path) if name is None else downloaded(name)


def pinned(path: str | Path) -> str:
    """The name on the Hub that `path` is, at the commit that it stands for now; any other path as it is.

    URLs of object stores, which have no commits, stay as they are, too.
    """
    name = hub_name(path)
    return str(object_name(path) or path) if name is None else str(snapshot(name, "dataset").name)


def require_own(root: Path) -> None:
    """Raises StoreError for a downloaded data set, which other programs share, where a command would change it."""
    if (name := origin(root) or object_origin(root)) is not None:
        whose = "the Hub's" if isinstance(name, HubName) else "its"
        raise StoreError(f"{name} is shared by all that use {whose} cache: copy {root.resolve()} and change the copy")


def downloaded(name: HubName | ObjectName, demonstrations: tuple[int, int] | None = None) -> Path:
    """The folder of a data set on the Hub or in an object store, downloaded as far as it is needed.

    demonstrations: use only these, from the first number up to, but excluding, the second; by default the episodes that
        the name asks for.

    Raises HubError where it cannot be downloaded, and StoreError where it is no data set that wamkit reads.
    """
    if isinstance(name, ObjectName):
        found: Snapshot | ObjectFolder = object_folder(name)
        root = found.fetch([*_require_metadata(found).below("meta/"), *(n for n in ROOT_FILES if n in found.objects)])
        if name.episodes is None and demonstrations is None:
            read_info(root)
            return found.fetch(found.objects)  # a million episodes need not be looked at
    else:
        found = snapshot(name, "dataset")
        root = _with_metadata(found)
    info, sums = read_info(root), checksums.load(root)
    rows = [row for _, row in placed_rows(root, info, sums)]
    if [row.meta.index for row in rows] != list(range(info["total_episodes"])):
        raise StoreError(f"{root}: meta/episodes does not hold its {info['total_episodes']} episodes; ask its maker")
    chosen, label = _chosen(name, rows, demonstrations)
    paths = {path for i in chosen for path in rows[i].files()}
    found.fetch(sorted(path.relative_to(root).as_posix() for path in paths))
    if isinstance(found, Snapshot):
        found.remember()
    return root if len(chosen) == len(rows) else select(root, info, rows, chosen, root / ".cache" / label, sums)


def _require_metadata(found: ObjectFolder) -> ObjectFolder:
    if INFO not in found.objects:
        raise HubError(
            f"{found.name} is no data set of LeRobot's version 3.0, or of wamkit (no {INFO}): name the folder that "
            "holds meta/, data/ and videos/, or download and convert it with `wamkit import`"
        )
    return found


def _chosen(
    name: HubName | ObjectName, rows: list[Row], demonstrations: tuple[int, int] | None
) -> tuple[list[int], str]:
    """The episodes that are asked for, and the name of their folder."""
    known, (first, last), kind = list(range(len(rows))), name.episodes or (0, len(rows)), "episodes"
    if demonstrations is not None:
        known, (first, last) = [row.meta.index for row in rows if row.meta.is_demonstration], demonstrations
        kind = "demonstrations"
    if last > len(known):
        raise HubError(f"{name} holds {len(known)} {kind}; {first} to {last} were asked for")
    return known[first:last], f"{kind}-{first}-{last}"


def _with_metadata(found: Snapshot) -> Path:
    """The folder of the data set, with all of its metadata. Once they are there, the Hub is not asked again."""
    if not found.reached or (found.folder / _COMPLETE).exists():
        return found.folder
    top = found.describe([INFO, *ROOT_FILES])
    if INFO not in top:
        raise HubError(
            f"{found.name} is no data set of LeRobot's version 3.0, or of wamkit (no {INFO}): download and convert it "
            "with `wamkit import`"
        )
    files: dict[str, RemoteFile] = top | found.listing("meta")
    if (total := sum(file.size for file in files.values())) > _MOST_METADATA:
        raise HubError(f"{found.name} has {total / 1e9:.1f} GB of metadata, and at most 4 are read; ask its maker")
    found.fetch(list(files))
    atomic_write(found.folder / _COMPLETE, b"")
    return found.folder
