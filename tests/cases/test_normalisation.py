"""Normalisation that invents: what never moved is commanded to move, or one value flattens all others."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from locked_axes import locked_axis, outlier, rare_gripper

import wamkit
from wamkit.cli.main import main
from wamkit.data.format.metadata_io import save_metadata
from wamkit.data.format.store import Store
from wamkit.data.loading.dataset import open_frames
from wamkit.metadata import CameraFacts, DatasetMetadata, Field

SMALL = ["--model.width", "16", "--model.depth", "1", "--model.heads", "2", "--train.batch-size", "4"]
SHORT = ["--train.steps", "4", "--train.threads", "1", "--window.chunk", "8", "--window.frame-offsets", "8"]


def trained(data, out, *options: str, recipe: str = "metaworld-bc") -> wamkit.Model:
    command = ["train", "--recipe", recipe, "--data", str(data), "--out", str(out), *SMALL, *SHORT, *options]
    assert main(command) == 0
    return wamkit.load(out)


def actions(model: wamkit.Model, data) -> np.ndarray:
    """Actions for the first observations of a data set, (B, A, a)."""
    frames, _ = open_frames(data)
    rows = [wamkit.Observation(frames.images[i], frames.proprio[i], frames.text_at(i)) for i in range(3)]
    return model.sample(rows, "policy", seed=0, steps=2).actions


@pytest.mark.parametrize("how", ["mean_std", "quantiles", "min_max"])
@pytest.mark.parametrize(("value", "rounding"), [(0.0, 0.0), (0.7, 0.0), (0.7, 6e-8)])
def test_a_locked_axis_gets_no_command(tmp_path, value, rounding, how):
    data = locked_axis(tmp_path / "data", value, rounding)
    got = actions(trained(data, tmp_path / "run", "--train.normalisation", how), data)
    if rounding:
        np.testing.assert_allclose(got[..., 3], value, atol=rounding)
    else:
        assert (got[..., 3] == np.float32(value)).all()
    assert got[..., :3].std() > 1e-4


def test_a_gripper_that_closes_once_in_a_while_still_can(tmp_path):
    data = rare_gripper(tmp_path / "data")
    trained(data, tmp_path / "run", "--train.normalisation", "quantiles")
    numbers = json.loads((tmp_path / "run/config.json").read_text())["statistics"]["action"]
    assert numbers["mean"][3] == 0 and numbers["std"][3] == 1 and numbers["limit"] == 5


def test_one_absurd_action_is_said_where_it_is(tmp_path, capsys):
    data = outlier(tmp_path / "data", 1e6)
    assert main(["validate", str(data), "--out", str(tmp_path / "page.html")]) == 1
    assert "error: episode 1: step 3: action, action_1: 1e+06, which is far from the median" in capsys.readouterr().out
    assert main(["train", "--recipe", "metaworld-bc", "--data", str(data), "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert "(episode 1, step 3): action, " in said and "--train.normalisation quantiles" in said


def test_training_by_quantiles_survives_an_absurd_action(tmp_path, capsys):
    data = outlier(tmp_path / "data", 1e6)
    trained(data, tmp_path / "run", "--train.normalisation", "quantiles")
    assert "(episode 1, step 3): action, action_1: 1e+06" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "run/config.json").read_text())["statistics"]["action"]
    assert numbers["std"][1] < 1.25 * numbers["std"][0]
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert max(row["policy"] for row in rows if "policy" in row) < 10


def test_one_far_action_does_not_flatten_the_others(tmp_path):
    """Thirty deviations away: it may be meant, and is trained on."""
    data = outlier(tmp_path / "data", 0.15)
    shares = {}
    for how in ("mean_std", "quantiles", "min_max"):
        trained(data, tmp_path / how, "--train.normalisation", how)
        numbers = json.loads((tmp_path / how / "config.json").read_text())["statistics"]["action"]
        shares[how] = numbers["std"][1] / numbers["std"][0]
    assert shares["quantiles"] < 1.25 and shares["mean_std"] > 2 and shares["min_max"] > 5


@pytest.mark.parametrize("family", ["unified", "discrete"])
def test_a_locked_axis_gets_no_command_from_a_mixture(tmp_path, family):
    """One robot locks its third axis, the other moves it: they share its place."""
    fields = (
        Field("hand", 0, 3, "position", "delta", unit="m"),
        Field("grip", 3, 4, "gripper", unit="1"),
    )
    for name, value in (("free", None), ("locked", 0.25)):
        data = locked_axis(tmp_path / name, 1.0) if value is None else locked_axis(tmp_path / name, value, axis=2)
        camera = {Store.open(data).cameras[0]: CameraFacts("scene")}
        state = tuple(replace(f, representation="absolute") for f in fields)
        save_metadata(data, DatasetMetadata("test", name, "delta", state=state, action=fields, cameras=camera))
    mixture = tmp_path / "mixture.json"
    words = ["mix", f"{tmp_path / 'free'}:1", f"{tmp_path / 'locked'}:1", "--size", "32", "32", "--out", str(mixture)]
    assert main(words) == 0
    small = [] if family == "unified" else ["--model.bins", "16"]
    trained(mixture, tmp_path / "run", "--train.normalisation", "quantiles", *small, recipe=f"metaworld-{family}")
    moved = {}
    for name in ("free", "locked"):
        frames, _ = open_frames(tmp_path / name, (32, 32))
        row = wamkit.Observation(frames.images[0], frames.proprio[0], frames.text_at(0))
        moved[name] = wamkit.load(tmp_path / "run", embodiment=name).sample([row], "policy", steps=2).actions
    assert (moved["locked"][..., 2] == 0.25).all() and moved["locked"][..., 3].std() > 0
    assert (moved["free"][..., 3] == 1).all() and moved["free"][..., 2].std() > 0
