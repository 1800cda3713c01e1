"""Many runs on one page: the same figures side by side, and evaluations that do not compare refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wamkit.eval.report.overview import overview, read_evaluation
from wamkit.eval.suites.closed_loop import Record, write_records
from wamkit.types import WamkitError

PROTOCOL = {
    "env": "reacher",
    "tasks": ["reach"],
    "options": [],
    "episodes": 12,
    "replan_every": 8,
    "query": "policy",
    "text": [],
    "seeds": [1],
    "held_out": 2,
}


def evaluated(root: Path, name: str, solved: list[bool], protocol=PROTOCOL, acts: bool = True) -> Path:
    run = root / name
    rows = [
        {"axis": "Closed loop", "table": "Does it?", "name": "all", "value": sum(solved) / len(solved), "low": 0.1},
        {"axis": "Visual fidelity", "table": "Right?", "name": f"skill of {name}", "value": 0.5, "low": None},
    ]
    rows = [row | {"high": row["low"] and 0.9, "unit": ""} for row in rows]
    (run / "eval").mkdir(parents=True)
    summary = {"run": str(run), "family": "<b>", "step": 3, "weights": "f" * 64, "protocol": protocol, "rows": rows}
    (run / "eval/summary.json").write_text(json.dumps(summary))
    if acts:
        records = [Record("reach", k, "go", s, 5, (1.0,)) for k, s in enumerate(solved)]
        write_records(records, run / "eval/episodes.parquet")
    return run


def test_runs_stand_side_by_side(tmp_path, capsys):
    a, b = evaluated(tmp_path, "a", [False] * 12), evaluated(tmp_path, "b", [True] * 12)
    c = evaluated(tmp_path, "c", [False], acts=False)
    page = overview((a, b, c), tmp_path / "page.html")
    text, said = page.read_text(), capsys.readouterr().out
    assert text.count('<h2 class="axis">') == 2 and text.index("Visual fidelity") < text.index("Closed loop")
    assert "&lt;b&gt;" in text and "<b>" not in text and "skill of b" in text
    assert "decided" in said and f"{b} is better" in said and "skill of b" not in said
    found = json.loads((tmp_path / "page.json").read_text())
    assert [r["run"] for r in found["runs"]] == [str(a), str(b), str(c)]
    assert [(r["run"], r["winner"]) for r in found["against_the_first"]] == [(str(b), "second")]


def test_an_open_end_is_shown_as_one(tmp_path):
    run = evaluated(tmp_path, "a", [True])
    path = run / "eval/summary.json"
    summary = json.loads(path.read_text())
    row = {"key": "x.y", "axis": "", "table": "T", "name": "y", "value": 1.0, "low": 0.2, "high": None, "unit": ""}
    path.write_text(json.dumps(summary | {"rows": [row]}))
    assert "<small>0.2 to ∞</small>" in overview((run,), tmp_path / "page.html").read_text()


def test_figures_of_earlier_versions_meet_those_of_today(tmp_path, capsys):
    """A summary without keys has its figures under the keys of today, whatever a title has become."""
    old, new = evaluated(tmp_path, "old", [True]), evaluated(tmp_path, "new", [True])
    row = {"axis": "", "value": 0.5, "low": None, "high": None, "unit": ""}
    names = [("Do picture and action belong together?", "forward dynamics, true / shuffled actions")]
    names += [
        ("Is what it imagines right?", "joint, +8: skill over copying"),
        ("Does it solve the tasks?", "door-open-v3"),
    ]
    keys = ["coupling.true_over_shuffled", "open_loop.skill.joint.8", "closed_loop.success.door-open-v3"]
    earlier = [row | {"table": table, "name": name} for table, name in names]
    today = [row | {"table": "another title", "name": "another label", "key": key} for key in keys]
    for run, rows in ((old, earlier), (new, today)):
        summary = json.loads((run / "eval/summary.json").read_text())
        (run / "eval/summary.json").write_text(json.dumps(summary | {"rows": rows}))
    assert list(read_evaluation(old).figures) == list(read_evaluation(new).figures) == keys
    overview((old, new), tmp_path / "page.html")
    said = capsys.readouterr().out
    assert said.count("0.5  ") >= 3 and "joint, +8: skill over copying" in said and "another label" not in said


def test_what_does_not_compare_is_refused(tmp_path):
    a = evaluated(tmp_path, "a", [True, False])
    other = evaluated(tmp_path, "other", [True, False], PROTOCOL | {"episodes": 5})
    with pytest.raises(WamkitError, match="evaluated differently.*episodes is 12 and 5"):
        overview((a, other), tmp_path / "page.html")
    with pytest.raises(WamkitError, match="was not evaluated: wamkit eval"):
        overview((a, tmp_path / "none"), tmp_path / "page.html")
    (other / "eval/summary.json").write_text("{}")
    with pytest.raises(WamkitError, match="cannot be read"):
        overview((a, other), tmp_path / "page.html")
    for runs in ((), (a, a)):
        with pytest.raises(WamkitError, match="each once"):
            overview(runs, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
