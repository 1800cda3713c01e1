"""The video autoencoders of Wan2.1 and Wan2.2 (`diffusers.AutoencoderKLWan`), which Cosmos-Predict2 uses too."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wamkit.types import WamkitError


def load_weights(kind: Any, folder: Path, what: str) -> Any:
    """A network of diffusers' class `kind` with the weights in a folder, in float32.

    what: they are called in errors. Raises WamkitError for weights that are damaged, of another size, or not all there.
    """
    log = logging.getLogger("diffusers")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it would say the same in lines of its own
    try:
        options = {"torch_dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
        model, told = kind.from_pretrained(folder, **options)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise WamkitError(f"{what} do not load: {first}") from error
    finally:
        log.setLevel(level)
    if missing := sorted(told["missing_keys"]):
        raise WamkitError(f"{what} lack {missing[0]}, one of {len(missing)} tensors of a {kind.__name__}")
    return model


class WanAutoencoder:
    """A frozen autoencoder of videos: the first frame is a latent frame of its own, each next one holds several.

    It is causal in time: the latent of the first frame is the same whatever follows. It is no module, so that it is in
    no checkpoint and never copied. Threads take turns, since the network keeps what it has seen of a clip.
    """

    def __init__(self, folder: Path):
        from diffusers import AutoencoderKLWan

        model = load_weights(AutoencoderKLWan, folder, f"the weights in {folder}")
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
