"""The commands as a user types them: the whole job in miniature, and bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.unit.test_perceptual import ALEX, saved, weights

import wamkit
from wamkit.cli.main import entry, main
from wamkit.eval.results import AXES
from wamkit.types import Observation
from wamkit.workers import kept_workers

TASKS = ["drawer-open-v3", "faucet-open-v3"]
TRAIN = [
    "--model.width",
    "32",
    "--model.depth",
    "1",
    "--model.heads",
    "2",
    "--train.steps",
    "6",
    "--train.batch-size",
    "8",
    "--train.log-every",
    "1",
]


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Iterator[Path]:
    """Two tasks, three demonstrations and one off-expert episode each, six training steps.

    Small images and episodes just longer than an expert's, since most evaluations render or train on them.
    """
    root = tmp_path_factory.mktemp("job")
    recorded = ["--episodes", "3", "--off-expert", "1", "--options", "height=32", "width=32", "max_steps=110"]
    with kept_workers():
        assert main(["collect", "--tasks", *TASKS, *recorded, "--out", str(root / "data")]) == 0
        assert main(["train", "--data", str(root / "data"), "--out", str(root / "run"), *TRAIN]) == 0
        yield root


def test_the_whole_job(job, capsys):
    """Evaluation writes a page, a summary and records; asking again reads the episodes instead of playing them."""
    run = job / "run"
    evaluate = ["eval", str(run), "--episodes", "1", "--held-out", "1", "--steps", "2"]
    assert main(evaluate) == 0
    out = capsys.readouterr().out
    assert "all tasks" in out and "report.html" in out
    summary = json.loads((run / "eval/summary.json").read_text())
    wanted = {"closed_loop.success", "open_loop.skill.joint.8", "coupling.true_over_shuffled"}
    assert wanted | {f"closed_loop.success.{task}" for task in TASKS} <= {r["key"] for r in summary["rows"]}
    page = (run / "eval/report.html").read_text()
    assert "<video" in page and "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page
    assert f"wamkit train --data {job / 'data'} --out {run}" in page
    parts = {p: p.stat().st_mtime_ns for p in (run / "eval/parts").glob("*.json")}
    assert parts and main(evaluate) == 0
    assert parts == {p: p.stat().st_mtime_ns for p in (run / "eval/parts").glob("*.json")}
    seeds = set(json.loads((run / "config.json").read_text())["provenance"]["seeds"])
    assert not seeds & set(pq.read_table(run / "eval/episodes.parquet")["seed"].to_pylist())


@pytest.mark.parametrize("query", ["policy", "video", "forward", "inverse", "joint"])
def test_sample_writes_every_query(job, query):
    assert (
        main(
            [
                "sample",
                str(job / "run"),
                "--query",
                query,
                "--episode",
                "1",
                "--stride",
                "16",
                "--held-out",
                "1",
                "--out",
                str(job / "samples"),
            ]
        )
        == 0
    )
    saved = np.load(job / "samples" / f"{query}-001-stride-16-held-out-1.npz")
    assert saved["now"].dtype == np.uint8
    assert (
        ("imagined" in saved)
        == (query in ("video", "forward", "joint"))
        == (job / "samples" / f"{query}-001-stride-16-held-out-1.mp4").exists()
    )
    assert ("actions" in saved) == (query in ("policy", "inverse", "joint"))


def test_diagnose_says_what_is_wrong_with_one_episode(job, capsys):
    assert main(["diagnose", str(job / "run"), "--episode", "1", "--stride", "30"]) == 0
    assert "faucet-open-v3" in capsys.readouterr().out
    facts = json.loads((job / "run/diagnose/episode-1-stride-30.json").read_text())
    assert facts["task"] == "faucet-open-v3" and facts["diagnosis"] and facts["states"] >= 1
    assert all(facts[k]["value"] <= 1 for k in ("forecast", "policy", "consistency"))
    assert (job / "run/diagnose/episode-1-stride-30.mp4").stat().st_size > 1000


def test_two_runs_are_compared_on_the_same_states(job, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(job / "run", other)
    assert main(["eval", str(job / "run"), str(other), "--paired", "--episodes", "1", "--processes", "1"]) == 0
    out = capsys.readouterr().out
    assert "2 pairs; success of the second less that of the first: +0.0 points" in out and "not decided" in out
    facts = json.loads((other / "eval/paired-with-run.json").read_text())
    assert facts["winner"] is None and facts["e"] == 1 and [t["task"] for t in facts["tasks"]] == TASKS
    assert main(["eval", str(other), "--paired"]) == 1 and "is of two runs" in capsys.readouterr().err
    assert main(["eval", str(job / "run"), str(other), "--paired", "--suite", "full"]) == 1
    assert "leave out --env and --suite" in capsys.readouterr().err
    assert main(["eval", "--paired"]) == 1 and "name the run folder" in capsys.readouterr().err


def test_the_full_suite_has_all_axes(job, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("wamkit.eval.suites.physics.TRAIN_FRAMES", 48)
    trunk, heads = saved(tmp_path, *weights(ALEX))
    arguments = ["--suite", "full", "--episodes", "1", "--held-out", "1", "--steps", "1", "--processes", "1"]
    arguments += ["--encoder", f"lpips-alex={trunk},{heads}"]
    assert main(["eval", str(job / "run"), *arguments]) == 0
    summaries = {p.parent: json.loads(p.read_text()) for p in (job / "run/eval").rglob("summary.json")}
    ((folder, summary),) = ((f, s) for f, s in summaries.items() if "--suite full" in s["command"])
    rows = {r["key"]: r for r in summary["rows"]}
    told = rows["counterfactuals.off_expert.identified"]
    assert 0 <= told["low"] <= told["value"] <= told["high"] <= 1 and "chance is 10%" in told["note"]
    execution = {f"forecast_vs_execution.{k}" for k in ("policy", "consistency")}
    assert {"counterfactuals.expert.identified"} | execution <= set(rows)
    assert rows["action_recoverability.floor"]["value"] > 0 and "forecast_consistency.skill" in rows
    (lpips,) = (r for key, r in rows.items() if key.startswith("pretrained_features.LPIPS (alex) @"))
    assert lpips["axis"] == "Visual fidelity" and lpips["value"] > 0 and "copying has" in lpips["note"]
    page = (folder / "report.html").read_text()
    assert all(f"{t}?" in page for t in ("Does it imagine what its actions do", "Does the world go as it imagined"))
    assert rows["physics.ade"]["axis"] == "Physical commonsense" and "Worst cases" in page
    axes = [page.index(f'<h2 class="axis">{a}</h2>') for a in AXES]
    assert axes == sorted(axes)
    named = ["--evaluation", str(folder.relative_to(job / "run/eval"))]
    assert main(["report", str(job / "run"), *named, "--out", str(job / "all.html")]) == 0
    assert "positions, mean error" in (job / "all.html").read_text()


def test_the_python_front_door(job):
    model = wamkit.load(job / "run")
    rng = np.random.default_rng(0)
    obs = Observation(
        rng.integers(0, 256, (1, 3, 32, 32), np.uint8), rng.standard_normal(4, np.float32), "open the drawer"
    )
    out = model.sample(obs, query="joint", seed=0)
    assert out.actions.shape == (16, 4) and out.future.shape == (2, 1, 3, 32, 32)
    assert np.abs(out.actions).max() <= 1 and model.action_bounds == ((-1, 1),) * 4  # MetaWorld's, by way of the data
    assert model.sample([obs], query="joint", seed=0).actions.shape == (1, 16, 4)
    action, session = wamkit.Policy(model, replan_every=8).act(obs, session=None)
    assert action.shape == (4,) and session.used == 1


def test_the_same_command_again_has_nothing_to_do(job, capsys):
    before = (job / "run/checkpoints/latest").read_text()
    assert main(["train", "--data", str(job / "data"), "--out", str(job / "run"), *TRAIN]) == 0
    assert (job / "run/checkpoints/latest").read_text() == before


def test_check_env_takes_the_first_task_or_the_one_that_is_named(capsys):
    assert main(["check-env", "physics", "--task", "push"]) == 0
    assert "physics, push: all checks passed" in capsys.readouterr().out
    assert main(["check-env", "physics"]) == 0
    assert "physics, drop: all checks passed" in capsys.readouterr().out


def test_list_names_everything(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for word in (
        "unified",
        "bc",
        "metaworld",
        "metaworld-unified",
        "metaworld-bc",
        "policy",
        "video",
        "forward",
        "inverse",
        "joint",
    ):
        assert word in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "unknown command 'trian' (did you mean 'train'?)"),
        (["collect", "--tasks", "drawer-opn-v3", "--out", "{tmp}/d"], "did you mean 'drawer-open-v3'"),
        (["collect", "--env", "metawrld", "--tasks", "x", "--out", "{tmp}/d"], "did you mean 'metaworld'"),
        (
            ["train", "--recipe", "metaworld-unifed", "--data", "{tmp}", "--out", "{tmp}/r"],
            "did you mean 'metaworld-unified'",
        ),
        (["train", "--data", "{tmp}/nowhere", "--out", "{tmp}/r"], "nowhere"),
        (["train", "--data", "{tmp}", "--out", "{tmp}/r"], "info.json"),
        (["eval", "{tmp}/nowhere"], "there is no run at"),
        (["sample", "{tmp}", "--query", "joint"], "checkpoint"),
        (["sample", "{tmp}", "--query", "jiont"], "there is no query 'jiont' (did you mean 'joint'?)"),
        (["check-env", "metaworl"], "did you mean 'metaworld'"),
        (["check-env", "metaworld", "--task", "drawer-opn-v3"], "did you mean 'drawer-open-v3'"),
        (["collect", "--tasks", "drawer-open-v3", "--out", "{tmp}/file/d"], "could not write {tmp}/file: "),
        (["collect", "--tasks", "drawer-open-v3", "--out", "{tmp}/file"], "could not write {tmp}/file: "),
    ],
)
def test_bad_input_is_one_clear_line(argv, message, tmp_path, capsys):
    argv = [a.format(tmp=tmp_path) for a in argv]
    (tmp_path / "file").touch()
    assert main(argv) in (1, 2)
    err = capsys.readouterr().err
    assert message.format(tmp=tmp_path) in err and "Traceback" not in err and len(err.strip().splitlines()) == 1


def test_choices_are_written_as_the_documentation_writes_them(tmp_path, capsys):
    argv = ["train", "--data", f"{tmp_path}/nowhere", "--out", f"{tmp_path}/r", "--model.program"]
    assert main([*argv, "video_then_action"]) == 1 and "nowhere" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*argv, "video_then"])
    assert "video_then_action" in capsys.readouterr().err


def test_list_refuses_further_words(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["list", "extra"])
    assert stop.value.code == 2 and "extra" in capsys.readouterr().err


def test_a_full_disk_ends_the_progress_bar_before_the_error(tmp_path):
    """The message has a line of its own, and no worker outlives it."""
    script = """
import resource, sys
from wamkit.cli.main import main
if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
    sys.exit(main(sys.argv[1:]))
"""
    (tmp_path / "go.py").write_text(script)
    collect = ["collect", "--env", "reacher", "--tasks", "reach", "--episodes", "0", "--off-expert", "2"]
    collect += ["--processes", "1", "--out", "d"]
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "go.py", *collect], cwd=tmp_path, env=here, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("wamkit collect: could not write d/")


def test_ctrl_c_while_modules_are_imported_leaves_no_traceback(monkeypatch, capsys):
    def interrupted() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("wamkit.cli.main.main", interrupted)
    with pytest.raises(SystemExit) as stop:
        entry()
    assert stop.value.code == 130 and "Traceback" not in capsys.readouterr().err


def test_an_unknown_option_names_the_nearest(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--data", str(tmp_path), "--out", str(tmp_path / "r"), "--train.stps", "3"])
    assert "--train.steps" in capsys.readouterr().err


def test_other_options_on_a_begun_run_are_refused(job, capsys):
    assert main(["train", "--data", str(job / "data"), "--out", str(job / "run"), *TRAIN, "--train.seed", "4"]) == 1
    assert "train.seed was 0, now 4" in capsys.readouterr().err


def test_a_flipped_bit_in_the_weights_is_found(job, tmp_path, capsys):
    shutil.copytree(job / "run", tmp_path / "run")
    weights = next((tmp_path / "run/checkpoints").glob("step-*/weights.safetensors"))
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    assert main(["eval", str(tmp_path / "run")]) == 1
    assert "weights.safetensors" in capsys.readouterr().err


def test_show_and_list_by_axis(capsys, tmp_path):
    assert main(["show", "unified", "--out", str(tmp_path / "u.svg")]) == 0
    shown = capsys.readouterr().out
    assert "tokens of a row attend" in shown and "noisy action" in shown and (tmp_path / "u.svg").stat().st_size > 500
    assert main(["list", "--by", "decoder"]) == 0
    assert "trunk denoises\n  align, bc" in capsys.readouterr().out
    assert main(["show", "unifed"]) == 1 and main(["list", "--by", "decodr"]) == 1
    errors = capsys.readouterr().err
    assert "no family, recipe or run folder" in errors and "did you mean 'decoder'" in errors


def test_the_package_imports_before_torch_and_has_all_its_names():
    """So that Ctrl-C in the first seconds of a command ends it with a message."""
    code = "import sys, wamkit, wamkit.cli.main; print('torch' in sys.modules); "
    code += "print([getattr(wamkit, n) for n in wamkit.__all__] and 'ok')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "ok"]
    with pytest.raises(AttributeError, match="no attribute 'Polcy'"):
        wamkit.Polcy  # noqa: B018
