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
from wamkit.envs.ground_truth import GroundTruth, read_ground_truth
from wamkit.envs.libero import Libero, LiberoConfig
from wamkit.envs.metaworld import MetaWorld, MetaWorldConfig, shared_reset_range
from wamkit.envs.physics import Physics, PhysicsConfig
from wamkit.envs.pusht import PushT, PushTConfig
from wamkit.envs.reacher import Reacher, ReacherConfig

__all__ = [
    "ENVIRONMENTS",
    "HELD_OUT_SEED_BASE",
    "TRAIN_SEEDS",
    "Environment",
    "Libero",
    "LiberoConfig",
    "MetaWorld",
    "MetaWorldConfig",
    "Physics",
    "PhysicsConfig",
    "PushT",
    "PushTConfig",
    "Reacher",
    "ReacherConfig",
    "GroundTruth",
    "held_out_seeds",
    "make_env",
    "observation",
    "observation_spaces",
    "read_ground_truth",
    "register_env",
    "shared_reset_range",
]
