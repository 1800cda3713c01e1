"""A frame codec that encodes only changes: latents of a future frame given the current one.

In a manipulation scene the background stands still. A decoder that sees the current frame need not redraw it, and one
that knows the place in the image (a learned map) can fill in the background that the arm uncovers. A few values a cell
are enough for the rest, and copied parts stay sharp. With `levels`, latents are bounded and rounded (finite scalar
quantisation, arXiv:2309.15505), so that a few of them together are one of finitely many codes: an image token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from wamkit.nn.autoencoders.base import AUTOENCODERS, Autoencoder
from wamkit.nn.tokens import Downsample
from wamkit.nn.vocabulary import from_digits, to_digits


@AUTOENCODERS.register("frame_codec")
class FrameCodec(Autoencoder):
    """A convolutional autoencoder of one frame, conditioned on the current one.

    grid: (rows, columns) of cells.
    channels: values of a quarter of a cell, 8x8 pixels; a cell has four times as many.
    levels: 0, or the number of values, evenly spaced over [-1, 1], that a latent can take.
    """

    stride = 16

    def __init__(self, grid: tuple[int, int], channels: int = 8, width: int = 64, noise: float = 0.1, levels: int = 0):
        super().__init__()
        self.grid, self.side, self.levels = grid, self.stride // 8, levels
        self.channels, self.noise = self.side**2 * channels, 0.0 if levels else noise
        self.patch = nn.Conv2d(6, 48, 4, stride=4)
        self.encoder = nn.Sequential(
            Downsample(48, 64), nn.Conv2d(64, 64, 3, padding=1), nn.SiLU(), nn.Conv2d(64, channels, 1)
        )
        self.now16, self.now8 = nn.Conv2d(3, width, 4, stride=4), Downsample(width, 64)
        self.place16 = nn.Parameter(torch.zeros(1, width, 2 * self.side * grid[0], 2 * self.side * grid[1]))
        self.place8 = nn.Parameter(torch.zeros(1, 64, self.side * grid[0], self.side * grid[1]))
        self.up8, self.mix8 = nn.Conv2d(channels + 64, 96, 3, padding=1), nn.Conv2d(96, 96, 3, padding=1)
        self.squeeze = nn.Conv2d(96, width // 2, 1)
        self.up16, self.mix16 = (
            nn.Conv2d(width // 2 + width, width, 3, padding=1),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.norm8, self.norm16 = nn.GroupNorm(8, 96), nn.GroupNorm(8, width)
        self.out = nn.Conv2d(width, 4 * 16, 3, padding=1)
        self.to(memory_format=torch.channels_last)

    def encode(
        self, future: Float[Tensor, "B F 3 H W"], current: Float[Tensor, "B 3 H W"] | None = None
    ) -> Float[Tensor, "B F L c"]:
        """Each cell normalised to mean 0 and deviation 1, or rounded to `levels` values in [-1, 1], with the gradient
        of the unrounded value (straight through)."""
        B, count = future.shape[:2]
        pair = torch.cat([future.flatten(0, 1), current.repeat_interleave(count, 0)], 1)
        pair = pair.contiguous(memory_format=torch.channels_last)
        z = F.pixel_unshuffle(self.encoder(F.silu(self.patch(pair))).float(), self.side)
        return self._bounded(z.flatten(2).transpose(1, 2)).unflatten(0, (B, count))

    def _bounded(self, z: Float[Tensor, "N L c"]) -> Float[Tensor, "N L c"]:
        if not self.levels:
            return F.layer_norm(z, (self.channels,))
        z = torch.tanh(z)
        return z + (from_digits(to_digits(z, self.levels), self.levels) - z).detach()

    def decode(
        self, z: Float[Tensor, "B F L c"], current: Float[Tensor, "B 3 H W"] | None = None
    ) -> Float[Tensor, "B F 3 H W"]:
        """Latents and the current frame to frames."""
        B, count = z.shape[:2]
        current = current.repeat_interleave(count, 0)
        now16 = F.silu(self.now16(current.contiguous(memory_format=torch.channels_last)) + self.place16)
        now8 = self.now8(now16) + self.place8
        z = F.pixel_shuffle(z.flatten(0, 1).transpose(1, 2).unflatten(2, self.grid), self.side)
        x = F.silu(self.norm8(self.up8(torch.cat([z, now8], 1))))
        x = self.squeeze(x + F.silu(self.mix8(x)))
        x = F.silu(self.norm16(self.up16(torch.cat([F.interpolate(x, scale_factor=2), now16], 1))))
        x = x + F.silu(self.mix16(x))
        redrawn, keep = F.pixel_shuffle(self.out(x).float(), 4).split([3, 1], 1)
        # It starts as a copy of the current frame, which is right for most pixels.
        return torch.lerp(redrawn, current, torch.sigmoid(keep + 2)).unflatten(0, (B, count))


@AUTOENCODERS.register("frame_codec_32")
class CoarseFrameCodec(FrameCodec):
    """The same with one token for 32x32 pixels: four times fewer tokens, each with four times as many values."""

    stride = 32
