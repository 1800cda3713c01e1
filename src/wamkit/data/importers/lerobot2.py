"""LeRobotDataset v2.0 and v2.1, as GR00T and DreamZero read it: for each episode a parquet file, and an mp4 a camera.

    meta/info.json                                     codebase_version "v2.x", fps, chunks_size, features, data_path,
                                                       video_path
    meta/episodes.jsonl, tasks.jsonl                   {"episode_index", "tasks", "length"}, {"task_index", "task"}
    meta/modality.json                                 GR00T's: the place of each field in the vectors
    data/chunk-000/episode_000000.parquet              numeric columns; "image" features are {"bytes": PNG, "path"}
    videos/chunk-000/observation.images.<camera>/episode_000000.mp4

`observation.state` and `action` become state and action, or the columns that other tools name so (`state`, `actions`);
other columns of numbers become extras. A task_index that changes within an episode becomes spans. Rows and frames are
matched by number, because times drift and counts do not. An episode whose clock has another rate is refused; one that
jumps is noted. Depth maps, which are videos too, are left out, as are rewards without next.success.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from av.video.reformatter import VideoReformatter

from wamkit.config import Between, Checked
from wamkit.data.description import fields_by_name
from wamkit.data.format.camera_roles import camera_by_name
from wamkit.data.format.columns import doubtful, vectors_of, which
from wamkit.data.format.metadata_io import MODALITY, from_modality
from wamkit.data.format.parquet import read_parquet
from wamkit.data.format.rows import clock_fault, column_array, rate_fault
from wamkit.data.format.schema import (
    CHANNELS,
    DTYPES,
    IMAGE_DTYPES,
    INDEX_COLUMNS,
    RESERVED,
    VERSION,
    Layout,
    camera_name,
    dimension_names_of,
    image_size,
    is_depth,
)
from wamkit.data.format.stills import StillImages, has_images
from wamkit.data.format.video import shown_size
from wamkit.data.importers.base import (
    IMPORTERS,
    LIMIT,
    WIDTH,
    ImageStream,
    Importer,
    MissingView,
    Recording,
    SourceError,
    camera_layout,
    checked,
    entry,
    inside,
    json_lines,
    pixels,
    reading,
    real,
    text_spans,
    whole,
    words,
)
from wamkit.data.importers.video_files import probe_video, read_all_frames, resize_and_crop
from wamkit.files import StoreError, read_json
from wamkit.metadata import DatasetMetadata

STEPS = 10**8  # steps of an episode that is still read
_INDEX = r"\{episode_(?:chunk|index)(?::0?[1-9]?d)?\}"
_TEMPLATE = re.compile(rf"(?:[^{{}}\0]|{_INDEX}|\{{video_key\}}){{1,1000}}")
"""A template of paths. A format such as {episode_index:2000000000} would fill the memory."""
VECTORS, OUTCOME = ("observation.state", "action"), ("next.success", "next.reward")
_NUMBERS = ("bool", "int", "uint", "float")


@dataclass(frozen=True)
class LeRobot2Options(Checked):
    """Options of the importer `lerobot2`."""

    embodiment: str = ""
    """Name of the robot; robot_type of info.json if empty."""
    state: tuple[str, ...] = ()
    """Columns that form the state, side by side, or "none"; if empty, the one whose name tells."""
    action: tuple[str, ...] = ()
    """Columns that form the actions, likewise."""
    size: Annotated[tuple[int, int], Between(1, 16_384)] | None = None
    """Height and width of the stored images. Frames are resized until they cover it, and cropped to the middle.
    By default they stay as they are."""


@IMPORTERS.register("lerobot2")
class LeRobot2(Importer):
    """LeRobotDataset v2.0 and v2.1, with GR00T's modality.json."""

    Options = LeRobot2Options
    options: LeRobot2Options

    @cached_property
    def _info(self) -> dict[str, Any]:
        path = inside(self.root, "meta/info.json")
        with reading(path):
            if not path.exists():
                raise SourceError("there is no such file; is this a LeRobotDataset?")
            info = read_json(path)
            version = str(entry(info, "codebase_version", str))
            if not version.startswith("v2"):
                raise SourceError(_needs_no_import(self.root, version))
            real(entry(info, "fps"), "fps", 0.01, 1000)
            whole(entry(info, "chunks_size"), "chunks_size", 1, 2**31)
            whole(entry(info, "total_episodes"), "total_episodes", 0, 2**31)
            words(info.get("robot_type") or "", "robot_type")
            for name, feature in entry(info, "features", dict).items():
                _check_feature(words(name, "a feature's name"), feature)
            videos = any(f["dtype"] == "video" for f in info["features"].values())
            for template in ("data_path", "video_path")[: 1 + videos]:
                path = entry(info, template, str)
                if not _TEMPLATE.fullmatch(path):
                    raise SourceError(f"{template} is {path[:200]!r}, not a path with episode_index; correct it")
            return info

    @cached_property
    def _episodes(self) -> dict[str, int]:
        """The number of steps of each episode, by name, in the order of their numbers."""
        path, found = inside(self.root, "meta/episodes.jsonl"), {}
        with reading(path):
            for number, row in json_lines(path):
                index = whole(entry(row, "episode_index"), f"episode_index of line {number}", 0, 2**31)
                if index in found:
                    raise SourceError(f"line {number} is episode {index} again; remove one")
                found[index] = whole(entry(row, "length"), f"length of line {number}", 0, STEPS)
        return {f"{index:06d}": found[index] for index in sorted(found)}

    @cached_property
    def _tasks(self) -> dict[int, str]:
        path = inside(self.root, "meta/tasks.jsonl")
        with reading(path):
            return {
                whole(entry(row, "task_index"), f"task_index of line {number}", 0, 2**31): words(
                    entry(row, "task"), f"task of line {number}"
                )
                for number, row in json_lines(path)
            }

    @cached_property
    def _cameras(self) -> dict[str, str]:
        found = [k for k, f in self._info["features"].items() if f["dtype"] in IMAGE_DTYPES and not is_depth(k, f)]
        return {camera_name(k): k for k in sorted(found)}

    def _size(self, key: str) -> tuple[int, int]:
        """(H, W) of a camera's images, as its first video is shown where that is turned."""
        feature, first = self._info["features"][key], next(iter(self._episodes), None)
        size = pixels(*image_size(feature), key)
        if feature["dtype"] != "video" or first is None or size[0] == size[1]:
            return size
        return shown_size(self._place("video_path", first, key), size)

    @cached_property
    def _vectors(self) -> dict[str, tuple[str, ...]]:
        """The columns of the state and of the actions. Raises SourceError where it is in doubt which they are."""
        features, given = self._info["features"], {"state": self.options.state, "action": self.options.action}
        stated = {name: () if columns == ("none",) else columns for name, columns in given.items() if columns}
        with reading(self.root / "meta/info.json"):
            if found := doubtful(features, stated, RESERVED):
                option = "--options.{name} followed by the columns, or by none"
                raise SourceError(which(found, option))
            return vectors_of(features, stated, RESERVED)

    def _width(self, key: str) -> int:
        return sum(math.prod(self._info["features"][column]["shape"]) for column in self._vectors[key])

    @cached_property
    def _extras(self) -> list[str]:
        skip = {*VECTORS, *OUTCOME, "next.done", *INDEX_COLUMNS, *self._joined}
        features = self._info["features"].items()
        return [k for k, f in features if k not in skip and f["dtype"] in DTYPES and "/" not in k]

    def dropped(self) -> Sequence[str]:
        known = {*RESERVED, *OUTCOME, "next.done", *self._extras, *self._joined}
        numbers = (k for k, f in self._info["features"].items() if f["dtype"].rstrip("0123456789") in _NUMBERS)
        return [k for k in numbers if k not in known]

    @property
    def _joined(self) -> list[str]:
        return [column for columns in self._vectors.values() for column in columns]

    def layout(self) -> Layout:
        with reading(self.root / "meta/info.json"):
            sizes = {c: self.options.size or self._size(k) for c, k in self._cameras.items()}
            features = self._info["features"]
            return Layout(
                **camera_layout(sizes),
                proprio_names=self._names("observation.state"),
                action_names=self._names("action"),
                fps=float(self._info["fps"]),
                robot_type=self._info.get("robot_type") or "",
                expert=False,
                rewards="next.success" in features,
                extras=tuple((k, features[k]["dtype"], math.prod(features[k]["shape"])) for k in self._extras),
            )

    def _names(self, key: str) -> tuple[str, ...]:
        features = self._info["features"]
        return tuple(name for column in self._vectors[key] for name in dimension_names_of(features[column], column))

    def metadata(self) -> DatasetMetadata:
        path, robot = inside(self.root, MODALITY), self.options.embodiment or self._info.get("robot_type") or ""
        whole = {"state": self._width("observation.state"), "action": self._width("action")}
        with reading(self.root / "meta/info.json"):
            names = {"state": self._names("observation.state"), "action": self._names("action")}
        parts = {k: fields_by_name(n) for k, n in names.items()}
        cameras = {c: facts for c in self._cameras if (facts := camera_by_name(c, len(self._cameras)))}
        of_fields = (f"{k}.{f.name}" for k, fields in parts.items() for f in fields)
        inferred = (*of_fields, *(f"cameras.{c}" for c in cameras))
        rate = float(self._info["fps"])
        plain = DatasetMetadata("LeRobotDataset v2", robot, rate=rate, cameras=cameras, inferred=inferred, **parts)
        if not path.exists():
            return plain
        with reading(path):
            given = from_modality(read_json(path))
            given.check(*whole.values())
        left = tuple(e for e in inferred if e.startswith("cameras."))
        source = f"{plain.source}, with modality.json"
        return replace(plain, source=source, state=given.state, action=given.action, inferred=left)

    def episodes(self) -> Sequence[str]:
        found, total = list(self._episodes), self._info.get("total_episodes")
        if total != len(found):
            raise SourceError(
                f"{self.root}/meta/episodes.jsonl: it lists {len(found)} episodes, meta/info.json says {total}; "
                "is it cut off?"
            )
        return found

    def _place(self, template: str, name: str, key: str = "") -> Path:
        number = int(name)
        with reading(self.root / "meta/info.json"):
            chunk = number // self._info["chunks_size"]
            relative = self._info[template].format(episode_chunk=chunk, episode_index=number, video_key=key)
            return inside(self.root, relative)

    def _path(self, template: str, name: str, key: str = "") -> Path:
        path = self._place(template, name, key)
        if not path.exists():
            missing = MissingView if key else SourceError
            raise missing(f"{path} (episode {name}): it is missing; fetch it again")
        return path

    def _table(self, path: Path, T: int) -> pa.Table:
        """The columns of an episode that are imported; those that are not there are left out."""
        features, wanted = self._info["features"], {*self._joined, *OUTCOME, *INDEX_COLUMNS, *self._extras}
        size = sum(12 * math.prod(features[k]["shape"]) if k in features else 12 for k in wanted)  # bytes a step
        if T * size > LIMIT:
            raise SourceError(f"it declares {T} steps of {size} bytes, more than an episode ever takes; refused")
        dictionaries = len(wanted) << 21  # bytes that a file may spend on each column's own
        return read_parquet(path, wanted, max_rows=T, max_bytes=4 * T * size + dictionaries)

    def _column(self, table: pa.Table, key: str) -> np.ndarray:
        """A column as an array (T, n). Raises SourceError for one that is missing or does not fit its feature."""
        if key not in table.column_names:
            raise SourceError(f"it has no column {key!r}")
        feature = self._info["features"].get(key, {"dtype": INDEX_COLUMNS.get(key, "float32"), "shape": [1]})
        if key in self._joined:
            feature = feature | {"dtype": "float32", "declared": feature["dtype"]}
        try:
            return column_array(table[key], feature).reshape(table.num_rows, -1)
        except StoreError as error:
            raise SourceError(f"column {key!r}: {error}") from error

    def read(self, name: str) -> Recording:
        path, T, known = self._path("data_path", name), self._episodes[name], self._tasks
        with reading(path, name):
            if not T:
                raise SourceError("it has no steps")
            table = self._table(path, T)
            if table.num_rows != T:
                raise SourceError(f"it has {table.num_rows} rows instead of {T}")
            column = lambda k: self._column(table, k)  # noqa: E731
            if not np.array_equal(column("frame_index")[:, 0], np.arange(T)):
                raise SourceError("its frame_index does not count from 0")
            if (column("episode_index") != int(name)).any():
                raise SourceError("its episode_index is another episode's")
            clock, fps = column("timestamp")[:, 0], float(self._info["fps"])
            if fault := rate_fault(clock, np.zeros(1, np.int64), fps):
                raise SourceError(fault[1])
            tasks = column("task_index")[:, 0].tolist()
            if unknown := set(tasks) - set(known):
                raise SourceError(f"task {min(unknown)} is not in meta/tasks.jsonl")
            texts = [known[i] for i in tasks]

            def vector(key: str) -> np.ndarray:
                features = self._info["features"]
                parts = [checked(column(k), (T, math.prod(features[k]["shape"])), k) for k in self._vectors[key]]
                return np.concatenate([np.zeros((T, 0), np.float32), *parts], 1)

            outcome = {k: column(k)[:, 0] for k in OUTCOME if k in table.column_names}
            return Recording(
                name=name,
                text=texts[0],
                state=vector("observation.state"),
                action=vector("action"),
                images={c: self._images(name, key, T) for c, key in self._cameras.items()},
                videos={c: self._place("video_path", name, k) for c, k in self._cameras.items() if self._is_video(k)},
                spans=text_spans(texts),
                success=outcome["next.success"].astype(bool) if "next.success" in outcome else None,
                reward=outcome.get("next.reward"),
                extras={k: column(k) for k in self._extras},
                notes=tuple(filter(None, [clock_fault(clock, fps)])),
            )

    def _images(self, name: str, key: str, steps: int) -> ImageStream:
        size, fps = self.options.size or self._size(key), float(self._info["fps"])

        def video() -> Iterator[np.ndarray]:
            found = probe_video(self._path("video_path", name, key), name)
            if found.frames < steps or abs(found.fps / fps - 1) > 0.01 + 1 / steps:
                raise SourceError(
                    f"{found.path} (episode {name}): {found.frames} frames, {found.fps:g} a second, "
                    f"instead of {steps}, {fps:g} a second"
                )
            yield from read_all_frames(replace(found, aspect=Fraction(1)), size, steps, name)

        def images() -> Iterator[np.ndarray]:
            path, reformatter = self._path("data_path", name), VideoReformatter()
            with reading(path, name):
                if not has_images(path, key, steps):
                    raise MissingView(f"{path} (episode {name}): its column {key!r} has no images; fetch it again")
            with reading(path, name), StillImages(path, key, self._size(key), steps) as stored:
                for image in stored.iter_frames(range(steps)):
                    yield resize_and_crop(image, size, reformatter)

        return video if self._is_video(key) else images

    def _is_video(self, key: str) -> bool:
        return self._info["features"][key]["dtype"] == "video"


def _needs_no_import(root: Path, version: str) -> str:
    if version != VERSION:
        return f"codebase_version is {version[:40]}, not v2.x; convert it with lerobot"
    return f"it is {VERSION}, which needs no import; the next command is `wamkit validate {root}`"


def _check_feature(name: str, feature: Any) -> None:
    """Raises SourceError for a feature of info.json without a type, or with an absurd shape."""
    dtype = entry(feature, "dtype", str)
    if dtype not in (*DTYPES, *IMAGE_DTYPES) and name not in (*VECTORS, *OUTCOME, *INDEX_COLUMNS):
        return  # a text, or a type that is not imported
    shape = entry(feature, "shape", list)
    for n in shape:
        whole(n, f"the shape of feature {name[:80]!r}", 1, WIDTH)
    if not 1 <= len(shape) <= 8 or dtype not in IMAGE_DTYPES and math.prod(shape) > WIDTH:
        raise SourceError(f"feature {name[:80]!r} has the shape {shape[:8]}, which no step has; correct it")
    if dtype in IMAGE_DTYPES and not is_depth(name, feature):
        if len(shape) != 3 or not {*CHANNELS} & {shape[0], shape[2]}:
            raise SourceError(f"{name} has the shape {shape} instead of [height, width, 3]; correct it")
        pixels(*image_size(feature), name)
