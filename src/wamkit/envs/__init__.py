"""Environments by name. Import `wamkit.envs` to have the built-in ones registered."""

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
from wamkit.envs.metaworld import MetaWorld, MetaWorldConfig, shared_reset_range

__all__ = [
    "ENVIRONMENTS",
    "HELD_OUT_SEED_BASE",
    "TRAIN_SEEDS",
    "Environment",
    "MetaWorld",
    "MetaWorldConfig",
    "held_out_seeds",
    "make_env",
    "observation",
    "observation_spaces",
    "register_env",
    "shared_reset_range",
]
