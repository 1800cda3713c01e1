"""A small data set, and a run of a few steps on it."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import SMALL, command


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
