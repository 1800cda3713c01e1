"""A small model that answers every query."""

from __future__ import annotations

import pytest

from conftest import untrained_run
from wamkit.inference.model import load


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return untrained_run(tmp_path_factory.mktemp("serving") / "run", ["drawer-open-v3"], {}, "unified")


@pytest.fixture(scope="session")
def model(run):
    return load(run)
