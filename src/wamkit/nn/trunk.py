"""The transformer that every family shares: pre-norm blocks, per-segment conditioning, an optional key-value cache.

Conditioning is AdaLN with one shared projection (adaLN-single, PixArt-alpha, arXiv:2310.00426): a scale and a shift a
segment, computed once for all blocks; each block keeps its own affine norm, so blocks still differ.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

Cache = list[tuple[Tensor, Tensor]]


class Attention(nn.Module):
    """Multi-head attention; keys and values of `past` (each (B, heads, P, D / heads)) come before the new ones."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of the number of heads {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x_BLD: Tensor, mask: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        B, L, D = x_BLD.shape
        q, k, v = self.qkv(x_BLD).view(B, L, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(B, L, D)), (k, v)


class Block(nn.Module):
    """One pre-norm transformer block; `scale` and `shift` (two each, (B, L, D)) condition its two norms."""

    def __init__(self, width: int, heads: int, mlp_ratio: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, mlp_ratio * width), nn.Linear(mlp_ratio * width, width)

    def forward(
        self, x_BLD: Tensor, mod: list[Tensor], mask: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        scale1, shift1, scale2, shift2 = mod
        y, kv = self.attention(torch.addcmul(shift1, self.norm1(x_BLD), scale1), mask, past)
        x_BLD = x_BLD + y
        h = torch.addcmul(shift2, self.norm2(x_BLD), scale2)
        # Squared ReLU (Primer, arXiv:2109.08668): as good as GELU here, and GELU took 9 % of a step on a CPU.
        return x_BLD + self.down(F.relu(self.up(h)).square()), kv


class Trunk(nn.Module):
    """`depth` blocks over one token sequence.

    forward(x_BLD, condition_BSD, lengths, mask_LK, past) -> (y_BLD, cache): `condition_BSD` holds one conditioning
    vector for each of S segments (B or 1 rows), whose token counts are `lengths`; `mask_LK` is true where a query may
    look at a key, keys of `past` first; `cache` holds the keys and values of past and new tokens.
    """

    def __init__(self, width: int, depth: int, heads: int, mlp_ratio: int = 4):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.modulation = nn.Linear(width, 4 * width)
        self.norm = nn.LayerNorm(width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        for block in self.blocks:
            for layer in (block.attention.out, block.down):
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * depth))
                nn.init.zeros_(layer.bias)

    def forward(
        self,
        x_BLD: Float[Tensor, "B L D"],
        condition_BSD: Float[Tensor, "C S D"],
        lengths: list[int],
        mask_LK: Bool[Tensor, "... L K"] | None = None,
        past: Cache | None = None,
    ) -> tuple[Float[Tensor, "B L D"], Cache]:
        mod_BS4D = self.modulation(F.silu(condition_BSD))
        index = torch.repeat_interleave(
            torch.arange(len(lengths), device=x_BLD.device), torch.tensor(lengths, device=x_BLD.device)
        )
        scale1, shift1, scale2, shift2 = (m.index_select(1, index) for m in mod_BS4D.chunk(4, -1))
        mod = [1 + scale1, shift1, 1 + scale2, shift2]
        cache: Cache = []
        for i, block in enumerate(self.blocks):
            x_BLD, kv = block(x_BLD, mod, mask_LK, past[i] if past else None)
            cache.append(kv)
        return self.norm(x_BLD), cache


def sigma_features(sigma: Tensor, width: int) -> Tensor:
    """Sines and cosines of a noise level in [0, 1], (...,) -> (..., width); `width` is even."""
    frequency = torch.exp(torch.linspace(0, math.log(1000.0), width // 2, device=sigma.device))
    angle = sigma.unsqueeze(-1) * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)
