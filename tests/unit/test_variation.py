"""Factors of variation: nothing at severity 0, one direction a seed, pictures and not physics, and back to the byte."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from wamkit.config import ConfigError
from wamkit.envs import make_env
from wamkit.envs.rendering import Renderer
from wamkit.envs.variation import CAMERA_TURN, FACTORS, OBJECTS, sample_direction
from wamkit.types import WamkitError

TASK = "drawer-open-v3"
VISUAL = tuple(f for f in FACTORS if f != "initial_pose")
make = functools.partial(make_env, "metaworld", task=TASK, height=48, width=48)


def _episode(seed: int = 1, steps: int = 6, **options):
    """Images (T, 3, H, W) and bytes of every snapshot's physics and model along the expert's first actions."""
    env = make(**options)
    raw, _ = env.reset(seed=seed)
    expert, rng, pictures, states = env.expert(), np.random.default_rng(0), [raw["images"][0]], [_bytes(env)]
    for _ in range(steps):
        pictures.append(env.step(expert(rng))[0]["images"][0])
        states.append(_bytes(env))
    env.close()
    return np.stack(pictures), states


def _bytes(env) -> bytes:
    state = env.snapshot()
    return state.physics.tobytes() + b"".join(k.encode() + v.tobytes() for k, v in sorted(state.model.items()))


@pytest.fixture(scope="module")
def plain():
    return _episode()


def test_strength_0_is_the_environment_to_the_byte(plain):
    pictures, states = _episode(**dict.fromkeys(FACTORS, 0.0))
    assert states == plain[1] and pictures.tobytes() == plain[0].tobytes()
    env = make(**dict.fromkeys(FACTORS, 0.0))
    shown = env.reset(seed=1)[0]["images"]
    untouched = Renderer(env._mujoco, env._sim.model, env._sim.data, cameras=env.cameras, height=48, width=48)
    assert untouched.render().tobytes() == shown.tobytes() and "variation_seed" not in env.snapshot().attributes
    untouched.close(), env.close()


@pytest.mark.parametrize("factor", VISUAL)
def test_visual_factors_change_pictures_with_their_strength_and_never_the_physics(factor, plain):
    change = []
    for severity in (0.25, 1.0):
        pictures, states = _episode(**{factor: severity})
        assert states == plain[1]
        change.append(np.abs(pictures.astype(int) - plain[0]).mean((1, 2, 3)))
    assert (change[0] > 0).all() and (change[1] > 1.5 * change[0]).all()


def test_the_hand_begins_elsewhere_and_the_objects_where_they_were():
    starts = {}
    for severity in (0.0, 0.5, 1.0):
        env = make(initial_pose=severity)
        raw, _ = env.reset(seed=2, render=False)
        starts[severity] = raw["proprio"][:3].astype(float)
        things = env._sim._last_stable_obs[4:7], env.snapshot().model["body_pos"]
        np.testing.assert_allclose(things[0], (first := things if not severity else first)[0], atol=1e-6)
        assert np.array_equal(things[1], first[1])
    half, whole = (starts[s] - starts[0.0] for s in (0.5, 1.0))
    assert np.linalg.norm(half) == pytest.approx(0.05, abs=0.003) and np.linalg.norm(whole) == pytest.approx(
        0.1, abs=0.005
    )
    assert half @ whole > 0.99 * np.linalg.norm(half) * np.linalg.norm(whole) and whole[2] >= 0
    expert, rng = env.expert(), np.random.default_rng(0)
    assert any(env.step(expert(rng), render=False)[4]["success"] for _ in range(150))


def test_a_start_outside_the_hands_range_goes_the_other_way():
    env = make_env("metaworld", task="button-press-topdown-v3", initial_pose=1.0)  # begins at the edge, y = 0.4
    for seed in range(4):
        hand = env.reset(seed=seed, render=False)[0]["proprio"]
        assert hand[1] > 0.39 and np.linalg.norm(hand[:3] - (0, 0.4, 0.2)) == pytest.approx(0.1, abs=0.02)


def test_a_seed_draws_the_same_whatever_happened_before_and_another_one_another():
    options = dict.fromkeys(FACTORS, 1.0)
    env = make(**options)
    first = env.reset(seed=4)[0]["images"]
    other = env.reset(seed=5)[0]["images"]
    env.step(np.ones(4))
    again = env.reset(seed=4)[0]["images"]
    env.close()
    assert np.array_equal(first, again) and np.abs(first.astype(int) - other).mean() > 5


@pytest.mark.parametrize("factor", FACTORS)
def test_a_snapshot_comes_back_to_the_byte_in_another_environment(factor):
    env, fresh = make(**{factor: 0.7}), make(**{factor: 0.7})
    env.reset(seed=3)
    env.step(np.ones(4))
    snapshot, action = env.snapshot(), np.array([0.5, -0.5, 0.2, 1])
    on = env.step(action)[0]["images"]
    env.reset(seed=8)
    for place in (env, fresh):
        place.restore(snapshot)
        assert np.array_equal(place.step(action)[0]["images"], on)
    env.close(), fresh.close()


def test_a_snapshot_of_the_plain_environment_does_not_say_what_to_draw():
    plain, env = make(), make(lighting=1.0)
    plain.reset(seed=3)
    with pytest.raises(WamkitError, match="taken without factors of variation"):
        env.restore(plain.snapshot())
    plain.close(), env.close()


@pytest.mark.parametrize("camera", ["corner2", "topview"])
def test_the_camera_goes_around_the_point_that_it_looks_at(camera):
    env = make(cameras=(camera,), camera_shift=0.5, point_grid=8)
    raw, _ = env.reset(seed=6)
    model, data = env._sim.model, env._sim.data
    k = model.camera(camera).id
    place, back = data.cam_xpos[k].copy(), data.cam_xmat[k].reshape(3, 3)[:, 2].copy()
    target = place - back * place[2] / back[2]
    with env._variation.camera():
        moved, turned = data.cam_xpos[k].copy(), data.cam_xmat[k].reshape(3, 3).copy()
    assert np.array_equal(data.cam_xpos[k], place)
    np.testing.assert_allclose((moved - target) / np.linalg.norm(moved - target), turned[:, 2], atol=1e-9)
    assert np.degrees(np.arccos(turned[:, 2] @ back)) == pytest.approx(CAMERA_TURN / 2)
    nearer = np.linalg.norm(moved - target) / np.linalg.norm(place - target)
    assert nearer == pytest.approx(1 + 0.075 * sample_direction(6, 1).nearer)
    # The depth camera goes with it: every point lies behind its own pixel.
    local = (raw["point_cloud"][:, :3] - moved) @ turned
    sign = -1 if env._renderer.turned[0] else 1
    right = sign * local[:, 0] / -local[:, 2] / np.tan(np.radians(model.cam_fovy[k]) / 2)
    np.testing.assert_allclose(right.reshape(8, 8)[0], (2 * np.arange(8) + 1) / 8 - 1, atol=1e-4)
    env.close()


def test_all_light_is_multiplied_and_the_lamps_turn():
    found = {}
    for severity in (0.0, 0.5, 1.0):
        env = make(lighting=severity)
        env.reset(seed=7)
        scene = env._renderer._scene
        lights = [scene.lights[i] for i in range(scene.nlight)]
        found[severity] = np.array([x.diffuse for x in lights]), np.array([x.dir for x in lights])
        env.close()
    drawn = sample_direction(7, 1)
    warm = 0.25 * drawn.warmth * np.array([1, 0, -1])
    for s in (0.5, 1.0):
        np.testing.assert_allclose(found[s][0] / found[0.0][0], [drawn.brightness**s * (1 + s * warm)] * 4, rtol=1e-5)
    before, after = found[0.0][1], found[1.0][1]
    np.testing.assert_allclose(after[0], before[0])  # the camera's own
    quarter = drawn.light_turn * np.stack([-before[1:, 1], before[1:, 0]], 1)
    np.testing.assert_allclose(after[1:, :2], quarter, atol=1e-6)
    np.testing.assert_allclose(after[1:, 2], before[1:, 2], atol=1e-6)


def test_the_robot_keeps_its_colours_and_all_else_does_not():
    plain, env = make(supersample=1), make(supersample=1, colours=1.0)
    a, b = plain.reset(seed=1)[0]["images"][0], env.reset(seed=1)[0]["images"][0]
    geom, model = plain._renderer.segmentation()[0], plain._sim.model
    robot = (model.body_rootid == model.body("base").id)[model.geom_bodyid[geom]]
    changed = (a != b).any(0)
    assert robot.sum() > 100 and not changed[(geom < 0) | robot].any() and changed[(geom >= 0) & ~robot].mean() > 0.95
    plain.close(), env.close()


def test_every_factor_draws_alone_and_distractors_stand_apart_beside_the_workspace():
    few, many = sample_direction(9, 3), sample_direction(9, 30)
    assert few.objects == many.objects and few.orbit == many.orbit and np.array_equal(few.colour, many.colour[:3])
    places = np.array([o.position for seed in range(20) for o in sample_direction(seed, 1).objects]).reshape(
        20, OBJECTS, 3
    )
    assert (np.abs(places[..., 0]) >= 0.36).all() and (np.abs(places[..., 0]) <= 0.6).all()
    gaps = np.linalg.norm(places[:, :, None, :2] - places[:, None, :, :2], axis=-1) + np.eye(OBJECTS)
    assert gaps.min() >= 0.12
    assert len({sample_direction(s, 1).brightness for s in range(20)}) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lighting": 1.5}, "lighting = 1.5: must be between 0 and 1"),
        ({"camera_shift": -0.1}, "camera_shift = -0.1: must be between"),
        ({"initial_pose": float("nan")}, "initial_pose = nan: must be between"),
        ({"distractors": 0.5, "point_grid": 8}, "distractors = 0.5: must be 0 with point_grid"),
        ({"colors": 0.5}, "colors: unknown key.*did you mean 'colours'"),
    ],
)
def test_what_is_no_strength_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)
