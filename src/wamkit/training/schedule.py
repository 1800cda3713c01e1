"""Stages and learning rates as functions of the step."""

from __future__ import annotations

import math

from wamkit.families.base import Stage
from wamkit.runs.config import TrainConfig
from wamkit.types import WamkitError


def stage_spans(stages: tuple[Stage, ...], steps: int) -> list[tuple[Stage, int, int]]:
    """(stage, first step, one past its last step) for each stage, covering 0 .. steps without gaps.

    Raises WamkitError if the shares of the stages do not sum to 1.
    """
    spans, start, total = [], 0, 0.0
    for stage in stages:
        total += stage.share
        end = round(total * steps)
        spans.append((stage, start, end))
        start = end
    if start != steps:
        raise WamkitError(f"the shares of the stages {[(s.name, s.share) for s in stages]} must sum to 1")
    return spans


def learning_rate(step: int, start: int, end: int, config: TrainConfig) -> float:
    """Learning rate of `step` in the stage start .. end: linear warm-up, then a cosine down to final_lr * lr."""
    k, n = step - start, end - start
    warm = min(1.0, (k + 1) / max(1, min(config.warmup, n // 4)))
    cosine = 0.5 * (1 + math.cos(math.pi * k / n))
    return config.lr * warm * (config.final_lr + (1 - config.final_lr) * cosine)
