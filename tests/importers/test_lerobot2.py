"""LeRobotDataset v2.1, on files by lerobot 0.3.3: AV1 video, embedded images, changing tasks, modality.json."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wamkit.data.format.metadata_io import load_metadata
from wamkit.data.format.store import Store, StoreError
from wamkit.data.importers import IMPORTERS, SourceError
from wamkit.data.importers.run import Import, import_data
from wamkit.registry import load_package

load_package("wamkit.data.importers")
FILES = Path(__file__).parent / "data/lerobot2"
TABLE, VIDEO = "data/chunk-000/episode_000001.parquet", "videos/chunk-000/observation.images.front/episode_000001.mp4"


def importer(path=FILES, **options):
    cls = IMPORTERS.get("lerobot2")
    return cls(path, cls.Options(**options))


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(FILES, tmp_path / "old"))


def test_what_lerobot_recorded(tmp_path):
    store = import_data(Import(format="lerobot2", source=FILES, out=tmp_path / "o"))
    assert store.layout.fps == 10 and store.layout.size("wrist") == (16, 16) and store.layout.robot_type == "arm"
    with np.load(FILES.parent / "lerobot2.npz") as truth:
        for e, T in ((0, 7), (1, 5)):
            episode = store.episode(e)
            np.testing.assert_array_equal(episode.proprio, truth[f"observation.state{e}"])
            np.testing.assert_array_equal(episode.action, truth[f"action{e}"])
            np.testing.assert_array_equal(episode.extras["observation.effort"], truth[f"observation.effort{e}"])
            for camera in ("front", "wrist"):
                shown = store.decode(e, camera).astype(float).mean((1, 2, 3))
                np.testing.assert_allclose(shown, 10 * np.arange(T), atol=3)
    assert store.episode(0).texts() == ["pick it up"] * 4 + ["put it down"] * 3
    metadata = load_metadata(store.root)
    assert [(f.name, f.stop, f.representation) for f in metadata.action] == [("hand", 2, "delta")]
    assert (
        metadata.embodiment == "arm"
        and metadata.cameras["wrist"].role == "wrist"
        and store.layout.action_names == ("dx", "dy")
    )


def test_an_old_folder_says_how_it_is_converted():
    with pytest.raises(StoreError, match="codebase_version is v2.1, wamkit reads v3.0; wamkit import lerobot2"):
        Store.open(FILES)


def test_another_size(tmp_path):
    source = importer(size=(32, 32))
    assert source.layout().size("front") == (32, 32)
    for camera in ("front", "wrist"):
        assert {p.shape for p in source.read("000000").images[camera]()} == {(32, 32, 3)}


def put(table: pa.Table, name: str, values) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def told(copy, **features) -> None:
    """Changes features of info.json; None takes one out."""
    info = json.loads((copy / "meta/info.json").read_text())
    for key, change in features.items():
        if change is None:
            del info["features"][key]
        else:
            info["features"].setdefault(key, {}).update(change)
    (copy / "meta/info.json").write_text(json.dumps(info))


def test_images_in_tables_that_are_none_are_refused(copy):
    """FFmpeg goes by content: a playlist in a table would have it read whatever file that names."""
    key = "observation.images.wrist"
    table = pq.read_table(copy / TABLE)
    images = table[key].to_pylist()
    film = copy / VIDEO
    for content, message in (
        (f"ffconcat version 1.0\nfile {film}\nduration 0.1\n".encode(), "neither PNG nor JPEG"),
        (images[1]["bytes"][:50], r"\(episode 000001\)"),
        (None, f"{key}, step 1: it is not in the file, only its name"),
    ):
        images[1] = {"bytes": content, "path": "x.png"}
        pq.write_table(put(table, key, images), copy / TABLE)
        with pytest.raises(SourceError, match=message):
            list(importer(copy).read("000001").images["wrist"]())


def test_what_the_features_say(copy):
    front = "observation.images.front"
    told(copy, **{front: {"shape": [3, 48, 64], "names": None}})
    assert importer(copy).layout().size("front") == (48, 64), "channels first"
    told(copy, **{front: {"info": {"video.is_depth_map": True}}, "next.reward": {"dtype": "float32", "shape": [1]}})
    assert importer(copy).layout().cameras == ("wrist",), "depth is no picture"
    assert not importer(copy).layout().rewards, "nobody said what succeeded"
    other = {"effort": {"start": 0, "end": 2, "original_key": "observation.effort"}}
    (copy / "meta/modality.json").write_text(json.dumps({"state": other, "action": {}}))
    assert importer(copy).metadata().state == (), "fields of another column count from another start"
    info = json.loads((copy / "meta/info.json").read_text())
    (copy / "meta/info.json").write_text(json.dumps(info | {"total_episodes": 4}))
    with pytest.raises(SourceError, match="episodes.jsonl: it lists 2 episodes, meta/info.json says 4"):
        importer(copy).episodes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.slice(0, 4), "it has 4 rows instead of 5"),
        (
            lambda t: t.set_column(t.column_names.index("frame_index"), "frame_index", [pa.array([1, 2, 3, 4, 5])]),
            "does not count from 0",
        ),
        (lambda t: t.drop_columns(["action"]), "action"),
        (lambda t: put(t, "episode_index", [0] * 5), "its episode_index is another episode's"),
        (lambda t: put(t, "timestamp", np.arange(5) / 5), "its rows are not 10 a second, from step 1 on"),
        (lambda t: put(t, "task_index", [7] * 5), "task 7 is not in meta/tasks.jsonl"),
    ],
)
def test_damaged_tables_are_named(copy, change, message):
    pq.write_table(change(pq.read_table(copy / TABLE)), copy / TABLE)
    with pytest.raises(SourceError, match=message) as error:
        importer(copy).read("000001")
    assert "episode_000001.parquet (episode 000001)" in str(error.value)


def test_missing_and_foreign_videos_and_paths_that_lead_out(copy):
    other = copy / VIDEO.replace("000001", "000000")
    own = other.read_bytes()
    shutil.copy(copy / VIDEO, other)
    with pytest.raises(SourceError, match="5 frames, 10 a second, instead of 7, 10 a second"):
        list(importer(copy).read("000000").images["front"]())
    (copy / VIDEO).write_bytes(own)
    assert len(list(importer(copy).read("000001").images["front"]())) == 5  # frames after the last row are left out
    (copy / VIDEO).unlink()
    with pytest.raises(SourceError, match=r"episode_000001.mp4 \(episode 000001\): it is missing"):
        list(importer(copy).read("000001").images["front"]())
    info = json.loads((copy / "meta/info.json").read_text())
    (copy / "meta/info.json").write_text(json.dumps(info | {"data_path": "../../{episode_index}.parquet"}))
    with pytest.raises(SourceError, match="leads out of this folder"):
        importer(copy).read("000001")
    (copy / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v3.0"}))
    with pytest.raises(SourceError, match="it is v3.0, which needs no import; the next command is `wamkit validate"):
        importer(copy).layout()


def rewrite(copy, **changes) -> None:
    path = copy / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": "10"}, "info.json: fps is '10' instead of a number from 0.01 to 1000; correct it"),
        ({"fps": 0}, "info.json: fps is 0 instead"),
        ({"chunks_size": 0}, "info.json: chunks_size is 0 instead of a whole number"),
        ({"chunks_size": True}, "info.json: chunks_size is True instead of a whole number"),
        ({"total_episodes": 2.0}, "info.json: total_episodes is 2.0 instead of a whole number"),
        ({"robot_type": ["arm"]}, "info.json: robot_type is a list instead of a text"),
        ({"features": []}, "info.json: 'features' is a list instead of a dict"),
        ({"data_path": "{episode_index:2000000000}"}, "info.json: data_path is .* not a path with episode_index"),
        ({"data_path": "{episode_index.__class__}"}, "info.json: data_path is .* not a path with episode_index"),
        ({"video_path": 7}, "info.json: 'video_path' is 7 instead of a str"),
        ({"codebase_version": 2}, "info.json: 'codebase_version' is 2 instead of a str"),
    ],
)
def test_facts_of_the_data_set_are_checked(copy, change, message):
    rewrite(copy, **change)
    with pytest.raises(SourceError, match=message):
        importer(copy).layout()
        importer(copy).read("000001")


@pytest.mark.parametrize(
    ("key", "feature", "message"),
    [
        ("action", {"shape": [10**9]}, "the shape of feature 'action' is 1000000000 instead of a whole number"),
        ("action", {"shape": ["2"]}, "the shape of feature 'action' is '2' instead of a whole number"),
        ("action", {"shape": [2**15, 2**15]}, "feature 'action' has the shape .* which no step has"),
        ("observation.images.front", {"shape": [60_000, 60_000, 3]}, "declares 60000x60000 pixels"),
        ("observation.images.front", {"shape": [48, 64]}, "has the shape .48, 64. instead of .height, width, 3."),
        ("observation.images.front", {"dtype": 5}, "'dtype' is 5 instead of a str"),
    ],
)
def test_features_are_checked(copy, key, feature, message):
    told(copy, **{key: feature})
    with pytest.raises(SourceError, match=rf"info.json: .*{message}"):
        importer(copy).layout()


@pytest.mark.parametrize(
    "content",
    ["[" * 200_000 + "]" * 200_000, "[1]", '{"fps": 1' + "0" * 400 + "}", "\xff\xfe", '{"a": NaN}', "", "null"],
)
@pytest.mark.parametrize("name", ["info.json", "modality.json", "tasks.jsonl", "episodes.jsonl"])
def test_json_that_is_none_is_named_at_once(copy, name, content):
    (copy / "meta" / name).write_bytes(content.encode("latin-1"))
    source = importer(copy)
    with pytest.raises(SourceError, match=rf"meta/{name}|meta/episodes.jsonl: it lists 0") as error:
        source.metadata()
        source.episodes()
        source.read("000001")
        raise SourceError("meta/modality.json")  # an empty object in it has no fields, which is allowed
    assert "\n" not in str(error.value) and len(str(error.value)) < 900


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        (
            "episodes.jsonl",
            {"episode_index": "1", "length": 5},
            "episode_index of line 1 is '1' instead of a whole number",
        ),
        ("episodes.jsonl", {"episode_index": -1, "length": 5}, "episode_index of line 1 is -1"),
        ("episodes.jsonl", {"episode_index": 1, "length": 10**12}, "length of line 1 is 1000000000000"),
        ("episodes.jsonl", {"length": 5}, "it has no 'episode_index'"),
        ("tasks.jsonl", {"task_index": 0, "task": ["x"]}, "task of line 1 is a list instead of a text"),
        ("tasks.jsonl", {"task_index": 0, "task": "\ud800"}, "utf-8"),
    ],
)
def test_rows_of_the_tables_are_checked(copy, name, line, message):
    (copy / "meta" / name).write_text(json.dumps(line))
    with pytest.raises(SourceError, match=rf"meta/{name}.*{message}"):
        importer(copy).episodes()
        importer(copy).read("000001")


def test_a_small_table_that_declares_millions_of_rows(copy):
    """A repeated value takes next to nothing in a file: 60 million rows, a few kB."""
    steps = 60_000_000
    with pq.ParquetWriter(copy / TABLE, pa.schema([("frame_index", pa.int64())])) as file:
        for _ in range(6):
            file.write_table(pa.table({"frame_index": pa.array(np.zeros(steps // 6, np.int64))}))
    assert (copy / TABLE).stat().st_size < 400_000
    with pytest.raises(SourceError, match="declares 60000000 rows, and at most 5 are read"):
        importer(copy).read("000001")
    rows = ({"episode_index": 0, "length": 7}, {"episode_index": 1, "length": steps})
    (copy / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(SourceError, match="it declares 60000000 steps of .* more than an episode ever takes"):
        importer(copy).read("000001")


def test_flipped_bytes_of_a_table_are_one_line(copy):
    """Each byte of the metadata at the end of the file, and some of the pages: read as before, or refused."""
    whole = (copy / TABLE).read_bytes()
    rng, wrote = np.random.default_rng(0), importer(copy).read("000001")
    for at in rng.choice(len(whole), 150, replace=False).tolist():
        (copy / TABLE).write_bytes(whole[:at] + bytes([whole[at] ^ 1 << int(rng.integers(8))]) + whole[at + 1 :])
        try:
            read = importer(copy).read("000001")
            assert read.state.shape == wrote.state.shape
        except SourceError as error:
            assert "episode_000001.parquet" in str(error) and "\n" not in str(error)


def test_pipes_devices_and_links(copy, tmp_path):
    for name, message in (("meta/info.json", "info.json"), (TABLE, "episode_000001.parquet"), (VIDEO, "000001.mp4")):
        kept = (copy / name).read_bytes()
        for make in (os.mkfifo, lambda p: p.symlink_to("/dev/zero")):
            (copy / name).unlink()
            make(copy / name)
            with pytest.raises(SourceError, match=rf"{message}.*(pipe or a device|leads out)|leads out of this folder"):
                list(importer(copy).read("000001").images["front"]())
        (copy / name).unlink()
        (copy / name).write_bytes(kept)
    hub = tmp_path / "hub"
    (hub / "blobs").mkdir(parents=True)
    for path in [p for p in copy.rglob("*") if p.is_file()]:
        link = hub / "snapshots/main" / path.relative_to(copy)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, hub / "blobs" / str(path.relative_to(copy)).replace("/", "-"))
        link.symlink_to(hub / "blobs" / str(path.relative_to(copy)).replace("/", "-"))
    assert len(importer(hub / "snapshots/main").read("000001")) == 5, "the folder of a hub's download"
