"""The contract of an environment, environments by name, and the seeds reserved for each purpose.

An environment is a `gymnasium.Env` with a fixed observation dictionary (images, proprioception, instruction), actions
in its own units, a scripted expert where there is one, and snapshots that restore the simulator byte for byte. Anything
that passes `wamkit.envs.check.check_env` works with collection, evaluation and snapshots.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import gymnasium
import numpy as np
from gymnasium import spaces

from wamkit.config import ConfigError, from_dict
from wamkit.envs.ground_truth import GroundTruth
from wamkit.envs.gymnasium_ids import register_ids
from wamkit.errors import nearest
from wamkit.metadata import DatasetMetadata
from wamkit.registry import Registry
from wamkit.types import Observation, ObservationError, Snapshot, WamkitError

TRAIN_SEEDS = 1_000_000
"""Training episodes are reset with seeds in [0, TRAIN_SEEDS), retries included."""

HELD_OUT_SEED_BASE = 1_000_000
"""Evaluation is reset with HELD_OUT_SEED_BASE + k, which training never uses."""

HELD_OUT_SEEDS = 1_000_000
"""Number of seeds for evaluation; those of validation begin after them."""

VALIDATION_SEED_BASE = 2_000_000
"""Validation episodes are reset with VALIDATION_SEED_BASE + k, which neither training nor closed-loop evaluation
uses."""

_TEXT_CHARS = "".join(chr(code) for code in range(32, 127))

E = TypeVar("E", bound="Environment")

Expert = Callable[[np.random.Generator], np.ndarray]
"""Scripted expert: takes a random generator, returns the clean action float32 (a,) for the environment's present
state."""


def held_out_seeds(n: int) -> tuple[int, ...]:
    """The first `n` evaluation seeds, disjoint from every training seed."""
    return tuple(range(HELD_OUT_SEED_BASE, HELD_OUT_SEED_BASE + n))


class Environment(gymnasium.Env, abc.ABC):
    """Contract of a wamkit environment, on top of Gymnasium's.

    `reset(seed=..., render=True)`, `step(action, render=True)` and `restore(snapshot, render=True)` take one argument
    more than Gymnasium's: whether the returned observation holds images. A policy that is inside a chunk of actions
    needs none, and with software OpenGL rendering takes nine tenths of a step. Rendering never changes the dynamics.

    observation: dictionary of `images` uint8 (V, 3, H, W), RGB, upright; `proprio` float32 (s,); `text` str. Its space
        is made by `observation_spaces`. Without rendering there is no key `images`.
    action: float32 (a,), a Box in the environment's own units. Values outside are clipped.
    info: holds `success`, a bool, after reset and after every step. After a step it may also tell how the task goes,
        so that failures are told apart (`wamkit.eval.suites.closed_loop.outcome`): `touched`, a bool, true if the robot
        touches what the task has it move; `remaining`, a finite float of at least 0 in any unit, what is left to do,
        such as the distance of the object from its goal.
    reset: a pure function of the seed, whatever happened before.
    point_grid: an environment with a depth camera may add `point_cloud` float32 (point_grid ** 2, 4) to every rendered
        observation (see `Observation`). `info` then holds `point_body` int32 (K,), the body that each point lies on,
        and `body_pose` float32 (bodies, 7), the pose of every body (see `SceneFlow`).
    """

    Config: ClassVar[type]
    """Frozen dataclass of the options; the constructor takes one."""

    observation_space: spaces.Dict
    action_space: spaces.Box
    cameras: tuple[str, ...]
    fps: float
    task: str
    text: str
    robot_type: str
    proprio_names: tuple[str, ...]
    action_names: tuple[str, ...]
    point_grid: int = 0
    """Side of the square grid of scene points; 0 without a depth camera."""
    bodies: int = 0
    """Rows of `info["body_pose"]`."""
    tracked_bodies: tuple[str, ...] = ()
    """Names of the bodies in `ground_truth`; empty for an environment without ground truth."""
    rigid_bodies: ClassVar[bool] = False
    """True if ground truth is complete (poses, velocities, masses, contacts) and `distances` is implemented, so that
    gravity, energy, momentum and penetration can be judged and not only the laws that need positions alone."""
    second_take: ClassVar[Mapping[str, Any]] = {}
    """Options under which a seed gives the same scene with slightly different masses, frictions, speeds and positions,
    as a laboratory would repeat it: a real-to-real ceiling. Empty where there is no such variation."""
    noise_range: float = 1.0
    """Action noise of 1 in half ranges of the action space: below 1 where actions are positions, of which one step
    covers little."""
    seeded: bool = True
    """False for an environment whose reset does not follow its seed, as a real robot's: the checks that repeat an
    episode are left out, and evaluation says so."""
    dataset_metadata: DatasetMetadata | None = None
    """Units and frames of states and actions. Without it data can be trained on alone, but not mixed with other
    robots'."""
    factors: ClassVar[Mapping[str, str]] = {}
    """Factors of variation: fields of Config that hold a severity in [0, 1], 0 for the plain environment, each with a
    description of severity 1. The direction of a change follows from the seed and is the same at all severities."""

    @classmethod
    @abc.abstractmethod
    def tasks(cls) -> tuple[str, ...]:
        """Names of all tasks; none for an environment whose options name its task."""

    @classmethod
    def tasks_under(cls, options: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of all tasks under `options`, fields of Config: those of `tasks`, unless the options name the task."""
        return cls.tasks()

    @abc.abstractmethod
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None, render: bool = True
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts the episode of `seed` and returns (observation, info). A subclass calls this to seed `np_random`.

        options: Gymnasium's; here none are known. Raises WamkitError for any.
        """
        if options:
            raise WamkitError(
                f"{type(self).__name__}, {self.task}: reset knows no options, found {', '.join(map(repr, options))}; "
                "options of an environment are given when it is made"
            )
        super().reset(seed=seed)
        return {}, {}

    @abc.abstractmethod
    def step(self, action: np.ndarray, render: bool = True) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Executes an action and returns (observation, reward, terminated, truncated, info)."""

    def expert(self) -> Expert | None:
        """Scripted expert for the current task, or None, as here."""
        return None

    @classmethod
    def takes_snapshots(cls) -> bool:
        """True for an environment that has `snapshot` and `restore`; those of this class refuse."""
        return cls.snapshot is not Environment.snapshot and cls.restore is not Environment.restore

    def snapshot(self) -> Snapshot:
        """Everything needed to return to this instant, in any process.

        An environment without it, such as a robot, is driven and evaluated in closed loop all the same. Raises
        WamkitError there.
        """
        raise WamkitError(
            f"{type(self).__name__} takes no snapshots, which what compares actions from one state needs; without them "
            "there are wamkit.Policy, collection without --snapshots, and wamkit eval with its main suite"
        )

    def restore(self, snapshot: Snapshot, render: bool = True) -> dict[str, Any]:
        """Returns to a snapshot and gives the observation dictionary of that instant. Raises as `snapshot`."""
        raise WamkitError(f"{type(self).__name__} takes no snapshots, so none can be restored")

    def ground_truth(self, masks: bool = True) -> GroundTruth:
        """The simulator's state of `tracked_bodies` at this instant (T = 1), which it leaves as it is.

        masks: whether segmentation masks are rendered. Raises WamkitError for an environment without ground truth.
        """
        raise WamkitError(f"{type(self).__name__} has no ground truth of its bodies, so no physics can be judged in it")

    def distances(
        self,
        position: np.ndarray,
        quaternion: np.ndarray | None = None,
        pusher: np.ndarray | None = None,
        to: str | None = None,
    ) -> np.ndarray:
        """Distances like `GroundTruth.distance`, metres, float64 (T, N), with bodies where a model imagined them.

        position: float (T, N, 3), world metres; NaN for a body that was not seen, which gives NaN.
        quaternion: float (T, N, 4); the present one if not given.
        pusher: float (T, 2), its position; the present one if not given.
        to: name of the geom to measure to; the nearest if not given.
        Raises WamkitError for a scene without such a geom, and for an environment that is not one of `rigid_bodies`.
        """
        raise WamkitError(f"{type(self).__name__} measures no distances between its bodies")

    def _checked_action(self, action: np.ndarray) -> np.ndarray:
        """`action` as float32 (a,), clipped to the action space. Raises WamkitError for another shape or values not
        finite."""
        action, space = np.asarray(action, np.float32), self.action_space
        if action.shape != space.shape or not np.isfinite(action).all():
            name, n = type(self).__name__, space.shape[0]
            raise WamkitError(f"{name}, {self.task}: expected an action of {n} finite values, found {action!r}")
        return np.clip(action, space.low, space.high)

    def _check_task(self, snapshot: Snapshot) -> None:
        """Raises WamkitError for a snapshot of another task."""
        if snapshot.attributes.get("task") != self.task:
            raise WamkitError(f"a snapshot of {snapshot.attributes.get('task')!r} cannot be restored in {self.task!r}")


def observation_spaces(
    views: int, height: int, width: int, proprio_low: np.ndarray, proprio_high: np.ndarray, point_grid: int = 0
) -> spaces.Dict:
    """The observation space of the contract.

    proprio_low, proprio_high: float32 (s,), bounds.   point_grid: side of the square grid of scene points, 0 for none.
    """
    depth = {"point_cloud": spaces.Box(-np.inf, np.inf, (point_grid**2, 4), np.float32)} if point_grid else {}
    return spaces.Dict(
        **depth,
        images=spaces.Box(0, 255, (views, 3, height, width), np.uint8),
        proprio=spaces.Box(np.asarray(proprio_low, np.float32), np.asarray(proprio_high, np.float32), dtype=np.float32),
        text=spaces.Text(max_length=256, min_length=1, charset=_TEXT_CHARS),
    )


def observation(raw: Mapping[str, Any], space: spaces.Dict | None = None) -> Observation:
    """Turns an observation dictionary into a checked `Observation`.

    raw: `proprio` float32 (s,), finite; `text`, a non-empty str; optionally `images` uint8 (V, 3, H, W) and
    `point_cloud` float32 (K, 4).
    space: the environment's observation space; when given, shapes must agree with it.
    Raises ObservationError, which names the key, the expected and the actual value.
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
        raise ObservationError(f"observation['proprio']: expected finite values, found {proprio}")
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


ENVIRONMENTS: Registry[type[Environment]] = Registry("environment", "wamkit.envs", package="wamkit.envs")
"""Environment classes by name. A module of `wamkit.envs` registers its own; other packages announce theirs under the
entry-point group `wamkit.envs`."""


def register_env(name: str) -> Callable[[type[E]], type[E]]:
    """Class decorator that registers an environment under a name, `@register_env("metaworld")`, and its Gymnasium ids.

    A class whose `tasks()` raises WamkitError, since a package is missing, has no ids. Raises RegistryError for a name
    that is taken.
    """

    def add(cls: type[E]) -> type[E]:
        ENVIRONMENTS.register(name)(cls)
        with contextlib.suppress(WamkitError):
            register_ids(cls.__name__, name, cls.tasks())
        return cls

    return add


def check_task(env: str, task: str, known: Iterable[str]) -> None:
    """Raises WamkitError, with the nearest, unless `task` is one of the tasks `known` of the environment `env`."""
    known = tuple(known)
    if task not in known:
        raise WamkitError(f"unknown task {task!r} of {env}{nearest(task, known)}; known: {', '.join(known)}")


def make_env(name: str, /, **options: Any) -> Environment:
    """Builds the environment `name` with the given fields of its Config.

    Raises RegistryError for an unknown name and ConfigError for an unknown option or a wrong type, with the nearest
    match.
    """
    return ENVIRONMENTS.get(name)(env_config(name, **options))


def env_config(name: str, /, **options: Any) -> Any:
    """Options of the environment `name`, an instance of its Config. Raises as `make_env`."""
    try:
        return from_dict(ENVIRONMENTS.get(name).Config, options)
    except ConfigError as error:
        raise ConfigError(f"environment {name!r}: {error}") from error
