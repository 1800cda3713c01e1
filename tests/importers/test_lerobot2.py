"""LeRobotDataset v2.1, on files by lerobot 0.3.3: AV1 video, embedded images, changing tasks, modality.json."""

from __future__ import annotations

import json
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
    shutil.copy(copy / VIDEO.replace("000001", "000000"), copy / VIDEO)
    with pytest.raises(SourceError, match="7 frames, 10 a second, instead of 5, 10 a second"):
        list(importer(copy).read("000001").images["front"]())
    (copy / VIDEO).unlink()
    with pytest.raises(SourceError, match=r"episode_000001.mp4 \(episode 000001\): it is missing"):
        list(importer(copy).read("000001").images["front"]())
    info = json.loads((copy / "meta/info.json").read_text())
    (copy / "meta/info.json").write_text(json.dumps(info | {"data_path": "../../{episode_index}.parquet"}))
    with pytest.raises(SourceError, match="leads out of this folder"):
        importer(copy).read("000001")
    (copy / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v3.0"}))
    with pytest.raises(SourceError, match="codebase_version is v3.0, not v2.x"):
        importer(copy).layout()
