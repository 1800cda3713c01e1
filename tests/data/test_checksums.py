"""A file that changed is refused even if it still parses; what another program edited is accepted by one command."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import DATA, VIDEO, cut, edit_json, flip
from forks import run
from recordings import LAYOUT, content, fill, grainy_frames, make_episode, without_checksums

from wamkit.cli.main import main
from wamkit.data.format import checksums
from wamkit.data.format.metadata_io import load_metadata, save_metadata
from wamkit.data.format.store import Store, StoreError
from wamkit.data.format.video import encode_video
from wamkit.data.validate import accept, validate
from wamkit.metadata import DatasetMetadata

FACTS = "meta/episodes/chunk-000/file-001.parquet"
METADATA = DatasetMetadata("test", "arm", "delta", 20.0, "MIT")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A current folder of its own, where `wamkit validate` puts its page."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def whole(copy):
    """A copy with every kind of file that wamkit writes."""
    save_metadata(copy, METADATA)
    checksums.write(copy, {"collect.json": b'{"seed": 1}\n', "import.json": b'{"complete": true, "skipped": {}}\n'})
    return copy


def read_all(root):
    store = Store.open(root)
    load_metadata(root)
    for episode in range(len(store)):
        store.episode(episode, snapshots=any(p.suffix == ".npz" for p in store.files(episode)))
    return store


def new_task(root):
    """Another instruction, as lerobot's `modify_tasks` writes it: the file is right in itself."""
    path = root / "meta/tasks.parquet"
    table = pq.read_table(path)
    texts = pa.array(["close the drawer", *table["__index_level_0__"].to_pylist()[1:]])
    pq.write_table(table.set_column(1, "__index_level_0__", texts), path)


def rewritten_facts(root):
    """As lerobot's tools write meta/episodes: all rows in one file, with the columns that it knows and ours."""
    paths = sorted((root / "meta/episodes/chunk-000").iterdir())
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    for path in paths:
        path.unlink()
    pq.write_table(pa.Table.from_pylist(rows), paths[0])


def test_every_file_is_listed_or_sealed(whole):
    listed = json.loads((whole / checksums.FILE).read_text())["files"]
    names = set(content(whole)) - {checksums.FILE}
    assert set(listed) == {n for n in names if not n.startswith(("data/", "videos/", "snapshots/", "meta/episodes/"))}
    assert set(listed) == set(checksums.SMALL)
    store = read_all(whole)
    for episode in range(3):
        assert None not in store.files(episode).values() and len(store.files(episode)) == 4


@pytest.mark.parametrize("seed", range(3))
def test_no_flipped_bit_is_overlooked(whole, seed):
    rng, files = random.Random(seed), content(whole)
    for name, data in files.items():
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (whole / name).write_bytes(damaged)
        with pytest.raises(StoreError, match=str(whole)):
            read_all(whole)
        (whole / name).write_bytes(data)
    read_all(whole)


def test_validation_compares_files_that_it_does_not_read(whole):
    (path,) = (p for p in whole.rglob("*.npz") if p.name == "episode-000001.npz")
    path.write_bytes(path.read_bytes() + b"x")
    found = [f for f in validate(whole, progress=False) if f.level == "error"]
    assert [f.episode for f in found] == [1] and path.name in found[0].message, found


@pytest.mark.parametrize("seed", range(2))
def test_no_flipped_bit_of_images_is_overlooked(exact_copy, seed):
    rng, files = random.Random(seed), content(exact_copy)
    for name, data in ((n, d) for n, d in files.items() if n.startswith("data/")):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (exact_copy / name).write_bytes(damaged)
        with pytest.raises(StoreError, match=str(exact_copy)):
            read_all(exact_copy)
        (exact_copy / name).write_bytes(data)


def test_no_file_may_be_missing(whole):
    for name, data in content(whole).items():
        (whole / name).unlink()
        with pytest.raises(StoreError, match="is missing|is incomplete|cannot be read|files are lost"):
            read_all(whole)
        (whole / name).write_bytes(data)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (new_task, "meta/tasks.parquet"),
        (edit_json(robot_type="another"), "meta/info.json"),
        (lambda root: (root / "collect.json").write_text('{"seed": 2}\n'), "collect.json"),
        (lambda root: (root / "collect.json").unlink(), "collect.json is missing"),
        (lambda root: (root / checksums.FILE).unlink(), "meta/checksums.json is missing"),
        (rewritten_facts, "meta/episodes/chunk-000/file-000.parquet"),
        (lambda root: pq.write_table(pq.read_table(root / FACTS), root / FACTS), FACTS),
        (lambda root: pq.write_table(pq.read_table(root / DATA), root / DATA), DATA),
    ],
)
def test_an_edit_is_told_apart_from_damage_and_accepted(whole, change, name, capsys):
    change(whole)
    with pytest.raises(StoreError, match=f"they can be read: {name};.* accept it with `wamkit validate .* --accept`"):
        Store.open(whole)
    assert main(["validate", str(whole)]) == 1
    assert main(["validate", str(whole), "--accept"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("accepted:\n") and name.removesuffix(" is missing") in said
    store = read_all(whole)
    assert accept(whole) == [] and main(["validate", str(whole), "--accept"]) == 0
    assert "nothing has changed" in capsys.readouterr().out
    if "info" not in name and change is not rewritten_facts:
        store.append(make_episode(3))
        store.finalize()
    for each in (VIDEO, DATA, FACTS if (whole / FACTS).exists() else name):
        data = (whole / each).read_bytes()
        flip(each, 300)(whole)
        with pytest.raises(StoreError):
            read_all(whole)
        (whole / each).write_bytes(data)
    read_all(whole)


def test_an_edited_video_is_accepted_and_a_damaged_one_is_not(whole):
    store, before = Store.open(whole), (whole / VIDEO).read_bytes()
    (whole / VIDEO).write_bytes(encode_video(grainy_frames(7, 8), 20.0))
    with pytest.raises(StoreError, match=r"wrist\): its content has changed since it was recorded .* --accept"):
        store.decode(1, "wrist")
    assert accept(whole) == [VIDEO]
    assert len(read_all(whole).decode(1, "wrist")) == 8
    (whole / VIDEO).write_bytes(before[:-400])
    listed = (whole / checksums.FILE).read_bytes()
    with pytest.raises(StoreError, match="episode 1, camera wrist"):
        accept(whole)
    assert (whole / checksums.FILE).read_bytes() == listed


@pytest.mark.parametrize("damage", [cut("collect.json", 5), cut(DATA, 900), flip(DATA, 60), cut(FACTS, 900)])
def test_damage_is_not_accepted(whole, damage):
    damage(whole)
    with pytest.raises(StoreError, match="cannot be read"):
        accept(whole)


def test_files_of_another_recording(whole, tmp_path):
    """Right in themselves, and in the wrong place."""
    other = Store.create(tmp_path / "other", **LAYOUT)
    for seed in range(5, 8):
        other.append(make_episode(seed, 2 + seed))
    other.finalize()
    for name in (n for n in content(other.root) if (whole / n).exists()):
        if (before := (whole / name).read_bytes()) == (other.root / name).read_bytes():
            continue
        shutil.copy(other.root / name, whole / name)
        with pytest.raises(StoreError):
            read_all(whole)
        (whole / name).write_bytes(before)


def test_data_without_checksums(whole, capsys):
    """An earlier version's, or lerobot's: read and continued as before, until it is accepted."""
    without_checksums(whole)
    new_task(whole)
    store = read_all(whole)
    store.append(make_episode(3, 10))
    store.finalize()
    assert not (whole / checksums.FILE).exists() and len(read_all(whole)) == 4
    assert main(["validate", str(whole), "--accept"]) == 0 and "checksums.json is missing" in capsys.readouterr().out
    new_task(whole)
    flip(DATA, 60)(whole)
    with pytest.raises(StoreError, match="cannot be read"):
        Store.open(whole)


def test_a_list_that_is_damaged_or_leads_out(whole):
    path = whole / checksums.FILE
    right = path.read_bytes()
    for wrong in (right[:-40], b"[]", b'{"files": 3}', right.replace(b"collect.json", b"../collect.json"), b"[" * 9000):
        path.write_bytes(wrong)
        with pytest.raises(StoreError, match=r"checksums.json is damaged \(.*--accept"):
            Store.open(whole)
    assert accept(whole) == ["meta/checksums.json is damaged"]
    assert path.read_bytes() == right


def write_until_rename(root, renames):
    rename, left = os.replace, [renames]

    def dying(*arguments):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*arguments)

    os.replace, os.fsync = dying, id
    checksums.write(root, {"collect.json": b"new\n", "import.json": b"first\n"})


def test_a_kill_while_small_files_are_replaced(filled, tmp_path):
    for renames in range(1, 6):
        root = tmp_path / str(renames)
        shutil.copytree(filled, root)
        checksums.write(root, {"collect.json": b"old\n"})
        process = run(write_until_rename, root, renames)
        process.join()
        assert (process.exitcode == 0) == (renames == 5)
        Store.open(root)
        assert checksums.is_pending(root) == (1 < renames < 5)
        if checksums.is_pending(root):
            (root / "collect.json").write_text("neither\n")
            with pytest.raises(StoreError, match="collect.json"):
                Store.open(root)
            (root / "collect.json").write_text("old\n" if renames < 3 else "new\n")
        Store.open(root).finalize()
        assert not checksums.is_pending(root)
        checksums.write(root, {"collect.json": b"new\n", "import.json": b"first\n"})
        Store.open(root)
    assert (root / "collect.json").read_bytes() == b"new\n"


def test_a_reader_beside_a_writer(whole):
    """The list that it read first is no longer that of the files."""
    early = checksums.load(whole)
    checksums.write(whole, {"collect.json": b'{"seed": 2}\n'})
    early.compare_small()
    assert not early.changed
    store = Store.open(whole)
    Store.open(whole).append(make_episode(3))
    Store.open(whole).finalize()
    assert len(store) == 3 and np.isfinite(store.numeric()["action"]).all() and fill(whole, 4)


def test_a_file_is_hashed_once(exact_copy, monkeypatch):
    store, hashed = Store.open(exact_copy), []
    digest_of = checksums.digest_of
    monkeypatch.setattr(checksums, "digest_of", lambda path: hashed.append(path.name) or digest_of(path))
    for _ in range(3):
        store.decode(0, "front")
        store.decode(0, "wrist")
        store.decode_depth(0, "far")
    assert hashed == ["file-000.parquet"]


@pytest.mark.parametrize("name", [DATA, VIDEO])
def test_a_large_file_of_zeros_is_refused_unread(whole, name):
    with open(whole / name, "wb") as file:
        file.truncate(1 << 40)
    began = time.process_time()
    with pytest.raises(StoreError, match=Path(name).name):
        read_all(whole)
    assert checksums.digest_of(whole / name) == "zeros" and time.process_time() - began < 2
