"""Columns that other tools name differently are the state and the actions; where that is in doubt the user is asked."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.cases.lerobot_folders import Recordings, write_v3, write_v21

from wamkit.cli.main import main
from wamkit.data.format.columns import doubtful, vectors_of
from wamkit.data.format.store import Store

WRITERS = pytest.mark.parametrize("version", ["v2.1", "v3.0"])


def opened(root, data: Recordings, version: str) -> Store:
    """The store of a data set in place, or of its import."""
    if version == "v3.0":
        return Store.open(write_v3(root / "data", data))
    write_v21(root / "data", data)
    assert main(["import", "lerobot2", str(root / "data"), "--out", str(root / "out")]) == 0
    return Store.open(root / "out")


def vectors(store: Store) -> tuple[np.ndarray, np.ndarray]:
    return store.numeric()["observation.state"], store.numeric()["action"]


@WRITERS
@pytest.mark.parametrize(
    ("state", "action", "camera"),
    [
        ("state", "actions", "image"),  # openpi's converters
        ("observation.proprio", "action", "wrist_image"),
        ("observation.state", "actions", "observation.images.top"),
    ],
)
def test_other_names_are_recognised(tmp_path, version, state, action, camera) -> None:
    data = Recordings(state=state, action=action, camera=camera)
    store = opened(tmp_path, data, version)
    rows = [data.rows(e) for e in range(3)]
    for found, name in zip(vectors(store), (state, action), strict=True):
        assert np.array_equal(found, np.concatenate([r[name] for r in rows]))
    assert store.cameras == (camera.removeprefix("observation.images."),) and store.unused() == ()


@WRITERS
def test_a_matrix_a_step_is_a_vector_of_its_rows(tmp_path, version) -> None:
    """Two arms of three joints, and an action of two rows: row by row, as numpy flattens."""
    state = lambda e, T: (e + np.arange(T * 6) / 100).reshape(T, 2, 3).astype(np.float32)  # noqa: E731
    data = Recordings(
        action="actions",
        columns=lambda e, T: {"observation.state": state(e, T), "actions": -state(e, T)},
        features_more={
            "observation.state": {"dtype": "float32", "shape": [2, 3], "names": None},
            "actions": {"dtype": "float32", "shape": [2, 3], "names": ["arm", "joint"]},
        },
    )
    store = opened(tmp_path, data, version)
    right = np.concatenate([state(e, T).reshape(T, 6) for e, T in enumerate(data.lengths)])
    for found, sign in zip(vectors(store), (1, -1), strict=True):
        assert np.array_equal(found, sign * right)
    assert store.layout.proprio_names[:4] == tuple(f"observation.state.{n}" for n in ("0.0", "0.1", "0.2", "1.0"))
    assert store.layout.action_names[-1] == "actions.1.2"
    assert main(["validate", str(store.root), "--out", str(tmp_path / "page.html")]) == 0
    assert np.array_equal(store.episode(1).action, -state(1, 20).reshape(20, 6))


def parts() -> Recordings:
    """A data set with the state in two columns, as DROID has it."""
    columns = lambda e, T: {  # noqa: E731
        "joint_position": np.full((T, 3), e, np.float32) + np.arange(T, dtype=np.float32)[:, None],
        "gripper_position": np.arange(T, dtype=np.float32),
    }
    return Recordings(state="observation.environment", columns=columns, features_more={
        "joint_position": {"dtype": "float32", "shape": [3], "names": None},
        "gripper_position": {"dtype": "float32", "shape": [1], "names": None},
    })  # fmt: skip


def test_parts_of_a_state_are_asked_for_and_then_joined(tmp_path, capsys) -> None:
    root = write_v3(tmp_path / "data", parts())
    assert main(["train", "--data", str(root), "--out", str(tmp_path / "run"), "--recipe", "metaworld-bc"]) == 1
    said = capsys.readouterr().err
    assert "its state may be in 'joint_position', 'gripper_position'; say which by `wamkit describe" in said
    assert main(["validate", str(root), "--out", str(tmp_path / "page.html")]) == 1
    facts = {"source": "x", "embodiment": "arm", "columns": {"state": ["joint_position", "gripper_position"]}}
    (root / "meta/wamkit.json").write_text(json.dumps(facts))
    store = Store.open(root)
    state, _ = vectors(store)
    assert state[:3].tolist() == [[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2]] and state.shape == (60, 4)
    assert store.layout.proprio_names[-2:] == ("joint_position_2", "gripper_position_0")
    assert store.unused() == ("observation.environment (4)",)
    (root / "meta/wamkit.json").write_text(json.dumps(facts | {"columns": {"state": ["joints"]}}))
    assert main(["validate", str(root), "--out", str(tmp_path / "page.html")]) == 1
    assert "column 'joints', named as its state, is no vector of numbers; it has" in capsys.readouterr().err


def test_the_importer_asks_and_takes_the_answer(tmp_path, capsys) -> None:
    write_v21(tmp_path / "data", parts())
    command = ["import", "lerobot2", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert main(command) == 1
    assert "say which by --options.state followed by the columns, or by none" in capsys.readouterr().err
    assert main([*command, "--options.state", "joint_position", "gripper_position"]) == 0
    assert vectors(Store.open(tmp_path / "out"))[0].shape == (60, 4)
    assert "not used in training: observation.environment (4)" in capsys.readouterr().out
    other = [*command[:4], str(tmp_path / "none"), "--options.state", "none"]
    assert main(other) == 0 and vectors(Store.open(tmp_path / "none"))[0].shape == (60, 0)


def test_columns_that_are_no_state_raise_no_question() -> None:
    feature = {"dtype": "float32", "shape": [3]}
    quiet = ("action", "observation.environment_state", "observation.velocity", "qvel", "language_embedding", "reward")
    assert doubtful(dict.fromkeys(quiet, feature)) == {}
    assert doubtful({"action.joints": feature, "action.gripper": feature, "observation.state": feature}) == {
        "action": ("action.joints", "action.gripper")
    }
    two = vectors_of({"state": feature, "proprio": feature, "action": feature})
    assert two == {"observation.state": (), "action": ("action",)}  # asked for, not guessed


@WRITERS
def test_whole_numbers_and_truth_values_are_columns_too(tmp_path, version, capsys) -> None:
    """Servo ticks under a known name are taken, and a gripper that is a truth value is among those asked for."""
    ticks = lambda e, T: np.random.default_rng(e).integers(0, 4096, (T, 4))  # noqa: E731
    data = Recordings(action="actions", action_dtype="int64", columns=lambda e, T: {"actions": ticks(e, T)})
    assert np.array_equal(vectors(opened(tmp_path, data, version))[1], np.concatenate([ticks(e, 20) for e in range(3)]))
    feature = lambda dtype, n: {"dtype": dtype, "shape": [n], "names": None}  # noqa: E731
    found = doubtful({"joints": feature("int32", 6), "gripper": feature("bool", 1), "action": feature("float32", 7)})
    assert found == {"state": ("joints", "gripper")}
    assert doubtful({"action_index": feature("int64", 1), "arm_enabled": feature("bool", 1)}) == {}
