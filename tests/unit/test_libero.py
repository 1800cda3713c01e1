"""LIBERO: what needs no simulator has known answers; the rest runs where the package and its meshes are installed."""

import functools
import os
import sys

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from wamkit import old_names
from wamkit.cli.main import main
from wamkit.config import ConfigError
from wamkit.envs import HELD_OUT_SEED_BASE, make_env
from wamkit.envs import libero_tasks as module
from wamkit.envs.check import check_env
from wamkit.envs.libero import (
    MAX_STEPS,
    Libero,
    LiberoConfig,
    initial_states,
    instruction,
    package,
    proprio,
    suites,
    upright_image,
)
from wamkit.types import WamkitError

STOVE = "put_the_bowl_on_the_stove"


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """The package's layout with two tasks a suite, and nothing behind it."""
    benchmark = tmp_path / "libero" / "libero" / "benchmark"
    benchmark.mkdir(parents=True)
    (tmp_path / "libero" / "__init__.py").touch()
    tasks = {suite: [f"{suite}_a", f"{suite}_b"] for suite in reversed(MAX_STEPS)} | {"libero_goal": [STOVE]}
    (benchmark / "libero_suite_task_map.py").write_text(f"libero_task_map = {tasks}")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    _forget()
    yield tmp_path
    _forget()


def _forget():
    suites.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "libero"]:
        del sys.modules[name]


@pytest.fixture
def missing(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    suites.cache_clear()
    yield
    suites.cache_clear()


@pytest.mark.parametrize(
    ("task", "text"),
    [
        (STOVE, "put the bowl on the stove"),
        ("KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it", "turn on the stove and put the moka pot on it"),
        ("KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet", "close the top drawer of the cabinet"),
        (
            "LIVING_ROOM_SCENE2_pick_up_the_butter_and_put_it_in_the_basket",
            "pick up the butter and put it in the basket",
        ),
    ],
)
def test_instructions_are_the_names_without_the_scene(task, text):
    assert instruction(task) == text


def test_pictures_come_out_upright_and_averaged():
    raw = np.zeros((4, 4, 3), np.uint8)
    raw[0, 0] = 100, 50, 7  # MuJoCo's first row is the lowest: this is at the bottom left
    flipped, rotated = upright_image(raw, 4, 4, "flipped"), upright_image(raw, 4, 4, "rotated")
    assert flipped.shape == (3, 4, 4) and flipped[:, 3, 0].tolist() == [100, 50, 7] == rotated[:, 3, 3].tolist()
    assert flipped.sum() == rotated.sum() == 157
    half = upright_image(raw, 2, 2, "flipped")
    assert half[:, 1, 0].tolist() == [25, 13, 2] and half.sum() == 40  # a quarter each, rounded to the nearest


def test_proprioception_writes_turns_as_robosuite_does():
    rng = np.random.default_rng(0)
    for turn in Rotation.random(20, rng):
        q = turn.as_quat()
        out = proprio(np.arange(3.0), q, np.array([0.04, -0.04]))
        assert out.dtype == np.float32 and out[[0, 1, 2, 6, 7]].tolist() == np.float32([0, 1, 2, 0.04, -0.04]).tolist()
        back = Rotation.from_rotvec(out[3:6].astype(float))
        np.testing.assert_allclose(back.as_matrix(), turn.as_matrix(), atol=1e-6)
        # Not the shortest turn: the quaternion's sign decides, up to 2 pi.
        np.testing.assert_allclose(np.linalg.norm(out[3:6]), 2 * np.arccos(q[3]), atol=1e-6)
    assert not proprio(np.zeros(3), np.array([0, 0, 0, 1.0]), np.zeros(2)).any()


def test_initial_states_are_read_as_torch_saved_them(tmp_path):
    states = np.random.default_rng(0).normal(size=(50, 92))
    torch.save(states, tmp_path / "a.pruned_init")
    assert np.array_equal(initial_states(tmp_path / "a.pruned_init"), states)


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_initial_states_that_would_run_something_are_refused(tmp_path):
    path = tmp_path / "a.pruned_init"
    torch.save(Runs(tmp_path / "ran"), path)
    with pytest.raises(WamkitError, match="not a file of initial states"):
        initial_states(path)
    states = np.empty(2, object)
    states[:] = Runs(tmp_path / "ran")
    torch.save(states, path)
    with pytest.raises(WamkitError, match="not a file of initial states"):
        initial_states(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [torch.zeros(3, 4), {"a": 1}, np.zeros(3), np.zeros((3, 4), np.float32)])
def test_anything_but_a_table_of_states_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pruned_init")
    with pytest.raises(WamkitError, match="initial states"):
        initial_states(tmp_path / "a.pruned_init")


def test_tasks_come_from_the_package_in_the_papers_order(stand_in):
    assert tuple(suites()) == tuple(MAX_STEPS) and Libero.tasks()[:2] == ("libero_spatial_a", "libero_spatial_b")
    with pytest.raises(WamkitError, match=f"unknown task 'put_the_bowl' of libero .did you mean '{STOVE}'"):
        make_env("libero", task="put_the_bowl")
    with pytest.raises(WamkitError, match="answer it once"):
        make_env("libero", task=STOVE)
    (stand_in / "config.yaml").touch()
    with pytest.raises(WamkitError, match="hf-libero cannot be imported"):
        make_env("libero", task=STOVE)


def test_without_the_package_everything_else_works(missing, capsys):
    with pytest.raises(WamkitError, match="needs the package hf-libero; docs/environments.md"):
        make_env("libero", task=STOVE)
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert "Its package is not installed." in said and "libero-10" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 100}, "render_size = 256: must be a multiple of 100"),
        ({"cameras": ("frontview",)}, "must be of agentview, robot0_eye_in_hand"),
        ({"max_steps": 0}, "max_steps = 0"),
        ({"turn": ""}, "turn"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        make_env("libero", task=STOVE, **options)
    assert LiberoConfig(STOVE).turn == "flipped"


def _installed(part: str) -> bool:
    try:
        return (package() / part).exists()
    except WamkitError:
        return False


@pytest.mark.skipif(not _installed("init_files"), reason="hf-libero is not installed")
def test_every_task_has_fifty_initial_states_and_a_definition():
    for suite, tasks in suites().items():
        assert len(tasks) == (90 if suite == "libero_90" else 10)
        for task in tasks:
            assert len(initial_states(package() / "init_files" / suite / f"{task}.pruned_init")) == 50
            assert (package() / "bddl_files" / suite / f"{task}.bddl").exists()


@pytest.mark.skipif(not _installed("assets"), reason="hf-libero and its meshes are not installed")
def test_checker_passes_libero_and_held_out_seeds_are_the_initial_states():
    make = functools.partial(make_env, "libero", task="turn_on_the_stove", render_size=64, height=64, width=64)
    assert check_env(make, steps=2)[-1] == "new process"
    env = make()
    from libero.libero.benchmark import get_benchmark

    assert env.text in {task.language for task in get_benchmark("libero_goal")().tasks}
    starts = [env.reset(seed=HELD_OUT_SEED_BASE + k)[0]["proprio"] for k in (0, 1, 0)]
    assert np.array_equal(starts[0], starts[2]) and not np.array_equal(starts[0], starts[1])
    with pytest.raises(WamkitError, match="has 50 initial states"):
        env.reset(seed=HELD_OUT_SEED_BASE + 50)


def test_a_data_set_with_the_old_name_of_the_render_size_is_continued():
    before = {"env": "libero", "options": {"drawn": 128, "turn": "rotated"}}
    assert old_names.collected(before)["options"] == {"render_size": 128, "turn": "rotated"}
