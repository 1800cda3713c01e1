"""The interfaces between frames and what a family predicts: autoencoders of frames, and codecs of futures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from wamkit.registry import Registry
from wamkit.types import Batch


class Autoencoder(nn.Module, ABC):
    """Frames to latents and back, in cells of `stride` x `stride` pixels. Built from ((rows, columns), size).

    channels: values a cell.
    noise: deviation of the noise that training adds to latents of unit scale, which makes the decoder tolerant of the
        errors of a generative model.
    """

    stride: int
    channels: int
    noise: float = 0.0

    @abstractmethod
    def encode(
        self, future: Float[Tensor, "B F 3 H W"], current: Float[Tensor, "B 3 H W"] | None = None
    ) -> Float[Tensor, "B F L c"]:
        """Frames in [-1, 1] to latents of about unit scale, cells row by row.

        current: the frame before them, for an autoencoder that writes down changes.
        """

    @abstractmethod
    def decode(
        self, z: Float[Tensor, "B F L c"], current: Float[Tensor, "B 3 H W"] | None = None
    ) -> Float[Tensor, "B F 3 H W"]:
        """Latents to frames, in about [-1, 1]."""

    def forward(self, future: Tensor, current: Tensor, eps: Tensor) -> Tensor:
        """Reconstruction through noisy latents. eps: standard normal noise (B, F, L, c)."""
        return self.decode(self.encode(future, current) + self.noise * eps, current)


class FutureCodec(nn.Module, ABC):
    """Future frames as targets that a family predicts: latents or codes. Trained by `loss`, then frozen.

    pretrained: True for one that no stage trains.
    """

    pretrained: ClassVar[bool] = False

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


AUTOENCODERS: Registry[type[Autoencoder]] = Registry(
    "autoencoder", "wamkit.autoencoders", package="wamkit.nn.autoencoders"
)
"""Autoencoders by name. Packages add theirs under the entry-point group `wamkit.autoencoders`."""
