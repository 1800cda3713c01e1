"""The video autoencoders of Wan2.1 and Wan2.2 (`diffusers.AutoencoderKLWan`), which Cosmos-Predict2 uses too."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wamkit.nn.diffusers_weights import diffusers, load_weights


class WanAutoencoder:
    """A frozen autoencoder of videos: the first frame is a latent frame of its own, each next one holds several.

    It is causal in time: the latent of the first frame is the same whatever follows. It is no module, so that it is in
    no checkpoint and never copied. Threads take turns, since the network keeps what it has seen of a clip.
    """

    def __init__(self, folder: Path):
        model = load_weights(diffusers().AutoencoderKLWan, folder, f"the weights in {folder}")
        self.model: nn.Module = model.eval().requires_grad_(False)
        config: Any = model.config
        self._mean, self._std = (torch.tensor(v) for v in (config.latents_mean, config.latents_std))
        self._alone = threading.Lock()

    @torch.no_grad()
    def encode(self, clip: Float[Tensor, "B 3 F H W"]) -> Float[Tensor, "B c f h w"]:
        """A clip in [-1, 1] to latents of unit scale: their mode, in float32 whatever the precision of training."""
        model: Any = self.model.to(clip.device)
        with self._alone, torch.autocast(clip.device.type, enabled=False):
            z = model.encode(clip.float()).latent_dist.mode()
        return (z - self._scale(self._mean, z)) / self._scale(self._std, z)

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "B c f h w"]) -> Float[Tensor, "B 3 F H W"]:
        """The inverse of `encode`, in [-1, 1]."""
        model: Any = self.model.to(z.device)
        with self._alone, torch.autocast(z.device.type, enabled=False):
            z = z.float()
            return model.decode(z * self._scale(self._std, z) + self._scale(self._mean, z)).sample

    @staticmethod
    def _scale(values: Tensor, z: Tensor) -> Tensor:
        return values.to(z).view(1, -1, 1, 1, 1)
