"""Second implementations of the backbone and the autoencoder, as small as they can be, for the contract tests.

`rope` rotates keys and queries by position and modulates every block by noise level (AdaLN), as pretrained video models
do. `cells8` is an autoencoder with cells of 8 pixels that does not see the current frame.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wamkit.nn import AUTOENCODERS, BACKBONES, Autoencoder, SequenceBackbone, joined, sigma_features, split
from wamkit.nn.backbones.transformer import attend, attention_bias


def rotate(x_BhLd: Tensor, position_L3: Tensor) -> Tensor:
    """Rotary embedding (arXiv:2104.09864): a third of the pairs turn by time, one by row, one by column."""
    pairs = x_BhLd.shape[-1] // 2
    axis = torch.arange(pairs, device=x_BhLd.device) % 3
    angle = position_L3[:, axis] * 0.5 ** torch.arange(pairs, device=x_BhLd.device)
    a, b = x_BhLd.unflatten(-1, (pairs, 2)).unbind(-1)
    return torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).flatten(-2)


class RopeBlock(nn.Module):
    """A block whose norms are scaled and shifted by noise level and whose attention turns by position."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.modulation = nn.Linear(width, 4 * width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, x, level_BLD, position_L3, bias, past, modulation_B4D):
        scale1, shift1, scale2, shift2 = self.modulation(level_BLD).unflatten(-1, (4, -1)).unbind(-2)
        if modulation_B4D is not None:
            extra = modulation_B4D.unsqueeze(2).unbind(1)
            scale1, shift1, scale2, shift2 = (
                a + b for a, b in zip((scale1, shift1, scale2, shift2), extra, strict=True)
            )
        q, k, v = self.heads_of(self.norms[0](x) * (1 + scale1) + shift1)
        k = rotate(k, position_L3)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        y = attend(rotate(q, position_L3), k, v, None if bias is None else bias.to(q.dtype))
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x) * (1 + scale2) + shift2), (k, v)

    def heads_of(self, x_BLD):
        return self.qkv(x_BLD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)


@BACKBONES.register("rope")
class Rope(SequenceBackbone):
    """Blocks that read positions and noise levels."""

    def __init__(self, width: int, depth: int, heads: int):
        super().__init__()
        self.width = width
        self.blocks = nn.ModuleList(RopeBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def layers(self):
        return list(self.blocks)

    def marks(self, parts):
        """Noise levels, embedded, and positions of a sequence."""
        level, position = [], []
        for p in parts:
            B, L, _ = p.values.shape
            sigma = torch.zeros(1, device=p.values.device) if p.sigma is None else p.sigma
            level.append(sigma_features(sigma.view(len(sigma), -1), self.width).expand(B, L, -1))
            position.append(torch.zeros(L, 3, device=p.values.device) if p.position is None else p.position)
        return torch.cat(level, 1), torch.cat(position) / torch.tensor([1.0, 16.0, 16.0])

    def run(self, parts, mask_LK=None, past=None, modulation=None):
        x, bias, hidden, cache = joined(parts), attention_bias(mask_LK), [], []
        level, position = self.marks(parts)
        for i, block in enumerate(self.blocks):
            extra = None if modulation is None else modulation[:, i]
            x, kv = block(x, level, position, bias, past[i] if past else None, extra)
            hidden.append(x)
            cache.append(kv)
        return split(self.norm(x), parts), hidden, cache

    def read(self, parts):
        x, cache = joined(parts), []
        for block in self.blocks:
            _, k, v = block.heads_of(block.norms[0](x))
            cache.append((rotate(k, self.marks(parts)[1]), v))
        return cache


@AUTOENCODERS.register("cells8")
class Cells8(Autoencoder):
    """One linear map a cell of 8x8 pixels, and one back."""

    stride = 8

    def __init__(self, grid: tuple[int, int], channels: int):
        super().__init__()
        self.grid, self.channels = grid, channels
        self.down = nn.Conv2d(3, channels, self.stride, stride=self.stride)
        self.up = nn.ConvTranspose2d(channels, 3, self.stride, stride=self.stride)

    def encode(self, future, current=None):
        z = self.down(future.flatten(0, 1)).float().flatten(2).transpose(1, 2)
        return z.unflatten(0, future.shape[:2])

    def decode(self, z, current=None):
        frames = self.up(z.flatten(0, 1).transpose(1, 2).unflatten(2, self.grid)).float()
        return frames.unflatten(0, z.shape[:2])
