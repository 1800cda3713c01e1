"""A package of its own that extends wamkit: found by its entry points, and held to the same contracts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from conftest import untrained_run
from wamkit.envs.spec import EnvSpec
from wamkit.eval.held_out import evaluation_env
from wamkit.inference.model import load
from wamkit.registry import RegistryError
from wamkit.runs.plugins import with_maker
from wamkit.runs.run import Run
from wamkit.types import WamkitError

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "wamkit-regress"
OPTIONS = {"max_steps": 60, "height": 32, "width": 32, "supersample": 1}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Environment variables of a process in which the example is installed."""
    folder = tmp_path_factory.mktemp("installed")
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    info = folder / "wamkit_regress-0.1.0.dist-info"  # what an installation leaves for others to find
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {module}" for name, module in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    paths = os.pathsep.join([str(folder), str(EXAMPLE), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths.rstrip(os.pathsep)}


COMMANDS = """
import contextlib, io, json, sys
import pytest
from wamkit.cli.main import main

def output(program, *argv):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            code = {"wamkit": main, "pytest": pytest.main}[program]([*argv])
        except SystemExit as stop:  # --help
            code = stop.code
    assert not code, (argv, out.getvalue())
    return out.getvalue()

if __name__ == "__main__":
    print(json.dumps({name: output(*argv) for name, argv in json.loads(sys.argv[1]).items()}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("plugin")


@pytest.fixture(scope="module")
def said(environment, folder):
    """What commands print, all in one process in which the example is installed."""
    acting = untrained_run(folder / "acting", ["reach-v3"], OPTIONS)
    recorded = ["--episodes", "2", "--off-expert", "1", "--perturbed-experts", "1", "--processes", "1"]
    sizes = ["--model.width", "16", "--model.depth", "1", "--model.heads", "2"]
    data, run = str(folder / "dot"), str(folder / "run")
    commands = {
        "list": ["list"],
        "help": ["--help"],
        "tasks": ["tasks", "dot"],
        "drawers": ["tasks", "metaworld", "--containing", "drawer"],
        "check-env": ["check-env", "dot"],
        "collect": ["collect", "--env", "dot", "--tasks", "reach", "--out", data, *recorded],
        "train": ["train", "--data", data, "--out", run, "--train.steps", "1", "--train.batch-size", "2", *sizes],
        "eval": ["eval", str(acting), "--episodes", "1", "--held-out", "1", "--processes", "1"],
    }
    commands = {name: ["wamkit", *words] for name, words in commands.items()}
    commands["contract"] = ["pytest", "tests/contract/test_families.py", "-k", "regress", "-x"]
    script = folder / "commands.py"
    script.write_text(COMMANDS)
    command = [sys.executable, str(script), json.dumps(commands)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout)


def test_the_example_passes_the_contract_tests_from_outside(said):
    assert " passed" in said["contract"]
    assert len((EXAMPLE / "wamkit_regress.py").read_text().splitlines()) < 100


def test_family_and_environment_are_listed(said):
    assert "regress" in said["list"] and "An example from outside" in said["list"]
    assert "dot" in said["list"] and "A disc that moves to a square" in said["list"]


def test_the_command_is_found_documented_and_run(said):
    assert re.search(r"^  tasks +List the tasks of an environment, one a line\.$", said["help"], re.M)
    assert said["tasks"] == "reach\n"
    assert said["drawers"] == "drawer-close-v3\ndrawer-open-v3\n"


def test_the_page_about_environments_shows_the_example_that_is_tested():
    page = (ROOT / "docs/add-an-environment.md").read_text()
    assert f"```python\n{(EXAMPLE / 'wamkit_dot.py').read_text().rstrip()}\n```" in page


def test_the_environment_passes_the_checker_and_is_collected_from(said):
    assert "all checks passed" in said["check-env"]
    assert "collected: 4 episodes" in said["collect"]


def test_a_run_whose_package_is_gone_names_it(said, folder):
    run = folder / "run"
    with pytest.raises(WamkitError, match=r"unknown environment 'dot'.*with the package wamkit-regress 0.1.0: install"):
        evaluation_env(Run.open(run), EnvSpec())
    state = next(run.glob("checkpoints/step-*/state.json"))
    config = json.loads(state.read_text())["config"]
    assert config["plugins"] == {"environment": "wamkit-regress 0.1.0"} and load(run)
    gone = RegistryError("unknown family 'regress'")
    assert with_maker(gone, config).endswith("was trained with the package wamkit-regress 0.1.0: install it")
    assert "which this run does not note" in with_maker(gone, {})


def test_the_evaluation_shows_up_in_the_summary_and_on_the_page(said, folder):
    run = folder / "acting"
    rows = {r["key"]: r for r in json.loads((run / "eval/summary.json").read_text())["rows"]}
    change = rows["smoothness.change"]
    assert list(rows)[-1] == "smoothness.change" and 0 < change["low"] <= change["value"] <= change["high"]
    assert change["axis"] == "Action plausibility" and change["note"].startswith("executed actions: 0.")
    assert "How smooth are its actions?" in said["eval"]
    assert "How smooth are its actions?" in (run / "eval/report.html").read_text()
