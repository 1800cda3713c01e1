"""LeRobot's own code, which tests compare with where it is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


def site() -> Path:
    """The folder that holds the package `lerobot`."""
    spec = importlib.util.find_spec("lerobot")
    if spec and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0]).parent
    return Path(__file__).parents[1] / "build" / "lerobot"


needs_lerobot = pytest.mark.skipif(
    not (site() / "lerobot/policies/fastwam").is_dir(),
    reason="the code of LeRobot 0.6.1 is not here: tests/numerics/test_released_models.py has the command",
)
