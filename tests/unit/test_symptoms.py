"""Diagnosis of runs with known faults: which place is named, from intervals alone, and what it says to try."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import untrained_run
from wamkit.cli.main import main
from wamkit.eval.outputs import write_result
from wamkit.eval.report.symptoms import symptoms, verdict
from wamkit.runs.run import Run
from wamkit.types import WamkitError

GOOD = {
    "open_loop.skill.joint.8": (0.8, 0.7, 0.9),
    "open_loop.skill.joint.16": (0.6, 0.5, 0.7),
    "coupling.true_over_shuffled": (0.5, 0.4, 0.7),
    "coupling.inverse_over_policy": (0.6, 0.5, 0.8),
    "closed_loop.success": (0.9, 0.8, 0.95),
}
PROTOCOL = {"env": "", "tasks": [], "options": {}, "episodes": 5, "replan_every": 8, "query": "policy", "text": []}


def evaluated(run: Path, figures: dict, name: str = "", **protocol) -> None:
    rows = [
        {"key": k, "table": k.partition(".")[0], "name": k, "value": v, "low": low, "high": high, "unit": ""}
        for k, (v, low, high) in figures.items()
    ]
    content = {"weights": Run.open(run).digest, "family": "bc", "step": 1, "rows": rows}
    protocol = {**PROTOCOL, "seeds": [1], "held_out": 2, **protocol}
    write_result(run / "eval" / name / "summary.json", content | {"protocol": protocol})


@pytest.fixture
def run(tmp_path) -> Path:
    return untrained_run(tmp_path / "run", [], {}, env="")


@pytest.mark.parametrize(
    ("fault", "place", "words"),
    [
        ({}, "", "no fault found"),
        ({"open_loop.skill.joint.8": (-0.4, -0.6, -0.2)}, "images", "worse than a copy of the current frame"),
        ({"open_loop.skill.joint.16": (-0.4, -0.6, -0.2)}, "images", "predict less far: --window.frame-offsets"),
        ({"open_loop.skill.joint.16": (0.1, -0.2, 0.3)}, "images", "a larger --held-out would tell"),
        ({"coupling.true_over_shuffled": (1.0, 0.95, 1.04)}, "coupling", "its images ignore the actions"),
        (
            {"coupling.true_over_shuffled": (0.9, 0.5, 1.4)},
            "coupling",
            "or its images follow the actions, which lowers the error by 50% at most",
        ),
        ({"coupling.inverse_over_policy": (1.6, 1.3, 2.0)}, "coupling", "its actions do not come from them"),
        ({"closed_loop.success": (0.1, 0.02, 0.3)}, "closed loop", "compare with a run on half of the data"),
        ({"closed_loop.success": (0.4, 0.2, 0.7)}, "closed loop", "--episodes 20 would tell"),
    ],
)
def test_a_known_fault_is_named_with_what_to_try(run, fault, place, words):
    evaluated(run, GOOD | fault)
    found = symptoms(Run.open(run))
    said = verdict(found)
    assert words in said, said
    faults = [s for s in found if s.verdict in ("fault", "undecided")]
    assert [s.place for s in faults] == [place] * bool(place)
    assert ("look first at the" in said) == any(s.verdict == "fault" for s in faults)


@pytest.mark.parametrize(
    ("low", "high", "kind", "words"),
    [
        (0.2, 0.8, "fine", "its images follow the actions"),
        (1.02, 1.1, "fault", "its images ignore the actions"),
        (0.96, 1.03, "undecided", "lowers the error by 4% at most"),
        (0.1, 2.5, "undecided", "lowers the error by 90% at most"),
        (0.0, None, "unknown", "one episode, or few: no interval"),
    ],
)
def test_a_ratio_is_judged_by_its_interval_alone(run, low, high, kind, words):
    evaluated(run, {"coupling.true_over_shuffled": (0.5 if low < 0.5 else 1.02, low, high)})
    (found,) = (s for s in symptoms(Run.open(run)) if s.place == "coupling")
    assert found.verdict == kind and words in str(found)


def test_figures_without_an_interval_are_given_and_never_first(run):
    """One episode: the worst figure of all decides nothing, and what has an interval is named in its place."""
    open_ended = {"open_loop.skill.joint.8": (-5.0, None, 1.0), "open_loop.skill.joint.16": (-5.0, None, 1.0)}
    evaluated(run, GOOD | open_ended | {"closed_loop.success": (0.1, 0.02, 0.3)})
    found = symptoms(Run.open(run))
    (images, _) = (s for s in found if s.place == "images")
    assert images.verdict == "unknown" and "-5.00; one episode, or few: no interval" in images.finding
    assert verdict(found).startswith("look first at the closed loop")
    assert "fails more often than it succeeds" in verdict(found)


@pytest.mark.parametrize(
    ("forecast", "policy", "consistency", "kind", "words"),
    [
        ((0.8, 0.7, 0.9), (0.8, 0.6, 0.9), (0.8, 0.7, 0.9), "fine", "no fault found"),
        ((0.8, 0.7, 0.9), (0.3, 0.1, 0.5), (0.3, 0.1, 0.5), "fault", "the video is right, the arm is wrong"),
        ((0.8, 0.7, 0.9), (-0.3, -0.5, -0.1), (0.0, -0.1, 0.2), "fault", "the video is right, the arm is wrong"),
        ((0.2, 0.1, 0.3), (0.8, 0.6, 0.9), (0.3, 0.1, 0.5), "fault", "forecast error"),
        ((-0.3, -0.5, -0.1), (-0.2, -0.3, -0.1), (0.8, 0.7, 0.9), "fault", "policy error"),
        ((-0.3, -0.5, -0.1), (-0.2, -0.3, -0.1), (-0.4, -0.7, -0.1), "fault", "both are wrong"),
        ((0.3, -0.5, 0.7), (0.8, 0.6, 0.9), (0.5, 0.1, 0.8), "undecided", "does not show"),
        ((0.3, None, 1.0), (0.8, None, 1.0), (0.5, None, 1.0), "unknown", "no interval"),
        (None, (0.8, 0.6, 0.9), None, "fine", "its actions do what the expert's did"),
    ],
)
def test_video_and_arm_are_told_apart_by_intervals(run, forecast, policy, consistency, kind, words):
    told = {"forecast": forecast, "policy": policy, "consistency": consistency}
    evaluated(run, {f"forecast_vs_execution.{k}": v for k, v in told.items() if v})
    (found,) = (s for s in symptoms(Run.open(run)) if s.place == "video and arm")
    assert found.verdict == kind and words in found.finding


def test_the_first_fault_in_the_order_comes_first(run):
    evaluated(run, GOOD | {"open_loop.skill.joint.8": (-1, -2, -0.5), "closed_loop.success": (0.0, 0.0, 0.2)})
    assert verdict(symptoms(Run.open(run))).startswith("look first at the images: skill of joint, 8 steps ahead, -1.00")


def test_how_often_it_replans_is_compared_where_both_were_played(run):
    evaluated(run, GOOD | {"closed_loop.success": (0.1, 0.02, 0.3)})
    untried = [s for s in symptoms(Run.open(run)) if s.place == "chunk and replan"]
    assert [(s.verdict, s.remedy) for s in untried] == [("unknown", f"wamkit eval {run} --replan-every 4")]
    evaluated(run, GOOD, "often", replan_every=2)
    (found,) = (s for s in symptoms(Run.open(run)) if s.place == "chunk and replan")
    assert found.verdict == "fault" and found.remedy == "use --replan-every 2" and "90%" in found.finding
    evaluated(run, GOOD | {"closed_loop.success": (0.2, 0.05, 0.4)}, "often", replan_every=2)
    assert [s.verdict for s in symptoms(Run.open(run)) if s.place == "chunk and replan"] == ["undecided"]


def test_advice_for_few_recordings_names_what_takes_more_of_them(run):
    unsure = GOOD | {"open_loop.skill.joint.16": (0.1, -0.2, 0.3), "recorded.over.still": (0.5, None, None)}
    evaluated(run, unsure, data="data", stride=4)
    remedies = [s.remedy for s in symptoms(Run.open(run)) if s.verdict in ("undecided", "unknown")]
    assert sum("--episodes.held-out, or wamkit eval --data" in r for r in remedies) == 2
    assert not any("larger --held-out" in r for r in remedies)


def test_the_command_on_a_run_without_a_simulator_or_an_evaluation(run, capsys):
    assert main(["diagnose", str(run)]) == 0
    said = capsys.readouterr().out
    assert "data:             unknown: 1 episodes, 0 frames; wamkit validate DATA" in said
    assert f"nothing can be told yet: wamkit eval {run}" in said and "no episode is shown" in said
    assert "nothing says what its data were; name recordings, --data DATA" in said
    evaluated(run, GOOD | {"closed_loop.success": (0.1, 0.02, 0.3)})
    assert main(["diagnose", str(run)]) == 0
    assert "look first at the closed loop: success 10% [2%, 30%]" in capsys.readouterr().out
    with pytest.raises(WamkitError, match="has no evaluation 'oftn'"):
        symptoms(Run.open(run), "oftn")
