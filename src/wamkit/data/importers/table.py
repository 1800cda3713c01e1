"""Recordings in any layout, described by a mapping file: HDF5, zarr, npz, parquet and CSV, with videos beside them.

The mapping is TOML; `TableMap` has its keys, docs/data.md an example, and `wamkit import table SOURCE --suggest` writes
a first one. Episodes are groups of one file, files of a folder, or runs of rows. Arrays are called by their names, with
"/" between groups; in "joint_*" the star stands for any letters, and what matches is put side by side.

    fps = 15
    episodes = "demo_*.hdf5"
    state = ["observations/qpos"]
    action = ["action"]
    texts = "@language"

    [cameras]
    top = "observations/images/top"
    wrist = "videos/{stem}_wrist.mp4"
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from wamkit import config as cfg
from wamkit.config import Between, Checked, Rate
from wamkit.data.description import fields_by_name
from wamkit.data.format.schema import Layout
from wamkit.data.importers.base import (
    IMPORTERS,
    ImageStream,
    Importer,
    MissingView,
    Recording,
    SourceError,
    camera_facts,
    camera_layout,
    checked,
    inside,
    reading,
    text_of,
    text_spans,
)
from wamkit.data.importers.table_files import (
    UNITS,
    Declared,
    TableFile,
    by_number,
    is_table,
    short_names,
    stem,
    table_file,
)
from wamkit.data.importers.video_files import ENDINGS, frame_count, probe_video, read_all_frames, read_frames
from wamkit.errors import nearest
from wamkit.files import visible
from wamkit.metadata import DatasetMetadata
from wamkit.types import Span

UNEVEN = 0.5
"""Share of a step by which timestamps may differ from an even clock before an episode gets a note."""


@dataclass(frozen=True)
class CameraSource(Checked):
    """The images of one camera.

    key: an array of images, uint8 (T, H, W, 3), or of JPEG or PNG images; or a video file's path, from the folder of
        the episode's file or from the source, in which {stem} stands for the name of the episode's file without ending,
        and {episode} for that of the episode. Episodes that are rows of one file may share a video.
    bgr: whether red and blue are swapped, as OpenCV has them.
    upside_down: whether images are turned by 180 degrees.
    """

    key: str
    bgr: bool = False
    upside_down: bool = False

    @property
    def is_video(self) -> bool:
        """True for video files."""
        return self.key.lower().endswith(ENDINGS)


@dataclass(frozen=True)
class TableMap(Checked):
    """A mapping file. One of `fps` and `timestamps` must be given.

    episodes: glob pattern of the files of a folder, or of the groups of a file, that are an episode each. Empty for a
        file that is one episode, and for runs of rows.
    episode_ends: array with the row after the last one of each episode.   episode_index: array with each row's episode.
    fps: steps a second.   timestamps: array of times.   time_unit: theirs.
    state, action: arrays, put side by side; a pattern stands for all that match.
    state_names, action_names: names of the dimensions; those of the arrays with numbers if not given.
    text: the instruction of all episodes.   texts: array or attribute ("@NAME", "group@NAME") with an episode's, or
        each step's.
    success, reward: arrays of flags and numbers, one a step.   extras: further arrays by the name that they get.
    cameras: by name.
    offset: 1 if each observation was recorded after the action of its row.
    robot, licence: for the metadata.
    """

    episodes: str = ""
    episode_ends: str = ""
    episode_index: str = ""
    fps: Rate | None = None
    timestamps: str = ""
    time_unit: Literal["s", "ms", "us", "ns"] = "s"
    state: tuple[str, ...] = ()
    action: tuple[str, ...] = ()
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    text: str = ""
    texts: str = ""
    success: str = ""
    reward: str = ""
    extras: Mapping[str, str] = field(default_factory=dict)
    cameras: Mapping[str, CameraSource] = field(default_factory=dict)
    offset: Annotated[int, Between(0, 1)] = 0
    robot: str = "none"
    licence: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fps is None and not self.timestamps:
            raise cfg.ConfigError("neither fps nor timestamps: say how many steps a second there are, as in fps = 15")
        if not self.cameras and not self.state:
            raise cfg.ConfigError("neither cameras nor state: name the arrays that hold images or the robot's state")
        if self.episode_ends and self.episode_index:
            raise cfg.ConfigError("episode_ends and episode_index both say where episodes end: leave one out")


def read_map(path: Path) -> TableMap:
    """The mapping in a TOML file. Raises SourceError that names the file, and the key with the nearest known one."""
    with reading(path):
        try:
            content = tomllib.loads(text_of(path))
        except tomllib.TOMLDecodeError as error:
            raise SourceError(f"{path} is no TOML: {error}") from error
        cameras = content.get("cameras", {})
        if isinstance(cameras, dict):
            content["cameras"] = {n: {"key": c} if isinstance(c, str) else c for n, c in cameras.items()}
        for key in ("state", "action"):
            if isinstance(content.get(key), str):
                content[key] = [content[key]]
        return cfg.from_dict(TableMap, content)


@dataclass(frozen=True)
class _Place:
    """An episode in its source: a file, the group in it, and the rows, None for all.

    order: which one of the `count` episodes in its file, or group, it is.   held: rows of all of these.   note: what
    someone should look at.
    """

    name: str
    file: Path
    group: str = ""
    rows: tuple[int, int] | None = None
    order: int = 0
    count: int = 1
    held: int = 0
    note: str = ""

    def key(self, key: str) -> str:
        """The full name of an array, or of an attribute."""
        return f"{self.group}/{key}" if self.group and key else key

    def inner(self) -> list[str]:
        """Names of the arrays in it, without that of the group."""
        start = f"{self.group}/" if self.group else ""
        return [name.removeprefix(start) for name in _opened(self.file).arrays() if name.startswith(start)]


@dataclass(frozen=True)
class TableOptions(Checked):
    """Options of the importer `table`."""

    map: Path = Path("map.toml")
    """Mapping file; `wamkit import table SOURCE --suggest` writes a first one."""


@dataclass(frozen=True)
class _ReadOptions(TableOptions):
    """The options with the content of the mapping file."""

    mapping: Mapping[str, Any] = field(default_factory=dict)


@IMPORTERS.register("table")
class Table(Importer):
    """Recordings in any layout, by a mapping file: HDF5, zarr, npz, parquet or CSV, and videos."""

    Options = TableOptions
    options: TableOptions
    flat = True

    @cached_property
    def _map(self) -> TableMap:
        mapping = read_map(self.options.map)
        # An import goes on under the same mapping alone, so import.json holds what it says.
        self.options = _ReadOptions(Path(self.options.map.name), cfg.to_dict(mapping))
        return mapping

    @cached_property
    def _places(self) -> dict[str, _Place]:
        places = [place for file, group in self._whole() for place in self._split(file, group)]
        if not places:
            raise SourceError(f"{self.root}: episodes = '{self._map.episodes}' names nothing; {self._held()}")
        return {place.name: place for place in places}

    def _held(self) -> str:
        """A few names that a pattern could have meant."""
        if self.root.is_dir() and not is_table(self.root):
            found = [str(p.relative_to(self.root)) for p in visible(self.root, "**/*") if is_table(p)]
        else:
            found = sorted({name.rpartition("/")[0] for name in _opened(self.root).arrays()} - {""})
        return f"it holds {', '.join(by_number(found)[:5]) or 'no table'}" + (", ..." if len(found) > 5 else "")

    def _whole(self) -> Iterator[tuple[Path, str]]:
        """The files, with the groups in them, that the pattern names."""
        pattern = self._map.episodes
        if self.root.is_dir() and not is_table(self.root):
            for name in by_number([str(p.relative_to(self.root)) for p in visible(self.root, pattern or "*")]):
                if is_table(path := inside(self.root, name)):
                    yield path, ""
        elif pattern:
            depth, seen = pattern.count("/") + 1, set()
            for name in by_number(list(_opened(self.root).arrays())):
                group = "/".join(name.split("/")[:depth])
                if group != name and group not in seen and fnmatchcase(group, pattern):
                    seen.add(group)
                    yield self.root, group
        else:
            yield self.root, ""

    def _split(self, file: Path, group: str) -> Iterator[_Place]:
        """The episodes in a file, or in a group of it."""
        m = self._map
        base = group or (str(file.relative_to(self.root)) if file != self.root else file.name)
        whole = _Place(base, file, group)
        if not m.episode_ends and not m.episode_index:
            yield whole
            return
        key = m.episode_ends or m.episode_index
        marks = self._column(whole, key)
        if marks.dtype.kind not in "iu" or marks.ndim != 1 or not len(marks):
            raise SourceError(f"{file}: '{key}' is no list of whole numbers")
        if m.episode_ends:
            ends = marks.tolist()
        else:
            ends = [*(np.flatnonzero(np.diff(marks)) + 1).tolist(), len(marks)]
        starts = [0, *ends[:-1]]
        if any(b <= a for a, b in zip(starts, ends, strict=True)):
            raise SourceError(f"{file}: '{key}' is not a list of ascending row numbers")
        numbers = range(len(ends)) if m.episode_ends else marks[starts].tolist()
        single = len(set(numbers)) == len(ends)
        if not single and np.median(np.diff([0, *ends])) < 2:
            raise SourceError(f"{file}: '{key}' changes at every other row; sort the rows by episode")
        held = len(marks) if m.episode_index else self._length(whole, ends[-1])
        note = f"rows {ends[-1]} to {held - 1} of the file belong to no episode" if ends[-1] < held else ""
        for i, (a, b) in enumerate(zip(starts, ends, strict=True)):
            number = numbers[i] if single else i
            name = f"{base}:{number}" if base != file.name or self.root.is_dir() else str(number)
            yield _Place(name, file, group, (a, b), i, len(ends), held, note if b == ends[-1] else "")

    def _length(self, place: _Place, end: int) -> int:
        """Rows of the file. Raises SourceError unless `end` can be the row after the last one of an episode."""
        m = self._map
        stored = [c.key for c in m.cameras.values() if not c.is_video]
        key = self._expanded(place, [*m.action, *m.state, *stored])[0] if m.action or m.state or stored else ""
        rows = self._declared(place, key).shape[0] if key else end
        if end > rows or end == rows - 1:
            raise SourceError(
                f"{place.file}: '{m.episode_ends}' ends at {end}, '{key}' has {rows} rows; it must hold the row after "
                "the last one of each episode"
            )
        return rows

    def _column(self, place: _Place, key: str) -> np.ndarray:
        """A whole array, whatever the rows of the episode."""
        declared = self._declared(place, key)
        return _opened(place.file).numbers(place.key(key), 0, declared.shape[0] if declared.shape else 1)

    def _declared(self, place: _Place, key: str) -> Declared:
        """An array as it is declared. Raises SourceError, with the nearest name, where there is none."""
        arrays = _opened(place.file).arrays()
        if (declared := arrays.get(place.key(key))) is None:
            inner = place.inner()
            held = ", ".join(by_number(inner)[:8])
            raise SourceError(
                f"{place.file} (episode {place.name}): there is no '{key}'{nearest(key, inner)}; it holds {held}"
            )
        return declared

    def _expanded(self, place: _Place, keys: Sequence[str]) -> list[str]:
        """The names of arrays, with those that match a pattern in its place."""
        out = []
        for key in keys:
            inner = place.inner()
            if key in inner or not any(c in key for c in "*?["):  # "joint[0]" can be a name
                out.append(key)
                continue
            depth = key.count("/") if _opened(place.file).grouped else None
            found = by_number([n for n in inner if fnmatchcase(n, key) and depth in (None, n.count("/"))])
            if not found:
                self._declared(place, key)  # raises
            out += found
        return out

    def _rows(self, place: _Place, key: str) -> tuple[int, int]:
        declared = self._declared(place, key)
        if not declared.shape:
            raise SourceError(f"{place.file} (episode {place.name}): '{key}' is one value instead of one a step")
        return place.rows or (0, declared.shape[0])

    def _vector(self, place: _Place, keys: Sequence[str]) -> np.ndarray | None:
        """Arrays side by side, float32 (T, d); None where no key is given."""
        parts = []
        for key in self._expanded(place, keys):
            values = _opened(place.file).numbers(place.key(key), *self._rows(place, key))
            parts.append(checked(values.reshape(len(values), -1), (-1, -1), f"'{key}'"))
        if len({len(p) for p in parts}) > 1:
            listed = ", ".join(f"{k}: {len(p)}" for k, p in zip(self._expanded(place, keys), parts, strict=True))
            raise SourceError(f"{place.file} (episode {place.name}): {listed} steps; they must have as many")
        return np.concatenate(parts, 1) if parts else None

    def _names(self, place: _Place, keys: Sequence[str], given: Sequence[str], what: str) -> tuple[str, ...]:
        """Names of the dimensions."""
        out, found = [], self._expanded(place, keys)
        for key, short in zip(found, short_names(found) if _opened(place.file).grouped else found, strict=True):
            size = int(np.prod(self._declared(place, key).shape[1:], dtype=np.int64))
            out += [short] if size == 1 else [f"{short}_{i}" for i in range(size)]
        if given and len(given) != len(out):
            raise SourceError(
                f"{self.options.map}: {len(given)} {what} for {len(out)} dimensions: {', '.join(out[:8])}"
            )
        return tuple(given or (out if len(set(out)) == len(out) else [f"{what[:-6]}_{i}" for i in range(len(out))]))

    @cached_property
    def _fps(self) -> float:
        m = self._map
        if not m.timestamps:
            assert m.fps is not None  # checked by TableMap
            return m.fps
        places = list(self._places.values())[:10]
        place, found = places[0], [_step(self._times(p)) for p in places]
        step, doubt = float(np.median([s for s, _ in found])), min(d for _, d in found)
        rate = 1 / step if step > 0 else 0.0
        if not 0.1 <= rate <= 1000:
            raise SourceError(
                f"{place.file} (episode {place.name}): by '{m.timestamps}' a step takes {step:.3g} s; state time_unit, "
                f"one of {', '.join(UNITS)}, or fps in place of timestamps"
            )
        if m.fps is not None and abs(rate / m.fps - 1) > 0.05:
            raise SourceError(
                f"{self.options.map}: fps = {m.fps:g}, but '{m.timestamps}' has {rate:.3g} steps a second; "
                "leave one out"
            )
        whole = float(round(rate))
        return m.fps or (whole if abs(rate - whole) <= max(doubt, 5e-4) * rate else round(rate, 2))

    def _times(self, place: _Place) -> np.ndarray:
        """Times of the steps, seconds, float64 (T,)."""
        key = self._map.timestamps
        values = _opened(place.file).numbers(place.key(key), *self._rows(place, key))
        times = values.reshape(len(values), -1)[:, 0].astype(np.float64)
        if len(times) < 2:
            raise SourceError(
                f"{place.file} (episode {place.name}): '{key}' has {len(times)} steps, too few for a rate"
            )
        return (times - times[0]) * UNITS[self._map.time_unit]

    def _video(self, place: _Place, camera: CameraSource) -> Path:
        """The video of an episode: beside its file, or else from the source."""
        try:
            name = camera.key.format(stem=stem(place.file), episode=place.name)
        except (LookupError, ValueError) as error:
            raise SourceError(f"'{camera.key}': {{stem}} and {{episode}} alone can stand in a video's path") from error
        base = self.root if self.root.is_dir() and not is_table(self.root) else self.root.parent
        beside = inside(base, str(place.file.parent.relative_to(base) / name))
        return beside if beside.exists() else inside(base, name)

    @cached_property
    def _shown_by(self) -> Mapping[Path, list[_Place]]:
        """The episodes of each video."""
        out: dict[Path, list[_Place]] = {}
        for place in self._places.values():
            for video in {self._video(place, c) for c in self._map.cameras.values() if c.is_video}:
                out.setdefault(video, []).append(place)
        return out

    def _has(self, place: _Place, camera: CameraSource) -> bool:
        if camera.is_video:
            return self._video(place, camera).exists()
        return place.key(camera.key) in _opened(place.file).arrays()

    def _stream(self, place: _Place, name: str, steps: int | None) -> ImageStream:
        """The images of a camera. steps: how many there must be; None for the first one, whatever follows."""
        camera = self._map.cameras[name]

        def images() -> Iterator[np.ndarray]:
            for image in (
                self._video_frames(place, camera, steps) if camera.is_video else self._stored(place, camera, steps)
            ):
                image = image[..., ::-1] if camera.bgr else image
                yield np.ascontiguousarray(image[::-1, ::-1] if camera.upside_down else image)

        return images

    def _stored(self, place: _Place, camera: CameraSource, steps: int | None) -> Iterator[np.ndarray]:
        start, stop = self._rows(place, camera.key)
        if not stop - start:
            raise MissingView(f"{place.file} (episode {place.name}): '{camera.key}' has no images")
        if steps is not None and stop - start not in (steps, steps + 1):
            raise SourceError(f"'{camera.key}' has {stop - start} images for {steps} steps")
        yield from _opened(place.file).images(place.key(camera.key), start, stop if steps is None else start + steps)

    def _video_frames(self, place: _Place, camera: CameraSource, steps: int | None) -> Iterator[np.ndarray]:
        path = self._video(place, camera)
        first, rows = 0, steps or 1
        if len(others := self._shown_by[path]) > 1:
            if place.rows is None or any(p.file != place.file or p.group != place.group for p in others):
                names = " and ".join(p.name for p in others[:2])
                raise SourceError(f"{path} is the video of {names}: put {{episode}} into the path of the camera")
            first, rows = place.rows[0], place.held
        video = probe_video(path, place.name)
        lasts, wanted = video.frames / video.fps, rows / self._fps
        if steps is None:
            yield from read_all_frames(video, video.size, 1, place.name)
        elif video.frames in (rows, rows + 1) or abs(video.fps / self._fps - 1) < 0.01:  # a frame for each row
            yield from read_all_frames(video, video.size, steps, place.name, first)
        elif not 1 / 1.5 < lasts / wanted < 1.5:
            raise SourceError(
                f"{path}: {video.frames} frames at {video.fps:g} a second last {lasts:.3g} s, {rows} rows at "
                f"{self._fps:g} last {wanted:.3g} s; write it with a frame for each row, or with its true rate"
            )
        else:
            start, stop = first / self._fps, (first + steps - 0.5) / self._fps
            yield from read_frames(video, self._fps, video.size, start, stop, place.name)

    def layout(self) -> Layout:
        m, first = self._map, next(iter(self._places.values()))
        seen = {
            name: place
            for name, camera in m.cameras.items()
            if (place := next((p for p in self._places.values() if self._has(p, camera)), None))
        }
        if missing := [n for n in m.cameras if n not in seen]:
            camera = m.cameras[missing[0]]
            if camera.is_video:
                raise SourceError(
                    f"{self.root}: no episode has the video of camera {missing[0]}, {self._video(first, camera)}"
                )
            self._declared(first, camera.key)  # raises
        return Layout(
            **camera_layout({n: next(self._stream(p, n, None)()).shape[:2] for n, p in seen.items()}),
            proprio_names=self._names(first, m.state, m.state_names, "state_names"),
            action_names=self._names(first, m.action, m.action_names, "action_names"),
            fps=self._fps,
            robot_type=m.robot,
            expert=False,
            rewards=bool(m.success or m.reward),
            extras=tuple((n, "float32", len(self._names(first, [k], (), "extras"))) for n, k in m.extras.items()),
        )

    def metadata(self) -> DatasetMetadata:
        m, layout = self._map, self.layout()
        parts = {"state": fields_by_name(layout.proprio_names), "action": fields_by_name(layout.action_names)}
        return DatasetMetadata(
            source=f"table, {self.root.name}",
            embodiment="" if m.robot == "none" else m.robot,
            rate=self._fps,
            licence=m.licence,
            offset=1 if m.offset else 0,
            cameras=camera_facts(m.cameras),
            inferred=tuple(f"{k}.{f.name}" for k, fields in parts.items() for f in fields),
            **parts,
        )

    def episodes(self) -> Sequence[str]:
        return list(self._places)

    def read(self, name: str) -> Recording:
        m, place = self._map, self._places[name]
        with reading(place.file, name):
            action, state = self._vector(place, m.action), self._vector(place, m.state)
            T = self._steps(place, action, state)
            notes = (*self._clock_notes(place, T), *([place.note] if place.note else []))
            text, spans = self._texts(place, T)
            flags = {k: self._vector(place, [key]) for k, key in (("success", m.success), ("reward", m.reward)) if key}
            return Recording(
                name=name,
                text=text,
                spans=spans,
                state=_cut(state, T, "state"),
                action=_cut(action, T, "action"),
                images={n: self._stream(place, n, T) for n, c in m.cameras.items() if self._has(place, c)},
                success=_cut(flags["success"], T, m.success)[:, 0] > 0 if "success" in flags else None,
                reward=_cut(flags["reward"], T, m.reward)[:, 0] if "reward" in flags else None,
                extras={n: _cut(self._vector(place, [k]), T, k) for n, k in m.extras.items()},
                notes=notes,
            )

    def _steps(self, place: _Place, action: np.ndarray | None, state: np.ndarray | None) -> int:
        """T: of the actions, or else of the state, or else of the first camera."""
        if action is not None:
            return len(action)
        if state is not None:
            return len(state)
        camera = next((c for c in self._map.cameras.values() if self._has(place, c)), None)
        if camera is None:
            raise SourceError(f"{place.file} (episode {place.name}): none of its cameras has images")
        if place.rows:
            return place.rows[1] - place.rows[0]
        if camera.is_video:
            return frame_count(probe_video(self._video(place, camera), place.name), self._fps)
        start, stop = self._rows(place, camera.key)
        return stop - start

    def _clock_notes(self, place: _Place, T: int) -> tuple[str, ...]:
        """What someone should look at in the times of an episode."""
        if not self._map.timestamps:
            return ()
        steps = np.diff(self._times(place)[:T]) * self._fps
        if not len(uneven := np.flatnonzero(abs(steps - 1) > UNEVEN)):
            return ()
        t = int(uneven[0])
        return (f"{len(uneven)} steps do not take 1/{self._fps:g} s: step {t} takes {steps[t] / self._fps:.3g} s",)

    def _texts(self, place: _Place, T: int) -> tuple[str, tuple[Span, ...]]:
        m = self._map
        if not m.texts:
            return m.text, ()
        where, mark, attribute = m.texts.rpartition("@")
        key = f"{place.key(where) if where else place.group}@{attribute}" if mark else place.key(m.texts)
        found = _opened(place.file).texts(key)
        if len(found) > 1 and place.rows:
            one_each = len(found) == place.count and place.count < place.held
            found = [found[place.order]] if one_each else found[slice(*place.rows)]
        if len(found) == 1 or len(set(found)) == 1:
            return found[0], ()
        if len(found) < T:
            raise SourceError(
                f"'{m.texts}' has {len(found)} texts for {T} steps; there must be one for all, or one for each step or "
                "episode"
            )
        return found[0], text_spans(found[:T])


def _cut(values: np.ndarray | None, T: int, what: str) -> np.ndarray:
    """T rows; the one after the last action, which many recorders add, is left out. (T, 0) for no values."""
    if values is None:
        return np.zeros((T, 0), np.float32)
    if len(values) not in (T, T + 1):
        raise SourceError(f"'{what}' has {len(values)} steps for {T} actions")
    return values[:T]


@lru_cache(maxsize=2)
def _opened(path: Path) -> TableFile:
    return table_file(path)


def _step(times: np.ndarray) -> tuple[float, float]:
    """Seconds of a usual step, and the share of it that is in doubt.

    The mean of the steps near the median: recorders round times, to 0.03 and 0.04 for 1/30.
    """
    steps = np.diff(times)
    median = np.median(steps)
    usual = near if len(near := steps[abs(steps - median) <= abs(median) / 2]) else steps
    return float(usual.mean()), float(np.ptp(usual) / max(usual.sum(), 1e-9))
