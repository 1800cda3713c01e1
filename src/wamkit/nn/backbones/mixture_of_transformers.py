"""A mixture of transformers: one expert (norms, projections, MLP) a stream, one attention over all of them.

Mixture-of-Transformers (arXiv:2411.04996), as in LingBot-VA, Motus and Fast-WAM. Streams may differ in width: all experts project
to one attention width. What one stream may learn from another is data too: a pair (query, key) in `detach` lets the query's
stream read the key's stream without sending gradients back.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from wamkit.nn.backbones.transformer import Cache, SquaredReLU, attend


class Expert(nn.Module):
    """One stream's weights in one block."""

    def __init__(self, width: int, inner: int, mlp_ratio: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * inner), nn.Linear(inner, width)
        self.up, self.down = nn.Linear(width, mlp_ratio * width), nn.Linear(mlp_ratio * width, width)


class Mixture(nn.Module):
    """`depth` blocks over several streams.

    widths: stream -> its model width.   inner: width of the shared attention, a multiple of `heads`.

    forward(x, mask, past, detach) -> (y, cache): `x` maps streams to tokens (B, L, width), in the order in which their keys
    come; `mask[s]` is true where tokens of `s` may look at a key (..., L, K), keys of `past` first (None: at all of them);
    `cache` holds the keys and values of past and new tokens.
    """

    def __init__(self, widths: Mapping[str, int], depth: int, heads: int, inner: int, mlp_ratio: int = 4):
        super().__init__()
        if inner % heads:
            raise ValueError(f"attention width {inner} is not a multiple of the number of heads {heads}")
        self.heads, self.depth = heads, depth
        self.blocks = nn.ModuleDict(
            {s: nn.ModuleList(Expert(width, inner, mlp_ratio) for _ in range(depth)) for s, width in widths.items()}
        )
        self.norms = nn.ModuleDict({s: nn.LayerNorm(width) for s, width in widths.items()})
        for blocks in self.blocks.values():
            for expert in blocks:
                for layer in (expert.out, expert.down):
                    nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * depth))
                    nn.init.zeros_(layer.bias)

    def forward(
        self,
        x: Mapping[str, Tensor],
        mask: Mapping[str, Tensor | None],
        past: Cache | None = None,
        detach: Collection[tuple[str, str]] = (),
    ) -> tuple[dict[str, Tensor], Cache]:
        bias = {
            s: None if m is None else torch.zeros(m.shape, device=m.device).masked_fill_(~m, -math.inf)
            for s, m in mask.items()
        }
        x, cache = dict(x), []
        for i in range(self.depth):
            block = {s: self.blocks[s][i] for s in x}
            qkv = {s: self._heads(block[s].qkv(block[s].norm1(t)), 3) for s, t in x.items()}
            for s, t in x.items():
                parts = [
                    (k.detach(), v.detach()) if (s, other) in detach else (k, v) for other, (_, k, v) in qkv.items()
                ]
                keys, values = (torch.cat(p, 2) for p in zip(*([past[i]] if past else []), *parts, strict=True))
                y = attend(qkv[s][0], keys, values, None if bias[s] is None else bias[s].to(keys.dtype))
                t = t + block[s].out(y.transpose(1, 2).flatten(2))
                x[s] = t + block[s].down(SquaredReLU.apply(block[s].up(block[s].norm2(t))))
            own = [(k, v) for _, k, v in qkv.values()]
            cache.append(tuple(torch.cat(p, 2) for p in zip(*([past[i]] if past else []), *own, strict=True)))
        return {s: self.norms[s](t) for s, t in x.items()}, cache

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, L, parts * heads * d) -> `parts` tensors (B, heads, L, d)."""
        B, L, width = x.shape
        return x.view(B, L, parts, self.heads, width // parts // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
