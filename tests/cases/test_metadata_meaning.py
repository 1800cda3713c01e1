"""Direction, reference and unit of actions: read from the source, one meaning a place, and compared with the values."""

from __future__ import annotations

import dataclasses
import json

import h5py
import numpy as np
import pytest
from tests.cases.lerobot_folders import square_frames

from wamkit.cli.main import main
from wamkit.data.claims import Values, misfits
from wamkit.data.embodiment import SourceData, fit
from wamkit.data.format.metadata_io import load_metadata
from wamkit.data.format.store import Store
from wamkit.data.importers import aloha, calvin, libero
from wamkit.metadata import CameraFacts, DatasetMetadata, Field

VIEW = {"c": CameraFacts("scene")}
STATE = (
    Field("position", 0, 3, "position", frame="world", unit="m"),
    Field("gripper", 3, 4, "gripper", unit="1", larger="opens"),
)
ACTION = (
    Field("position", 0, 3, "position", "delta", frame="base", unit="1"),
    Field("gripper", 3, 4, "gripper", unit="1", larger="closes"),
)


def source(name: str, state: tuple[Field, ...], action: tuple[Field, ...], closed: float, opened: float) -> SourceData:
    rng = np.random.default_rng(len(name))
    s, a = rng.normal(size=(32, state[-1].stop)), rng.normal(size=(32, action[-1].stop)).clip(-1, 1)
    a[:16, -1], a[16:, -1] = closed, opened
    metadata = DatasetMetadata(name, name, "delta", 20, state=state, action=action, cameras=VIEW)
    return SourceData(metadata, s.astype("f4"), a.astype("f4"), np.zeros(32, int), ("c",))


def gripper_value(robot, source: SourceData, command: float) -> tuple[int, float]:
    action = np.zeros((1, 1, source.action.shape[1]), "f4")
    action[..., -1] = command
    at = [p.at for p in robot.action if p.field.kind == "gripper"][-1]
    encoded = robot.encode_action(action, source.state[:1])
    # -> back to the robot's own command, exactly
    assert robot.decode_action(encoded, source.state[:1])[0, 0, -1] == pytest.approx(command)
    return at, float(encoded[0, 0, at])


def test_grippers_of_opposite_direction_have_one_meaning() -> None:
    made = [
        (source("CALVIN", calvin.STATE, calvin.ACTIONS["rel_actions"], -1, 1), -1, 1),
        (source("LIBERO", libero.STATE, libero.ACTION, 1, -1), 1, -1),
        (source("ALOHA", aloha.FIELDS, aloha.FIELDS, 0, 1), 0, 1),
    ]
    robots = fit([s for s, _, _ in made], ("scene",))
    closed = {gripper_value(r, s, c) for r, (s, c, _) in zip(robots, made, strict=True) if s.metadata.source != "ALOHA"}
    opened = {gripper_value(r, s, o) for r, (s, _, o) in zip(robots, made, strict=True) if s.metadata.source != "ALOHA"}
    assert len({at for at, _ in closed}) == len(closed) == len(opened) == 1 and closed != opened
    # ALOHA's right hand has a slot of its own, but its left one shares the place, and means the same in it.
    left = next(p for p in robots[2].action if p.field.name == "left_gripper")
    assert left.at == next(iter(closed))[0] and not left.turned


def test_unknown_direction_has_a_place_of_its_own() -> None:
    blank = lambda fields: tuple(dataclasses.replace(f, larger="") for f in fields)  # noqa: E731
    known = source("known", STATE, ACTION, 1, -1)
    unknown = [source(n, blank(STATE), blank(ACTION), 0, 1) for n in ("first", "second")]
    robots = fit([known, *unknown], ("scene",))
    at = [next(p.at for p in r.action if p.field.kind == "gripper") for r in robots]
    assert len(set(at)) == 3 and len({r.action[0].at for r in robots}) == 1  # positions are shared as before


def test_one_robot_with_two_conventions_is_two_robots() -> None:
    opposite = (ACTION[0], dataclasses.replace(ACTION[1], larger="opens"))
    one, other = source("arm", STATE, ACTION, 1, -1), source("arm", STATE, opposite, -1, 1)
    robots = fit([one, other], ("scene",))
    assert gripper_value(robots[0], one, 1.0) == gripper_value(robots[1], other, -1.0)


def robomimic(path, controller: dict, steps: int = 30) -> None:
    with h5py.File(path, "w") as file:
        group = file.create_group("data")
        kwargs = {"control_freq": 20, "robots": ["Panda"], "controller_configs": controller}
        group.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": kwargs})
        for i in range(3):
            demo, rng = group.create_group(f"demo_{i}"), np.random.default_rng(i)
            position = np.cumsum(rng.normal(0, 0.004, (steps, 3)), 0) + [0.1, 0, 0.9]
            demo["actions"] = np.c_[np.r_[position[1:], position[-1:]], np.zeros((steps, 3)), np.ones(steps)]
            obs = demo.create_group("obs")
            obs["robot0_eef_pos"], obs["robot0_eef_quat"] = position, np.tile([0, 0, 0, 1.0], (steps, 1))
            obs["robot0_gripper_qpos"] = np.tile([0.02, -0.02], (steps, 1))
            obs["agentview_image"] = square_frames(steps, 48, 64, i)


@pytest.mark.parametrize(
    "controller",
    [
        {"type": "OSC_POSE", "control_delta": False},
        {"type": "BASIC", "body_parts": {"right": {"type": "OSC_POSE", "input_type": "absolute"}}},
    ],
)
def test_absolute_actions_of_robomimic_are_absolute_in_metres(tmp_path, controller, capsys) -> None:
    robomimic(tmp_path / "abs.hdf5", controller)
    assert main(["import", "robomimic", str(tmp_path / "abs.hdf5"), "--out", str(tmp_path / "out")]) == 0
    metadata = load_metadata(tmp_path / "out")
    position, rotation, gripper = metadata.action
    assert (position.representation, position.unit, rotation.representation) == ("absolute", "m", "absolute")
    assert metadata.control_mode == "OSC_POSE absolute" and gripper.larger == "closes"
    assert list(misfits(metadata, values(Store.open(tmp_path / "out")))) == []


def test_a_wrong_label_is_found_and_an_option_corrects_it(tmp_path, capsys) -> None:
    """env_args say delta, as those of files whose actions were converted later still do."""
    robomimic(tmp_path / "said.hdf5", {"type": "OSC_POSE", "control_delta": True})
    command = ["import", "robomimic", str(tmp_path / "said.hdf5"), "--out"]
    assert main([*command, str(tmp_path / "out")]) == 0
    main(["validate", str(tmp_path / "out"), "--out", str(tmp_path / "page.html")])
    said = capsys.readouterr().out
    assert (
        "warning: action.eef_position.representation is 'delta', but its values are where the state goes next" in said
    )
    assert "'absolute' fits: wamkit describe" in said
    assert main([*command, str(tmp_path / "right"), "--options.control", "absolute"]) == 0
    main(["validate", str(tmp_path / "right"), "--out", str(tmp_path / "page.html")])
    assert "representation" not in capsys.readouterr().out


def values(store: Store) -> Values:
    columns = store.numeric()
    return Values(columns["observation.state"], columns["action"], columns["episode_index"])


def moves(rows: int = 200, episodes: int = 5, opens: float = -1.0) -> tuple[DatasetMetadata, Values]:
    """Deltas that move the position, and a gripper that follows its command three steps later. opens: the command."""
    rng = np.random.default_rng(0)
    action = rng.normal(0, 1, (rows, 4))
    action[:, 3] = np.where(np.arange(rows) // 10 % 2, opens, -opens)
    state = np.zeros((rows, 4))
    state[1:, :3] = np.cumsum(0.02 * action[:-1, :3], 0)
    state[:, 3] = 0.5 + 0.5 * np.roll(action[:, 3] * opens, 3)
    metadata = DatasetMetadata("x", "arm", state=STATE, action=ACTION)
    return metadata, Values(state, action, np.arange(rows) * episodes // rows)


def labels(metadata: DatasetMetadata, values: Values) -> dict[str, str]:
    return {m.entry: m.fits for m in misfits(metadata, values)}


def test_labels_are_compared_with_the_values() -> None:
    metadata, x = moves()
    assert labels(metadata, x) == {}
    absolute = dataclasses.replace(
        metadata, action=(dataclasses.replace(ACTION[0], representation="absolute"), ACTION[1])
    )
    assert labels(absolute, x) == {"action.position.representation": "delta"}
    assert labels(metadata, moves(opens=1.0)[1]) == {"action.gripper.larger": "opens"}
    turned = np.degrees(x.state)
    joints = dataclasses.replace(metadata, state=(Field("joints", 0, 3, "joint", unit="rad"), STATE[1]), action=())
    assert labels(joints, dataclasses.replace(x, state=turned)) == {"state.joints.unit": "deg"}
    quaternion = (Field("turn", 0, 4, "rotation", rotation="quat_xyzw"),)
    assert labels(dataclasses.replace(metadata, state=quaternion, action=()), x) == {"state.turn.rotation": ""}


def test_nothing_is_claimed_of_few_or_unmoved_rows() -> None:
    metadata, x = moves()
    absolute = dataclasses.replace(
        metadata, action=(dataclasses.replace(ACTION[0], representation="absolute"), ACTION[1])
    )
    few = Values(x.state[:40], x.action[:40], x.episode[:40])
    still = Values(np.zeros_like(x.state), x.action, x.episode)
    noise = Values(np.random.default_rng(1).normal(size=x.state.shape), x.action, x.episode)
    for data in (few, still, noise, Values(x.state[:0], x.action[:0], x.episode[:0])):
        assert labels(absolute, data) == {}
