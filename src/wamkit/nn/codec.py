"""A frame codec that writes down only what changes: latents of a future frame given the current one.

In a manipulation scene the background stands still. A decoder that is shown the current frame need not redraw it, so a
few numbers a cell suffice for the rest, and what is copied stays sharp. encode(future, current) -> latents of unit
scale on a grid of one token for each 16x16 pixels; decode(latents, current) -> picture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from wamkit.nn.tokens import Downsample


class FrameCodec(nn.Module):
    """See the module's docstring. `channels` latents a cell; `noise` is the deviation added to latents in training,

    which makes the decoder tolerant of the errors that a generative model will make in them.
    """

    def __init__(self, channels: int = 16, width: int = 64, noise: float = 0.1):
        super().__init__()
        self.channels, self.noise = channels, noise
        self.patch = nn.Conv2d(6, width, 8, stride=4, padding=2)
        self.encoder = nn.Sequential(Downsample(width, 96), Downsample(96, 128), nn.Conv2d(128, channels, 1))
        self.now16 = nn.Conv2d(3, width, 8, stride=4, padding=2)
        self.now8, self.now4 = Downsample(width, 64), Downsample(64, 64)
        self.up4 = nn.Conv2d(channels + 64, 128, 3, padding=1)
        self.up8 = nn.Conv2d(128 + 64, 96, 3, padding=1)
        self.up16 = nn.Conv2d(96 + width, width, 3, padding=1)
        self.mix16 = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, 4 * 16, 3, padding=1)
        self.norm4, self.norm8, self.norm16 = nn.GroupNorm(8, 128), nn.GroupNorm(8, 96), nn.GroupNorm(8, width)
        self.to(memory_format=torch.channels_last)

    def encode(self, future: Float[Tensor, "B 3 H W"], current: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B L c"]:
        """Pictures in [-1, 1] -> latents, normalised over the channels of each cell to mean 0 and deviation 1."""
        pair = torch.cat([future, current], 1).contiguous(memory_format=torch.channels_last)
        z = self.encoder(F.silu(self.patch(pair))).flatten(2).transpose(1, 2)
        return F.layer_norm(z, (self.channels,))

    def decode(self, z_BLc: Float[Tensor, "B L c"], current: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Latents and the current picture in [-1, 1] -> the future picture, in about [-1, 1]."""
        now16 = F.silu(self.now16(current.contiguous(memory_format=torch.channels_last)))
        now8 = self.now8(now16)
        now4 = self.now4(now8)
        z = z_BLc.transpose(1, 2).unflatten(2, now4.shape[-2:])
        x = F.silu(self.norm4(self.up4(torch.cat([z, now4], 1))))
        x = F.silu(self.norm8(self.up8(torch.cat([F.interpolate(x, scale_factor=2), now8], 1))))
        x = F.silu(self.norm16(self.up16(torch.cat([F.interpolate(x, scale_factor=2), now16], 1))))
        x = x + F.silu(self.mix16(x))
        picture, keep = F.pixel_shuffle(self.out(x), 4).split([3, 1], 1)
        # Starts out as a copy of the current frame, which is already right for most pixels.
        return torch.lerp(picture, current, torch.sigmoid(keep + 2))

    def forward(self, future: Tensor, current: Tensor, eps: Tensor) -> Tensor:
        """The reconstruction through noisy latents; `eps` is standard normal noise (B, L, c)."""
        return self.decode(self.encode(future, current) + self.noise * eps, current)
