"""The picture of the README: held-out windows of every task, what happened and what was imagined.

Usage: python benchmarks/picture.py RUN OUT.png
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from wamkit.data.loading.dataset import open_frames
from wamkit.eval.held_out import validation_store
from wamkit.eval.suites.recording import query_recording
from wamkit.inference.model import load
from wamkit.runs.run import Run
from wamkit.types import Query
from wamkit.viz.images import difference, enlarge, png, side_by_side


@dataclass(frozen=True)
class Args:
    """What to draw."""

    run: Annotated[Path, tyro.conf.Positional]
    """A trained run."""
    out: Annotated[Path, tyro.conf.Positional]
    """The PNG."""
    held_out: int = 6
    """As in `wamkit eval`, whose recordings are used."""
    scale: int = 2
    """Screen pixels a pixel."""


def main(args: Args) -> None:
    run = Run.open(args.run)
    env = run.provenance.env
    store = validation_store(args.run, run.learned_from, env, args.run / "eval", args.held_out)
    model, frames = load(run), open_frames(store.root, run.image_size)[0]
    rows = []
    for text in dict.fromkeys(frames.text):
        episode = next(e for e, t in enumerate(frames.text) if t == text and frames.is_demonstration[e])
        f = query_recording(model, frames, episode, Query.JOINT)
        t = int(0.6 * len(f.now))
        pictures = [f.now[t, 0]]
        for k in range(f.real.shape[1]):
            real, imagined = f.real[t, k, 0], f.imagined[t, k, 0]
            pictures += [real, imagined, difference(real, imagined)]
        rows.append(side_by_side(pictures, 2))
    line = np.full((3, 2, rows[0].shape[2]), 255, np.uint8)
    sheet = np.concatenate([x for row in rows for x in (row, line)][:-1], 1)
    args.out.write_bytes(png(enlarge(sheet, args.scale)))


if __name__ == "__main__":
    main(tyro.cli(Args))
