"""Scene points: cast in the simulator, recorded, read back as flow, asked for where they are missing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from test_families import losses, make

from wamkit.cli.main import main
from wamkit.config import ConfigError
from wamkit.data.format.store import Store, StoreError
from wamkit.data.loading.dataset import open_frames, spec_of, statistics
from wamkit.data.loading.windows import Windows, observations
from wamkit.envs import make_env
from wamkit.eval.suites.open_loop import imagine
from wamkit.families.base import FAMILIES
from wamkit.inference.model import Model
from wamkit.nn.normalizer import Normalizer
from wamkit.rollout.collect import CollectConfig, collect
from wamkit.types import ObservationError, Query, WamkitError

TASK, SIDE = "drawer-open-v3", 16
SHAPE = {"task": TASK, "height": 64, "width": 64}
SMALL = {"max_steps": 120, "height": 32, "width": 32, "supersample": 1}


@pytest.mark.parametrize("camera", ["corner2", "topview", "corner3"])  # mounted upside down, upright, upside down
def test_a_point_projects_to_its_own_pixel_and_shows_the_robot_where_the_image_does(camera):
    env = make_env("metaworld", **SHAPE, cameras=(camera,), point_grid=SIDE)
    raw, _ = env.reset(seed=0)
    model, data, points = env._sim.model, env._sim.data, raw["point_cloud"]
    index, turned = model.camera(camera).id, env._renderer.turned[0]
    local = (points[:, :3].astype(float) - data.cam_xpos[index]) @ data.cam_xmat[index].reshape(3, 3)
    focal = 32 / np.tan(np.radians(model.cam_fovy[index]) / 2)
    right, down = focal * local[:, 0] / -local[:, 2], -focal * local[:, 1] / -local[:, 2]
    sign = -1 if turned else 1
    row, column = np.divmod(np.arange(SIDE**2), SIDE)
    np.testing.assert_allclose(32 + sign * right, 4 * column + 2, atol=1e-2)
    np.testing.assert_allclose(32 + sign * down, 4 * row + 2, atol=1e-2)
    robot = model.body_rootid[model.geom_bodyid] == model.body("base").id
    model.geom_group[robot] = 5  # not drawn any more
    changed = (env._renderer.render()[0] != raw["images"][0]).any(0)
    differs = changed[4 * row + 2, 4 * column + 2]
    assert 0 < points[:, 3].sum() < SIDE**2 and (differs == points[:, 3].astype(bool)).mean() > 0.95
    env.close()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> tuple[Store, Store]:
    """The same two episodes with and without points."""
    stores = []
    for name, options in (("with", {"point_grid": SIDE}), ("without", {})):
        out = tmp_path_factory.mktemp("points") / name
        config = CollectConfig(
            tasks=(TASK,), out=out, options={**options, **SMALL}, episodes=1, off_expert=1, processes=1
        )
        stores.append(collect(dataclasses.replace(config, noise=(0.1,)), progress=False))
    return tuple(stores)


def test_points_change_nothing_else_of_a_recording(recorded):
    a, b = recorded
    for (*_, x, _), (*_, y, _) in zip(a.videos(), b.videos(), strict=True):
        assert x.read_bytes() == y.read_bytes()
    with_points, without = a.numeric(), b.numeric()
    assert set(with_points) - set(without) == {"observation.points", "observation.points.body", "observation.bodies"}
    assert all(np.array_equal(with_points[k], without[k]) for k in without)


def test_recorded_points_come_back_and_move_with_what_they_lie_on(recorded):
    store, _ = recorded
    again = Store.open(store.root)
    episode, scene_flow = again.episode(0, images=False), again.scene_flow()
    assert np.array_equal(episode.scene_flow.points, scene_flow.points[: len(episode)])
    frames, _ = open_frames(store.root)
    spec = spec_of(store, 16, (8, 16), (), points=True)
    now = np.arange(len(episode) - 16)
    batch = Windows(frames, spec, seed=0, batch_size=1).gather(now)
    assert batch.point_cloud.shape == (len(now), SIDE**2, 4) and batch.point_flow.shape == (len(now), 2, SIDE**2, 3)
    table = batch.point_cloud[..., 3] == 0  # the drawer moves at the end alone
    assert batch.point_flow[:20].transpose(1, 2)[table[:20]].abs().max() < 1e-4
    hand = (batch.point_cloud[..., :3] - batch.proprio[:, None, :3]).norm(dim=-1) < 0.1
    hand &= batch.point_cloud[..., 3] == 1
    moved = torch.from_numpy(frames.proprio[now[:, None] + (8, 16), :3]) - batch.proprio[:, None, :3]
    rows, which = hand.nonzero(as_tuple=True)
    assert len(rows) > 40 and moved.norm(dim=-1).max() > 0.05
    assert (batch.point_flow[rows, :, which] - moved[rows]).norm(dim=-1).max() < 0.01
    np.testing.assert_allclose(batch.point_flow.norm(dim=-1).amax(), moved.norm(dim=-1).amax(), rtol=0.5)


def test_windows_beyond_the_end_stay_at_the_last_frame(recorded):
    frames, store = open_frames(recorded[0].root)
    spec = spec_of(store, 16, (8, 16), (), points=True)
    last = int(frames.ends()[0]) - 1
    batch = Windows(frames, spec, seed=0, batch_size=1).gather(np.array([last]))
    assert not batch.frame_valid.any() and batch.point_flow.abs().max() < 1e-5


def test_data_without_points_are_refused_with_the_option_that_collects_them(recorded, tmp_path, capsys):
    store = recorded[1]
    with pytest.raises(StoreError, match=r"no scene points.*--options point_grid=32"):
        spec_of(store, 16, (8, 16), (), points=True)
    spec = dataclasses.replace(spec_of(store, 16, (8, 16)), point_grid=SIDE)
    with pytest.raises(WamkitError, match=r"no grid of 16 x 16 scene points.*--options point_grid=16"):
        Windows(open_frames(store.root)[0], spec, seed=0, batch_size=1)
    command = ["train", "--recipe", "metaworld-cascade_geom", "--data", str(store.root), "--out", str(tmp_path / "run")]
    assert main(command) == 1 and "--options point_grid=32" in capsys.readouterr().err


def test_other_families_do_not_carry_points(recorded):
    frames, store = open_frames(recorded[0].root)
    spec = spec_of(store, 16, (8, 16))
    assert spec.point_grid == 0 and "point_flow" not in statistics(frames, spec)
    batch = Windows(frames, spec, seed=0, batch_size=2).batch(0)
    assert batch.point_cloud is None and batch.to("cpu").rows(torch.tensor([0])).point_flow is None


def test_the_deviation_of_flow_is_that_of_moving_points_of_demonstrations(recorded):
    frames, store = open_frames(recorded[0].root)
    spec = spec_of(store, 16, (8, 16), (), points=True)
    numbers = statistics(frames, spec)["point_flow"]
    assert numbers["mean"] == [0.0] * 3 and numbers["std"] == [numbers["std"][0]] * 3
    shown = np.flatnonzero(frames.is_demonstration[frames.episode])
    batch = Windows(frames, spec, seed=0, batch_size=1).gather(shown)
    flow = batch.point_flow[batch.frame_valid]
    flow = flow[flow.norm(dim=-1) > 1e-3]
    assert numbers["std"][0] == pytest.approx(flow.square().mean().sqrt().item(), rel=1e-4)


def test_points_that_never_moved_stay_where_they_are(recorded):
    """A scene at rest has no deviation to give imagined motions a size."""
    frames, store = open_frames(recorded[0].root)
    spec = spec_of(store, 16, (8, 16), (), points=True)
    rest = dataclasses.replace(frames.scene_flow, pose=frames.scene_flow.pose[:1].repeat(len(frames), 0))
    numbers = statistics(dataclasses.replace(frames, scene_flow=rest), spec)["point_flow"]
    assert numbers == {"mean": [0.0] * 3, "std": [0.0] * 3}
    normalizer = Normalizer({"point_flow": (torch.tensor(numbers["mean"]), torch.tensor(numbers["std"]))})
    assert (normalizer.decode("point_flow", torch.ones(2, 3)) == 0).all()


def test_options_of_an_environment_come_from_the_command_line(tmp_path, capsys):
    command = ["collect", "--tasks", TASK, "--episodes", "0", "--off-expert", "1", "--off-expert-steps", "2"]
    command += ["--off-expert-skip", "0", "--processes", "1", "--out", str(tmp_path / "data")]
    assert main([*command, "--options", "point_grid=4", "height=32", "width=32", "text=open it"]) == 0
    store = Store.open(tmp_path / "data")
    assert (
        store.layout.point_grid == 4 and store.layout.image_shape == (3, 32, 32) and store.episodes[0].text == "open it"
    )
    with pytest.raises(SystemExit):
        main([*command, "--options", "points"])
    assert "not KEY=VALUE" in capsys.readouterr().err


def test_no_action_is_used_in_training(spec, normalizer, batch):
    model = make("cascade_geom", spec, normalizer)
    other = dataclasses.replace(batch, action=batch.action + 9, action_expert=-batch.action_expert)
    a, b = losses(model, batch), losses(model, other)
    assert (a["future"] > 0).all() and torch.equal(a["future"], b["future"])


def test_off_expert_rows_and_frames_beyond_the_end_are_silent(spec, normalizer, batch):
    model = make("cascade_geom", spec, normalizer)
    off = dataclasses.replace(batch, is_demonstration=torch.zeros(len(batch), dtype=torch.bool))
    assert (losses(model, off)["future"] == 0).all()
    batch.frame_valid[:, 1] = False
    flow = batch.point_flow.clone()
    flow[:, 1] = 7.0
    a, b = losses(model, batch), losses(model, dataclasses.replace(batch, point_flow=flow))
    assert torch.equal(a["future"], b["future"])
    flow[:, 0] += 0.01
    assert not torch.equal(a["future"], losses(model, dataclasses.replace(batch, point_flow=flow))["future"])


def test_a_square_of_the_grid_is_one_token(spec, normalizer, batch):
    model = make("cascade_geom", spec, normalizer)
    folded = model._fold(batch.point_flow)
    assert torch.equal(model._unfold(folded), batch.point_flow)
    other = batch.point_flow.clone()
    other[:, :, 8 * 16 + 7] += 1  # row 8, column 7: the first square of the second row
    assert (folded != model._fold(other)).any(2).any(0).tolist() == [False, False, True, False]


def test_a_robot_of_another_kind_is_refused(spec, normalizer):
    with pytest.raises(ConfigError, match="dx, dy, dz and gripper"):
        make("cascade_geom", dataclasses.replace(spec, action_dim=7), normalizer)
    cls = FAMILIES.get("cascade_geom")
    with pytest.raises(ConfigError, match="patch 5: must divide the points a side of their grid, 16"):
        cls(cls.Config(patch=5), dataclasses.replace(spec, point_grid=16), normalizer)


def test_points_that_are_missing_or_wrong_are_named(spec, normalizer, batch):
    model = make("cascade_geom", spec, normalizer)
    (good,) = observations(batch.rows(torch.tensor([0])))
    Model(model).sample(good, "policy", steps=1)
    for points, message in (
        (None, r"observation 0: points are missing.*point_grid=16"),
        (good.point_cloud[:5], r"points: expected finite float32 \(256, 4\) as in training, got float32 \(5, 4\)"),
        (np.full_like(good.point_cloud, np.nan), "points: expected finite"),
    ):
        with pytest.raises(ObservationError, match=message):
            Model(model).sample(dataclasses.replace(good, point_cloud=points), "policy", steps=1)


def test_imagined_points_are_scored_against_standing_still(recorded):
    """A model that imagines no motion is as good as standing still."""
    frames, store = open_frames(recorded[0].root)
    spec = spec_of(store, 16, (8, 16), (), points=True)
    cls = FAMILIES.get("cascade_geom")
    numbers = {k: (torch.tensor(v["mean"]), torch.tensor(v["std"])) for k, v in statistics(frames, spec).items()}
    model = cls(cls.Config(width=32, depth=1, heads=2), spec, Normalizer(numbers))
    still = imagine(Model(model), frames, progress=False)  # its head starts at zero: nothing moves
    assert still.points.shape[1:] == (2, 3)
    for k in range(2):
        assert still.points_over_still(k).value == pytest.approx(1, abs=1e-5) and still.point_error(k) > 0.01
    assert Query.POLICY in still.action_error
