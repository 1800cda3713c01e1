"""A family in a package of its own: found by its entry point, and held to the same contract."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "wamkit-regress"


def test_the_example_passes_the_contract_tests_from_outside(tmp_path):
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["wamkit.families"]
    info = tmp_path / "wamkit_regress-0.1.0.dist-info"  # what an installation leaves for others to find
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = "\n".join(f"{name} = {module}" for name, module in points.items())
    (info / "entry_points.txt").write_text(f"[wamkit.families]\n{lines}\n")
    paths = os.pathsep.join([str(tmp_path), str(EXAMPLE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths.rstrip(os.pathsep)}
    command = [sys.executable, "-m", "pytest", "tests/contract/test_families.py", "-k", "regress", "-x"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout[-3000:]
    listed = subprocess.run(
        [sys.executable, "-c", "from wamkit.cli.main import main; main(['list'])"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert "regress" in listed.stdout and "An example from outside" in listed.stdout, listed.stdout + listed.stderr
    assert len((EXAMPLE / "wamkit_regress.py").read_text().splitlines()) < 100
