"""The page of a laboratory's data: every command of it, on small data of its kind, and what they say on the way."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from laboratory import LENGTHS, write_all

import wamkit
from wamkit.cli.main import main
from wamkit.data.format.metadata_io import load_metadata

PAGE = (Path(__file__).parents[2] / "docs/your-data.md").read_text()
COMMANDS = re.findall(r"^wamkit (.+)$", PAGE, re.M)
SMALL = {
    "train": "--model.width 16 --model.depth 1 --model.heads 2 --model.codec-channels 4 --train.steps 4 "
    "--train.batch-size 4 --train.threads 1 --train.save-every 4 --window.chunk 8 --window.frame-offsets 8 "
    "--size 48 64",
    "eval": "--steps 2",
}
"""Options that make a command quick."""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What each command of the page printed, in a folder with the recordings."""
    folder, out = tmp_path_factory.mktemp("laboratory"), {}
    write_all(folder / "recordings")
    with pytest.MonkeyPatch.context() as patch, pytest.MonkeyPatch.context() as streams:
        patch.chdir(folder)
        for line in COMMANDS:
            words = shlex.split(line)
            log = folder / "log"
            with log.open("w") as file:
                streams.setattr("sys.stdout", file)
                streams.setattr("sys.stderr", file)
                code = main([*words, *SMALL.get(words[0], "").split()])
                streams.undo()
            out[line] = log.read_text()
            assert code == 0, (line, out[line][-2000:])
        yield folder, out


def test_every_step_is_on_the_page(said):
    _, out = said
    assert [line.split()[0] for line in out] == [
        *["import"] * 3, *["validate"] * 4, *["describe"] * 3, *["train"] * 4, *["eval"] * 3,
    ]  # fmt: skip


def test_no_warning_is_false_and_none_is_missing(said):
    """Sound data are called sound; the one arm that never moves is named, in state and actions."""
    _, out = said
    for line in (x for x in out if x.startswith("validate")):
        found = [row for row in out[line].splitlines() if row.startswith(("error", "warning"))]
        if "aloha" in line:
            assert [row.split(",")[0] for row in found] == ["warning: observation.state", "warning: action"]
            assert all("left_waist: always 0.3" in row and "right" not in row for row in found)
        else:
            assert not found, line
    for line in (x for x in out if not x.startswith("validate")):
        assert (
            "error" not in re.sub(r"error /|/ error|action error|error (over|is|\d)", "", out[line])
            and "warning" not in out[line]
        ), line


def test_what_the_numbers_mean_is_stated_or_described(said):
    folder, out = said
    (table,) = (text for line, text in out.items() if line == "describe data/robomimic")
    assert "unknown:" not in table and "delta axis_angle base 1 to state" in table and "CC-BY-4.0" in table
    described = load_metadata(folder / "recordings/v30")
    assert [(f.name, f.kind, f.unit, f.larger) for f in described.state] == [
        ("joints", "joint", "rad", ""), ("gripper", "gripper", "", "opens"),
    ]  # fmt: skip
    assert [f.larger for f in described.action] == ["", "opens"]


def test_each_run_is_trained_without_the_last_episode_and_evaluated_on_it(said):
    folder, out = said
    for name in ("v30", "v21", "aloha"):
        run = folder / "runs" / name
        assert json.loads((run / "config.json").read_text())["episodes"]["held_out"] == 1
        summary = json.loads((run / "eval/recorded/summary.json").read_text())
        assert summary["protocol"]["episodes"] == [len(LENGTHS) - 1]
        keys = {row["key"] for row in summary["rows"]}
        assert {"recorded.over.mean", "open_loop.skill.joint.8", "coupling.true_over_shuffled"} <= keys
        assert (run / "eval/recorded/report.html").exists()
        (trained,) = (text for line, text in out.items() if line.startswith("train") and line.endswith(f"runs/{name}"))
        assert re.search(rf"next: wamkit eval runs/{name} --offline", trained)


def test_the_python_of_the_page(said, monkeypatch):
    monkeypatch.chdir(said[0])
    names: dict[str, np.ndarray] = {}
    exec(re.search(r"^```python\n(.*?)^```", PAGE, re.M | re.S)[1], names)
    assert names["chunk"].shape == (8, 7)


def test_the_model_takes_the_cameras_as_they_are(said):
    folder, _ = said
    obs = wamkit.Observation(
        np.zeros((2, 3, 480, 640), np.uint8), np.zeros(7, np.float32), "put the cube into the bowl"
    )
    assert wamkit.load(folder / "runs/v30").sample(obs, "policy").actions.shape == (8, 7)
    arms = wamkit.Observation(np.zeros((2, 3, 480, 640), np.uint8), np.zeros(14, np.float32), "put the cube")
    actions = wamkit.load(folder / "runs/aloha").sample(arms, "policy").actions
    assert (actions[:, :7] == np.float32(0.3)).all() and (actions[:, 7:].std(0) > 0).all()
