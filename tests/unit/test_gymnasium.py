"""Environments as Gymnasium ids: registration, Gymnasium's own checker, and the same episodes as wamkit's loop."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import wamkit
from wamkit.envs import ENVIRONMENTS, TRAIN_SEEDS
from wamkit.envs.gymnasium_ids import _OWN, gymnasium_id, register_own_ids
from wamkit.rollout.loop import rollout
from wamkit.types import WamkitError

ROOT = Path(__file__).parents[2]
KINDS = ["MetaWorld-drawer-open-v3", "Physics-push", "PushT-push-t", "Reacher-reach"]
EXPECTED = (
    "space minimum value is -infinity",  # positions and speeds that no wall bounds
    "space maximum value is infinity",
    "symmetric and normalized space",  # PushT's actions are places in its world
)


def make(name: str, **options) -> gymnasium.Env:
    if name.startswith("PushT"):
        pytest.importorskip("gym_pusht")
    return gymnasium.make(f"wamkit/{name}", **options)


def python(code: str) -> str:
    """Output of a new process, in which the example plug-in can be imported."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "examples/wamkit-regress")])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_task_of_every_environment_has_an_id():
    own = {n: ENVIRONMENTS.get(n) for n in ENVIRONMENTS if ENVIRONMENTS.get(n).__module__.startswith("wamkit.envs.")}
    assert own.pop("gym").tasks() == ()  # it plays ids that exist
    listed = {cls: env for cls, (env, _) in _OWN.items()} | {"Libero": "libero"}
    assert listed == {c.__name__: n for n, c in own.items()}
    for cls, (env, tasks) in _OWN.items():
        assert tuple(tasks) == own[env].tasks()
        for task in tasks:
            assert gymnasium.spec(gymnasium_id(cls, task)).kwargs == {"env": env, "task": task}


def test_ids_of_libero_are_registered_where_its_package_is(tmp_path, monkeypatch):
    from wamkit.envs import libero_tasks

    folder = tmp_path / "libero/libero/benchmark"
    folder.mkdir(parents=True)
    tasks = {suite: [f"{suite}_put the mug"] for suite in libero_tasks.MAX_STEPS}
    (folder / "libero_suite_task_map.py").write_text(f"libero_task_map = {tasks}")
    monkeypatch.syspath_prepend(str(tmp_path))
    libero_tasks.suites.cache_clear()
    before = dict(gymnasium.registry)
    register_own_ids()
    try:
        added = gymnasium.registry.keys() - before.keys()
        assert len(added) == 5 and "wamkit/Libero-libero_goal_put-the-mug" in added
        assert gymnasium.spec("wamkit/Libero-libero_goal_put-the-mug").kwargs["task"] == "libero_goal_put the mug"
    finally:
        libero_tasks.suites.cache_clear()
        for name in gymnasium.registry.keys() - before.keys():
            del gymnasium.registry[name]


COUNT = "; import sys; print(sum(i.startswith('wamkit/') for i in gymnasium.registry), *("
COUNT += "m for m in ('mujoco', 'torch', 'wamkit.envs.base') if m in sys.modules))"


@pytest.mark.parametrize("order", ["import wamkit, gymnasium", "import gymnasium, wamkit"])
def test_ids_are_known_in_either_order_of_imports_and_nothing_is_loaded(order):
    look = "; importlib.util.find_spec('gymnasium')" if order.startswith("import wamkit") else ""
    order = order.replace(",", f"{look}; import", 1)  # looking for a package is not importing it
    assert python(f"import importlib.util; {order}{COUNT}") == str(sum(len(tasks) for _, tasks in _OWN.values()))


def test_wamkit_alone_imports_neither_gymnasium_nor_numpy():
    heavy = ("gymnasium", "numpy", "torch", "mujoco", "scipy", "av", "pyarrow")
    assert python(f"import sys, wamkit; print(*(m for m in {heavy} if m in sys.modules))") == ""
    assert set(wamkit.__all__) == set(dir(wamkit))


def test_an_environment_of_another_package_is_made_by_its_module():
    code = """if True:
        import gymnasium
        from gymnasium.utils.env_checker import check_env
        env = gymnasium.make("wamkit_dot:wamkit/Dot-reach", height=16, max_steps=3)
        check_env(env.unwrapped)
        env.reset(seed=1)
        ends = [env.step(env.action_space.sample())[2:4] for _ in range(3)]
        print(env.observation_space["images"].shape, ends[1], ends[2])
    """
    assert python(code) == "(1, 3, 16, 32) (False, False) (False, True)"


@pytest.mark.parametrize("name", KINDS)
def test_gymnasiums_checker_passes(name):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        env = make(name, render_mode="rgb_array")
        check_env(env.unwrapped, skip_render_check=name.startswith("MetaWorld"))  # which builds it three times more
        env.close()
    messages = [str(w.message) for w in found]
    assert not [m for m in messages if not any(e in m for e in EXPECTED)]


@pytest.mark.parametrize("name", KINDS)
def test_a_seed_gives_the_same_episode_as_wamkits_loop(name):
    env = make(name, render_mode="rgb_array", height=32)
    own = env.unwrapped.environment

    class Expert:
        act = staticmethod(lambda observation, session: (session[0](session[1]), session))
        needs_images = staticmethod(lambda session: True)
        queried = staticmethod(lambda before, after: False)

    session = (own.expert(), np.random.default_rng(0))
    episode = rollout(own, Expert(), seed=7, session=session, max_steps=6, steps_after_success=None)
    for _ in range(2):  # the second time after another episode
        raw, info = env.reset(seed=7)
        assert info["seed"] == 7
        for t, action in enumerate(episode.action):
            assert np.array_equal(raw["images"], episode.images[t])
            assert np.array_equal(raw["proprio"], episode.proprio[t])
            assert np.array_equal(env.render(), np.concatenate(list(raw["images"].transpose(0, 2, 3, 1)), 1))
            raw, reward, terminated, truncated, info = env.step(action)
            assert (np.float32(reward), info["success"]) == (episode.reward[t], episode.success[t])
            assert not terminated and not truncated
        env.reset(seed=8)
        env.step(action)
    assert env.metadata["render_fps"] == episode.fps
    env.close()


def test_an_episode_without_a_seed_is_a_training_episode_that_can_be_played_again():
    env, other = make("Reacher-reach"), make("Reacher-reach")
    first, info = env.reset()
    again, _ = other.reset(seed=info["seed"])
    assert info["seed"] < TRAIN_SEEDS and np.array_equal(first["images"], again["images"])
    env.reset(seed=5), other.reset(seed=5)
    assert env.reset()[1]["seed"] == other.reset()[1]["seed"] != env.reset()[1]["seed"]
    env.close(), other.close()


def test_truncation_comes_at_the_environments_own_limit():
    env = make("Reacher-reach", max_steps=2)
    env.reset(seed=0)
    ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(2)]
    assert ends == [(False, False), (False, True)]
    env.close()


def test_what_is_unknown_is_refused():
    env = make("Reacher-reach")
    with pytest.raises(WamkitError, match=r"Reacher, reach: reset knows no options, found 'colour'"):
        env.reset(seed=0, options={"colour": "red"})
    env.close()
    with pytest.raises(WamkitError, match="hieght: unknown key .did you mean 'height'"):
        make("Reacher-reach", hieght=3)
    with pytest.raises(gymnasium.error.NameNotFound, match="Did you mean: `Reacher-reach`"):
        make("Reacher-raech")


VECTOR = {"num_envs": 2, "height": 32, "max_steps": 3}


@pytest.mark.parametrize("chosen", [{}, {"vectorization_mode": "async", "vector_kwargs": {"context": "spawn"}}])
def test_vectors_of_environments_play_the_same_episodes(chosen):
    one = make("Reacher-reach", height=32, max_steps=3)
    action, expected = np.full(2, 0.5, np.float32), []
    for seed in (3, 4):
        expected.append([one.reset(seed=seed)[0]["images"]])
        expected[-1] += [one.step(action)[0]["images"] for _ in range(3)]
    envs = gymnasium.make_vec("wamkit/Reacher-reach", **VECTOR, **chosen)
    raw, info = envs.reset(seed=[3, 4])
    seen = [raw["images"].copy()]
    for _ in range(3):
        raw, _, terminated, truncated, info = envs.step(np.stack([action, action]))
        seen.append(raw["images"].copy())
    assert np.array_equal(np.stack(seen, 1), np.array(expected))
    assert truncated.all() and not terminated.any() and info["success"].dtype == bool
    assert raw["text"] == (one.unwrapped.environment.text,) * 2
    raw, _, _, truncated, info = envs.step(np.stack([action, action]))  # the next episode begins
    assert not truncated.any() and (info["seed"] < TRAIN_SEEDS).all() and info["seed"][0] != info["seed"][1]
    envs.close()
    one.close()


FORKED = """if True:
    import gymnasium, numpy as np, wamkit
    fork = {"vectorization_mode": "async", "vector_kwargs": {"context": "fork"}}
    envs = gymnasium.make_vec("wamkit/Reacher-reach", num_envs=2, height=32, **fork)
    images = envs.reset(seed=[3, 4])[0]["images"].copy()
    envs.close()
    one = gymnasium.make("wamkit/Reacher-reach", height=32)
    print(all(np.array_equal(one.reset(seed=s)[0]["images"], i) for s, i in zip((3, 4), images)))
    try:
        gymnasium.make_vec("wamkit/Reacher-reach", num_envs=2, height=32, **fork).reset(seed=3)
    except wamkit.WamkitError as error:
        print(error)
"""


def test_forked_processes_render_unless_their_parent_had():
    same, refused = python(FORKED).splitlines()[:2]  # a hang here is a driver without its threads
    assert same == "True" and "forked from one that had rendered with OpenGL" in refused and "'spawn'" in refused


def test_ids_say_class_and_task():
    assert gymnasium_id("Dot", "put the mug (left)") == "wamkit/Dot-put-the-mug-left-"
    assert all(re.fullmatch(r"wamkit/[\w.-]+", gymnasium_id(c, t)) for c, (_, tasks) in _OWN.items() for t in tasks)
