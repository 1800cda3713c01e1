"""Detection of diverged training, and the diagnosis that its error carries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from wamkit.runs.checkpoint import has_checkpoint
from wamkit.training.step import StepResult
from wamkit.types import Batch, WamkitError


class TrainingDiverged(WamkitError):
    """A loss or gradient is not finite. The message names the step, the losses, their rows and the likely cause."""


class Taken(NamedTuple):
    """A step that was taken and not checked yet: its number, its learning rate and its figures."""

    step: int
    lr: float
    result: StepResult


def check_finite(taken: Sequence[Taken], batch: Callable[[int], Batch], out: Path) -> None:
    """Raises TrainingDiverged for the first of the steps `taken` that is not finite.

    Waits for the device once, however many steps were taken. batch: gives the batch of a step's number once more.
    out: the run folder, whose last checkpoint the message names.
    """
    finite = torch.stack([t.result.finite for t in taken]).tolist()
    if not all(finite):
        first = taken[finite.index(False)]
        raise TrainingDiverged(_diagnosis(first, batch(first.step), out))


def _diagnosis(taken: Taken, batch: Batch, out: Path) -> str:
    step, lr, (losses_B, norm, _) = taken
    values = {name: loss_B.mean().item() for name, loss_B in losses_B.items()}
    rows = {k: (~torch.isfinite(v)).nonzero().flatten().tolist()[:8] for k, v in losses_B.items()}
    bad = ", ".join(f"{k} in rows {r}" for k, r in rows.items() if r) or "none of the losses, but the gradient"
    floats = {k: v for k, v in vars(batch).items() if isinstance(v, Tensor) and v.is_floating_point()}
    inputs = [k for k, v in floats.items() if not torch.isfinite(v).all()]
    data = (
        f"The data itself is not finite in {inputs}: run the data checks"
        if inputs
        else ("The data of this batch is finite")
    )
    kept = f"The last checkpoint is kept in {out / 'checkpoints'}; " if has_checkpoint(out) else ""
    return (
        f"training diverged at step {step}: not finite: {bad}; losses {values}, gradient norm {norm.item():.3g}, "
        f"rate {lr:.2e}. {data}. {kept}a lower train.lr or train.clip usually helps."
    )
