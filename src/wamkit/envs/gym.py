"""Any Gymnasium environment, described by options: where its images, its state and its success are.

    wamkit collect --env gym --options id=gymnasium_robotics:FetchReach-v4 state='observation[0:3]' ...

In Python `wamkit.envs.wrap_gym` wraps an environment that exists. Nothing of the dynamics changes: seeds, actions and
rewards are the environment's own. Snapshots are not offered, since Gymnasium has no call for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Annotated, Any, Literal

import gymnasium
import numpy as np

from wamkit.config import AtMost, Between, Checked, ConfigError, Positive, Rate, Side, from_dict
from wamkit.envs.base import Environment, Expert, observation_spaces, register_env
from wamkit.envs.gym_views import Views, described, kind, part, parts, sources
from wamkit.envs.rendering import check_rendered, render_in_software
from wamkit.errors import nearest
from wamkit.registry import import_named, named_object
from wamkit.types import WamkitError

Controller = Callable[[Any], Expert]
"""Scripted expert of a Gymnasium environment: called with it after every reset, returns the expert of the episode."""

_SLICE = re.compile(r"(?P<key>[^\[\]]+)(?:\[(?P<start>-?\d*):(?P<stop>-?\d*)\])?")
_SUCCESS_KEYS = ("is_success", "success")
_TEXT_KEY = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class GymConfig(Checked):
    """Options of `Gym`. A KEY names a part of the observation, `pixels.top` the entry `top` of its entry `pixels`; an
    observation that is no dictionary has the key `observation`."""

    id: str = ""
    """Gymnasium id; MODULE:ID also imports the module that registers it."""
    name: str = ""
    """Name of the task; the id without module, namespace and colon if not given."""
    task: str = ""
    """That name; set by wamkit."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of `gymnasium.make`, in JSON."""
    image: str | Mapping[str, Any] = "render"
    """Cameras, separated by commas: `render` (the environment's render()), a KEY of images uint8 (H, W, 3) or
    (3, H, W), or `camera:NAME` for a camera of the MuJoCo model behind it. Or names of cameras with their sources in
    JSON, where {"lookat": [x, y, z], "distance": d, "azimuth": a, "elevation": e} is a free camera of that model; or
    MODULE:OBJECT, where they stand in Python: a source may be a function there, which is given the environment and
    returns such an image."""
    state: str = ""
    """KEYs of the proprioception, separated by commas, KEY[a:b] for a part of one; all if the observation is a vector.
    Leave out what a robot would not know, such as the places of objects."""
    success: str = ""
    """info.KEY, `terminated`, `reward>=NUMBER`, or MODULE:FUNCTION, which is given the environment and returns a bool;
    info.is_success or info.success if not given."""
    text: str = ""
    """Instruction; {KEY} and {info.KEY} stand for what the observation or the info of a reset says. The task's name if
    not given."""
    fps: Rate | None = None
    """Steps a second; the environment's `render_fps` if not given."""
    height: Side = 64
    """Pixels. Images of another size are resized by area averaging."""
    width: Side = 64
    """Pixels."""
    supersample: Annotated[int, Between(1, inf), AtMost(16)] = 3
    """Factor by which MuJoCo's cameras are rendered larger and averaged down."""
    max_steps: Annotated[int, Between(1, inf), AtMost(10**6)] | None = None
    """Number of steps after which an episode is truncated; the id's own if not given."""
    expert: str = ""
    """MODULE:FUNCTION of a scripted expert, see `Controller`; for modules in the present folder too."""
    noise_range: Positive = 1.0
    """Action noise of 1 in half ranges of the action space: below 1 where actions are positions, of which one step
    covers little."""
    render: Literal["needed", "always"] = "needed"
    """`always` for an environment whose dynamics change when it is rendered."""
    seeded: bool = True
    """False for an environment whose reset does not follow its seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rendered(self.height, self.width, self.supersample)


@register_env("gym")
class Gym(Environment):
    """Any Gymnasium environment with images, by configuration: --options id=..."""

    Config = GymConfig

    def __init__(
        self,
        config: GymConfig,
        env: gymnasium.Env | None = None,
        expert: Controller | None = None,
        success: Callable[[Any], Any] | None = None,
    ):
        self.config, self.gym = config, _make(config) if env is None else env
        where = config.id or type(self.gym.unwrapped).__name__
        self.robot_type = _task_name(where)
        self.task = config.task or config.name or self.robot_type
        self._where, self._success = f"gym, {where}", success
        self._controller = expert or (named_object(config.expert, "option expert") if config.expert else None)
        self.action_space, self.fps, self._max_steps = self._actions(), self._rate(), self._limit()
        self.noise_range, self.seeded = config.noise_range, config.seeded
        self._steps, self._episode, self._was_reset = 0, 0, False
        raw, told = self.gym.reset(seed=0)
        views = Views(self.gym, self._where, config.image, config.height, config.width, config.supersample)
        self._views, self.cameras = views, views.names
        self._state = self._chosen_state(parts(raw))
        self._told_by = "" if success else self._chosen_success()
        self.text = self._instruction(raw, told)
        views.images(parts(raw))  # raises for a source without images
        self.proprio_names = tuple(self._proprio(parts(raw)))
        self.action_names = tuple(f"action_{i}" for i in range(self.action_space.shape[0]))
        bound = np.full(len(self.proprio_names), np.inf, np.float32)
        self.observation_space = observation_spaces(len(self.cameras), config.height, config.width, -bound, bound)

    @classmethod
    def tasks(cls) -> tuple[str, ...]:
        """None: the option `id` names the task."""
        return ()

    @classmethod
    def tasks_under(cls, options: Mapping[str, Any]) -> tuple[str, ...]:
        if not isinstance(options.get("id"), str) or not options["id"]:
            raise ConfigError("environment 'gym': no Gymnasium environment is named: --options id=MODULE:ID")
        return (str(options.get("name") or _task_name(options["id"])),)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None, render: bool = True):
        """Starts the episode of `seed`, by the environment's own reset."""
        if seed is None and not self._was_reset:
            raise WamkitError("the first reset needs a seed: reset(seed=...)")
        super().reset(seed=seed, options=options)
        raw, told = self.gym.reset(seed=seed)
        self._steps, self._episode, self._was_reset = 0, self._episode + 1, True
        self.text = self._instruction(raw, told)
        return self._observe(raw, render), {"success": self._succeeds(told, 0.0, False)}

    def step(self, action: np.ndarray, render: bool = True):
        """One step. action: float (a,), clipped to the action space."""
        action = self._checked_action(action)
        if not self._was_reset:
            raise WamkitError("step before the first reset: call reset(seed=...)")
        raw, reward, terminated, truncated, told = self.gym.step(self._own(action))
        self._steps += 1
        success = self._succeeds(told, float(reward), bool(terminated))
        truncated = bool(truncated) or self._steps >= self._max_steps
        return self._observe(raw, render), float(reward), bool(terminated), truncated, {"success": success}

    def expert(self) -> Expert | None:
        """The controller that the options or `wrap_gym` name, made anew for every episode."""
        make, act, of = self._controller, None, -1
        if make is None:
            return None

        def expert(rng: np.random.Generator) -> np.ndarray:
            nonlocal act, of
            if act is None or of != self._episode:
                act, of = make(self.gym), self._episode
            action = np.asarray(act(rng), np.float32)
            return np.clip(action, self.action_space.low, self.action_space.high)

        return expert

    def close(self) -> None:
        self._views.close()
        self.gym.close()

    def _actions(self) -> gymnasium.spaces.Box:
        space = self.gym.action_space
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise ConfigError(f"{self._where}: actions must be a Box of one axis, found {space}")
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise ConfigError(
                f"{self._where}: actions have no bounds ({space}): register an id whose environment has them, as "
                "gymnasium.wrappers.RescaleAction gives"
            )
        return gymnasium.spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)

    def _own(self, action: np.ndarray) -> np.ndarray:
        """An action in the environment's own type, within its own bounds: a float32 one can be just beyond them."""
        space = self.gym.action_space
        whole = np.issubdtype(space.dtype, np.integer)
        wide = np.asarray(action, np.float64)
        return np.clip(np.rint(wide) if whole else wide, space.low, space.high).astype(space.dtype)

    def _rate(self) -> float:
        rate = self.config.fps or self.gym.metadata.get("render_fps")
        if not rate:
            raise ConfigError(f"{self._where}: it tells no rate (metadata render_fps): --options fps=STEPS_A_SECOND")
        return float(rate)

    def _limit(self) -> int:
        limit = self.config.max_steps or (self.gym.spec.max_episode_steps if self.gym.spec else None)
        if not limit:
            raise ConfigError(f"{self._where}: its episodes have no end: --options max_steps=NUMBER")
        return int(limit)

    def _chosen_state(self, held: Mapping[str, Any]) -> tuple[str, ...]:
        keys = tuple(k.strip() for k in self.config.state.split(",") if k.strip())
        if not keys and set(held) == {"observation"} and np.ndim(held["observation"]) == 1:
            keys = ("observation",)
        if not keys:
            raise ConfigError(
                f"{self._where}: name its state: --options state=KEY; the observation holds {described(held)}"
            )
        return keys

    def _part(self, held: Mapping[str, Any], entry: str) -> dict[str, float]:
        """Name -> value of all that an entry of the option `state` names."""
        match = _SLICE.fullmatch(entry)
        if match is None:
            raise ConfigError(f"{self._where}: state {entry!r} is neither KEY nor KEY[a:b]")
        value = np.asarray(part(held, match["key"], f"{self._where}: state"))
        if not np.issubdtype(value.dtype, np.number) and value.dtype != bool:
            raise ConfigError(f"{self._where}: state {entry!r} holds no numbers, found {kind(value)}")
        start, stop = (int(x) if x else None for x in (match["start"], match["stop"]))
        chosen = list(enumerate(value.reshape(-1).tolist()))[start:stop]
        if not chosen:
            raise ConfigError(f"{self._where}: state {entry!r} is empty; {match['key']} has {value.size} values")
        return {f"{match['key']}_{i}": x for i, x in chosen}

    def _proprio(self, held: Mapping[str, Any]) -> dict[str, float]:
        """Name -> value of the proprioception."""
        return {name: x for entry in self._state for name, x in self._part(held, entry).items()}

    def _chosen_success(self) -> str:
        """The rule of success. Raises ConfigError for one that info does not answer in an episode."""
        rule = self.config.success
        if ":" in rule:
            self._success = named_object(rule, "option success")
            return ""
        if rule == "terminated" or re.fullmatch(r"reward>=-?[\d.]+(e-?\d+)?", rule):
            return rule
        rules = "info.KEY, terminated, reward>=NUMBER, MODULE:FUNCTION"
        if rule and not rule.startswith("info."):
            raise ConfigError(f"{self._where}: success {rule!r} is none of {rules}")
        told = self._played(rule.removeprefix("info."))
        if not rule:
            rule = next((f"info.{k}" for k in _SUCCESS_KEYS if k in told), "")
            if not rule:
                raise ConfigError(
                    f"{self._where}: nothing says when its task is done; info holds {described(parts(told))}: "
                    f"--options success=RULE, one of {rules}"
                )
        part(parts(told), rule.removeprefix("info."), f"{self._where}: success, in info")
        return rule

    def _played(self, key: str) -> dict[str, Any]:
        """What info says in an episode: in its first step, or up to its end where `key` does not come before."""
        action = self._own((self.action_space.low + self.action_space.high) / 2)
        told: dict[str, Any] = {}
        for _ in range(self._max_steps):
            *_, terminated, truncated, info = self.gym.step(action)
            told |= info
            if terminated or truncated or not key or key in parts(told):
                break
        return told

    def _succeeds(self, told: Mapping[str, Any], reward: float, terminated: bool) -> bool:
        """Success after a step, or after a reset, whose info need not say."""
        if self._success is not None:
            return bool(self._success(self.gym))
        if self._told_by == "terminated":
            return terminated
        if self._told_by.startswith("reward"):
            return self._steps > 0 and reward >= float(self._told_by.partition(">=")[2])
        return bool(parts(told).get(self._told_by.removeprefix("info."), False))

    def _instruction(self, raw: Any, told: Mapping[str, Any]) -> str:
        def said(match: re.Match) -> str:
            key, held = match[1], parts(raw) | {f"info.{k}": v for k, v in parts(told).items()}
            return str(part(held, key, f"{self._where}: text"))

        return _TEXT_KEY.sub(said, self.config.text or self.task)

    def _observe(self, raw: Any, render: bool) -> dict[str, Any]:
        held = parts(raw)
        proprio = np.array(list(self._proprio(held).values()), np.float32)
        images = self._views.images(held) if render or self.config.render == "always" else None
        return {"proprio": proprio, "text": self.text} | ({"images": images} if render else {})


def wrap_gym(
    env: gymnasium.Env,
    *,
    expert: Controller | None = None,
    success: Callable[[Any], Any] | str = "",
    **options: Any,
) -> Gym:
    """A Gymnasium environment as one of wamkit's, for `wamkit.rollout`, `wamkit.Policy` and `check_env`.

    env: made with `render_mode="rgb_array"` where a camera is `render`.
    expert: scripted expert, called with `env` after every reset.
    success: called with `env`, returns a bool; or a rule as in the options.
    options: other fields of `GymConfig`.
    Raises ConfigError for a key that the observation does not have, with the nearest, and for an environment without
    images, with actions that are discrete or unbounded, or without an end.
    """
    name = {"id": env.spec.id} if env.spec else {}
    rule = {"success": success} if isinstance(success, str) else {}
    config = from_dict(GymConfig, {**name, **rule, **options})
    return Gym(config, env, expert, None if isinstance(success, str) else success)


def _make(config: GymConfig) -> gymnasium.Env:
    """The environment that the options name. Raises ConfigError with the nearest id."""
    Gym.tasks_under({"id": config.id})
    render_in_software()
    module, _, name = config.id.rpartition(":")
    if module:
        import_named(module, "option id")
    if name not in gymnasium.registry:
        known = [k for k in gymnasium.registry if not k.startswith("wamkit/")]
        raise ConfigError(
            f"Gymnasium knows no environment {name!r}{nearest(name, known)}; MODULE:ID imports the package that "
            "registers it, as in id=gymnasium_robotics:FetchReach-v4"
        )
    limit = {"max_episode_steps": config.max_steps} if config.max_steps else {}
    mode = {"render_mode": "rgb_array"} if "render" in sources(config.image, config.id).values() else {}
    try:
        return gymnasium.make(name, disable_env_checker=True, **{**mode, **limit, **config.kwargs})
    except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
        raise ConfigError(f"gym, {config.id}: it cannot be made ({type(error).__name__}: {error})") from error


def _task_name(name: str) -> str:
    """The id without module and namespace."""
    return re.split("[:/]", name)[-1]
