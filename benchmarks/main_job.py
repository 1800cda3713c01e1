"""The main job over several training seeds, `unified` and its control `bc`, at the demo's own budget each.

Usage: python benchmarks/main_job.py [--seeds 0 1 2] [--families unified bc] [--data data/demos] [--out runs/bench]
Every run is kept; asking again reads what is there. Prints one table with success pooled over seeds, and writes it as
JSON.
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from wamkit.envs.spec import EnvSpec
from wamkit.eval.evaluate import evaluate
from wamkit.eval.metrics.intervals import clopper_pearson, wilson
from wamkit.eval.protocols import Protocol
from wamkit.eval.suites.closed_loop import closed_loop
from wamkit.rollout.collect import CollectConfig, collect
from wamkit.runs.recipes import RECIPES
from wamkit.runs.run import Run
from wamkit.training.launch import train_run

TASKS = ("button-press-topdown-v3", "drawer-open-v3", "window-close-v3", "door-open-v3")


@dataclass(frozen=True)
class Args:
    """Which runs."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds; all are reported."""
    families: tuple[str, ...] = ("unified", "bc")
    """Recipes metaworld-FAMILY."""
    data: Path = Path("data/demos")
    """Collected first if it is not there."""
    out: Path = Path("runs/bench")
    """One run folder for each family and seed."""
    episodes: int = 20
    """Held-out reset states a task."""


def main(args: Args) -> None:
    collect(CollectConfig(tasks=TASKS, out=args.data))
    table = {}
    for family in args.families:
        records, seconds = [], []
        for seed in args.seeds:
            run = args.out / f"{family}-{seed}"
            recipe = RECIPES.get(f"metaworld-{family}")()
            recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, seed=seed))
            began = time.perf_counter()
            train_run(recipe, args.data, run)
            seconds.append(time.perf_counter() - began)
            opened = Run.open(run)
            evaluate(opened, Protocol(episodes=args.episodes))
            records += closed_loop(opened, Protocol(EnvSpec("metaworld", TASKS), args.episodes))
        rows = {t: [r.success for r in records if r.task == t] for t in TASKS}
        rates = {t: wilson(sum(x), len(x)) for t, x in rows.items()}
        pooled = clopper_pearson(sum(map(sum, rows.values())), len(records))
        table[family] = {
            "seeds": list(args.seeds),
            "training_seconds": seconds,
            "pooled": [pooled.value, pooled.low, pooled.high],
            "tasks": {t: [sum(rows[t]), len(rows[t]), r.low, r.high] for t, r in rates.items()},
        }
        (args.out / "table.json").write_text(json.dumps(table, indent=2) + "\n")
    for family, row in table.items():
        print(
            f"{family:<10} pooled {row['pooled'][0]:.1%} [{row['pooled'][1]:.1%}, {row['pooled'][2]:.1%}] over seeds "
            f"{row['seeds']}"
        )
        for task, (k, n, low, high) in row["tasks"].items():
            print(f"  {task:<28} {k:>3} of {n}  {k / n:.0%} [{low:.0%}, {high:.0%}]")


if __name__ == "__main__":
    main(tyro.cli(Args))
