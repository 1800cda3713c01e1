"""Conditioning: how the context reaches noisy tokens, the taxonomy's axis of that name, for a fixed backbone.

* prefix: context tokens stand in the sequence and pass through the backbone with it (in-context conditioning).
* channel: concatenated on channels before the backbone (UniPi, PAD), a projection of the token and the context.
* cross: every block attends to the encoder's tokens, which no block changes (cross-attention).
* adaln: the context scales and shifts the norms of every block (UWM's AdaLN, in PixArt's cheap form: one for all
  blocks, plus offsets).

In all four, a future token starts from the present image's token of its cell (`FutureLatents.tokens`). `channel` and
`adaln` receive one projection of all context tokens, not their mean, so that positions in the image survive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.nn.backbones.base import Cache, SequenceBackbone, Tokens, joined, split
from wamkit.nn.options import Kind


@dataclass(frozen=True)
class ContextFeatures:
    """Context features in the form that the conditioning needs: one of the three.

    keys: keys and values.
    modulation: scales and shifts (B, N, 4, D).
    summary: one vector (B, D).
    """

    keys: Cache | None = None
    modulation: Tensor | None = None
    summary: Tensor | None = None


class Conditioning(nn.Module):
    """One kind of conditioning. length: tokens of the context.   depth: blocks of the backbone."""

    def __init__(self, kind: Kind, length: int, width: int, depth: int):
        super().__init__()
        self.kind = kind
        if kind in ("channel", "adaln"):
            self.summary = nn.Sequential(nn.Linear(length * width, width), nn.SiLU())
        if kind == "channel":
            self.join = nn.Linear(2 * width, width)
        if kind == "adaln":
            self.film = nn.Linear(width, 4 * width)
            self.offset = nn.Parameter(torch.zeros(depth, 4, width))
            nn.init.zeros_(self.film.weight)
            nn.init.zeros_(self.film.bias)

    def features(self, trunk: SequenceBackbone, context: Sequence[Tokens]) -> ContextFeatures:
        """Features of the context, computed once for all denoising steps."""
        if self.kind in ("prefix", "cross"):
            return ContextFeatures(keys=self.keys(trunk, context))
        summary = self.summary(joined(context).flatten(1))
        if self.kind == "channel":
            return ContextFeatures(summary=summary)
        return ContextFeatures(modulation=self.film(summary).unflatten(-1, (1, 4, -1)) + self.offset)

    def keys(self, trunk: SequenceBackbone, context: Sequence[Tokens], mask_KK: Tensor | None = None) -> Cache:
        """Keys and values of the context, for `prefix` and `cross`. mask_KK: inside the context, for `prefix` alone."""
        return trunk(context, mask_KK)[1] if self.kind == "prefix" else trunk.read(context)

    def denoised(
        self,
        trunk: SequenceBackbone,
        parts: Sequence[Tokens],
        context: ContextFeatures,
        mask_LK: Bool[Tensor, "... L K"],
    ) -> list[Float[Tensor, "B L D"]]:
        """Outputs for noisy tokens, one a part. mask_LK: columns of the context first."""
        if context.summary is not None:
            x = joined(parts)
            x = x + self.join(torch.cat([x, context.summary.unsqueeze(1).expand_as(x)], -1))
            parts = [replace(p, values=v) for p, v in zip(parts, split(x, parts), strict=True)]
        if context.keys is None:
            mask_LK = mask_LK[..., -sum(map(len, parts)) :]
        return trunk(parts, None if mask_LK.all() else mask_LK, context.keys, context.modulation)[0]

    def forward(
        self,
        trunk: SequenceBackbone,
        parts: Sequence[Tokens],
        context: Sequence[Tokens],
        mask_SS: Bool[Tensor, "... S S"],
    ) -> list[Float[Tensor, "B L D"]]:
        """`denoised` for training, in one pass. mask_SS: over context and noisy tokens, in that order."""
        if self.kind == "prefix":
            return trunk([*context, *parts], mask_SS)[0][len(context) :]
        K = sum(map(len, context))
        return self.denoised(trunk, parts, self.features(trunk, context), mask_SS[..., K:, :])
