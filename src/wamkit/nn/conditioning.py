"""How what is known reaches the tokens that are denoised: the taxonomy's axis of conditioning, at a fixed trunk.

prefix    context tokens are part of the sequence and go through the trunk with it (the field's in-context conditioning)
channel   concatenated on channels before the trunk (UniPi, PAD): a projection of the token and of what is known
cross     every block attends to the encoder's tokens, which no block changes (cross-attention)
adaln     what is known scales and shifts the norms of every block (UWM's AdaLN, PixArt's cheap form: one for all blocks, plus offsets)

A future token starts from the present picture's token of its cell in all four (`FutureLatents.tokens`); they differ in how the rest of
what is known is heard. `channel` and `adaln` know the context through one projection of all its tokens, not through their mean: where things are must
survive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.nn.backbones.transformer import Cache, Trunk

Kind = Literal["prefix", "channel", "cross", "adaln"]


@dataclass(frozen=True)
class ContextFeatures:
    """A context as noisy tokens hear of it: keys and values, or scales and shifts (B, N, 4, D), or a summary (B, D)."""

    keys: Cache | None = None
    modulation: Tensor | None = None
    summary: Tensor | None = None


class Conditioning(nn.Module):
    """See the module's docstring. length: tokens of the context.   depth: blocks of the trunk."""

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

    def known(self, trunk: Trunk, context_BKD: Float[Tensor, "B K D"]) -> ContextFeatures:
        """The context, worked out once for all denoising steps."""
        if self.kind in ("prefix", "cross"):
            return ContextFeatures(keys=self.keys(trunk, context_BKD))
        summary = self.summary(context_BKD.flatten(1))
        if self.kind == "channel":
            return ContextFeatures(summary=summary)
        return ContextFeatures(modulation=self.film(summary).unflatten(-1, (1, 4, -1)) + self.offset)

    def keys(self, trunk: Trunk, context_BKD: Float[Tensor, "B K D"], mask_KK: Tensor | None = None) -> Cache:
        """Keys and values of the context, for `prefix` and `cross`. mask_KK: who sees whom in it; only `prefix` looks around."""
        return trunk(context_BKD, mask_KK)[1] if self.kind == "prefix" else trunk.read(context_BKD)

    def denoised(
        self, trunk: Trunk, tokens_BLD: Float[Tensor, "B L D"], known: ContextFeatures, mask_LK: Bool[Tensor, "... L K"]
    ) -> Float[Tensor, "B L D"]:
        """The trunk's outputs for noisy tokens. mask_LK: who of them sees whom, columns of the context first."""
        if known.summary is not None:
            summary = known.summary.unsqueeze(1).expand_as(tokens_BLD)
            tokens_BLD = tokens_BLD + self.join(torch.cat([tokens_BLD, summary], -1))
        if known.keys is None:
            mask_LK = mask_LK[..., -tokens_BLD.shape[1] :]
        return trunk(tokens_BLD, None if mask_LK.all() else mask_LK, known.keys, known.modulation)[0]

    def forward(
        self,
        trunk: Trunk,
        tokens_BLD: Float[Tensor, "B L D"],
        context_BKD: Float[Tensor, "B K D"],
        mask_SS: Bool[Tensor, "... S S"],
    ) -> Float[Tensor, "B L D"]:
        """The same in training, in one pass. mask_SS: who sees whom among context and noisy tokens, in that order."""
        K = context_BKD.shape[1]
        if self.kind == "prefix":
            return trunk(torch.cat([context_BKD, tokens_BLD], 1), mask_SS)[0][:, K:]
        return self.denoised(trunk, tokens_BLD, self.known(trunk, context_BKD), mask_SS[..., K:, :])
