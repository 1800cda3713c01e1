"""PushT: gym-pusht's own physics, pictures and success; snapshots that go on byte for byte; an expert that solves
it."""

import functools
import sys

import numpy as np
import pytest

from wamkit.data.format.snapshots import pack_snapshots, unpack_snapshots
from wamkit.envs import make_env
from wamkit.envs.check import check_env
from wamkit.envs.pusht import SUCCESS_COVERAGE
from wamkit.rollout.collect import CollectConfig, NoisyExpert, plan, record
from wamkit.rollout.loop import rollout
from wamkit.types import Snapshot, WamkitError

gym_pusht = pytest.importorskip("gym_pusht.envs", exc_type=ImportError)

MAKE = functools.partial(make_env, "pusht")


def shove(env, steps):
    """Pushes about where the T is: contacts with the T, and of the T with walls, from the first steps on."""
    rng, goal = np.random.default_rng(0), None
    for t in range(steps):
        if t % 6 == 0:
            goal = np.array(env._sim.block.position) + rng.normal(0, 60, 2)
        env.step(goal, render=False)


def test_checker_passes_pusht():
    assert check_env(MAKE, steps=4)[-1] == "new process"


def test_physics_pictures_and_success_are_gym_pushts_own():
    env, own = MAKE(height=96, width=96), gym_pusht.PushTEnv(obs_type="pixels_agent_pos")
    raw, _ = env.reset(seed=7)
    theirs, _ = own.reset(seed=7)
    for action in np.random.default_rng(1).uniform(0, 512, (40, 2)).astype(np.float32):
        assert np.array_equal(raw["images"][0], theirs["pixels"].transpose(2, 0, 1))
        np.testing.assert_array_equal(raw["proprio"], theirs["agent_pos"].astype(np.float32))
        raw, reward, terminated, _, info = env.step(action)
        theirs, their_reward, _, _, their_info = own.step(action)
        assert reward == their_reward and info["success"] == their_info["is_success"] and not terminated
    assert env.coverage() == their_info["coverage"]


def test_a_snapshot_amid_contact_branches_byte_for_byte():
    env, other = MAKE(), MAKE()
    env.reset(seed=5, render=False)
    shove(env, 40)
    start = env.snapshot()
    (stored,) = unpack_snapshots(pack_snapshots([start]))
    branches = np.random.default_rng(2).uniform(100, 400, (2, 8, 2)).astype(np.float32)

    def go(e, actions):
        return [e.step(a, render=False)[1] for a in actions], e.snapshot().physics.tobytes()

    first = go(env, branches[0])
    env.restore(start, render=False)
    second = go(env, branches[1])
    assert first[1] != second[1]
    for e, snapshot in ((env, start), (other, stored)):
        for branch, result in zip(branches, (first, second), strict=True):
            e.restore(snapshot, render=False)
            assert go(e, branch) == result


def test_positions_and_speeds_alone_are_not_enough():
    # Why snapshots hold actions: a space built from them goes elsewhere at the first step out of a contact.
    env = MAKE()
    env.reset(seed=6, render=False)
    own = gym_pusht.PushTEnv()
    own.reset(seed=6)
    worst = 0.0
    for goal in np.repeat(np.random.default_rng(6).uniform(100, 400, (5, 2)), 8, axis=0).astype(np.float32):
        here, block = env.snapshot().physics, own.block
        own._setup()
        own.agent.position, own.agent.velocity = here[:2].tolist(), here[2:4].tolist()
        block = own.block
        block.angle, block.angular_velocity = here[8], here[9]
        block.position, block.velocity = here[4:6].tolist(), here[6:8].tolist()
        own.step(goal)
        env.step(goal, render=False)
        worst = max(worst, np.abs(np.array(own.block.position) - env.snapshot().physics[4:6]).max())
    assert worst > 1e-6


def test_a_snapshot_that_comes_out_otherwise_is_refused():
    env = MAKE()
    env.reset(seed=1, render=False)
    shove(env, 5)
    good = env.snapshot()
    with pytest.raises(WamkitError, match="leads to another state.*other versions"):
        env.restore(Snapshot(good.physics + 1e-9, {}, good.attributes))
    with pytest.raises(WamkitError, match="'lift' cannot be restored in 'push-t'"):
        env.restore(Snapshot(good.physics, {}, {**good.attributes, "task": "lift"}))


def test_the_expert_solves_unseen_starts():
    env = MAKE()
    for seed in (1_000_000, 1_000_001):
        actor = NoisyExpert(env.expert(), 0.0, env.action_space.low, env.action_space.high)
        episode = rollout(env, actor, seed=seed, session=np.random.default_rng(seed), record_images=False)
        assert episode.succeeded and len(episode) < 250 and episode.reward[-1] == 1
        assert env.coverage() > SUCCESS_COVERAGE


def test_the_expert_pushes_alike_from_equal_states():
    """Whatever it is given to draw from: its choice is one that can be learned from the present state."""
    env, paths = MAKE(), []
    for draws in (1, 2):
        env.reset(seed=1_000_002)
        act, rng = env.expert(), np.random.default_rng(draws)
        path = []
        for _ in range(40):
            path.append(act(rng))
            env.step(path[-1])
        paths.append(np.array(path))
    assert np.array_equal(*paths) and np.ptp(paths[0], axis=0).max() > 50


def test_action_noise_is_of_a_size_that_the_expert_stands(tmp_path):
    config = CollectConfig(env="pusht", tasks=("push-t",), episodes=1, off_expert=0, noise=(0.3,), out=tmp_path)
    episode = record(config, plan(config)[0], MAKE(height=8, width=8))
    noise = (episode.action - episode.action_expert)[np.abs(episode.action_expert - 256) < 200]
    assert episode.succeeded and abs(noise.std() - 0.3 * 0.1 * 256) < 2


def test_wrong_use_is_named():
    env = MAKE(max_steps=2)
    with pytest.raises(WamkitError, match="first reset needs a seed"):
        env.reset()
    with pytest.raises(WamkitError, match="step before the first reset"):
        env.step(np.zeros(2))
    env.reset(seed=0)
    with pytest.raises(WamkitError, match="expected an action of 2 finite values"):
        env.step(np.array([np.nan, 0]))
    assert [env.step(np.zeros(2))[3] for _ in range(2)] == [False, True]
    with pytest.raises(WamkitError, match="unknown task .* of pusht"):
        MAKE(task="lift")


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gym_pusht.envs", None)  # as Python marks what cannot be imported
    with pytest.raises(WamkitError, match=r"gym-pusht cannot be imported.*pip install 'wamkit\[pusht\]'"):
        MAKE()
