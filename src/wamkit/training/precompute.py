"""Features of frozen encoders, computed for all windows before a stage instead of at every step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wamkit.data.loading.feature_cache import cached_features
from wamkit.data.loading.mixture import MixedWindows
from wamkit.data.loading.windows import Windows
from wamkit.families.base import Family, Stage
from wamkit.nn.video_tokens import VideoContext, VideoLatents
from wamkit.runs.config import TrainConfig
from wamkit.training.precision import autocast, uses_bf16
from wamkit.training.step import Step

FEATURE_BYTES = 2**30
"""Most memory that the features of all windows may take."""
_GROUP = 16  # batches in flight: a pool's own `map` would begin all at once
_SHARD = 64  # batches that are kept on disk at a time


@dataclass(frozen=True)
class FeatureCache:
    """A folder on disk that keeps features from run to run.

    data: a checksum of the data set that the windows are from.   limit: most bytes in `folder`.
    """

    folder: Path
    data: str
    limit: int


@dataclass(frozen=True)
class Precompute:
    """Computes `Family.features` of all `windows`, in memory or in `cache`.

    strategy: gives the weights that a stage does not train, and applies functions to batches.
    """

    model: Family
    windows: Windows | MixedWindows
    config: TrainConfig
    strategy: Step
    cache: FeatureCache | None = None

    def prepare(self, stage: Stage, steps: int) -> None:
        """Sets `windows.features` for a stage of `steps` steps; its batches then carry them.

        There are none, and the family computes its features at every step, where images are augmented, where the stage
        sees fewer windows than there are, or where features would take more than FEATURE_BYTES of memory.
        """
        self.windows.features, count, rows = {}, len(self.windows), self.config.batch_size
        if self.cache is not None and isinstance(self.model.context, VideoContext):
            self.model.context.keep_texts(self.cache.folder.with_name("texts"))
        if self.windows.augment or count > steps * rows:
            return
        model = self.strategy.unchanged(stage)

        def batch(low: int) -> dict[str, np.ndarray]:
            return self._features(model, np.arange(low, min(low + rows, count)), stage)

        (first,) = self.strategy.map(batch, [0])
        size = sum(v.nbytes / len(v) for v in first.values()) * count
        if first and self.cache is not None and size <= self.cache.limit:
            some = lambda low, high: self._in_groups(batch, range(low, high, rows))  # noqa: E731
            key, shard = self._key(stage, self.cache.data, model), _SHARD * rows
            self.windows.features = cached_features(self.cache.folder, key, count, some, self.cache.limit, shard)
        elif first and size <= FEATURE_BYTES:
            batches = [first, *self.strategy.map(batch, range(rows, count, rows))]
            self.windows.features = {k: np.concatenate([b[k] for b in batches]) for k in first}

    @torch.no_grad()
    def _features(self, model: Family, rows: np.ndarray, stage: Stage) -> dict[str, np.ndarray]:
        batch = self.windows.gather(rows).to(self.config.device)
        with autocast(self.config):
            return {k: v.float().cpu().numpy() for k, v in model.features(batch, stage.name).items()}

    def _in_groups(self, batch: Callable[[int], Any], starts: range) -> Iterator[dict[str, np.ndarray]]:
        for i in range(0, len(starts), _GROUP):
            yield from self.strategy.map(batch, starts[i : i + _GROUP])

    def _key(self, stage: Stage, data: str, model: Family | None = None) -> str:
        """A hash of everything that features of `stage` depend on: frozen weights, files of a pretrained model, data,
        windows, precision."""
        model = model or self.strategy.unchanged(stage)
        if isinstance(model.codec, VideoLatents):  # nothing else than its files: stages and families share them
            latents = [data, str(model.spec), self.config.device, model.codec.digest()]
            return hashlib.sha256(json.dumps(latents).encode()).hexdigest()[:32]
        facts = [data, model.name, stage.name, str(model.spec), uses_bf16(self.config), self.config.device]
        total = hashlib.sha256(json.dumps(facts).encode())
        trained = {n for n, _ in model.named_parameters() if n.startswith(stage.prefixes)}
        for name, x in (*model.state_dict().items(), *_kept_apart(model)):
            if name not in trained:
                raw = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
                total.update(name.encode() + raw.tobytes())
        return total.hexdigest()[:32]


def _kept_apart(model: Family) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights and buffers, by name, of pretrained encoders, which modules hold outside of their parameters."""
    for name, module in model.named_modules():
        for attribute, held in vars(module).items():
            if isinstance(held, torch.nn.Module):
                tensors = (*held.named_parameters(), *held.named_buffers())
                yield from ((f"{name}.{attribute}.{n}", x) for n, x in tensors)
