"""Environments, one file each, found by name: `make_env("metaworld", task="drawer-open-v3")`.

A module in this folder that registers a class (`@register_env`) is found without being named anywhere.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wamkit.envs.base import (
        ENVIRONMENTS,
        HELD_OUT_SEED_BASE,
        TRAIN_SEEDS,
        Environment,
        held_out_seeds,
        make_env,
        observation,
        observation_spaces,
        register_env,
    )
    from wamkit.envs.ground_truth import GroundTruth, read_ground_truth

# Imported at first use: lists of tasks are read while gymnasium, which the contract needs, is still being imported.
_IN_GROUND_TRUTH = ("GroundTruth", "read_ground_truth")
__all__ = [
    "ENVIRONMENTS",
    "HELD_OUT_SEED_BASE",
    "TRAIN_SEEDS",
    "Environment",
    "GroundTruth",
    "held_out_seeds",
    "make_env",
    "observation",
    "observation_spaces",
    "read_ground_truth",
    "register_env",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "ground_truth" if name in _IN_GROUND_TRUTH else "base"
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__
