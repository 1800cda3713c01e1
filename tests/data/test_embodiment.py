"""Numbers of many robots in one space: there and back, who shares a place, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from wamkit.data.embodiment import SourceData, fit
from wamkit.data.rotations import SIZES, from_matrix, to_matrix
from wamkit.metadata import CameraFacts, DatasetMetadata, Field
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
        Field("width", 3 + n, 4 + n, "gripper", unit="m"),
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
        action=(Field("q", 0, 2, "joint", unit="rad"), Field("width", 2, 3, "gripper", unit="m")), cameras=SCENE,
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
