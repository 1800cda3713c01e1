"""A store: recordings in a LeRobotDataset v3.0 folder, written and read with pyarrow and PyAV.

    meta/info.json, tasks.parquet, stats.json      totals, instructions, statistics, all derived from the episodes
    meta/checksums.json                            checksums, see `checksums`
    meta/episodes/chunk-000/file-000.parquet       facts of one episode; once this file exists, the episode is stored
    data/chunk-000/file-000.parquet                numeric columns of one episode, and images that are not in videos
    videos/observation.images.<camera>/chunk-000/file-000.mp4
    snapshots/chunk-000/episode-000000.npz         simulator states, which lerobot ignores

Facts that lerobot has no place for are further columns of meta/episodes, which it ignores: `wamkit/task`,
`wamkit/seed`, `wamkit/success`, `wamkit/imitate` (true for demonstrations), `wamkit/noise`, `wamkit/snapshots`,
`wamkit/source` (name of an imported episode) and `wamkit/sha256/<video key, "data" or "snapshots">`, which reveal
damage. Column names are part of a file format that other programs read. They do not follow renames in the code.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import repeat
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8, UInt16

from wamkit.data.format import checksums, language, schema, stills
from wamkit.data.format.columns import OPTIONS, doubtful, vectors_of, which
from wamkit.data.format.copied import VideoCopy, video_info
from wamkit.data.format.depth import millimetres
from wamkit.data.format.episode_index import (
    RESTORE,
    check_episode,
    facts_of,
    numeric_bytes,
    read_columns,
    read_info,
    read_rows,
    read_texts,
    row_of,
)
from wamkit.data.format.episodes import Clip, EpisodeMeta, Row, Rows
from wamkit.data.format.hub import local, require_own
from wamkit.data.format.metadata_io import FILE as METADATA
from wamkit.data.format.metadata_io import load_metadata
from wamkit.data.format.remedy import advising, remedy
from wamkit.data.format.rows import rate_fault
from wamkit.data.format.schema import Layout
from wamkit.data.format.snapshots import pack_snapshots, unpack_snapshots
from wamkit.data.format.stills import Encoded, StillImages
from wamkit.data.format.torchcodec import TorchcodecVideo, torchcodec_decoders
from wamkit.data.format.video import Video, empty_frames, shown_size
from wamkit.errors import nearest
from wamkit.files import (
    StoreError,
    atomic_copy,
    atomic_write,
    exclusive,
    file_size,
    inside,
    make_folder,
    read_bytes,
    read_json,
    remove_leftovers,
)
from wamkit.types import Episode, SceneFlow, Snapshot, Span

__all__ = ["EpisodeMeta", "Layout", "Store", "StoreError"]

Decoder = Literal["pyav", "torchcodec"]
"""Video decoders; the frames are the same."""

_BEGUN = re.compile(
    r"meta|\.DS_Store|\._.*|tasks\.parquet|checksums\.json|\.(tasks\.parquet|info\.json|checksums\.json)[.0-9]*\.tmp"
)
"""Names that a kill during `Store.create` may leave, and those that macOS adds to any folder."""

BLOCK_BYTES = 1 << 22
"""Approximate bytes of the frames that `Store.decode_blocks` yields at a time."""

READ_AT_ONCE = 1 << 30
"""Bytes of numeric columns that are read when a data set is opened; larger ones are when they are first asked for."""

_SMALL_VIDEO, _LARGEST_SNAPSHOTS = 1 << 20, 1 << 30  # bytes of a file of one episode that is read into memory
_SAMPLE = 256  # frames a camera from which the image statistics of stats.json are computed


class Store:
    """A data set on disk. One process writes at a time, any number of them read.

    Use `create`, `open` or `open_or_create` to get one. `rows` has the facts of all episodes as columns, too.
    """

    def __init__(
        self,
        root: Path,
        info: dict[str, Any],
        rows: Rows,
        texts: list[str],
        decoder: Decoder = "pyav",
        sums: checksums.Checksums | None = None,
        stated: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ):
        self._sums = sums or checksums.Checksums(root)
        try:
            self.vectors = vectors_of(info["features"], stated, schema.RESERVED)
            self.layout = Layout.from_info(info, stated)
        except StoreError as error:
            raise StoreError(f"{root / METADATA}: {error}; correct `columns`") from error
        self.root, self._decoder, self._stated = root, decoder, stated
        self._info, self.rows, self._texts = info, rows, texts
        self._columns: dict[str, np.ndarray] | None = None
        self._step_texts = texts

    @classmethod
    def create(
        cls,
        root: str | os.PathLike[str],
        *,
        cameras: Sequence[str],
        image_shape: tuple[int, int, int],
        proprio_names: Sequence[str],
        action_names: Sequence[str],
        fps: float,
        robot_type: str,
        **more: Any,
    ) -> Store:
        """Creates an empty store in `root`, a new or empty folder. The other arguments are those of `Layout`.

        Raises StoreError if `root` is not empty, or for a layout that cannot be stored.
        """
        root = Path(root)
        names = tuple(proprio_names), tuple(action_names)
        layout = Layout(tuple(cameras), tuple(image_shape), *names, float(fps), robot_type, **more)
        if root.is_dir() and not all(_BEGUN.fullmatch(p.name) for p in root.rglob("*")):
            raise StoreError(f"{root} is not empty; open the store that is in it, or name another folder")
        store = cls(root, schema.info_json(layout, layout.features(), 0, 0, 0), Rows(), [])
        store._write_totals(new=True)
        store._sums = checksums.load(root)
        return store

    @classmethod
    @advising
    def open(
        cls, root: str | os.PathLike[str], decoder: Decoder = "pyav", *, compare: bool = True, mend: bool = True
    ) -> Store:
        """Opens and checks the store in a folder or on the Hub, hf://USER/NAME. A video is checked when it is decoded.

        decoder: decodes the videos.
        compare: compare all files with their recorded checksums, see `checksums`. Without, a file may have any content
            that can be read.

        mend: bring the totals up to date if a writer was killed. Without, nothing is written.

        Numeric columns of more than a gigabyte are read, and judged, when they are first asked for.

        If a writer was killed, the totals are brought up to date; the next `finalize` updates `stats.json`.
        Raises StoreError, naming file, episode, reason and remedy, for anything missing, damaged or contradictory.
        """
        root = local(root)
        if decoder == "torchcodec":
            torchcodec_decoders()
        info = read_info(root)
        sums = checksums.load(root, compare=compare)
        rows = read_rows(root, info, sums)
        texts = read_texts(root)
        known = set(texts)
        store = cls(
            root,
            info,
            rows,
            texts + [text for text in rows.texts() if text not in known],
            decoder,
            sums,
            _stated(root, info["features"]),
        )
        store.layout = store._shown_layout()
        store._check_totals()
        sums.compare_small()
        if numeric_bytes(info["features"], store.frames) <= READ_AT_ONCE:
            store.numeric()
        sums.refuse()
        if compare and mend:
            store._mend_totals()
        return store

    @classmethod
    def open_or_create(cls, root: str | os.PathLike[str], **layout: Any) -> Store:
        """Opens the store in `root`, or creates it. The arguments are those of `create`.

        Raises StoreError if the existing store has another layout.
        """
        if not (Path(root) / "meta/info.json").exists():
            return cls.create(root, **layout)
        store = cls.open(root)
        wanted = Layout(**{k: tuple(v) if isinstance(v, list) else v for k, v in layout.items()})
        for name, want in asdict(wanted).items():
            have = getattr(store.layout, name)
            if have != want:
                raise StoreError(
                    f"{root} was recorded with {name} = {have}, not {want}; name another folder or the same {name}"
                )
        return store

    @property
    def episodes(self) -> tuple[EpisodeMeta, ...]:
        """The facts of all episodes, in order."""
        return self.rows.metas()

    def with_columns(self, stated: Mapping[str, Sequence[str]]) -> Store:
        """The store with other columns for the state and the actions, see `columns.vectors_of`."""
        return Store(self.root, self._info, self.rows, self._texts, self._decoder, self._sums, stated)

    def unused(self) -> tuple[str, ...]:
        """Numeric columns that nothing trains on, as text: name and size."""
        return tuple(f"{name} ({size})" for name, _, size in self.layout.extras)

    def require_vectors(self) -> None:
        """Raises StoreError where it is in doubt which columns are the state or the actions; see `columns.doubtful`."""
        if found := doubtful(self._info["features"], self._stated, schema.RESERVED):
            option = f"`wamkit describe {self.root} --set columns.{{name}}=COLUMN,... --write` (`=none` for none)"
            raise StoreError(f"{self.root}: {which(found, option)}")

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the colour cameras."""
        return self.layout.cameras

    @property
    def depth_cameras(self) -> tuple[str, ...]:
        """Names of the depth cameras, which `decode_depth` reads. Nothing trains on them."""
        return self.layout.depth_cameras

    @property
    def frames(self) -> int:
        """N, the number of frames, that is steps, of all episodes."""
        return self.rows.frames

    def __len__(self) -> int:
        """The number of episodes."""
        return len(self.rows)

    def numeric(self) -> dict[str, np.ndarray]:
        """The numeric columns of all N frames, episode after episode, as read-only arrays by name.

        "observation.state": float32 (N, s); s = 0 where none was recorded.
        "action", "action.expert": float32 (N, a); a = 0 in video without actions. Without an expert both are the same.
        "next.reward": float32 (N,).
        "next.success": bool (N,).
        "timestamp": float32 (N,), in seconds.
        "frame_index", "episode_index", "index", "task_index": int64 (N,).
        The columns `schema.SCENE_FLOW_COLUMNS`, where points were recorded; `scene_flow` returns them in shape.
        Further columns in the type that info.json declares.

        Vectors may be stored as any numbers that float32 keeps apart; whole numbers are read as quantities.
        Raises StoreError as `open` does.
        """
        if self._columns is None:
            self._columns = self._read_columns()
        return dict(self._columns)

    def scene_flow(self) -> SceneFlow | None:
        """The scene points of all N frames, episode after episode; None if none were recorded."""
        if not self.layout.point_grid:
            return None
        points, body, pose = (self.numeric()[k] for k in schema.SCENE_FLOW_COLUMNS)
        return SceneFlow(
            points.reshape(self.frames, -1, 4), body.reshape(self.frames, -1), pose.reshape(self.frames, -1, 7)
        )

    def decode(self, episode: int, camera: str, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "T 3 H W"]:
        """All frames of one camera in one episode, RGB.

        size: (H, W) to resize to, by area averaging; None for the recorded size.

        Raises StoreError, naming episode and camera, if the video is missing, damaged or not of the declared size.
        """
        return self._decode(episode, camera, range(self._row(episode).meta.length), size)

    def decode_steps(self, episode: int, camera: str, steps: Sequence[int]) -> UInt8[np.ndarray, "n 3 H W"]:
        """The frames of one camera at `steps`, ascending. Only those needed are decoded; else as `decode`."""
        return self._decode(episode, camera, steps, None)

    def decode_blocks(
        self, episode: int, camera: str, size: tuple[int, int] | None = None
    ) -> Iterator[UInt8[np.ndarray, "n 3 H W"]]:
        """All frames of one camera in one episode, a few megabytes at a time; else as `decode`."""
        steps, (height, width) = self._row(episode).meta.length, size or self.layout.size(camera)
        at_once = max(1, BLOCK_BYTES // (3 * height * width))
        if not self.shows(episode, camera):
            for first in range(0, steps, at_once):
                yield np.zeros((min(at_once, steps - first), 3, height, width), np.uint8)
            return
        with self.open_video(episode, camera) as video:
            for first in range(0, steps, at_once):
                yield self.decode_from(video, episode, camera, range(first, min(first + at_once, steps)), size)

    def decode_depth(self, episode: int, camera: str) -> UInt16[np.ndarray, "T H W"]:
        """All depth maps of one depth camera in one episode, in millimetres; 0 where nothing was measured.

        Recordings in metres are rounded, and all is 0 where the camera saw nothing of the episode. Raises StoreError as
        `decode` does, and where info.json does not state the unit or quantisation.
        """
        if camera not in self.depth_cameras:
            raise StoreError(
                f"{self.root} has no depth camera {camera!r}{nearest(camera, self.depth_cameras)}; it has "
                f"{', '.join(self.depth_cameras) or 'none'}"
            )
        steps = range(self._row(episode).meta.length)
        if not self.shows(episode, camera):
            return np.zeros((len(steps), *self.layout.size(camera)), np.uint16)
        with self.open_video(episode, camera) as video, self._naming(episode, camera):
            stored = video.depth(steps, self._clip(episode, camera).start)
            return millimetres(stored, self._info["features"][self._key(camera)])

    def shows(self, episode: int, camera: str) -> bool:
        """True if a camera saw the episode. Images of one that did not are zeros, and it need not have a file."""
        return camera not in self._row(episode).meta.absent

    def open_video(self, episode: int, camera: str) -> Video | StillImages:
        """The open file of a clip, for `decode_from`. Other clips may be in it. Raises StoreError as `decode` does."""
        clip, row = self._clip(episode, camera), self._row(episode)
        with self._naming(episode, camera):
            known = self._sums.accepted(clip.path, row.sha256.get(clip.path))
            # A small file that the clip has for itself is compared as it is decoded, others before.
            at_once = clip.path != row.data and known == [clip.sha256] and file_size(clip.path) <= _SMALL_VIDEO
            if not at_once:
                self._sums.verify(clip.path, row.sha256.get(clip.path))
            if clip.path == row.data:
                return StillImages(clip.path, self._key(camera), self.layout.size(camera), self.rows.ends[clip.path])
            source: Path | bytes = clip.path
            if at_once:
                source = read_bytes(clip.path, _SMALL_VIDEO)
                if checksums.sha256(source) not in known:
                    raise checksums.changed(self.root)
            opened = TorchcodecVideo if self._decoder == "torchcodec" else Video
            return opened(source, self.layout.fps, self.layout.size(camera), self.rows.ends[clip.path])

    def decode_from(
        self,
        video: Video | StillImages,
        episode: int,
        camera: str,
        steps: Sequence[int],
        size: tuple[int, int] | None = None,
    ) -> UInt8[np.ndarray, "n 3 H W"]:
        """Frames at `steps`, ascending, decoded by an open video of the clip's file; see `open_video` and `decode`."""
        with self._naming(episode, camera):
            return video.frames(steps, size, self._clip(episode, camera).start)

    def video_path(self, episode: int, camera: str) -> Path:
        """The file of a clip."""
        return self._clip(episode, camera).path

    def snapshots(self, episode: int) -> tuple[Snapshot, ...]:
        """The simulator's states, one before each step. Raises StoreError if there are none or they are damaged."""
        path = self._row(episode).snapshots
        if path is None:
            raise StoreError(
                f"{self.root}: episode {episode} was recorded without snapshots; record it again with them"
            )
        try:
            self._sums.verify(path, self._row(episode).sha256.get(path))
            snapshots = unpack_snapshots(read_bytes(path, _LARGEST_SNAPSHOTS))
        except StoreError as error:
            raise StoreError(f"{path} (episode {episode}): {error}; {remedy(self.root)}") from error
        if len(snapshots) != self._row(episode).meta.length:
            number = f"{len(snapshots)} snapshots instead of one a step"
            raise StoreError(f"{path} (episode {episode}): {number}; {remedy(self.root)}")
        return snapshots

    def episode(self, index: int, images: bool = True, snapshots: bool = False) -> Episode:
        """Episode `index` as it was appended, apart from losses of the video codec.

        images: also read images and depth maps.
        snapshots: also read the simulator's states.
        """
        meta, columns = self._row(index).meta, self.numeric()
        here = slice(meta.from_index, meta.from_index + meta.length)
        empty = {"next.reward": np.zeros(self.frames, np.float32), "next.success": np.zeros(self.frames, bool)}
        get = {k: v[here].copy() for k, v in (empty | columns).items() if k not in schema.SCENE_FLOW_COLUMNS}
        flow = self.scene_flow()
        return Episode(
            task=meta.task,
            text=meta.text,
            seed=meta.seed,
            fps=self.layout.fps,
            cameras=self.cameras,
            images=self._images(index) if images and self.cameras else None,
            proprio=get["observation.state"],
            action=get["action"],
            action_expert=get["action.expert"],
            reward=get["next.reward"],
            success=get["next.success"],
            is_demonstration=meta.is_demonstration,
            noise=meta.noise,
            snapshots=self.snapshots(index) if snapshots else None,
            scene_flow=SceneFlow(flow.points[here], flow.body[here], flow.pose[here]) if flow else None,
            spans=self._spans(meta, columns["task_index"][here]),
            source=meta.source,
            extras={name: get[name].reshape(meta.length, -1) for name, _, _ in self.layout.extras},
            depth={name: self.decode_depth(index, name) for name in self.depth_cameras} if images else {},
            absent=meta.absent,
        )

    def _images(self, index: int) -> np.ndarray:
        """The images of all cameras, resized to those of the first, uint8 (T, V, 3, H, W)."""
        shape = self.layout.image_shape
        out = empty_frames((self._row(index).meta.length, len(self.cameras), *shape))
        for view, camera in enumerate(self.cameras):
            row = 0
            for block in self.decode_blocks(index, camera, shape[1:] if self.layout.sizes else None):
                out[row : row + len(block), view] = block
                row += len(block)
        return out

    def _spans(self, meta: EpisodeMeta, text_index: np.ndarray) -> tuple[Span, ...]:
        """Runs of steps whose text is not the episode's."""
        starts = np.flatnonzero(np.diff(text_index, prepend=-1))
        runs = zip(starts.tolist(), [*starts[1:].tolist(), len(text_index)], strict=True)
        spans = (Span(a, b, self._step_texts[text_index[a]]) for a, b in runs)
        return tuple(s for s in spans if s.text != meta.text)

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts, instructions and subtasks. The column "task_index" is the index of each step's text."""
        self.numeric()  # subtasks are found with the columns
        return tuple(self._step_texts)

    def checksum(self, episode: int, camera: str) -> str | None:
        """The SHA-256 of a clip's video or PNG images as they were recorded; None where none was recorded."""
        return self._row(episode).clips[camera].sha256 if self.shows(episode, camera) else None

    def files(self, episode: int) -> dict[Path, str | None]:
        """The files of an episode besides that of its facts, with their SHA-256 where it was recorded in the facts."""
        return self._row(episode).files()

    def verify(self, episode: int) -> None:
        """Compares the files of an episode with their recorded checksums, as reading them does. Raises StoreError."""
        for path, recorded in self.files(episode).items():
            try:
                self._sums.verify(path, recorded)
            except (OSError, StoreError) as error:
                raise StoreError(f"{path} (episode {episode}): {error}; {remedy(self.root)}") from error

    def videos(self) -> Iterator[tuple[int, str, Path, int]]:
        """(episode, camera, file, first frame in that file) of every clip, in order. Absent cameras have none."""
        for row in self.rows:
            for camera in (c for c in self.cameras if c not in row.meta.absent):
                clip = row.clips[camera]
                yield row.meta.index, camera, clip.path, clip.start

    def append(self, episode: Episode, encoded: Mapping[str, Encoded] | None = None) -> EpisodeMeta:
        """Stores `episode` as the next one. When this returns it is on disk; a kill before leaves the store as it was.

        encoded: images by camera from `stills.encode_camera`, if a worker process has encoded them; `episode.images`
            is then ignored.

        The same episodes in the same order give the same bytes. What `Episode` calls not stored is not. Raises
        StoreError, with the store as it was, for an episode or video that does not fit the layout, for NaN, and when
        the disk is full.
        """
        require_own(self.root)
        index, layout = len(self.rows), self.layout
        if not schema.same_features(self._info["features"], layout.features()):
            raise StoreError(f"{self.root} was not recorded by wamkit and is read-only; create a store of your own")
        check_episode(episode, layout, with_images=encoded is None)
        if encoded is None:
            images = ((c, episode.images[:, v].transpose(0, 2, 3, 1)) for v, c in enumerate(layout.cameras))
            encoded = {
                c: stills.encode_camera(x, layout, c, len(episode)) for c, x in images if c not in episode.absent
            }
        for c in episode.absent:
            black = repeat(np.zeros((*layout.size(c), 3), np.uint8), len(episode))
            encoded = {**encoded, c: stills.encode_camera(black, layout, c, len(episode))}
        if set(encoded) != set(layout.cameras):
            raise StoreError(f"videos of {sorted(encoded)} were given; the store has cameras {sorted(layout.cameras)}")
        samples = {c: stills.sample_frames(encoded, layout, c, len(episode)) for c in layout.cameras}
        texts = [*self._texts, *(t for t in dict.fromkeys([episode.text, *episode.texts()]) if t not in self._texts)]
        columns = schema.data_columns(episode, index, self.frames, texts, self._info["features"])
        embedded = {self._key(c): encoded[c] for c in layout.stills}
        embedded |= {self._key(c): [stills.encode_png(m) for m in maps] for c, maps in episode.depth.items()}
        data = schema.data_table(columns, self._info["features"], embedded)
        # Parquet checks a page's size after so many rows, and readers decode whole pages.
        options = {"write_batch_size": 4} if embedded else {}
        contents = {"data": schema.parquet_bytes(data, **options)}
        contents |= {f"video/{c}": encoded[c] for c in layout.cameras if c not in layout.stills}
        if episode.snapshots is not None:
            contents["snapshots"] = pack_snapshots(episode.snapshots)
        stats = {k: schema.describe(v) for k, v in columns.items() if k not in schema.SCENE_FLOW_COLUMNS}
        stats |= {self._key(c): schema.describe_images(p) for c, p in samples.items()}
        facts = facts_of(episode, index, self.frames, layout, {c: stills.checksum(encoded[c]) for c in encoded})
        facts |= {f"stats/{key}/{name}": value for key, each in stats.items() for name, value in each.items()}
        facts |= {f"wamkit/sha256/{k}": checksums.sha256(contents[k]) for k in ("data", "snapshots") if k in contents}
        self._describe_videos(encoded, episode.absent)
        # Last, because this file commits the episode.
        contents["episodes"] = schema.facts_bytes(facts, sealed=self._sums.files is not None)
        self._commit(index, contents)
        self.rows.append(row_of(facts, partial(inside, self.root), self._info))
        self._texts, self._step_texts, self._columns = texts, texts, None
        return self.rows[-1].meta

    def finalize(self) -> None:
        """Brings `info.json`, `tasks.parquet` and `stats.json` up to date and removes leftovers of killed writers.

        Writes nothing if they already are.
        """
        if self._is_final():
            return
        stats = {}
        if self.rows:
            described = self._info["features"].keys() - set(schema.SCENE_FLOW_COLUMNS)
            stats = {k: schema.describe(v) for k, v in self.numeric().items() if k in described}
            stats |= {self._key(c): schema.describe_images(self._sample(c)) for c in self.cameras}
        self._write_totals(stats)

    def _shown_layout(self) -> Layout:
        """The layout with the sizes at which videos of others are shown, where info.json has those of stored frames."""
        sizes = {c: self.layout.size(c) for c in self.cameras}
        for camera, (height, width) in sizes.items():
            clip = next((row.clips[camera] for row in self.rows if camera in row.clips), None)
            if clip and camera not in self.layout.stills and not clip.sha256 and height != width:
                sizes[camera] = shown_size(clip.path, (height, width))
        every = tuple(sizes.values())
        if every == tuple(self.layout.size(c) for c in self.cameras):
            return self.layout
        return replace(self.layout, image_shape=(3, *every[0]), sizes=every if len(set(every)) > 1 else ())

    def _row(self, episode: int) -> Row:
        if not 0 <= episode < len(self.rows):
            raise StoreError(f"{self.root} has no episode {episode}; it has {len(self.rows)}, numbered from 0")
        return self.rows[episode]

    def _key(self, camera: str) -> str:
        own = schema.IMAGES + camera
        features = self._info["features"]
        return own if own in features else next(key for key in features if schema.camera_name(key) == camera)

    def _paths(self, index: int) -> dict[str, Path]:
        chunk, file = divmod(index, schema.FILES_PER_CHUNK)
        where = {"chunk_index": chunk, "file_index": file, "episode_index": index}
        out = {"data": inside(self.root, schema.DATA_PATH.format(**where))}
        for camera in (c for c in self.cameras if c not in self.layout.stills):
            name = schema.VIDEO_PATH.format(video_key=self._key(camera), **where)
            out[f"video/{camera}"] = inside(self.root, name)
        out["snapshots"] = inside(self.root, schema.SNAPSHOTS_PATH.format(**where))
        return out | {"episodes": inside(self.root, schema.EPISODES_PATH.format(**where))}

    def _describe_videos(self, encoded: Mapping[str, Encoded], absent: Sequence[str]) -> None:
        """Writes into info.json how a camera's first video is encoded, before the episode with it is stored."""
        features, usual = self._info["features"], self.layout.features()
        for camera in {*self.cameras} - {*self.layout.stills, *absent, *self.rows.shown}:
            key, video = self._key(camera), encoded[camera]
            info = usual[key]["info"]
            if isinstance(video, VideoCopy):
                info = video_info(video.path, self.layout.fps) | {k: info[k] for k in (schema.OPTIONAL,) if k in info}
            features = features | {key: features[key] | {"info": info}}
        if features != self._info["features"]:
            self._info["features"] = features
            self._write_totals()

    def _commit(self, index: int, contents: Mapping[str, bytes | VideoCopy]) -> None:
        """Writes the files of episode `index`, in the given order, or none of them."""
        paths = self._paths(index)
        with exclusive(self.root, wait=True):  # readers of a store that grows lock it for a moment, to complete totals
            if paths["episodes"].exists():
                raise StoreError(f"{self.root}: another process has stored episode {index}; open the store again")
            self._discard(index)
            try:
                for name, content in contents.items():
                    if isinstance(content, VideoCopy):
                        atomic_copy(paths[name], content.path, content.sha256)
                    else:
                        atomic_write(paths[name], content)
            except BaseException:
                self._discard(index)
                raise

    def _discard(self, index: int) -> None:
        """Removes the files of a half-written episode `index`; never those of a committed one."""
        paths = self._paths(index)
        if not paths["episodes"].exists() and schema.same_features(self._info["features"], self.layout.features()):
            with contextlib.suppress(OSError):
                for path in paths.values():
                    path.unlink(missing_ok=True)
                    remove_leftovers(path)

    def _decode(self, episode: int, camera: str, frames: Sequence[int], size: tuple[int, int] | None) -> np.ndarray:
        """The frames `frames`, ascending and counted from the episode's start, resized to `size`."""
        if not self.shows(episode, camera):
            return np.zeros((len(frames), 3, *(size or self.layout.size(camera))), np.uint8)
        with self.open_video(episode, camera) as video:
            return self.decode_from(video, episode, camera, frames, size)

    def _clip(self, episode: int, camera: str) -> Clip:
        clips = self._row(episode).clips
        if camera not in clips:
            near, known = nearest(camera, self.cameras), ", ".join(self.cameras) or "none"
            raise StoreError(f"{self.root} has no camera {camera!r}{near}; it has {known}")
        return clips[camera]

    @contextlib.contextmanager
    def _naming(self, episode: int, camera: str) -> Iterator[None]:
        """Adds file, episode and camera to errors raised inside."""
        try:
            yield
        except (OSError, StoreError) as error:
            reason = str(getattr(error, "strerror", None) or error)
            where = f"{self._clip(episode, camera).path} (episode {episode}, camera {camera})"
            advice = "" if ";" in reason else f"; {remedy(self.root)}"  # what is intact needs no other copy
            raise StoreError(f"{where}: {reason}{advice}") from error

    def _sample(self, camera: str) -> Iterator[np.ndarray]:
        """A fixed random sample of the camera's frames in the whole store, uint8 (3, H, W) each."""
        rows = np.flatnonzero(np.repeat(self.rows.seen(camera), self.rows.lengths()))
        picked = np.sort(rows[np.random.default_rng(0).permutation(len(rows))[:_SAMPLE]])
        starts = self.rows.starts()
        owner = np.searchsorted(starts, picked, side="right") - 1
        frames = {e: (picked[owner == e] - starts[e]).tolist() for e in np.unique(owner).tolist()}
        for e, numbers in frames.items():
            with self.open_video(e, camera) as video:
                for number in numbers:
                    yield self.decode_from(video, e, camera, [number])[0]

    def _read_columns(self) -> dict[str, np.ndarray]:
        features = self._info["features"]
        columns = read_columns(self.rows, features, self._sums, self.vectors)
        if ((columns["task_index"] < 0) | (columns["task_index"] >= len(self._texts))).any():
            raise StoreError(f"{self.root}/meta/tasks.parquet lacks instructions that the frames refer to; {RESTORE}")
        if (fault := rate_fault(columns["timestamp"], self.rows.starts(), self.layout.fps)) is not None:
            raise StoreError(f"{self.rows[fault[0]].data} (episode {fault[0]}): {fault[1]}")
        self._sums.refuse()
        columns["task_index"], self._step_texts = language.step_texts(self.rows, features, columns, self._texts)
        for values in columns.values():
            values.setflags(write=False)
        return columns

    def _is_final(self) -> bool:
        """True if the first and the last file that `finalize` writes match the present number of frames."""
        try:
            stats, info = (read_json(self.root / f"meta/{name}.json", finite=False) for name in ("stats", "info"))
            whole = stats["index"]["count"] == [info["total_frames"]] == [self.frames]
            return whole and not checksums.is_pending(self.root)
        except (StoreError, KeyError, TypeError):
            return False

    def _check_totals(self) -> None:
        """Compares the totals with the episodes."""
        promised = self._info["total_episodes"]
        lengths = self.rows.lengths()
        if promised > len(lengths):
            lost = f"{promised} episodes are promised but meta/episodes has {len(lengths)}"
            raise StoreError(f"{self.root}/meta/info.json: {lost}, files are lost; {RESTORE}")
        if self._info["total_frames"] != (have := int(lengths[:promised].sum())):
            have = f"{promised} episodes have {have}"
            wrong = f"{self._info['total_frames']} frames are promised but {have}"
            raise StoreError(f"{self.root}/meta/info.json: {wrong}; {RESTORE}")

    def _mend_totals(self) -> None:
        """Completes totals that miss the last episodes, as a kill leaves them."""
        if self._info["total_episodes"] < len(self.rows) and os.access(self.root, os.W_OK):
            self._write_totals()

    def _write_totals(self, stats: Mapping[str, Any] | None = None, *, new: bool = False) -> None:
        """Derives tasks.parquet and info.json from the episodes. info.json comes last: it makes a folder a store.

        new: begin the checksums of a new store.
        """
        info = schema.info_json(self.layout, self._info["features"], len(self.rows), self.frames, len(self._texts))
        self._info |= {k: info[k] for k in ("total_episodes", "total_frames", "total_tasks", "splits")}
        make_folder(self.root)
        with exclusive(self.root, wait=True):
            self._discard(len(self.rows))
            contents = {} if stats is None else {"meta/stats.json": _json(stats)}
            contents["meta/tasks.parquet"] = schema.parquet_bytes(schema.tasks_table(self._texts))
            contents["meta/info.json"] = _json(self._info)
            checksums.replace(self.root, contents, new=new)


def _stated(root: Path, features: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
    """The columns that the metadata state to be the state and the actions, where they have no names of their own."""
    if all(vector in features for vector in OPTIONS.values()):
        return {}
    metadata = load_metadata(root)
    return {} if metadata is None else metadata.columns


def _json(content: Any) -> bytes:
    return json.dumps(content, indent=4, ensure_ascii=False).encode()
