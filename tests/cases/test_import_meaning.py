"""Direction, reference and unit at import: read where the source states them, stated by `--set` where not."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from tests.cases.lerobot_folders import Recordings, write_v3, write_v21
from tests.cases.test_describe import SO101
from tests.cases.test_metadata_meaning import labels, robomimic

from wamkit.cli.main import main
from wamkit.data.claims import Values
from wamkit.data.description import described, field_by_name, fields_by_name, unknown
from wamkit.data.format.metadata_io import load_metadata
from wamkit.data.format.store import Store
from wamkit.data.importers import IMPORTERS
from wamkit.metadata import DatasetMetadata, Field
from wamkit.registry import load_package

load_package("wamkit.data.importers")
FILES = Path(__file__).parents[1] / "importers/data"


def test_a_reference_that_the_source_does_not_state_is_open_and_stated_at_import(tmp_path, capsys) -> None:
    robomimic(tmp_path / "a.hdf5", {})
    command = ["import", "robomimic", str(tmp_path / "a.hdf5"), "--out"]
    assert main([*command, str(tmp_path / "open")]) == 0
    metadata = load_metadata(tmp_path / "open")
    position, rotation, gripper = metadata.action
    assert (position.representation, position.unit, rotation.representation) == ("", "", "")
    assert metadata.control_mode == "OSC_POSE" and gripper.larger == "closes"
    found = described(store := Store.open(tmp_path / "open"))
    # The values are where the state goes next; a position's unit they do not tell.
    assert [f.representation for f in found.action] == ["absolute", "absolute", "absolute"]
    assert "action.eef_position.representation" in found.inferred
    assert "action.eef_position.unit" in unknown(found, store)
    assert "not known: action.eef_position.unit; `wamkit describe" in capsys.readouterr().out

    entries = ["--set", "action.eef_position.representation=absolute", "action.eef_position.unit=m", "embodiment=Lift"]
    assert main([*command, str(tmp_path / "said"), "--limit", "1", *entries]) == 0
    assert main([*command, str(tmp_path / "said"), *entries]) == 0
    said = load_metadata(tmp_path / "said")
    assert (said.embodiment, said.action[0].representation, said.action[0].unit) == ("Lift", "absolute", "m")
    capsys.readouterr()
    assert main([*command, str(tmp_path / "said")]) == 1
    err = capsys.readouterr().err
    assert "other metadata: embodiment was 'Lift', now 'Panda'" in err and "--set" in err
    for entry, reason in (
        ("action.eef_positon.unit=m", "there is no such entry"),
        ("action.gripper.larger=grows", "larger"),
        ("columns.state=x", "an import takes columns by options of its format"),
    ):
        assert main([*command, str(tmp_path / "none"), "--set", entry]) == 1
        assert entry.partition("=")[0] in (err := capsys.readouterr().err) and reason in err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("format", "source", "entry"),
    [
        ("aloha", "hdf5", "action.left_gripper.larger=closes"),
        ("libero", "hdf5/libero_demo.hdf5", "action.gripper.larger=opens"),
        ("maniskill", "hdf5/maniskill.h5", "action.gripper.unit=mm"),
        ("lerobot2", "lerobot2", "action.hand.unit=cm"),
    ],
)
def test_every_format_takes_the_same_option(tmp_path, format, source, entry) -> None:
    command = ["import", format, str(FILES / source), "--out", str(tmp_path / "out"), "--limit", "1"]
    assert main([*command, "--set", entry]) == 0
    (place, _, value), metadata = entry.partition("="), load_metadata(tmp_path / "out")
    _, name, attribute = place.split(".")
    assert getattr(next(f for f in metadata.action if f.name == name), attribute) == value


def test_what_was_described_stays_when_episodes_are_added(tmp_path) -> None:
    source = str(FILES / "hdf5/libero_demo.hdf5")
    command = ["import", "libero", source, "--out", str(tmp_path / "out")]
    assert main([*command, "--limit", "1"]) == 0
    assert main(["describe", str(tmp_path / "out"), "--set", "embodiment=my_arm", "--write"]) == 0
    assert main(command) == 0
    assert load_metadata(tmp_path / "out").embodiment == "my_arm" and len(Store.open(tmp_path / "out")) == 2


def test_copies_of_libero_with_absolute_targets_say_so(tmp_path) -> None:
    shutil.copy(FILES / "hdf5/libero_demo.hdf5", path := tmp_path / "a_demo.hdf5")
    with h5py.File(path, "r+") as file:
        controller = {"type": "OSC_POSE", "control_delta": False}
        kwargs = {"control_freq": 20, "controller_configs": controller}
        file["data"].attrs["env_args"] = json.dumps({"env_name": "Libero", "env_kwargs": kwargs})
    importer = IMPORTERS.get("libero")
    metadata = importer(path, importer.Options()).metadata()
    assert metadata.control_mode == "OSC_POSE absolute"
    assert [(f.representation, f.unit) for f in metadata.action[:2]] == [("absolute", "m"), ("absolute", "")]


def test_maniskill_states_the_gripper_of_the_panda_alone(tmp_path) -> None:
    for ending in (".h5", ".json"):
        shutil.copy(FILES / f"hdf5/maniskill{ending}", tmp_path / f"m{ending}")
    about = json.loads((tmp_path / "m.json").read_text())
    importer = IMPORTERS.get("maniskill")

    def metadata(**changes) -> DatasetMetadata:
        (tmp_path / "m.json").write_text(json.dumps(about | changes))
        return importer(tmp_path / "m.h5", importer.Options()).metadata()

    assert metadata().action[1].larger == "opens"
    env = about["env_info"] | {"env_kwargs": {"robot_uids": "xarm6_robotiq"}}  # whose larger commands close
    other = metadata(env_info=env)
    assert (other.action[1].kind, other.action[1].larger, other.action[1].unit) == ("gripper", "", "")
    assert [(f.kind, f.unit) for f in other.state] == [("joint", ""), ("joint", "")]
    modes = [
        {**e, "control_mode": m} for e, m in zip(about["episodes"], ("pd_joint_pos", "pd_ee_delta_pos"), strict=True)
    ]
    with pytest.raises(Exception, match="control modes pd_ee_delta_pos, pd_joint_pos; keep those of one"):
        metadata(episodes=modes)


def test_lerobots_two_versions_mean_the_same(tmp_path) -> None:
    """Names and values tell the same of v2.1, which is imported, and of v3.0, which is not."""
    features = {k: {"dtype": "float32", "shape": [6], "names": SO101} for k in ("observation.state", "action")}
    data = Recordings(lengths=(40, 40), dims=6, features_more=features, info={"robot_type": "so101"})
    write_v21(tmp_path / "v21", data)
    assert main(["import", "lerobot2", str(tmp_path / "v21"), "--out", str(tmp_path / "in")]) == 0
    old, new = described(Store.open(tmp_path / "in")), described(Store.open(write_v3(tmp_path / "v3", data)))
    assert (old.state, old.action, old.cameras) == (new.state, new.action, new.cameras)
    assert set(old.inferred) == set(new.inferred) and old.state[0].name == "joints"


def test_units_are_read_from_names() -> None:
    names = ["shoulder_deg", "elbow_deg", "x (mm)", "y (mm)", "z (mm)", "gripper_width_m", "wrist.vel [rad/s]", "hip_1"]
    fields = fields_by_name(names)
    assert [(f.name, f.kind, f.unit, f.stop - f.start) for f in fields] == [
        ("joints", "joint", "deg", 2), ("position", "position", "mm", 3), ("gripper", "gripper", "m", 1),
        ("joints_2", "joint", "rad/s", 1), ("joints_3", "joint", "", 1),
    ]  # fmt: skip
    assert (fields[3].representation, fields[2].larger) == ("velocity", "opens")
    droid = [field_by_name(n, 0, 7, "action") for n in ("action_dict/joint_position", "action_dict/joint_velocity")]
    assert [(f.kind, f.representation) for f in droid] == [("joint", "absolute"), ("joint", "velocity")]
    opaque = field_by_name("action", 0, 7, "action")
    assert (opaque.kind, opaque.representation) == ("other", "")


def test_units_are_compared_with_the_values() -> None:
    x = np.linspace(-1, 1, 200)[:, None] * np.ones(4)
    metadata = DatasetMetadata("x", "arm")

    def found(field: Field, scale: float) -> dict[str, str]:
        values = Values((x * scale).astype(np.float32), np.zeros((200, 0)), np.zeros(200, int))
        return labels(dataclasses.replace(metadata, state=(field,)), values)

    joint, place, jaw = (
        Field("f", 0, 4, kind, unit=unit) for kind, unit in (("joint", ""), ("position", ""), ("gripper", ""))
    )
    for field, unit, wrong, right, fits in (
        (joint, "rad", 90, 3, "deg"), (joint, "deg", 3, 90, "rad"), (place, "m", 400, 0.4, "mm"),
        (place, "mm", 0.4, 400, "m"), (jaw, "m", 80, 0.08, "mm"), (jaw, "mm", 0.08, 80, "m"),
    ):  # fmt: skip
        stated = dataclasses.replace(field, unit=unit)
        assert found(stated, right) == {} and found(stated, wrong) == {"state.f.unit": fits}, unit
    assert found(joint, 90) == {} == found(dataclasses.replace(joint, unit="1"), 90)
