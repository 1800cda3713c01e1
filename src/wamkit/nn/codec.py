"""A frame codec that writes down only what changes: latents of a future frame given the current one.

In a manipulation scene the background stands still. A decoder that is shown the current frame need not redraw it, and one
that knows where in the picture it is (a learned map) can fill in what the arm uncovers, so a few numbers a cell suffice
for the rest and what is copied stays sharp. encode(future, current) -> latents of unit scale, one token for each 16x16
pixels; decode(latents, current) -> picture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from wamkit.nn.tokens import Downsample


class FrameCodec(nn.Module):
    """See the module's docstring.

    grid: (rows, columns) of 16x16-pixel cells.   channels: latent numbers an 8x8-pixel cell; a token holds four of these.
    noise: deviation of the noise that training adds to latents, which makes the decoder tolerant of the errors that a
    generative model will make in them.
    """

    def __init__(self, grid: tuple[int, int], channels: int = 8, width: int = 64, noise: float = 0.1):
        super().__init__()
        self.grid, self.channels, self.noise = grid, 4 * channels, noise
        self.patch = nn.Conv2d(6, 48, 4, stride=4)
        self.encoder = nn.Sequential(
            Downsample(48, 64), nn.Conv2d(64, 64, 3, padding=1), nn.SiLU(), nn.Conv2d(64, channels, 1)
        )
        self.now16, self.now8 = nn.Conv2d(3, width, 4, stride=4), Downsample(width, 64)
        self.place16 = nn.Parameter(torch.zeros(1, width, 4 * grid[0], 4 * grid[1]))
        self.place8 = nn.Parameter(torch.zeros(1, 64, 2 * grid[0], 2 * grid[1]))
        self.up8, self.mix8 = nn.Conv2d(channels + 64, 96, 3, padding=1), nn.Conv2d(96, 96, 3, padding=1)
        self.squeeze = nn.Conv2d(96, width // 2, 1)
        self.up16, self.mix16 = (
            nn.Conv2d(width // 2 + width, width, 3, padding=1),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.norm8, self.norm16 = nn.GroupNorm(8, 96), nn.GroupNorm(8, width)
        self.out = nn.Conv2d(width, 4 * 16, 3, padding=1)
        self.to(memory_format=torch.channels_last)

    def encode(self, future: Float[Tensor, "B 3 H W"], current: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B L c"]:
        """Pictures in [-1, 1] -> latents (B, tokens, channels), each token normalised to mean 0 and deviation 1."""
        pair = torch.cat([future, current], 1).contiguous(memory_format=torch.channels_last)
        z = F.pixel_unshuffle(self.encoder(F.silu(self.patch(pair))).float(), 2)
        return F.layer_norm(z.flatten(2).transpose(1, 2), (self.channels,))

    def decode(self, z_BLc: Float[Tensor, "B L c"], current: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Latents and the current picture in [-1, 1] -> the future picture, in about [-1, 1]."""
        now16 = F.silu(self.now16(current.contiguous(memory_format=torch.channels_last)) + self.place16)
        now8 = self.now8(now16) + self.place8
        z = F.pixel_shuffle(z_BLc.transpose(1, 2).unflatten(2, self.grid), 2)
        x = F.silu(self.norm8(self.up8(torch.cat([z, now8], 1))))
        x = self.squeeze(x + F.silu(self.mix8(x)))
        x = F.silu(self.norm16(self.up16(torch.cat([F.interpolate(x, scale_factor=2), now16], 1))))
        x = x + F.silu(self.mix16(x))
        picture, keep = F.pixel_shuffle(self.out(x).float(), 4).split([3, 1], 1)
        # Starts out as a copy of the current frame, which is already right for most pixels.
        return torch.lerp(picture, current, torch.sigmoid(keep + 2))

    def forward(self, future: Tensor, current: Tensor, eps: Tensor) -> Tensor:
        """The reconstruction through noisy latents; `eps` is standard normal noise (B, L, c)."""
        return self.decode(self.encode(future, current) + self.noise * eps, current)
