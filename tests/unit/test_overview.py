"""Many runs on one page: the same figures side by side, and evaluations that do not compare refused."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest

from conftest import untrained_run
from wamkit.eval.outputs import results_folder, write_result
from wamkit.eval.report.overview import evaluation_under, overview, read_evaluation
from wamkit.eval.suites.closed_loop import Record, records_file
from wamkit.runs.exported import export
from wamkit.runs.run import Run
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
        (run / "eval/episodes.parquet").write_bytes(records_file(records))
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


def sealed_evaluation(root: Path, name: str, weights: str = "", **protocol) -> Path:
    """An evaluation as today's `wamkit eval` writes it, of a run with weights."""
    run = untrained_run(root / name, ["reach"], {}) if not (root / name).exists() else root / name
    played = [Record("reach", k, "go", k % 2 == 0, 5, (1.0,)) for k in range(12)]
    row = {
        "key": "a.b",
        "axis": "",
        "table": "Does it?",
        "name": "all",
        "value": 0.5,
        "low": 0.1,
        "high": 0.9,
        "unit": "",
    }
    asked = PROTOCOL | protocol
    summary = {"run": str(run), "family": "bc", "step": 1, "weights": weights or Run.open(run).digest, "rows": [row]}
    summary |= {"protocol": asked, "command": f"wamkit eval {run} --episodes {asked['episodes']}"}
    with results_folder(run / "eval", "summary.json", asked, f"episodes-{asked['episodes']}") as folder:
        folder.mkdir(exist_ok=True)
        (folder / "episodes.parquet").write_bytes(records_file(played))
        digest = hashlib.sha256(records_file(played)).hexdigest()
        write_result(folder / "summary.json", summary | {"files": {"episodes.parquet": digest}})
    return run


def test_figures_of_replaced_weights_are_not_shown(tmp_path):
    run = sealed_evaluation(tmp_path, "run")
    overview((run,), tmp_path / "page.html")
    before = Run.open(untrained_run(tmp_path / "earlier", ["reach"], {})).manifest.digest
    overview((sealed_evaluation(tmp_path, "earlier", before),), tmp_path / "page.html")  # as earlier versions named it
    (tmp_path / "page.html").unlink()
    untrained_run(run, ["reach"], {}, seed=1)
    with pytest.raises(WamkitError, match=rf"no longer holds .*: evaluate it again: wamkit eval {run} --episodes 12"):
        overview((run,), tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_an_exported_file_is_reported_from_the_folder_beside_it(tmp_path):
    run, file = sealed_evaluation(tmp_path, "run"), tmp_path / "file.safetensors"
    export(Run.open(run), file)
    with pytest.raises(WamkitError, match=rf"{file} was not evaluated: wamkit eval {file}"):
        overview((file,), tmp_path / "page.html")
    shutil.copytree(run / "eval", tmp_path / "file/eval")
    overview((run, file), tmp_path / "page.html")
    assert "file.safetensors" in (tmp_path / "page.html").read_text()
    export(Run.open(untrained_run(tmp_path / "other", ["reach"], {}, seed=1)), file)
    with pytest.raises(WamkitError, match=rf"which {file} no longer holds"):
        overview((file,), tmp_path / "page.html")


def test_evaluations_of_several_protocols_are_kept_and_chosen(tmp_path, capsys):
    a, b = sealed_evaluation(tmp_path, "a"), sealed_evaluation(tmp_path, "b", episodes=50)
    sealed_evaluation(tmp_path, "a", episodes=50)
    sealed_evaluation(tmp_path, "a")
    assert read_evaluation(a).summary["protocol"]["episodes"] == 12
    (other,) = (a / "eval").glob("episodes-50-*")
    overview((a, b), tmp_path / "page.html", other.name)
    with pytest.raises(WamkitError, match="evaluated differently.*episodes is 12 and 50"):
        overview((a, b), tmp_path / "page.html")
    sealed_evaluation(tmp_path, "b")
    overview((a, b), tmp_path / "page.html")
    with pytest.raises(WamkitError, match=rf"has no evaluation 'episodes-5'.*it has \., {other.name}"):
        overview((a, b), tmp_path / "page.html", "episodes-5")


def test_an_evaluation_is_found_by_its_protocol(tmp_path):
    run = evaluated(tmp_path, "a", [True] * 12)
    other = {**PROTOCOL, "episodes": 3, "tasks": ("reach",)}
    shutil.move(evaluated(tmp_path, "b", [False] * 3, other) / "eval", run / "eval/later")
    assert [r.success for r in evaluation_under(run, other).records] == [False] * 3
    assert len(evaluation_under(run, PROTOCOL).records) == 12
    with pytest.raises(WamkitError, match="was not evaluated under this protocol"):
        evaluation_under(run, {**PROTOCOL, "episodes": 4})


@pytest.mark.parametrize("name", ["summary.json", "episodes.parquet"])
def test_a_flipped_bit_in_an_evaluation_is_found(tmp_path, name):
    run = sealed_evaluation(tmp_path, "run")
    file, whole = run / "eval" / name, read_evaluation(run)
    good = file.read_bytes()
    for bit in random.Random(0).sample(range(len(good) * 8), 60):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        file.write_bytes(bad)
        try:
            found = read_evaluation(run)
            assert (found.records, found.figures) == (whole.records, whole.figures)
        except WamkitError as error:
            assert f"wamkit eval {run}" in str(error) and "\n" not in str(error)


def test_many_runs_stand_below_each_other(tmp_path, capsys):
    """Runs of a comparison are folders named by hashes: short names with the family, and no table wider than a page."""
    runs = []
    for k in range(12):
        runs.append(evaluated(tmp_path, f"leaves/{hashlib.sha256(bytes([k])).hexdigest()}", [k % 2 == 0] * 12))
    page = overview(tuple(runs), tmp_path / "page.html").read_text()
    said = capsys.readouterr().out
    assert "<h1>12 runs</h1>" in page and max(row.count("<td") for row in page.split("<tr>")) == 2
    assert f'what">{runs[3].name}' not in page and f'what">&lt;b&gt; {runs[3].name[:8]}</td>' in page
    # Phones do not show the head of a table: the figure stands above it. Runs are named alike in all lines.
    assert "<h3>all</h3>" in page and "<thead>" not in page
    assert runs[3].name not in said.partition("success of")[2]
    figures = said.partition("success of")[0]
    assert max(map(len, figures.splitlines())) < 90 and f"    <b> {runs[3].name[:8]}  0\n" in figures
