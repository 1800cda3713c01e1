"""Environments, one file each, found by name: `make_env("metaworld", task="drawer-open-v3")`.

A module in this folder that registers a class (`@register_env`) is found without being named anywhere.
"""

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
