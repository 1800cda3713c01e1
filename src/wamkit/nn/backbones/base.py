"""The interface of a backbone: a stack of transformer blocks that turns tokens into features.

A sequence is a list of `Tokens`, each a run of one kind. Positions and noise levels stand beside the values, so that a
backbone may compute rotary embeddings and modulations (AdaLN) from them. The small transformer reads the values alone:
their streams have added learned embeddings of both (docs/adr/0005-tokens.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.registry import Registry

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of the tokens read so far, one pair a block, each (B, heads, K, D / heads)."""


@dataclass(frozen=True)
class Tokens:
    """A run of L tokens of one kind.

    values: the tokens, embedded. A stream may have added learned embeddings of position and noise level.
    kind: content of the run, for example "image", "text", "action" or "future".
    position: time in steps from now, row and column in pixels of the canvas; rows and columns are -1 outside the image.
        None for tokens without a position.
    sigma: noise level in [0, 1], one a row (b = B) or one for all (b = 1), or one a token, (b, L). None for clean
        tokens.
    """

    values: Float[Tensor, "B L D"]
    kind: str
    position: Float[Tensor, "L 3"] | None = None
    sigma: Float[Tensor, " b"] | Float[Tensor, "b L"] | None = None

    def __len__(self) -> int:
        return self.values.shape[1]

    def plus(self, values: Tensor) -> Tokens:
        """The same run with `values` (broadcast to (B, L, D)) added."""
        return replace(self, values=self.values + values)


def joined(parts: Sequence[Tokens]) -> Float[Tensor, "B L D"]:
    """The values of a sequence."""
    return parts[0].values if len(parts) == 1 else torch.cat([p.values for p in parts], 1)


def split(y_BLD: Float[Tensor, "B L D"], parts: Sequence[Tokens]) -> list[Tensor]:
    """The inverse of `joined`: one tensor a part."""
    return list(y_BLD.split([len(p) for p in parts], 1))


class Backbone(nn.Module, ABC):
    """A stack of transformer blocks with a key-value cache."""

    @abstractmethod
    def layers(self) -> Sequence[nn.Module]:
        """The blocks, in the order in which they run.

        A block is the unit of sharding (FSDP2), activation checkpointing and compilation. Its matrices are those that
        the optimizer Muon orthogonalises.
        """

    def frozen(self) -> Sequence[nn.Parameter]:
        """Parameters that stay as they were released, whatever is trained."""
        return ()


class SequenceBackbone(Backbone):
    """A backbone for one sequence: all tokens share its weights. Built from (width, depth, heads)."""

    def forward(
        self,
        parts: Sequence[Tokens],
        mask_LK: Bool[Tensor, "... L K"] | None = None,
        past: Cache | None = None,
        modulation: Float[Tensor, "B N 4 D"] | None = None,
    ) -> tuple[list[Float[Tensor, "B L D"]], Cache]:
        """Outputs, one a part, and the cache of past and new tokens. For the arguments see `run`."""
        outputs, _, cache = self.run(parts, mask_LK, past, modulation)
        return outputs, cache

    @abstractmethod
    def run(
        self,
        parts: Sequence[Tokens],
        mask_LK: Bool[Tensor, "... L K"] | None = None,
        past: Cache | None = None,
        modulation: Float[Tensor, "B N 4 D"] | None = None,
    ) -> tuple[list[Tensor], list[Tensor], Cache]:
        """Outputs, one a part; the hidden states after each of the N blocks, of the whole sequence; and the cache.

        mask_LK: true where a query may attend to a key, keys of `past` first. None: everywhere.
        past: cache of the tokens before these.
        modulation: scale and shift of both norms of every block, the same for all tokens.
        """

    def before_last(
        self, parts: Sequence[Tokens], mask_LK: Bool[Tensor, "... L K"] | None = None
    ) -> list[Float[Tensor, "B L D"]]:
        """Hidden states before the last block, one tensor a part; for the arguments see `run`."""
        _, hidden, _ = self.run(parts, mask_LK)
        return split([joined(parts), *hidden][-2], parts)

    @abstractmethod
    def read(self, parts: Sequence[Tokens]) -> Cache:
        """Keys and values of tokens that every block attends to and none changes: cross-attention to an encoder."""


BACKBONES: Registry[type[SequenceBackbone]] = Registry("backbone", "wamkit.backbones", package="wamkit.nn.backbones")
"""Backbones for one sequence by name. Packages add theirs under the entry-point group `wamkit.backbones`."""
