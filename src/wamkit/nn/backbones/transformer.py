"""The small transformer: pre-norm blocks, visibility as a mask, an optional key-value cache.

It reads values alone: the streams have added learned embeddings of position and noise level to them. Scales and shifts
of every norm by noise level (AdaLN) were measured and left out: they learned as well, and were a tenth slower.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.nn.backbones.base import BACKBONES, Cache, SequenceBackbone, Tokens, joined, split


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v for (B, heads, L, d) and a bias that broadcasts to (B, heads, L, K).

    Written out for bfloat16 on a CPU: there the backward of torch's fused kernel is ten times slower (docs/LOG.md).
    """
    if q.device.type == "cpu" and q.dtype is torch.bfloat16:
        score = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return torch.softmax(score if bias is None else score + bias, -1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def attention_bias(mask: Bool[Tensor, "... L K"] | None) -> Tensor | None:
    """A mask as a bias, 0 or -inf. It is made once for all blocks: attention would make one of a mask in each."""
    return None if mask is None else torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, -math.inf)


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
        self, x_BLD: Tensor, bias: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        B, L, D = x_BLD.shape
        q, k, v = self.heads_of(x_BLD)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        y = attend(q, k, v, None if bias is None else bias.to(q.dtype))
        return self.out(y.transpose(1, 2).reshape(B, L, D)), (k, v)

    def heads_of(self, x_BLD: Tensor) -> Tensor:
        """Queries, keys and values (3, B, heads, L, D / heads)."""
        B, L, D = x_BLD.shape
        return self.qkv(x_BLD).view(B, L, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)


class SquaredReLU(torch.autograd.Function):
    """max(x, 0)^2 (Primer, arXiv:2109.08668): as good as GELU here. It saves one tensor for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        h = x.clamp(min=0)
        ctx.save_for_backward(h)
        return h * h

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (h,) = ctx.saved_tensors
        return (grad * h).mul_(2)


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp_ratio: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, mlp_ratio * width), nn.Linear(mlp_ratio * width, width)

    def forward(
        self,
        x_BLD: Tensor,
        bias: Tensor | None,
        past: tuple[Tensor, Tensor] | None,
        modulation_B4D: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        scale1, shift1, scale2, shift2 = (
            (None,) * 4 if modulation_B4D is None else modulation_B4D.unsqueeze(2).unbind(1)
        )
        y, kv = self.attention(_modulated(self.norm1(x_BLD), scale1, shift1), bias, past)
        x_BLD = x_BLD + y
        inner = _modulated(self.norm2(x_BLD), scale2, shift2)
        return x_BLD + self.down(SquaredReLU.apply(self.up(inner))), kv


def _modulated(x_BLD: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    return x_BLD if scale is None or shift is None else x_BLD * (1 + scale) + shift


@BACKBONES.register("transformer")
class Trunk(SequenceBackbone):
    """`depth` pre-norm blocks over one sequence."""

    def __init__(self, width: int, depth: int, heads: int, mlp_ratio: int = 4):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        for block in self.blocks:
            for layer in (block.attention.out, block.down):
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * depth))
                nn.init.zeros_(layer.bias)

    def layers(self) -> list[nn.Module]:
        return list(self.blocks)

    def run(
        self,
        parts: Sequence[Tokens],
        mask_LK: Bool[Tensor, "... L K"] | None = None,
        past: Cache | None = None,
        modulation: Float[Tensor, "B N 4 D"] | None = None,
    ) -> tuple[list[Tensor], list[Tensor], Cache]:
        x, bias, hidden, cache = joined(parts), attention_bias(mask_LK), [], []
        for i, block in enumerate(self.blocks):
            x, kv = block(x, bias, past[i] if past else None, None if modulation is None else modulation[:, i])
            hidden.append(x)
            cache.append(kv)
        return split(self.norm(x), parts), hidden, cache

    def read(self, parts: Sequence[Tokens]) -> Cache:
        """Keys and values with the projections of self-attention."""
        x, cache = joined(parts), []
        for block in self.blocks:
            _, k, v = block.attention.heads_of(block.norm1(x))
            cache.append((k, v))
        return cache


@dataclass(frozen=True)
class Read:
    """The state of a sequence whose places are read in any order, each once.

    mask_LL: over the whole sequence, true where a place may attend to another.
    seen: int64 (K,), the places read so far.
    """

    trunk: SequenceBackbone
    mask_LL: Bool[Tensor, "L L"]
    seen: Tensor
    cache: Cache | None = None

    def on(self, parts: Sequence[Tokens], at: Tensor) -> tuple[Float[Tensor, "B n D"], Read]:
        """Reads tokens at the places `at` (int64 (n,)): the backbone's outputs, and the state after it."""
        seen = torch.cat([self.seen, at])
        y, cache = self.trunk(parts, self.mask_LL[at][:, seen], self.cache)
        return torch.cat(y, 1), Read(self.trunk, self.mask_LL, seen, cache)


def sigma_features(sigma: Tensor, width: int) -> Tensor:
    """Sines and cosines of a noise level in [0, 1], (...,) -> (..., width); `width` is even."""
    frequency = torch.exp(torch.linspace(0, math.log(1000.0), width // 2, device=sigma.device))
    angle = sigma.unsqueeze(-1) * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)
