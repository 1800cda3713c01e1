"""Numbers of many robots in one space: there and back, who shares a place, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from wamkit import old_names
from wamkit.config import from_dict, to_dict
from wamkit.data.embodiment import Embodiment, FieldSlot, SourceData, fit
from wamkit.data.rotations import SIZES, from_matrix, to_matrix
from wamkit.metadata import CameraFacts, DatasetMetadata, Field
from wamkit.nn.scaling import LIMIT
from wamkit.types import Observation, WamkitError

SCENE = {"front": CameraFacts("scene")}


def numbers(metadata: DatasetMetadata, rows: int = 60, seed: int = 0, cameras=("front",)) -> SourceData:
    """Random numbers that mean what `meaning` says: rotations are rotations."""
    rng = np.random.default_rng(seed)

    def column(fields):
        out = np.zeros((rows, max((f.stop for f in fields), default=0)), np.float32)
        for f in fields:
            turn = from_matrix(Rotation.random(rows, rng).as_matrix(), f.rotation) if f.rotation else None
            out[:, f.start : f.stop] = rng.normal(0.3, 0.2, (rows, f.stop - f.start)) if turn is None else turn
        return out

    return SourceData(metadata, column(metadata.state), column(metadata.action), np.arange(rows) // 20, cameras)


def arm(rotation: str, representation: str = "absolute", embodiment: str = "arm", **more) -> DatasetMetadata:
    """A gripper that moves freely: position, rotation, width."""
    n = SIZES[rotation]
    fields = (
        Field("position", 0, 3, "position", representation, unit="m"),
        Field("rotation", 3, 3 + n, "rotation", representation, rotation),
        Field("width", 3 + n, 4 + n, "gripper", unit="m", larger="opens"),
    )
    state = tuple(replace(f, representation="absolute") for f in fields)
    return DatasetMetadata("test", embodiment, representation, state=state, action=fields, cameras=SCENE | more)


@pytest.mark.parametrize("written", sorted(SIZES))
def test_rotations_there_and_back(written):
    R = Rotation.random(50, np.random.default_rng(0)).as_matrix().reshape(5, 10, 3, 3)
    x = from_matrix(R, written)
    assert x.shape == (5, 10, SIZES[written])
    np.testing.assert_allclose(to_matrix(x, written), R, atol=1e-7)


def test_rotations_known_answers():
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # about z
    half = np.sqrt(0.5)
    for written, value in {
        "axis_angle": [0, 0, np.pi / 2],
        "euler_xyz": [0, 0, np.pi / 2],
        "quat_xyzw": [0, 0, half, half],
        "quat_wxyz": [half, 0, 0, half],
        "rot6d": [0, -1, 0, 1, 0, 0],
    }.items():
        np.testing.assert_allclose(from_matrix(quarter, written), value, atol=1e-7)
        np.testing.assert_allclose(to_matrix(np.array(value), written), quarter, atol=1e-7)
    skewed = to_matrix(np.array([2.0, 0, 0, 5, 3, 0]), "rot6d")  # any two directions are a rotation
    np.testing.assert_allclose(skewed, np.eye(3), atol=1e-7)
    assert np.array_equal(to_matrix(np.zeros(4), "quat_xyzw"), np.eye(3))
    with pytest.raises(ValueError, match="no representation of rotations 'quat'"):
        to_matrix(np.zeros(4), "quat")


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(sorted(SIZES)), st.sampled_from(["absolute", "delta"]), st.booleans(), st.integers(0, 100),
    st.sampled_from(["mean_std", "quantiles", "min_max", "none"]),
)  # fmt: skip
def test_actions_there_and_back(written, representation, relative, seed, kind):
    """Whatever the rotation, representation and normaliser: decoding what was encoded gives the same motion."""
    source = numbers(arm(written, representation), seed=seed)
    (robot,) = fit([source], ("scene",), relative=relative, normalisers={"position": kind, "gripper": kind})
    action, state = source.action.reshape(3, 20, -1), source.state[::20]
    back = robot.decode_action(robot.encode_action(action, state), state)
    turn = slice(3, 3 + SIZES[written])
    np.testing.assert_allclose(back[..., :3], action[..., :3], atol=2e-6)
    np.testing.assert_allclose(to_matrix(back[..., turn], written), to_matrix(action[..., turn], written), atol=2e-6)
    np.testing.assert_allclose(back[..., -1], action[..., -1], atol=2e-6)


def test_relative_is_what_the_hand_itself_would_measure():
    """A hand turned by a quarter about z that moves along the world's x moves along its own -y, wherever it was."""
    turn = from_matrix(Rotation.from_euler("z", 90, degrees=True).as_matrix(), "quat_xyzw")
    state = np.array([[1.0, 2, 3, *turn, 0.05]], np.float32)
    action = state[:, None] + np.array([0.1, 0, 0, 0, 0, 0, 0, 0], np.float32)
    (robot,) = fit([numbers(arm("quat_xyzw"))], ("scene",), normalisers={"position": "none", "gripper": "none"})
    out = robot.encode_action(action, state)[0, 0]
    np.testing.assert_allclose(out[:3], [0, -0.1, 0], atol=1e-6)
    np.testing.assert_allclose(out[3:9], [1, 0, 0, 0, 1, 0], atol=1e-6)  # it did not turn
    shift = np.array([5.0, -4, 1, 0, 0, 0, 0, 0], np.float32)
    np.testing.assert_allclose(robot.encode_action(action + shift, state + shift)[0, 0], out, atol=1e-6)


def test_who_means_the_same_shares_a_place():
    """Two representations of a rotation share their slot, joints get another, and masks mark the dimensions of each."""
    joints = DatasetMetadata(
        "joints", "joints", "absolute", state=(Field("q", 0, 2, "joint", unit="rad"),),
        action=(Field("q", 0, 2, "joint", unit="rad"), Field("width", 2, 3, "gripper", unit="m", larger="opens")),
        cameras=SCENE,
    )  # fmt: skip
    quaternion, angle = arm("quat_xyzw", embodiment="a"), arm("axis_angle", embodiment="b")
    a, b, c = fit([numbers(quaternion), numbers(angle), numbers(joints)], ("scene",))
    assert [p.at for p in a.action] == [p.at for p in b.action] == [0, 3, 9]
    assert [p.at for p in c.action] == [10, 9] and a.action_size == 12
    assert a.has_action().tolist() == [True] * 10 + [False] * 2
    assert c.has_action().tolist() == [False] * 9 + [True] * 3
    chunk = np.ones((1, 4, 3), np.float32)
    assert (c.encode_action(chunk, np.ones((1, 2), np.float32))[..., :9] == 0).all()


def test_statistics_are_of_one_robot_under_one_control_mode():
    """Data sets of one robot share them; another robot's do not move them."""
    first, second = numbers(arm("axis_angle"), seed=1), numbers(arm("axis_angle"), seed=2)
    far = replace(numbers(arm("axis_angle", embodiment="other"), seed=3))
    far = replace(far, state=far.state * 100)
    alone = fit([first, second], ("scene",))
    beside = fit([first, second, far], ("scene",))
    assert alone[0].state == alone[1].state == beside[0].state != beside[2].state
    unified = np.concatenate([alone[0].encode_state(x.state) for x in (first, second)])
    np.testing.assert_allclose(unified[:, :3].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(unified[:, :3].std(0), 1, atol=1e-5)
    grip = unified[:, 9]
    np.testing.assert_allclose([grip.min(), grip.max()], [-1, 1], atol=1e-5)  # a gripper: by its range


def test_a_number_that_never_moves_becomes_nothing():
    source = numbers(arm("axis_angle"))
    still = replace(source, state=np.where(np.arange(source.state.shape[1]) == 1, 0.7, source.state).astype(np.float32))
    (robot,) = fit([still], ("scene",))
    np.testing.assert_allclose(robot.encode_state(still.state)[:, 1], 0, atol=1e-6)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("representation", ["absolute", "delta"])
@pytest.mark.parametrize("written", sorted(SIZES))
def test_a_locked_axis_comes_back_as_recorded_whatever_is_decoded(written, representation, relative):
    """Also where the pose is relative to a robot that moves, or a rotation takes another form on the way."""
    source, turn = numbers(arm(written, representation)), slice(3, 3 + SIZES[written])
    rng, width = np.random.default_rng(1), 3 + SIZES[written]
    for fixed in ([1], [width], [1, *range(*turn.indices(99)), width]):
        action = source.action.copy()
        action[:, fixed] = action[0, fixed]
        (robot,) = fit([replace(source, action=action)], ("scene",), relative=relative)
        assert [i for i, _ in robot.locked] == fixed
        wild = rng.normal(0, 3, (3, 20, robot.action_size)).astype(np.float32)
        out = robot.decode_action(wild, source.state[::20])
        assert (out[..., fixed] == action[0, fixed]).all() and out[..., 0].std() > 0.1
        back = robot.decode_action(
            robot.encode_action(action.reshape(3, 20, -1), source.state[::20]), source.state[::20]
        )
        np.testing.assert_allclose(back[..., :3], action.reshape(3, 20, -1)[..., :3], atol=2e-6)


def test_one_robot_may_lock_what_another_moves():
    """They share a slot, and each has its own statistics; data sets of one robot share theirs."""
    free = numbers(arm("axis_angle", embodiment="free"), seed=1)
    fixed = numbers(arm("axis_angle", embodiment="fixed"), seed=2)
    stopped = np.where(np.arange(7) == 2, 0.25, fixed.action).astype(np.float32)
    a, b = fit([free, replace(fixed, action=stopped)], ("scene",), relative=False)
    assert a.action[0].at == b.action[0].at and a.locked == () and b.locked == ((2, 0.25),)
    wild = np.random.default_rng(0).normal(0, 1, (1, 4, a.action_size)).astype(np.float32)
    assert (b.decode_action(wild, fixed.state[:1])[..., 2] == 0.25).all()
    assert (a.decode_action(wild, free.state[:1])[..., 2] != 0.25).all()
    assert (b.encode_action(stopped[None] + 0.1, fixed.state[:1])[..., b.action[0].at + 2] == 0).all()
    elsewhere = replace(fixed, action=np.where(np.arange(7) == 2, 0.75, fixed.action).astype(np.float32))
    both = fit([replace(fixed, action=stopped), elsewhere], ("scene",), relative=False)
    assert both[0].locked == both[1].locked == ()  # it stands elsewhere in the other data set: it moves


@pytest.mark.parametrize("lengths", [(20, 20, 20), (5, 33, 16, 1, 5)])
def test_statistics_count_every_step_however_episodes_and_chunks_meet(lengths):
    """A finger that closes once, wherever that is, is no constant."""
    for at in range(60):
        source = numbers(arm("axis_angle", "delta"))
        action = source.action.copy()
        action[:, -1] = np.arange(60) == at
        source = replace(source, action=action, episode=np.repeat(np.arange(len(lengths)), lengths))
        (robot,) = fit([source], ("scene",), chunk=16)
        assert robot.action[-1].scale == (0.5,) and robot.locked == ()


def test_the_run_chooses_the_normaliser_of_what_has_none_of_its_own():
    source = numbers(arm("axis_angle", "delta"), rows=240)
    action = source.action.copy()
    action[13, 0] = 30  # beside a deviation of 0.2
    for how, usual in (("mean_std", 0.2), ("quantiles", 0.43), ("min_max", 0.1)):
        (robot,) = fit([replace(source, action=action)], ("scene",), normalisation=how)
        position, rotation, width = robot.action
        encoded = robot.encode_action(action[None], source.state[:1])[0]
        assert np.delete(encoded[:, 0], 13).std() == pytest.approx(usual, rel=0.3 if how == "quantiles" else 0.9)
        assert position.limit == rotation.limit == (LIMIT if how == "quantiles" else 0) and width.limit == 0
        np.testing.assert_allclose([encoded[:, 6].min(), encoded[:, 6].max()], [-1, 1], atol=1e-5)
        assert encoded[13, 0] <= LIMIT or how != "quantiles"


def test_constants_in_files_of_earlier_versions():
    """They had the scale 1. A range of -1 to 1 has it too, so that a gripper's is left as it is."""
    fields = (
        Field("joints", 0, 2, "joint", unit="rad"),
        Field("width", 2, 3, "gripper"),
        Field("turn", 3, 6, "rotation", "absolute", "axis_angle"),
    )
    slots = tuple(
        FieldSlot(f, 0, f.stop - f.start, shift=(0.5,) * 9, scale=(1.0, 0.3, 1.0)[: f.stop - f.start]) for f in fields
    )
    old = to_dict(Embodiment("arm", "absolute", (0,), (), slots, 0, 6))
    for slot in old["action"]:
        del slot["limit"], slot["turned"], slot["field"]["larger"], slot["field"]["reference"]
    del old["locked"]
    data = {"embodiments": {"a": old}, "train": {}, "mixture": {"normalisers": {"turn": "min_max"}}}
    new = from_dict(Embodiment, old_names.run_config(data)["embodiments"]["a"])
    assert [slot.scale for slot in new.action] == [(0.0, 0.3), (1.0,), (1.0, 0.3, 1.0)]
    current = data | {"train": {"normalisation": "mean_std"}}
    assert old_names.run_config(current)["embodiments"]["a"] == old
    assert (
        old_names.without_added({"embodiments": {"a": to_dict(new)}})["embodiments"]["a"]["action"][1]
        == old["action"][1]
    )


def test_two_arms_each_start_from_their_own_place():
    left = arm("rot6d")
    fields = tuple(replace(f, name=f"right {f.name}", start=f.start + 10, stop=f.stop + 10) for f in left.state)
    both = replace(left, state=left.state + fields, action=left.action + fields)
    source = numbers(both)
    (robot,) = fit([source], ("scene",), normalisers={"position": "none"})
    assert [p.at for p in robot.action] == [0, 3, 9, 10, 13, 19]
    out = robot.encode_action(source.state[:1, None], source.state[:1])  # the arms stay where they are
    for at in (0, 10):
        np.testing.assert_allclose(out[0, 0, at : at + 9], [0, 0, 0, 1, 0, 0, 0, 1, 0], atol=1e-6)


def test_what_a_model_is_shown_of_a_robot():
    cameras = {"front": CameraFacts("scene"), "hand": CameraFacts("wrist")}
    source = replace(numbers(arm("axis_angle", **cameras)), cameras=("hand", "front"))
    (robot,) = fit([source], ("scene", "ego", "wrist"))
    assert robot.views == (1, -1, 0) and robot.has_view().tolist() == [True, False, True]
    pictures = np.stack([np.full((3, 4, 4), v, np.uint8) for v in (10, 20)])
    seen = robot.observation(Observation(pictures, source.state[0], "go"))
    assert seen.images[:, 0, 0, 0].tolist() == [20, 0, 10] and seen.proprio.shape == (10,)
    assert np.array_equal(robot.to_robot_views(seen.images), pictures)


def test_what_nobody_gave_a_meaning_is_refused():
    whole = arm("axis_angle")
    for metadata, message in (
        (replace(whole, action=whole.action[:2]), "6 of 7 dimensions of its action have metadata"),
        (replace(whole, embodiment=""), "its robot is not known"),
        (replace(whole, cameras={}), "the role of camera front is not known"),
    ):
        source = replace(numbers(whole), metadata=metadata)
        with pytest.raises(WamkitError, match=message):
            fit([source], ("scene",))
    with pytest.raises(WamkitError, match="none of its cameras is one of wrist; it has scene"):
        fit([numbers(whole)], ("wrist",))


def test_video_without_actions_has_no_vectors():
    video = DatasetMetadata("video", "", cameras={"eye": CameraFacts("ego")})
    silent = SourceData(
        video, np.zeros((5, 0), np.float32), np.zeros((5, 0), np.float32), np.zeros(5, np.int64), ("eye",)
    )
    robot, eye = fit([numbers(arm("axis_angle")), silent], ("scene", "ego"))
    assert not eye.has_action().any() and not eye.has_state().any() and eye.views == (-1, 0)
    assert eye.encode_state(silent.state).shape == (5, robot.state_size)
