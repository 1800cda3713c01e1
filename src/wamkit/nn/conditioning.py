"""How what is known reaches the tokens that are denoised: the taxonomy's axis of conditioning, at a fixed trunk.

prefix    context tokens are part of the sequence and go through the trunk with it (the field's in-context conditioning)
channel   concatenated on channels before the trunk (UniPi, PAD): a projection of the token and of what is known
cross     every block attends to the encoder's tokens, which no block changes (cross-attention)
adaln     what is known scales and shifts the norms of every block (UWM's AdaLN, PixArt's cheap form: one for all blocks, plus offsets)

`channel` and `adaln` know the context through one projection of all its tokens, not through their mean: where things are must
survive.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wamkit.nn.trunk import Cache, Trunk

Kind = Literal["prefix", "channel", "cross", "adaln"]


class Conditioning(nn.Module):
    """See the module's docstring. length: tokens of the context.   depth: blocks of the trunk."""

    def __init__(self, kind: Kind, length: int, width: int, depth: int):
        super().__init__()
        self.kind, self.depth = kind, depth
        if kind in ("channel", "adaln"):
            self.summary = nn.Sequential(nn.Linear(length * width, width), nn.SiLU())
        if kind == "channel":
            self.join = nn.Linear(2 * width, width)
        if kind == "adaln":
            self.film = nn.Linear(width, 4 * width)
            self.offset = nn.Parameter(torch.zeros(depth, 4, width))
            nn.init.zeros_(self.film.weight)
            nn.init.zeros_(self.film.bias)

    def enter(self, tokens_BLD: Float[Tensor, "B L D"], context_BKD: Float[Tensor, "B K D"]) -> Float[Tensor, "B L D"]:
        """Noisy tokens as they enter the trunk."""
        if self.kind != "channel":
            return tokens_BLD
        known = self.summary(context_BKD.flatten(1)).unsqueeze(1).expand_as(tokens_BLD)
        return tokens_BLD + self.join(torch.cat([tokens_BLD, known], -1))

    def keys(self, trunk: Trunk, context_BKD: Float[Tensor, "B K D"]) -> Cache | None:
        """What the blocks can look at besides the noisy tokens, if anything."""
        if self.kind == "prefix":
            return trunk(context_BKD)[1]
        return trunk.read(context_BKD) if self.kind == "cross" else None

    def modulation(self, context_BKD: Float[Tensor, "B K D"]) -> Float[Tensor, "B N 4 D"] | None:
        """Scales and shifts of the trunk's norms, if any."""
        if self.kind != "adaln":
            return None
        film = self.film(self.summary(context_BKD.flatten(1)))
        return film.unflatten(-1, (1, 4, -1)) + self.offset
