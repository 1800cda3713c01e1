"""Small Gymnasium environments in NumPy: a dot that moves to a mark in a square of side 1. In a module that worker
processes can import."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium import spaces

NEAR = 0.1


class Toy(gymnasium.Env):
    """Observations are nested, with an image of each layout; it ends when the dot is on its mark."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, render_mode=None, colour=255):
        self.render_mode, self.colour = render_mode, colour
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float64)
        self.observation_space = spaces.Dict({})  # nothing reads it

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.dot, self.mark = self.np_random.uniform(0.2, 0.8, (2, 2))
        return self._observe(), {}

    def step(self, action):
        assert action.dtype == np.float64  # as the action space says
        self.dot = np.clip(self.dot + 0.1 * action[:2], 0, 1)
        away = float(np.linalg.norm(self.dot - self.mark))
        told = {"is_success": np.float32(away < NEAR), "task": {"done": away < NEAR}}
        return self._observe(), -away, away < NEAR, False, told

    def render(self):
        return self._image() if self.render_mode else None

    def _image(self):
        image = np.zeros((48, 64, 3), np.uint8)
        for (x, y), channel in ((self.mark, 2), (self.dot, 0)):
            i, j = int(y * 39), int(x * 55)
            image[i : i + 9, j : j + 9, channel] = self.colour
        return image

    def _observe(self):
        wrist = np.full((3, 48, 64), int(255 * self.dot[0]), np.uint8)
        agent = {"pos": self.dot.copy(), "all": np.array([[*self.dot], [*self.mark]])}
        said = "left" if self.mark[0] < 0.5 else "right"
        return {"pixels": {"top": self._image(), "wrist": wrist}, "agent": agent, "side": said}


class Restless(Toy):
    """Its render() moves the dot."""

    def render(self):
        self.dot = np.clip(self.dot + self.np_random.normal(0, 0.01, 2), 0, 1)
        return super().render()


class Careless(Toy):
    """Its reset does not follow the seed."""

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=None)


class Straight:
    """Moves straight to the mark, and counts its steps since the reset."""

    def __init__(self, env):
        self.env, self.steps = env.unwrapped, 0

    def __call__(self, rng):
        self.steps += 1
        return np.array([*np.clip((self.env.mark - self.env.dot) / 0.1, -1, 1), self.steps / 100, 0])


def drawn(env):
    """The image of another camera, uint8 (48, 64, 3)."""
    return env.unwrapped._image()


def on_mark(env):
    """True if the dot is on its mark."""
    return np.linalg.norm(env.unwrapped.dot - env.unwrapped.mark) < NEAR


for _cls in (Toy, Restless, Careless):
    gymnasium.register(f"toys/{_cls.__name__}-v0", _cls, max_episode_steps=40)
gymnasium.register("toys/Endless-v0", Toy)
