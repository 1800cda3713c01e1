"""The index of a LeRobotDataset v3.0 folder, lerobot's own or ours: reading and checking of episodes and columns."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from wamkit.config import from_dict
from wamkit.data.format.checksums import SEAL, Checksums, is_sealed
from wamkit.data.format.episodes import (
    MOST_INDEX,
    MOST_STEPS,
    Clip,
    EpisodeMeta,
    Row,
    Rows,
    columns_of,
)
from wamkit.data.format.parquet import RESTORE, parquet_errors, read_parquet
from wamkit.data.format.rows import column_array
from wamkit.data.format.schema import (
    ABSENT,
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
    camera_name,
    check_info,
    is_whole,
    shown,
)
from wamkit.files import StoreError, file_size, inside, read_bytes, read_json
from wamkit.types import Episode

_AT_ONCE = 1000  # episodes whose facts are Python objects at a time
_MOST = 1 << 30  # bytes of a file that is read whole
_MOST_TEXTS = 1_000_000
_UNCOUNTED = 10_000  # episodes that a killed writer may have left uncounted in info.json
_PAGES = 1 << 22  # bytes of a file's pages beyond the values in them
_PLACE = ("chunk_index", "file_index", "from_timestamp")  # columns with the place of a clip, null for absent cameras
_TEXTS = ("task", "__index_level_0__")
_CORRECT = "correct the values, or leave the episode out"  # as they were recorded, so another copy has them too
_FINITE = (*VECTORS, "next.reward", POINTS, BODY_POSE)


def row_of(facts: Mapping[str, Any], place: Callable[[str], Path], info: Mapping[str, Any]) -> Row:
    """The episode described by one row of meta/episodes, or by the facts about to be written there.

    place: the path of a file in the data set, by its name there: `inside` or a cache of it.

    Frames are numbered as if it were alone in its data file. Raises StoreError for a path that leads out,
    KeyError for a missing column, ValueError, TypeError or OverflowError for one with the wrong content.
    """
    absent: list[str] = []
    if unplaced := {k for k, v in facts.items() if v is None or v != v}:  # pandas writes NaN for none
        facts = {k: v for k, v in facts.items() if k not in unplaced}
        absent = [
            camera_name(key) for key in info["features"] if unplaced >= {f"videos/{key}/{name}" for name in _PLACE}
        ]
    texts, index = facts.get("tasks") or [""], facts["episode_index"]
    recorded = "wamkit/task" in facts and not facts.get("wamkit/source")  # what others made may lack an instruction
    if not isinstance(texts, list) or recorded and not any(str(t).strip() for t in texts):
        raise ValueError(f"tasks is {shown(texts)}, but an episode needs an instruction")
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"tasks is {shown(texts)}, not a list of texts")
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
            "absent": facts.get(ABSENT, absent),
        },
    )
    for name, value in (("episode_index", index), ("length", meta.length), ("dataset_from_index", meta.from_index)):
        if not 0 <= value <= MOST_STEPS:
            raise ValueError(f"{name} is {value}, not a whole number of at least 0 and at most {MOST_STEPS}")
    chunk, file = _whole(facts, "data/chunk_index"), _whole(facts, "data/file_index")
    snapshots = place(SNAPSHOTS_PATH.format(chunk_index=chunk, episode_index=index))
    data = place(info["data_path"].format(chunk_index=chunk, file_index=file))
    clips, files = {}, {data: facts.get("wamkit/sha256/data"), snapshots: facts.get("wamkit/sha256/snapshots")}
    for key, feature in info["features"].items():
        if feature["dtype"] in IMAGE_DTYPES and not (absent and camera_name(key) in absent):
            path, start = data, 0
            if feature["dtype"] == "video":
                chunk, file = (_whole(facts, f"videos/{key}/{name}") for name in ("chunk_index", "file_index"))
                path = place(info["video_path"].format(video_key=key, chunk_index=chunk, file_index=file))
                start = round(facts[f"videos/{key}/from_timestamp"] * info["fps"])
            clips[camera_name(key)] = Clip(path, start, facts.get(f"wamkit/sha256/{key}"))
            files.setdefault(path, clips[camera_name(key)].sha256)
    recorded = {path: digest for path, digest in files.items() if digest}
    return Row(meta, tuple(texts), data, clips, snapshots if facts.get("wamkit/snapshots") else None, recorded)


def _whole(facts: Mapping[str, Any], name: str) -> int:
    """The number `name` in the path of a file."""
    value = facts[name]
    if isinstance(value, float) and value.is_integer():  # as pandas keeps a column that is empty elsewhere
        value = int(value)
    if not is_whole(value, 0, MOST_INDEX):
        raise ValueError(f"{name} is {shown(value)}, not a whole number of at least 0 and at most {MOST_INDEX}")
    return value


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
    return facts | ({ABSENT: list(episode.absent)} if layout.optional else {})


def require_data(root: Path) -> None:
    """Raises StoreError if there is no data set in the folder `root`."""
    if not root.is_dir():
        raise StoreError(f"{root}: there is no such folder; record data first (wamkit collect) or name another")
    if not (root / "meta/info.json").exists():
        what = "is incomplete, or is not a data set" if any(root.iterdir()) else "is empty"
        raise StoreError(
            f"{root} {what} (no meta/info.json); record data into it first (wamkit collect) or name another"
        )


def read_info(root: Path) -> dict[str, Any]:
    """The content of meta/info.json. Raises StoreError if it is missing, incomplete or of another version."""
    require_data(root)
    path = inside(root, "meta/info.json")
    info = read_json(path)
    version = info.get("codebase_version") if isinstance(info, dict) else None
    if version != VERSION:
        raise StoreError(
            f"{path}: codebase_version is {str(version)[:40]}, wamkit reads {VERSION}; "
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
    path = inside(root, "meta/tasks.parquet")
    table = read_parquet(path, ("task_index", *_TEXTS), max_rows=_MOST_TEXTS)
    column = next((n for n in _TEXTS if n in table.column_names), None)
    if column is None or "task_index" not in table.column_names:
        raise StoreError(f"{path}: columns {table.column_names} instead of 'task_index' and 'task'; {RESTORE}")
    with parquet_errors(str(path)):
        table = table.sort_by("task_index")
        index, texts = table["task_index"].to_pylist(), table[column].to_pylist()
    if index != list(range(len(texts))) or not all(isinstance(text, str) for text in texts):
        raise StoreError(f"{path}: its rows are not texts with a task_index from 0 to {len(texts) - 1}; {RESTORE}")
    return texts


def placed_rows(root: Path, info: Mapping[str, Any], checksums: Checksums) -> list[tuple[Path, Row]]:
    """All episodes in meta/episodes, in order, and the file of each; their own files need not exist.

    Raises StoreError for one that cannot be read.
    """
    return _judged(root, info, _read_tables(root, info, checksums))


def _judged(root: Path, info: Mapping[str, Any], tables: Iterable[tuple[Path, pa.Table]]) -> list[tuple[Path, Row]]:
    """As `placed_rows`, from the tables of meta/episodes."""
    found = []
    place = cache(partial(inside, root))  # lerobot's files hold many episodes
    for path, facts in _facts(tables):
        try:
            found.append((path, row_of(facts, place, info)))
        except KeyError as error:
            raise StoreError(f"{path}: column {error} is missing; {RESTORE}") from error
        except (ValueError, TypeError, OverflowError) as error:
            raise StoreError(f"{path} (episode {shown(facts.get('episode_index'))}): {error}; {RESTORE}") from error
    return sorted(found, key=lambda x: x[1].meta.index)


def read_rows(root: Path, info: Mapping[str, Any], checksums: Checksums) -> Rows:
    """All episodes in meta/episodes, in order. Raises StoreError where they or their files do not fit together."""
    tables: Iterable[tuple[Path, pa.Table]] = _read_tables(root, info, checksums)
    if info["total_episodes"] > len(_index_files(root)):  # many episodes a file
        tables = list(tables)
        columns = columns_of([table for _, table in tables], info, cache(partial(inside, root))) if tables else None
        if columns is not None:
            for file, index in columns.users().items():
                _require_file(file, index)
            return Rows(columns=columns)
    return _fitted(root, _judged(root, info, tables))


def _fitted(root: Path, found: Iterable[tuple[Path, Row]]) -> Rows:
    """The episodes of `_judged` as those of one data set."""
    rows, used, seen = Rows(), dict[Path, int](), set[Path]()
    for path, row in found:
        index, first = len(rows), rows.frames
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
            if clip.start < before:  # later is right: a camera that stops late leaves frames without rows
                reason = f"starts at frame {clip.start} of {clip.path}, but the episodes before it end at {before}"
                raise StoreError(f"{path} (episode {index}, camera {camera}): {reason}; {RESTORE}")
            used[clip.path] = clip.start + row.meta.length
        for file in row.files():
            if file not in seen:
                seen.add(file)
                _require_file(file, index)
        rows.append(row)
    return rows


def _require_file(file: Path, episode: int) -> None:
    if not file.exists() or not file_size(file):
        raise StoreError(f"{file} (episode {episode}) is missing or empty; {RESTORE}")


def _index_files(root: Path) -> list[Path]:
    return sorted((root / "meta/episodes").glob("chunk-*/file-*.parquet"))


def _read_tables(root: Path, info: Mapping[str, Any], checksums: Checksums) -> Iterator[tuple[Path, pa.Table]]:
    """The files of meta/episodes as tables."""
    most = max(info["total_episodes"], _UNCOUNTED)  # rows of a file that is still read
    for path in _index_files(root):
        path = inside(root, path.relative_to(root))
        content = None if checksums.files is None else read_bytes(path, _MOST)
        table = read_parquet(path, leave_out="stats/", max_rows=most, content=content)
        if content is not None:
            checksums.compare_facts(path, content)
        elif SEAL.encode() in (table.schema.metadata or {}) and is_sealed(read_bytes(path, _MOST)):
            checksums.miss()
        if table.num_rows > 1:  # lerobot's tools rewrite files and copy our columns, which no longer hold
            copied = [n for n in table.column_names if n.startswith(("wamkit/sha256/", "wamkit/snapshots"))]
            table = table.drop_columns(copied)
        yield path, table


def _facts(tables: Iterable[tuple[Path, pa.Table]]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The rows of these tables, and the file of each."""
    for path, table in tables:
        for batch in table.to_batches(max_chunksize=_AT_ONCE):
            with parquet_errors(str(path)):
                facts = batch.to_pylist()
            yield from ((path, row) for row in facts)


def read_columns(
    rows: Rows, features: Mapping[str, Any], checksums: Checksums, vectors: Mapping[str, Sequence[str]]
) -> dict[str, np.ndarray]:
    """The numeric columns of all frames, as in `Store.numeric`. Columns of images and texts are not read.

    vectors: the columns that form the state and the actions, see `columns.vectors_of`.

    Files without such columns are read whole, and compared.
    """
    recorded = {row.data: row.sha256.get(row.data) for row in rows}
    whole = checksums.files is not None and not any(f["dtype"] in NON_NUMERIC[1:] for f in features.values())
    features = {k: f for k, f in features.items() if f["dtype"] not in NON_NUMERIC}
    joined = {column for columns in vectors.values() for column in columns}
    vector = lambda feature: feature | {"dtype": "float32", "declared": feature["dtype"]}  # noqa: E731
    features |= {k: vector(features[k]) for k in {*VECTORS, *joined} & features.keys()}
    frames = rows.frames
    need, have = numeric_bytes(features, frames), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if need > have:
        raise StoreError(
            f"{frames} frames declare {need / 1e9:.1f} GB of numeric columns, and this machine has {have / 1e9:.1f} GB "
            "of memory; divide the data set, or use a larger machine"
        )
    out = {key: np.empty((frames, *feature["shape"]), feature["dtype"]) for key, feature in features.items()}
    finite = (*_FINITE, *joined)
    for path, metas in by_file(rows).items():
        content = read_bytes(path, _MOST) if whole and file_size(path) <= _MOST else None
        if whole:
            checksums.compare(path, content, recorded[path])
        here = slice(metas[0].from_index, metas[-1].from_index + metas[-1].length)
        for key, values in read_data(path, metas, features, content, finite).items():
            out[key][here] = values
    for key, feature in features.items():
        if key not in {*VECTORS, *joined} and tuple(feature["shape"]) == (1,):
            out[key] = out[key].reshape(-1)
    empty = np.empty((frames, 0), np.float32)
    whole_vectors = {k: _side_by_side([out[c] for c in parts], empty) for k, parts in vectors.items()}
    rest = {k: v for k, v in out.items() if k not in joined}
    return {"action.expert": whole_vectors["action"]} | whole_vectors | rest


def _side_by_side(parts: Sequence[np.ndarray], empty: np.ndarray) -> np.ndarray:
    flat = [x.reshape(len(x), math.prod(x.shape[1:])) for x in parts]  # a matrix a step, row by row
    return flat[0] if len(flat) == 1 else np.concatenate([empty, *flat], 1)


def numeric_bytes(features: Mapping[str, Any], frames: int) -> int:
    """Bytes of the numeric columns of so many frames."""
    numeric = (f for f in features.values() if f["dtype"] not in NON_NUMERIC)
    return frames * sum(math.prod(f["shape"]) * np.dtype(f["dtype"]).itemsize for f in numeric)


def by_file(rows: Sequence[Row]) -> dict[Path, list[EpisodeMeta]]:
    """The episodes in each data file, in order."""
    files: dict[Path, list[EpisodeMeta]] = {}
    for row in rows:
        files.setdefault(row.data, []).append(row.meta)
    return files


def read_data(
    path: Path,
    metas: Sequence[EpisodeMeta],
    features: Mapping[str, Any],
    content: bytes | None = None,
    finite: Sequence[str] = _FINITE,
) -> dict[str, np.ndarray]:
    """The columns `features` of the data file `path` with the episodes `metas`: arrays (n, *shape).

    content: of the file, if it has been read.
    finite: columns without NaN and infinite values.

    Raises StoreError if it is damaged, incomplete, not finite, or numbered differently than meta/episodes.
    """
    episodes = f"episode {metas[0].index}" + (f" to {metas[-1].index}" if len(metas) > 1 else "")
    where = f"{path} ({episodes})"
    length = sum(m.length for m in metas)
    # A column may be stored in a wider type than declared, and parquet keeps the ends of lists.
    most = _PAGES + 16 * length * sum(math.prod(f["shape"]) for f in features.values())
    table = read_parquet(path, features.keys(), max_rows=length, max_bytes=most, where=where, content=content)
    if missing := set(features) - set(table.column_names):
        raise StoreError(f"{where}: columns {sorted(missing)} are missing; {RESTORE}")
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
    for key in (k for k in finite if k in out):
        bad = ~np.isfinite(out[key]).reshape(length, -1).all(1)
        if bad.any():
            at = f"episode {owner[bad][0]}, step {step[bad][0]}"
            raise StoreError(f"{path} ({at}): {key} is NaN or infinite; {_CORRECT}")
    return out


def _array(column: pa.ChunkedArray, feature: Mapping[str, Any], where: str) -> np.ndarray:
    try:
        return column_array(column, feature)
    except StoreError as error:
        raise StoreError(f"{where}: {error}; {_CORRECT}") from error


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
        known = f"its depth maps are of {sorted(episode.depth)}, the store's {sorted(layout.depth_cameras)}"
        problem = problem or f"{known}; where a depth camera measured nothing, give zeros"
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
    if lost := set(episode.absent) - set(layout.optional):
        problem = problem or f"it lacks camera {min(lost)}, which the store does not know as optional"
    if layout.cameras and set(episode.absent) >= set(layout.cameras):
        problem = problem or "it lacks every camera"
    if episode.cameras != layout.cameras:
        problem = problem or f"its cameras are {episode.cameras}, the store's {layout.cameras}"
    if episode.fps != layout.fps:
        problem = problem or f"it has {episode.fps} steps a second, the store {layout.fps}"
    if episode.snapshots is not None and len(episode.snapshots) != steps:
        problem = problem or f"it has {len(episode.snapshots)} snapshots for {steps} steps"
    if problem:
        raise StoreError(f"cannot store the episode of {episode.task}, seed {episode.seed}: {problem}; record it again")
