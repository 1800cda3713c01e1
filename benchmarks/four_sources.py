"""Page of examples/four-sources, from a run trained and evaluated by its README: docs/results/four-sources.md.

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
    """Which run, and where the page goes."""

    run: tyro.conf.Positional[Path]
    out: Path = Path("docs/results/four-sources.md")


def losses(run: Path) -> str:
    """Losses of each source: mean of the first and of the last tenth of the main stage."""
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
    return table(["", "asked for", "drawn", *names], body)


def figures(run: Path, env: str) -> str:
    """What `wamkit eval --env` found."""
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
        "A robot that somebody steers, a gripper that people carry, another robot, and video from a moving head "
        "without actions: "
        "[examples/four-sources](../../examples/four-sources/README.md), whose commands made this page, and "
        f"`python benchmarks/four_sources.py {args.run}`. "
        f"`{config['family']}`, {train['steps']} steps of {train['batch_size']}, seed {train['seed']}.",
        "## Losses of each",
        losses(args.run),
        "From the first to the last tenth of the main stage; of actions, in units of each robot's own deviation. Video "
        "has none, and its "
        "rows move nothing of what acts.",
    ]
    for env, what in (("metaworld", "The arm, four tasks in MetaWorld"), ("reacher", "The other robot, Reacher")):
        parts += [f"## {what}", figures(args.run, env)]
    parts.append(
        "The gripper that people carry has no simulator of its own: its actions are poses relative to where a chunk "
        "began, and what the "
        "model learns of them is the loss above."
    )
    atomic_write(args.out, ("\n\n".join(parts) + "\n").encode())
    print(args.out)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
