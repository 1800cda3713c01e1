"""Measured scales of values: what counts as 0 and as 1 once they are normalised, and which values never move.

Loads no torch, so that options can be read before it is loaded.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

Normalisation = Literal["mean_std", "quantiles", "min_max"]
"""mean_std: mean 0, deviation 1.   quantiles: the 1 % and 99 % quantiles become -1 and 1, and values beyond `LIMIT`
count as if they lay there, so that a few outliers move nothing (the practice of openpi and OpenVLA, with a wider
limit).   min_max: the smallest and largest value become -1 and 1."""

RESOLUTION = 1e-6
"""Scale up to which a dimension counts as constant: in its own unit, or as a share of its mean where that is above 1.

A micrometre, a microradian or a millionth of a command is less than robots resolve, and a millionth of the magnitude is
about eight times the last digit of float32: what is left is the rounding of whatever computed the values.
"""

LIMIT = 5.0
"""Largest absolute value after normalisation by quantiles: twice as far outside them as they are apart. Of a normal
distribution that is 11 deviations, so that a rare but real movement stays what it was, and a faulty command does not
outweigh the rest in a squared error."""


def measured(
    x: Float[np.ndarray, "N d"], how: Normalisation
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """Shift and scale of every dimension, float64: (x - shift) / scale is normalised. Without rows, 0 and 1.

    Where the quantiles coincide although the dimension moves, as a gripper does that rarely opens, the extremes are
    used in their place.
    """
    if not len(x):
        return np.zeros(x.shape[1]), np.ones(x.shape[1])
    if how == "mean_std":
        return x.mean(0, np.float64), x.std(0, dtype=np.float64)
    low, high = x.min(0).astype(np.float64), x.max(0).astype(np.float64)
    if how == "quantiles":
        inner = np.quantile(x.astype(np.float64), (0.01, 0.99), axis=0)
        low, high = np.where(is_constant(inner.mean(0), np.ptp(inner, 0) / 2), (low, high), inner)
    return (low + high) / 2, (high - low) / 2


def is_constant(shift: Float[np.ndarray, " d"], scale: Float[np.ndarray, " d"]) -> Bool[np.ndarray, " d"]:
    """True for dimensions that never move by more than rounding; see `RESOLUTION`."""
    return scale <= RESOLUTION * np.maximum(1, np.abs(shift))
