"""Data sets with many episodes a file: their facts stay columns, which say what a careful reading of each row says."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.cases.lerobot_folders import Recordings, write_v3

from wamkit.data.format import checksums, episode_index
from wamkit.data.format import store as store_module
from wamkit.data.format.episodes import columns_of
from wamkit.data.format.parquet import read_parquet
from wamkit.data.format.store import Store
from wamkit.data.loading.augment import Augment
from wamkit.data.loading.dataset import open_frames
from wamkit.data.loading.mixture import divided
from wamkit.files import StoreError, inside
from wamkit.training.world import World
from wamkit.types import Spec

CAMERAS, FPS, A_FILE = ("front", "wrist"), 10, 7
OWN = ("wamkit/task", "wamkit/seed", "wamkit/success", "wamkit/imitate", "wamkit/noise", "wamkit/source")


def facts(count, seed=0, own=False):
    """Rows of meta/episodes: three files of data, two of each camera, which miss some episodes."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, count).tolist()
    rows, first, ends = [], 0, dict.fromkeys(((c, f) for c in CAMERAS for f in range(2)), 0)
    for e, length in enumerate(lengths):
        row = {"episode_index": e, "tasks": [f"task {e % 3}", "more"][: 1 + e % 2], "length": length}
        row |= {"data/chunk_index": 0, "data/file_index": 3 * e // count, "dataset_from_index": first}
        first += length
        for camera in CAMERAS:
            file, absent = 2 * e // count, camera == "wrist" and rng.random() < 0.3
            start = ends[camera, file] + int(rng.integers(0, 3))
            ends[camera, file] = start + length if not absent else ends[camera, file]
            place = {"chunk_index": 0, "file_index": file, "from_timestamp": start / FPS}
            row |= {f"videos/observation.images.{camera}/{k}": None if absent else v for k, v in place.items()}
        if own:
            row |= dict(zip(OWN, ("lift", e, e % 2 == 0, e % 5 > 0, e / 7, ""), strict=True))
        rows.append(row)
    return rows


def write(root, rows):
    """A folder whose index holds `rows`, in files and row groups of a few. Other files are empty places."""
    for n, at in enumerate(range(0, len(rows), A_FILE)):
        path = root / f"meta/episodes/chunk-000/file-{n:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows[at : at + A_FILE]), path, row_group_size=3)
    for name in [f"data/chunk-000/file-{f:03d}.parquet" for f in range(3)] + [
        f"videos/observation.images.{c}/chunk-000/file-{f:03d}.mp4" for c in CAMERAS for f in range(2)
    ]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"-")
    image = {"dtype": "video", "shape": [64, 64, 3], "names": ["height", "width", "channels"]}
    scalars = {k: {"dtype": "int64", "shape": [1]} for k in ("frame_index", "episode_index", "index", "task_index")}
    info = {
        "codebase_version": "v3.0",
        "robot_type": "arm",
        "fps": FPS,
        "total_episodes": len(rows),
        "total_frames": sum(row["length"] for row in rows if isinstance(row["length"], int)),
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {f"observation.images.{c}": image for c in CAMERAS}
        | {"timestamp": {"dtype": "float32", "shape": [1]}}
        | scalars,
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    return info


def read(root, info, monkeypatch, careful):
    """The episodes, or the error, by columns or by a reading of every row."""
    with monkeypatch.context() as patch:
        if careful:
            patch.setattr(episode_index, "columns_of", lambda *_: None)
        try:
            return episode_index.read_rows(root, info, checksums.load(root))
        except StoreError as error:
            return str(error)


def columns(root, info):
    """What `columns_of` makes of a folder's index."""
    tables = [read_parquet(p, leave_out="stats/") for p in sorted((root / "meta/episodes").rglob("*.parquet"))]
    return columns_of(tables, info, cache(partial(inside, root)))


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_columns_say_what_every_row_says(tmp_path, monkeypatch, seed, own):
    info = write(tmp_path, facts(30, seed, own))
    assert columns(tmp_path, info) is not None
    found, expected = (read(tmp_path, info, monkeypatch, careful) for careful in (False, True))
    assert list(found) == list(expected) and [found[i] for i in range(-30, 30)] == [*expected, *expected]
    assert found[3:20:4] == expected[3:20:4] and len(found) == len(expected) == 30
    assert found.metas() == expected.metas() and found.texts() == expected.texts()
    assert (found.frames, found.shown, found.ends) == (expected.frames, expected.shown, expected.ends)
    assert found.instructions() == expected.instructions()
    for name in ("lengths", "starts", "demonstrations"):
        assert getattr(found, name)().tolist() == getattr(expected, name)().tolist(), name
    assert all(found.seen(camera).tolist() == expected.seen(camera).tolist() for camera in CAMERAS)
    with pytest.raises(IndexError):
        found[30]


def test_an_episode_after_those_of_columns(tmp_path, monkeypatch):
    info = write(tmp_path, facts(30))
    few = write(tmp_path / "few", facts(30)[:29])
    found, expected = read(tmp_path / "few", few, monkeypatch, False), read(tmp_path, info, monkeypatch, True)
    found.append(expected[29])
    assert [row.meta for row in found] == [row.meta for row in expected] and found.frames == expected.frames
    assert found.lengths().tolist() == expected.lengths().tolist() and found[29] == expected[29] == found[-1]
    assert found.metas() == expected.metas() and found.instructions() == expected.instructions()


def changed(**values):
    return lambda rows: rows[11].update(values)


FRONT = "videos/observation.images.front"
FAULTS = {
    "a length of 0": changed(length=0),
    "a wrong first frame": changed(dataset_from_index=3),
    "a duplicate": lambda rows: rows[11].update(episode_index=10),
    "a missing episode": lambda rows: rows.pop(11),
    "no text": lambda rows: [row.update(tasks=[]) for row in rows],
    "a blank text": changed(tasks=[" "]),
    "no number": changed(**{"data/file_index": None}),
    "a negative number": changed(**{f"{FRONT}/file_index": -1}),
    "clips that overlap": changed(**{f"{FRONT}/from_timestamp": 0.0}),
    "a clip from infinity": changed(**{f"{FRONT}/from_timestamp": float("inf")}),
    "half a place": changed(**{f"{FRONT}/from_timestamp": None}),
    "a file that is not there": changed(**{f"{FRONT}/file_index": 5}),
    "a noise that is none": changed(**{"wamkit/noise": float("nan")}),
    "episodes in another order": lambda rows: rows.reverse(),
    "texts of an import": lambda rows: [row.update({"tasks": [" "], "wamkit/source": "x"}) for row in rows],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_as_it_is_by_a_reading_of_every_row(tmp_path, monkeypatch, fault):
    rows = facts(30, own=True)
    FAULTS[fault](rows)
    info = write(tmp_path, rows)
    found, expected = (read(tmp_path, info, monkeypatch, careful) for careful in (False, True))
    assert (found if isinstance(found, str) else list(found)) == (
        expected if isinstance(expected, str) else list(expected)
    )


def test_no_object_is_kept_for_an_episode(tmp_path):
    info = write(tmp_path, facts(30))
    large = pa.Table.from_pylist(facts(6000))
    for path in (tmp_path / "meta/episodes").rglob("*.parquet"):
        path.unlink()
    pq.write_table(large, tmp_path / "meta/episodes/chunk-000/file-000.parquet")
    info = info | {"total_episodes": 6000}
    tracemalloc.start()
    rows = episode_index.read_rows(tmp_path, info, checksums.load(tmp_path))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows) == 6000 and held < 150 * 6000  # an object of each takes more than 2,000 bytes


def test_texts_of_several_row_groups_fit_into_little_memory(tmp_path):
    texts = [[f"{'word ' * 20}{i % 5}"] for i in range(3000)]
    pq.write_table(pa.table({"tasks": texts}), tmp_path / "x.parquet", row_group_size=100)
    assert read_parquet(tmp_path / "x.parquet", max_bytes=1_000_000)["tasks"].to_pylist() == texts
    with pytest.raises(StoreError, match="needs .* bytes of memory, and at most 200000"):
        read_parquet(tmp_path / "x.parquet", max_bytes=200_000)


def test_columns_of_frames_are_read_when_they_are_asked_for(tmp_path, monkeypatch):
    data = write_v3(tmp_path / "data", Recordings(lengths=(5, 6, 7), height=64))
    whole = Store.open(data).numeric()
    monkeypatch.setattr(store_module, "READ_AT_ONCE", 0)
    store = Store.open(data)
    assert store._columns is None and store.frames == 18
    assert all(np.array_equal(store.numeric()[k], x) for k, x in whole.items())
    (data / "data/chunk-000/file-000.parquet").write_bytes(b"-")
    damaged = Store.open(data)
    with pytest.raises(StoreError, match="file-000.parquet .*cannot be read"):
        damaged.numeric()


@pytest.mark.parametrize("mixed", [False, True])
def test_the_rows_of_64_ranks_are_the_whole_batch(tmp_path, mixed):
    frames, _ = open_frames(write_v3(tmp_path, Recordings(lengths=(30, 20, 40), height=64)))
    spec = Spec(("top",), 64, 64, 4, 4, 4, (2, 4), (-2,), 10.0)
    acts = replace(frames, has_action=np.array([True, False, True]))
    source = divided(acts, 0.6, 10.0) if mixed else frames
    windows = source.windows(spec, seed=0, batch_size=70, augment=Augment(shift=3, colour=0.2))
    for step in (0, 1, 5):
        slices = [World(rank, 64).rows(70) for rank in range(64)]
        assert [i for s in slices for i in range(*s.indices(70))] == list(range(70))
        whole, parts = windows.batch(step), [windows.batch(step, rows) for rows in slices]
        for name in ("obs", "future", "past", "proprio", "action", "action_valid", "frame_valid", "past_valid"):
            joined = np.concatenate([getattr(part, name).numpy() for part in parts])
            assert np.array_equal(getattr(whole, name).numpy(), joined), name
