"""Training runs small enough for a test: random frames, tiny models, a dozen steps."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import torch

from wamkit.data.loading.windows import Frames
from wamkit.families.base import Family
from wamkit.families.bc import BC, BCConfig
from wamkit.families.unified import Unified, UnifiedConfig
from wamkit.nn.normalizer import Normalizer
from wamkit.runs.checkpoint import load_checkpoint
from wamkit.runs.config import TrainConfig
from wamkit.training.precompute import FeatureCache
from wamkit.training.run_folder import RunFolder
from wamkit.training.trainer import Trainer
from wamkit.types import Spec

SPEC = Spec(cameras=("top",), height=16, width=16, proprio_dim=2, action_dim=2, chunk=4, frame_offsets=(2, 4))
SMALL = TrainConfig(steps=12, batch_size=8, threads=2, save_every=4, log_every=1, warmup=2, precision="fp32")


def frames(episodes: int = 4, length: int = 9, seed: int = 0) -> Frames:
    rng = np.random.default_rng(seed)
    n = episodes * length
    return Frames(
        images=rng.integers(0, 256, (n, 1, 3, 16, 16), np.uint8),
        proprio=rng.standard_normal((n, 2), np.float32),
        action=rng.standard_normal((n, 2), np.float32),
        action_expert=rng.standard_normal((n, 2), np.float32),
        episode=np.repeat(np.arange(episodes), length),
        text=tuple("open it" if e % 2 else "close it" for e in range(episodes)),
        is_demonstration=np.arange(episodes) != 1,
        has_action=np.ones(episodes, bool),
    )


def small_model(family: str = "unified", seed: int = 0) -> Family:
    torch.manual_seed(seed)
    normalizer = Normalizer({k: (torch.zeros(2), torch.ones(2)) for k in ("proprio", "action")})
    cls, options = {"unified": (Unified, UnifiedConfig), "bc": (BC, BCConfig)}[family]
    return cls(options(width=32, depth=1, heads=2), SPEC, normalizer)


def trainer(
    out: Path,
    config: TrainConfig = SMALL,
    family: str = "unified",
    data: Frames | None = None,
    cache: FeatureCache | None = None,
) -> Trainer:
    folder = RunFolder(out, {"train": dataclasses.asdict(config)})
    return Trainer(small_model(family, config.seed), frames() if data is None else data, config, folder, cache)


def train_thirty_steps(out: Path, errors: Path) -> None:
    """The work of a process of its own: thirty steps, saved every five, with stderr in the file `errors`."""
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    torch.set_num_threads(1)
    trainer(out, dataclasses.replace(SMALL, steps=30, save_every=5)).run()


def state(out: Path) -> dict[str, torch.Tensor]:
    """Averaged and raw weights of a run's newest checkpoint."""
    saved = load_checkpoint(out, training=True)
    return {**{f"w.{k}": v for k, v in saved.weights.items()}, **{f"m.{k}": v for k, v in saved.model_state.items()}}


def same(a: dict, b: dict) -> bool:
    """Whether two dictionaries of tensors are equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
