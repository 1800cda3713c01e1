"""The interface of a codec of futures: future frames to the targets that a family predicts, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from wamkit.types import Batch


class FutureCodec(nn.Module, ABC):
    """Future frames as targets that a family predicts: latents or codes. Trained by `loss`, then frozen."""

    @abstractmethod
    def loss(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, " B"]:
        """The reconstruction error of the stage `codec`, one value a row."""

    @abstractmethod
    def encode(self, batch: Batch) -> Tensor:
        """The targets of `batch.future`, one row a window."""

    @abstractmethod
    def decode(self, targets: Tensor, obs: UInt8[Tensor, "B V 3 H W"]) -> UInt8[Tensor, "B F V 3 H W"]:
        """Targets to frames, given the current ones."""

    @abstractmethod
    def features(self, batch: Batch) -> dict[str, Tensor]:
        """`encode` by the name under which `forward` finds it in `batch.features`."""
