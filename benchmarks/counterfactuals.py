"""Counterfactuals of several runs on the same branches, beside models of known rank: docs/results/counterfactuals.md.

Usage: python benchmarks/counterfactuals.py runs/unified runs/world_model
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from wamkit.eval.metatest.reference_branches import MODELS
from wamkit.eval.suites.counterfactuals import ActionScore, counterfactuals, imagined_by, score
from wamkit.experiments.page import table
from wamkit.files import atomic_write
from wamkit.inference.model import load
from wamkit.runs.run import Run
from wamkit.types import Interval


@dataclass(frozen=True)
class Args:
    """Runs of one environment, and the place of the page."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    episodes: int = 6
    """Episodes a task, with two states each."""
    out: Path = Path("docs/results/counterfactuals.md")


def cell(x: Interval, fmt: str = ".2f") -> str:
    return "" if x.undefined else f"{x.value:{fmt}} ({x.low:{fmt}} to {x.high:{fmt}})"


def row(name: str, s: ActionScore) -> list[str]:
    return [
        name,
        cell(s.identified, ".0%"),
        cell(s.direction),
        cell(s.gain),
        cell(s.skill),
        cell(s.drift),
        cell(s.regret),
    ]


def main(args: Args) -> None:
    torch.set_num_threads(1)
    runs = [Run.open(run) for run in args.runs]
    env = runs[0].provenance.env
    states = counterfactuals(env, runs[0].spec, episodes=args.episodes)
    names = " ".join(str(r) for r in args.runs)
    parts = [
        "# Do they imagine what their actions do?",
        f"{len(states)} states of {len(env.tasks)} tasks from held-out reset states, each with branches that the "
        "simulator carried out "
        "([what is measured](../evaluation.md#counterfactuals)). Brackets: 95 %, episodes resampled. Made by "
        f"`python benchmarks/counterfactuals.py {names}`.",
    ]
    head = ["", "identified", "direction", "gain", "skill", "drift", "regret"]
    for title, expert in (("Actions that no demonstration holds", False), ("Experts' chunks", True)):
        own = [s.only(expert) for s in states]
        rows = [row(f"*{k}*", score(own, m)) for k, m in MODELS.items() if not (expert and k == "still")]
        rows += [row(f"**{run.name}**", score(own, imagined_by(load(run)))) for run in runs]
        chance = score(own, MODELS["copy"])
        parts += [
            f"## {title}",
            f"{chance.branches:.0f} branches a state; chance is {chance.chance:.0%}.",
            table(head, rows),
        ]
    parts.append(
        "Italics: models whose rank is known beforehand (`wamkit.eval.metatest.reference_branches`). "
        "Best: 100 %, 1, 1, 1, 0, 0; a model that ignores actions "
        "is at chance, 0, 0, and at a regret of 1, however good its images."
    )
    atomic_write(args.out, ("\n\n".join(parts) + "\n").encode())
    print(args.out)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
