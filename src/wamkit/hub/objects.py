"""Downloads from object stores, s3://BUCKET/FOLDER or another scheme that fsspec knows, into a cache of this machine.

    <cache>/url.txt, latest.txt            the URL, and the name of its last listing
    <cache>/snapshots/<listing>.json       sizes and etags of all objects below the URL
    <cache>/snapshots/<listing>/           links to those that were fetched, by their names
    <cache>/blobs/<name>                   their contents, which later listings share as long as nothing changes

The store is asked for one listing when a name is opened. What is needed is then fetched: of a data set the metadata
and all files, or those of some episodes; of a run its file, or its folder. An interrupted download goes on where it
stopped. Sizes are compared, and etags: where they are MD5 sums, as for objects that were uploaded in one piece, with
the content, else with the object's after the download. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import re
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wamkit.files import (
    StoreError,
    atomic_write,
    cache_folder,
    exclusive,
    make_folder,
    read_json,
    read_text,
    write_error,
)
from wamkit.hub.names import URL_FILE, HubError, ObjectName

INSTALL = "pip install 'wamkit[cloud]'"
AT_ONCE = 8
"""Objects that are fetched at the same time."""
BLOCK = 1 << 24
"""Bytes of one request."""
TIMEOUT_S = {"connect": 10, "read": 60}
"""Longest waits for a connection, and for bytes on it."""

_LATEST, _MOST_LISTING = "latest.txt", 1 << 30
_MD5 = re.compile("[0-9a-f]{32}")
_SIGN_IN = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or FSSPEC_S3='{\"anon\": true}'",
    "gs": "`gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
}
_DENIED = re.compile("denied|forbidden|credential|unauthorized|signature|access key|\\b40[13]\\b", re.IGNORECASE)


class Unreached(HubError):
    """An object store cannot be asked: there is no network, or it does not answer."""


@dataclass(frozen=True)
class RemoteObject:
    """An object as a listing describes it. key: its path in the store.   etag: "" where the store has none."""

    key: str
    size: int
    etag: str

    @property
    def has_md5(self) -> bool:
        """True if the etag looks like the MD5 of the content."""
        return _MD5.fullmatch(self.etag) is not None


@dataclass(frozen=True)
class ObjectFolder:
    """The objects below a URL, by one listing, and the folder of the cache that it is fetched to.

    objects: by name below the URL.   reached: False where the store did not answer, and the listing is the last one.
    """

    name: ObjectName
    place: Path
    objects: Mapping[str, RemoteObject]
    listing: str
    reached: bool = True

    @property
    def folder(self) -> Path:
        """The folder of the objects that were fetched."""
        return self.place / "snapshots" / self.listing

    def below(self, start: str) -> list[str]:
        """Names that begin with `start`."""
        return [name for name in self.objects if name.startswith(start)]

    def fetch(self, names: Iterable[str]) -> Path:
        """Fetches the objects `names` that are not there, and returns the folder with all of them.

        Processes that want the same take turns. Raises HubError for objects that the store lacks, that do not fit on
        the disk, or that arrive damaged, and WriteError where the disk refuses.
        """
        wanted = list(dict.fromkeys(names))
        if lost := [n for n in wanted if n not in self.objects]:
            raise HubError(f"{self.name} holds no {lost[0]}: upload the whole of it, or name another folder")
        if any(not (self.folder / n).exists() for n in wanted):
            with exclusive(self.place, wait=True):
                missing = [n for n in wanted if not (self.folder / n).exists()]
                for name in (n for n in missing if self._blob(n).exists()):
                    self._link(name)
                self._download([n for n in missing if not (self.folder / n).exists()])
        return self.folder

    def _blob(self, name: str) -> Path:
        found = self.objects[name]
        key = hashlib.sha256(f"{name}\n{found.size}\n{found.etag}".encode()).hexdigest()
        return self.place / "blobs" / key[:32]

    def _link(self, name: str) -> None:
        at = self.folder / name
        make_folder(at.parent)
        up = "/".join([".."] * (len(Path(name).parts) + 1))
        try:
            at.unlink(missing_ok=True)  # a link to what was cleaned away
            at.symlink_to(f"{up}/blobs/{self._blob(name).name}")
        except OSError as error:
            raise write_error(at, error) from error

    def _download(self, names: Collection[str]) -> None:
        if not names:
            return
        if not self.reached:
            raise Unreached(f"{self.name} was not fetched as a whole before: connect to its store, and run this again")
        parts = [part for n in names if (part := self._blob(n).with_suffix(".part")).exists()]
        total = sum(self.objects[n].size for n in names) - sum(part.stat().st_size for part in parts)
        if total > (free := shutil.disk_usage(self.place).free):
            raise HubError(
                f"{self.name} has {total / 1e9:.2f} GB to fetch, and {self.place} has {free / 1e9:.2f} GB free: free "
                "some space, choose another disk with WAMKIT_CACHE_DIR, or name some episodes, URL:0-10"
            )
        print(f"fetching {self.name}: {len(names)} files, {total / 1e6:.1f} MB", file=sys.stderr, flush=True)
        make_folder(self.place / "blobs")
        store = opened(self.name)
        with ThreadPoolExecutor(min(AT_ONCE, len(names))) as pool:
            for got in [pool.submit(self._get, store, name) for name in names]:
                got.result()

    def _get(self, store: Any, name: str) -> None:
        wanted, blob, digests = self.objects[name], self._blob(name), []
        part = blob.with_suffix(".part")
        for _ in range(2):  # a damaged one once more, from its start
            digests.append(self._read(store, name, part))
            if digests[-1] == wanted.etag or not wanted.has_md5 or digests[1:] == digests[:1]:
                break  # the same twice: this store's etags only look like MD5 sums, as those of encrypted objects do
            part.unlink()
        else:
            raise HubError(f"{self.name}: {name} arrived damaged twice; it was removed, run the same command again")
        if digests[-1] != wanted.etag:
            with asking(self.name):
                now = _described(wanted.key, store.info(wanted.key))
            if now != wanted:
                part.unlink()
                raise HubError(f"{self.name}: {name} changed while it was read: run the same command again")
        os.replace(part, blob)
        self._link(name)

    def _read(self, store: Any, name: str, part: Path) -> str:
        """Completes the file `part`, and returns the MD5 of its content."""
        wanted, total = self.objects[name], hashlib.md5(usedforsecurity=False)
        try:
            with open(part, "a+b") as file:
                file.seek(0)
                while block := file.read(BLOCK):
                    total.update(block)
                have = file.tell()
                while have < wanted.size:
                    with asking(self.name):
                        block = store.cat_file(wanted.key, start=have, end=min(have + BLOCK, wanted.size))
                    if not block:
                        raise HubError(f"{self.name}: {name} ended after {have} of {wanted.size} bytes: run this again")
                    file.write(block)
                    total.update(block)
                    have += len(block)
                file.truncate(wanted.size)
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(part, error) from error
        return total.hexdigest()


def object_folder(name: ObjectName) -> ObjectFolder:
    """The objects below a URL now. Where its store does not answer, those that were last listed, and a note says so.

    Raises HubError where there is nothing, or it may not be read, and Unreached without an answer and a last listing.
    """
    name = replace(name, episodes=None)
    place = cache_folder(Path("/", f"{name.scheme}:", name.path))
    try:
        objects, reached = _listed(name), True
    except Unreached as error:
        objects, reached = _last(place), False
        if not objects:
            raise Unreached(f"{name} was not fetched before, and {error}") from error
        print(f"note: {error}; {name} is used as it was last listed", file=sys.stderr, flush=True)
    content = json.dumps({n: [f.key, f.size, f.etag] for n, f in sorted(objects.items())}, indent=1).encode()
    listing = hashlib.sha256(content).hexdigest()[:32]
    if reached:
        make_folder(place / "snapshots" / listing)
        for path, data in (
            (place / "snapshots" / f"{listing}.json", content),
            (place / URL_FILE, str(name).encode()),
            (place / _LATEST, listing.encode()),
        ):
            if not path.exists() or path.read_bytes() != data:
                atomic_write(path, data)
    return ObjectFolder(name, place, objects, listing, reached)


def fetched(name: ObjectName) -> Path:
    """The file or the folder at a URL, all of it, in the cache. Raises HubError as `object_folder` and `fetch` do."""
    if name.episodes is not None:
        raise HubError(f"{name}: only a data set has episodes; name it {replace(name, episodes=None)}")
    found = object_folder(name)
    folder = found.fetch(found.objects)
    return next((folder / n for n, x in found.objects.items() if x.key == name.path), folder)


def opened(name: ObjectName) -> Any:
    """The file system of fsspec for a URL. Raises HubError where its packages are missing."""
    try:
        fsspec = importlib.import_module("fsspec")
        options = dict[str, Any](skip_instance_cache=True, use_listings_cache=False)
        if name.scheme in ("s3", "s3a") and "config_kwargs" not in fsspec.config.conf.get("s3", {}):
            waits = {f"{k}_timeout": v for k, v in TIMEOUT_S.items()}
            options["config_kwargs"] = waits | {"retries": {"max_attempts": 2}}
        return fsspec.filesystem(name.scheme, **options)
    except ImportError as error:
        how = INSTALL if name.scheme in ("s3", "s3a") else "install the package that its scheme needs (gcsfs for gs://)"
        raise HubError(f"{name} cannot be read ({_short(error)}): {how}") from error
    except ValueError as error:
        raise HubError(
            f"{name} cannot be read ({_short(error)}): write s3://BUCKET/FOLDER, gs://BUCKET/FOLDER"
        ) from error


@contextlib.contextmanager
def asking(name: ObjectName) -> Iterator[None]:
    """Turns whatever a store's client library raises into one line about `name`."""
    try:
        yield
    except HubError:
        raise
    except FileNotFoundError as error:
        raise HubError(f"there is nothing at {name}: check the bucket and the folder") from error
    except Exception as error:  # every scheme has a package of its own, with errors of its own
        if isinstance(error, PermissionError) or _DENIED.search(f"{type(error).__name__} {error}"):
            how = _SIGN_IN.get(name.scheme, "sign in as the package of its scheme asks")
            raise HubError(f"{name} may not be read ({_short(error)}): {how}") from error
        raise Unreached(
            f"{name} cannot be reached ({_short(error)}): check the network, and the address of the store "
            "(AWS_ENDPOINT_URL where it is not Amazon's)"
        ) from error


def _listed(name: ObjectName) -> dict[str, RemoteObject]:
    store = opened(name)
    with asking(name):
        entries = store.find(name.path, detail=True)
    out = {}
    for path, entry in entries.items():
        key = path.strip("/")
        inside = key.rpartition("/")[2] if key == name.path else key.removeprefix(f"{name.path}/")
        if entry["type"] == "file" and not any(part.startswith(".") for part in inside.split("/")):
            out[_safe(inside, name)] = _described(key, entry)
    if not out:
        raise HubError(f"there is nothing at {name}: check the bucket and the folder")
    return out


def _last(place: Path) -> dict[str, RemoteObject]:
    """The last listing; empty if there is none."""
    try:
        listing = read_text(place / _LATEST, 100).strip()
        if _MD5.fullmatch(listing) is None:
            return {}
        found = read_json(place / "snapshots" / f"{listing}.json", max_bytes=_MOST_LISTING)
        return {n: RemoteObject(str(key), int(size), str(etag)) for n, (key, size, etag) in found.items()}
    except (StoreError, ValueError, TypeError, AttributeError):
        return {}


def _described(key: str, entry: Mapping[str, Any]) -> RemoteObject:
    etag = next((str(entry[k]) for k in ("ETag", "etag", "md5Hash", "LastModified", "mtime") if entry.get(k)), "")
    return RemoteObject(key, int(entry["size"]), etag.strip('"'))


def _safe(inside: str, name: ObjectName) -> str:
    parts = inside.split("/")
    if not all(parts) or {".", ".."} & set(parts) or "\\" in inside or not inside.isprintable():
        raise HubError(f"{name} holds an object named {inside[:100]!r}, which leads elsewhere: remove it")
    return inside


def _short(reason: object) -> str:
    """The first line of a message, at most 160 characters."""
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    return lines[0][:160].rstrip(" .")
