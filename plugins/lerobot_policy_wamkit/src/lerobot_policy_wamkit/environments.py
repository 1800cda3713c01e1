"""wamkit's environments for LeRobot: `lerobot-eval --env.type=wamkit --env.run=runs/first`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from wamkit.envs.base import Environment
from wamkit.envs.spec import EnvSpec
from wamkit.runs.config import require_run
from wamkit.runs.run import Run
from wamkit.types import WamkitError

_PIXELS, _AGENT_POS = "pixels", "agent_pos"


@EnvConfig.register_subclass("wamkit")
@dataclass
class WamkitEnvConfig(EnvConfig):
    """An environment of wamkit, with its own images, instruction, limits and seeds.

    run: of a run folder or an exported file, take the environment of its data, with the options of its collection.
    name: of the environment, if not that of `run`.
    task: one or more, separated by commas; those of `run` if not given.
    options: fields of the environment's configuration, which replace those of `run`.
    """

    run: str = ""
    name: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Empty: `create_envs` makes the environments itself."""
        return {}

    def spec(self) -> EnvSpec:
        """The environment, its tasks and options. Raises WamkitError for what is unknown, and where none is named."""
        spec = EnvSpec(self.name)
        if self.run:
            require_run(Path(self.run))
            spec = Run.open(self.run).provenance.env
        if not spec.env or self.name not in ("", spec.env):
            raise WamkitError("name an environment, --env.name=metaworld, or a run whose data come from one, --env.run")
        tasks = tuple(t.strip() for t in (self.task or "").split(",") if t.strip()) or spec.tasks
        spec = EnvSpec(spec.env, tasks, {**spec.options, **self.options})
        spec.check()
        if not tasks:
            raise WamkitError(f"name a task of {spec.env}, --env.task=NAME")
        return spec

    def create_envs(
        self, n_envs: int, use_async_envs: bool = False
    ) -> dict[str, dict[int, gymnasium.vector.VectorEnv]]:
        """{task: {0: n_envs environments}}. It completes `features` and `fps`, which LeRobot reads afterwards."""
        spec = self.spec()
        first = LeRobotEnv(spec, spec.tasks[0])
        self._describe(first)
        first.close()
        vector: Any = gymnasium.vector.SyncVectorEnv
        if use_async_envs and n_envs > 1:
            vector = lambda make: gymnasium.vector.AsyncVectorEnv(make, context="forkserver")  # noqa: E731
        make = lambda task: lambda: LeRobotEnv(spec, task)  # noqa: E731
        return {task: {0: vector([make(task)] * n_envs)} for task in spec.tasks}

    def _describe(self, env: LeRobotEnv) -> None:
        inner = env.inner
        self.fps = round(inner.fps)
        self.features = {ACTION: PolicyFeature(FeatureType.ACTION, inner.action_space.shape)}
        self.features_map = {ACTION: ACTION}
        for camera, space in env.observation_space[_PIXELS].items():
            key = f"{OBS_IMAGES}.{camera}"
            self.features[key], self.features_map[key] = PolicyFeature(FeatureType.VISUAL, space.shape), key
        if _AGENT_POS in env.observation_space.keys():
            shape = env.observation_space[_AGENT_POS].shape
            self.features[_AGENT_POS] = PolicyFeature(FeatureType.STATE, shape)
            self.features_map[_AGENT_POS] = OBS_STATE


class LeRobotEnv(gymnasium.Env):
    """An environment of wamkit in the words of LeRobot: `pixels` by camera, height first, and `agent_pos`.

    An episode terminates with its first success, as in `wamkit eval`. Actions, rewards and seeds pass as they are.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    render_mode = "rgb_array"

    def __init__(self, spec: EnvSpec, task: str) -> None:
        self.inner: Environment = spec.make(task)
        self.metadata = {**self.metadata, "render_fps": round(self.inner.fps)}
        self.task, self.task_description = task, self.inner.text
        self._max_episode_steps = _limit(self.inner)
        self.action_space = self.inner.action_space
        spaces = self.inner.observation_space
        _, _, height, width = spaces["images"].shape
        image = gymnasium.spaces.Box(0, 255, (height, width, 3), np.uint8)
        own: dict[str, gymnasium.Space] = {
            _PIXELS: gymnasium.spaces.Dict({camera: image for camera in self.inner.cameras})
        }
        if spaces["proprio"].shape != (0,):
            own[_AGENT_POS] = spaces["proprio"]
        self.observation_space = gymnasium.spaces.Dict(own)
        self._image = np.zeros((height, width, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict]:
        """Starts the episode of `seed`."""
        raw, info = self.inner.reset(seed=seed)
        self.task_description = raw["text"]
        return self._observed(raw), {"is_success": bool(info["success"])}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Executes an action."""
        raw, reward, terminated, truncated, info = self.inner.step(action)
        success = bool(info["success"])
        return self._observed(raw), float(reward), bool(terminated) or success, bool(truncated), {"is_success": success}

    def render(self) -> np.ndarray:
        """The last image of the first camera, uint8 (H, W, 3)."""
        return self._image

    def close(self) -> None:
        """Closes the simulator."""
        self.inner.close()

    def _observed(self, raw: dict[str, Any]) -> dict[str, Any]:
        images = np.ascontiguousarray(raw["images"].transpose(0, 2, 3, 1))
        self._image = images[0]
        seen: dict[str, Any] = {_PIXELS: dict(zip(self.inner.cameras, images, strict=True))}
        if _AGENT_POS in self.observation_space.keys():
            seen[_AGENT_POS] = raw["proprio"]
        return seen


def _limit(env: Environment) -> int:
    """Steps after which the environment truncates an episode."""
    for steps in (getattr(env, "_max_steps", None), getattr(env.config, "max_steps", None)):
        if steps:
            return int(steps)
    return 1_000_000
