"""Weights apart from the folder of their run, as a job takes them to a machine that lacks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from wamkit.runs.checkpoint import Layout, Manifest
from wamkit.runs.run import Run

Packed = Mapping[str, tuple[Layout, UInt8[np.ndarray, " bytes"]]]
"""Type, shape and bytes of each tensor, by the model's own names."""


def packed(run: Run) -> Packed:
    """The weights of a run, read from its folder and verified. Raises CheckpointError as `Run.weights`."""
    return {
        name: (Layout(x.dtype, tuple(x.shape)), x.contiguous().reshape(-1).view(torch.uint8).numpy())
        for name, x in run.weights().items()
    }


@dataclass(frozen=True)
class Carried(Manifest):
    """Weights that are fetched where they are needed. It stands in for the manifest of a checkpoint.

    fetch: gives what `packed` gave; asked once for each model that is loaded.
    """

    fetch: Callable[[], Packed] = field(kw_only=True, repr=False, compare=False)

    def layout(self) -> dict[str, Layout]:
        """Types and shapes of the weights, by the model's own names."""
        return {name: layout for name, (layout, _) in self.fetch().items()}

    def weights(self) -> dict[str, Tensor]:
        """Copies of the weights, by the model's own names."""
        return {
            name: torch.from_numpy(content.copy()).view(layout.dtype).reshape(layout.shape)
            for name, (layout, content) in self.fetch().items()
        }

    def __deepcopy__(self, memo: Any) -> Carried:
        return self


def carried(run: Run, fetch: Callable[[], Packed]) -> Run:
    """The same run, whose weights come from `fetch`."""
    return replace(run, manifest=Carried(run.manifest.path, run.manifest.digest, {}, fetch=fetch))
