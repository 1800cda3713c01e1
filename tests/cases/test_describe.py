"""Metadata of LeRobot data sets of others: inferred from names and values, completed by answers, used by mixtures."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import sys
import time

import numpy as np
import pytest
from tests.cases.lerobot_folders import Recordings, write_v3

from wamkit.cli.main import main
from wamkit.data.description import answered, described, unknown
from wamkit.data.format.metadata_io import load_metadata
from wamkit.data.format.store import Store
from wamkit.metadata import DatasetMetadata, Field

SO101 = [f"{n}.pos" for n in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")]
POSE = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]


def named(root, names: list[str], robot: str = "so101", camera: str = "front", columns=None, **info) -> Store:
    n = len(names)
    features = {key: {"dtype": "float32", "shape": [n], "names": names} for key in ("observation.state", "action")}
    draw = columns or (lambda e, T: {})
    data = Recordings(
        lengths=(40, 40, 40), dims=n, camera=f"observation.images.{camera}", columns=draw,
        features_more=features, info={"robot_type": robot, **info},
    )  # fmt: skip
    return Store.open(write_v3(root, data))


def fields(part: tuple[Field, ...]) -> list[tuple]:
    return [(f.name, f.start, f.stop, f.kind, f.representation, f.rotation, f.larger) for f in part]


def test_names_of_motors_and_poses(tmp_path) -> None:
    arm = described(named(tmp_path / "arm", SO101))
    assert fields(arm.state) == [
        ("joints", 0, 5, "joint", "absolute", "", ""),
        ("gripper", 5, 6, "gripper", "absolute", "", "opens"),
    ]
    assert arm.embodiment == "so101" and arm.cameras["front"].role == "scene" and arm.rate == 10
    assert {"state.joints", "state.gripper", "action.joints", "cameras.front"} <= set(arm.inferred)
    pose = described(named(tmp_path / "pose", POSE, robot="panda", camera="wrist_cam"))
    assert [f[:4] for f in fields(pose.state)] == [
        ("position", 0, 3, "position"), ("rotation", 3, 6, "rotation"), ("gripper", 6, 7, "gripper"),
    ]  # fmt: skip
    assert pose.state[1].rotation == "euler_xyz" and pose.cameras["wrist_cam"].role == "wrist"
    # The values integrate the actions, so these are deltas, whatever their names.
    assert [f.representation for f in pose.action][:2] == ["delta", "delta"]
    two = described(named(tmp_path / "two", ["left_waist", "left_gripper", "right_waist", "right_gripper"], "aloha"))
    assert [f.name for f in two.action] == ["left_joints", "left_gripper", "right_joints", "right_gripper"]


def test_what_names_do_not_tell_stays_open(tmp_path) -> None:
    store = named(tmp_path / "x", ["motor_0", "motor_1", "rx", "gripper"], robot="unknown_arm")
    found = described(store)
    assert [f.kind for f in found.state] == ["other", "rotation", "gripper"]
    assert set(unknown(found, store)) >= {
        "state.other.kind", "state.rotation.rotation", "state.gripper.larger", "action.gripper.larger",
    }  # fmt: skip


def test_describe_prints_and_writes_on_request_alone(tmp_path, capsys) -> None:
    store = named(tmp_path / "data", SO101, robot="")
    root, before = store.root, {p: p.read_bytes() for p in store.root.rglob("*") if p.is_file()}
    assert main(["describe", str(root)]) == 0
    out = capsys.readouterr().out
    assert "0:5 joint absolute" in out and "inferred" in out and "unknown: embodiment: name of" in out
    command = ["describe", str(root), "--set", "embodiment=so101", "action.gripper.larger=closes"]
    assert main([*command, "--out", str(tmp_path / "m.json")]) == 0
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before
    assert json.loads((tmp_path / "m.json").read_text())["embodiment"] == "so101"
    assert main([*command, "--write"]) == 0
    written = load_metadata(root)
    gripper = next(f for f in written.action if f.kind == "gripper")
    assert (
        gripper.larger == "closes" and "action.gripper" not in written.inferred and "state.gripper" in written.inferred
    )
    assert described(Store.open(root)) == written


def test_a_mixture_of_data_of_others_needs_no_import(tmp_path, capsys) -> None:
    one, two = named(tmp_path / "one", SO101), named(tmp_path / "two", POSE, robot="", camera="front")
    command = ["mix", str(one.root), str(two.root), "--out", str(tmp_path / "m.json")]
    assert main(command) == 1
    assert (
        f"embodiment is not known (name of the robot); name it by `wamkit describe {two.root}"
        in capsys.readouterr().err
    )
    assert main(["describe", str(two.root), "--set", "embodiment=panda", "--write"]) == 0
    assert main(command) == 0 and "with actions" in capsys.readouterr().out


def test_answers_make_fields_and_are_checked() -> None:
    whole = DatasetMetadata("x", "arm", state=(Field("other", 0, 7, "other"),), inferred=("state.other",))
    made = answered(whole, {"state.joints": "0:6", "state.gripper": "6:7", "state.gripper.larger": "opens"})
    assert fields(made.state) == [
        ("joints", 0, 6, "joint", "absolute", "", ""),
        ("gripper", 6, 7, "gripper", "absolute", "", "opens"),
    ]
    for entry, value, said in (
        ("state.gripper.larger", "grows", "larger"),
        ("state.hand.larger", "opens", "there is no such entry"),
        ("state.griper.larger", "opens", r"\(did you mean 'state.gripper.larger'\?\)"),
        ("embodyment", "x", r"no such entry \(did you mean 'embodiment'"),
        ("state.grip", "5:7", "has 0:6 of these"),
    ):
        with pytest.raises(Exception, match=said):
            answered(made, {entry: value})


def test_columns_are_named_by_describe(tmp_path, capsys) -> None:
    from tests.cases.test_columns import parts

    root = write_v3(tmp_path / "data", parts())
    answers = ["columns.state=joint_position,gripper_position", "embodiment=arm"]
    assert main(["describe", str(root), "--set", *answers, "--write"]) == 0
    store = Store.open(root)
    assert store.numeric()["observation.state"].shape == (60, 4)
    assert [f.kind for f in load_metadata(root).state] == ["joint", "gripper"]
    assert np.array_equal(store.numeric()["observation.state"][:2, 0], [0, 1])


def on_a_terminal(root, keys: list[tuple[str, str]]) -> tuple[int, str]:
    """Exit code and output of `describe --write` on a pseudo-terminal. keys: (what it must have printed, the keys)."""
    pid, terminal = pty.fork()
    if not pid:  # the child
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a shell's background jobs inherit ignored
        os.execv(sys.executable, [sys.executable, "-m", "wamkit", "describe", str(root), "--write"])
    said, at, until = "", 0, time.monotonic() + 120

    def read(again: str = "") -> str:
        """The next output. again: a key to press every second until there is some."""
        # Python loses a signal between a prompt and the read that follows: a person, too, would press once more.
        while not select.select([terminal], [], [], 1)[0]:
            assert time.monotonic() < until, said
            os.write(terminal, again.encode())
        return os.read(terminal, 4096).decode()

    for wanted, typed in keys:
        while wanted not in said[at:]:
            said += read()
        at = len(said)
        os.write(terminal, typed.encode())
    with contextlib.suppress(OSError):  # how the end of a terminal reads
        while more := read("\x03" if typed == "\x03" else ""):
            said += more
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


def test_questions_on_a_terminal(tmp_path) -> None:
    root = named(tmp_path / "data", ["motor_0", "motor_1", "elbow", "gripper"], robot="", camera="mystery").root
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    code, said = on_a_terminal(root, [("embodiment (name of the robot): ", "arm\n"), ("state.other.kind", "\x03")])
    assert code == 130 and {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before
    code, said = on_a_terminal(
        root,
        [
            ("embodiment (name of the robot): ", "arm\n"),
            ("state.other.kind, of motor_0, motor_1 (joint,", "wheel\n"),  # none of these, so it asks again
            ("state.other.kind, of motor_0, motor_1 (joint,", "joint\n"),
            ("state.other.unit, of motor_0, motor_1 (rad,", "deg\n"),  # a question that the answer before opened
            ("state.joints.unit, of elbow (rad,", "\n"),
            ("state.gripper.larger, of gripper (opens or closes): ", "opens\n"),
            ("action.other.kind", "\x04"),
        ],
    )
    written = load_metadata(root)
    assert code == 0 and "kind" in said and str(root / "meta/wamkit.json") in said, said
    assert written.embodiment == "arm" and [(f.kind, f.unit, f.larger) for f in written.state] == [
        ("joint", "deg", ""), ("joint", "", ""), ("gripper", "", "opens"),
    ]  # fmt: skip
    assert written.action[0].kind == "other" and "unknown: state.joints.unit" in said
