"""Figures of motion and physics against closed forms, on broken predictions of real scenes, and what they refuse."""

import math

import numpy as np
import pytest

from wamkit.envs import make_env, read_ground_truth
from wamkit.eval.metrics import motion
from wamkit.eval.metrics import physics as physical
from wamkit.eval.probes.object_state import States
from wamkit.eval.suites.physics_scenes import ERRORS, errors, true_states
from wamkit.types import EvaluationError

DT = 0.02
RNG = np.random.default_rng(0)


def _ballistic(T=20):
    t = DT * np.arange(T)
    return np.stack([0.3 * t, 0 * t, 0.5 + 1.0 * t - 4.905 * t**2], -1)[:, None]


def _square(T=6, step=1, size=4, start=2):
    """A square of `size` pixels that moves `step` a frame, (T, 16, 32)."""
    mask = np.zeros((T, 16, 32), bool)
    for t in range(T):
        mask[t, 6 : 6 + size, start + step * t : start + step * t + size] = True
    return mask


# Masks


def test_identical_masks_give_one_and_disjoint_ones_zero():
    mask, other = _square(), np.roll(_square(), 8, axis=1)
    for iou in (motion.spatial_iou, motion.weighted_spatial_iou, lambda a, b: motion.spatiotemporal_iou(a, b).value):
        assert iou(mask, mask) == 1 and iou(mask, other) == 0
    assert motion.area_ratio(mask, mask) == 1 and motion.area_ratio(mask, mask & False) == 0


def test_known_overlaps():
    truth, late = _square(), _square(start=4)  # two of four columns overlap in each frame
    assert motion.spatiotemporal_iou(truth, late) == (2 / 6, 6)
    assert motion.spatial_iou(truth, late) == 7 / 11
    assert motion.spatial_iou(truth, truth[::-1]) == motion.weighted_spatial_iou(truth, truth[::-1]) == 1
    assert motion.spatiotemporal_iou(truth, truth[::-1]).value < 0.5
    assert motion.area_ratio(truth, _square(size=8)) == 4


def test_frames_in_which_nothing_moves_are_skipped_and_counted():
    truth = _square(T=16)
    truth[3:] = False
    assert motion.spatiotemporal_iou(truth, truth) == (1, 3)
    still = motion.physics_iq(truth, truth & False, np.zeros((16, 3, 4, 4)), np.zeros((16, 3, 4, 4), np.uint8))
    assert (still.spatial, still.spatiotemporal, still.weighted, still.mse, still.skipped) == (0, 0, 0, 0, 13)
    nothing = truth & False
    assert math.isnan(motion.spatial_iou(nothing, nothing)) and math.isnan(motion.area_ratio(nothing, nothing))
    value, count = motion.spatiotemporal_iou(nothing, nothing)
    assert math.isnan(value) and count == 0


def test_physics_iq_is_averaged_before_it_is_divided():
    def clip(s, mse=0.0):
        return motion.PhysicsIQ(s, s, s, mse, 1, 0)

    score, ratios = motion.physics_iq_score([clip(0.2), clip(0.6)], [clip(0.4), clip(1.0), clip(math.nan)])
    assert ratios == {name: pytest.approx(0.4 / 0.7) for name in ("spatial", "spatiotemporal", "weighted")}
    assert score == pytest.approx(100 * 0.4 / 0.7)
    assert motion.physics_iq_score([clip(0.7, 0.25)], [clip(0.7, 0.05)])[0] == pytest.approx(80)
    assert motion.physics_iq_score([clip(1.0)], [clip(0.5)])[0] == 100
    with pytest.raises(EvaluationError, match="less jitter"):
        motion.physics_iq_score([clip(0.5)], [clip(0.0)])
    with pytest.raises(EvaluationError, match="nothing moves"):
        motion.physics_iq_score([clip(0.5)], [clip(math.nan)])


def test_only_what_moves_is_in_the_motion_mask():
    masks = np.stack([_square(step=0), _square()], 1)
    position = np.zeros((6, 2, 3))
    position[:, 1, 0] = 0.01 * np.arange(6)
    moving = motion.motion_mask(masks, position, DT)
    assert not moving[0].any() and np.array_equal(moving[1:], _square()[1:])


# Trajectories


def test_distances_of_trajectories_have_their_closed_forms():
    path = np.stack([np.linspace(0, 1, 11), np.zeros(11)], -1)
    aside = path + [0, 0.1]
    for distance in (motion.ade, motion.fde, motion.discrete_frechet, motion.hausdorff):
        assert distance(path, path) == 0 and distance(path, aside) == pytest.approx(0.1)
    assert motion.ndtw(path, path) == 1 and motion.ndtw(path, aside, 0.1) == pytest.approx(math.exp(-1))
    back = path[::-1]
    assert motion.hausdorff(path, back) == 0 and motion.discrete_frechet(path, back) == pytest.approx(1)
    assert motion.speed_w1(path, back) == pytest.approx(0) and motion.speed_w1(path, 2 * path) == pytest.approx(1)
    assert motion.speed_w1(path, 0 * path) == pytest.approx(1) and motion.speed_w1(0 * path, 0 * path) == 0
    assert math.isnan(motion.speed_w1(0 * path, path))
    assert motion.discrete_frechet(path, path[::2]) == pytest.approx(0.1) and motion.ade(path[:1], path[:1]) == 0


def test_figures_grow_with_noise():
    truth = _ballistic()
    noise, free = RNG.standard_normal(truth.shape), np.ones((20, 1), bool)
    rows = []
    for scale in (0, 0.001, 0.01, 0.1):
        x = truth + scale * noise
        a, b = truth[:, 0], x[:, 0]
        energy = physical.mechanical_energy(np.ones(1), (x[1:] + x[:-1]) / 2, np.diff(x, axis=0) / DT)
        paths = (
            motion.ade,
            motion.discrete_frechet,
            motion.hausdorff,
            motion.speed_w1,
            lambda p, q: 1 - motion.ndtw(p, q),
        )
        laws = physical.gravity_error(x, DT, free).value, physical.energy_gain(energy, tolerance=1e-9).value
        rows.append([*(f(a, b) for f in paths), *laws])
    assert np.allclose(rows[0], 0, atol=1e-9) and (np.diff(rows, axis=0) > 0).all()


# Violations


def test_a_ballistic_path_falls_and_a_hovering_one_levitates():
    fall, free, high = _ballistic(), np.ones((20, 1), bool), np.full((20, 1), 0.3)
    hover = np.tile(fall[:1], (20, 1, 1))
    assert physical.gravity_error(fall, DT, free).value < 1e-9
    assert physical.gravity_error(hover, DT, free) == (pytest.approx(1), 18)
    assert physical.levitation(hover, DT, high) == (1, 20) and physical.levitation(fall, DT, high).value == 0
    assert physical.levitation(hover, DT, 0 * high).value == 0
    supported = free.copy()
    supported[::2] = False
    value, count = physical.gravity_error(fall, DT, supported)
    assert math.isnan(value) and count == 0


def test_a_teleport_is_found():
    truth = _ballistic()
    jump = truth.copy()
    jump[10:] += [0.5, 0, 0]
    assert physical.teleports(truth, jump, DT) == (1 / 19, 19) and physical.teleports(truth, truth, DT).value == 0
    still = np.zeros((5, 1, 3))
    assert physical.teleports(still, still, DT).value == 0 and physical.teleports(still, jump[:5], DT).value == 1


def test_permanence_counts_what_is_lost_and_what_is_invented():
    visible = np.array([[1, 1, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0]], bool).T
    present = np.array([[1, 1, 1, 0, 0, 1], [0, 0, 0, 0, 1, 0]], bool).T
    lost, invented, again = physical.permanence(visible, present)
    assert lost == (1 / 4, 4) and invented == (2 / 8, 8) and again == (1 / 2, 2)
    nothing = physical.permanence(visible & False, present & False)
    assert math.isnan(nothing.lost.value) and nothing.invented.value == 0


def test_size_drift_is_beyond_what_really_changes():
    truth = np.array([[1, 2, 4, 0.0]]).T
    assert physical.size_drift(truth, 3 * truth) == (pytest.approx(0), 2)
    assert physical.size_drift(truth, np.ones((4, 1))).value == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert physical.size_drift(truth, 0 * truth).count == 0


def test_penetration_begins_where_contacts_are_softer_than_real():
    distance = np.array([[0.1, -0.001, -0.012, np.nan]]).T
    rate, depth = physical.penetration(distance, 0.002)
    assert rate == (1 / 3, 3) and depth.value == pytest.approx(0.01 / 3)
    assert physical.depth_tolerance(distance, 100) == pytest.approx(0.012)


def test_energy_may_fall_and_only_work_may_raise_it():
    fall = _ballistic()
    energy = physical.mechanical_energy(np.ones(1), (fall[1:] + fall[:-1]) / 2, np.diff(fall, axis=0) / DT)
    assert np.ptp(energy) < 1e-12 and physical.energy_gain(energy).value < 1e-12
    spinning = physical.mechanical_energy(
        np.full(1, 2.0), np.zeros((1, 1, 3)), np.zeros((1, 1, 3)), np.full((1, 3), 0.5), np.full((1, 1, 3), 2.0)
    )
    assert spinning[0, 0] == pytest.approx(3)
    rises = np.array([[3, 2, 2.5, 1, 4.0]]).T
    assert physical.energy_gain(rises) == (pytest.approx(3.5), 4)
    assert physical.energy_gain(rises, 0.5, np.array([0, 0, 0, 2.0])).value == pytest.approx(0.5)
    assert physical.energy_gain(rises, work=np.array([0, 0, 0, np.inf])).value == pytest.approx(0.5)
    passed_on = np.stack([[1, 0.5, 0], [0, 0.5, 1.0]], 1)  # from one object to the other
    assert physical.energy_gain(passed_on).value == 0


def test_momentum_of_a_collision():
    t = np.arange(11)[:, None] - 5
    one = np.where(t < 0, t, 0) * [0.01, 0, 0]
    two = np.where(t > 0, t, 0) * [0.01, 0, 0] + [0.1, 0, 0]
    truth, mass = np.stack([one, two], 1), np.ones(2)
    colliding = (t == 0)[:, 0] | (t == 1)[:, 0]
    assert physical.momentum_error(truth, truth, DT, mass, colliding) == (0, 1)
    stuck = truth.copy()
    stuck[:, 1] = truth[0, 1]
    assert physical.momentum_error(truth, stuck, DT, mass, colliding).value == pytest.approx(1)
    assert physical.momentum_error(truth, truth, DT, mass, colliding & False).count == 0


def test_causes_come_before_effects():
    T = 20
    truth = np.zeros((T, 1, 3))
    truth[10:, 0, 0] = 0.05 * np.arange(1, 11)
    contact = np.zeros((T, 1), bool)
    contact[9:12] = True
    right = physical.contact_causality(truth, truth, contact, contact)
    assert (right.premature.value, right.missed.value, right.lag.value, right.f1) == (0, 0, 0, 1)
    early = physical.contact_causality(truth, np.roll(truth, -4, 0), contact, contact)
    assert early.premature.value == 1 and early.lag == (4, 1)
    never = physical.contact_causality(truth, 0 * truth, contact, contact & False)
    assert never.missed.value == 1 and never.premature.value == 0 and never.f1 == 0 and never.lag.count == 0
    assert math.isnan(physical.contact_causality(truth, truth, contact & False, contact & False).f1)


def test_excess_is_paired_with_its_floor():
    rows = [{"gravity": 1.5, "lost": 0.2}, {"gravity": math.nan, "lost": 0.4}]
    violations = physical.Violations.of(rows, [{"gravity": 1.0, "lost": 0.2}, {"gravity": 1.0, "lost": 0.0}])
    np.testing.assert_allclose(violations.excess("lost"), [0, 0.4])
    assert violations.interval("gravity", np.arange(2), seed=0).value == 0.5
    assert violations.interval("lost", np.arange(2), seed=0).value == pytest.approx(0.2)
    with pytest.raises(EvaluationError, match="not pairs"):
        physical.Violations.of(rows, rows[:1])
    with pytest.raises(EvaluationError, match="no figure 'mass'"):
        violations.excess("mass")


def test_what_cannot_be_judged_is_refused_or_undefined():
    one, none, T = np.zeros((1, 1, 3)), np.zeros((5, 0, 3)), _ballistic()
    flags = np.ones((1, 1), bool)
    with pytest.raises(EvaluationError, match="3 frames, found 1"):
        physical.gravity_error(one, DT, flags)
    with pytest.raises(EvaluationError, match="2 frames, found 1"):
        physical.levitation(one, DT, np.ones((1, 1)))
    with pytest.raises(EvaluationError, match="two frames"):
        physical.energy_gain(np.zeros((1, 1)))
    with pytest.raises(EvaluationError, match="at least one object"):
        physical.teleports(none, none, DT)
    with pytest.raises(EvaluationError, match="does not belong"):
        physical.teleports(T, T[:-1], DT)
    with pytest.raises(EvaluationError, match="one shape"):
        physical.permanence(np.ones((3, 1), bool), np.ones((4, 1), bool))
    with pytest.raises(EvaluationError, match="one length"):
        motion.ade(T[:, 0], T[:-1, 0])
    with pytest.raises(EvaluationError, match="not finite"):
        motion.hausdorff(T[:, 0], T[:, 0] * np.nan)
    with pytest.raises(EvaluationError, match="bool masks"):
        motion.spatial_iou(np.zeros((2, 4, 4), bool), np.zeros((3, 4, 4), bool))
    lost, free = T * np.nan, np.ones((20, 1), bool)
    for figure in (
        physical.gravity_error(lost, DT, free),
        physical.levitation(lost, DT, np.ones((20, 1))),
        physical.teleports(T, lost, DT),
        physical.energy_gain(np.full((5, 1), np.nan)),
        physical.penetration(np.full((5, 1), np.nan)).depth,
        physical.contact_causality(T, lost, free, free).premature,
    ):
        assert math.isnan(figure.value) and figure.count == 0


# Real scenes


def _scene(task, seed, steps=45):
    env = make_env("physics", task=task)
    env.reset(seed=seed, render=False)
    expert, snapshots = env.expert(), [env.snapshot()]
    for _ in range(steps):
        env.step(expert(RNG), render=False)
        snapshots.append(env.snapshot())
    return env, read_ground_truth(env, snapshots)


def _taken(states, frames):
    return States(states.position[frames], states.present[frames], states.area[frames])


def _predictions(truth):
    """The oracle and four broken ones."""
    oracle, T = true_states(truth), len(truth.position)
    gone = (np.arange(T) > 5)[:, None]
    there = oracle.present & ~gone
    deleted = States(np.where(there[..., None], oracle.position, np.nan), there, np.where(there, oracle.area, 0))
    noise = 0.01 * np.random.default_rng(0).standard_normal(oracle.position.shape)
    return {
        "oracle": oracle,
        "copy": _taken(oracle, np.zeros(T, int)),
        "reversed": _taken(oracle, np.arange(T)[::-1]),
        "deleted": deleted,
        "noisy": States(oracle.position + noise, oracle.present, oracle.area),
    }


def test_broken_predictions_of_real_scenes_are_told_from_the_truth():
    found = {}
    for task in ("drop", "slide", "collide", "occlude", "push"):
        env, truth = _scene(task, 1)
        for name, states in _predictions(truth).items():
            found[task, name] = errors(env, truth, states, DT)
            assert tuple(found[task, name]) == ERRORS
        env.close()
        oracle = {k: v for k, v in found[task, "oracle"].items() if not math.isnan(v)}
        assert all(v < 0.03 for v in oracle.values()), (task, oracle)
        assert found[task, "deleted"]["lost"] > 0.7 > found[task, "noisy"]["lost"] == 0
        assert 0 < found[task, "noisy"]["ade"] < found[task, "reversed"]["ade"] and found[task, "copy"]["ade"] > 0
        assert found[task, "noisy"]["energy_gain"] > found[task, "reversed"]["energy_gain"] > oracle["energy_gain"]
    assert found["drop", "copy"]["levitation"] > 0.5 and found["drop", "copy"]["gravity"] == pytest.approx(1)
    assert found["drop", "noisy"]["gravity"] > found["drop", "copy"]["gravity"] > found["drop", "oracle"]["gravity"]
    assert found["collide", "reversed"]["momentum"] > 0.1 and found["slide", "noisy"]["teleports"] > 0.05
    assert found["occlude", "copy"]["invented"] > 0.1 and found["occlude", "deleted"]["lost_again"] == 1
    assert found["push", "copy"]["missed"] == 1 and found["push", "reversed"]["premature"] == 1


def test_takes_of_one_scene_are_the_ceiling_of_physics_iq():
    truth = {}
    for take in (0, 1, 2):
        env = make_env("physics", task="slide", jitter=0.05 if take else 0.0, take=take)
        env.reset(seed=4)
        snapshots = [env.snapshot()]
        for _ in range(25):
            env.step(np.zeros(2), render=False)
            snapshots.append(env.snapshot())
        moved = read_ground_truth(env, snapshots)
        truth[take] = motion.motion_mask(moved.mask, moved.position, DT)
        env.close()
    frames = np.zeros((26, 3, 64, 64), np.uint8)
    ceiling = [motion.physics_iq(truth[1], truth[2], frames, frames)]
    real, still, late = (
        motion.physics_iq_score([motion.physics_iq(truth[0], mask, frames, frames)], ceiling)[0]
        for mask in (truth[1], truth[0] & False, np.roll(truth[0], 6, 0))
    )
    assert 0.3 < ceiling[0].spatiotemporal < 1 and still == 0 < late < real <= 100


def test_sparse_frames_keep_the_contacts_between_them():
    env, truth = _scene("collide", 2)
    env.close()
    few = truth.at(range(0, 46, 8))
    assert few.position.shape[0] == 6 and truth.contact[:, 0, 1].any() and few.contact[:, 0, 1].any()
    assert not truth.contact[::8, 0, 1].any()
    np.testing.assert_array_equal(few.mask, truth.mask[::8])
