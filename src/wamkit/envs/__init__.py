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
    from wamkit.envs.gym import wrap_gym

# Imported at first use: lists of tasks are read while gymnasium, which the contract needs, is still being imported.
_HOMES = {"GroundTruth": "ground_truth", "read_ground_truth": "ground_truth", "wrap_gym": "gym"}
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
    "wrap_gym",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'base')}"), name)


def __dir__() -> list[str]:
    return __all__
