"""Success against the severity of factors: areas and pairs with known answers, refusals, and a whole sweep."""

from __future__ import annotations

import json

import numpy as np
import pytest

from conftest import untrained_run
from wamkit.cli.main import main
from wamkit.config import ConfigError
from wamkit.envs.spec import EnvSpec
from wamkit.eval.metrics.intervals import paired_difference, wilson
from wamkit.eval.protocols import Protocol
from wamkit.eval.report.robustness import tables, text
from wamkit.eval.suites.closed_loop import Record, closed_loop
from wamkit.eval.suites.robustness import area, curve, example_images, plan, robustness
from wamkit.runs.run import Run
from wamkit.types import EvaluationError

OPTIONS = {"max_steps": 2, "height": 32, "width": 32}
PROTOCOL = Protocol(EnvSpec("metaworld", ("drawer-open-v3",), OPTIONS), episodes=1)


def records(outcomes: dict[str, str]) -> list[Record]:
    """Records of every task from a row of 1 for success and 0 for failure, one per reset state."""
    return [Record(t, 1000 + i, "go", y == "1", 10, ()) for t, row in outcomes.items() for i, y in enumerate(row)]


@pytest.mark.parametrize(
    ("success", "value"),
    [
        ([[1, 1], [1, 1], [1, 1]], 1.0),
        ([[1, 1], [1, 1], [0, 0]], 0.75),
        ([[1, 1], [0, 0], [0, 0]], 0.25),
        ([[1, 0], [1, 0], [1, 0]], 1.0),  # relative: what is never success does not count
        ([[1, 0], [0, 0], [0, 0]], 0.25),
        ([[1, 0], [1, 1], [1, 1]], 1.75),
    ],
)
def test_areas_of_known_curves(success, value):
    found = area(np.array([0.0, 0.5, 1.0]), np.array(success, bool))
    assert found.value == pytest.approx(value) and found.low <= found.value <= found.high


def test_an_area_weighs_severities_by_their_spacing_and_shows_its_uncertainty():
    success = np.array([[True] * 40, [True] * 20 + [False] * 20, [False] * 40])
    assert area(np.array([0.0, 0.1, 1.0]), success).value == pytest.approx(0.1 * 0.75 + 0.9 * 0.25)
    wide, narrow = area(np.array([0.0, 0.5, 1.0]), success), area(np.array([0.0, 0.5, 1.0]), success.repeat(4, 1))
    assert wide.value == narrow.value and 0.3 < (narrow.high - narrow.low) / (wide.high - wide.low) < 0.7
    steady = area(np.array([0.0, 1.0]), np.ones((2, 20), bool))  # a clean sweep of 20 is no proof
    assert steady.value == 1 and steady.low == pytest.approx(1 - 0.1684, abs=1e-3)
    assert area(np.array([0.0, 1.0]), np.zeros((2, 5), bool)).undefined
    lost = np.array([[True] * 20, [False] + [True] * 19])  # one state of 20 makes no open end, and no certainty
    assert 0.5 < area(np.array([0.0, 1.0]), lost).low < 0.97 <= area(np.array([0.0, 1.0]), lost).high < 1.2


def test_a_curve_counts_pairs_and_tasks():
    played = {
        0.5: records({"a": "1100", "b": "1111"}),
        0.0: records({"a": "1010", "b": "1111"}),
        1.0: records({"a": "0000", "b": "0111"}),
    }
    c = curve("lighting", "dark", played)
    assert [p.severity for p in c.points] == [0, 0.5, 1]
    assert [(p.lost, p.gained) for p in c.points] == [(0, 0), (1, 1), (3, 0)]
    assert [p.success.value for p in c.points] == [0.75, 0.75, 0.375] and c.points[2].success == wilson(3, 8)
    assert c.points[2].by_task == {"a": 0.0, "b": 0.75} and c.points[2].change.value == -0.375
    first, last = (np.array([r.success for r in played[s]]) for s in (0.0, 1.0))
    assert c.points[2].change == paired_difference(first, last)
    assert c.area.value == pytest.approx((0.5 * 0.75 + 0.5 * 0.5625) / 0.75)
    said = text([c])
    assert "-38 [" in said and f"{c.area.value:.2f} [" in said
    rows = [r for table in tables([c]) for r in table.rows]
    assert rows[0].note == "at severity 1: dark" and "success at 0 alone 3, here alone 0; a 0%; b 75%" in rows[-1].note
    with pytest.raises(EvaluationError, match="the same reset states"):
        curve("lighting", "dark", {**played, 1.0: records({"a": "0000"})})
    with pytest.raises(EvaluationError, match="at severity 0"):
        curve("lighting", "dark", {1.0: played[1.0]})


def test_an_area_without_success_is_undefined():
    c = curve("lighting", "dark", {0.0: records({"a": "00"}), 1.0: records({"a": "01"})})
    assert c.area.undefined and c.points[1].gained == 1 and "undefined: no success" in text([c])


def test_a_plan_begins_in_the_plain_environment_and_changes_one_factor_at_a_time():
    trained = Protocol(EnvSpec("metaworld", ("drawer-open-v3",), {"lighting": 0.7, "max_steps": 2}), episodes=1)
    settings = plan(trained, ("lighting", "colours"), (1.0, 0.5, 0.0))
    assert [k for k in settings] == [("", 0.0), *((f, s) for f in ("lighting", "colours") for s in (0.5, 1.0))]
    assert settings["", 0.0].env.options == {"max_steps": 2}
    assert settings["colours", 0.5].env.options == {"max_steps": 2, "colours": 0.5}
    assert len(plan(trained)) == 1 + 5 * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factors": ("lightning",)}, "metaworld has no factor 'lightning'.*did you mean 'lighting'"),
        ({"severities": (0.0, 1.5)}, "severities lie in .* got 0, 1.5"),
        ({"severities": (-0.5,)}, "severities lie in"),
        ({"severities": (0.0,)}, "one at least above 0"),
        ({"severities": (0.0, float("nan"))}, "severities lie in"),
        ({"env": "reacher"}, "'reacher' has no factors of variation; those that have: metaworld"),
        ({"options": {"point_grid": 8}}, "distractors = 0.25: must be 0 with point_grid"),
    ],
)
def test_what_cannot_be_played_is_refused_before_any_work(arguments, message, tmp_path):
    env = EnvSpec(arguments.pop("env", "metaworld"), ("drawer-open-v3",), arguments.pop("options", {}))
    with pytest.raises((EvaluationError, ConfigError), match=message):
        robustness(None, Protocol(env), **arguments)


def test_images_of_what_a_factor_looks_like():
    shown = example_images(PROTOCOL, "drawer-open-v3", 1, factors=("colours",), severities=(0.5, 1.0))
    assert shown["colours"].shape == (3, 3, 32, 32)
    change = [np.abs(p.astype(int) - shown["colours"][0]).mean() for p in shown["colours"]]
    assert 0 == change[0] < change[1] < change[2]


def test_a_run_is_played_once_and_written_up(tmp_path, capsys):
    run = untrained_run(tmp_path / "run", PROTOCOL.env.tasks, OPTIONS)
    command = ["robustness", str(run), "--factors", "lighting", "initial_pose", "--severities", "1", "--episodes", "1"]
    assert main([*command, "--processes", "1"]) == 0
    assert "area over success at 0: undefined" in capsys.readouterr().out
    parts = {p: p.stat().st_mtime_ns for p in (run / "eval/parts").iterdir()}
    assert len(parts) == 3  # plain, and one a factor
    (plain,) = closed_loop(Run.open(run), PROTOCOL, processes=1)  # what `wamkit eval` plays is the same part
    assert not plain.success
    again = ["robustness", str(run), "--factors", "lighting", "--severities", "0", "1", "--episodes", "1"]
    assert main(again) == 0
    assert parts == {p: p.stat().st_mtime_ns for p in (run / "eval/parts").iterdir()}
    said = json.loads((run / "eval/robustness.json").read_text())
    (only,) = said["curves"]
    assert only["factor"] == "lighting" and only["area"]["value"] is None and said["weights"] and said["made_by"]
    assert [p["severity"] for p in only["points"]] == [0, 1] and said["protocol"]["seeds"] == [1_000_000]
    page = (run / "eval/robustness.html").read_text()
    assert page.count("<img") == 2 and "lighting over severity" in page and "--factors lighting" in page
    assert main(["robustness", str(run), "--factors", "fog"]) == 1
    assert "has no factor 'fog'" in capsys.readouterr().err
    assert main(["robustness", str(run), "--embodiment", "arm"]) == 1
    assert "name it, --env NAME" in capsys.readouterr().err
