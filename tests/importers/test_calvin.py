"""CALVIN: inclusive ends, texts of parts of a stretch, and a pickle that may only hold what is plain."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from wamkit.data.importers import IMPORTERS, SourceError
from wamkit.data.importers.run import Import, import_data
from wamkit.registry import load_package
from wamkit.types import Span

load_package("wamkit.data.importers")
PLAY = Path(__file__).parent / "data/calvin"


def importer(path=PLAY, **options):
    cls = IMPORTERS.get("calvin")
    return cls(path, cls.Options(**options))


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(PLAY, tmp_path / "calvin"))


def test_stretches_of_play(tmp_path):
    store = import_data(Import(format="calvin", source=PLAY, out=tmp_path / "o"))
    assert [m.source for m in store.episodes] == ["3-10", "20-24"] and store.layout.size("rgb_gripper") == (16, 16)
    for e, steps in ((0, np.arange(3, 11)), (1, np.arange(20, 25))):
        episode = store.episode(e)
        np.testing.assert_allclose(episode.proprio[:, 0], steps / 100, atol=1e-6)
        np.testing.assert_allclose(episode.action[:, 0], steps / 30, atol=1e-6)
        for camera in ("rgb_static", "rgb_gripper"):
            shown = store.decode(e, camera).astype(float).mean((1, 2, 3))
            np.testing.assert_allclose(shown, 8 * steps, atol=2)
        with np.load(PLAY / f"episode_{steps[2]:07d}.npz") as file:
            np.testing.assert_array_equal(episode.proprio[2], file["robot_obs"].astype(np.float32))
    push, drawer = ["push the block"] * 3, ["open the drawer"] * 3
    assert store.episode(0).texts() == ["", *push, "", *drawer] and store.episode(1).texts() == [""] * 5


def test_only_what_was_annotated_and_absolute_actions():
    source = importer(only_annotated=True, action="actions")
    assert list(source.episodes()) == ["4-6", "8-10"]
    read = source.read("8-10")
    assert read.text == "open the drawer" and read.spans == (Span(0, 3, "open the drawer"),)
    np.testing.assert_allclose(read.action[:, 0], np.array([9, 10, 11]) / 100, atol=1e-6)
    assert source.metadata().control_mode == "absolute end-effector"


def test_damage_is_named(copy):
    (copy / "episode_0000005.npz").unlink()
    with pytest.raises(SourceError, match=r"episode_0000005.npz \(episode 3-10\): it is missing"):
        importer(copy).read("3-10")
    path = copy / "episode_0000022.npz"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(SourceError, match=r"episode_0000022.npz \(episode 20-24\)"):
        importer(copy).read("20-24")
    np.save(copy / "ep_start_end_ids.npy", np.array([[9, 3]]))
    with pytest.raises(SourceError, match="ep_start_end_ids.npy: it is not a list of first and last steps"):
        importer(copy).episodes()


class Harm:
    def __reduce__(self):
        return os.system, ("touch /tmp/wamkit-was-here",)


def test_a_pickle_that_would_run_something_is_refused(copy):
    annotations = copy / "lang_annotations/auto_lang_ann.npy"
    np.save(annotations, {"language": {"ann": [Harm()]}, "info": {"indx": [(3, 4)]}}, allow_pickle=True)
    with pytest.raises(SourceError, match=r"auto_lang_ann.npy: it tries to run posix.system; refused"):
        importer(copy).read("3-10")
    assert not Path("/tmp/wamkit-was-here").exists()
    np.save(copy / "ep_start_end_ids.npy", np.array([Harm()], dtype=object), allow_pickle=True)
    with pytest.raises(SourceError, match="ep_start_end_ids.npy: Object arrays cannot be loaded"):
        importer(copy).episodes()
