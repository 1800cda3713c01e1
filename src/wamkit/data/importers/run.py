"""Brings a foreign data set into a store: `wamkit import`. Continues where it was cut off, and never leaves half a data set
that looks whole.

    <out>/import.json    what was imported, from where, whether it is complete, and which episodes were left out and why
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from wamkit import config as cfg
from wamkit.data.format.metadata_io import load_metadata, save_metadata
from wamkit.data.format.schema import Layout
from wamkit.data.format.stills import checksum, encode_camera
from wamkit.data.format.store import Store
from wamkit.data.importers.base import IMPORTERS, ImageStream, Importer, Recording, SourceError
from wamkit.files import StoreError
from wamkit.types import Episode, Span

FILE = "import.json"


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where an import goes, and what it does on the way."""

    out: Path
    """Where the store goes."""
    on_error: Literal["fail", "skip"] = "fail"
    """What to do about an episode that cannot be read: stop there, or leave it out and say so."""
    limit: int | None = None
    """Only the first so many episodes."""


@dataclass(frozen=True, kw_only=True)
class Import(Destination):
    """Brings a foreign data set into a store, episode by episode; the same command continues one that was cut off."""

    format: str
    """Which importer; `wamkit list` shows all."""
    source: Path
    """The file or folder to read."""


def importer_of(format: str, source: Path, options: Any = None) -> Importer:
    """The importer of that name for `source`. An unknown name raises, with the nearest."""
    cls = IMPORTERS.get(format)
    if not source.exists():
        raise SourceError(f"{source}: there is no such file or folder; name the one to import")
    return cls(source, cls.Options() if options is None else options)


def import_data(args: Import, options: Any = None) -> Store:
    """Imports, and returns the store.

    Raises SourceError for a source that cannot be read, or, with on_error "fail", for the first episode that cannot; what was
    stored by then stays, and the same call goes on from there. Raises StoreError if `out` holds something else.
    """
    importer = importer_of(args.format, args.source, options)
    layout, metadata, names = importer.layout(), importer.metadata(), list(importer.episodes())
    metadata.check(len(layout.proprio_names), len(layout.action_names))
    if twice := {n for n in names if names.count(n) > 1} if len(set(names)) < len(names) else set():
        raise SourceError(f"{args.source}: episode {min(twice)} is there twice; rename or remove one")
    names = names[: args.limit]
    if not names:
        raise SourceError(f"{args.source}: there are no episodes in it")
    store = Store.open_or_create(args.out, **vars(layout))
    if (before := load_metadata(args.out)) is not None and before != metadata:
        raise StoreError(
            f"{args.out} holds data whose numbers mean something else ({before.source}, {before.embodiment}); name another folder"
        )
    save_metadata(args.out, metadata)
    facts = {
        "format": args.format,
        "source": str(args.source),
        "options": cfg.to_dict(importer.options),
        "episodes": len(names),
    }
    skipped: dict[str, str] = {}
    cfg.save_json(args.out / FILE, {**facts, "complete": False, "skipped": skipped})
    have, fingerprints = {m.source for m in store.episodes}, _fingerprints(store)
    for name in tqdm(names, unit="episode", desc="importing", leave=False):
        if name in have:
            continue
        try:
            recording = importer.read(name)
            if metadata.offset:
                recording = shifted(recording)
            _store(store, recording, layout, fingerprints)
        except (SourceError, StoreError) as error:
            if args.on_error == "fail" or not isinstance(error, SourceError):
                raise
            skipped[name] = str(error)
            cfg.save_json(args.out / FILE, {**facts, "complete": False, "skipped": skipped})
    if not len(store):
        raise SourceError(
            f"{args.source}: not one of {len(names)} episodes can be read; the first: {next(iter(skipped.values()))}"
        )
    store.finalize()
    cfg.save_json(args.out / FILE, {**facts, "complete": True, "skipped": skipped})
    return store


def require_whole(root: Path) -> None:
    """Raises StoreError where an import into `root` was cut off: what is there is part of a data set."""
    path = root / FILE
    try:
        whole = not path.exists() or json.loads(path.read_bytes())["complete"]
    except (ValueError, LookupError, TypeError) as error:
        raise StoreError(f"{path} is damaged ({error}); run the import again") from error
    if not whole:
        raise StoreError(f"{root}: its import was cut off; run the same `wamkit import` again, it goes on from there")


def shifted(recording: Recording) -> Recording:
    """A recording whose row t was seen after action t, with row t seen before action t: a step shorter.

    What was seen before the first action, and what was done after the last picture, nobody recorded.
    """
    last = len(recording) - 1

    def cut(images: ImageStream) -> ImageStream:
        return lambda: islice(images(), last)

    later = lambda x: None if x is None else x[1:]  # noqa: E731
    return replace(
        recording,
        state=recording.state[:-1],
        action=recording.action[1:],
        images={k: cut(p) for k, p in recording.images.items()},
        spans=tuple(Span(s.start, min(s.stop, last), s.text) for s in recording.spans if s.start < last),
        success=later(recording.success),
        reward=later(recording.reward),
        extras={k: v[:-1] for k, v in recording.extras.items()},
    )


def _store(store: Store, recording: Recording, layout: Layout, fingerprints: dict[Any, str]) -> None:
    """Encodes and appends one recording. Raises SourceError for one that does not fit, or that is there already."""
    T, name = len(recording), recording.name
    zeros = np.zeros(T, np.float32)
    episode = Episode(
        task=recording.task or recording.text,
        text=recording.text,
        seed=-1,
        fps=layout.fps,
        cameras=layout.cameras,
        images=None,
        proprio=recording.state,
        action=recording.action,
        action_expert=recording.action,
        reward=zeros if recording.reward is None else np.asarray(recording.reward, np.float32),
        success=np.zeros(T, bool) if recording.success is None else np.asarray(recording.success, bool),
        is_demonstration=recording.is_demonstration,
        spans=recording.spans,
        source=name,
        extras=recording.extras,
    )
    if set(recording.images) != set(layout.cameras):
        raise SourceError(f"episode {name}: cameras {sorted(recording.images)} instead of {sorted(layout.cameras)}")
    encoded = {}
    for camera in layout.cameras:
        try:
            encoded[camera] = encode_camera(recording.images[camera](), layout, camera, T)
        except StoreError as error:
            raise SourceError(f"episode {name}, camera {camera}: {error}") from error
    video = checksum(encoded[layout.cameras[0]]) if encoded else None
    fingerprint = _fingerprint(episode.proprio, episode.action, video)
    if fingerprint in fingerprints:
        raise SourceError(
            f"episode {name} is the same as episode {fingerprints[fingerprint]}, number for number; remove one"
        )
    try:
        store.append(episode, encoded)
    except StoreError as error:
        if "cannot store the episode" in str(error):
            raise SourceError(f"episode {name}: {error}") from error
        raise
    fingerprints[fingerprint] = name


def _fingerprint(state: np.ndarray, action: np.ndarray, video: str | None) -> tuple[Any, ...]:
    """What tells episodes apart: the numbers and the first camera's film."""
    return hashlib.sha256(state.tobytes() + action.tobytes()).hexdigest(), video


def _fingerprints(store: Store) -> dict[Any, str]:
    """Of the episodes that are there: how each is told from others, and its name."""
    numbers, out = store.numeric(), {}
    for m in store.episodes:
        here = slice(m.from_index, m.from_index + m.length)
        video = store.checksum(m.index, store.cameras[0]) if store.cameras else None
        out[_fingerprint(numbers["observation.state"][here], numbers["action"][here], video)] = m.source
    return out


def left_out(root: Path) -> dict[str, str]:
    """Episodes that the import into `root` left out, and why."""
    path = root / FILE
    return json.loads(path.read_bytes())["skipped"] if path.exists() else {}


def describe(skipped: Mapping[str, str]) -> str:
    """What was left out, in a few lines."""
    lines = [f"  {name}: {reason}" for name, reason in islice(skipped.items(), 5)]
    more = [f"  and {len(skipped) - 5} more, in {FILE}"] if len(skipped) > 5 else []
    return "\n".join([f"left out {len(skipped)} episodes:", *lines, *more]) if skipped else ""
