"""A segmenter: which object each pixel shows, learned from a simulator's frames alone, as `probe` learns where objects
are.

Masks of imagined frames can only be read off them. Like the probe it sees one frame at a time, is trained on real
frames and frozen, and what it reads off *real* frames is the ceiling of every figure made from it.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from wamkit.types import EvaluationError
from wamkit.workers import one_thread

BATCH = 16


class Segmenter(nn.Module):
    """A small U-Net (Ronneberger et al., arXiv 1505.04597): three scales, skips, logits of background and objects."""

    def __init__(self, objects: int, width: int = 16):
        super().__init__()
        block = lambda a, b, stride=1: nn.Sequential(  # noqa: E731
            nn.Conv2d(a, b, 3, stride, 1), nn.ReLU(), nn.Conv2d(b, b, 3, 1, 1), nn.ReLU()
        )
        self.objects = objects
        self.down = nn.ModuleList([block(3, width), block(width, 2 * width, 2), block(2 * width, 4 * width, 2)])
        self.up = nn.ModuleList([block(6 * width, 2 * width), block(3 * width, width)])
        self.head = nn.Conv2d(width, 1 + objects, 1)
        for layer in (m for m in self.modules() if isinstance(m, nn.Conv2d) and m is not self.head):
            nn.init.kaiming_normal_(
                layer.weight
            )  # the default shrinks what comes through six layers, and nothing is learned

    def forward(self, frames: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B classes H W"]:
        x, skips = frames.float() / 127.5 - 1, []
        for block in self.down:
            x = block(x)
            skips.append(x)
        for block, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = block(torch.cat([F.interpolate(x, size=skip.shape[-2:]), skip], 1))
        return self.head(x)


def train_segmenter(
    frames: UInt8[np.ndarray, "M 3 H W"],
    masks: Bool[np.ndarray, "M N H W"],
    seed: int,
    steps: int = 400,
    width: int = 16,
) -> Segmenter:
    """A segmenter trained on these frames; the same seed gives the same bits. On one thread, 400 steps take about 20 s
    at 64x64.

    Loss: cross-entropy over pixels, each class weighted by its frequency to the power -1/2, since objects are small.
    AdamW, learning rate 3e-3 to 0 by a cosine, `BATCH` frames a step.
    Raises EvaluationError for frames and masks that do not belong together.
    """
    _check(frames)
    if masks.ndim != 4 or masks.shape[0] != len(frames) or masks.shape[2:] != frames.shape[2:]:
        raise EvaluationError(f"masks are (M, N, H, W) of frames (M, 3, H, W): {masks.shape}, {frames.shape}")
    of = np.where(masks.any(1), masks.argmax(1) + 1, 0)
    images, classes = torch.from_numpy(frames), torch.from_numpy(of)
    share = torch.bincount(classes.flatten(), minlength=1 + masks.shape[1]) / classes.numel()
    weight = share.clamp_min(1e-4).rsqrt()
    generator = torch.Generator().manual_seed(seed)
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Segmenter(masks.shape[1], width)
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            rows = torch.randint(len(images), (min(BATCH, len(images)),), generator=generator)
            loss = F.cross_entropy(net(images[rows]), classes[rows], weight=weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval().requires_grad_(False)


def read_masks(net: Segmenter, frames: UInt8[np.ndarray, "M 3 H W"]) -> Bool[np.ndarray, "M N H W"]:
    """The pixels of each object in each frame alone: those where it is the likeliest."""
    _check(frames)
    with one_thread(), torch.no_grad():
        of = torch.cat([net(x).argmax(1) for x in torch.from_numpy(frames).split(4 * BATCH)]).numpy()
    return of[:, None] == np.arange(1, net.objects + 1)[:, None, None]


def _check(frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1] != 3 or not len(frames):
        raise EvaluationError(f"frames are uint8 (M, 3, H, W), at least one; found {frames.dtype}{frames.shape}")
