"""Contents of an evaluation's page and summary, as plain data: figures in tables, images, videos and curves.

A page is data in, text out: build a `Report` from these parts and pass it to `report.page.write_report`. Parts that are
empty leave their section out.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from wamkit.runs.targets import Targets
from wamkit.types import Episode, EvaluationError, Interval, Target

VISUAL, PHYSICAL, ACTION, CLOSED_LOOP = AXES = (
    "Visual fidelity",
    "Physical commonsense",
    "Action plausibility",
    "Closed loop",
)
"""The axes that a model is scored on. They stay apart: there is no overall score."""


@dataclass(frozen=True)
class Row:
    """One figure with its interval and target.

    key: stable name for machines, unique within its table ("success.door-open-v3").   name: label for people.
    fmt: format of value and interval, as in ".2f" or ".0%".
    target: set by `aimed` where the evaluated recipe or protocol declares one. Suites declare none: what they measure
        is not theirs to judge.
    """

    key: str
    name: str
    value: float | str
    interval: Interval | None = None
    target: Target | None = None
    fmt: str = ".2f"
    unit: str = ""
    note: str = ""

    @property
    def verdict(self) -> Literal["", "met", "missed", "not shown"]:
        """Verdict of the interval on the target; "not shown" for a figure without an interval, "" without a target."""
        if self.target is None:
            return ""
        return "not shown" if self.interval is None else self.target.verdict(self.interval)


@dataclass(frozen=True)
class Table:
    """A titled list of figures.

    key: stable name for machines, without a dot ("closed_loop").   title: heading for people.
    how: one sentence on how to read the table.   axis: the entry of `AXES` under which it stands, "" for none.
    Raises EvaluationError for a key with a dot, or two rows with one key.
    """

    key: str
    title: str
    how: str
    rows: tuple[Row, ...]
    axis: str = ""

    def __post_init__(self) -> None:
        if not self.key or "." in self.key:
            raise EvaluationError(f"table {self.title!r}: a table's key is a word without a dot, got {self.key!r}")
        if twice := [k for k, n in Counter(r.key for r in self.rows).items() if n > 1]:
            raise EvaluationError(f"table {self.key!r} has two rows with the key {twice[0]!r}: rename one")

    def figure(self, row: Row) -> str:
        """Key of a figure among those of all tables, as in summary.json: "closed_loop.success.door-open-v3"."""
        return f"{self.key}.{row.key}"


def aimed(tables: Iterable[Table], targets: Targets) -> list[Table]:
    """The tables, each figure with the target that the first fitting pattern gives it."""
    return [replace(t, rows=tuple(replace(r, target=targets.of(t.figure(r))) for r in t.rows)) for t in tables]


@dataclass(frozen=True)
class TaskResult:
    """Closed-loop success of one task.

    median_steps: over successful episodes, None without any.
    latency: of one policy query, in milliseconds, None where it was not measured.
    """

    task: str
    successes: int
    episodes: int
    median_steps: float | None = None
    latency_p50_ms: float | None = None
    latency_p95_ms: float | None = None

    @staticmethod
    def of(task: str, episodes: Sequence[Episode]) -> TaskResult:
        """Result of rollouts: success at any step, steps until it first held, latency over all queries."""
        steps = [int(e.success.argmax()) + 1 for e in episodes if e.succeeded]
        queries = [1000 * s for e in episodes for s in e.latency_s]
        p50, p95 = (float(x) for x in np.percentile(queries, (50, 95))) if queries else (None, None)
        return TaskResult(task, len(steps), len(episodes), float(np.median(steps)) if steps else None, p50, p95)


@dataclass(frozen=True)
class ClosedLoop:
    """Success per task under one protocol; the page adds a pooled row. target: the rate that each task should reach."""

    title: str
    tasks: tuple[TaskResult, ...]
    target: float | None = None


@dataclass(frozen=True)
class Curves:
    """Learning curves.

    rows: of `metrics.jsonl`, mappings with `step` and any numbers; other entries are ignored.
    panels: chart title -> keys drawn in it (six at most); None gives every numeric key its own chart.
    log: whether the value axis is logarithmic; None decides per chart.
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
    """One window: the frame that the model saw, then the true and the imagined frame at each horizon."""

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
    """Charts as SVG. how: one sentence on how to read them.

    more: further charts by title, beside the first, whose title is then `name`.   axis: as of a `Table`.
    """

    title: str
    how: str
    svg: str
    name: str = ""
    more: Mapping[str, str] = field(default_factory=dict)
    axis: str = ""


@dataclass(frozen=True)
class Worst:
    """One of the worst cases of an axis: named frame sequences, shown side by side."""

    axis: str
    title: str
    columns: Mapping[str, UInt8[np.ndarray, "T 3 H W"]]
    fps: float = 10.0
    note: str = ""


@dataclass(frozen=True)
class EvalResult:
    """Result of one evaluation: tables, and the worst cases as videos."""

    tables: tuple[Table, ...] = ()
    worst: tuple[Worst, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """Success against the severity of one factor of variation, with example images.

    how: meaning of severity 1.   success: one interval per severity.
    strips: one per reset state, an image per severity.
    """

    factor: str
    how: str
    severities: tuple[float, ...]
    success: tuple[Interval, ...]
    strips: tuple[UInt8[np.ndarray, "S 3 H W"], ...] = ()


@dataclass(frozen=True)
class Report:
    """Content of a page.

    verdict: sentences that say what the figures mean, the most important one first.
    headline: up to four figures, shown large.   config: resolved configuration, JSON-serialisable.
    scale: screen pixels per image pixel in videos (3 or 4 suits 64x64).
    """

    title: str
    subtitle: str = ""
    verdict: tuple[str, ...] = ()
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
    """Version and commit of wamkit, and the machine's processor. The commit is "" outside a git checkout."""
    ask = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git on this machine
        commit = ""
    found = versions(("wamkit",))
    return {"wamkit": found["wamkit"], "commit": commit, "machine": found["CPU"]}


def versions(packages: Iterable[str] = ("torch", "mujoco", "metaworld", "wamkit")) -> dict[str, str]:
    """Versions of Python and of `packages`, and the processor's name."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found | {"CPU": f"{processor()}, {os.cpu_count()} logical cores"}


@cache
def processor() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
