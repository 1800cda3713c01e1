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
from wamkit.data.importers.table_files import FORMATS, Declared, TableFile, by_number, is_table, table_file
from wamkit.data.importers.video_files import ENDINGS, probe_video, read_all_frames, read_frames
from wamkit.errors import nearest
from wamkit.files import visible
from wamkit.metadata import DatasetMetadata
from wamkit.types import Span

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
UNEVEN = 0.5
"""Share of a step by which timestamps may differ from an even clock before an episode gets a note."""


@dataclass(frozen=True)
class CameraSource(Checked):
    """The images of one camera.

    key: an array of images, uint8 (T, H, W, 3), or of JPEG or PNG images; or a video file's path relative to the
        source, in which {stem} stands for the name of the episode's file without ending, and {episode} for that of the
        episode.
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
    """An episode in its source: a file, the group in it, and the rows, None for all."""

    name: str
    file: Path
    group: str = ""
    rows: tuple[int, int] | None = None

    def key(self, key: str) -> str:
        """The full name of an array, or of an attribute."""
        return f"{self.group}/{key}" if self.group and key else key


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
        self.options = _ReadOptions(self.options.map, cfg.to_dict(mapping))
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
        marks = self._column(whole, m.episode_ends or m.episode_index)
        if marks.dtype.kind not in "iu" or marks.ndim != 1 or not len(marks):
            raise SourceError(f"{file}: '{m.episode_ends or m.episode_index}' is no list of whole numbers")
        if m.episode_ends:
            ends = marks.tolist()
        else:
            ends = [*(np.flatnonzero(np.diff(marks)) + 1).tolist(), len(marks)]
        starts = [0, *ends[:-1]]
        if any(b <= a for a, b in zip(starts, ends, strict=True)):
            raise SourceError(f"{file}: '{m.episode_ends}' is not a list of ascending row numbers")
        numbers = range(len(ends)) if m.episode_ends else marks[starts].tolist()
        single = len({place for place in numbers}) == len(ends)
        for i, (a, b) in enumerate(zip(starts, ends, strict=True)):
            number = numbers[i] if single else i
            yield _Place(
                f"{base}:{number}" if base != file.name or self.root.is_dir() else str(number), file, group, (a, b)
            )

    def _column(self, place: _Place, key: str) -> np.ndarray:
        """A whole array, whatever the rows of the episode."""
        declared = self._declared(place, key)
        return _opened(place.file).numbers(place.key(key), 0, declared.shape[0] if declared.shape else 1)

    def _declared(self, place: _Place, key: str) -> Declared:
        """An array as it is declared. Raises SourceError, with the nearest name, where there is none."""
        arrays = _opened(place.file).arrays()
        if (declared := arrays.get(place.key(key))) is None:
            inner = [n.removeprefix(f"{place.group}/") for n in arrays if n.startswith(place.group)]
            held = ", ".join(by_number(inner)[:8])
            raise SourceError(
                f"{place.file} (episode {place.name}): there is no '{key}'{nearest(key, inner)}; it holds {held}"
            )
        return declared

    def _expanded(self, place: _Place, keys: Sequence[str]) -> list[str]:
        """The names of arrays, with those that match a pattern in its place."""
        out = []
        for key in keys:
            if not any(c in key for c in "*?["):
                out.append(key)
                continue
            inner = [
                n.removeprefix(f"{place.group}/") for n in _opened(place.file).arrays() if n.startswith(place.group)
            ]
            found = by_number([n for n in inner if fnmatchcase(n, key) and n.count("/") == key.count("/")])
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
        out = []
        for key in self._expanded(place, keys):
            size = int(np.prod(self._declared(place, key).shape[1:], dtype=np.int64))
            short = key.rpartition("/")[2]
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
        place = next(iter(self._places.values()))
        step = float(np.median(np.diff(self._times(place))))
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
        return m.fps or round(rate, 2)

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
        try:
            name = camera.key.format(stem=place.file.name.partition(".")[0], episode=place.name)
        except (LookupError, ValueError) as error:
            raise SourceError(f"'{camera.key}': {{stem}} and {{episode}} alone can stand in a video's path") from error
        base = self.root if self.root.is_dir() and not is_table(self.root) else self.root.parent
        return inside(base, name)

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
        video = probe_video(self._video(place, camera), place.name)
        if steps is None or abs(video.fps / self._fps - 1) < 0.01:
            yield from read_all_frames(video, video.size, steps or 1, place.name)
        else:
            yield from read_frames(video, self._fps, video.size, 0.0, (steps - 0.5) / self._fps, place.name)

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
            notes = self._clock_notes(place, T)
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
        if camera.is_video:
            return probe_video(self._video(place, camera), place.name).frames
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
            found = found[slice(*place.rows)]
        if len(found) == 1 or len(set(found)) == 1:
            return found[0], ()
        if len(found) < T:
            raise SourceError(f"'{m.texts}' has {len(found)} texts for {T} steps")
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


GUESSES: Mapping[str, tuple[str, ...]] = {
    "action": ("action", "actions", "control", "command", "cmd"),
    "state": ("qpos", "state", "proprio", "joint", "pos", "pose", "gripper"),
    "texts": ("language", "instruction", "text", "task", "prompt", "goal"),
    "timestamps": ("timestamp", "time", "stamp", "clock"),
    "success": ("success", "is_success"),
    "reward": ("reward",),
}
"""Words in the names of arrays, by the key of the mapping that they suggest; the first key that fits is taken."""


def suggest_map(source: Path) -> str:
    """A first mapping file for `source`, as TOML with comments. Raises SourceError where it holds no table.

    The arrays are sorted by their names, types and lengths; what is not recognised stands in comments.
    """
    folder = source.is_dir() and not is_table(source)
    files = [p for p in visible(source, "**/*") if is_table(p)] if folder else [source]
    if not files:
        raise SourceError(f"{source}: there is no table in it; tables are {', '.join(FORMATS)}")
    arrays = dict(_opened(files[0]).arrays())
    lines = [f"# A first mapping of {source.name}: look through it, then wamkit import table {source.name} --out DATA"]
    group = ""
    if folder:
        patterns = {p.suffix: f"{'**/' if p.parent != source else ''}*{p.suffix}" for p in files}
        lines.append(f'episodes = "{patterns[files[0].suffix]}"  # {len(files)} files')
    else:
        group, pattern = _episode_group(list(arrays))
        if pattern:
            lines.append(f'episodes = "{pattern}"  # groups, the first is {group}')
            arrays = {n.removeprefix(f"{group}/"): a for n, a in arrays.items() if n.startswith(f"{group}/")}
    guessed = _guess(arrays)
    for key in ("episode_ends", "episode_index"):
        if key in guessed:
            lines.append(f'{key} = "{guessed[key][0]}"')
    if "timestamps" in guessed:
        key = guessed["timestamps"][0]
        lines += [f'timestamps = "{key}"', f'time_unit = "{_unit(files[0], f"{group}/{key}" if group else key)}"']
    else:
        lines.append("fps = 10  # steps a second: say which")
    lines += [f"{key} = {_toml_list(guessed.get(key, []))}" for key in ("state", "action")]
    texts = guessed.get("texts", []) + [f"@{n}" for n in _opened(files[0]).attributes(group) if _names_a_text(n)]
    lines.append(f'texts = "{texts[0]}"' if texts else 'text = ""  # the instruction')
    lines += [f'{key} = "{guessed[key][0]}"' for key in ("success", "reward") if key in guessed]
    rest = [n for n in arrays if not any(n in names for names in guessed.values())]
    lines += [f"# not used: {n}, {arrays[n]}" for n in rest[:40]]
    cameras = guessed.get("cameras", [])
    videos = [p for p in visible(source if folder else source.parent, "**/*") if p.suffix.lower() in ENDINGS]
    lines += ["", "[cameras]"] + [f'{_camera(n, cameras)} = "{n}"  # {arrays[n]}' for n in cameras]
    lines += [
        f'# camera = "{p.relative_to(source if folder else source.parent)}"  # {{stem}} for the episode\'s file'
        for p in videos[:4]
    ]
    return "\n".join(lines) + "\n"


def _unit(file: Path, key: str) -> str:
    """The unit in which times make from 1 to 1000 steps a second; "s" if none does."""
    times = _opened(file).numbers(key, 0, 1000).reshape(-1).astype(np.float64)
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    return next((unit for unit, seconds in UNITS.items() if 1e-3 <= step * seconds <= 1), "s")


def _episode_group(names: Sequence[str]) -> tuple[str, str]:
    """The first of several groups that hold the same arrays, and a pattern for all of them; "" where there are none."""
    for depth in (1, 2, 3):
        inner: dict[str, set[str]] = {}
        for name in names:
            parts = name.split("/")
            if len(parts) > depth:
                inner.setdefault("/".join(parts[:depth]), set()).add("/".join(parts[depth:]))
        alike = by_number([g for g, held in inner.items() if any(c.isdigit() for c in g.rpartition("/")[2])])
        if len(alike) > 1 and inner[alike[0]] & inner[alike[1]]:
            above, _, last = alike[0].rpartition("/")
            stem = last.rstrip("0123456789")
            return alike[0], f"{above}/{stem}*" if above else f"{stem}*"
    return "", ""


def _guess(arrays: Mapping[str, Declared]) -> dict[str, list[str]]:
    """Names of arrays by the key of the mapping that they are taken for."""
    out: dict[str, list[str]] = {}
    for name in by_number(list(arrays)):
        a, last = arrays[name], name.rpartition("/")[2].lower()
        if a.is_images:
            out.setdefault("cameras", []).append(name)
        elif a.kind == "texts":
            if _names_a_text(last):
                out.setdefault("texts", []).append(name)
        elif last in ("episode_ends", "episode_index"):
            out.setdefault(last, []).append(name)
        elif a.shape and a.dtype is not None and a.dtype.kind in "biuf" and len(a.shape) <= 3:
            key = next((k for k, words in GUESSES.items() if k != "texts" and any(w in last for w in words)), "")
            if key in ("timestamps", "success", "reward") and (len(a.shape) > 1 and a.shape[1] != 1 or key in out):
                continue
            if key and not (key in ("state", "action") and a.dtype.kind in "iu" and "index" in last):
                out.setdefault(key, []).append(name)
    if "state" in out:
        out["state"].sort(key=lambda name: "grip" in name)  # as most robots have it
    return out


def _names_a_text(name: str) -> bool:
    return any(w in name.lower() for w in GUESSES["texts"])


def _toml_list(names: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{n}"' for n in names) + "]"


def _camera(name: str, every: Sequence[str]) -> str:
    """A name for a camera that no other one of `every` gets."""
    for depth in (1, 2, 3):
        short = ["_".join(n.split("/")[-depth:]) for n in every]
        if len(set(short)) == len(short):
            break
    clean = "_".join(name.split("/")[-depth:])
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in clean)
