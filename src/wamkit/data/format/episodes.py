"""The episodes of a data set in memory: their facts, and the files that hold their frames.

A million episodes as Python objects would take gigabytes and minutes. Of a data set with many episodes a file, the
facts therefore stay columns, and an object is made for an episode that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wamkit.data.format.schema import ABSENT, IMAGE_DTYPES, camera_name
from wamkit.files import StoreError

MOST_INDEX = 10**9
"""Largest number in the name of a file."""
MOST_STEPS = 1 << 40
"""Largest number of an episode, and of its frames."""
_KEPT = 4096  # episodes whose objects are kept
_SOLE = ("wamkit/sha256/", "wamkit/snapshots")  # columns that only a file of one episode has


@dataclass(frozen=True)
class EpisodeMeta:
    """The facts of a stored episode that are known without reading its frames.

    index: number of the episode in the store.
    task, text: name and instruction; the text is empty where only spans of the episode have one.
    length: number of frames.
    seed: seed of the reset; -1 where unknown.
    success: true if the task was successful at any step.
    is_demonstration: false for episodes that show what actions do rather than how the task is done.
    noise: scale of the action noise.
    from_index: number of its first frame in the store.
    source: name of the episode where it was imported from.
    absent: cameras that saw nothing of it, depth cameras included.
    """

    index: int
    task: str
    text: str
    length: int
    seed: int
    success: bool
    is_demonstration: bool
    noise: float
    from_index: int
    source: str = ""
    absent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Clip:
    """The place of one camera's frames of an episode: file `path`, from frame `start` on.

    path: a video, or the data file, whose rows are the frames.
    sha256: of the video, or of the PNG images one after the other; None where none was recorded.
    """

    path: Path
    start: int
    sha256: str | None


@dataclass(frozen=True)
class Row:
    """A stored episode: its facts and its files.

    texts: the episode's text and all others that its steps refer to.
    data: the parquet file of its numeric columns.
    clips: by camera, depth cameras included. Other programs leave out those of absent cameras.
    snapshots: the file of simulator states, or None.
    sha256: checksums of its files, as far as they were recorded with it.
    """

    meta: EpisodeMeta
    texts: tuple[str, ...]
    data: Path
    clips: Mapping[str, Clip]
    snapshots: Path | None
    sha256: Mapping[Path, str] = field(default_factory=dict)

    def files(self) -> dict[Path, str | None]:
        """Its files besides that of its facts, with their checksums where these were recorded in the facts."""
        paths = (self.data, *(clip.path for clip in self.clips.values()), self.snapshots)
        return {path: self.sha256.get(path) for path in paths if path is not None}


@dataclass(frozen=True)
class Texts:
    """A text of each of E episodes, or several: each different one once.

    texts: the different ones, in the order in which they first occur.
    code: int32, the number of each in `texts`, episode after episode.
    ends: int64 (E,), the end of each episode's part of `code`.
    """

    texts: list[str]
    code: np.ndarray
    ends: np.ndarray

    def of(self, episode: int) -> tuple[str, ...]:
        """The texts of an episode."""
        first = int(self.ends[episode - 1]) if episode else 0
        return tuple(self.texts[c] for c in self.code[first : self.ends[episode]])


@dataclass(frozen=True)
class Clips:
    """The clips of E episodes by one camera, or their places in the data files.

    paths: the files.
    file: int32 (E,), the number of each clip's file in `paths`; -1 for an absent camera.
    start: int64 (E,), as in `Clip`.
    """

    paths: list[Path]
    file: np.ndarray
    start: np.ndarray


@dataclass(frozen=True)
class Columns:
    """The facts of E episodes, as in `EpisodeMeta` and `Row`, as arrays. None stands for the usual value of all."""

    length: np.ndarray
    first: np.ndarray
    texts: Texts
    data: Clips
    clips: Mapping[str, Clips]
    task: Texts | None = None
    source: Texts | None = None
    seed: np.ndarray | None = None
    success: np.ndarray | None = None
    imitate: np.ndarray | None = None
    noise: np.ndarray | None = None

    def row(self, i: int) -> Row:
        """Episode `i`."""
        texts = self.texts.of(i)
        meta = EpisodeMeta(
            index=i,
            task=texts[0] if self.task is None else self.task.of(i)[0],
            text=texts[0],
            length=int(self.length[i]),
            seed=-1 if self.seed is None else int(self.seed[i]),
            success=False if self.success is None else bool(self.success[i]),
            is_demonstration=True if self.imitate is None else bool(self.imitate[i]),
            noise=0.0 if self.noise is None else float(self.noise[i]),
            from_index=int(self.first[i]),
            source="" if self.source is None else self.source.of(i)[0],
            absent=tuple(camera for camera, c in self.clips.items() if c.file[i] < 0),
        )
        clips = {k: Clip(c.paths[c.file[i]], int(c.start[i]), None) for k, c in self.clips.items() if c.file[i] >= 0}
        return Row(meta, texts, self.data.paths[self.data.file[i]], clips, None)

    def users(self) -> dict[Path, int]:
        """All files, in the order in which episodes first need them, and the number of that episode."""
        found: dict[Path, int] = {}
        for each in (self.data, *self.clips.values()):
            numbers, first = np.unique(each.file, return_index=True)
            found |= {each.paths[n]: int(i) for n, i in zip(numbers, first, strict=True) if n >= 0}
        return dict(sorted(found.items(), key=lambda x: x[1]))


class Rows(Sequence[Row]):
    """All episodes of a data set, in order: those in `columns`, and further ones, which may be appended.

    frames: the number of frames of all.
    shown: cameras that saw an episode.
    ends: the end of the last clip in each file of images.
    """

    def __init__(self, rows: Iterable[Row] = (), columns: Columns | None = None):
        self._columns, self._more = columns, list[Row]()
        self._first = 0 if columns is None else len(columns.length)
        self._made: dict[int, Row] = {}
        self._metas: tuple[EpisodeMeta, ...] | None = None
        self.frames, self.shown, self.ends = 0, set[str](), dict[Path, int]()
        if columns is not None:
            self.frames = int(columns.length.sum())
            for camera, clips in columns.clips.items():
                seen = clips.file >= 0
                last = np.zeros(len(clips.paths), np.int64)
                np.maximum.at(last, clips.file[seen], (clips.start + columns.length)[seen])
                self.shown |= {camera} if seen.any() else set()
                self.ends |= dict(zip(clips.paths, last.tolist(), strict=True))
        for row in rows:
            self.append(row)

    def append(self, row: Row) -> None:
        """Adds an episode after the last one."""
        self._more.append(row)
        self._metas = None
        self.frames += row.meta.length
        self.shown |= row.clips.keys() - {*row.meta.absent}
        for clip in row.clips.values():
            self.ends[clip.path] = max(clip.start + row.meta.length, self.ends.get(clip.path, 0))

    def __len__(self) -> int:
        return self._first + len(self._more)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        if index >= self._first:
            return self._more[index - self._first]
        if (row := self._made.get(index)) is None:
            if len(self._made) >= _KEPT:
                self._made = {}
            row = self._made[index] = self._columns.row(index)  # type: ignore[union-attr]
        return row

    def __iter__(self) -> Iterator[Row]:
        """The episodes in order. Those of columns are made one at a time, and none is kept."""
        yield from (self._columns.row(i) for i in range(self._first))  # type: ignore[union-attr]
        yield from self._more

    def metas(self) -> tuple[EpisodeMeta, ...]:
        """The facts of all episodes as objects."""
        if self._metas is None:
            self._metas = tuple(row.meta for row in self)
        return self._metas

    def lengths(self) -> np.ndarray:
        """int64 (E,): the frames of each episode."""
        return self._joined("length", lambda meta: meta.length, np.int64)

    def starts(self) -> np.ndarray:
        """int64 (E,): the number of each episode's first frame in the store."""
        return self._joined("first", lambda meta: meta.from_index, np.int64)

    def demonstrations(self) -> np.ndarray:
        """bool (E,): which episodes are demonstrations."""
        return self._joined("imitate", lambda meta: meta.is_demonstration, bool)

    def seen(self, camera: str) -> np.ndarray:
        """bool (E,): which episodes a camera saw."""
        own = [camera not in row.meta.absent for row in self._more]
        clips = None if self._columns is None else self._columns.clips.get(camera)
        before = np.ones(self._first, bool) if clips is None else clips.file >= 0
        return np.concatenate([before, np.array(own, bool)])

    def instructions(self) -> list[str]:
        """The text of each episode. Equal ones are one object."""
        texts: list[str] = []
        if self._columns is not None:
            told, ends = self._columns.texts, self._columns.texts.ends
            texts = [told.texts[c] for c in told.code[np.concatenate([[0], ends[:-1]])].tolist()]
        return texts + [row.meta.text for row in self._more]

    def texts(self) -> list[str]:
        """All different texts of episodes and their steps, in the order in which they first occur."""
        before = [] if self._columns is None else self._columns.texts.texts
        return list(dict.fromkeys([*before, *(text for row in self._more for text in row.texts)]))

    def _joined(self, name: str, of: Callable[[EpisodeMeta], Any], dtype: Any) -> np.ndarray:
        own = np.array([of(row.meta) for row in self._more], dtype)
        if self._columns is None:
            return own
        before = getattr(self._columns, name)
        before = np.ones(self._first, dtype) if before is None else before
        return np.concatenate([before, own]) if len(own) else before


class _Unclear(Exception):
    """The tables hold something that this module leaves to more careful reading."""


def columns_of(tables: Sequence[pa.Table], info: Mapping[str, Any], place: Callable[[str], Path]) -> Columns | None:
    """The episodes in the tables of meta/episodes, in order, as columns; `place` is that of `episode_index.row_of`.

    None where anything is not plainly right, however little: then every row must be read and judged by itself, which
    gives the fault, or the same episodes.
    """
    try:
        return _columns(tables, info, place)
    except (_Unclear, StoreError, LookupError, ValueError, TypeError, OverflowError, pa.ArrowException):
        return None


def _columns(tables: Sequence[pa.Table], info: Mapping[str, Any], place: Callable[[str], Path]) -> Columns:
    names = set(tables[0].column_names)
    _require(all(set(t.column_names) == names for t in tables))
    _require(ABSENT not in names and not any(n.startswith(_SOLE) for n in names))
    index, length, first = (_whole(tables, n) for n in ("episode_index", "length", "dataset_from_index"))
    _require(len(index) > 0 and length.min() > 0 and int(length.astype(np.float64).sum()) <= MOST_STEPS)
    ends = np.cumsum(length)
    _require(np.array_equal(index, np.arange(len(index))) and np.array_equal(first, ends - length))
    get = lambda name, read: read(tables, name) if name in names else None  # noqa: E731
    texts = _texts(tables, "tasks", listed=True) if "tasks" in names else _blank(len(index))
    task, source = get("wamkit/task", _texts), get("wamkit/source", _texts)
    if task is not None:  # what was recorded here needs an instruction
        worded = np.array([bool(text.strip()) for text in texts.texts])[texts.code]
        worded = np.logical_or.reduceat(worded, np.concatenate([[0], texts.ends[:-1]]))
        _require(bool((worded | _imported(source, len(index))).all()))
    numbers = _whole(tables, "data/chunk_index", MOST_INDEX), _whole(tables, "data/file_index", MOST_INDEX)
    data = _clips(numbers, lambda chunk, file: info["data_path"].format(chunk_index=chunk, file_index=file), place)
    data = Clips(data.paths, data.file, _before(data.file, length))
    clips: dict[str, Clips] = {}
    for key, feature in info["features"].items():
        if feature["dtype"] in IMAGE_DTYPES:
            found = _videos(tables, key, info, place) if feature["dtype"] == "video" else data
            _require(camera_name(key) not in clips)
            clips[camera_name(key)] = found
    videos = [c for c in clips.values() if c is not data]
    every = [*data.paths, *(path for c in videos for path in c.paths)]
    _require(len(set(every)) == len(every))  # else the clips of several cameras share a file, in some order
    for video in videos:
        _require_apart(video, length)
    more = {
        "seed": get("wamkit/seed", lambda t, n: _numbers(t, n, pa.types.is_integer)),
        "success": get("wamkit/success", lambda t, n: _numbers(t, n, pa.types.is_boolean)),
        "imitate": get("wamkit/imitate", lambda t, n: _numbers(t, n, pa.types.is_boolean)),
        "noise": get("wamkit/noise", lambda t, n: _numbers(t, n, pa.types.is_floating)),
    }
    _require(more["noise"] is None or bool(np.isfinite(more["noise"]).all()))
    return Columns(length, first, texts, data, clips, task, source, **more)


def _require(holds: bool) -> None:
    if not holds:
        raise _Unclear


def _numbers(tables: Sequence[pa.Table], name: str, kind: Callable[[pa.DataType], bool]) -> np.ndarray:
    """A column without empty cells, whose type is `kind`."""
    columns = [table[name] for table in tables]
    _require(all(kind(c.type) and not c.null_count for c in columns))
    return np.concatenate([c.to_numpy() for c in columns])


def _whole(tables: Sequence[pa.Table], name: str, most: int = MOST_STEPS) -> np.ndarray:
    """A column of whole numbers from 0 to `most`, int64."""
    found = _numbers(tables, name, pa.types.is_integer)
    _require(not len(found) or 0 <= int(found.min()) and int(found.max()) <= most)
    return found.astype(np.int64)


def _texts(tables: Sequence[pa.Table], name: str, listed: bool = False) -> Texts:
    """A column of texts, or of lists of at least one text."""
    number: dict[str, int] = {}
    codes, counts = [], []
    for table in tables:
        column = table[name].combine_chunks()
        if listed:
            _require(pa.types.is_list(column.type) or pa.types.is_large_list(column.type))
            _require(not column.null_count)
            counts.append(pc.list_value_length(column).to_numpy())
            column = column.flatten()
        _require(pa.types.is_string(column.type) or pa.types.is_large_string(column.type))
        _require(not column.null_count)
        once = column.dictionary_encode()
        own = [number.setdefault(text, len(number)) for text in once.dictionary.to_pylist()]
        codes.append(np.array(own, np.int32)[once.indices.to_numpy()])
    code = np.concatenate(codes)
    count = np.concatenate(counts) if listed else np.ones(len(code), np.int64)
    _require(bool((count > 0).all()))
    return Texts(list(number), code, np.cumsum(count, dtype=np.int64))


def _blank(episodes: int) -> Texts:
    return Texts([""], np.zeros(episodes, np.int32), np.arange(1, episodes + 1))


def _imported(source: Texts | None, episodes: int) -> np.ndarray:
    """bool (E,): which episodes have a source."""
    return np.zeros(episodes, bool) if source is None else np.array([bool(t) for t in source.texts])[source.code]


def _clips(
    numbers: tuple[np.ndarray, np.ndarray], name: Callable[[int, int], str], place: Callable[[str], Path]
) -> Clips:
    """Files by chunk and number in it, both int64 (E,). Frames start at 0."""
    chunk, file = numbers
    each, which = np.unique(chunk * (MOST_INDEX + 1) + file, return_inverse=True)
    paths = [place(name(*divmod(int(n), MOST_INDEX + 1))) for n in each]
    return Clips(paths, which.reshape(-1).astype(np.int32), np.zeros(len(file), np.int64))


def _videos(tables: Sequence[pa.Table], key: str, info: Mapping[str, Any], place: Callable[[str], Path]) -> Clips:
    """The clips of one camera's videos."""
    columns = [_placed(tables, f"videos/{key}/{name}") for name in ("chunk_index", "file_index", "from_timestamp")]
    (chunk, absent), (file, _), (since, _) = columns
    _require(all(np.array_equal(none, absent) for _, none in columns) and since.dtype == np.float64)
    for x in (chunk, file):
        _require(not len(x) or 0 <= x.min() and x.max() <= MOST_INDEX and bool((x == np.rint(x)).all()))
    start = np.rint(since * info["fps"])
    _require(bool((np.abs(start) <= MOST_STEPS).all()))
    name = lambda chunk, file: info["video_path"].format(video_key=key, chunk_index=chunk, file_index=file)  # noqa: E731
    here = np.flatnonzero(~absent)
    found = _clips((chunk[here].astype(np.int64), file[here].astype(np.int64)), name, place)
    number = np.full(len(absent), -1, np.int32)
    number[here] = found.file
    return Clips(found.paths, number, start.astype(np.int64))


def _placed(tables: Sequence[pa.Table], name: str) -> tuple[np.ndarray, np.ndarray]:
    """A column of numbers, 0 for empty cells and NaN, which are how others mark absent cameras, and where these are."""
    values, absent = [], []
    for column in (table[name] for table in tables):
        _require(pa.types.is_integer(column.type) or pa.types.is_floating(column.type))
        none = column.is_null(nan_is_null=True).to_numpy()
        filled = column.fill_null(0).to_numpy()
        values.append(np.where(none, 0, filled) if none.any() else filled)
        absent.append(none)
    found = np.concatenate(values)
    return found.astype(np.float64 if found.dtype.kind == "f" else np.int64), np.concatenate(absent)


def _before(file: np.ndarray, length: np.ndarray) -> np.ndarray:
    """int64 (E,): the frames of earlier episodes in each episode's file."""
    order = np.argsort(file, kind="stable")
    total = np.cumsum(length[order]) - length[order]
    out = np.empty_like(total)
    out[order] = total - total[np.searchsorted(file[order], file[order])]
    return out


def _require_apart(clips: Clips, length: np.ndarray) -> None:
    """Every clip starts at or after the end of the one before it in its file."""
    here = np.flatnonzero(clips.file >= 0)
    order = here[np.argsort(clips.file[here], kind="stable")]
    file, start, end = clips.file[order], clips.start[order], (clips.start + length)[order]
    same = file[1:] == file[:-1]
    _require(bool((start >= 0).all()) and bool((start[1:] >= end[:-1])[same].all()))
