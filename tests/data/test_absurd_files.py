"""Data sets made to exhaust, mislead or crash the reader are refused by file, soon, and before anything is built."""

from __future__ import annotations

import io
import json
import os
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import DATA, edit_data, edit_facts, edit_feature, edit_json
from recordings import LAYOUT, content, copy_files, make_episode, without_checksums

from wamkit.data.format.depth import distances, tiff
from wamkit.data.format.frame_cache import FrameCache
from wamkit.data.format.metadata_io import load_metadata
from wamkit.data.format.npz import parse_npy, unpack_npz
from wamkit.data.format.schema import SNAPSHOTS_PATH
from wamkit.data.format.snapshots import unpack_snapshots
from wamkit.data.format.store import Store
from wamkit.data.loading.feature_cache import cached_features
from wamkit.files import StoreError

EPISODES = "meta/episodes/chunk-000/file-001.parquet"
SNAPSHOTS = SNAPSHOTS_PATH.format(chunk_index=0, episode_index=1)


def put(name, data):
    return lambda root: (root / name).write_bytes(data)


def replaced(old, new, name="meta/info.json"):
    """Replaces a text in a file, where json.dumps would not write it."""

    def edit(root):
        data = (root / name).read_bytes()
        assert old in data
        (root / name).write_bytes(data.replace(old, new, 1))

    return edit


def many_rows(name):
    """Makes a table longer than a million rows, in a file of a few kB: all rows are the first."""

    def edit(root):
        table = pq.read_table(root / name)
        columns = {n: pa.repeat(table[n][0], 1_100_000) for n in table.column_names if "stats" not in n}
        keep = {n: v for n, v in columns.items() if pa.types.is_integer(v.type)}
        pq.write_table(pa.table(keep | {n: columns[n] for n in ("__index_level_0__",) if n in columns}), root / name)
        assert (root / name).stat().st_size < 100_000

    return edit


def instead(name, make):
    """Puts another kind of file in the place of one."""

    def edit(root):
        (root / name).unlink()
        make(root / name)

    return edit


def first_lists(table):
    """The same number of values in all, in lists of other lengths."""
    values = table["action"].combine_chunks().flatten()
    offsets = [0, 1, 4, *range(6, len(values) + 1, 2)]
    column = pa.ListArray.from_arrays(offsets, values)
    return table.set_column(table.column_names.index("action"), "action", column)


def set_column(name, values):
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values))


def both(*edits):
    return lambda root: [edit(root) for edit in edits]


NESTED = b"[" * 200_000 + b"]" * 200_000


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (put("meta/info.json", NESTED), "info.json cannot be read as JSON .*nested more than 64"),
        (edit_feature("action", shape=[10**9]), "info.json: feature 'action' needs a shape, .* at most 1048576"),
        (
            edit_feature("next.reward", shape=[1 << 15, 1 << 15]),
            "'next.reward' declares more than 1048576 values a step",
        ),
        (edit_feature("next.reward", shape=[1] * 100), "feature 'next.reward' needs a shape"),
        (edit_feature("next.reward", shape=[2]), r"feature 'next.reward' needs the shape \[1\]"),
        (edit_feature("next.reward", dtype="string"), "feature 'next.reward' needs a numeric dtype"),
        (edit_feature("task_index", dtype="float32"), "feature 'task_index' needs a dtype like int64"),
        (edit_feature("observation.images.front", shape=[20000, 32, 3]), "more than 16384 pixels a side"),
        (edit_json(data_path="data/{chunk_index:2000000000}/{file_index}"), "info.json: data_path is 'data/{chunk_ind"),
        (edit_json(data_path="/etc/{file_index}"), "info.json: data_path is '/etc"),
        (edit_json(video_path="{video_key.__class__}"), "info.json: video_path is '{video_key.__class__}', not a path"),
        (edit_json(total_episodes=10**12), "total_episodes is 1000000000000, not a whole number"),
        (edit_json(robot_type=["arm"]), r"robot_type is \['arm'\], not a text"),
        (edit_json(fps=0), "info.json: fps is 0, not a positive number from 0.001 to 100000"),
        (edit_json(fps=10**290), "info.json: fps is 1000.*, not a positive number"),
        (edit_json(fps=1e-300), "info.json: fps is 1e-300, not a positive number"),
        (replaced(b'"fps": 20', b'"fps": 1' + b"0" * 400), "info.json cannot be read as JSON .*is no number"),
        (replaced(b'"fps": 20', b'"fps": NaN'), "info.json cannot be read as JSON .NaN is no number"),
        (edit_facts(**{"data/chunk_index": 2 * 10**9}), "data/chunk_index is 2000000000, not a whole number"),
        (edit_facts(**{"data/file_index": -1}), "data/file_index is -1, not a whole number"),
        (edit_facts(**{"data/file_index": True}), "data/file_index is True, not a whole number"),
        (
            both(edit_json(data_path="{file_index}"), edit_facts(**{"data/file_index": "/etc/passwd"})),
            r"\(episode 1\): data/file_index is '/etc/passwd', not a whole number",
        ),
        (edit_facts(**{"videos/observation.images.front/file_index": "../x"}), "file_index is '../x', not a whole"),
        (edit_facts(**{"videos/observation.images.front/from_timestamp": float("inf")}), "episode 1.*infinity"),
        (edit_facts(length=10**15), "length is 1000000000000000, not a whole number"),
        (edit_facts(length=10**12), "episodes before end at"),
        (edit_facts(tasks=[["a"]]), r"tasks is \[\['a'\]\], not a list of texts"),
        (many_rows(EPISODES), "file-001.parquet declares 1100000 rows, and at most 10000 are read"),
        (many_rows("meta/tasks.parquet"), "tasks.parquet declares 1100000 rows, and at most 1000000 are read"),
        (many_rows(DATA), r"file-001.parquet \(episode 1\) declares 1100000 rows, and at most 8 are read"),
        (replaced(b"task_index", b"task_inde\xff", "meta/tasks.parquet"), "tasks.parquet cannot be read|columns"),
        (replaced(b"dataset_from_index", b"dataset_from_inde\xff", EPISODES), "file-001.parquet cannot be read"),
        (edit_data(first_lists), "column 'action': its cells are lists of different lengths"),
        (edit_data(set_column("task_index", [-1] * 8)), "tasks.parquet lacks instructions"),
        (edit_data(set_column("task_index", [0.5] * 8)), "column 'task_index': it holds numbers that are no int64"),
        (instead("meta/info.json", os.mkfifo), "info.json is a pipe, not a file"),
        (instead("meta/info.json", lambda p: p.symlink_to("/dev/zero")), "'meta/info.json' leads out of this folder"),
        (instead("meta/tasks.parquet", os.mkfifo), "tasks.parquet is a pipe, not a file"),
        (instead(EPISODES, os.mkfifo), "file-001.parquet is a pipe, not a file"),
        (instead(DATA, os.mkfifo), "file-001.parquet is a pipe, not a file"),
        (instead(DATA, lambda p: p.symlink_to("/dev/zero")), f"'{DATA}' leads out of this folder; correct the name"),
    ],
)
def test_absurd_data_sets_are_refused_when_opened(copy, damage, reason):
    damage(copy)
    start = time.process_time()
    with pytest.raises(StoreError, match=reason) as caught:
        Store.open(copy)
    assert time.process_time() - start < 2
    assert str(caught.value).startswith(str(copy)) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["meta/wamkit.json", "meta/modality.json"])
@pytest.mark.parametrize("data", [NESTED, b"\xff\xfe", b"[]", b"NaN", b'{"state": {"x": {"start": 1e999, "end": 2}}}'])
def test_absurd_metadata_is_refused(copy, name, data):
    (copy / name).write_bytes(data)
    with pytest.raises(StoreError, match=f"{copy}: its metadata cannot be read"):
        load_metadata(copy)


def test_links_may_stay_in_the_data_set_or_lead_to_the_blobs_of_a_hub_download(filled: Path, tmp_path: Path) -> None:
    root = tmp_path / "datasets--a--b/snapshots/abc"
    for number, (name, data) in enumerate(content(filled).items()):
        blob = tmp_path / f"datasets--a--b/blobs/{number}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(os.path.relpath(blob, (root / name).parent))
    store = Store.open(root)
    assert len(store) == 3 and len(store.decode(1, "wrist")) == 8 and len(store.snapshots(1)) == 8
    moved = copy_files(filled, tmp_path / "data")
    (moved / "videos").rename(moved / "elsewhere")
    (moved / "videos").symlink_to("elsewhere")
    assert len(Store.open(moved).decode(0, "front")) == 7
    (moved / "elsewhere").rename(tmp_path / "elsewhere")
    (moved / "videos").unlink()
    (moved / "videos").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="data: 'videos/.*' leads out of this folder; correct the name"):
        Store.open(moved)


def test_the_cache_is_not_written_elsewhere(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "away").mkdir()
    (copy / ".cache").symlink_to(tmp_path / "away")
    with pytest.raises(StoreError, match="'.cache/.*' leads out of this folder"):
        FrameCache.build_or_open(Store.open(copy))
    assert not list((tmp_path / "away").iterdir())


def test_nothing_is_written_elsewhere(copy: Path, tmp_path: Path) -> None:
    store = Store.open(copy)
    (copy / "data/chunk-000").rename(tmp_path / "away")
    (copy / "data/chunk-000").symlink_to(tmp_path / "away")
    before = content(tmp_path / "away")
    with pytest.raises(StoreError, match="'data/chunk-000/file-003.parquet' leads out of this folder"):
        store.append(make_episode(3))
    assert content(tmp_path / "away") == before


def archive(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def npy(shape, data=b"", descr="<f8"):
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def test_arrays_are_as_large_as_they_declare() -> None:
    assert parse_npy(npy((2,), np.array([1.0, 2.0]).tobytes()), "x").tolist() == [1, 2]
    assert parse_npy(npy((0, 5)), "x").shape == (0, 5)
    for data in (
        npy((10**9,), b"12345678"),
        npy((10**18, 10**18)),
        npy((-1,), b""),
        npy((1,), b"12345678", "|O"),
        npy((10**9,), b"", "|S0"),
        npy((1,), b"12345678", "f4,f4"),
        b"\x93NUMPY\x01\x00\xff\x00" + b"(" * 255,
        b"\x93NUMPY\x01\x00\xff\x00" + b"-" * 254 + b"1",
        b"\x93NUMPY\x09\x00",
        b"",
    ):
        with pytest.raises(StoreError, match="file cannot be read"):
            unpack_npz(archive(x=data), "file")


def test_a_compressed_bomb_is_not_inflated() -> None:
    bomb = archive(x=npy((1 << 24,), bytes(1 << 27)))
    assert len(bomb) < 200_000
    with pytest.raises(StoreError, match="file declares 1342.* bytes, and at most 1000000 are read"):
        unpack_npz(bomb, "file", max_bytes=1_000_000)
    for at in (bomb.index(b"PK\x01\x02") + 24, 22):  # the size in the directory and before the member
        bomb = bomb[:at] + struct.pack("<I", 100) + bomb[at + 4 :]
    with pytest.raises(StoreError, match="file cannot be read"):
        unpack_npz(bomb, "file", max_bytes=1_000_000)


def index_of(columns, steps=2, version=1):
    text = json.dumps({"version": version, "steps": steps, "columns": columns}).encode()
    return npy((len(text),), text, "|u1")


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({}, "cannot be read"),
        ([], "cannot be read"),
        ({"physics": {"rows": [0, 0], "values": [{"array": [0, 7]}]}}, "cannot be read"),
        ({"physics": {"rows": ["0", 0], "values": [1]}}, "cannot be read"),
        ({"physics": {"rows": [0, 0], "values": [{"array": 5}]}}, "cannot be read"),
        ({"physics": {"rows": [0, 0], "values": [{"dict": [[[], 1]]}]}}, "cannot be read"),
        ({"physics": {"rows": [0, 0], "values": [[{"array": [0, 0]}] * 3000]}}, "take more than 2147483648 bytes"),
    ],
)
def test_absurd_snapshots_are_refused(columns, reason):
    pool = npy((1, 1 << 17), bytes(1 << 20))
    with pytest.raises(StoreError, match=f"the snapshots {reason}"):
        unpack_snapshots(archive(index=index_of(columns), pool_0=pool))


def test_snapshots_named_by_their_file(copy: Path) -> None:
    (without_checksums(copy) / SNAPSHOTS).write_bytes(archive(index=npy((10**12,))))
    with pytest.raises(StoreError, match=r"episode-000001.npz \(episode 1\): the snapshots cannot be read .*declares"):
        Store.open(copy).snapshots(1)
    with pytest.raises(StoreError, match="nested more than 64 deep"):
        unpack_snapshots(archive(index=npy((len(NESTED),), NESTED, "|u1")))


def test_infinities_in_snapshots_come_back(tmp_path: Path) -> None:
    episode = make_episode(0, 2)
    for s in episode.snapshots:
        s.attributes["range"] = (float("-inf"), float("inf"))
    store = Store.create(tmp_path, **LAYOUT)
    store.append(episode)
    assert store.snapshots(0)[0].attributes["range"] == (float("-inf"), float("inf"))


def test_overlapping_strips_of_a_tiff_are_not_cut_out() -> None:
    count, at = 1 << 16, 8 + 2 + 12 * 5
    entries = [(257, 4, 1, 8), (256, 4, 1, 8), (258, 3, 1, 16), (273, 4, count, at), (279, 4, count, at)]
    head = b"II*\0" + struct.pack("<IH", 8, 5) + b"".join(struct.pack("<HHII", *e) for e in entries)
    data = head + np.full(count, 1 << 18, "<u4").tobytes()
    with pytest.raises(StoreError, match="TIFF with 17179869184 bytes of pixels for 8x8"):
        tiff(data, (8, 8))


@pytest.mark.parametrize("shift", [10**200, float("1e308")])
def test_absurd_depth_is_impossible(shift):
    names = {"video.depth_min": 0, "video.depth_max": 1, "video.shift": shift, "video.use_log": True}
    with pytest.raises(StoreError, match="is impossible"):
        distances(names)


def test_features_of_another_size_are_computed_again(tmp_path: Path) -> None:
    def parts(first, last):
        yield {"x": np.arange(6.0).reshape(3, 2)[first:last]}

    for damage in (
        lambda folder: None,
        lambda folder: (folder / "checksums.json").write_text('{"../../etc": 1}'),
        lambda folder: (folder / "checksums.json").write_bytes(NESTED),
        lambda folder: np.save(folder / "x.npy", np.zeros(2)),
        lambda folder: (folder / "y.npy").write_bytes(b""),
    ):
        features = cached_features(tmp_path, "key", 3, parts, 1 << 30)
        damage(tmp_path / "key")
        assert {k: v.tolist() for k, v in features.items()}.keys() == {"x"}
        again = cached_features(tmp_path, "key", 3, parts, 1 << 30)
        assert again["x"].tolist() == [[0, 1], [2, 3], [4, 5]] and len(again) == 1
