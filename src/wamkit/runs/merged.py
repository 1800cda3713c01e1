"""A run with adapters as one without: what they add is added to the weights that they stand beside."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from wamkit.config import to_dict
from wamkit.nn.backbones.lora import merge_adapters
from wamkit.nn.backbones.video_model import other_weights
from wamkit.nn.options import BackboneConfig, LoraConfig
from wamkit.runs.checkpoint import save_checkpoint
from wamkit.runs.run import Run, build
from wamkit.types import WamkitError


def merged(run: Run, folder: Path) -> Run:
    """The run with its adapters merged, written as a checkpoint in `folder`. It answers as before, to rounding.

    Raises WamkitError for a run without adapters, and where the model below them is not there.
    """
    backbone = getattr(run.config.model, "backbone", None)
    if not isinstance(backbone, BackboneConfig) or not backbone.lora.rank:
        raise WamkitError(f"{run.path} has no adapters to merge: export it without --merge")
    family = run.family()
    for part in family.backbones:
        merge_adapters(part)
    state = torch.nn.Module.state_dict(family)  # with what was frozen
    model = dataclasses.replace(run.config.model, backbone=dataclasses.replace(backbone, lora=LoraConfig()))
    config = dataclasses.replace(run.config, model=model)
    with other_weights():
        plain = build(config, run.spec, run.statistics)
    plain.load_state_dict(state)
    save_checkpoint(
        folder / "checkpoints",
        step=run.step,
        model_state=plain.state_dict(),
        ema_state=None,
        optimizer_state={},
        rng_state={},
        config={**run.described, "model": to_dict(model)},
        extra=dict(run.extra),
    )
    return Run.open(folder)
