"""The import engine: stores the episodes of an importer. Serves `wamkit import`.

An import continues where it was cut off, and half a data set never looks complete.

    <out>/import.json    source, options, completeness, and the episodes left out with reasons
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from wamkit import config as cfg
from wamkit.data.description import answered
from wamkit.data.format import checksums
from wamkit.data.format.checksums import digest_of
from wamkit.data.format.copied import VideoCopy, reason_to_encode
from wamkit.data.format.episode_index import check_episode
from wamkit.data.format.metadata_io import load_metadata, save_metadata
from wamkit.data.format.remedy import IMPORTED, is_labelled
from wamkit.data.format.schema import Layout
from wamkit.data.format.stills import Encoded, checksum, encode_camera
from wamkit.data.format.store import Store
from wamkit.data.importers.base import (
    IMPORTERS,
    ImageStream,
    Importer,
    MissingView,
    Recording,
    SourceError,
    entry,
    reading,
    words,
)
from wamkit.files import StoreError, check_place, read_json
from wamkit.metadata import DatasetMetadata
from wamkit.types import Episode, Span, WamkitError

FILE = IMPORTED


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Options of an import that do not depend on its format."""

    out: Path
    """Folder of the store."""
    on_error: Literal["fail", "skip"] = "fail"
    """Stop at an episode that cannot be read, or leave it out and report it."""
    limit: int | None = None
    """Import only the first so many episodes."""
    missing_views: Literal["refuse", "mask"] = "refuse"
    """Refuse an episode without the images of a camera, or take it without this view."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """Entries of the metadata that the source does not state, or states wrongly; see `description.answered`."""


@dataclass(frozen=True, kw_only=True)
class Import(Destination):
    """Imports a data set in another format. The same command continues an import that was cut off."""

    format: str
    """Name of the importer; `wamkit list` shows all."""
    source: Path
    """The file or folder to read."""


def importer_of(format: str, source: Path, options: Any = None) -> Importer:
    """An importer for `source`.

    format: name of the importer. An unknown name raises, with the nearest.
    options: an instance of its `Options`; None for the defaults.
    """
    cls = IMPORTERS.get(format)
    if not source.exists():
        raise SourceError(f"{source}: there is no such file or folder; name the one to import")
    return cls(source, cls.Options() if options is None else options)


def import_data(args: Import, options: Any = None, videos: Counter[str] | None = None) -> Store:
    """Imports a data set and returns the store.

    options: an instance of the importer's `Options`; None for the defaults.
    videos: counts the source's videos by the reason for which they were encoded; "" counts those that were copied.

    Raises SourceError for a source that cannot be read, and with on_error "fail" for the first such episode. Episodes
    stored before stay, and the same call continues after them. Raises StoreError if `out` contains other data.
    """
    check_place(args.out / FILE)
    importer = importer_of(args.format, args.source, options)
    with reading(args.source):
        layout, metadata, names = importer.layout(), importer.metadata(), list(importer.episodes())
        metadata.check(len(layout.proprio_names), len(layout.action_names))
        if args.missing_views == "mask":
            layout = replace(layout, optional=layout.cameras)
        for name in names:
            words(name, "the name of an episode")
    if duplicates := [name for name, count in Counter(names).items() if count > 1]:
        raise SourceError(f"{args.source}: there are two episodes {min(duplicates)}; rename or remove one")
    metadata, names = _stated(metadata, layout, args.set), names[: args.limit]
    if not names:
        raise SourceError(f"{args.source}: it contains no episodes")
    if not (args.out / FILE).exists() and (args.out / "meta/info.json").exists() and len(Store.open(args.out)):
        raise StoreError(f"{args.out} holds a data set that `wamkit import` did not write: name another folder")
    facts: dict[str, Any] = {
        "format": args.format,
        "source": str(args.source),
        "options": cfg.to_dict(importer.options),
        "episodes": len(names),
        "notes": noted(args.out),
        "metadata": cfg.to_dict(metadata),
    }
    require_same(args.out, facts)
    completed = _completed(args.out, metadata)
    store = Store.open_or_create(args.out, **vars(layout))
    save_metadata(args.out, completed)
    skipped: dict[str, str] = {}
    save_state(args.out, facts, False, skipped)
    stored, fingerprints = {m.source for m in store.episodes}, _fingerprints(store)
    for name in tqdm(names, unit="episode", desc="importing", leave=False):
        if name in stored:
            continue
        try:
            recording = _read(importer, name)
            if recording.notes:
                facts["notes"][name] = list(recording.notes)
                save_state(args.out, facts, False, skipped)
            if metadata.offset:
                recording = shifted(recording)
            _store(store, recording, layout, fingerprints, Counter() if videos is None else videos)
        except (SourceError, StoreError) as error:
            if args.on_error == "fail" or not isinstance(error, SourceError):
                raise
            skipped[name] = str(error)
            save_state(args.out, facts, False, skipped)
    if not len(store):
        raise SourceError(
            f"{args.source}: none of its {len(names)} episodes can be read; the first: {next(iter(skipped.values()))}"
        )
    if gone := stored.difference(names) if args.limit is None else ():
        print(f"note: {len(gone)} episodes of {args.out} are no longer in {args.source}: {', '.join(sorted(gone)[:3])}")
    store.finalize()
    save_state(args.out, facts, True, skipped)
    return store


def _stated(metadata: DatasetMetadata, layout: Layout, entries: Mapping[str, Any]) -> DatasetMetadata:
    """The metadata with the entries that the user states. Raises WamkitError, naming the entry, for an unknown one."""
    if columns := next((e for e in entries if e.startswith("columns.")), None):
        raise WamkitError(f"--set {columns}: an import takes columns by options of its format; see its --help")
    metadata = answered(metadata, entries)
    metadata.check(len(layout.proprio_names), len(layout.action_names))
    return metadata


def require_same(out: Path, facts: Mapping[str, Any]) -> None:
    """Raises StoreError if `out` holds the import of another source, or with other options. It may have fewer episodes.

    Episodes are known by their names, which another source may have too.
    """
    if not (path := out / FILE).exists():
        return
    with reading(path):
        before = read_json(path)
        own = {k: entry(before, k, str) for k in ("format", "source")}
        given = {f"options.{k}": v for k, v in entry(before, "options", dict).items() if k in facts["options"]}
    now = {k: facts[k] for k in own} | {k: facts["options"][k.removeprefix("options.")] for k in given}
    changed = [f"{k} was {was!r}, now {now[k]!r}" for k, was in (own | given).items() if was != now[k]]
    if changed:
        raise StoreError(f"{out} was imported otherwise: {'; '.join(changed)}. Name another folder for it")


def _completed(out: Path, metadata: DatasetMetadata) -> DatasetMetadata:
    """The metadata in `out`, with what an earlier version or `wamkit describe` left open as `metadata` state it.

    Raises StoreError where the import was begun with others. Their state is in import.json; earlier versions kept them
    in the data set alone.
    """
    if (there := load_metadata(out)) is None:
        return metadata
    have, now = cfg.to_dict(there), cfg.to_dict(metadata)
    path = out / FILE
    with reading(path):
        before = entry(read_json(path), "metadata", dict, have) if path.exists() else have
    if changed := [f"{at} was {was!r}, now {is_!r}" for at, was, is_ in _contradictions(before, now)]:
        raise StoreError(
            f"{out} was imported with other metadata: {'; '.join(changed[:4])}. Name another folder for it, "
            "or state by --set what was stated before"
        )
    return cfg.from_dict(DatasetMetadata, _filled(have, now))


def _is_open(value: Any) -> bool:
    return value is None or value == "" or isinstance(value, (list, tuple, dict)) and not value


def _contradictions(was: Any, now: Any, at: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(place, value, value) wherever both sides state something, and not the same."""
    if _is_open(was) or _is_open(now) or was == now:
        return
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for key in was.keys() & now.keys():
            yield from _contradictions(was[key], now[key], f"{at}.{key}" if at else str(key))
    elif isinstance(was, (list, tuple)) and isinstance(now, (list, tuple)) and len(was) == len(now):
        for i, pair in enumerate(zip(was, now, strict=True)):
            yield from _contradictions(*pair, f"{at}.{i}")
    else:
        yield at, was, now


def _filled(have: Any, now: Any) -> Any:
    """`have`, with the values of `now` where it is open."""
    if isinstance(have, Mapping) and isinstance(now, Mapping):
        return {**now, **{key: _filled(value, now.get(key)) for key, value in have.items()}}
    lists = isinstance(have, (list, tuple)) and isinstance(now, (list, tuple))
    if lists and len(have) == len(now) and not any(_contradictions(have, now)):
        return [_filled(*pair) for pair in zip(have, now, strict=True)]
    return now if _is_open(have) and now is not None else have


def save_state(out: Path, facts: Mapping[str, Any], complete: bool, skipped: Mapping[str, str]) -> None:
    """Writes import.json. facts: what it is made from; skipped: reasons for episodes left out, by their names."""
    checksums.write(out, {FILE: cfg.to_bytes({**facts, "complete": complete, "skipped": skipped})})


def _read(importer: Importer, name: str) -> Recording:
    """An episode whose texts can be stored, and whose images raise SourceError whatever their reader raises."""
    with reading(importer.root, name):
        recording = importer.read(name)
        for text in (recording.text, recording.task, *(span.text for span in recording.spans)):
            words(text, "a text")
    if not len(recording):
        raise SourceError(f"{importer.root}: episode {name} has no steps; leave it out by --on-error skip")

    def named(images: ImageStream) -> ImageStream:
        def stream() -> Iterator[np.ndarray]:
            with reading(importer.root, name):
                for image in images():
                    yield image.repeat(3, 2) if image.ndim == 3 and image.shape[2] == 1 else image

        return stream

    return replace(recording, images={camera: named(images) for camera, images in recording.images.items()})


def require_whole(root: Path) -> None:
    """Raises StoreError if an import into `root` was cut off, so that only a part of the data is there."""
    path = root / FILE
    content = read_json(path) if path.exists() else {"complete": True}
    if not isinstance(content, dict) or not isinstance(content.get("complete"), bool):
        raise StoreError(f"{path} is damaged: it does not say if the import is complete; run the import again")
    if not content["complete"]:
        what, command = ("labelling", "label") if is_labelled(content) else ("import", "import")
        raise StoreError(f"{root}: its {what} was cut off; run the same `wamkit {command}` again to continue it")


def shifted(recording: Recording) -> Recording:
    """A copy of a recording with `offset` 1 whose row t was observed before action t. It is one step shorter.

    The observation before the first action and the action after the last observation were not recorded.
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


def _store(
    store: Store, recording: Recording, layout: Layout, fingerprints: dict[Any, str], videos: Counter[str]
) -> None:
    """Encodes and appends one recording. Raises SourceError for one that does not fit the layout, or a duplicate."""
    T, name = len(recording), recording.name
    encoded, reasons = _encoded(recording, layout)
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
        absent=tuple(c for c in layout.cameras if c not in encoded),
    )
    video = checksum(encoded[layout.cameras[0]]) if layout.cameras[:1] and layout.cameras[0] in encoded else None
    fingerprint = _fingerprint(episode.proprio, episode.action, video)
    if fingerprint in fingerprints:
        raise SourceError(f"episode {name} is identical to episode {fingerprints[fingerprint]}; remove one")
    try:
        check_episode(episode, layout, with_images=False)
    except StoreError as error:
        raise SourceError(f"episode {name}: {error}") from error
    store.append(episode, encoded)
    fingerprints[fingerprint] = name
    videos.update(reasons)


def _encoded(recording: Recording, layout: Layout) -> tuple[dict[str, Encoded], list[str]]:
    """The images of each camera as they are stored, and the reason why each video was encoded, "" for a copy.

    Cameras that an episode may lack and lacks are left out.
    """
    out: dict[str, Encoded] = {}
    reasons: list[str] = []
    name = recording.name
    if more := set(recording.images) - set(layout.cameras):
        raise SourceError(f"episode {name}: camera {min(more)} is none of {', '.join(layout.cameras)}; correct it")
    for camera in layout.cameras:
        try:
            if camera not in recording.images:
                raise MissingView(f"episode {name}: there are no images of camera {camera}; fetch them again")
            copy, why = _copy(recording, layout, camera)
            out[camera] = copy or encode_camera(recording.images[camera](), layout, camera, len(recording))
            reasons += why
        except MissingView as error:
            if camera not in layout.optional:
                raise SourceError(
                    f"{error}, or take such episodes without a view by --missing-views mask and another --out"
                ) from error
        except StoreError as error:
            raise SourceError(f"episode {name}, camera {camera}: {error}") from error
    return out, reasons


def _copy(recording: Recording, layout: Layout, camera: str) -> tuple[VideoCopy | None, list[str]]:
    """The video to copy if there is one, or else the reason, if there is one, why it is encoded."""
    path = recording.videos.get(camera)
    if path is None or not path.is_file():  # what is wrong with it, its images say
        return None, []
    copy = VideoCopy(path, digest_of(path))
    reason = reason_to_encode(path, layout.fps, layout.size(camera), len(recording))
    return (None if reason else copy), [reason]


def _fingerprint(state: np.ndarray, action: np.ndarray, video: str | None) -> tuple[Any, ...]:
    """A key that differs between episodes: a digest of the vectors, and that of the first camera's video."""
    return hashlib.sha256(state.tobytes() + action.tobytes()).hexdigest(), video


def _fingerprints(store: Store) -> dict[Any, str]:
    """The name of each stored episode by its fingerprint."""
    columns, out = store.numeric(), {}
    for m in store.episodes:
        here = slice(m.from_index, m.from_index + m.length)
        video = store.checksum(m.index, store.cameras[0]) if store.cameras else None
        out[_fingerprint(columns["observation.state"][here], columns["action"][here], video)] = m.source
    return out


def left_out(root: Path) -> dict[str, str]:
    """The episodes left out by the import into `root`, with reasons."""
    path = root / FILE
    with reading(path):
        skipped = entry(read_json(path), "skipped", dict) if path.exists() else {}
        return {name: words(reason, f"the reason for {name[:80]}") for name, reason in skipped.items()}


def noted(root: Path) -> dict[str, list[str]]:
    """The notes on episodes that were imported into `root`, by their names in the source."""
    path = root / FILE
    with reading(path):
        notes = entry(read_json(path), "notes", dict, {}) if path.exists() else {}
        return {name: [words(note, f"a note on {name[:80]}") for note in each] for name, each in notes.items()}


def describe_videos(videos: Counter[str]) -> str:
    """A line on the videos that were copied and those that were encoded, as `import_data` counts them."""
    encoded = [(reason, count) for reason, count in videos.most_common() if reason]
    why = "; ".join(f"{count}: {reason}" for reason, count in encoded[:3])
    more = f"; {sum(count for _, count in encoded[3:])} for other reasons" if len(encoded) > 3 else ""
    total = sum(count for _, count in encoded)
    return f"videos: {videos['']} copied, {total} encoded" + (f" ({why}{more})" if total else "")


def describe(skipped: Mapping[str, str]) -> str:
    """A few lines of text on the episodes left out."""
    lines = [f"  {name}: {reason}" for name, reason in islice(skipped.items(), 5)]
    more = [f"  and {len(skipped) - 5} more, in {FILE}"] if len(skipped) > 5 else []
    return "\n".join([f"left out {len(skipped)} episodes:", *lines, *more]) if skipped else ""
