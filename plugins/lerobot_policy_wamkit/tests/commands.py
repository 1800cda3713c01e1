"""Commands of this environment, and options of a model small enough for a test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SMALL = ["--model.width", "32", "--model.depth", "1", "--model.heads", "2"]


def command(*words: object, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of this environment, without a network."""
    name = Path(sys.executable).with_name(str(words[0]))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "MUJOCO_GL": "osmesa", "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(
        [str(name), *map(str, words[1:])], cwd=cwd, env=environment, capture_output=True, text=True, timeout=900
    )
