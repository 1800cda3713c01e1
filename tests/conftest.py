"""Shared fixtures: a tiny spec, batches of random numbers, and shape checking of the contract's public functions."""

from __future__ import annotations

import os

os.environ.setdefault("MUJOCO_GL", "osmesa")

import pytest
import torch

from wamkit.nn.tokens import Normalizer
from wamkit.registry import load_package
from wamkit.types import Batch, Spec

POINTS = 16
"""Scene points a side of their grid, in batches for families that look at them."""

load_package("wamkit.families")
torch.set_num_threads(1)


@pytest.fixture
def spec() -> Spec:
    return Spec(
        cameras=("left", "right"),
        height=32,
        width=32,
        proprio_dim=5,
        action_dim=4,
        chunk=8,
        frame_offsets=(4, 8),
        fps=20.0,
    )


@pytest.fixture
def normalizer(spec: Spec) -> Normalizer:
    g = torch.Generator().manual_seed(5)
    vector = lambda n: (torch.randn(n, generator=g), torch.rand(n, generator=g) + 0.5)  # noqa: E731
    flow = (torch.zeros(3), torch.full((3,), 0.05))
    return Normalizer({"proprio": vector(spec.proprio_dim), "action": vector(spec.action_dim), "point_flow": flow})


def random_batch(spec: Spec, rows: int, seed: int = 0) -> Batch:
    """A batch of random numbers that satisfies `spec`, with everything valid."""
    g = torch.Generator().manual_seed(seed)
    picture = (spec.views, 3, spec.height, spec.width)
    F = len(spec.frame_offsets)
    action = torch.randn(rows, spec.chunk, spec.action_dim, generator=g)
    proprio = torch.randn(rows, spec.proprio_dim, generator=g)
    more = torch.Generator().manual_seed(seed + 1)  # scene points around the hand, every other one on the robot
    xyz = proprio[:, None, :3] + 0.1 * torch.randn(rows, POINTS**2, 3, generator=more)
    robot = torch.arange(POINTS**2).view(1, -1, 1).expand(rows, -1, -1) % 2
    return Batch(
        obs=torch.randint(0, 256, (rows, *picture), generator=g, dtype=torch.uint8),
        future=torch.randint(0, 256, (rows, F, *picture), generator=g, dtype=torch.uint8),
        frame_valid=torch.ones(rows, F, dtype=torch.bool),
        proprio=proprio,
        action=action,
        action_expert=action + 0.1 * torch.randn(action.shape, generator=g),
        action_valid=torch.ones(rows, spec.chunk, dtype=torch.bool),
        past=torch.randint(0, 256, (rows, len(spec.past_offsets), *picture), generator=g, dtype=torch.uint8),
        past_proprio=torch.randn(rows, len(spec.past_offsets), spec.proprio_dim, generator=g),
        past_valid=torch.ones(rows, len(spec.past_offsets), dtype=torch.bool),
        text=[("open the drawer", "close the window", "press it")[i % 3] for i in range(rows)],
        has_action=torch.ones(rows, dtype=torch.bool),
        imitate=torch.ones(rows, dtype=torch.bool),
        points=torch.cat([xyz, robot], -1),
        point_flow=0.05 * torch.randn(rows, F, POINTS**2, 3, generator=more),
    )


@pytest.fixture
def batch(spec: Spec) -> Batch:
    return random_batch(spec, 6)
