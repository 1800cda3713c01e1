"""Durable files: old content or new, folders created, leftovers of killed writers removed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wamkit.files import StoreError, WriteError, atomic_write, exclusive, make_folder, remove_leftovers, temporary


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
