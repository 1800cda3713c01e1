"""The normaliser: raw values to zero mean and unit scale, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from wamkit.types import WamkitError


class Normalizer(nn.Module):
    """Maps named vectors of known statistics to about unit scale and back; statistics travel with the weights.

    `statistics`: key -> (mean, std), each a float32 vector (d,). A key that is missing is an error that names the
    command which computes it: silently passing raw numbers through is how a policy goes wrong unnoticed.

    Raises WamkitError for statistics that are NaN or infinite as float32, or a negative deviation.
    """

    def __init__(self, statistics: Mapping[str, tuple[Tensor, Tensor]]):
        super().__init__()
        for key, (mean, std) in statistics.items():
            mean, std = mean.float(), std.float()
            if not mean.is_meta and not (mean.isfinite() & std.isfinite() & (std >= 0)).all():
                raise WamkitError(
                    f"the normalisation statistics of '{key}' are mean {mean.tolist()} and deviation {std.tolist()}: "
                    "`wamkit validate` finds the values that cause this; correct them and train again"
                )
            # A constant dimension has std 0: dividing by 1 maps it to 0 instead of to noise.
            std = torch.where(std > 1e-6, std, torch.ones_like(std))
            self.register_buffer(f"mean_{key}", mean)
            self.register_buffer(f"std_{key}", std)

    def _get(self, key: str) -> tuple[Tensor, Tensor]:
        if f"mean_{key}" not in self._buffers:
            known = sorted(k[5:] for k in self._buffers if k.startswith("mean_"))
            raise WamkitError(
                f"no normalisation statistics for '{key}' (known: {', '.join(known) or 'none'}); "
                "`wamkit train` computes them from the numeric columns of --data"
            )
        return getattr(self, f"mean_{key}"), getattr(self, f"std_{key}")

    def encode(self, key: str, x: Tensor) -> Tensor:
        """(..., d) in the key's own units -> the same shape at about zero mean and unit deviation."""
        mean, std = self._get(key)
        return (x - mean) / std

    def decode(self, key: str, x: Tensor) -> Tensor:
        """The inverse of `encode`."""
        mean, std = self._get(key)
        return x * std + mean
