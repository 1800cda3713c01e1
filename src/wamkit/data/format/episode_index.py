"""The index of a LeRobotDataset v3.0 folder, lerobot's own or ours: reading and checking of episodes and columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wamkit.config import from_dict
from wamkit.data.format.checksums import SEAL, Checksums, is_sealed
from wamkit.data.format.parquet import RESTORE
from wamkit.data.format.schema import (
    BODY_POSE,
    FILES_PER_CHUNK,
    IMAGE_DTYPES,
    IMAGES,
    NON_NUMERIC,
    POINTS,
    SNAPSHOTS_PATH,
    VECTORS,
    VERSION,
    Layout,
    check_info,
)
from wamkit.files import StoreError, read_bytes
from wamkit.types import Episode

_MOST = 1 << 30  # bytes of a file that is read whole
_FINITE = (*VECTORS, "next.reward", POINTS, BODY_POSE)


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
    clips: by camera, depth cameras included.
    snapshots: the file of simulator states, or None.
    sha256: checksums of its files, as far as they were recorded with it.
    """

    meta: EpisodeMeta
    texts: tuple[str, ...]
    data: Path
    clips: Mapping[str, Clip]
    snapshots: Path | None
    sha256: Mapping[Path, str] = field(default_factory=dict)


def row_of(facts: Mapping[str, Any], root: Path, info: Mapping[str, Any]) -> Row:
    """The episode described by one row of meta/episodes, or by the facts about to be written there.

    Frames are numbered as if it were alone in its data file. Raises KeyError for a missing column, ValueError or
    TypeError for one with the wrong content.
    """
    facts = {k: v for k, v in facts.items() if v is not None}
    texts, index = facts["tasks"], facts["episode_index"]
    imported = facts.get("wamkit/source", "")  # imported episodes may lack an instruction
    if not isinstance(texts, list) or not texts or not (imported or any(str(t).strip() for t in texts)):
        raise ValueError(f"tasks is {texts!r}, but an episode needs an instruction")
    meta = from_dict(
        EpisodeMeta,
        {
            "index": index,
            "task": facts.get("wamkit/task", texts[0]),
            "text": texts[0],
            "length": facts["length"],
            "seed": facts.get("wamkit/seed", -1),
            "success": facts.get("wamkit/success", False),
            "is_demonstration": facts.get("wamkit/imitate", True),
            "noise": facts.get("wamkit/noise", 0.0),
            "from_index": facts["dataset_from_index"],
            "source": facts.get("wamkit/source", ""),
        },
    )
    chunk, file = facts["data/chunk_index"], facts["data/file_index"]
    snapshots = root / SNAPSHOTS_PATH.format(chunk_index=chunk, episode_index=index)
    data = root / info["data_path"].format(chunk_index=chunk, file_index=file)
    clips, files = {}, {data: facts.get("wamkit/sha256/data"), snapshots: facts.get("wamkit/sha256/snapshots")}
    for key, feature in info["features"].items():
        if feature["dtype"] in IMAGE_DTYPES:
            path, start = data, 0
            if feature["dtype"] == "video":
                chunk, file = (facts[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index"))
                path = root / info["video_path"].format(video_key=key, chunk_index=chunk, file_index=file)
                start = round(facts[f"videos/{key}/from_timestamp"] * info["fps"])
            clips[key.removeprefix(IMAGES)] = Clip(path, start, facts.get(f"wamkit/sha256/{key}"))
            files.setdefault(path, clips[key.removeprefix(IMAGES)].sha256)
    recorded = {path: digest for path, digest in files.items() if digest}
    return Row(meta, tuple(texts), data, clips, snapshots if facts.get("wamkit/snapshots") else None, recorded)


def facts_of(episode: Episode, index: int, first: int, layout: Layout, checksums: Mapping[str, str]) -> dict[str, Any]:
    """The row of meta/episodes for an episode about to be stored: the inverse of `row_of`.

    index: number of the episode in the store.
    first: number of its first frame in the store.
    checksums: by camera, see `Clip`.
    """
    chunk, file = divmod(index, FILES_PER_CHUNK)
    facts: dict[str, Any] = {
        "episode_index": index,
        "tasks": list(dict.fromkeys([episode.text, *episode.texts()])),
        "length": len(episode),
        "data/chunk_index": chunk,
        "data/file_index": file,
        "dataset_from_index": first,
        "dataset_to_index": first + len(episode),
        "meta/episodes/chunk_index": chunk,
        "meta/episodes/file_index": file,
        "wamkit/task": episode.task,
        "wamkit/seed": int(episode.seed),
        "wamkit/success": episode.succeeded,
        "wamkit/imitate": bool(episode.is_demonstration),
        "wamkit/noise": float(episode.noise),
        "wamkit/snapshots": episode.snapshots is not None,
        "wamkit/source": episode.source,
    }
    for camera in layout.cameras:
        if camera not in layout.stills:
            where = {"chunk_index": chunk, "file_index": file, "from_timestamp": 0.0}
            where |= {"to_timestamp": len(episode) / layout.fps}
            facts |= {f"videos/{IMAGES}{camera}/{k}": v for k, v in where.items()}
        facts[f"wamkit/sha256/{IMAGES}{camera}"] = checksums[camera]
    return facts


def read_info(root: Path) -> dict[str, Any]:
    """The content of meta/info.json. Raises StoreError if it is missing, incomplete or of another version."""
    path = root / "meta/info.json"
    if not root.is_dir():
        raise StoreError(f"{root}: there is no such folder; record data first (wamkit collect) or name another")
    if not path.exists():
        what = "is incomplete, or is not a data set" if any(root.iterdir()) else "is empty"
        raise StoreError(
            f"{root} {what} (no meta/info.json); record data into it first (wamkit collect) or name another"
        )
    try:
        info = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error}); {RESTORE}") from error
    version = info.get("codebase_version") if isinstance(info, dict) else None
    if version != VERSION:
        raise StoreError(
            f"{path}: codebase_version is {version}, wamkit reads {VERSION}; "
            + (
                f"wamkit import lerobot2 {root} --out ... converts it"
                if str(version).startswith("v2")
                else "convert it with lerobot"
            )
        )
    try:
        check_info(info)
        Layout.from_info(info)
    except StoreError as error:
        raise StoreError(f"{path}: {error}; {RESTORE}") from error
    return info


def read_texts(root: Path) -> list[str]:
    """The instructions in meta/tasks.parquet, by task_index. lerobot 0.4 and 0.6 name the column differently."""
    path = root / "meta/tasks.parquet"
    try:
        table = pq.ParquetFile(path).read(use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path} cannot be read ({error}); {RESTORE}") from error
    column = next((n for n in ("task", "__index_level_0__") if n in table.column_names), None)
    if column is None or "task_index" not in table.column_names:
        raise StoreError(f"{path}: columns {table.column_names} instead of 'task_index' and 'task'; {RESTORE}")
    return table.sort_by("task_index")[column].to_pylist()


def read_rows(root: Path, info: Mapping[str, Any], checksums: Checksums) -> list[Row]:
    """All episodes in meta/episodes, in order. Raises StoreError where they or their files do not fit together."""
    rows, used, found = [], {}, []
    for path, facts in _read_facts(root, checksums):
        try:
            found.append((path, row_of(facts, root, info)))
        except KeyError as error:
            raise StoreError(f"{path}: column {error} is missing; {RESTORE}") from error
        except (ValueError, TypeError) as error:
            raise StoreError(f"{path} (episode {facts.get('episode_index')}): {error}; {RESTORE}") from error
    for path, row in sorted(found, key=lambda x: x[1].meta.index):
        index, first = len(rows), rows[-1].meta.from_index + rows[-1].meta.length if rows else 0
        if row.meta.index != index:
            raise StoreError(f"{root}/meta/episodes: episode {index} is missing or duplicated; {RESTORE}")
        if row.meta.from_index != first or row.meta.length < 1:
            place = f"{row.meta.length} frames from {row.meta.from_index}"
            raise StoreError(
                f"{path} (episode {index}): declares {place}, but the episodes before end at {first}; {RESTORE}"
            )
        before = used.get(row.data, 0)
        clips = {c: replace(clip, start=before) if clip.path == row.data else clip for c, clip in row.clips.items()}
        row, used[row.data] = replace(row, clips=clips), before + row.meta.length
        for camera, clip in ((c, clip) for c, clip in clips.items() if clip.path != row.data):
            before = used.get(clip.path, 0)
            if clip.start != before:  # times drift when they are summed as floats, lengths do not
                reason = f"starts at frame {clip.start} of {clip.path}, but the episodes before it end at {before}"
                raise StoreError(f"{path} (episode {index}, camera {camera}): {reason}; {RESTORE}")
            used[clip.path] = before + row.meta.length
        for file in (row.data, row.snapshots, *(c.path for c in row.clips.values())):
            if file is not None and not (file.is_file() and file.stat().st_size):
                raise StoreError(f"{file} (episode {index}) is missing or empty; {RESTORE}")
        rows.append(row)
    return rows


def _read_facts(root: Path, checksums: Checksums) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted((root / "meta/episodes").glob("chunk-*/file-*.parquet")):
        try:
            content = None if checksums.files is None else read_bytes(path, _MOST)
            source = path if content is None else pa.BufferReader(content)
            with pq.ParquetFile(source, page_checksum_verification=True) as file:
                names = [n for n in file.schema_arrow.names if not n.startswith("stats/")]
                table = file.read(names, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"{path} cannot be read ({error}); {RESTORE}") from error
        if content is not None:
            checksums.compare_facts(path, content)
        elif SEAL.encode() in (table.schema.metadata or {}) and is_sealed(path.read_bytes()):
            checksums.miss()
        for facts in table.to_pylist():
            if table.num_rows > 1:  # lerobot's tools rewrite files and copy our columns, which no longer hold
                facts = {k: v for k, v in facts.items() if not k.startswith(("wamkit/sha256/", "wamkit/snapshots"))}
            yield path, facts


def read_columns(rows: Sequence[Row], features: Mapping[str, Any], checksums: Checksums) -> dict[str, np.ndarray]:
    """The numeric columns of all frames, as in `Store.numeric`. Columns of images and texts are not read.

    Files without such columns are read whole, and compared.
    """
    recorded = {row.data: row.sha256.get(row.data) for row in rows}
    whole = checksums.files is not None and not any(f["dtype"] in NON_NUMERIC[1:] for f in features.values())
    features = {k: f for k, f in features.items() if f["dtype"] not in NON_NUMERIC}
    features |= {k: features[k] | {"dtype": "float32"} for k in VECTORS if k in features}
    parts: dict[str, list[np.ndarray]] = {key: [] for key in features}
    for path, metas in by_file(rows).items():
        content = read_bytes(path, _MOST) if whole else None
        if content is not None:
            checksums.compare(path, content, recorded[path])
        for key, values in read_data(path, metas, features, content).items():
            parts[key].append(values)
    out = {}
    for key, feature in features.items():
        empty = np.empty((0, *feature["shape"]), feature["dtype"])
        out[key] = np.concatenate(parts[key]) if parts[key] else empty
        if key not in VECTORS and tuple(feature["shape"]) == (1,):
            out[key] = out[key].reshape(-1)
    frames = sum(row.meta.length for row in rows)
    out = {k: np.empty((frames, 0), np.float32) for k in ("observation.state", "action") if k not in out} | out
    return {"action.expert": out["action"]} | out


def by_file(rows: Sequence[Row]) -> dict[Path, list[EpisodeMeta]]:
    """The episodes in each data file, in order."""
    files: dict[Path, list[EpisodeMeta]] = {}
    for row in rows:
        files.setdefault(row.data, []).append(row.meta)
    return files


def _naming(path: Path, metas: Sequence[EpisodeMeta]) -> str:
    return f"{path} (episode {metas[0].index}" + (f" to {metas[-1].index})" if len(metas) > 1 else ")")


def read_data(
    path: Path, metas: Sequence[EpisodeMeta], features: Mapping[str, Any], content: bytes | None = None
) -> dict[str, np.ndarray]:
    """The columns `features` of the data file `path` with the episodes `metas`: arrays (n, *shape).

    content: of the file, if it has been read.

    Raises StoreError if it is damaged, incomplete, not finite, or numbered differently than meta/episodes.
    """
    where = _naming(path, metas)
    try:
        source = path if content is None else pa.BufferReader(content)
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            table = file.read(list(features), use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{where} cannot be read ({error}); {RESTORE}") from error
    if missing := set(features) - set(table.column_names):
        raise StoreError(f"{where}: columns {sorted(missing)} are missing; {RESTORE}")
    length = sum(m.length for m in metas)
    if table.num_rows != length:
        raise StoreError(f"{where}: {table.num_rows} frames instead of {length}; {RESTORE}")
    out = {key: _array(table[key], feature, f"{where}: column {key!r}") for key, feature in features.items()}
    owner = np.repeat([m.index for m in metas], [m.length for m in metas])
    step = np.concatenate([np.arange(m.length) for m in metas])
    for key, right in (
        ("episode_index", owner),
        ("frame_index", step),
        ("index", metas[0].from_index + np.arange(length)),
    ):
        if not np.array_equal(out[key].reshape(-1), right):
            raise StoreError(f"{where}: column {key!r} is numbered differently than meta/episodes; {RESTORE}")
    for key in (k for k in _FINITE if k in out):
        bad = ~np.isfinite(out[key]).reshape(length, -1).all(1)
        if bad.any():
            at = f"episode {owner[bad][0]}, step {step[bad][0]}"
            raise StoreError(f"{path} ({at}): {key} is NaN or infinite; {RESTORE}")
    return out


def _array(column: pa.ChunkedArray, feature: Mapping[str, Any], where: str) -> np.ndarray:
    values = column.combine_chunks()
    while (
        pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type) or pa.types.is_large_list(values.type)
    ):
        values = values.flatten()
    try:
        if values.null_count:
            raise ValueError("it has empty cells")
        if not (
            pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type)
        ):
            raise TypeError(f"it holds {values.type} instead of numbers")
        return values.to_numpy(zero_copy_only=False).astype(feature["dtype"]).reshape(len(column), *feature["shape"])
    except (ValueError, TypeError) as error:
        raise StoreError(
            f"{where}: {error}; info.json says {feature['dtype']} {list(feature['shape'])}; {RESTORE}"
        ) from error


def check_episode(episode: Episode, layout: Any, with_images: bool) -> None:
    """Raises StoreError, with the reason, if `episode` cannot be stored with `layout`."""
    steps = len(episode)
    shapes = {
        "proprio": (steps, len(layout.proprio_names)),
        "action": (steps, len(layout.action_names)),
        "action_expert": (steps, len(layout.action_names)),
        "reward": (steps,),
        "success": (steps,),
    }
    if with_images and layout.cameras:
        shapes["images"] = (steps, len(layout.cameras), *layout.image_shape)
    labelled = episode.source or episode.text.strip() or any(s.text.strip() for s in episode.spans)
    problem = "it has no steps" if not steps else "" if labelled else "its instruction is empty"
    if wrong := [s for s in episode.spans if not 0 <= s.start < s.stop <= steps]:
        problem = problem or f"{wrong[0]} does not lie within its {steps} steps"
    if layout.point_grid:
        K = layout.point_grid**2
        shapes |= {"points": (steps, K, 4), "body": (steps, K), "pose": (steps, layout.bodies, 7)}
    more = {name: (steps, size) for name, _, size in layout.extras}
    if set(episode.depth) != set(layout.depth_cameras):
        problem = (
            problem or f"its depth maps are of {sorted(episode.depth)}, the store's {sorted(layout.depth_cameras)}"
        )
    for name, maps in ((n, m) for n, m in episode.depth.items() if n in layout.depth_cameras):
        if maps.dtype != np.uint16 or maps.shape != (steps, *layout.size(name)):
            wanted = f"uint16 {(steps, *layout.size(name))}"
            problem = problem or f"depth of {name} is {maps.dtype} {maps.shape} instead of {wanted}"
    for name, shape in (shapes | more).items():
        of = episode.scene_flow if name in ("points", "body", "pose") else episode
        value = episode.extras.get(name) if name in more else getattr(of, name, None)
        if value is None or value.shape != shape:
            problem = problem or f"{name} is {None if value is None else value.shape}, the store has {shape}"
        elif not np.isfinite(value).all():
            step = int(np.flatnonzero(~np.isfinite(value).reshape(steps, -1).all(1))[0])
            problem = problem or f"{name} is NaN or infinite at step {step}"
    if episode.cameras != layout.cameras:
        problem = problem or f"its cameras are {episode.cameras}, the store's {layout.cameras}"
    if episode.fps != layout.fps:
        problem = problem or f"it has {episode.fps} steps a second, the store {layout.fps}"
    if episode.snapshots is not None and len(episode.snapshots) != steps:
        problem = problem or f"it has {len(episode.snapshots)} snapshots for {steps} steps"
    if problem:
        raise StoreError(f"cannot store the episode of {episode.task}, seed {episode.seed}: {problem}; record it again")
