"""Data sets in which a dimension never moves, hardly ever moves, or moves once too far."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from lerobot_folders import Recordings, write_v3


def _small_actions(episode: int, steps: int) -> np.ndarray:
    return np.random.default_rng(episode).normal(0, 0.005, (steps, 4))


def _data(root: Path, change: Callable[[int, np.ndarray], None]) -> Path:
    def columns(episode: int, steps: int) -> dict[str, np.ndarray]:
        action = _small_actions(episode, steps)
        change(episode, action)
        moved = np.cumsum(action[:, :3], 0) - action[:, :3]  # before each action
        state = np.c_[moved, np.full(steps, 0.5)]
        return {"action": action.astype(np.float32), "observation.state": state.astype(np.float32)}

    return write_v3(root, Recordings(lengths=(40,) * 4, columns=columns))


def locked_axis(root: Path, value: float = 0.0, rounding: float = 0.0, axis: int = 3) -> Path:
    """Action `axis` is always `value`, but for the rounding of whatever computed it; state 3 is always 0.5."""

    def change(episode: int, action: np.ndarray) -> None:
        action[:, axis] = value + rounding * np.random.default_rng((1, episode)).uniform(-1, 1, len(action))

    return _data(root, change)


def rare_gripper(root: Path) -> Path:
    """Action 3 closes in one step of 160: its 1 % and 99 % quantiles are the same."""

    def change(episode: int, action: np.ndarray) -> None:
        action[:, 3] = -1
        action[20, 3] = 1 if episode == 2 else -1

    return _data(root, change)


def outlier(root: Path, value: float) -> Path:
    """Action 1 is `value` in one step of 160, else about 0.005."""

    def change(episode: int, action: np.ndarray) -> None:
        if episode == 1:
            action[3, 1] = value

    return _data(root, change)
