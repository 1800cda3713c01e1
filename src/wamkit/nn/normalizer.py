"""The normaliser: raw values to about unit scale, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from wamkit.nn.scaling import RESOLUTION
from wamkit.types import WamkitError


class Normalizer(nn.Module):
    """Maps named vectors of known statistics to about unit scale and back; statistics travel with the weights.

    statistics: key -> (shift, scale), each a float32 vector (d,): mean and deviation, or middle and half width of the
        range (`nn.scaling.measured`). A key that is missing is an error that names the command which computes it:
        silently passing raw numbers through is how a policy goes wrong unnoticed.
    limits: key -> largest absolute value that `encode` gives. Without one, values are not clipped.

    A dimension that never moved (`nn.scaling.RESOLUTION`) is encoded as 0, whatever its value is now, and decoded as
    the value that it always had, whatever the networks say: nobody has seen what moving it does.

    Raises WamkitError for statistics that are NaN or infinite as float32, or a negative deviation.
    """

    def __init__(self, statistics: Mapping[str, tuple[Tensor, Tensor]], limits: Mapping[str, float] | None = None):
        super().__init__()
        self.limits = dict(limits or {})
        for key, (mean, std) in statistics.items():
            mean, std = mean.float(), std.float()
            if not mean.is_meta and not (mean.isfinite() & std.isfinite() & (std >= 0)).all():
                raise WamkitError(
                    f"the normalisation statistics of '{key}' are mean {mean.tolist()} and deviation {std.tolist()}: "
                    "`wamkit validate` finds the values that cause this; correct them and train again"
                )
            constant = std <= RESOLUTION * mean.abs().clamp(min=1)
            self.register_buffer(f"mean_{key}", mean)
            self.register_buffer(f"std_{key}", std.masked_fill(constant, 1))
            # Not among the weights, which earlier versions wrote too: the statistics beside them tell.
            self.register_buffer(f"constant_{key}", constant, persistent=False)

    def _get(self, key: str) -> tuple[Tensor, Tensor, Tensor]:
        if f"mean_{key}" not in self._buffers:
            known = sorted(k[5:] for k in self._buffers if k.startswith("mean_"))
            raise WamkitError(
                f"no normalisation statistics for '{key}' (known: {', '.join(known) or 'none'}); "
                "`wamkit train` computes them from the numeric columns of --data"
            )
        return getattr(self, f"mean_{key}"), getattr(self, f"std_{key}"), getattr(self, f"constant_{key}")

    def encode(self, key: str, x: Tensor) -> Tensor:
        """(..., d) in the key's own units -> the same shape at about unit scale; 0 in constant dimensions."""
        mean, std, constant = self._get(key)
        out = ((x - mean) / std).masked_fill(constant, 0)
        return out.clamp(-self.limits[key], self.limits[key]) if key in self.limits else out

    def decode(self, key: str, x: Tensor) -> Tensor:
        """The inverse of `encode`, as far as that neither clipped nor found a constant dimension moved."""
        mean, std, constant = self._get(key)
        return x * std.masked_fill(constant, 0) + mean

    def held(self, key: str, x: Tensor) -> Tensor:
        """Values (..., d) in the key's own units, made without `decode`, with constant dimensions at their value."""
        mean, _, constant = self._get(key)
        return torch.where(constant, mean, x)

    def deviations(self, key: str, x: Tensor) -> Tensor:
        """Distances (..., d) from the middle of what training saw, in units of the scale, not clipped.

        In constant dimensions they are in the key's own units.
        """
        mean, std, _ = self._get(key)
        return ((x - mean) / std).abs()
