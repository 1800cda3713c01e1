"""A small world whose images show the actions, and models of it with a known rank: for action recoverability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wamkit.data.loading.windows import Frames
from wamkit.types import Batch, Query, Spec

SQUARE = Spec(("c",), 32, 32, 2, 2, chunk=4, frame_offsets=(2, 4))
"""Spec of `moving_square`."""


def moving_square(episodes: int, seed: int, length: int = 24) -> Frames:
    """Episodes of a square of 8 pixels that actions move, a pixel per unit and step. Actions last four steps."""
    rng = np.random.default_rng(seed)
    images, actions = [], []
    for _ in range(episodes):
        action = np.repeat(rng.choice([-1.0, 0.0, 1.0], (length // 4, 2)), 4, 0)
        position = np.array([12.0, 12.0])
        for a in action:
            image = np.full((1, 3, 32, 32), 40, np.uint8)
            y, x = np.round(position).astype(int)
            image[..., y : y + 8, x : x + 8] = 220
            images.append(image)
            position = np.clip(position + a, 0, 24)
        actions.append(action)
    action = np.concatenate(actions).astype(np.float32)
    return Frames(
        images=np.stack(images), proprio=np.zeros_like(action), action=action, action_expert=action,
        episode=np.repeat(np.arange(episodes), length), text=("go",) * episodes,
        is_demonstration=np.ones(episodes, bool), has_action=np.ones(episodes, bool),
    )  # fmt: skip


class EditedFutures:
    """A model whose imagined future is the true one of `frames` passed through `edit`. Its actions are the executed
    ones.
    """

    spec, queries, embodiment = SQUARE, frozenset({Query.FORWARD, Query.JOINT}), None

    def __init__(self, frames: Frames, edit: Callable[[Batch], Tensor]):
        self.edit, self.windows = edit, frames.windows(SQUARE, seed=0, batch_size=1)

    def sample(
        self, obs: Sequence[Any], query: Query, seed: Sequence[int], steps: int | None = None, actions: Any = None
    ) -> Any:
        starts = np.array([s // 7919 for s in seed])  # `action_recoverability` seeds each window by its start
        batch = self.windows.gather(starts)
        return SimpleNamespace(future=self.edit(batch).numpy(), actions=batch.action.numpy())


def right(batch: Batch) -> Tensor:
    """The true future."""
    return batch.future


def another(batch: Batch) -> Tensor:
    """The true future of another window."""
    return batch.future.roll(5, 0)


def still(batch: Batch) -> Tensor:
    """The current image, repeated."""
    return batch.obs[:, None].expand_as(batch.future)


def backwards(batch: Batch) -> Tensor:
    """The true future in reverse order."""
    return batch.future.flip(1)


def noisy(level: float) -> Callable[[Batch], Tensor]:
    """The true future with noise of `level` grey levels, the same draws for every window."""
    draw = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (1, 2, 1, 3, 32, 32))).float()
    return lambda batch: (batch.future.float() + level * draw).clamp(0, 255).to(torch.uint8)


EDITS: dict[str, Callable[[Batch], Tensor]] = {
    "right": right,
    "noise": noisy(60.0),
    "backwards": backwards,
    "still": still,
    "another's": another,
}
"""Edits of the true future. The first is perfect."""
