"""A mixture of transformers: one expert (norms, projections, MLP) a stream, one attention over all of them.

Mixture-of-Transformers (arXiv:2411.04996), as in LingBot-VA, Motus and Fast-WAM. Streams may differ in width: all
experts project to one attention width. Gradients between streams are data too: a pair (query, key) in `detach` lets the
query's stream read the key's stream without sending gradients back.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.nn.backbones.base import Backbone, Cache, Tokens, joined, split
from wamkit.nn.backbones.transformer import SquaredReLU, attend, attention_bias


class Expert(nn.Module):
    """One stream's weights in one block."""

    def __init__(self, width: int, inner: int, mlp_ratio: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * inner), nn.Linear(inner, width)
        self.up, self.down = nn.Linear(width, mlp_ratio * width), nn.Linear(mlp_ratio * width, width)


class MixtureBlock(nn.Module):
    """One block over all streams: an expert each, and one attention. It shares the experts' weights and owns none."""

    def __init__(self, experts: Mapping[str, Expert], heads: int):
        super().__init__()
        self.experts, self.heads = nn.ModuleDict(experts), heads

    def forward(
        self,
        x: Mapping[str, Tensor],
        bias: Mapping[str, Tensor | None],
        past: tuple[Tensor, Tensor] | None,
        detach: Collection[tuple[str, str]],
    ) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        qkv = {s: self._heads(self.experts[s].qkv(self.experts[s].norm1(t))) for s, t in x.items()}
        ahead, out = [past] if past else [], {}
        for s, t in x.items():
            expert = self.experts[s]
            parts = [(k.detach(), v.detach()) if (s, other) in detach else (k, v) for other, (_, k, v) in qkv.items()]
            keys, values = (torch.cat(p, 2) for p in zip(*ahead, *parts, strict=True))
            mask = bias[s]
            y = attend(qkv[s][0], keys, values, None if mask is None else mask.to(keys.dtype))
            t = t + expert.out(y.transpose(1, 2).flatten(2))
            out[s] = t + expert.down(SquaredReLU.apply(expert.up(expert.norm2(t))))
        keys, values = (torch.cat(p, 2) for p in zip(*ahead, *[(k, v) for _, k, v in qkv.values()], strict=True))
        return out, (keys, values)

    def _heads(self, x_BLD: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values side by side (B, L, 3 * heads * d) -> three tensors (B, heads, L, d)."""
        B, L, width = x_BLD.shape
        return x_BLD.view(B, L, 3, self.heads, width // 3 // self.heads).permute(2, 0, 3, 1, 4).unbind(0)


class Mixture(Backbone):
    """`depth` blocks over several streams.

    widths: stream -> its model width.
    inner: width of the shared attention, a multiple of `heads`.
    """

    def __init__(self, widths: Mapping[str, int], depth: int, heads: int, inner: int, mlp_ratio: int = 4):
        super().__init__()
        if inner % heads:
            raise ValueError(f"attention width {inner} is not a multiple of the number of heads {heads}")
        self.blocks = nn.ModuleDict(
            {s: nn.ModuleList(Expert(width, inner, mlp_ratio) for _ in range(depth)) for s, width in widths.items()}
        )
        self.norms = nn.ModuleDict({s: nn.LayerNorm(width) for s, width in widths.items()})
        for blocks in self.blocks.values():
            for expert in blocks:
                for layer in (expert.out, expert.down):
                    nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * depth))
                    nn.init.zeros_(layer.bias)
        # In a list, where a module does not register them: the experts, and their names in files, are in `blocks`.
        self._blocks = [MixtureBlock({s: self.blocks[s][i] for s in widths}, heads) for i in range(depth)]

    def layers(self) -> list[nn.Module]:
        return list(self._blocks)

    def prefixes(self, stream: str) -> tuple[str, ...]:
        """Prefixes of the parameters of one stream's expert, inside of this module."""
        return f"blocks.{stream}", f"norms.{stream}"

    def forward(
        self,
        parts: Mapping[str, Sequence[Tokens]],
        mask: Mapping[str, Bool[Tensor, "... L K"] | None],
        past: Cache | None = None,
        detach: Collection[tuple[str, str]] = (),
    ) -> tuple[dict[str, list[Float[Tensor, "B L D"]]], Cache]:
        """Outputs of every stream, one a part, and the cache of past and new tokens.

        parts: the sequence of every stream, in the order in which their keys come.
        mask: for each stream, true where its tokens may attend to a key, keys of `past` first. None: everywhere.
        past: cache of the tokens before these.
        detach: pairs (query, key): that query's stream reads that key's stream without sending gradients back.
        """
        states, cache = self._run(self._blocks, parts, mask, past, detach)
        return {s: split(self.norms[s](t), parts[s]) for s, t in states.items()}, cache

    def before_last(
        self, parts: Mapping[str, Sequence[Tokens]], mask: Mapping[str, Bool[Tensor, "... L K"] | None]
    ) -> dict[str, list[Float[Tensor, "B L D"]]]:
        """Hidden states before the last block, by stream, one tensor a part; for the arguments see `forward`."""
        states, _ = self._run(self._blocks[:-1], parts, mask, None, ())
        return {s: split(t, parts[s]) for s, t in states.items()}

    def _run(
        self,
        blocks: Sequence[nn.Module],
        parts: Mapping[str, Sequence[Tokens]],
        mask: Mapping[str, Bool[Tensor, "... L K"] | None],
        past: Cache | None,
        detach: Collection[tuple[str, str]],
    ) -> tuple[dict[str, Tensor], Cache]:
        """Hidden states after `blocks`, by stream, and the cache; for the arguments see `forward`."""
        bias, cache = {s: attention_bias(m) for s, m in mask.items()}, []
        x = {s: joined(p) for s, p in parts.items()}
        for i, block in enumerate(blocks):
            x, kv = block(x, bias, past[i] if past else None, detach)
            cache.append(kv)
        return x, cache
