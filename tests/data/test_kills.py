"""Kills, full disks and several writers leave a store complete."""

from __future__ import annotations

import json
import os
import resource
import signal
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pyarrow.parquet as pq
import pytest
from forks import PROCESSES, run
from recordings import content, fill, make_episode

from wamkit.data.format.store import Store, StoreError
from wamkit.files import exclusive


def fill_until_rename(root, count, renames):
    """Fills, and dies as if by `kill -9` just before the given rename."""
    rename, left = os.replace, [renames]

    def dying(*arguments):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*arguments)

    os.replace, os.fsync = dying, id  # a kill, unlike a power cut, loses nothing that was written
    fill(root, count)


def test_a_kill_at_every_rename_loses_and_doubles_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", id)
    fill(tmp_path / "whole", 2)
    whole, renames = content(tmp_path / "whole"), 0
    while True:
        renames += 1
        root = tmp_path / f"killed-{renames}"
        process = run(fill_until_rename, root, 2, renames)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        if (root / "meta/info.json").exists():
            stored = len(list(root.glob("meta/episodes/*/*.parquet")))
            assert len(Store.open(root)) == stored == sum(renames > last for last in (9, 14))
        fill(root, 2)
        assert content(root) == whole
    assert renames == 4 + 2 * 5 + 5 + 1  # create, two episodes of five files, finalize; both list checksums twice


def test_kills_at_random_moments(tmp_path):
    fill(tmp_path / "whole", 5)
    rng, kills, root = np.random.default_rng(0), 0, tmp_path / "killed"
    while kills < 10:
        process = run(fill, root, 5)
        process.join(0.02 + 0.1 * rng.uniform())
        process.kill()
        process.join()
        kills += 1
    fill(root, 5)
    assert content(root) == content(tmp_path / "whole")


def append_with_little_room(root, limit, answer):
    store = Store.open(root)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        store.append(make_episode(3, 10))
    except StoreError as error:
        answer.put((str(error), len(store)))


def test_a_full_disk_leaves_the_store_as_it_was(copy, tmp_path):
    fill(tmp_path / "whole", 4)
    names = [name for name in content(tmp_path / "whole") if "003" in name]
    before = content(copy)
    assert len(names) == 5
    for name in names:
        answer = PROCESSES.Queue()
        run(append_with_little_room, copy, (tmp_path / "whole" / name).stat().st_size - 1, answer).join()
        message, episodes = answer.get(timeout=60)
        assert "could not write" in message and "free some space" in message and episodes == 3
        assert content(copy) == before
    fill(copy, 4)
    assert content(copy) == content(tmp_path / "whole")


def test_two_writers(copy):
    one, two = Store.open(copy), Store.open(copy)
    one.append(make_episode(3))
    with pytest.raises(StoreError, match="another process has stored episode 3"):
        two.append(make_episode(4))
    assert len(Store.open(copy)) == 4


def test_a_reader_does_not_stop_a_writer(copy):
    """Opening a data set that grows locks it for a moment; the writer waits for that."""
    writer = Store.open(copy)
    with ThreadPoolExecutor(1) as pool:
        with exclusive(copy):
            appended = pool.submit(writer.append, make_episode(3))
            assert wait([appended], timeout=0.5).not_done
        appended.result(timeout=60)
    assert len(Store.open(copy)) == 4


def test_totals_are_mended_after_a_kill(copy):
    Store.open(copy).append(make_episode(3, text="a new instruction"))
    assert json.loads((copy / "meta/info.json").read_text())["total_episodes"] == 3
    store = Store.open(copy)
    assert json.loads((copy / "meta/info.json").read_text())["total_episodes"] == 4
    assert store.numeric()["task_index"][-1] == 2
    assert pq.read_table(copy / "meta/tasks.parquet").num_rows == 3
