"""Values that are finite and cannot be meant are refused before training, and named; unusual ones are not."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from damage import edit_data
from recordings import LAYOUT, fill, make_episode, without_checksums
from test_validate import episode, said, store

from wamkit.config import ConfigError
from wamkit.data.format.store import Store, StoreError
from wamkit.data.loading.dataset import open_frames
from wamkit.data.sanity import faults, require_sane
from wamkit.metadata import CameraFacts, DatasetMetadata
from wamkit.nn.normalizer import Normalizer
from wamkit.types import SceneFlow, WamkitError


def poked(seed, column, value, steps=(17,), dimension=1):
    """An episode of 30 steps with `value` at `steps`."""
    e = episode(seed)
    array = getattr(e, column).copy()
    array[list(steps), dimension] = value
    both = {"action_expert": array} if column == "action" else {}
    return episode(seed, **{column: array}, **both)


@pytest.mark.parametrize("value", [3e38, -3e38, 1e6, 500.0])
@pytest.mark.parametrize(("column", "key", "name"), [("action", "action", "dy"), ("proprio", "observation.state", "y")])
def test_one_value_among_240(tmp_path, value, column, key, name):
    episodes = [poked(i, column, value) if i == 3 else episode(i) for i in range(8)]
    root = store(tmp_path / "d", episodes).root
    with pytest.raises(StoreError, match=rf"episode 3, step 17\): {key}, {name}: .*, which is far from the median"):
        open_frames(root)
    (found,) = (f for f in said(root) if f.startswith("error"))
    assert found.startswith(f"error: episode 3: step 17: {key}, {name}: {value:g}, which is far from the median")


def test_many_absurd_values(tmp_path):
    episodes = [poked(i, "action", 3e38, (4, 5, 6)) for i in range(4)] + [episode(i) for i in range(4, 14)]
    with pytest.raises(StoreError, match=r"episode 0, step 4\): action, dy: 3e\+38, .*, and 11 more values are as far"):
        open_frames(store(tmp_path / "d", episodes).root)


def test_what_is_rare_is_no_fault(tmp_path):
    """A button pressed once, a joint that mostly rests, readings in thousands of ticks."""
    rng, episodes = np.random.default_rng(0), []
    for i in range(8):
        e = episode(i)
        action = np.zeros((30, 2), np.float32)
        action[:, 1] = rng.normal(0, 1e-6, 30)
        if i == 3:
            action[17] = 1, 0
            action[20:24, 1] = 0.5, 0.9, 0.9, 0.5
        state = e.proprio.copy()
        state[:, 0] = rng.integers(0, 4096, 30)
        episodes.append(episode(i, action=action, action_expert=action, proprio=state))
    made = store(tmp_path / "d", episodes)
    require_sane(made)
    assert not [f for f in said(made.root) if "far from the median" in f]


def with_points(seed):
    """An episode of 9 steps with a grid of 2 x 2 points on two bodies."""
    rng = np.random.default_rng(seed)
    pose = np.zeros((9, 2, 7), np.float32)
    pose[..., 3] = 1
    body = rng.integers(0, 2, (9, 4)).astype(np.int32)
    return make_episode(seed, scene_flow=SceneFlow(rng.random((9, 4, 4)).astype(np.float32), body, pose))


def test_expert_actions_and_scene_points(tmp_path):
    fill(tmp_path / "d", 1)
    made = Store.open(tmp_path / "d")
    label = make_episode(1).action_expert.copy()
    label[2, 0] = 1e9
    made.append(make_episode(1, action_expert=label))
    assert [(f.episode, f.step) for f in faults(made)] == [(1, 2)]
    with pytest.raises(StoreError, match=r"episode 1, step 2\): action.expert, dx"):
        require_sane(made)
    for column, index, value, message in (
        ("points", (3, 0, 2), 1e7, "observation.points, z: 1e"),
        ("pose", (3, 0, 1), -1e7, "observation.bodies, y: -1e"),
        ("pose", (3, 0, 3), 7.0, "observation.bodies: a rotation is no unit quaternion"),
        ("body", (3, 1), 99, "observation.points.body: it names a body other than 0 to"),
    ):
        made = Store.create(tmp_path / f"{column}{value}", **LAYOUT, point_grid=2, bodies=2)
        made.append(with_points(0))
        wrong = with_points(1)
        getattr(wrong.scene_flow, column)[index] = value
        made.append(wrong)
        with pytest.raises(StoreError, match=rf"episode 1, step 3\): {message}"):
            require_sane(made)


def test_times_and_statistics(tmp_path):
    root = without_checksums(store(tmp_path / "d", [episode(i) for i in range(4)]).root)
    stats = json.loads((root / "meta/stats.json").read_text())
    stats["action"]["std"] = [0.0, 1e30]
    del stats["observation.state"]["mean"]
    (root / "meta/stats.json").write_text(json.dumps(stats))

    def late(table):
        times = np.array(table["timestamp"].to_pylist(), np.float32)
        times[5:7] = 3e38, np.nan
        return table.set_column(table.column_names.index("timestamp"), "timestamp", [times])

    edit_data(late)(root)
    found = said(root)
    assert found[0].startswith("warning: meta/stats.json, observation.state: mean is missing or not 2 numbers")
    assert found[1].startswith("warning: meta/stats.json, action: std is [0.0, 1e+30], the values have [0.")
    assert found[2] == "warning: episode 1: timestamp of step 5 is 3e+38 s, which 10 steps a second do not give"
    assert pq.read_table(root / "data/chunk-000/file-001.parquet").num_rows == 30 and len(found) == 3


@pytest.mark.parametrize("K", [(1.0,) * 8, (0.0, 0, 1, 0, 1, 1, 0, 0, 1), (3e38, 0, 1, 0, 1, 1, 0, 0, 1)])
def test_intrinsics(K):
    right = (300.0, 0, 16, 0, 300, 16, 0, 0, 1)
    DatasetMetadata("test", "arm", cameras={"front": CameraFacts(intrinsics=right)}).check(0, 0)
    with pytest.raises(ConfigError, match="camera front has intrinsics .* which are no 3x3 camera matrix"):
        DatasetMetadata("test", "arm", cameras={"front": CameraFacts(intrinsics=K)}).check(0, 0)


@pytest.mark.parametrize(("mean", "std"), [(0.0, float("nan")), (0.0, 1e39), (float("inf"), 1.0), (0.0, -1.0)])
def test_statistics_that_normalise_nothing(mean, std):
    statistics = {"action": tuple(torch.tensor([0.5, x], dtype=torch.float64) for x in (mean, std))}
    with pytest.raises(WamkitError, match="the normalisation statistics of 'action' are mean"):
        Normalizer(statistics)
