"""Small LeRobotDataset folders, v2.1 and v3.0, as the lerobot package lays them out.

Written with pyarrow and PyAV alone: no code of wamkit takes part, so that a case does not inherit its idea of the
format.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

INDICES = ("frame_index", "episode_index", "index", "task_index")


def square_frames(steps: int, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """A grey gradient and a square that moves; its colour tells the step: RGB uint8 (T, H, W, 3)."""
    out = np.zeros((steps, height, width, 3), np.uint8)
    out[..., 0] = np.linspace(0, 120, width).astype(np.uint8)
    out[..., 1] = np.linspace(0, 120, height).astype(np.uint8)[:, None]
    for t in range(steps):
        x = int((width - 12) * ((3 * t + 7 * seed) % max(steps, 2)) / max(steps, 2))
        out[t, 8:20, x : x + 12] = (255, 40 + 5 * t % 200, 20)
    return out


def write_video(path: str | Path, frames: np.ndarray, fps: float = 10, codec: str = "libx264", **options: str) -> Path:
    """Encodes RGB frames (T, H, W, 3) as 4:2:0. options: of the encoder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = i, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@dataclass(frozen=True)
class Recordings:
    """Episodes to write. Every field is a way in which real data sets differ.

    columns: (episode, steps) -> columns that replace the drawn ones, or come beside them.
    features_more: further features of info.json.
    second_camera: a further camera, which shows the frames of `camera` mirrored; none if empty.
    clock: (episode, steps) -> timestamps in seconds, in place of t / fps.
    info: entries of info.json that replace the usual ones.
    """

    lengths: tuple[int, ...] = (20, 20, 20)
    tasks: tuple[str, ...] = ()
    fps: float = 10
    dims: int = 4
    height: int = 48
    width: int = 64
    camera: str = "observation.images.top"
    second_camera: str = ""
    state: str = "observation.state"
    action: str = "action"
    action_dtype: str = "float32"
    columns: Callable[[int, int], Mapping[str, np.ndarray]] = lambda episode, steps: {}
    clock: Callable[[int, int], np.ndarray] | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    features_more: Mapping[str, Any] = field(default_factory=dict)
    encoder: Mapping[str, str] = field(default_factory=lambda: {"g": "2", "bf": "0"})

    @property
    def texts(self) -> tuple[str, ...]:
        """The instruction of every episode."""
        return self.tasks or ("push the block",) * len(self.lengths)

    @property
    def cameras(self) -> tuple[str, ...]:
        """All cameras."""
        return (self.camera, self.second_camera) if self.second_camera else (self.camera,)

    @property
    def instructions(self) -> list[str]:
        """The different instructions, in the order of their task_index."""
        return list(dict.fromkeys(self.texts))

    @cached_property
    def starts(self) -> list[int]:
        """The first row of every episode."""
        return [sum(self.lengths[:e]) for e in range(len(self.lengths))]

    def rows(self, episode: int) -> dict[str, np.ndarray]:
        """The columns of one episode. The state integrates a twentieth of the actions."""
        steps, rng = self.lengths[episode], np.random.default_rng(episode)
        action = rng.normal(0, 1, (steps, self.dims))
        moved = np.cumsum(action, 0) / 20
        state = rng.normal(0, 0.05, self.dims) + np.r_[np.zeros((1, self.dims)), moved[:-1]]
        clock = np.arange(steps) / self.fps if self.clock is None else self.clock(episode, steps)
        return {
            self.state: state.astype(np.float32),
            self.action: action.astype(self.action_dtype),
            "timestamp": clock.astype(np.float32),
            "frame_index": np.arange(steps),
            "episode_index": np.full(steps, episode),
            "index": self.starts[episode] + np.arange(steps),
            "task_index": np.full(steps, self.instructions.index(self.texts[episode])),
            **self.columns(episode, steps),
        }

    def images(self, episode: int) -> np.ndarray:
        """The frames of one episode, RGB uint8 (T, H, W, 3)."""
        return square_frames(self.lengths[episode], self.height, self.width, episode)

    def shown(self, camera: str, episode: int) -> np.ndarray:
        """The frames of one episode and camera."""
        return self.images(episode) if camera == self.camera else self.images(episode)[:, :, ::-1]

    def features(self, last_axis: str) -> dict[str, Any]:
        """The features of info.json. last_axis: name of an image's last axis, which differs between versions."""
        wide = lambda dtype: {"dtype": dtype, "shape": [self.dims], "names": None}  # noqa: E731
        axes = ["height", "width", last_axis]
        return {
            self.state: wide("float32"),
            self.action: wide(self.action_dtype),
            **{c: {"dtype": "video", "shape": [self.height, self.width, 3], "names": axes} for c in self.cameras},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
            **{name: {"dtype": "int64", "shape": [1], "names": None} for name in INDICES},
            **self.features_more,
        }


def write_v3(root: str | Path, data: Recordings = Recordings()) -> Path:  # noqa: B008 (frozen)
    """Writes a LeRobotDataset v3.0: one data file and one video of all episodes."""
    root, episodes = Path(root), range(len(data.lengths))
    rows = [data.rows(e) for e in episodes]
    _write_table(root / "data/chunk-000/file-000.parquet", {k: np.concatenate([r[k] for r in rows]) for k in rows[0]})
    place = {
        f"{kind}/{part}_index": 0
        for kind in ("data", "meta/episodes", *(f"videos/{c}" for c in data.cameras))
        for part in ("chunk", "file")
    }
    index = [
        {
            "episode_index": e,
            "tasks": [data.texts[e]],
            "length": data.lengths[e],
            "dataset_from_index": data.starts[e],
            "dataset_to_index": data.starts[e] + data.lengths[e],
            **{f"videos/{c}/from_timestamp": data.starts[e] / data.fps for c in data.cameras},
            **{f"videos/{c}/to_timestamp": (data.starts[e] + data.lengths[e]) / data.fps for c in data.cameras},
            **place,
        }
        for e in episodes
    ]
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(index), path)
    texts = data.instructions
    pq.write_table(pa.table({"task_index": range(len(texts)), "__index_level_0__": texts}), root / "meta/tasks.parquet")
    for camera in data.cameras:
        video, frames = root / f"videos/{camera}/chunk-000/file-000.mp4", [data.shown(camera, e) for e in episodes]
        write_video(video, np.concatenate(frames), data.fps, **data.encoder)
    info = {
        "codebase_version": "v3.0",
        "robot_type": "so101",
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 500,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": data.features("channels"),
    }
    return _write_info(root, data, info)


def write_v21(root: str | Path, data: Recordings = Recordings()) -> Path:  # noqa: B008 (frozen)
    """Writes a LeRobotDataset v2.1: one data file and one video an episode, tables as JSON lines."""
    root = Path(root)
    for e in range(len(data.lengths)):
        _write_table(root / f"data/chunk-000/episode_{e:06d}.parquet", data.rows(e))
        for camera in data.cameras:
            video = root / f"videos/chunk-000/{camera}/episode_{e:06d}.mp4"
            write_video(video, data.shown(camera, e), data.fps, **data.encoder)
    episodes = [
        {"episode_index": e, "tasks": [t], "length": n}
        for e, (t, n) in enumerate(zip(data.texts, data.lengths, strict=True))
    ]
    tasks = [{"task_index": i, "task": text} for i, text in enumerate(data.instructions)]
    (root / "meta").mkdir()
    for name, lines in (("episodes", episodes), ("tasks", tasks)):
        (root / f"meta/{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    info = {
        "codebase_version": "v2.1",
        "robot_type": "so100",
        "total_videos": len(data.lengths) * len(data.cameras),
        "total_chunks": 1,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": data.features("channel"),
    }
    return _write_info(root, data, info)


def _write_table(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({k: pa.array(x.tolist(), _type(x)) for k, x in columns.items()}), path)


def _type(x: np.ndarray) -> pa.DataType:
    """The type of a column with one item of `x` a row: lists, and lists of lists for matrices."""
    out = pa.from_numpy_dtype(x.dtype)
    for _ in range(x.ndim - 1):
        out = pa.list_(out)
    return out


def _write_info(root: Path, data: Recordings, info: dict[str, Any]) -> Path:
    common = {
        "total_episodes": len(data.lengths),
        "total_frames": sum(data.lengths),
        "total_tasks": len(data.instructions),
        "chunks_size": 1000,
        "fps": data.fps,
        "splits": {"train": f"0:{len(data.lengths)}"},
    }
    (root / "meta/info.json").write_text(json.dumps(info | common | dict(data.info), indent=1))
    return root
