"""Damaged data sets are found when they are opened or decoded, and named."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import (
    DATA,
    VIDEO,
    as_text,
    cut,
    edit_data,
    edit_facts,
    edit_feature,
    edit_json,
    empty,
    flip,
    poke_nan,
    without_feature,
)
from recordings import CAMERAS, FPS, grainy_frames, without_checksums

from wamkit.data.format.frame_cache import FrameCache
from wamkit.data.format.store import Store, StoreError
from wamkit.data.format.video import encode_video


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (empty, "is empty .*wamkit collect"),
        (lambda root: (root / "meta/info.json").unlink(), "is incomplete"),
        (cut("meta/info.json", 100), "info.json cannot be read"),
        (edit_json(codebase_version="v2.1"), "codebase_version is v2.1, wamkit reads v3.0"),
        (without_feature, "feature 'action' is missing"),
        (edit_json(features=["action"]), "info.json: features is a list"),
        (edit_json(fps="x"), "info.json: fps is 'x', not a positive number"),
        (edit_json(fps=-20), "info.json: fps is -20"),
        (edit_json(total_episodes="x"), "info.json: total_episodes is 'x'"),
        (edit_json(total_frames=None), "info.json: total_frames is None"),
        (edit_json(data_path="data/{nothing}"), "info.json: data_path is 'data/{nothing}'"),
        (edit_json(video_path=None), "info.json: video_path is None"),
        (edit_feature("action", shape="junk"), "info.json: feature 'action' needs a shape"),
        (edit_feature("action", shape=[2, 1]), r"column 'action': its cells have 1 dimensions instead of 2; info.json"),
        (edit_feature("action", dtype="int64"), r"episode 0\): column 'action': it holds numbers that are no int64"),
        (edit_feature("action", dtype="junk"), "info.json: feature 'action' needs a floating-point dtype"),
        (edit_feature("next.reward", dtype=None), "info.json: feature 'next.reward' has no dtype"),
        (edit_feature("observation.images.front", shape=[32, 32]), r"front' needs the shape \[height, width, 3\]"),
        (edit_facts(length="8"), r"file-001.parquet \(episode 1\): length: expected int, found '8'"),
        (edit_facts(tasks=[" "]), r"file-001.parquet \(episode 1\): tasks is \[' '\], .* needs an instruction"),
        (edit_facts(**{"data/file_index": "x"}), r"file-001.parquet \(episode 1\): "),
        (edit_facts(length=None), "file-001.parquet: column 'length' is missing"),
        (edit_data(as_text), r"file-001.parquet \(episode 1\): column 'next.reward': it holds string"),
        (edit_json(total_episodes=4), "4 episodes are promised but meta/episodes has 3"),
        (edit_json(total_frames=25), "25 frames are promised but 3 episodes have 24"),
        (lambda root: (root / "meta/episodes/chunk-000/file-001.parquet").unlink(), "episode 1 is missing"),
        (lambda root: (root / "meta/tasks.parquet").unlink(), "tasks.parquet cannot be read"),
        (lambda root: (root / DATA).unlink(), r"file-001.parquet \(episode 1\) is missing"),
        (cut(DATA, 900), r"file-001.parquet \(episode 1\) cannot be read"),
        (flip(DATA, 60), r"file-001.parquet \(episode 1\) cannot be read"),
        (edit_data(poke_nan), r"file-001.parquet \(episode 1, step 3\): action is NaN"),
        (edit_data(lambda t: t.drop_columns(["next.reward"])), r"episode 1\): columns \['next.reward'\] are missing"),
        (edit_data(lambda t: t.slice(0, 5)), r"episode 1\): 5 frames instead of 8"),
        (edit_data(lambda t: t.take(list(range(7, -1, -1)))), "is numbered differently"),
        (lambda root: (root / VIDEO).unlink(), r"wrist/chunk-000/file-001.mp4 \(episode 1\) is missing"),
    ],
)
def test_damage_is_found_when_opened(copy, damage, reason):
    damage(copy)
    with pytest.raises(StoreError, match=reason):
        Store.open(copy)


@pytest.mark.parametrize("damage", [cut(VIDEO, 700), cut(VIDEO, -30), flip(VIDEO, 200), flip(VIDEO, -5)])
def test_a_damaged_video_is_found_when_decoded(copy, damage):
    damage(copy)
    store = Store.open(copy)
    assert len(store.decode(0, "wrist")) == 7
    with pytest.raises(StoreError, match=r"file-001.mp4 \(episode 1, camera wrist\): .*changed"):
        store.decode(1, "wrist")
    with pytest.raises(StoreError, match="episode 1, camera wrist"):
        FrameCache.build_or_open(store)
    assert not list((copy / ".cache").iterdir())


def test_a_video_of_another_size_is_found_without_checksum(copy):
    without_checksums(copy)
    (copy / VIDEO).write_bytes(encode_video(grainy_frames(0, 8, 16), FPS))
    path = copy / "meta/episodes/chunk-000/file-001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns([n for n in table.column_names if "sha256" in n]), path)
    with pytest.raises(StoreError, match=r"episode 1, camera wrist\): its frames are 16x16 instead of 32x32"):
        Store.open(copy).decode(1, "wrist")
    (copy / VIDEO).write_bytes(encode_video(grainy_frames(0, 8), FPS)[:-400])
    with pytest.raises(StoreError, match="episode 1, camera wrist"):
        Store.open(copy).decode(1, "wrist")


def test_a_video_of_another_rate_or_length_is_found_without_checksum(copy):
    edit_facts(**{f"wamkit/sha256/observation.images.{camera}": None for camera in CAMERAS})(without_checksums(copy))
    (copy / VIDEO).write_bytes(encode_video(grainy_frames(0, 5), FPS))
    with pytest.raises(StoreError, match=r"episode 1, camera wrist\): it has 5 frames instead of 8"):
        Store.open(copy).decode(1, "wrist")
    edit_json(fps=10)(copy)
    with pytest.raises(StoreError, match=r"episode 0\): its rows are not 10 a second, .* but 20 by their timestamps"):
        Store.open(copy)
    for path in copy.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        times = pa.array([t / 10 for t in range(len(table))], pa.float32())
        pq.write_table(table.set_column(table.column_names.index("timestamp"), "timestamp", times), path)
    edit_facts(**{"wamkit/sha256/data": None})(copy)
    with pytest.raises(StoreError, match=r"episode 1, camera front\): it has 20 frames a second, but .* says fps 10"):
        Store.open(copy).decode(1, "front")
