"""LeRobotDataset v2.1 and v3.0 are judged alike, and the advice about a fault fits whoever made the data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from lerobot_folders import Recordings, write_v3, write_v21

from wamkit.data.format.store import Store, StoreError
from wamkit.data.importers import SourceError
from wamkit.data.importers.run import Import, import_data
from wamkit.data.validate import validate
from wamkit.registry import load_package

load_package("wamkit.data.importers")
DATA = "data/chunk-000/file-000.parquet"


def imported(source: Path, out: Path) -> Store:
    return import_data(Import(format="lerobot2", source=source, out=out))


def both(tmp_path: Path, data: Recordings) -> list[Store]:
    """The data as a v3.0 folder, and as a v2.1 folder after its import."""
    return [
        Store.open(write_v3(tmp_path / "v3", data)),
        imported(write_v21(tmp_path / "v21", data), tmp_path / "out"),
    ]


@pytest.mark.parametrize("tasks", [("", "push", "push"), ("", "", ""), (" ", "push", "")])
def test_episodes_without_an_instruction_are_read(tmp_path, tasks):
    for store in both(tmp_path, Recordings(tasks=tasks)):
        assert [m.text for m in store.episodes] == list(tasks)
        assert [store.episode(e).texts()[0] for e in range(3)] == list(tasks)
        share = np.mean([not t.strip() for t in tasks])
        assert f"note: {share:.0%} of its steps have no text" in map(str, validate(store.root, progress=False))


def message(root: Path) -> str:
    with pytest.raises(StoreError) as error:
        Store.open(root)
    return str(error.value)


def test_the_advice_for_data_of_others_does_not_ask_to_record_it_again(tmp_path):
    root = write_v3(tmp_path / "v3")
    (root / DATA).write_bytes(b"no parquet")
    assert "record" not in message(root) and "LeRobotDataset v3.0): fetch it again" in message(root)
    (root / DATA).unlink()
    assert "file-000.parquet (episode 0) is missing" in message(root) and "hf download NAME" in message(root)


def test_the_advice_for_a_download_of_the_hub_names_the_command(tmp_path):
    root = tmp_path / "hub/datasets--lerobot--push_t/snapshots/abc"
    shutil.copytree(write_v3(tmp_path / "v3"), root)
    (root / "meta/tasks.parquet").write_bytes(b"")
    assert "hf download lerobot/push_t --repo-type dataset --force-download" in message(root)
    video = root / "videos/observation.images.top/chunk-000/file-000.mp4"
    shutil.copy(tmp_path / "v3/meta/tasks.parquet", root / "meta/tasks.parquet")
    video.write_bytes(video.read_bytes()[:2000])
    with pytest.raises(StoreError, match=r"episode 1, camera top\): .*hf download lerobot/push_t"):
        Store.open(root).decode(1, "top")


def test_the_advice_for_imported_data_names_the_import(tmp_path):
    source = write_v21(tmp_path / "v21")
    root = imported(source, tmp_path / "out").root
    (root / DATA).unlink()
    assert f"remove {root} and run `wamkit import lerobot2 {source} --out {root}` again" in message(root)


def test_the_advice_for_a_file_that_is_imported(tmp_path):
    source = write_v21(tmp_path / "v21")
    (source / "data/chunk-000/episode_000001.parquet").write_bytes(b"no parquet")
    with pytest.raises(SourceError, match="fetch the file again, or leave the episode out by --on-error skip") as error:
        imported(source, tmp_path / "out")
    assert "record" not in str(error.value)


def test_damaged_facts_about_the_import_do_not_hide_the_fault(tmp_path):
    root = write_v3(tmp_path / "v3")
    (root / DATA).unlink()
    (root / "import.json").write_text("{")
    assert "file-000.parquet (episode 0) is missing" in message(root)
    (root / "import.json").write_text(json.dumps({"source": ["x"] * 400, "format": None}))
    assert "file-000.parquet (episode 0) is missing" in message(root) and len(message(root)) < 1500
