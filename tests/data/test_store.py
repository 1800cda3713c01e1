"""Stores: round trips, LeRobot's layout, episodes and layouts that do not fit."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import edit_feature
from recordings import CAMERAS, FPS, LAYOUT, SIZE, content, grainy_frames, make_episode, psnr, without_checksums

from wamkit.data.format.store import Store, StoreError
from wamkit.data.format.video import encode_video
from wamkit.types import Snapshot


def test_what_is_appended_comes_back(filled):
    store = Store.open(filled)
    assert len(store) == 3 and store.frames == 7 + 8 + 9
    for index in range(3):
        wrote, read = make_episode(index, 7 + index), store.episode(index, snapshots=True)
        for name in ("task", "text", "seed", "fps", "cameras", "is_demonstration", "noise"):
            assert getattr(read, name) == getattr(wrote, name)
        for name in ("proprio", "action", "action_expert", "reward", "success"):
            a, b = getattr(read, name), getattr(wrote, name)
            assert a.dtype == b.dtype and np.array_equal(a, b), name
        assert read.images.shape == wrote.images.shape and psnr(read.images, wrote.images) > 38
        assert [s.attributes["t"] for s in read.snapshots] == list(range(7 + index))
        assert read.snapshots[2].physics.tobytes() == wrote.snapshots[2].physics.tobytes()
    assert [m.from_index for m in store.episodes] == [0, 7, 15] and all(m.success for m in store.episodes)
    columns = store.numeric()
    assert np.array_equal(columns["episode_index"], np.repeat([0, 1, 2], [7, 8, 9]))
    assert np.array_equal(columns["task_index"], np.repeat([0, 1, 0], [7, 8, 9]))
    assert np.array_equal(columns["index"], np.arange(24))
    assert np.array_equal(columns["timestamp"], columns["frame_index"].astype(np.float32) / np.float32(FPS))


def test_meta_files_are_what_lerobot_expects(filled):
    info = json.loads((filled / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["fps"] == 20 and isinstance(info["fps"], int)
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 24, 2)
    assert info["features"]["observation.images.front"]["shape"] == [SIZE, SIZE, 3]
    tasks = pq.read_table(filled / "meta/tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["__index_level_0__"]
    data = pq.read_table(filled / "data/chunk-000/file-001.parquet")
    assert data.schema.field("action").type == pa.list_(pa.float32(), 2)
    assert data.schema.field("next.success").type == pa.bool_()
    features = json.loads(data.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["action"]["length"] == 2 and set(features) == set(data.column_names)
    facts = pq.read_table(filled / "meta/episodes/chunk-000/file-002.parquet").to_pylist()[0]
    assert facts["videos/observation.images.wrist/file_index"] == 2 and facts["dataset_to_index"] == 24
    assert len(facts["stats/observation.images.front/mean"]) == 3


def test_statistics_are_those_of_the_values(filled):
    store, stats = Store.open(filled), json.loads((filled / "meta/stats.json").read_text())
    action = store.numeric()["action"].astype(float)
    assert np.allclose(stats["action"]["q01"], np.quantile(action, 0.01, axis=0))
    assert np.allclose(stats["action"]["std"], action.std(0)) and stats["action"]["count"] == [24]
    images = np.concatenate([store.decode(e, "wrist") for e in range(3)]).transpose(1, 0, 2, 3).reshape(3, -1) / 255
    for name, q in {"q01": 0.01, "q50": 0.5, "q99": 0.99, "min": 0, "max": 1}.items():
        assert np.allclose(np.ravel(stats["observation.images.wrist"][name]), np.quantile(images, q, axis=1))
    assert np.allclose(np.ravel(stats["observation.images.wrist"]["std"]), images.std(1))


def test_same_episodes_same_bytes(filled, tmp_path):
    store = Store.create(tmp_path / "data", **LAYOUT)
    for seed in range(3):
        episode = make_episode(seed, 7 + seed)
        encoded = {camera: encode_video(episode.images[:, v], FPS) for v, camera in enumerate(CAMERAS)}
        store.append(dataclasses.replace(episode, images=None), encoded)
    store.finalize()
    assert content(tmp_path / "data") == content(filled)


def test_several_episodes_in_one_video_whose_times_drift(copy):
    """lerobot's own files: one video for many episodes, its number unlike the data's, start times summed as floats."""
    without_checksums(copy)
    lengths, key = (7, 8, 9), "observation.images.front"
    joined = np.concatenate([make_episode(s, n).images[:, 0] for s, n in enumerate(lengths)])
    (copy / f"videos/{key}/chunk-000/file-005.mp4").write_bytes(encode_video(joined, FPS))
    rows = []
    for path in sorted((copy / "meta/episodes/chunk-000").iterdir()):
        rows += pq.read_table(path).to_pylist()
        path.unlink()
    for row, start in zip(rows, (0, 7, 15), strict=True):
        row |= {f"videos/{key}/file_index": 5, f"videos/{key}/from_timestamp": (start + 0.4) / FPS}
    pq.write_table(pa.Table.from_pylist(rows), copy / "meta/episodes/chunk-000/file-000.parquet")
    store = Store.open(copy)
    for index, length in enumerate(lengths):
        frames = store.decode(index, "front")
        assert frames.shape == (length, 3, SIZE, SIZE) and psnr(frames, make_episode(index, length).images[:, 0]) > 38
    rows[2][f"videos/{key}/from_timestamp"] = 14.4 / FPS  # a whole frame early
    pq.write_table(pa.Table.from_pylist(rows), copy / "meta/episodes/chunk-000/file-000.parquet")
    with pytest.raises(StoreError, match="episode 2, camera front.*starts at frame 14.*end at 15"):
        Store.open(copy)


def test_vectors_are_read_as_float32(copy):
    without_checksums(copy)
    for episode in range(3):
        path = copy / f"data/chunk-000/file-00{episode}.parquet"
        table = pq.read_table(path)
        whole = pa.array([[1, 2]] * len(table), pa.list_(pa.int64(), 2))
        pq.write_table(table.set_column(table.column_names.index("action"), "action", whole), path)
    edit_feature("observation.state", dtype="float64")(copy)
    columns = Store.open(copy).numeric()
    assert columns["action"].dtype == columns["observation.state"].dtype == np.float32
    assert (columns["action"] == [1, 2]).all()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"action": np.full((9, 2), np.nan, np.float32)}, "seed 101: action is NaN or infinite at step 0"),
        ({"proprio": np.zeros((9, 4), np.float32)}, r"proprio is \(9, 4\), the store has \(9, 3\)"),
        ({"images": np.zeros((9, 2, 3, 16, 16), np.uint8)}, "images is"),
        ({"images": None}, "images is None"),
        ({"text": " "}, "instruction is empty"),
        ({"cameras": ("front", "top")}, "cameras"),
        ({"fps": 30.0}, "30.0 steps a second"),
        ({"snapshots": ()}, "0 snapshots for 9 steps"),
        ({"snapshots": (Snapshot(np.zeros(2), {}, {"thing": object()}),) * 9}, "attributes/thing"),
    ],
)
def test_append_refuses_what_does_not_fit(copy, changes, reason):
    before, store = content(copy), Store.open(copy)
    with pytest.raises(StoreError, match=reason):
        store.append(make_episode(1, **changes))
    short = {camera: encode_video(grainy_frames(1, 8), FPS) for camera in CAMERAS}
    with pytest.raises(StoreError, match="camera front.*8 frames instead of 9"):
        store.append(make_episode(1), short)
    assert content(copy) == before and len(store) == 3


def test_create_and_layout_errors(filled, tmp_path):
    with pytest.raises(StoreError, match="not empty"):
        Store.create(filled, **LAYOUT)
    with pytest.raises(StoreError, match="recorded with fps = 20.0, not 30.0"):
        Store.open_or_create(filled, **LAYOUT | {"fps": 30.0})
    with pytest.raises(StoreError, match="image_shape"):
        Store.create(tmp_path / "new", **LAYOUT | {"image_shape": (SIZE, SIZE, 3)})
    with pytest.raises(StoreError, match="no episode 3"):
        Store.open(filled).decode(3, "front")
    with pytest.raises(StoreError, match="no camera 'top'"):
        Store.open(filled).decode(0, "top")
    with pytest.raises(StoreError, match="no such folder"):
        Store.open(tmp_path / "nothing")
    assert not (tmp_path / "new").exists()
