"""What figures on recordings tell of success in closed loop: docs/results/offline.md.

Usage: wamkit collect --env metaworld --tasks T... --episodes 30 --out data/points; python -m benchmarks.offline

The policies are those of `benchmarks/rank.py`, cut short or trained on little, so that they span most of [0, 1]; their
runs are shared with it. Each acts from held-out reset states, and is evaluated offline on recordings from others.
Finished parts are kept, so the same command continues.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from benchmarks import rank

from wamkit.data.format.store import Store
from wamkit.eval.evaluate import evaluate
from wamkit.eval.held_out import validation_store
from wamkit.eval.metrics.action_baselines import nominal
from wamkit.eval.metrics.intervals import wilson
from wamkit.eval.metrics.rank_correlation import nested_bootstrap, spearman
from wamkit.eval.protocols import Protocol
from wamkit.eval.recorded import evaluate_recorded
from wamkit.eval.registry import EvalOptions
from wamkit.eval.report.overview import evaluation_under
from wamkit.eval.suites.offline_actions import DRAWS
from wamkit.experiments.page import table
from wamkit.files import atomic_write
from wamkit.runs.provenance import Provenance
from wamkit.runs.run import Run
from wamkit.types import EvaluationError, Interval

HIGHER = ("open_loop.skill.", "open_loop.moving_gain.", "open_loop.psnr.")
"""Beginnings of the figures that are better when higher; of all others lower is taken for better."""
BEST = {
    "open_loop.sharpness.": 1.0,
    "recorded_habits.change": 1.0,
    "recorded_spread.spread": 1.0,
    "recorded_spread.inside.50": nominal(DRAWS, 0.5),
    "recorded_spread.inside.90": nominal(DRAWS, 0.9),
}
"""Beginnings of the figures that are better the nearer they are to a value."""


@dataclass(frozen=True)
class Args:
    """Data, and the places of runs and page."""

    data: Path = Path("data/points")
    """Demonstrations that the policies learn from."""
    runs: Path = Path("runs/rank")
    episodes: int = 10
    """Held-out reset states a task in closed loop."""
    recordings: int = 6
    """Held-out recordings a task."""
    few: int = 0
    """The first so many policies alone; all if 0."""
    out: Path = Path("docs/results/offline.md")


@dataclass(frozen=True)
class Measured:
    """One policy: its name, outcomes of its episodes, and its offline figures by key, with their names."""

    name: str
    success: np.ndarray
    figures: Mapping[str, tuple[str, float]]


def measured(run: Run, recordings: Path, episodes: int) -> Measured:
    """Plays and evaluates one policy."""
    played = evaluate(run, Protocol(episodes=episodes), EvalOptions(0, report=False))
    success = np.array([r.success for r in evaluation_under(run.path, played["protocol"]).records])
    summary = evaluate_recorded(run, recordings)
    figures = {r["key"]: (r["name"], float(r["value"])) for r in summary["rows"] if isinstance(r["value"], float)}
    return Measured(run.name, success, figures)


def better(key: str, values: np.ndarray) -> np.ndarray:
    """The values of a figure, turned so that higher is better."""
    best = next((b for start, b in BEST.items() if key.startswith(start)), None)
    return -abs(values - best) if best is not None else values if key.startswith(HIGHER) else -values


FEWEST = 12
"""Policies that must have a figure."""


def correlations(policies: list[Measured]) -> list[tuple[str, int, Interval]]:
    """Name of each figure, number of policies that have it, and the correlation of the two, best first.

    Spearman's, of the figure, the better the higher, with success.
    """
    out = []
    names = {key: name for p in policies for key, (name, _) in p.figures.items()}
    for key, name in names.items():
        having = [p for p in policies if key in p.figures]
        if len(having) < FEWEST:
            continue
        real = np.stack([p.success for p in having]).astype(float)
        values = better(key, np.array([[p.figures[key][1]] for p in having]))
        if not np.isfinite(values).all():
            continue
        try:
            out.append((name, len(having), nested_bootstrap(spearman, values, real, 0)))
        except EvaluationError:
            continue  # the same for all policies
    return sorted(out, key=lambda row: -row[2].value)


def main(args: Args) -> None:
    shared = rank.Args(args.data, args.runs)
    policies = [rank.trained(shared, f"unified-{n}", "unified", args.data, n, seed) for n, seed in rank.SHORT.items()]
    policies += [rank.trained(shared, f, f, args.data, seed=1, labelled=10) for f in rank.FAMILIES]
    runs = [Run.open(p) for p in policies[: args.few or None]]
    source = Provenance.of(Store.open(args.data))
    store = validation_store(
        args.data, {"its data": source}, source.env, args.runs / "recordings", args.recordings, seed=1
    )
    found = [measured(run, store.root, args.episodes) for run in runs]
    told = correlations(found)
    rows = [[name, str(many), f"{c.value:.2f} ({c.low:.2f} to {c.high:.2f})"] for name, many, c in told]
    best = next(name for name, many, _ in told if many == len(found))
    rates = [(p, wilson(int(p.success.sum()), len(p.success))) for p in found]
    ranked = sorted(rates, key=lambda pair: -pair[1].value)
    named = [[p.name, f"{r.value:.0%} ({r.low:.0%} to {r.high:.0%})"] for p, r in ranked]
    parts = [
        "# What figures on recordings tell of success",
        f"{len(found)} policies, trained apart, each evaluated offline on {args.recordings} recordings a task and in "
        f"closed loop from {args.episodes} other reset states of each of {len(source.env.tasks)} tasks. Spearman's "
        "correlation of each figure, the better the higher, with success; brackets: 95 %, over policies and episodes. "
        "Made by `python -m benchmarks.offline`.",
        f"Of the figures that all policies have, **{best}** tells most. Others, such as those of imagined frames, are "
        f"told of the policies that have them. {len(rank.SHORT)} of these are one recipe cut short, so that what is "
        "told there is mostly how long it learned.",
        table(["figure", "policies", "rank correlation with success"], rows),
        "## The policies",
        table(["policy", "success in the simulator"], named),
    ]
    atomic_write(args.out, ("\n\n".join(parts) + "\n").encode())
    print(f"page: {args.out}")


if __name__ == "__main__":
    main(tyro.cli(Args))
