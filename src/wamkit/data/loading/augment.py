"""Seeded image augmentation. All frames of a window are augmented alike, so nothing moves or changes colour over time.

With a fixed camera the position of an object in the image is its position, and a shift hides it unless the robot is
seen as well. Whether shifts help is a matter of budget: few samples of 120 demonstrations were better off without them,
many of 60 demonstrations fail without them (docs/LOG.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wamkit.config import check_bounds
from wamkit.types import Batch

_GREY = torch.tensor([0.299, 0.587, 0.114])  # BT.601


@dataclass(frozen=True)
class Augment:
    """Strength of each augmentation; 0 turns it off.

    shift: largest translation in pixels. Edges repeat.
    colour: largest relative change of brightness, contrast and saturation, at most 0.9.
    drop_view: probability that a view is absent, that is black and in no loss, at most 0.9. One view always stays.
    """

    shift: int = 0
    colour: float = 0.0
    drop_view: float = 0.0

    def __post_init__(self) -> None:
        check_bounds(self, shift=(0, inf), colour=(0, 0.9), drop_view=(0, 0.9))

    def __bool__(self) -> bool:
        return bool(self.shift or self.colour or self.drop_view)


def augmented(
    batch: Batch, config: Augment, rng: np.random.Generator, size: int | None = None, rows: slice = slice(None)
) -> Batch:
    """A copy of `batch` with augmented images. The present, past and future of a row are augmented alike.

    Absent views stay black. size, rows: `batch` is these rows of one of `size` rows, and they are augmented as there.
    """
    B, views = size or len(batch), batch.obs.shape[1]
    parts = {"past": batch.past, "obs": batch.obs.unsqueeze(1), "future": batch.future}
    images = torch.cat(list(parts.values()), 1)
    if config.shift:
        images = translated(images, torch.from_numpy(rng.integers(-config.shift, config.shift + 1, (B, 2))[rows]))
    if config.colour:
        factors = torch.from_numpy(1 + config.colour * rng.uniform(-1, 1, (3, B))[:, rows]).float()
        images = coloured(images, *factors)
    if config.drop_view and views > 1:
        dropped = torch.from_numpy(rng.random((B, views))[rows] < config.drop_view)
        dropped[dropped.all(1), 0] = False
        seen = torch.ones(len(batch), views, dtype=torch.bool) if batch.view_valid is None else batch.view_valid
        dropped[(dropped | ~seen).all(1)] = False
        batch = replace(batch, view_valid=seen & ~dropped)
    if batch.view_valid is not None:
        images = images.masked_fill(~batch.view_valid[:, None, :, None, None, None], 0)
    past, obs, future = images.split([p.shape[1] for p in parts.values()], 1)
    return replace(batch, past=past, obs=obs[:, 0], future=future)


def translated(images: UInt8[Tensor, "B *n H W"], shifts: Tensor) -> UInt8[Tensor, "B *n H W"]:
    """Row i translated down by shifts[i, 0] and right by shifts[i, 1] pixels, int (B, 2). Edges repeat."""
    H, W = images.shape[-2:]
    out = torch.empty_like(images)
    for row, source, (dy, dx) in zip(out, images, shifts.tolist(), strict=True):
        dy, dx = (max(-n, min(n, d)) for n, d in ((H - 1, dy), (W - 1, dx)))
        into, of = (
            (..., slice(max(y, 0), H + min(y, 0)), slice(max(x, 0), W + min(x, 0))) for y, x in ((dy, dx), (-dy, -dx))
        )
        row[into] = source[of]  # by slices: twelve times as fast as by index
        for axis, size, d in ((-2, H, dy), (-1, W, dx)):
            if d:
                edge, outermost = (0, d) if d > 0 else (size + d, size + d - 1)
                row.narrow(axis, edge, abs(d))[:] = row.narrow(axis, outermost, 1)
    return out


def coloured(
    images: UInt8[Tensor, "B n V 3 H W"], brightness: Float[Tensor, " B"], contrast: Tensor, saturation: Tensor
) -> UInt8[Tensor, "B n V 3 H W"]:
    """Images with changed colours; a factor of 1 changes nothing.

    brightness: float (B,), multiplies the pixels.
    contrast: float (B,), scales the distance from the row's mean grey.
    saturation: float (B,), scales the distance from each pixel's own grey.
    """
    each = lambda f: f.view(-1, 1, 1, 1, 1, 1)  # noqa: E731
    x = images.float() * each(brightness)
    grey = (x * _GREY.view(3, 1, 1)).sum(3, keepdim=True)
    mean = grey.mean((1, 2, 3, 4, 5), keepdim=True)
    x = torch.lerp(mean, torch.lerp(grey, x, each(saturation)), each(contrast))
    return x.round_().clamp_(0, 255).to(torch.uint8)
