"""Stores that several tests of the data room read, and copies for tests that damage them."""

from __future__ import annotations

from pathlib import Path

import pytest
from recordings import copy_files, fill
from still_recordings import fill_stills

from wamkit.data.format.store import Store


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three episodes with two cameras in videos. Read it only."""
    root = tmp_path_factory.mktemp("store") / "data"
    fill(root, 3)
    return root


@pytest.fixture
def copy(filled: Path, tmp_path: Path) -> Path:
    """A copy of `filled` that the test may damage."""
    return copy_files(filled, tmp_path / "data")


@pytest.fixture(scope="session")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of three episodes whose images are PNG, with a depth camera. Read it only."""
    return fill_stills(tmp_path_factory.mktemp("stills") / "data")


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of three episodes with one camera in videos and one in PNG. Read it only."""
    return fill_stills(tmp_path_factory.mktemp("mixed") / "data", stills=("wrist",), depth=())


@pytest.fixture
def exact_copy(exact: Store, tmp_path: Path) -> Path:
    """A copy of `exact` that the test may damage."""
    return copy_files(exact.root, tmp_path)
