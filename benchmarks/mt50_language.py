"""What words do to a model of MetaWorld's fifty tasks: docs/results/mt50-language.md.

Every task is played with its instruction in other words, which no demonstration has. Two tasks that look alike,
faucet-open and faucet-close, are played from reset states that both share, once with the right instruction and once
with that of the other.

Usage: python benchmarks/mt50_language.py RUN [RUN ...]   (what was played is read)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro

from wamkit.envs.metaworld import shared_reset_range
from wamkit.envs.metaworld_tasks import INSTRUCTIONS, PARAPHRASES
from wamkit.eval.held_out import evaluation_env
from wamkit.eval.metrics.intervals import clopper_pearson, paired_difference
from wamkit.eval.protocols import Protocol, named_protocol
from wamkit.eval.suites.closed_loop import closed_loop
from wamkit.experiments.page import table
from wamkit.files import atomic_write
from wamkit.runs.run import Run
from wamkit.types import Interval

ALIKE = ("faucet-open-v3", "faucet-close-v3")
"""Tasks that differ in their instruction alone, where they start from the same reset states."""


@dataclass(frozen=True)
class Args:
    """Runs of the fifty tasks, and the place of the page."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    alike_episodes: int = 50
    """Held-out reset states of each of the two tasks that look alike."""
    out: Path = Path("docs/results/mt50-language.md")
    processes: int = 2
    """Worker processes."""


def cell(x: Interval) -> str:
    return f"{100 * x.value:.1f} ({100 * x.low:.1f} to {100 * x.high:.1f})"


def compared(run: Run, own: Protocol, other: Protocol, processes: int) -> list[str]:
    """Success with both instructions, in percent, and the paired difference in points."""
    first, second = (np.array([r.success for r in closed_loop(run, p, processes=processes)]) for p in (own, other))
    rates = [clopper_pearson(int(x.sum()), len(x)) for x in (first, second)]
    return [str(len(first)), *map(cell, (*rates, paired_difference(first, second)))]


def main(args: Args) -> None:
    rows = []
    for path in args.runs:
        run = Run.open(path)
        protocol = named_protocol("metaworld-mt50")
        protocol = replace(protocol, env=evaluation_env(run, protocol.env, keep_rendering=True))
        words = replace(protocol, text=tuple(PARAPHRASES.items()))
        rows.append([f"{path.name}, other words", *compared(run, protocol, words, args.processes)])
        low, high = shared_reset_range(ALIKE)
        env = replace(protocol.env, tasks=ALIKE, options={**protocol.env.options, "reset_low": low, "reset_high": high})
        alike = replace(protocol, env=env, episodes=args.alike_episodes)
        swapped = replace(alike, text=tuple((t, INSTRUCTIONS[o]) for t, o in zip(ALIKE, ALIKE[::-1], strict=True)))
        rows.append([f"{path.name}, the other task's", *compared(run, alike, swapped, args.processes)])
    head = ["run, instruction", "episodes", "success with its own, %", "with the other", "difference, points"]
    parts = [
        "# Does it read the instruction?",
        "One model of MetaWorld's fifty tasks, protocol `metaworld-mt50`. *Other words*: each task's instruction in "
        "words that no demonstration has (`wamkit.envs.metaworld_tasks.PARAPHRASES`). *The other task's*: faucet-open "
        "and faucet-close look alike from the reset states that both share; each is told what the other is told. The "
        "same reset states in both columns. Brackets: 95 %. Made by "
        f"`python benchmarks/mt50_language.py {' '.join(map(str, args.runs))}`.",
        table(head, rows),
    ]
    atomic_write(args.out, ("\n\n".join(parts) + "\n").encode())
    print(f"page: {args.out}")


if __name__ == "__main__":
    main(tyro.cli(Args))
