"""Durable files: old content or new, folders created, leftovers of killed writers removed; careful reading."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wamkit.files import (
    StoreError,
    WriteError,
    atomic_write,
    check_output,
    exclusive,
    inside,
    make_folder,
    parse_json,
    read_bytes,
    read_json,
    remove_leftovers,
    temporary,
)
from wamkit.viz.html import page, svg_file


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    atomic_write(path, b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="could not write .*state: No space left on device"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["state"]
    with pytest.raises(WriteError, match="nowhere"):
        atomic_write(tmp_path / "nowhere" / "x", b"")


def test_missing_folders_are_created_and_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a/b/c", b"new")
    assert (tmp_path / "a/b/c").read_bytes() == b"new"
    with pytest.raises(WriteError, match="could not write .*a/b/c: File exists; a file is in the way"):
        atomic_write(tmp_path / "a/b/c/d", b"")
    with pytest.raises(StoreError, match="a/b/c: "):
        make_folder(tmp_path / "a/b/c/d/e")
    with pytest.raises(WriteError, match="could not write .*nowhere"), exclusive(tmp_path / "nowhere"):
        pass


def test_leftovers_of_other_processes_and_of_earlier_versions_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for name in (".x.json.tmp", ".x.json.123.tmp", temporary(path).name, ".y.json.123.tmp", "x.json"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".x.json.7.tmp").mkdir()
    (tmp_path / ".x.json.7.tmp/part").write_bytes(b"half")
    remove_leftovers(path)
    assert sorted(os.listdir(tmp_path)) == [".y.json.123.tmp", "x.json"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[" * 200_000 + b"]" * 200_000, "nested more than 64 deep"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "nested more than 64 deep"),
        (b"[" * 200_000, "nested more than 64 deep"),
        (b'{"a": NaN}', "NaN is no number"),
        (b"[-Infinity]", "-Infinity is no number"),
        (b"[1e999]", "1e999 is no number"),
        (b"[1" + b"0" * 400 + b"]", r"10000000\.\.\. of 401 characters is no number"),
        (b'["\xff"]', "can't decode byte 0xff"),
        (b'["\\ud800"]', "surrogates not allowed"),
        (b'{"a": 1', "Expecting"),
        (b"", "Expecting value"),
    ],
)
def test_a_text_that_is_no_sane_json_is_refused_by_name(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(StoreError, match=rf"x\.json cannot be read as JSON \(.*{reason}.*\); restore it from a copy"):
        read_json(tmp_path / "x.json")


def test_json_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(
        '\ufeff{"a": [1, -2.5, "é{[[", "\\"\\\\", "\\ud83d\\ude00", 1e308, true, null]}', "utf-8"
    )
    assert read_json(tmp_path / "x.json") == {"a": [1, -2.5, "é{[[", '"\\', "\U0001f600", 1e308, True, None]}
    assert parse_json("[" * 64 + "]" * 64, "text")
    assert parse_json(str(2**128), "a generator's state") == 2**128
    assert parse_json('["' + "[" * 100 + '"]', "text") == ["[" * 100]


def test_a_damaged_text_takes_no_quadratic_time() -> None:
    start = time.process_time()
    for text in ('\\"' * 500_000 + "[[", '"' + "a\\" * 500_000, '["' * 500_000):
        with pytest.raises(StoreError, match="text cannot be read as JSON"):
            parse_json(text, "text")
    assert time.process_time() - start < 2


def test_sizes_are_compared_and_only_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 1 << 40)
    with pytest.raises(StoreError, match="large has 1099511627776 bytes, and at most 67108864 are read"):
        read_json(tmp_path / "large")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, what in (("pipe", "a pipe"), ("zero", "a device"), (".", "a folder")):
        with pytest.raises(StoreError, match=f"is {what}, not a file"):
            read_bytes(tmp_path / name)
    for name in ("none", "a\0b"):
        with pytest.raises(StoreError, match="cannot be read"):
            read_bytes(tmp_path / name)


def test_names_and_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "snapshots/abc"
    for name in ("a/b", "x"):
        atomic_write(root / name, b"1")
    (tmp_path / "beside").write_bytes(b"2")
    (tmp_path / "link").symlink_to(root)
    (root / "within").symlink_to("a")
    (root / "out").symlink_to(tmp_path)
    (root / "loop").symlink_to("loop")
    for good in ("a/b", "x", "not/yet", "within/b", "a/../x"):
        assert inside(root, good) == root / good
        assert inside(tmp_path / "link", good) == tmp_path / "link" / good
    for bad in ("/etc/passwd", "../abc2", "a/../../x", "out/beside", str(root / "x"), "within/../../../beside"):
        with pytest.raises(StoreError, match=r"abc: '.*' leads out of this folder; correct the name"):
            inside(root, bad)
    assert read_bytes(inside(root, "within/b")) == b"1"
    with pytest.raises(StoreError, match="symbolic links"):
        read_bytes(inside(root, "loop"))


def test_links_of_a_hub_download_lead_to_its_blobs_only(tmp_path: Path) -> None:
    root = tmp_path / "datasets--a--b/snapshots/abc"
    atomic_write(tmp_path / "datasets--a--b/blobs/123", b"1")
    atomic_write(root / "README.md", b"")
    (root / "x").symlink_to("../../blobs/123")
    assert read_bytes(inside(root, "x")) == b"1"
    (tmp_path / "secret").write_bytes(b"2")
    (root.parent.parent / "blobs/456").symlink_to(tmp_path / "secret")
    (root / "y").symlink_to("../../blobs/456")
    with pytest.raises(StoreError, match="'y' leads out of this folder"):
        inside(root, "y")
    for path in (root.parent.parent / "blobs").iterdir():
        path.rename(tmp_path / path.name)
    (root.parent.parent / "blobs").rmdir()
    (root.parent.parent / "blobs").symlink_to(tmp_path)
    with pytest.raises(StoreError, match="'x' leads out of this folder"):
        inside(root, "x")


def test_temporary_files_of_dead_processes_are_removed(tmp_path):
    """Those of living processes stay, and so do those of other machines, until they were not touched for a day."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine, theirs = temporary(tmp_path / "page"), tmp_path / ".page.1.1.tmp"
    left = [mine.with_name(mine.name.replace(str(os.getpid()), str(dead.pid))), tmp_path / ".old.7.7.tmp"]
    folder = left[0].with_name(left[0].name.replace("page", "cache"))
    for path in (mine, theirs, *left):
        path.write_text("half")
    os.utime(left[1], (0, 0))
    (folder / "inner").mkdir(parents=True)
    atomic_write(tmp_path / "other", b"x")
    assert sorted(tmp_path.iterdir()) == sorted([mine, theirs, tmp_path / "other"])


def test_a_killed_writer_leaves_nothing_for_the_next_process(tmp_path):
    """A process that is killed inside a write, and one that is killed while it makes a video."""
    write = "import os; os.replace = lambda *_: os.kill(os.getpid(), 9); from wamkit.files import *; "
    for code in ("atomic_write('page', b'x')", "made = scratch_folder(); made.__enter__(); os.kill(os.getpid(), 9)"):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
        assert subprocess.run([sys.executable, "-c", write + code], cwd=tmp_path, env=env).returncode == -9
        assert len(list(tmp_path.glob(".*.tmp"))) == 1
    atomic_write(tmp_path / "page", b"whole")
    assert [p.name for p in tmp_path.iterdir()] == ["page"]


def test_a_write_replaces_no_device_and_no_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(WriteError, match=f"{name}: it is a {name}; name a file"):
            atomic_write(tmp_path / name, b"x")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "folder").is_dir()


def test_only_what_wamkit_wrote_is_replaced(tmp_path):
    """Pages, drawings and JSON files of wamkit are known by their marks; without permission nothing is tried."""
    ours = {
        "a.html": page("t", "b"),
        "a.svg": svg_file(1, 1, [], "l"),
        "a.json": '{"made_by": {}}',
        "a.md": "Made by `wamkit x`",
    }
    for name, text in ours.items():
        (tmp_path / name).write_text(text)
        check_output(tmp_path / name)
        (tmp_path / name).write_text("theirs")
        with pytest.raises(WriteError, match=f"{name}: a file that wamkit did not write is there; move it, or name"):
            check_output(tmp_path / name)
    check_output(tmp_path / "new/place/x.html")
    assert not (tmp_path / "new").exists()
    if os.geteuid():  # root may write everywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(WriteError, match="closed does not allow it"):
            check_output(tmp_path / "closed/x.html")
