"""A small world in which pictures tell actions, and models of it whose rank is known beforehand: for metrics that read actions off pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wamkit.data.loading.windows import Frames
from wamkit.types import Batch, Query, Spec

TOLD = Spec(("c",), 32, 32, 2, 2, chunk=4, frame_offsets=(2, 4))
"""Of `told`."""


def told(episodes: int, seed: int, length: int = 24) -> Frames:
    """A square of 8 pixels goes where its actions say, a pixel a unit and step, held for four steps."""
    rng = np.random.default_rng(seed)
    images, actions = [], []
    for _ in range(episodes):
        action = np.repeat(rng.choice([-1.0, 0.0, 1.0], (length // 4, 2)), 4, 0)
        place = np.array([12.0, 12.0])
        for a in action:
            picture = np.full((1, 3, 32, 32), 40, np.uint8)
            y, x = np.round(place).astype(int)
            picture[..., y : y + 8, x : x + 8] = 220
            images.append(picture)
            place = np.clip(place + a, 0, 24)
        actions.append(action)
    action = np.concatenate(actions).astype(np.float32)
    return Frames(
        images=np.stack(images), proprio=np.zeros_like(action), action=action, action_expert=action,
        episode=np.repeat(np.arange(episodes), length), text=("go",) * episodes,
        is_demonstration=np.ones(episodes, bool), has_action=np.ones(episodes, bool),
    )  # fmt: skip


class Shows:
    """A model of `frames` that shows of true windows what `shows` makes of them, and gives the actions that were done with it."""

    spec, queries = TOLD, frozenset({Query.FORWARD, Query.JOINT})

    def __init__(self, frames: Frames, shows: Callable[[Batch], Tensor]):
        self.shows, self.windows = shows, frames.windows(TOLD, seed=0, batch_size=1)

    def sample(
        self, obs: Sequence[Any], query: Query, seed: Sequence[int], steps: int | None = None, actions: Any = None
    ) -> Any:
        batch = self.windows.gather(
            np.array([s // 7919 for s in seed])
        )  # `action_recoverability` seeds each window by where it starts
        return SimpleNamespace(future=self.shows(batch).numpy(), actions=batch.action.numpy())


def right(batch: Batch) -> Tensor:
    """What happens."""
    return batch.future


def another(batch: Batch) -> Tensor:
    """What happens in another window."""
    return batch.future.roll(5, 0)


def still(batch: Batch) -> Tensor:
    """Nothing moves."""
    return batch.obs[:, None].expand_as(batch.future)


def backwards(batch: Batch) -> Tensor:
    """What happens, its pictures in the reverse order."""
    return batch.future.flip(1)


def noisy(level: float) -> Callable[[Batch], Tensor]:
    """What happens, through noise of `level` grey levels, the same draws for every window."""
    draw = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (1, 2, 1, 3, 32, 32))).float()
    return lambda batch: (batch.future.float() + level * draw).clamp(0, 255).to(torch.uint8)


SHOWN: dict[str, Callable[[Batch], Tensor]] = {
    "right": right,
    "noise": noisy(60.0),
    "backwards": backwards,
    "still": still,
    "another's": another,
}
"""The first is perfect."""
