"""Success under delay, by how chunks are joined: docs/results/realtime.md.

Usage: python benchmarks/realtime.py [--seeds 3]   (what was collected, trained and played is kept)

The demo's four tasks on a loop of 20 Hz: each action is held for four of MetaWorld's steps. Two models a seed, with and
without prefixes in training, act under delays in simulated time, from the same held-out reset states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from wamkit.eval.metrics.intervals import paired_difference
from wamkit.eval.protocols import Protocol
from wamkit.experiments.page import table
from wamkit.files import atomic_write
from wamkit.rollout.collect import CollectConfig, collect
from wamkit.runs.checkpoint import has_checkpoint
from wamkit.runs.config import changed
from wamkit.runs.recipes import FOUR_TASKS, RECIPES
from wamkit.runs.run import Run
from wamkit.serving.drive import Delay, Drive, Loop, drives
from wamkit.serving.drive import table as figures
from wamkit.training.launch import train_run
from wamkit.types import Interval

DELAYS = (0, 50, 100, 200, 400)
"""Milliseconds that a query takes."""
LONGEST = 8
"""Steps that training gives at most: 400 ms."""
ROWS: Mapping[str, tuple[str, Loop]] = {
    "wait: stands still during a query": ("plain", "wait"),
    "switch: the newest chunk": ("plain", "switch"),
    "ensemble: mean of all chunks": ("plain", "ensemble"),
    "real-time chunking, guided": ("plain", "rtc"),
    "real-time chunking, learned prefix": ("prefix", "rtc"),
    "switch, by the model that learned prefixes": ("prefix", "switch"),
}
"""Rows of the page: which model, in which loop."""
PLAIN = "switch: the newest chunk"
"""Row that others are compared with, at no delay."""
AT_20_HZ = replace(FOUR_TASKS, options={**FOUR_TASKS.options, "repeat": 4, "max_steps": 400})


@dataclass(frozen=True)
class Args:
    """Sizes, and places."""

    seeds: int = 3
    """Training seeds."""
    episodes: int = 20
    """Held-out reset states a task."""
    steps: int = 6000
    """Training steps."""
    demonstrations: int = 100
    """Demonstrations a task."""
    data: Path = Path("data/realtime")
    work: Path = Path("runs/realtime")
    out: Path = Path("docs/results/realtime.md")
    processes: int = 2
    """Worker processes."""


def main(args: Args) -> None:
    collect(
        CollectConfig(
            out=args.data,
            tasks=AT_20_HZ.tasks,
            options=AT_20_HZ.options,
            episodes=args.demonstrations,
            off_expert_steps=15,
            off_expert_skip=15,
            processes=args.processes,
        )
    )
    found: dict[str, dict[int, list[Drive]]] = {row: {ms: [] for ms in DELAYS} for row in ROWS}
    for seed in range(args.seeds):
        runs = {name: trained(args, name, seed) for name in ("plain", "prefix")}
        for name, run in runs.items():
            protocol = Protocol(AT_20_HZ, args.episodes)
            loops = [loop for which, loop in ROWS.values() if which == name]
            delays = {ms: Delay(ms / 1e3) for ms in DELAYS}
            played = drives(run, protocol, loops, list(delays.values()), processes=args.processes)
            for row, (which, loop) in ROWS.items():
                for ms in DELAYS if which == name else ():
                    found[row][ms] += played[loop, delays[ms]]
        atomic_write(args.out, page(args, found, seed + 1).encode())
    print(args.out)


def trained(args: Args, name: str, seed: int) -> Run:
    """The run of a model, trained if it is not there."""
    out = args.work / f"{name}-{seed}"
    if not has_checkpoint(out):
        options = {
            "model.actions_per_token": 1,
            "model.policy_draws": 4,
            "model.joint_share": 0.25,
            "model.codec_share": 0.15,
            "train.batch_size": 32,
            "train.seed": seed,
            "train.steps": args.steps,
            "train.prefix": LONGEST if name == "prefix" else 0,
        }
        train_run(changed(RECIPES.get("metaworld-unified")(), options), args.data, out)
    return Run.open(out)


def page(args: Args, found: Mapping[str, Mapping[int, Sequence[Drive]]], seeds: int) -> str:
    """The page in Markdown."""
    head = ["", *(f"{ms} ms" for ms in DELAYS)]
    success = [[row, *(cell(rate(by[ms])) for ms in DELAYS)] for row, by in found.items()]
    calm = np.array([d.success for d in found[PLAIN][0]])
    lost = [
        [row, *(cell(paired_difference(calm, np.array([d.success for d in by[ms]])), "+.1f") for ms in DELAYS)]
        for row, by in found.items()
    ]
    seams, inside = (
        [[row, *(mean(by[ms], k) for ms in DELAYS)] for row, by in found.items()] for k in ("seam", "inside")
    )
    stood = [[row, *(f"{figure(by[ms])['stood']:.0%}" for ms in DELAYS)] for row, by in found.items()]
    many = f"{args.demonstrations} demonstrations a task, {args.steps:,} steps"
    size = (
        f"{seeds} training seeds, {args.episodes} held-out reset states a task: {len(found[PLAIN][0])} episodes a cell"
    )
    return f"""# What a delay costs, and how chunks are joined

The demo's four MetaWorld tasks, with a loop of 20 Hz: every action lasts 50 ms. `unified`, {many},
chunks of 16 actions, a query every 8 steps or as soon as the last one is answered; {size}.
Time is simulated: a query takes the delay, whatever the machine. Brackets: 95 %. Made by
`python benchmarks/realtime.py`; [what the loops are](../serving.md#how-much-delay-a-policy-bears).

## Success, in percent

{table(head, success)}

## Success less that of the same states without delay (switch at 0 ms), in points

{table(head, lost)}

## Change of the action where one chunk takes over from another, in half ranges

The largest of the four dimensions, mean over such steps. The gripper, which opens or closes by the whole range, counts.

{table(head, seams)}

## The same at all other steps: how much these motions change by themselves

{table(head, inside)}

## Share of steps at which the arm stood still for want of an action

{table(head, stood)}
"""


def figure(episodes: Sequence[Drive]) -> dict[str, Any]:
    """Figures of the episodes of one cell, as `wamkit drive` gives them."""
    return figures({("switch", Delay(0)): list(episodes)})[0]


def rate(episodes: Sequence[Drive]) -> Interval:
    return Interval(*(figure(episodes)[k] for k in ("success", "low", "high")), 0.95)


def cell(x: Interval, form: str = ".1f") -> str:
    return f"{100 * x.value:{form}} [{100 * x.low:{form}}, {100 * x.high:{form}}]"


def mean(episodes: Sequence[Drive], name: str) -> str:
    found = figure(episodes)[name]
    return "" if found is None else f"{found:.2f}"


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
