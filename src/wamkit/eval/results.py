"""One self-contained HTML page of everything an evaluation found: opens offline, on a phone, in light and dark.

The page is data in, text out: build a `Report` from typed parts, call `write_report`. Parts left empty leave their
section out. All text is escaped; pictures, videos, styles and the script are inside the file, and a content policy
forbids the browser to fetch anything.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from wamkit.types import Episode, Interval

VISUAL, PHYSICAL, ACTION, CLOSED_LOOP = AXES = (
    "Visual fidelity",
    "Physical commonsense",
    "Action plausibility",
    "Closed loop",
)
"""What a model is judged by, apart: there is no score of everything."""


@dataclass(frozen=True)
class Row:
    """One figure: what it is, its value, how sure, and what it should have been.

    fmt: format of value and interval, as in ".2f" or ".0%".   target: as text ("at least 0.65").   passed: None where
    there is no target.
    """

    name: str
    value: float | str
    interval: Interval | None = None
    target: str = ""
    passed: bool | None = None
    fmt: str = ".2f"
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A titled list of figures; `how` is one sentence on how to read it. axis: of `AXES`, under which it stands."""

    title: str
    how: str
    rows: tuple[Row, ...]
    axis: str = ""


@dataclass(frozen=True)
class TaskResult:
    """Closed-loop success of one task. median_steps: over successful episodes, None without any. Latency is one policy
    query in milliseconds, None where nobody measured."""

    task: str
    successes: int
    episodes: int
    median_steps: float | None = None
    latency_p50_ms: float | None = None
    latency_p95_ms: float | None = None

    @staticmethod
    def of(task: str, episodes: Sequence[Episode]) -> TaskResult:
        """From rollouts: success at any step, steps until it first held, latency over all queries."""
        steps = [int(e.success.argmax()) + 1 for e in episodes if e.succeeded]
        queries = [1000 * s for e in episodes for s in e.latency_s]
        p50, p95 = (float(x) for x in np.percentile(queries, (50, 95))) if queries else (None, None)
        return TaskResult(task, len(steps), len(episodes), float(np.median(steps)) if steps else None, p50, p95)


@dataclass(frozen=True)
class ClosedLoop:
    """Success per task under one protocol, with the pooled row added. target: the rate each task should reach."""

    title: str
    tasks: tuple[TaskResult, ...]
    target: float | None = None


@dataclass(frozen=True)
class Curves:
    """Learning curves from metrics rows: mappings with `step` and any numbers; other entries are ignored.

    panels: chart title -> keys drawn in it (six at most); None gives every numeric key its own chart.
    log: value axis, None decides per chart.
    """

    title: str
    rows: Sequence[Mapping[str, Any]]
    panels: Mapping[str, Sequence[str]] | None = None
    log: bool | None = None


@dataclass(frozen=True)
class Imagined:
    """One clip of futures: imagined[t] was predicted `offset` steps before real[t] happened."""

    title: str
    offset: int
    real: UInt8[np.ndarray, "T 3 H W"]
    imagined: UInt8[np.ndarray, "T 3 H W"]
    fps: float = 10.0
    note: str = ""


@dataclass(frozen=True)
class Still:
    """One window: the frame that the model saw, then per horizon what happened and what it imagined."""

    title: str
    now: UInt8[np.ndarray, "3 H W"]
    truth: UInt8[np.ndarray, "F 3 H W"]
    imagined: UInt8[np.ndarray, "F 3 H W"]
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class Clip:
    """One closed-loop episode."""

    title: str
    frames: UInt8[np.ndarray, "T 3 H W"]
    success: bool
    fps: float = 20.0
    note: str = ""


@dataclass(frozen=True)
class Plot:
    """A drawing of its own, as SVG; `how` is one sentence on how to read it."""

    title: str
    how: str
    svg: str


@dataclass(frozen=True)
class Worst:
    """One of the worst cases of an axis: pictures side by side by their names, uint8 (T, 3, H, W) each."""

    axis: str
    title: str
    columns: Mapping[str, UInt8[np.ndarray, "T 3 H W"]]
    fps: float = 10.0
    note: str = ""


@dataclass(frozen=True)
class Sweep:
    """Success over the severity of one factor of variation, and what some reset states look like at each severity.

    how: what severity 1 is.   success: one interval a severity.   strips: one a reset state, a picture a severity.
    """

    factor: str
    how: str
    severities: tuple[float, ...]
    success: tuple[Interval, ...]
    strips: tuple[UInt8[np.ndarray, "S 3 H W"], ...] = ()


@dataclass(frozen=True)
class Report:
    """Everything on the page. headline: up to four figures shown large. config: resolved, JSON-serialisable.

    scale: how many screen pixels a picture's pixel becomes in videos (3 or 4 suits 64x64).
    """

    title: str
    subtitle: str = ""
    headline: tuple[Row, ...] = ()
    tables: tuple[Table, ...] = ()
    closed_loop: tuple[ClosedLoop, ...] = ()
    imagined: tuple[Imagined, ...] = ()
    stills: tuple[Still, ...] = ()
    clips: tuple[Clip, ...] = ()
    worst: tuple[Worst, ...] = ()
    plots: tuple[Plot, ...] = ()
    curves: tuple[Curves, ...] = ()
    sweeps: tuple[Sweep, ...] = ()
    commands: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    scale: int = 4


def made_by() -> dict[str, str]:
    """Version, commit where there is one, machine."""
    ask = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git on this machine
        commit = ""
    found = versions(("wamkit",))
    return {"wamkit": found["wamkit"], "commit": commit, "machine": found["CPU"]}


def versions(packages: Iterable[str] = ("torch", "mujoco", "metaworld", "wamkit")) -> dict[str, str]:
    """Versions of Python, the packages that are installed, and the processor's name."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return found | {"CPU": f"{names[0] if names else platform.machine()}, {os.cpu_count()} logical cores"}
