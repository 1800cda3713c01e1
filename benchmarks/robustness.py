"""Success of several runs under factors of variation, side by side: docs/results/robustness.md.

Usage: python benchmarks/robustness.py runs/unified runs/bc   (what `wamkit robustness` has played is read)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from wamkit.eval.protocols import Protocol
from wamkit.eval.report.robustness import write_robustness
from wamkit.eval.suites.robustness import sweep
from wamkit.experiments.page import table
from wamkit.files import atomic_write
from wamkit.runs.run import Run
from wamkit.types import Interval


@dataclass(frozen=True)
class Args:
    """Runs of one environment, and the place of the page."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    episodes: int = 20
    """Held-out reset states a task."""
    out: Path = Path("docs/results/robustness.md")


def cell(x: Interval, fmt: str) -> str:
    return "" if x.undefined else f"{x.value:{fmt}} ({x.low:{fmt}} to {x.high:{fmt}})"


def main(args: Args) -> None:
    sweeps = [sweep(Run.open(run), Protocol(episodes=args.episodes)) for run in args.runs]
    for each in sweeps:
        write_robustness(each)
    curves = {each.run.name: {c.factor: c for c in each.curves} for each in sweeps}
    names, first = list(curves), next(iter(curves.values()))
    areas = [[f, *(cell(curves[n][f].area, ".2f") for n in names), first[f].meaning] for f in first]
    success = [
        [f"{f} {p.severity:g}", *(cell(curves[n][f].points[i].success, ".0%") for n in names)]
        for f, c in first.items()
        for i, p in enumerate(c.points)
    ]
    parts = [
        "# Do they still work when the world differs?",
        f"{args.episodes} held-out reset states of each task, the same at every severity and for every run "
        f"([what is varied](../evaluation.md#robustness)). Brackets: 95 %. Made by "
        f"`python benchmarks/robustness.py {' '.join(map(str, args.runs))}`.",
        "## Success to be expected at a severity drawn evenly from 0 to 1, over that at 0",
        table(["factor", *names, "at severity 1"], areas),
        "## Success at every severity",
        table(["", *names], success),
    ]
    atomic_write(args.out, ("\n\n".join(parts) + "\n").encode())
    print(f"page: {args.out}")


if __name__ == "__main__":
    main(tyro.cli(Args))
