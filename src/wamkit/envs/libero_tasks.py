"""The tasks of LIBERO, read from its package without importing it."""

from __future__ import annotations

import importlib.util
import runpy
from functools import lru_cache
from pathlib import Path

from wamkit.errors import WamkitError

MAX_STEPS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
"""Steps of an episode by suite, the limits of OpenVLA and openpi: a little more than the longest demonstration
takes."""

INSTALLATION = "docs/environments.md describes its installation without another PyTorch"


def package() -> Path:
    """Folder of LIBERO's tasks and initial states, found without importing LIBERO. Raises WamkitError if it is not
    installed."""
    found = importlib.util.find_spec("libero")
    folders = [Path(p) / "libero" for p in (found.submodule_search_locations or ())] if found else []
    for folder in folders:
        if (folder / "benchmark/libero_suite_task_map.py").exists():
            return folder
    raise WamkitError(f"LIBERO needs the package hf-libero; {INSTALLATION}")


@lru_cache(maxsize=1)
def suites() -> dict[str, tuple[str, ...]]:
    """Task names by suite, in LIBERO's order. Raises WamkitError if LIBERO is not installed."""
    tasks = runpy.run_path(str(package() / "benchmark/libero_suite_task_map.py"))["libero_task_map"]
    return {suite: tuple(tasks[suite]) for suite in MAX_STEPS}
