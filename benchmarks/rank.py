"""Policies ranked inside world models and in the simulator: docs/results/rank.md.

Usage: wamkit collect --env metaworld --tasks T... --episodes 30 --out data/points; python benchmarks/rank.py

Takes an hour on two cores. Trains 19 policies that span most of [0, 1], four failure policies, and two world models,
one on experts alone and one on failures too. Finished parts are kept, so the same command continues.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from wamkit.data.format.store import Store
from wamkit.eval.metrics.intervals import wilson
from wamkit.eval.report.ranking import write_ranking
from wamkit.eval.suites.policy_ranking import Rank, rank
from wamkit.experiments.page import table
from wamkit.files import atomic_write
from wamkit.rollout.collect import CollectConfig, collect
from wamkit.runs.config import RunConfig
from wamkit.runs.provenance import Provenance
from wamkit.runs.recipes import RECIPES
from wamkit.runs.run import Run
from wamkit.training.launch import train_run

SHORT = {60: 60, 120: 120, 150: 150, 200: 1, 300: 2, 400: 3, 500: 4, 600: 5, 700: 6, 850: 7, 1000: 8, 1300: 9}
"""Training steps and seeds of policies of the demo's recipe: cut short, they span the range."""

FAMILIES = ("bc", "discrete", "latent_action", "jepa", "query_ar", "mot", "align")
"""Whole recipes on ten labelled demonstrations."""

FAILING = (("unified", 150, 151), ("unified", 300, 301), ("unified", 500, 501), ("bc", 400, 77))
"""Family, training steps, seed."""


@dataclass(frozen=True)
class Args:
    """Data, and the places of runs and page."""

    data: Path = Path("data/points")
    """Demonstrations of the policies, and of the world model that sees experts alone."""
    runs: Path = Path("runs/rank")
    episodes: int = 10
    """Held-out reset states a task."""
    out: Path = Path("docs/results/rank.md")


def trained(args: Args, name: str, family: str, data: Path, steps: int = 3000, seed: int = 0, **episodes: Any) -> Path:
    run: RunConfig = RECIPES.get(f"metaworld-{family}")()
    run = dataclasses.replace(
        run,
        train=dataclasses.replace(run.train, steps=steps, seed=seed),
        episodes=dataclasses.replace(run.episodes, **episodes),
    )
    train_run(run, data, args.runs / name)
    return args.runs / name


def with_failures(args: Args, failure_policies: tuple[Path, ...]) -> Path:
    """The same tasks anew: experts, smooth random actions, perturbed experts, and what the failure policies do."""
    made_in = Provenance.of(Store.open(args.data)).env
    config = CollectConfig(
        env=made_in.env,
        tasks=made_in.tasks,
        out=args.data.parent / "taught",
        perturbed_experts=20,
        policies=failure_policies,
        policy_episodes=40,
        seed=1,
    )
    return collect(config).root


def section(title: str, content: Mapping[str, Any]) -> list[str]:
    """Every policy, then the agreement of imagined success and of the classifier with the simulator."""
    rows = []
    for p in sorted(content["policies"], key=lambda p: -sum(p["real"])):
        rates = [wilson(sum(p[k]), len(p[k])) for k in ("real", "classified", "imagined")]
        rows.append([Path(p["run"]).name, *(f"{r.value:.0%} ({r.low:.0%} to {r.high:.0%})" for r in rates)])
    tables = {t["key"]: t["rows"] for t in content["tables"]}
    figures = []
    for key, heading in (("rank_agreement", "world model"), ("success_classifier", "classifier")):
        for r in tables[key]:
            low, high = (r["interval"] or {}).get("low"), (r["interval"] or {}).get("high")
            value = "" if r["value"] is None else f"{r['value']:{r['fmt']}}"
            between = "" if low is None else f" ({low:{r['fmt']}} to {high:{r['fmt']}})"
            figures.append([heading, r["name"], value + between, r["note"]])
    exploited = [[r["name"], f"{r['value']:{r['fmt']}}"] for r in tables["exploitability"]]
    return [
        f"## {title}",
        table(["whose", "figure", "", ""], figures),
        table(["policy", "simulator", "classifier, real frames", "world model"], rows),
        table(["the best policy", ""], exploited),
    ]


def main(args: Args) -> None:
    policies = [trained(args, f"unified-{n}", "unified", args.data, n, seed) for n, seed in SHORT.items()]
    policies += [trained(args, f, f, args.data, seed=1, labelled=10) for f in FAMILIES]
    failure_policies = tuple(trained(args, f"failure_policy-{f}-{n}", f, args.data, n, seed) for f, n, seed in FAILING)
    naive = trained(args, "world", "world_model", args.data)
    world = trained(args, "world-taught", "world_model", with_failures(args, failure_policies), 6000)
    common = {"policies": tuple(policies), "episodes": args.episodes}
    tasks = Run.open(world).provenance.env.tasks
    parts = [
        "# Can a world model stand in for the simulator?",
        f"{len(policies)} policies, trained apart, act inside world models and in the simulator, from {args.episodes} "
        "held-out reset states of "
        f"each of {len(tasks)} tasks; a classifier reads success off frames "
        "([how](../evaluation.md#in-the-simulators-place)). Brackets: 95 %. "
        "`unified-N` is the demo's recipe with N training steps; the others are whole recipes on ten labelled "
        "demonstrations. Made by "
        "`python benchmarks/rank.py`.",
        *section(
            "A world model and a classifier that have seen failure",
            write_ranking(rank(Rank(world=world, failure_policies=failure_policies, **common))),
        ),
        *section("A world model that has seen experts alone", write_ranking(rank(Rank(world=naive, **common)))),
    ]
    atomic_write(args.out, ("\n\n".join(parts) + "\n").encode())
    print(f"page: {args.out}")


if __name__ == "__main__":
    main(tyro.cli(Args))
