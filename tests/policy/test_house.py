"""Rules of the house that a machine can hold."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAMILY_FILES = sorted(p for p in (ROOT / "src/wamkit/families").glob("[!_]*.py") if p.stem != "base")


def test_imports_go_down_only():
    result = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports")], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_ruff_is_clean():
    result = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "src", "tests", "benchmarks", "tools"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout


def test_torchvision_is_absent():
    """The registry's build for this torch breaks torchmetrics and drags CUDA in; nothing here may pull it."""
    assert importlib.util.find_spec("torchvision") is None


@pytest.mark.parametrize("path", FAMILY_FILES, ids=lambda p: p.stem)
def test_a_family_is_one_short_file_that_imports_no_other(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    assert not re.search(r"(from|import) wamkit\.families(?!\.base )", text)


def test_readme_names_the_two_commands():
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme and "make test" in readme and len(readme.splitlines()) <= 250
