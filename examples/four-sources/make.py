"""Records the four kinds of data in MuJoCo and writes each in its usual format.

python examples/four-sources/make.py --out data/four

teleop/             LeRobotDataset v2.1: a teleoperated arm, a scene camera and a wrist camera
hand.zarr.zip       UMI: a hand-held gripper, its pose and its camera
reacher.h5, .json   ManiSkill: another robot with two joints, in another scene
ego/                a folder of videos: a camera on a moving head, captions, no actions
"""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
import zarr
from imagecodecs.numcodecs import Jpegxl, register_codecs

from wamkit.data.format.store import Store
from wamkit.data.format.video import encode_video
from wamkit.rollout.collect import CollectConfig, collect

TASKS = ("button-press-topdown-v3", "drawer-open-v3", "window-close-v3", "door-open-v3")
OTHERS = (
    "button-press-v3",
    "drawer-close-v3",
    "window-open-v3",
    "door-close-v3",
    "faucet-open-v3",
    "handle-press-v3",
    "plate-slide-v3",
    "coffee-button-v3",
)


@dataclass(frozen=True)
class Args:
    """Options of the recording."""

    out: Path = Path("data/four")
    """Folder of the four sources."""
    episodes: int = 10
    """Demonstrations a task; eight times as many for the one task of `reacher`, twice as many for `hand`."""
    processes: int = 2
    """Worker processes."""


def record(args: Args, name: str, **what: object) -> Store:
    """A store of demonstrations, without off-expert episodes, from which a format is written."""
    config = {"out": args.out / "recorded" / name, "off_expert": 0, "processes": args.processes, **what}
    return collect(CollectConfig(**config))


def teleop(store: Store, out: Path) -> None:
    """Writes a LeRobotDataset v2.1 with GR00T's modality.json."""
    names = {"corner2": "front", "gripperPOV": "wrist"}
    size, fps = list(store.layout.image_shape[1:]), int(store.layout.fps)
    texts = sorted({m.text for m in store.episodes})
    features = {
        "observation.state": {"dtype": "float32", "shape": [4], "names": list(store.layout.proprio_names)},
        "action": {"dtype": "float32", "shape": [4], "names": list(store.layout.action_names)},
    }
    for camera in names.values():
        shape = {"shape": [*size, 3], "names": ["height", "width", "channels"], "info": {"video.fps": fps}}
        features[f"observation.images.{camera}"] = {"dtype": "video", **shape}
    for key, kind in (
        ("timestamp", "float32"),
        *((k, "int64") for k in ("frame_index", "episode_index", "index", "task_index")),
    ):
        features[key] = {"dtype": kind, "shape": [1], "names": None}
    for i in range(len(store)):
        episode, T = store.episode(i, images=False), len(store.episode(i, images=False))
        at = store.episodes[i].from_index
        vector = lambda x: pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])  # noqa: E731
        columns = {
            "observation.state": vector(episode.proprio),
            "action": vector(episode.action),
            "timestamp": pa.array(np.arange(T, dtype=np.float32) / fps),
            "frame_index": pa.array(np.arange(T)),
            "episode_index": pa.array(np.full(T, i)),
            "index": pa.array(at + np.arange(T)),
            "task_index": pa.array(np.full(T, texts.index(episode.text))),
        }
        path = out / f"data/chunk-000/episode_{i:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
        for camera, name in names.items():
            path = out / f"videos/chunk-000/observation.images.{name}/episode_{i:06d}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_video(store.decode(i, camera), fps))
    meta = out / "meta"
    meta.mkdir(parents=True, exist_ok=True)
    info = {
        "codebase_version": "v2.1",
        "robot_type": "sawyer",
        "fps": fps,
        "chunks_size": 1000,
        "total_episodes": len(store),
        "total_frames": store.frames,
        "total_tasks": len(texts),
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": features,
    }
    vectors = {
        "state": {"hand": {"start": 0, "end": 3}, "gripper": {"start": 3, "end": 4}},
        "action": {"hand": {"start": 0, "end": 3, "absolute": False}, "gripper": {"start": 3, "end": 4}},
        "video": {c: {"original_key": f"observation.images.{c}"} for c in names.values()},
    }
    (meta / "info.json").write_text(json.dumps(info, indent=1))
    (meta / "modality.json").write_text(json.dumps(vectors, indent=1))
    rows = [{"episode_index": m.index, "tasks": [m.text], "length": m.length} for m in store.episodes]
    (meta / "episodes.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    tasks = [{"task_index": i, "task": t} for i, t in enumerate(texts)]
    (meta / "tasks.jsonl").write_text("".join(json.dumps(t) + "\n" for t in tasks))


def hand_held(store: Store, out: Path) -> None:
    """Writes UMI's zarr: pose, opening and camera of the gripper. Actions follow from the poses."""
    register_codecs(verbose=False)
    state = store.numeric()["observation.state"]
    ends = np.cumsum([m.length for m in store.episodes])
    with zarr.config.set({"array.write_empty_chunks": True}), zarr.storage.ZipStore(out, mode="w") as file:
        root = zarr.open_group(file, mode="w", zarr_format=2)
        root.create_array("meta/episode_ends", data=ends, chunks=ends.shape, compressors=None)
        turn = np.zeros((len(state), 3), np.float32)  # this hand never rotates
        for key, x in (("eef_pos", state[:, :3]), ("eef_rot_axis_angle", turn), ("gripper_width", state[:, 3:] / 10)):
            x = np.ascontiguousarray(x)
            root.create_array(f"data/robot0_{key}", data=x, chunks=x.shape, compressors=None)
        shape = (len(state), *store.layout.image_shape[1:], 3)
        pixels = root.create_array(
            "data/camera0_rgb",
            shape=shape,
            chunks=(1, *shape[1:]),
            dtype=np.uint8,
            compressors=Jpegxl(level=99, numthreads=1),
        )
        for meta in store.episodes:
            pixels[meta.from_index : meta.from_index + meta.length] = store.decode(meta.index, "gripperPOV").transpose(
                0, 2, 3, 1
            )


def simulation(store: Store, out: Path) -> None:
    """Writes ManiSkill's HDF5 and JSON, with one more observation than actions."""
    control = "pd_joint_delta_pos"
    with h5py.File(out, "w") as file:
        for i in range(len(store)):
            episode, images = store.episode(i, images=False), store.decode(i, "top")
            group = file.create_group(f"traj_{i}")
            group["actions"], group["success"] = episode.action[:-1], episode.success[:-1]
            group["obs/agent/qpos"], group["obs/agent/qvel"] = episode.proprio[:, :2], episode.proprio[:, 2:]
            group["obs/sensor_data/top/rgb"] = images.transpose(0, 2, 3, 1)
    episodes = [
        {"episode_id": i, "control_mode": control, "elapsed_steps": m.length - 1} for i, m in enumerate(store.episodes)
    ]
    about = {"env_info": {"env_id": "Reacher-v5", "env_kwargs": {"robot_uids": "reacher"}}, "episodes": episodes}
    out.with_suffix(".json").write_text(json.dumps(about, indent=1))


def egocentric(store: Store, out: Path) -> None:
    """Writes videos of every other frame, 40 a second, with captions in a table."""
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, meta in enumerate(store.episodes):
        name = f"{meta.task.removesuffix('-v3')}-{i:03d}.mp4"
        (out / name).write_bytes(encode_video(store.decode(i, "corner2")[::2], store.layout.fps / 2))
        rows.append({"file": name, "text": meta.text})
    with (out / "captions.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["file", "text"])
        table.writeheader()
        table.writerows(rows)


def main(args: Args) -> None:
    n, options = args.episodes, {"cameras": ["corner2", "gripperPOV"]}
    arm = record(args, "teleop", tasks=TASKS, episodes=n, options=options)
    hand = record(args, "hand", tasks=TASKS, episodes=2 * n, seed=1, options={"cameras": ["gripperPOV"]})
    other = record(args, "reacher", env="reacher", tasks=("reach",), episodes=8 * n)
    head = record(args, "ego", tasks=(*TASKS, *OTHERS), episodes=n, seed=2, options={"sway": 0.1})
    shutil.rmtree(args.out / "teleop", ignore_errors=True)
    teleop(arm, args.out / "teleop")
    hand_held(hand, args.out / "hand.zarr.zip")
    simulation(other, args.out / "reacher.h5")
    egocentric(head, args.out / "ego")
    print(*sorted(p.relative_to(args.out) for p in args.out.iterdir() if p.name != "recorded"), sep="\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
