"""An environment of wamkit that lives in a package of its own, in pure NumPy: a disc has to reach a square.

`wamkit check-env dot` holds it to the contract. docs/add-an-environment.md describes each part.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from gymnasium import spaces

from wamkit.config import check_bounds
from wamkit.envs import Environment, observation_spaces, register_env
from wamkit.envs.base import Expert, check_task
from wamkit.metadata import CameraFacts, DatasetMetadata, Field
from wamkit.types import Snapshot, WamkitError

STEP = 0.05
"""Distance that an action of 1 moves the disc, as a share of the table's side."""

NEAR = 0.05
"""Distance between disc and square below which the task is done."""


@dataclass(frozen=True)
class DotConfig:
    """Options of `Dot`."""

    task: str = "reach"
    height: int = 32
    """Pixels."""
    width: int = 32
    """Pixels."""
    max_steps: int = 60
    """Number of steps after which an episode is truncated."""

    def __post_init__(self) -> None:
        check_bounds(self, height=(1, inf), width=(1, inf), max_steps=(1, inf))


@register_env("dot")
class Dot(Environment):
    """A disc that moves to a square, both at random positions (NumPy)."""

    Config = DotConfig
    robot_type, fps, cameras = "dot", 10.0, ("top",)
    proprio_names, action_names = ("x", "y"), ("dx", "dy")
    text = "bring the disc to the square"
    dataset_metadata = DatasetMetadata(
        source="wamkit's example",
        embodiment="dot",
        control_mode="position delta",
        rate=10.0,
        licence="Apache-2.0",
        state=(Field("position", 0, 2, "position", frame="world", unit="1"),),
        action=(Field("position", 0, 2, "position", "delta", frame="world", unit="1"),),
        cameras={"top": CameraFacts("scene")},
    )

    def __init__(self, config: DotConfig):
        check_task("dot", config.task, self.tasks())
        self.config, self.task, self._disc = config, config.task, None
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = observation_spaces(1, config.height, config.width, np.zeros(2), np.ones(2))

    @classmethod
    def tasks(cls) -> tuple[str, ...]:
        return ("reach",)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None, render: bool = True):
        """Starts the episode of `seed`."""
        if seed is None and self._disc is None:
            raise WamkitError("the first reset needs a seed: reset(seed=...)")
        super().reset(seed=seed)
        self._disc, self._square = self.np_random.uniform(0.15, 0.85, (2, 2))
        self._steps = 0
        return self._observe(render), {"success": self._reached()}

    def step(self, action: np.ndarray, render: bool = True):
        """One step of 1/10 s. action: float (2,), displacement in units of `STEP`, clipped to [-1, 1]."""
        self._disc = np.clip(self._disc + STEP * self._checked_action(action).astype(float), 0, 1)
        self._steps += 1
        away = float(np.linalg.norm(self._disc - self._square))
        truncated = self._steps >= self.config.max_steps
        return self._observe(render), -away, False, truncated, {"success": self._reached()}

    def expert(self) -> Expert:
        """Moves straight to the square. The generator is for experts that draw random numbers."""
        return lambda rng: np.clip((self._square - self._disc) / STEP, -1, 1).astype(np.float32)

    def snapshot(self) -> Snapshot:
        """The physics as a vector, changed arrays of the model (none here), and all else as JSON-able attributes."""
        return Snapshot(np.concatenate([self._disc, self._square]), {}, {"task": self.task, "steps": self._steps})

    def restore(self, snapshot: Snapshot, render: bool = True) -> dict[str, Any]:
        self._check_task(snapshot)
        self._disc, self._square = snapshot.physics.reshape(2, 2).copy()
        self._steps = snapshot.attributes["steps"]
        return self._observe(render)

    def _reached(self) -> bool:
        return bool(np.linalg.norm(self._disc - self._square) < NEAR)

    def _observe(self, render: bool) -> dict[str, Any]:
        raw: dict[str, Any] = {"proprio": self._disc.astype(np.float32), "text": self.text}
        return raw | ({"images": self._image()[None]} if render else {})

    def _image(self) -> np.ndarray:
        """uint8 (3, H, W): a red disc above a blue square on grey, with edges as soft as a pixel is wide."""
        h, w = self.config.height, self.config.width
        y, x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
        square = np.maximum(abs(x - self._square[0]), abs(y - self._square[1]))
        disc = np.hypot(x - self._disc[0], y - self._disc[1])
        image = np.full((3, h, w), 200.0)
        for distance, radius, colour in ((square, 0.09, (40, 70, 200)), (disc, 0.07, (210, 40, 40))):
            cover = np.clip((radius - distance) * w + 0.5, 0, 1)
            image += cover * (np.array(colour)[:, None, None] - image)
        return image.round().astype(np.uint8)
