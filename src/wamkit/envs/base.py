"""What every environment fulfils, how environments are found by name, and which seeds are for what.

An environment is a `gymnasium.Env` with a fixed observation dictionary (images, proprioception, instruction), actions in
its own units, a scripted expert where there is one, and snapshots that put the simulator back byte for byte. Anything
that passes `wamkit.envs.check.check_env` works with collection, evaluation and snapshots.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

from wamkit.config import ConfigError, from_dict
from wamkit.envs.ground_truth import GroundTruth
from wamkit.metadata import DatasetMetadata
from wamkit.registry import Registry
from wamkit.types import Observation, ObservationError, Snapshot, WamkitError

TRAIN_SEEDS = 1_000_000
"""Training episodes are reset with seeds in [0, TRAIN_SEEDS), retries included."""

HELD_OUT_SEED_BASE = 1_000_000
"""Evaluation starts from states reset with HELD_OUT_SEED_BASE + k: never seen in training."""

_TEXT_CHARS = "".join(chr(code) for code in range(32, 127))

Expert = Callable[[np.random.Generator], np.ndarray]
"""Scripted expert: takes a random generator, gives the clean action float32 (a,) for the environment's present state."""


VALIDATION_SEED_BASE = 2_000_000
"""Recordings that models are scored on are reset with VALIDATION_SEED_BASE + k: neither trained on nor played from."""


def held_out_seeds(n: int) -> tuple[int, ...]:
    """The first `n` evaluation seeds, disjoint from every training seed."""
    return tuple(range(HELD_OUT_SEED_BASE, HELD_OUT_SEED_BASE + n))


class Environment(gymnasium.Env, abc.ABC):
    """Contract of a wamkit environment, on top of Gymnasium's.

    observation: dictionary of `images` uint8 (V, 3, H, W) RGB upright, `proprio` float32 (s,) and `text` str; made by
    `observation_spaces`. With `render_images = False`, reset and step leave `images` out: a policy that runs open loop
    inside a chunk of actions needs none, and under software OpenGL the picture is nine tenths of a step.
    action: float32 (a,), a Box in the environment's own units; values outside are clipped.
    info: holds `success`, a bool, after reset and after every step.
    point_grid: an environment that has a depth camera may add `point_cloud` float32 (point_grid ** 2, 4) to its observations (see
    `Observation`) wherever it draws, and then tells in `info` what only a simulator knows of them: `point_body` int32 (K,), the
    body that each lies on, and `body_pose` float32 (bodies, 7), where every body is (see `SceneFlow`).
    reset(seed): a pure function of the seed, whatever happened before.
    """

    Config: ClassVar[type]
    """Frozen dataclass of the options; the constructor takes one."""

    observation_space: spaces.Dict
    action_space: spaces.Box
    render_images: bool = True
    cameras: tuple[str, ...]
    fps: float
    task: str
    text: str
    robot_type: str
    proprio_names: tuple[str, ...]
    action_names: tuple[str, ...]
    point_grid: int = 0
    """Scene points a side of their grid; 0 where there are none."""
    bodies: int = 0
    """Rows of `info["body_pose"]`."""
    things: tuple[str, ...] = ()
    """What `truth` knows of, by name; empty where it knows of nothing."""
    noise_range: float = 1.0
    """What action noise of 1 is, in half ranges of the action space: less where actions are places, of which one step uses little."""
    meaning: DatasetMetadata | None = None
    """What the numbers mean; without it data can be trained on alone, but not mixed with another robot's."""
    factors: ClassVar[Mapping[str, str]] = {}
    """Factors of variation: fields of Config that hold a severity in [0, 1], 0 for the plain environment, and what each is at 1.
    What a severity changes follows from the reset's seed, in one direction for all severities."""

    @classmethod
    @abc.abstractmethod
    def tasks(cls) -> tuple[str, ...]:
        """Names of all tasks."""

    @abc.abstractmethod
    def expert(self) -> Expert | None:
        """Scripted expert for the current task, or None."""

    @abc.abstractmethod
    def snapshot(self) -> Snapshot:
        """Everything needed to come back to this instant, in any process."""

    @abc.abstractmethod
    def restore(self, snapshot: Snapshot) -> dict[str, Any]:
        """Goes back to a snapshot; gives the observation dictionary of that instant."""

    def truth(self, masks: bool = True) -> GroundTruth:
        """What only the simulator knows of `things` at this instant (T = 1); leaves it as it is. masks: whether they are drawn."""
        raise WamkitError(f"{type(self).__name__} does not tell what its things do, so no physics can be judged in it")


def observation_spaces(
    views: int, height: int, width: int, proprio_low: np.ndarray, proprio_high: np.ndarray, point_grid: int = 0
) -> spaces.Dict:
    """The observation space of the contract; the proprioception bounds are float32 (s,), `point_grid` is a side of their grid."""
    depth = {"point_cloud": spaces.Box(-np.inf, np.inf, (point_grid**2, 4), np.float32)} if point_grid else {}
    return spaces.Dict(
        **depth,
        images=spaces.Box(0, 255, (views, 3, height, width), np.uint8),
        proprio=spaces.Box(np.asarray(proprio_low, np.float32), np.asarray(proprio_high, np.float32), dtype=np.float32),
        text=spaces.Text(max_length=256, min_length=1, charset=_TEXT_CHARS),
    )


def observation(raw: Mapping[str, Any], space: spaces.Dict | None = None) -> Observation:
    """Turns an observation dictionary into a checked `Observation`.

    raw: `proprio` float32 (s,) finite, `text` a non-empty str, and optionally `images` uint8 (V, 3, H, W) and `point_cloud`
    float32 (K, 4).
    space: the environment's observation space; when given, shapes must agree with it.
    Raises ObservationError, which names the key, what was expected and what was found.
    """
    extra = sorted(set(raw) - {"images", "proprio", "text", "point_cloud"})
    if extra:
        raise ObservationError(
            f"observation has an unknown key {extra[0]!r}: expected images, proprio, text and point_cloud"
        )
    for key in ("proprio", "text"):
        if key not in raw:
            raise ObservationError(f"observation has no {key!r}: found {sorted(raw)}")
    proprio, text, images = raw["proprio"], raw["text"], raw.get("images")
    if not isinstance(text, str) or not text:
        raise ObservationError(f"observation['text']: expected a non-empty str, found {text!r}")
    _check_array("proprio", proprio, np.float32, 1, space)
    if not np.isfinite(proprio).all():
        raise ObservationError(f"observation['proprio']: expected finite numbers, found {proprio}")
    if images is not None:
        _check_array("images", images, np.uint8, 4, space)
        if images.shape[1] != 3:
            raise ObservationError(f"observation['images']: expected shape (V, 3, H, W), found {images.shape}")
    points = raw.get("point_cloud")
    if points is not None:
        _check_array("point_cloud", points, np.float32, 2, space)
    return Observation(images=images, proprio=proprio, text=text, point_cloud=points)


def _check_array(key: str, value: Any, dtype: type, ndim: int, space: spaces.Dict | None) -> None:
    shape = space[key].shape if space is not None else None
    expected = f"{np.dtype(dtype)} {shape or f'with {ndim} axes'}"
    if not isinstance(value, np.ndarray):
        raise ObservationError(
            f"observation[{key!r}]: expected a numpy array, {expected}, found {type(value).__name__}"
        )
    if value.dtype != dtype or value.ndim != ndim or (shape is not None and value.shape != shape):
        raise ObservationError(f"observation[{key!r}]: expected {expected}, found {value.dtype} {value.shape}")


ENVIRONMENTS: Registry[type[Environment]] = Registry("environment", "wamkit.envs")
"""All environment classes by name; packages add theirs under the entry-point group `wamkit.envs`."""

register_env = ENVIRONMENTS.register
"""Class decorator that makes an environment known by a name: `@register_env("metaworld")`."""


def make_env(name: str, **options: Any) -> Environment:
    """Builds the environment `name` with the given fields of its Config.

    Raises RegistryError for an unknown name and ConfigError for an unknown option or a wrong type, with the nearest match.
    """
    cls = ENVIRONMENTS.get(name)
    try:
        config = from_dict(cls.Config, options)
    except ConfigError as error:
        raise ConfigError(f"environment {name!r}: {error}") from error
    return cls(config)
