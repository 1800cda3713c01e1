"""The schema of LeRobotDataset v3.0: the content of `meta/`, the columns, and their Arrow types.

The format is that of lerobot 0.4. Every episode gets files of its own (data, one video a camera, facts), which the
format allows, so a finished file is never touched again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wamkit.data.format import checksums, video
from wamkit.data.format.columns import ACTION, STATE, vectors_of
from wamkit.files import StoreError
from wamkit.types import Episode

VERSION = "v3.0"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
SNAPSHOTS_PATH = "snapshots/chunk-{chunk_index:03d}/episode-{episode_index:06d}.npz"
FILES_PER_CHUNK = 1000
IMAGES = "observation.images."
INDEX_COLUMNS = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
_REWARDS = ("next.reward", "next.success")
VECTORS = ("observation.state", "action", "action.expert")
SCENE_FLOW_COLUMNS = ("observation.points", "observation.points.body", "observation.bodies")
"""Columns of `wamkit.types.SceneFlow`. stats.json does not describe them: it would be longer than they are."""
POINTS, POINT_BODY, BODY_POSE = SCENE_FLOW_COLUMNS
RESERVED = (*INDEX_COLUMNS, *_REWARDS, *SCENE_FLOW_COLUMNS, "action.expert")
"""Columns with a meaning of their own, which are neither the state nor the actions."""
OPTIONAL = "wamkit.optional"
"""Key in the `info` of a camera that episodes may lack. In such data sets the column ABSENT of meta/episodes lists the
cameras that an episode lacks; their images are black, so that other programs read them too."""
ABSENT = "wamkit/absent"
IMAGE_DTYPES = ("video", "image")
"""Types of image features: video files, or PNG and JPEG in a column of the data files."""
NON_NUMERIC = (*IMAGE_DTYPES, "string", "language")
"""Types of features without numeric columns in the data files."""
FPS = (1e-3, 1e5)
"""Bounds of the steps a second."""
CHANNELS = (1, 3, 4)
"""Channels of images: grey or depth, RGB, and RGB with transparency, which is left out."""
LARGEST_SIDE = 16_384
"""Pixels of an image's side; a larger image is taken for a decompression bomb."""
MOST_VALUES = 1 << 20
"""Values of a column in one step: scene points of a grid of 512."""
_MOST_EPISODES = 2_000_000
_MOST_FRAMES = 1 << 40
_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


@dataclass(frozen=True)
class Layout:
    """The properties that all episodes of a store share.

    cameras: names, without the prefix `observation.images.`.
    image_shape: (3, H, W), of every camera.
    proprio_names, action_names: one name a dimension. Empty where the data has no state, or no actions.
    fps: steps, and frames, a second.
    robot_type: lerobot's name of the robot.
    point_grid: side of the grid of scene points; 0 without points.
    bodies: number of bodies whose poses are recorded with the points.
    sizes: (H, W) of each camera, where they differ; `image_shape` is then that of the first.
    expert: True if there are noise-free labels beside the executed actions.
    rewards: True if each step has a reward and a success flag.
    extras: (name, dtype, size) of further numeric columns.
    stills: cameras stored as PNG, which is exact and several times larger. The others become H.264.
    depth: (name, H, W) of depth cameras, which are not among `cameras`.
    optional: cameras that episodes may lack.

    Raises StoreError for a combination that cannot be stored.
    """

    cameras: tuple[str, ...]
    image_shape: tuple[int, int, int]
    proprio_names: tuple[str, ...]
    action_names: tuple[str, ...]
    fps: float
    robot_type: str
    point_grid: int = 0
    bodies: int = 0
    sizes: tuple[tuple[int, int], ...] = ()
    expert: bool = True
    rewards: bool = True
    extras: tuple[tuple[str, str, int], ...] = ()
    stills: tuple[str, ...] = ()
    depth: tuple[tuple[str, int, int], ...] = ()
    optional: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problem, seen = "", (*self.cameras, *self.depth_cameras)
        if len(set(seen)) != len(seen) or any(not c or "/" in c for c in seen):
            problem = f"cameras {seen} must be distinct names without '/'"
        elif set(self.stills) - set(self.cameras):
            problem = f"stills {self.stills} must be some of the cameras {self.cameras}"
        elif set(self.optional) - set(self.cameras):
            problem = f"optional {self.optional} must be some of the cameras {self.cameras}"
        elif len(self.image_shape) != 3 or self.image_shape[0] != 3 or min(self.image_shape) < 1:
            problem = f"image_shape {self.image_shape} must be (3, height, width)"
        elif not (self.cameras or self.proprio_names or self.action_names):
            problem = "nothing to record: there are no cameras, proprio_names or action_names"
        elif self.expert and not self.action_names:
            problem = "expert labels need action_names"
        elif self.sizes and (len(self.sizes) != len(self.cameras) or self.sizes[0] != self.image_shape[1:]):
            problem = f"sizes {self.sizes} must be one (height, width) a camera, the first one image_shape's"
        elif any(min(h, w) < 1 for _, h, w in self.depth):
            problem = f"depth {self.depth} must be (name, height, width) of each camera"
        elif any("/" in name or name in INDEX_COLUMNS or name in VECTORS for name, _, _ in self.extras):
            problem = f"extras {[e[0] for e in self.extras]} must be names of their own, without '/'"
        elif not FPS[0] <= self.fps <= FPS[1]:
            problem = f"fps {self.fps} must be a positive number from {FPS[0]:g} to {FPS[1]:g}"
        elif self.point_grid < 0 or (self.point_grid > 0) != (self.bodies > 0):
            problem = f"point_grid {self.point_grid} with {self.bodies} bodies: points need the bodies that they lie on"
        if problem:
            raise StoreError(problem)

    @property
    def depth_cameras(self) -> tuple[str, ...]:
        """Names of the depth cameras."""
        return tuple(name for name, _, _ in self.depth)

    def size(self, camera: str) -> tuple[int, int]:
        """(H, W) of a camera's images or depth maps."""
        if camera in self.depth_cameras:
            return self.depth[self.depth_cameras.index(camera)][1:]
        return self.sizes[self.cameras.index(camera)] if self.sizes else self.image_shape[1:]

    def features(self) -> dict[str, dict[str, Any]]:
        """The `features` of info.json."""
        state, action = list(self.proprio_names), list(self.action_names)
        out: dict[str, dict[str, Any]] = {}
        if state:
            out["observation.state"] = {"dtype": "float32", "shape": [len(state)], "names": state}
        for key in ("action", "action.expert")[: bool(action) * (1 + self.expert)]:
            out[key] = {"dtype": "float32", "shape": [len(action)], "names": action}
        if self.rewards:
            out["next.reward"] = {"dtype": "float32", "shape": [1], "names": None}
            out["next.success"] = {"dtype": "bool", "shape": [1], "names": None}
        for name, dtype, size in self.extras:
            out[name] = {"dtype": dtype, "shape": [size], "names": None}
        if self.point_grid:
            K = self.point_grid**2
            for key, dtype, size in zip(
                SCENE_FLOW_COLUMNS, ("float32", "int32", "float32"), (4 * K, K, 7 * self.bodies), strict=True
            ):
                out[key] = {"dtype": dtype, "shape": [size], "names": None}
        info = {
            "video.channels": 3,
            "video.codec": "h264",
            "video.pix_fmt": video.PIXEL_FORMAT,
            "video.fps": _number(self.fps),
            "video.g": video.GOP,
            "video.encoder": f"{video.CODEC}, PyAV {av.__version__}",
            "video.is_depth_map": False,
            "has_audio": False,
        }
        axes = ["height", "width", "channels"]
        for camera in self.cameras:
            height, width = self.size(camera)
            crf = int(video.encoder((height, width))["crf"])
            encoding = {"info": {"video.height": height, "video.width": width} | info | {"video.crf": crf}}
            dtype, more = ("image", {}) if camera in self.stills else ("video", encoding)
            if camera in self.optional:
                more = {"info": {**more.get("info", {}), OPTIONAL: True}}
            out[IMAGES + camera] = {"dtype": dtype, "shape": [height, width, 3], "names": axes} | more
        for camera, height, width in self.depth:
            more = {"info": {"is_depth_map": True, "depth_unit": "mm"}}
            out[IMAGES + camera] = {"dtype": "image", "shape": [height, width, 1], "names": axes} | more
        return out | {k: {"dtype": v, "shape": [1], "names": None} for k, v in INDEX_COLUMNS.items()}

    @classmethod
    def from_info(cls, info: Mapping[str, Any], stated: Mapping[str, Sequence[str]] = {}) -> Layout:
        """The layout described by an info.json that passed `check_info`.

        stated: the columns that are the state and the actions, see `columns.vectors_of`.

        Raises StoreError for a feature that is missing or cannot be used.
        """
        features = info["features"]
        for key in INDEX_COLUMNS:
            if key not in features:
                raise StoreError(f"feature {key!r} is missing, and wamkit needs it: record or convert the data with it")
        if "action.expert" in features and "action" not in features:
            raise StoreError("feature 'action' is missing beside 'action.expert'; record or convert the data with it")
        images = [(camera_name(k), f) for k, f in features.items() if f["dtype"] in IMAGE_DTYPES]
        colour = [(k, f) for k, f in images if not is_depth(k, f)]
        sizes = tuple(image_size(f) for _, f in colour)
        has_points = all(k in features for k in SCENE_FLOW_COLUMNS)
        if has_points and not _fit([features[k]["shape"] for k in SCENE_FLOW_COLUMNS]):
            raise StoreError(f"the shapes of {SCENE_FLOW_COLUMNS} are not [4 K²], [K²], [7 B]; record the data again")
        vectors = vectors_of(features, stated, RESERVED)
        known = {*RESERVED, *VECTORS, *(c for parts in vectors.values() for c in parts)}
        extras = {k: f for k, f in features.items() if f["dtype"] not in NON_NUMERIC and k not in known}
        return cls(
            cameras=tuple(k for k, _ in colour),
            image_shape=(3, *(sizes[0] if sizes else (1, 1))),
            proprio_names=tuple(n for key in vectors[STATE] for n in dimension_names_of(features[key], key)),
            action_names=tuple(n for key in vectors[ACTION] for n in dimension_names_of(features[key], key)),
            fps=float(info["fps"]),
            robot_type=info.get("robot_type") or "",
            point_grid=math.isqrt(features[POINT_BODY]["shape"][0]) if has_points else 0,
            bodies=features[BODY_POSE]["shape"][0] // 7 if has_points else 0,
            sizes=sizes if len(set(sizes)) > 1 else (),
            expert="action.expert" in features,
            rewards="next.reward" in features and "next.success" in features,
            extras=tuple((k, f["dtype"], math.prod(f["shape"])) for k, f in extras.items()),
            stills=tuple(k for k, f in colour if f["dtype"] == "image"),
            depth=tuple((k, *image_size(f)) for k, f in images if is_depth(k, f)),
            optional=tuple(k for k, f in colour if info_of(f).get(OPTIONAL)),
        )


def check_info(info: Mapping[str, Any]) -> None:
    """Raises StoreError naming the first field of info.json that is missing or malformed."""
    for key, most in (("total_episodes", _MOST_EPISODES), ("total_frames", _MOST_FRAMES)):
        if not is_whole(info.get(key), 0, most):
            raise StoreError(f"{key} is {shown(info.get(key))}, not a whole number of at least 0 and at most {most}")
    fps = info.get("fps")
    if not isinstance(fps, int | float) or isinstance(fps, bool) or not FPS[0] <= fps <= FPS[1]:
        raise StoreError(f"fps is {shown(fps)}, not a positive number from {FPS[0]:g} to {FPS[1]:g}")
    if not isinstance(info.get("robot_type"), str | None):
        raise StoreError(f"robot_type is {shown(info['robot_type'])}, not a text")
    if not isinstance(info.get("features"), dict):
        raise StoreError(f"features is a {type(info.get('features')).__name__}, not a mapping of names to features")
    for key, feature in info["features"].items():
        if reason := _unusable(key, feature):
            raise StoreError(f"feature {shown(key)} {reason}; it says {shown(feature)}")
    videos = any(f["dtype"] == "video" for f in info["features"].values())
    for key in ("data_path", "video_path")[: 1 + videos]:
        path = info.get(key)
        if not isinstance(path, str) or not _TEMPLATES[key].fullmatch(path) or ".." in path or path.startswith("/"):
            raise StoreError(f"{key} is {shown(path)}, not a path with chunk_index and file_index")


_INDEX = r"\{(?:chunk|file)_index(?::0?[1-9]?d)?\}"
_TEMPLATES = {
    "data_path": re.compile(rf"(?:[^{{}}\0]|{_INDEX}){{1,1000}}"),
    "video_path": re.compile(rf"(?:[^{{}}\0]|{_INDEX}|\{{video_key\}}){{1,1000}}"),
}
"""Templates of paths. A format such as {chunk_index:2000000000} would fill the memory."""


def _unusable(key: str, feature: Any) -> str:
    """The reason why wamkit cannot read a feature of info.json, or ""."""
    if not isinstance(feature, dict) or not isinstance(feature.get("dtype"), str):
        return "has no dtype"
    dtype, shape = feature["dtype"], feature.get("shape")
    if dtype in NON_NUMERIC and key in (*VECTORS, *INDEX_COLUMNS, *SCENE_FLOW_COLUMNS, *_REWARDS):
        return "needs a numeric dtype"
    if dtype in NON_NUMERIC and dtype not in IMAGE_DTYPES:
        return "" if shape is None or isinstance(shape, list) else "needs a shape that is a list"
    if not isinstance(shape, list) or not 1 <= len(shape) <= 8 or not all(is_whole(n, 1, MOST_VALUES) for n in shape):
        return f"needs a shape, a list of whole numbers of at least 1 and at most {MOST_VALUES}"
    if dtype in IMAGE_DTYPES:
        if max(shape) > LARGEST_SIDE:
            return f"declares images of more than {LARGEST_SIDE} pixels a side"
        fits = len(shape) == 3 and {*CHANNELS} & {shape[0], shape[2]}
        return "" if fits else "needs the shape [height, width, 3], or [height, width, 1] for grey images and depth"
    if math.prod(shape) > MOST_VALUES:
        return f"declares more than {MOST_VALUES} values a step"
    kind = np.dtype(dtype).kind if dtype in DTYPES else "none"
    if key in VECTORS and kind not in "biuf":
        return "needs a floating-point dtype"
    if kind == "none" or key in INDEX_COLUMNS and kind not in ("f" if key == "timestamp" else "iu"):
        return "needs a numeric dtype" if kind == "none" else f"needs a dtype like {INDEX_COLUMNS[key]}"
    return "needs the shape [1]" if key in (*INDEX_COLUMNS, *_REWARDS) and shape != [1] else ""


def is_depth(name: str, feature: Mapping[str, Any]) -> bool:
    """True if an "image" or "video" feature holds distances, one value a pixel, rather than colours or greys.

    One channel alone does not say so: grey cameras have one, too. Where no mark does, the unit, the name or a pixel
    format of more than 8 bits may.
    """
    info, shape = info_of(feature), feature["shape"]
    marks = [info[k] for k in ("is_depth_map", "video.is_depth_map") if k in info]
    if any(marks) or not (len(shape) == 3 and 1 in (shape[0], shape[2])):
        return any(marks)
    deep = re.search(r"gray(9|1\d)|p(9|1\d)", str(info.get("video.pix_fmt", "")))
    return not marks and ("depth" in name.lower() or "depth_unit" in info or deep is not None)


def info_of(feature: Mapping[str, Any]) -> dict[str, Any]:
    """The `info` of an image feature. Older data sets call it `video_info`."""
    infos = (i for i in (feature.get("video_info"), feature.get("info")) if isinstance(i, dict))
    return {k: v for info in infos for k, v in info.items()}


def camera_name(key: str) -> str:
    """The name of the camera whose images are the feature `key`: without the usual prefix, and "." in place of "/"."""
    return key.removeprefix(IMAGES).replace("/", ".")


def image_size(feature: Mapping[str, Any]) -> tuple[int, int]:
    """(H, W) of an "image" or "video" feature. Old data sets put the channels first."""
    shape, names = feature["shape"], feature.get("names")
    first = shape[2] not in CHANNELS or (isinstance(names, list) and str([*names, ""][0]).startswith("channel"))
    return tuple(shape[1:] if first else shape[:2])


DTYPES = ("bool", *(f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)), "float16", "float32", "float64")


def is_whole(value: Any, least: int, most: int) -> bool:
    """True if a value is a whole number within bounds, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def shown(value: Any) -> str:
    """A value from a file as an error shows it: shortened, since it may fill the file."""
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}..."


def _fit(shapes: Sequence[Any]) -> bool:
    """True if these can be the shapes of scene points, of the bodies that they lie on, and of the bodies' poses."""
    if not all(isinstance(shape, list) and len(shape) == 1 for shape in shapes):
        return False
    (points,), (body,), (pose,) = shapes
    return points == 4 * body and math.isqrt(body) ** 2 == body and pose % 7 == 0


def dimension_names_of(feature: Mapping[str, Any], column: str) -> tuple[str, ...]:
    """A name for each dimension of a vector: those that the feature states, or else the column's with numbers.

    A matrix is a vector of its rows, one after the other: `actions.0.0`, `actions.0.1`, ..., `actions.1.0`.
    """
    names, shape = feature.get("names"), feature["shape"]
    size = math.prod(shape)
    if isinstance(names, dict):  # lerobot also writes {"motors": [...]}
        names = next(iter(names.values()), None)
    if not isinstance(names, list) or len(names) != size:
        numbers = np.ndindex(*shape)
        names = [f"{column}_{at[0]}" if len(shape) == 1 else ".".join(map(str, (column, *at))) for at in numbers]
    return tuple(str(n) for n in names)


def _number(x: float) -> int | float:
    return int(x) if x == int(x) else x


def same_features(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """True if rows of `a` can follow rows of `b`. The encoding of videos does not matter."""

    def core(features: Mapping[str, Any]) -> dict[str, Any]:
        return {
            k: (f["dtype"], tuple(f.get("shape") or ()), f.get("names"), info_of(f).get("depth_unit"))
            for k, f in features.items()
        }

    return core(a) == core(b)


def info_json(layout: Layout, features: Mapping[str, Any], episodes: int, frames: int, tasks: int) -> dict[str, Any]:
    """The content of meta/info.json."""
    return {
        "codebase_version": VERSION,
        "robot_type": layout.robot_type,
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": _number(layout.fps),
        "splits": {"train": f"0:{episodes}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if set(layout.cameras) - set(layout.stills) else None,
        "features": features,
    }


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    """The bytes of a parquet file with page checksums, by which a flipped bit is found when it is read."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="snappy", write_page_checksum=True, **options)
    return sink.getvalue().to_pybytes()


def facts_bytes(facts: Mapping[str, Any], sealed: bool) -> bytes:
    """One row of meta/episodes as a parquet file without column statistics, which halves the size of its 150 cells.

    sealed: add the file's own checksum, see `checksums`.
    """
    columns = {k: pa.array([v], pa.list_(pa.string()) if k == ABSENT else _kind(v)) for k, v in facts.items()}
    table, sink = pa.table(columns), pa.BufferOutputStream()
    options = {"use_dictionary": False, "write_statistics": False, "store_schema": False}
    with pq.ParquetWriter(sink, table.schema, compression="snappy", write_page_checksum=True, **options) as writer:
        writer.write_table(table)
        if sealed:
            writer.add_key_value_metadata({checksums.SEAL: checksums.UNSEALED})
    content = sink.getvalue().to_pybytes()
    return checksums.seal(content) if sealed else content


def _kind(cell: Any) -> pa.DataType:
    """The Arrow type of a cell: text, a number, or a list of one of them that isn't empty.

    Named, since pyarrow searches the path for the package dateutil at each type that it infers: most of the time that a
    short episode takes to store.
    """
    if isinstance(cell, list):
        return pa.list_(_kind(cell[0]))
    return pa.string() if isinstance(cell, str) else pa.from_numpy_dtype(np.asarray(cell).dtype)


def data_columns(
    episode: Episode, index: int, first: int, texts: Sequence[str], features: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The per-frame columns of `episode` that are in `features`.

    index: number of the episode in the store.
    first: number of its first frame in the store.
    """
    steps, flow = np.arange(len(episode)), episode.scene_flow
    points = (flow.points, flow.body, flow.pose) if flow else ()
    number = {text: i for i, text in reversed(list(enumerate(texts)))}
    out = {
        "observation.state": episode.proprio,
        "action": episode.action,
        "action.expert": episode.action_expert,
        "next.reward": episode.reward,
        "next.success": episode.success,
        "timestamp": steps / episode.fps,
        "frame_index": steps,
        "episode_index": np.full(len(episode), index),
        "index": first + steps,
        "task_index": np.array([number[text] for text in episode.texts()]),
        **{key: x.reshape(len(episode), -1) for key, x in zip(SCENE_FLOW_COLUMNS, points, strict=False)},
        **episode.extras,
    }
    return {key: out[key] for key in features if key in out}


def data_table(
    columns: Mapping[str, np.ndarray], features: Mapping[str, Any], images: Mapping[str, Sequence[bytes]]
) -> pa.Table:
    """An Arrow table of `columns` and of the PNG `images` of image features, typed as `features` says.

    Videos have no column.
    """
    arrays, hf = {}, {}
    for key, feature in features.items():
        if feature["dtype"] == "video":
            continue
        if feature["dtype"] == "image":
            arrays[key], hf[key] = _embedded(images[key]), {"_type": "Image"}
            continue
        values = np.asarray(columns[key]).astype(feature["dtype"])
        value = {"dtype": feature["dtype"], "_type": "Value"}
        if feature["shape"] == [1]:  # the format stores these as scalars
            arrays[key], hf[key] = pa.array(values.reshape(-1)), value
        else:
            width = feature["shape"][0]
            arrays[key] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)
            hf[key] = {"feature": value, "length": width, "_type": "Sequence"}
    metadata = {"huggingface": json.dumps({"info": {"features": hf}})}
    return pa.table(arrays).replace_schema_metadata(metadata)


def _embedded(images: Sequence[bytes]) -> pa.ChunkedArray:
    """PNG images as lerobot embeds them, with the file names that its recorder gives."""
    cells = [{"bytes": data, "path": f"frame-{i:06d}.png"} for i, data in enumerate(images)]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    # In chunks, since one Arrow array of bytes ends at 2 GiB.
    return pa.chunked_array([pa.array(cells[i : i + 64], kind) for i in range(0, len(cells), 64)], kind)


def tasks_table(texts: Sequence[str]) -> pa.Table:
    """The table of meta/tasks.parquet. lerobot reads the instruction from the *index* of a pandas frame."""
    name = "__index_level_0__"
    table = pa.table({"task_index": pa.array(range(len(texts)), pa.int64()), name: pa.array(texts, pa.string())})

    def column(field: str | None, stored: str, kind: str, dtype: str) -> dict[str, Any]:
        return {"name": field, "field_name": stored, "pandas_type": kind, "numpy_type": dtype, "metadata": None}

    pandas = {
        "index_columns": [name],
        "column_indexes": [],
        "columns": [column("task_index", "task_index", "int64", "int64"), column(None, name, "unicode", "object")],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def describe(values: np.ndarray) -> dict[str, list]:
    """Statistics of `values`, (N, D) or (N,), in the form of stats.json: a list of D values each, and `count` [N].

    The quantiles are those of all values. lerobot's are an envelope of per-episode quantiles, which widens with the
    data.
    """
    x = values.reshape(len(values), -1).astype(np.float64)
    stats = {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0)}
    stats |= dict(zip(_QUANTILES, np.quantile(x, list(_QUANTILES.values()), axis=0), strict=True))
    return {k: v.tolist() for k, v in stats.items()} | {"count": [len(values)]}


def describe_images(images: Iterable[np.ndarray]) -> dict[str, list]:
    """Statistics of images, uint8 (3, H, W) each, in the form of stats.json: (3, 1, 1) each, in [0, 1].

    They are exact, computed from histograms, to which one image after the other is added.
    """
    stats: dict[str, list] = {}
    grey, number = np.arange(256) / 255, 0
    histograms = np.zeros((3, 256), np.int64)
    for image in images:
        number += 1
        histograms += [np.bincount(channel.ravel(), minlength=256) for channel in image]
    for counts in histograms:
        total, below = counts.sum(), np.cumsum(counts)
        mean = counts @ grey / total
        at = np.array(list(_QUANTILES.values())) * (total - 1)
        low, high = (grey[np.searchsorted(below, f(at), side="right")] for f in (np.floor, np.ceil))
        present = grey[counts > 0]
        row = {
            "min": present[0],
            "max": present[-1],
            "mean": mean,
            "std": math.sqrt(counts @ (grey - mean) ** 2 / total),
        }
        row |= dict(zip(_QUANTILES, low + (high - low) * (at - np.floor(at)), strict=True))
        for name, value in row.items():
            stats.setdefault(name, []).append([[float(value)]])
    return stats | {"count": [number]}
