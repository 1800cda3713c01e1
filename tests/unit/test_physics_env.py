"""The physics suite: contract, scenes by seed, the simulator's truth, and the laws that it must obey before a model is
asked to.
"""

import functools

import numpy as np
import pytest

from wamkit.envs import make_env, read_ground_truth
from wamkit.envs.check import check_env
from wamkit.envs.physics_scenes import GRAVITY, TEXTS, sample_scene
from wamkit.types import WamkitError


def _play(task, seed, steps, masks=False, **options):
    """The truth of the reset and of `steps` steps of the expert, and the last info."""
    env = make_env("physics", task=task, **options)
    _, info = env.reset(seed=seed, render=False)
    expert, snapshots = env.expert(), [env.snapshot()]
    for _ in range(steps):
        info = env.step(expert(np.random.default_rng(0)), render=False)[-1]
        snapshots.append(env.snapshot())
    truth = read_ground_truth(env, snapshots, masks=masks)
    env.close()
    return truth, info


def _energy(truth):
    """Mechanical energy of what exists, (T,) in joules."""
    w, x, y, z = np.moveaxis(truth.quaternion, -1, 0)
    axes = np.stack(
        [
            np.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)], -1),
            np.stack([2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)], -1),
            np.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], -1),
        ],
        -2,
    )
    spin = np.einsum("tnij,tnj->tni", axes, truth.angular_velocity)
    kinetic = truth.mass * (truth.velocity**2).sum(-1) + (truth.inertia * spin**2).sum(-1)
    return np.nansum(kinetic / 2 + truth.mass * GRAVITY * truth.position[..., 2], axis=1)


@pytest.mark.parametrize("task", ["drop", "push"])
def test_checker_passes(task):
    assert check_env(functools.partial(make_env, "physics", task=task), steps=3)[-1] == "new process"


def test_scenes_differ_by_seed_and_only_by_it():
    for task in TEXTS:
        scenes = [sample_scene(task, seed) for seed in range(100)]
        assert len({s.objects[0].position.tobytes() + s.objects[0].size.tobytes() for s in scenes}) == 100
        assert len({s.objects[0].shape for s in scenes}) == (2 if task == "topple" else 3)
        assert sample_scene(task, 7).objects[0].mass == scenes[7].objects[0].mass
    assert {len(sample_scene("drop", seed).objects) for seed in range(10)} == {1, 2}


def test_another_take_differs_a_little():
    one, again, other = (sample_scene("slide", 3, *how).objects[0] for how in ((), (0.1, 0), (0.1, 1)))
    assert one.size.tobytes() == again.size.tobytes() and len({one.mass, again.mass, other.mass}) == 3
    assert abs(np.log(again.friction / one.friction)) < 0.5 and again.position[2] == one.position[2]


def test_truth_of_a_snapshot_is_the_truth_of_the_instant():
    env = make_env("physics", task="collide")
    env.reset(seed=2)
    snapshots, truths = [], []
    for _ in range(14):
        before = env.snapshot()
        truths.append(env.ground_truth())
        assert env.snapshot().physics.tobytes() == before.physics.tobytes()
        snapshots.append(before)
        env.step(np.zeros(2))
    env.close()
    again = read_ground_truth(make_env("physics", task="collide"), snapshots)
    for name in ("position", "quaternion", "velocity", "angular_velocity", "contact", "distance", "mask"):
        now = np.concatenate([getattr(t, name) for t in truths])
        np.testing.assert_array_equal(now, getattr(again, name), err_msg=name)
    assert again.contact[:, 0, 1].any() and not again.contact[0, 0, 1]
    assert again.exists.all() and (again.area > 0.005).all() and (again.area < 0.1).all()
    np.testing.assert_allclose(env_distances(snapshots[3], again.position[3:4]), again.distance[3:4], atol=1e-9)
    with pytest.raises(WamkitError, match="several scenes"):
        env.reset(seed=3)
        read_ground_truth(env, [snapshots[0], env.snapshot()])
    with pytest.raises(WamkitError, match="--snapshots"):
        read_ground_truth(env, [])


def env_distances(snapshot, position):
    env = make_env("physics", task=snapshot.attributes["task"])
    env.restore(snapshot, render=False)
    return env.distances(position)


def test_masks_lie_where_the_picture_shows_the_object_and_leave_the_picture_alone():
    env = make_env("physics", task="slide")
    picture = env.reset(seed=1)[0]["images"]
    mask = env.ground_truth().mask[0, 0]
    assert np.array_equal(env.restore(env.snapshot())["images"], picture)
    env.close()
    red, _, blue = picture[0].astype(int)
    warm = red - blue > 60
    assert (mask & warm).sum() / (mask | warm).sum() > 0.7 and not env.ground_truth().mask[0, 1].any()


def test_free_fall_obeys_gravity():
    for seed in range(3):
        truth, _ = _play("drop", seed, 10)
        free = ~truth.contact[:, 0].any(-1)
        assert free[:10].all() and truth.distance[0, 0] > 0.1
        acceleration = np.diff(truth.position[:10, 0], 2, axis=0) * 50**2
        np.testing.assert_allclose(acceleration, np.tile([0, 0, -GRAVITY], (8, 1)), atol=1e-3 * GRAVITY)
        energy = _energy(truth)[:10]  # turning included; the integrator's own error is of the order of the step
        assert np.ptp(energy) < 0.01 * np.ptp(truth.mass[0] * GRAVITY * truth.position[:10, 0, 2])


def test_energy_never_rises_in_slide():
    for seed in range(4):
        truth, info = _play("slide", seed, 60)
        energy = _energy(truth)
        assert np.diff(energy).max() < 1e-3 * (energy[0] - energy[-1]) and info["success"]


def test_momentum_is_kept_in_a_collision():
    # In the 10 ms after they touch: of a whole step friction takes a tenth.
    for seed in range(6):
        env = make_env("physics", task="collide")
        env.reset(seed=seed, render=False)
        model, data, momentum, touching = env._model, env._data, [], []
        objects = [model.geom(f"object{k}").id for k in range(2)]
        mass = model.body_mass[[model.body(f"object{k}").id for k in range(2)]]
        for _ in range(400):
            env._mujoco.mj_step(model, data)
            momentum.append(mass @ data.qvel.reshape(2, 6)[:, :2])
            touching.append(any(set(pair) == set(objects) for pair in data.contact.geom.tolist()))
        first = touching.index(True)
        before, after = momentum[first - 1], momentum[first + 9]
        assert np.linalg.norm(after - before) < 0.05 * np.linalg.norm(before), seed
        assert abs(before[0]) > 0.03


def test_what_is_occluded_vanishes_and_comes_back():
    truth, _ = _play("occlude", 1, 50, masks=True)
    area = truth.area[:, 0]
    hidden = np.flatnonzero(area == 0)
    assert len(hidden) > 3 and area[0] > 0.01 and area[-1] > 0.01 and np.diff(hidden).max() == 1


def test_every_task_succeeds_and_the_pusher_pushes():
    for task in TEXTS:
        done = [_play(task, seed, 150 if task != "push" else 60)[1]["success"] for seed in (0, 1)]
        assert all(done), task
    truth, _ = _play("push", 0, 60)
    assert truth.contact[:, 0, 3].any() and np.isfinite(truth.pusher).all()
    assert np.linalg.norm(truth.position[-1, 0] - truth.position[0, 0]) > 0.05
