"""The core of wamkit loads, samples and acts without the packages of its extras, and names the extra that helps."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from conftest import untrained_run
from wamkit.errors import EXTRAS, missing_package

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WITHOUT_EXTRAS = f"""
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec

class Missing(MetaPathFinder, Loader):
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name.partition(".")[0] in {set(EXTRAS)!r} else None

    def exec_module(self, module):
        raise ModuleNotFoundError(f"No module named {{module.__name__!r}}", name=module.__name__)

sys.meta_path.insert(0, Missing())
"""


def packages(requirements):
    """Names of the requirements, as they are imported."""
    names = (re.match(r"[\w-]+", x)[0].replace("-", "_") for x in requirements)
    return {"yaml" if name == "pyyaml" else name for name in names}


def without_extras(code, *args):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS + code, *map(str, args)], capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained_run(tmp_path_factory.mktemp("core") / "run", ["drawer-open-v3"], {})


def test_every_package_that_is_imported_is_declared_once():
    core, extras = packages(PROJECT["dependencies"]), PROJECT["optional-dependencies"]
    assert len(core) <= 8 and not core & set(EXTRAS)
    named = {"rerun": "rerun_sdk"}  # imported under another name than it is installed
    assert all(named.get(package, package) in packages(extras[extra]) for package, extra in EXTRAS.items())
    imported = set()
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.partition(".")[0])
    others = imported - set(sys.stdlib_module_names) - core - set(EXTRAS) - {"wamkit"}
    # Of these two no import is needed, and one is not on PyPI in a form that installs by itself.
    assert others <= {"google_crc32c", "libero"}


def test_a_model_loads_samples_and_acts(run):
    done = without_extras(
        """
import numpy as np, wamkit
model = wamkit.load(sys.argv[1])
obs = wamkit.Observation(np.zeros((1, 3, 48, 64), np.uint8), np.zeros(4, np.float32), "open the drawer")
action, session = wamkit.Policy(model, replan_every=2).act(obs, None)
print(model.sample(obs, "policy").actions.shape, action.shape)
""",
        run,
    )
    assert done.stdout.split("\n")[0] == "(16, 4) (4,)", done.stderr


COMMANDS = {
    "validate data": "train",
    "train --recipe metaworld-unified --data data --out run": "train",
    "check-env metaworld": "metaworld",
    "check-env pusht": "pusht",
    "list": "",
}
"""Commands, and the extra that each needs."""


@pytest.fixture(scope="module")
def answers():
    """Exit code, output and errors of each, all in one process."""
    done = without_extras(
        """
import contextlib, io, json
from wamkit.cli.main import entry
for line in sys.argv[1:]:
    sys.argv = ["wamkit", *line.split()]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            entry()
        except SystemExit as stop:
            print(json.dumps([stop.code, out.getvalue(), err.getvalue()]), file=sys.__stdout__)
""",
        *COMMANDS,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(COMMANDS, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("command", [c for c, extra in COMMANDS.items() if extra])
def test_a_command_that_needs_an_extra_names_it_in_one_line(command, answers):
    code, out, err = answers[command]
    assert code == 1 and f"pip install 'wamkit[{COMMANDS[command]}]'" in err, err
    assert err.count("\n") == 1 and not out


def test_what_can_be_listed_is_listed(answers):
    code, out, _ = answers["list"]
    assert not code and "metaworld-unified" in out and "unified" in out
    assert "pip install 'wamkit[train]'" in out  # the importers


def test_another_missing_package_is_an_error_as_ever():
    assert missing_package(ModuleNotFoundError("No module named 'nobody'", name="nobody")) == ""
    line = missing_package(ModuleNotFoundError("No module named 'h5py.h5'", name="h5py.h5"))
    assert line == "the package h5py is missing: pip install 'wamkit[import]'"
