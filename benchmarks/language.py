"""Does the model read the instruction? faucet-open and faucet-close look the same and differ in words alone.

One model learns both; goal markers are hidden and reset positions come from the range that both tasks share, so that
seed k gives the same first picture in both. Then every episode is played twice: told the right thing, and told the
other thing.

Usage: python benchmarks/language.py [--out runs/language] [--data data/faucets]
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from wamkit.envs.metaworld import INSTRUCTIONS, shared_reset_range
from wamkit.envs.spec import EnvSpec
from wamkit.eval.metrics.intervals import mcnemar, wilson
from wamkit.eval.protocols import Protocol
from wamkit.eval.suites.closed_loop import closed_loop
from wamkit.rollout.collect import CollectConfig, collect
from wamkit.runs.recipes import RECIPES
from wamkit.runs.run import Run
from wamkit.training.launch import train_run

TASKS = ("faucet-open-v3", "faucet-close-v3")


@dataclass(frozen=True)
class Args:
    """Where things go."""

    data: Path = Path("data/faucets")
    """Collected first if it is not there."""
    out: Path = Path("runs/language")
    """Run folder."""
    episodes: int = 20
    """Held-out reset states a task."""


def main(args: Args) -> None:
    low, high = shared_reset_range(TASKS)
    options = {"reset_low": low, "reset_high": high}
    collect(CollectConfig(tasks=TASKS, out=args.data, options=options))
    train_run(RECIPES.get("metaworld-unified")(), args.data, args.out)
    swapped = tuple((t, INSTRUCTIONS[o]) for t, o in zip(TASKS, reversed(TASKS), strict=True))
    run, result = Run.open(args.out), {}
    told = {}
    for name, text in (("correct", ()), ("swapped", swapped)):
        protocol = Protocol(EnvSpec("metaworld", TASKS, options), args.episodes, text=text)
        told[name] = closed_loop(run, protocol, desc=f"{name} instruction")
        rate = wilson(sum(r.success for r in told[name]), len(told[name]))
        result[name] = [rate.value, rate.low, rate.high]
        print(
            f"{name:<8} {sum(r.success for r in told[name])} of {len(told[name])}: {rate.value:.0%} [{rate.low:.0%}, "
            f"{rate.high:.0%}]"
        )
    test = mcnemar(*(np.array([r.success for r in told[n]]) for n in ("correct", "swapped")))
    result["points"] = 100 * (result["correct"][0] - result["swapped"][0])
    print(
        f"difference {result['points']:.0f} points; told right only {test.first_only}, told wrong only "
        f"{test.second_only}, p = {test.p_value:.2g}"
    )
    (args.out / "language.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args))
