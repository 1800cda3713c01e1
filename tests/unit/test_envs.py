"""Environments: seeds, snapshots, pictures, the checker, and the errors a user meets."""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest

from wamkit.config import ConfigError
from wamkit.envs import ENVIRONMENTS, HELD_OUT_SEED_BASE, TRAIN_SEEDS, held_out_seeds, make_env, observation
from wamkit.envs.base import Environment
from wamkit.envs.check import check_env
from wamkit.envs.metaworld import INSTRUCTIONS, MetaWorld, MetaWorldConfig, shared_reset_range
from wamkit.envs.reacher import Reacher, ReacherConfig
from wamkit.types import ObservationError, WamkitError

DRAWER = functools.partial(make_env, "metaworld", task="drawer-open-v3")


def _drive(env, steps, rng=None, render=True):
    """The expert's next actions; for each step (physics, model, proprioception, reward, success, images or None)."""
    expert, rng, trace = env.expert(), rng or np.random.default_rng(0), []
    for _ in range(steps):
        raw, reward, _, _, info = env.step(expert(rng), render=render)
        state = env.snapshot()
        model = b"".join(k.encode() + v.tobytes() for k, v in sorted(state.model.items()))
        images = raw["images"].tobytes() if "images" in raw else None
        trace.append((state.physics.tobytes(), model, raw["proprio"].tobytes(), reward, info["success"], images))
    return trace


def _replay(task, snapshot, steps):
    env = make_env("metaworld", task=task)
    env.restore(snapshot)
    return _drive(env, steps)


def test_a_process_that_has_rendered_can_train():
    """Torch for GPUs imports Triton with its first optimizer, whose LLVM and that of Mesa had ended the process."""
    pytest.importorskip("triton")
    code = (
        "from wamkit.envs.rendering import load_mujoco; load_mujoco(); import torch;"
        "torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0


def test_checker_passes_metaworld():
    assert check_env(DRAWER, steps=4)[-1] == "new process"


def test_snapshots_of_contact_and_free_objects_continue_in_a_new_process_byte_for_byte():
    # All tasks in one other process: every one goes on from amid its contact phase, with pictures, for 20 actions.
    tasks = {
        "drawer-open-v3": 60,
        "door-open-v3": 50,
        "faucet-open-v3": 35,
        "button-press-topdown-v3": 45,
        "pick-place-v3": 60,
    }
    here, jobs = {}, {}
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for task, before in tasks.items():
            env = make_env("metaworld", task=task)
            env.reset(seed=5, render=False)
            _drive(env, before, render=False)
            jobs[task] = pool.submit(_replay, task, env.snapshot(), 20)
            here[task] = _drive(env, 20)
            env.close()
        for task in tasks:
            assert here[task] == jobs[task].result(), task
    assert len({trace[-1][-1] for trace in here.values()}) == len(tasks)  # and every task shows its own picture


@pytest.mark.parametrize("task", ["drawer-open-v3", "pick-place-v3", "door-lock-v3"])
def test_reset_depends_on_the_seed_alone(task):
    fresh, used = make_env("metaworld", task=task), make_env("metaworld", task=task)
    used.reset(seed=1, render=False)
    _drive(used, 70, render=False)
    first, second = (env.reset(seed=2, render=False)[0] for env in (fresh, used))
    assert np.array_equal(first["proprio"], second["proprio"])
    a, b = fresh.snapshot(), used.snapshot()
    assert a.physics.tobytes() == b.physics.tobytes()
    assert a.model.keys() == b.model.keys() and all(np.array_equal(a.model[k], b.model[k]) for k in a.model)
    assert repr(sorted(a.attributes.items())) == repr(sorted(b.attributes.items()))
    assert _drive(fresh, 5, render=False) == _drive(used, 5, render=False)


def test_environments_of_one_task_share_no_model():
    """Though it is compiled once."""
    changed, other = DRAWER(), DRAWER()
    changed._sim.model.body_pos += 1
    changed._sim.model.mesh_vert += 1
    later = DRAWER()
    for model in (other._sim.model, later._sim.model):
        assert (changed._sim.model.body_pos == model.body_pos + 1).all()
        assert (changed._sim.model.mesh_vert == model.mesh_vert + 1).all()


def test_first_expert_action_sees_where_the_object_is_now():
    # MetaWorld's own reset leaves the drawer's old place in the first observation.
    env = DRAWER()
    env.reset(seed=3, render=False)
    handle = env._sim._last_stable_obs[4:7]
    np.testing.assert_allclose(handle, env.snapshot().attributes["obj_init_pos"] + [0, -0.16, 0.0], atol=0.1)
    assert abs(handle[0] - env.snapshot().attributes["obj_init_pos"][0]) < 1e-6


def test_pictures_are_upright_and_not_mirrored():
    # corner2 stands to the right of the arm and looks at it across the table: the hand goes up in the picture when it
    # goes up, and to the right when it moves away from the base (+y). The camera's right is (0.6, 0.8), see its place.
    env = DRAWER()
    env.reset(seed=0)
    start = env.snapshot()

    def hand(action):
        raw = env.restore(start)
        for _ in range(12):
            raw = env.step(np.array(action, np.float32))[0]
        picture = raw["images"][0].astype(int)
        red = (picture[0] > 80) & (picture[1] < 60) & (picture[2] < 70)
        rows, columns = np.nonzero(red)
        return rows.mean(), columns.mean()

    up, down = hand([0, 0, 1, 0]), hand([0, 0, -1, 0])
    away, near = hand([0, 1, 0, 0]), hand([0, -1, 0, 0])
    env.close()
    assert up[0] < down[0] - 1
    assert away[1] > near[1] + 1


def test_goal_markers_are_drawn_only_on_request_and_do_not_change_physics():
    pictures, states = [], []
    for markers in (False, True):
        env = make_env("metaworld", task="drawer-open-v3", goal_markers=markers)
        pictures.append(env.reset(seed=0)[0]["images"])
        states.append(env.snapshot().physics)
        env.close()
    changed = (pictures[0] != pictures[1]).any(axis=(0, 1)).sum()
    assert 0 < changed < 200 and np.array_equal(*states)


def test_look_alike_tasks_start_alike_in_their_shared_range():
    low, high = shared_reset_range(["faucet-open-v3", "faucet-close-v3"])
    assert (low, high) == ((-0.05, 0.8, 0.0), (0.05, 0.85, 0.0))
    pictures = []
    for task in ("faucet-open-v3", "faucet-close-v3"):
        env = make_env("metaworld", task=task, reset_low=low, reset_high=high)
        pictures.append(env.reset(seed=7)[0]["images"])
        env.close()
    assert np.array_equal(*pictures)
    with pytest.raises(WamkitError, match="different dimensions"):
        shared_reset_range(["faucet-open-v3", "pick-place-v3"])


def test_episodes_are_truncated_at_max_steps():
    env = make_env("metaworld", task="reach-v3", max_steps=3)
    env.reset(seed=0, render=False)
    assert [env.step(np.zeros(4), render=False)[3] for _ in range(3)] == [False, False, True]


def test_held_out_seeds_are_never_training_seeds():
    assert held_out_seeds(3) == (HELD_OUT_SEED_BASE, HELD_OUT_SEED_BASE + 1, HELD_OUT_SEED_BASE + 2)
    assert min(held_out_seeds(1000)) >= TRAIN_SEEDS and len(set(held_out_seeds(1000))) == 1000


def test_every_task_of_metaworld_has_its_own_instruction():
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert set(INSTRUCTIONS) == set(ALL_V3_ENVIRONMENTS) == set(MetaWorld.tasks()) and len(INSTRUCTIONS) == 50
    assert len(set(INSTRUCTIONS.values())) == 50


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(WamkitError, match="did you mean 'metaworld'"):
        make_env("metawrld", task="drawer-open-v3")
    with pytest.raises(WamkitError, match="did you mean 'drawer-open-v3'"):
        make_env("metaworld", task="drawer-open")
    with pytest.raises(WamkitError, match="did you mean 'height'"):
        make_env("metaworld", task="drawer-open-v3", heigth=64)
    with pytest.raises(WamkitError, match="did you mean 'corner2'"):
        make_env("metaworld", task="drawer-open-v3", cameras=("corner22",))
    assert "metaworld" in ENVIRONMENTS


def test_a_snapshot_of_another_task_and_bad_actions_are_refused():
    drawer, door = DRAWER(), make_env("metaworld", task="door-open-v3")
    with pytest.raises(WamkitError, match="first reset needs a seed"):
        drawer.reset()
    drawer.reset(seed=0)
    with pytest.raises(WamkitError, match="snapshot of 'drawer-open-v3'"):
        door.restore(drawer.snapshot())
    for bad in (np.zeros(3), np.array([0, 0, np.nan, 0])):
        with pytest.raises(WamkitError, match="expected an action of 4 finite values"):
            drawer.step(bad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"proprio": np.zeros(4)}, r"'proprio'.*expected float32 \(4,\), found float64 \(4,\)"),
        ({"proprio": np.full(4, np.nan, np.float32)}, "'proprio'.*finite"),
        ({"text": ""}, "'text'.*non-empty"),
        ({"images": np.zeros((1, 64, 64, 3), np.uint8)}, r"'images'.*\(1, 3, 64, 64\), found uint8 \(1, 64, 64, 3\)"),
        ({"images": [[0]]}, "'images'.*found list"),
        ({"image": None}, "unknown key 'image'"),
    ],
)
def test_wrong_observations_name_key_expected_and_found(change, message):
    env = DRAWER()
    good = {"images": np.zeros((1, 3, 64, 64), np.uint8), "proprio": np.zeros(4, np.float32), "text": "open the drawer"}
    assert observation(good, env.observation_space).images is good["images"]
    assert observation({k: good[k] for k in ("proprio", "text")}).images is None
    with pytest.raises(ObservationError, match=message):
        observation(good | change, env.observation_space)


def test_a_missing_system_library_names_the_package():
    # A process in which the loader finds no OSMesa, as on a bare Debian.
    script = """
import ctypes
load = ctypes.CDLL
def refuse(name, *a, **k):
    if "OSMesa" in str(name):
        raise OSError(f"{name}: cannot open shared object file")
    return load(name, *a, **k)
ctypes.CDLL = ctypes.cdll._dlltype = refuse
from wamkit.envs import make_env
make_env("metaworld", task="drawer-open-v3").reset(seed=0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=_env(MUJOCO_GL="osmesa"))
    assert done.returncode == 1 and "libosmesa6" in done.stderr and "MUJOCO_GL=egl" in done.stderr
    assert "WamkitError" in done.stderr.splitlines()[-1]


def test_an_empty_choice_is_none_and_egl_without_its_device_advises_software():
    script = """
import os
from wamkit.envs import make_env
make_env("metaworld", task="drawer-open-v3").reset(seed=0)
print(os.environ["MUJOCO_GL"])
"""
    run = functools.partial(subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True)
    assert run(env=_env(MUJOCO_GL="")).stdout == "osmesa\n"
    failed = run(env=_env(MUJOCO_GL="egl", MUJOCO_EGL_DEVICE_ID="99"))
    last = failed.stderr.splitlines()[-1]
    assert failed.returncode == 1 and "WamkitError" in last
    assert "set MUJOCO_GL=osmesa" in last and "libosmesa6" in last and "MUJOCO_GL=egl" not in last


@pytest.mark.parametrize(
    "options",
    [{"height": 0}, {"width": -1}, {"supersample": 0}, {"max_steps": 0}, {"cameras": ()}, {"text": " "}],
    ids=str,
)
def test_options_out_of_range_are_refused(options):
    (name,) = options
    with pytest.raises(ConfigError, match=f"environment 'metaworld': {name} .*must be"):
        make_env("metaworld", task="drawer-open-v3", **options)


def _env(**more):
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **more}


class Drifting(MetaWorld):
    """Breaks the first rule: its pictures and states depend on how often it was reset."""

    resets = 0

    def reset(self, *, seed=None, options=None, render=True):
        self.resets += 1
        return super().reset(seed=seed + self.resets, render=render)


class Stale(MetaWorld):
    """Always shows the first image that it rendered."""

    first = None

    def _observe(self, render):
        raw, info = super()._observe(render)
        self.first = self.first if self.first is not None else raw.get("images")
        return raw | ({"images": self.first} if render else {}), info


class Forgetful(MetaWorld):
    """Its snapshots lack what a reset wrote into the model."""

    def snapshot(self):
        return dataclasses.replace(super().snapshot(), model={})


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (
            Drifting,
            r"determinism.*another episode: after 0 steps differ images \(\d+ of 12288 values, most at \[0, .*\]: \d+ "
            r"and \d+\); usual causes: random numbers that self.np_random does not draw",
        ),
        (Stale, "variety.*same image"),
        (
            Forgetful,
            "snapshot.*restored in.*after . steps differ .*usual causes: the snapshot lacks a part",
        ),
    ],
)
def test_checker_finds_broken_environments(cls, message):
    with pytest.raises(WamkitError, match=message):
        check_env(functools.partial(_make, cls), steps=4)


def _make(cls):
    return cls(cls.Config(task="drawer-open-v3"))


class Bare(Reacher):
    """A robot without snapshots and without an expert: these methods are left to the base class."""

    expert, snapshot, restore = Environment.expert, Environment.snapshot, Environment.restore


def _bare():
    return Bare(ReacherConfig())


def test_an_environment_may_leave_out_snapshots_and_expert():
    passed = check_env(_bare, steps=4)
    assert "snapshot" not in passed and passed[-1] == "new process" and len(passed) == 6
    env = _bare()
    assert env.expert() is None and not env.takes_snapshots() and Reacher.takes_snapshots()
    with pytest.raises(WamkitError, match="Bare takes no snapshots, .* without them there are wamkit.Policy"):
        env.snapshot()


def test_coarse_meshes_change_neither_physics_nor_visibly_the_picture():
    """Merged vertices are for drawing alone."""
    fine = MetaWorld(MetaWorldConfig("door-open-v3", coarse_meshes=False))
    coarse = MetaWorld(MetaWorldConfig("door-open-v3"))
    assert coarse._sim.model.mesh_facenum.sum() < 0.5 * fine._sim.model.mesh_facenum.sum()
    a, b = fine.reset(seed=3)[0], coarse.reset(seed=3)[0]
    expert = fine.expert()
    for _ in range(45):
        action = expert(np.random.default_rng(0))
        a, b = fine.step(action)[0], coarse.step(action)[0]
    assert fine.snapshot().physics.tobytes() == coarse.snapshot().physics.tobytes()
    error = np.square(a["images"].astype(float) - b["images"]).mean()
    assert 10 * np.log10(255**2 / error) > 38
    fine.close(), coarse.close()


def test_checker_passes_reacher_and_its_expert_reaches():
    reacher = functools.partial(make_env, "reacher")
    assert check_env(reacher, steps=4)[-1] == "new process"
    env = reacher()
    for seed in range(10):
        _, info = env.reset(seed=seed, render=False)
        expert, success = env.expert(), info["success"]
        for _ in range(env.config.max_steps):
            success = success or env.step(expert(np.random.default_rng(0)), render=False)[-1]["success"]
        assert success, seed


def test_a_swaying_camera_moves_the_picture_and_nothing_else():
    still, sway = (make_env("metaworld", task="drawer-open-v3", sway=s) for s in (0.0, 0.1))
    for env in (still, sway):
        env.reset(seed=1)
    action, pictures = np.zeros(4, np.float32), []
    for _ in range(12):
        (a, *_), (b, *_) = still.step(action), sway.step(action)
        assert np.array_equal(a["proprio"], b["proprio"])
        pictures.append(b["images"])
    moved = lambda x, y: np.abs(x.astype(int) - y).mean()  # noqa: E731
    assert moved(pictures[-1], a["images"]) > 2 and 0.3 < moved(pictures[0], pictures[1]) < moved(
        pictures[0], pictures[-1]
    )
    snapshot = sway.snapshot()
    on = sway.step(action)[0]["images"]
    back = sway.restore(snapshot)["images"]
    assert np.array_equal(back, pictures[-1]) and np.array_equal(sway.step(action)[0]["images"], on)


def test_the_checker_passes_with_a_swaying_camera_and_every_factor_of_variation():
    varied = {"sway": 0.1, **dict.fromkeys(MetaWorld.factors, 0.5)}
    assert check_env(functools.partial(DRAWER, **varied), steps=4)[-1] == "new process"
