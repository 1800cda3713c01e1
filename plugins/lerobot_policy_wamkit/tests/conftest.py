"""A small data set, and a run of a few steps on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = ["--model.width", "32", "--model.depth", "1", "--model.heads", "2"]


def command(*words: object, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of this environment, without a network."""
    name = Path(sys.executable).with_name(str(words[0]))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "MUJOCO_GL": "osmesa", "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(
        [str(name), *map(str, words[1:])], cwd=cwd, env=environment, capture_output=True, text=True, timeout=900
    )


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("plugin")


@pytest.fixture(scope="session")
def data(folder) -> Path:
    """Three demonstrations of one task."""
    out = folder / "data"
    done = command(
        "wamkit", "collect", "--env", "metaworld", "--tasks", "drawer-open-v3", "--episodes", 3, "--out", out
    )
    assert not done.returncode, done.stderr
    return out


@pytest.fixture(scope="session")
def trained(folder, data) -> Path:
    """A run of `wamkit train`."""
    out = folder / "runs/wamkit"
    steps = ["--train.steps", 6, "--train.batch-size", 4]
    done = command("wamkit", "train", "--data", data, "--out", out, *SMALL, *steps)
    assert not done.returncode, done.stderr
    return out
