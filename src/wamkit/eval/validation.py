"""Figures of a model on the episodes that training leaves out, at every checkpoint: learning curves of validation."""

from __future__ import annotations

import numpy as np
import torch

from wamkit.data.loading.windows import Frames, Windows, observations, window_starts
from wamkit.eval.suites.open_loop import action_error
from wamkit.families.base import Family
from wamkit.inference.model import Model
from wamkit.types import Query

WINDOWS = 128
"""Largest number of windows, spread over the episodes."""


def held_out_action_error(frames: Frames, family: Family) -> dict[str, float]:
    """Mean squared action error of the policy on validation demonstrations, in squared units of the robot."""
    model = Model(family)
    starts = window_starts(frames, model.spec.chunk, 8)
    starts = starts[frames.is_demonstration[frames.episode[starts]]]
    batch = Windows(frames, model.spec, seed=0, batch_size=1).gather(starts)
    out = model.sample(observations(batch), Query.POLICY, seed=[int(s) for s in starts])
    return {"held_out_action_error": float(np.nanmean(action_error(out.actions, batch)))}


@torch.no_grad()
def held_out_losses(frames: Frames, family: Family) -> dict[str, float]:
    """Losses of the last stage on the episodes in use, "held_out/policy" and so on, with one noise at every call."""
    stage = family.stages()[-1].name
    rows = frames.rows()
    rows = rows[np.linspace(0, len(rows) - 1, min(WINDOWS, len(rows))).round().astype(np.int64)]
    windows = Windows(frames, family.spec, seed=0, batch_size=1)
    device = next(family.parameters()).device
    losses = family(windows.gather(rows).to(device), torch.Generator().manual_seed(0), stage)
    return {f"held_out/{name}": loss.mean().item() for name, loss in losses.items()}
