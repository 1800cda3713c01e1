"""A model of MetaWorld's fifty tasks on a robot that it never saw, beside models from scratch.

Usage: python -m benchmarks.finetuning RUN   (a run of `make mt50`; what was collected, trained and played is kept)
The page is docs/results/finetuning.md.

Fetch lifts a block, of which there are few demonstrations. For every number of them and every seed both models learn
from the same demonstrations, in as many steps, and act from the same reset states. Needs wamkit[gymnasium-robotics].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from wamkit.cli.main import main as wamkit
from wamkit.eval.evaluate import evaluate
from wamkit.eval.metrics.intervals import bootstrap_ratio
from wamkit.eval.protocols import Protocol
from wamkit.eval.registry import EvalOptions
from wamkit.eval.report.overview import evaluation_under
from wamkit.experiments.page import table
from wamkit.files import atomic_write
from wamkit.runs.run import Run
from wamkit.types import Interval

FETCH = (
    *("--env", "gym", "--options", "id=gymnasium_robotics:FetchPickAndPlace-v4", "name=lift", "text=lift the block"),
    *("state=observation[0:3],observation[9:11]", "image=examples.fetch:VIEWS", "height=96", "width=96"),
    *("success=examples.fetch:lifted", "expert=examples.fetch:Lift"),
)
"""The task as in docs/environments.md."""
WAYS = ("from MetaWorld", "from scratch")


@dataclass(frozen=True)
class Args:
    """Sizes, and places."""

    run: tyro.conf.Positional[Path]
    """Run of the fifty tasks."""
    demonstrations: tuple[int, ...] = (5, 10, 20)
    seeds: int = 3
    """Seeds of demonstrations and training."""
    steps: int = 1000
    """Training steps of 64 samples."""
    episodes: int = 40
    """Held-out reset states."""
    data: Path = Path("data/finetuning")
    work: Path = Path("runs/finetuning")
    out: Path = Path("docs/results/finetuning.md")


def main(args: Args) -> None:
    found: dict[tuple[int, str], list[np.ndarray]] = {}
    for seed in range(args.seeds):
        for many in args.demonstrations:
            data = args.data / f"{many}-{seed}"
            do("collect", *FETCH, "--episodes", many, "--off-expert", 0, "--seed", seed, "--out", data)
            for way in WAYS:
                out = args.work / f"{way.replace(' ', '-')}-{many}-{seed}"
                start = ("--from", args.run) if way == WAYS[0] else ()
                chosen = ("--train.steps", args.steps, "--train.batch-size", 64, "--train.seed", seed)
                do("train", "--data", data, *start, *chosen, "--out", out)
                played = evaluate(Run.open(out), Protocol(episodes=args.episodes), EvalOptions(0, report=False))
                success = [r.success for r in evaluation_under(out, played["protocol"]).records]
                found.setdefault((many, way), []).append(np.array(success))
        atomic_write(args.out, page(args, found, seed + 1).encode())
    print(f"page: {args.out}")


def do(*words: object) -> None:
    """One command of wamkit. Raises SystemExit where it fails or is stopped."""
    if code := wamkit(list(map(str, words))):
        raise SystemExit(code)


def page(args: Args, found: dict[tuple[int, str], list[np.ndarray]], seeds: int) -> str:
    """The page in Markdown."""
    rows = []
    for many in args.demonstrations:
        new, old = (np.stack(found[many, way]).astype(float) for way in WAYS)
        each = (", ".join(f"{x.sum():.0f}" for x in found[many, way]) for way in WAYS)
        rates = [mean(x, (0.0, 1.0)) for x in (new, old)]
        rows.append([str(many), *(f"{cell(x, '')} %" for x in rates), cell(mean(new - old, (-1.0, 1.0)), "+"), *each])
    head = ["demonstrations", *WAYS, "difference, in points", *(f"{way}, seed by seed" for way in WAYS)]
    return f"""# A model of MetaWorld on another robot

Fetch lifts a block, from few demonstrations. One model starts from the weights of [fifty MetaWorld tasks](mt50.md)
(`wamkit train --from RUN`), the other one from nothing, with sizes by the [rules](../recipes.md) for these data. Both
learn from the same demonstrations in {args.steps:,} steps of 64 samples. {seeds} seeds, of demonstrations and training;
{args.episodes} held-out reset states each. Brackets: 95 %, over reset states. Made by
`python -m benchmarks.finetuning RUN`.

{table(head, rows)}
"""


def mean(of_seeds: np.ndarray, bounds: tuple[float, float]) -> Interval:
    """Over seeds and reset states; reset states vary, as every seed acts from the same. of_seeds: (seeds, states)."""
    state = np.tile(np.arange(of_seeds.shape[1]), len(of_seeds))
    return bootstrap_ratio(of_seeds.ravel(), np.ones(of_seeds.size), state, seed=0, bounds=bounds)


def cell(x: Interval, sign: str) -> str:
    """In points. sign: "+" for differences."""
    return f"{100 * x.value:{sign}.0f} [{100 * x.low:{sign}.0f}, {100 * x.high:{sign}.0f}]"


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
