"""A wamkit environment as `gymnasium.make` gives it: `gymnasium.make("wamkit/Reacher-reach", height=96, width=96)`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import read_from_shared_memory
from jaxtyping import UInt8

from wamkit.envs.base import TRAIN_SEEDS, make_env
from wamkit.types import WamkitError


class GymnasiumEnv(gymnasium.Env):
    """An environment behind Gymnasium's plain interface: every observation holds images, and seeds may be left out.

    The same seed and actions give the same episode as in `wamkit.rollout`. `terminated` and `truncated` are the
    environment's own: those of wamkit go on after success, so `terminated` is false, and `truncated` is true from the
    step `max_steps` on. `info["success"]` is true once the task is done, `info["seed"]` of a reset names the episode.

    env: registered name of the environment.   options: fields of its Config, `task` among them.
    render_mode: "rgb_array" for `render`; None for none.
    environment: the wamkit environment, with its expert and snapshots.
    Raises as `make_env`, and WamkitError for another render mode.
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, env: str, render_mode: str | None = None, **options: Any):
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise WamkitError(f"render_mode {render_mode!r} is unknown; there is 'rgb_array', or None")
        self.environment, self.render_mode = make_env(env, **options), render_mode
        self.metadata = {**self.metadata, "render_fps": self.environment.fps}
        own = self.environment.observation_space
        self.observation_space = spaces.Dict({k: _Text.like(v) if k == "text" else v for k, v in own.items()})
        self.action_space = self.environment.action_space
        self._images: np.ndarray | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts the episode of `seed`; without one, of the next training seed in the stream of the last seed.

        The first reset without a seed draws from the system's entropy. Raises as the environment's own, which in wamkit
        take no options.
        """
        super().reset(seed=seed)
        seed = int(self.np_random.integers(TRAIN_SEEDS)) if seed is None else seed
        raw, info = self.environment.reset(seed=seed, options=options)
        self._images = raw["images"]
        return raw, {**info, "seed": seed}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Executes an action, float32 (a,), clipped to the action space."""
        raw, reward, terminated, truncated, info = self.environment.step(action)
        self._images = raw["images"]
        return raw, reward, terminated, truncated, info

    def render(self) -> UInt8[np.ndarray, "H VW 3"] | None:
        """The images of the last observation, cameras side by side; None without a render mode."""
        if self.render_mode is None:
            return None
        if self._images is None:
            raise WamkitError("render before the first reset: call reset()")
        return np.concatenate(self._images.transpose(0, 2, 3, 1), axis=1)

    def close(self) -> None:
        self.environment.close()


class _Text(spaces.Text):
    """Texts that `gymnasium.vector.AsyncVectorEnv` reads from shared memory each time they are looked at.

    Gymnasium reads those of its own space once, before the first reset, so they stay blank (its issue 1164).
    """

    @classmethod
    def like(cls, space: spaces.Text) -> _Text:
        """The same texts as `space`."""
        return cls(space.max_length, min_length=space.min_length, charset="".join(space.character_list))


class _SharedTexts(Sequence):
    """The present texts of n environments; a copy is a tuple."""

    def __init__(self, space: _Text, memory: Any, n: int):
        self._given = space, memory, n

    def _read(self) -> tuple[str, ...]:
        return read_from_shared_memory.dispatch(spaces.Text)(*self._given)

    def __getitem__(self, index: Any) -> Any:
        return self._read()[index]

    def __len__(self) -> int:
        return self._given[2]

    def __deepcopy__(self, memo: Any) -> tuple[str, ...]:
        return self._read()


@read_from_shared_memory.register(_Text)
def _shared_texts(space: _Text, shared_memory: Any, n: int = 1) -> _SharedTexts:
    return _SharedTexts(space, shared_memory, n)
