"""Writes docs/results/four-sources.md from a run that was trained and evaluated as in examples/four-sources/README.md.

Usage: python benchmarks/four_sources.py runs/mixture
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from wamkit.experiments.page import table
from wamkit.files import atomic_write
from wamkit.training.metrics import read_metrics


@dataclass(frozen=True)
class Args:
    """The run and the page."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    out: Path = Path("docs/results/four-sources.md")
    """The page to write."""


def losses(run: Path) -> str:
    """A table of the losses of each source: means of the first and of the last tenth of the main stage."""
    rows = [r for _, r in read_metrics(run / "metrics.jsonl") if r.get("stage") == "main" and "lr" in r]
    tenth = max(1, len(rows) // 10)
    shares = json.loads((run / "config.json").read_text())["shares"]
    names = sorted({k.split("/")[0] for r in rows for k in r if "/" in k} - {"rows"})
    body = []
    for source, share in shares.items():
        seen = sum(r.get(f"rows/{source}", 0) for r in rows) / sum(r[f"rows/{s}"] for r in rows for s in shares)
        cells = []
        for name in names:
            early, late = (
                [r[f"{name}/{source}"] for r in part if f"{name}/{source}" in r]
                for part in (rows[:tenth], rows[-tenth:])
            )
            silent = not early or not any(early + late)
            cells.append("none" if silent else f"{np.mean(early):.3f} to {np.mean(late):.3f}")
        body.append([source, f"{share:.0%}", f"{seen:.1%}", *cells])
    return table(["", "share", "sampled", *names], body)


def figures(run: Path, env: str) -> str:
    """A table of the results of `wamkit eval --env`."""
    rows = json.loads((run / "eval" / env / "summary.json").read_text())["rows"]
    wanted = [r for r in rows if r["key"].startswith(("closed_loop.", "open_loop.skill.", "coupling."))]
    body = []
    for r in wanted:
        percent = r["key"].startswith("closed_loop.success")
        show = (lambda x: f"{x:.0%}") if percent else (lambda x: f"{x:.3g}")
        interval = "" if r["low"] is None else f"{show(r['low'])} to {show(r['high'])}"
        body.append([r["name"], show(r["value"]) + (f" {r['unit']}" if r["unit"] else ""), interval])
    return table(["", "", "95 %"], body)


def main(args: Args) -> None:
    config = json.loads((args.run / "config.json").read_text())
    train = config["train"]
    parts = [
        "# Four kinds of data in one model",
        "Teleoperation, a hand-held gripper, another robot, and first-person video without actions. Made by the "
        "commands of [examples/four-sources](../../examples/four-sources/README.md) and "
        f"`python benchmarks/four_sources.py {args.run}`. "
        f"`{config['family']}`, {train['steps']} steps of {train['batch_size']}, seed {train['seed']}.",
        "## Losses of each data set",
        losses(args.run),
        "From the first to the last tenth of the main stage. Losses of actions are in units of each robot's own "
        "deviation. Video has none, and its rows do not train the action path.",
    ]
    for env, what in (("metaworld", "The arm, four tasks in MetaWorld"), ("reacher", "The other robot, Reacher")):
        parts += [f"## {what}", figures(args.run, env)]
    parts.append(
        "The hand-held gripper has no simulator: its actions are poses relative to the start of a chunk, and the loss "
        "above is all that can be measured."
    )
    atomic_write(args.out, ("\n\n".join(parts) + "\n").encode())
    print(args.out)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
