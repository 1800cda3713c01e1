"""The part of LeRobot's robots and teleoperators that wamkit uses, and their dictionaries as vectors and images."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from wamkit.errors import nearest
from wamkit.registry import named_object
from wamkit.types import WamkitError


class RobotError(WamkitError):
    """A robot, or what leads it, does not answer, or not as it said."""


@runtime_checkable
class Robot(Protocol):
    """A robot, as LeRobot's `Robot` has it.

    observation_features: "shoulder_pan.pos": float for a value, "front": (H, W, 3) for a camera.
    action_features: the values of an action, likewise.
    """

    observation_features: Mapping[str, Any]
    action_features: Mapping[str, Any]

    def get_observation(self) -> Mapping[str, Any]:
        """Values and images, uint8 (H, W, 3) RGB, by name."""

    def send_action(self, action: Mapping[str, float]) -> Mapping[str, float]:
        """Sends targets by name; returns those that were sent, clipped where the robot clips."""


@runtime_checkable
class Leader(Protocol):
    """An object that decides the actions of a recording, as LeRobot's `Teleoperator` does.

    `get_action` may take the robot's observation; LeRobot's teleoperators take nothing.
    """

    def get_action(self) -> Mapping[str, float]:
        """Targets by name."""


def make(name: str, what: str, options: Mapping[str, Any], robot: Any = None) -> Any:
    """The object that MODULE:OBJECT names; a class or function is called with `options`.

    what: for errors, "robot".   robot: given to those that take an argument of this name.
    Raises RobotError where it cannot be made.
    """
    found = named_object(name, what)
    if not callable(found):
        return found
    if robot is not None and "robot" in inspect.signature(found).parameters:
        options = {"robot": robot, **options}
    return built(found, f"{what} {name}", options)


def built(kind: Callable[..., Any], what: str, options: Mapping[str, Any]) -> Any:
    """`kind` called with `options`. Raises RobotError, naming `what`, for whatever it raises."""
    try:
        return kind(**options)
    except WamkitError:
        raise
    except Exception as error:  # drivers raise whatever their libraries do
        raise RobotError(f"{what} cannot be made: {_said(error)}") from error


def call(robot: Any, method: str, *arguments: Any) -> Any:
    """The answer of a driver's method. Raises RobotError, naming both, for whatever it raises."""
    try:
        return getattr(robot, method)(*arguments)
    except WamkitError:
        raise
    except Exception as error:
        raise RobotError(f"{type(robot).__name__}.{method} failed: {_said(error)}") from error


def connected(robot: Any, does: str) -> None:
    """Calls `connect` or `disconnect` of an object that has it."""
    if hasattr(robot, does):
        call(robot, does)


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@dataclass(frozen=True)
class Features:
    """Names and sizes of a robot's values and images.

    state, action: names of the values, in the robot's order.   cameras: (H, W) by name.
    """

    state: tuple[str, ...]
    action: tuple[str, ...]
    cameras: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, robot: Robot) -> Features:
        """The features that `robot` declares. Raises RobotError where it declares none that can be recorded."""
        kind = type(robot).__name__
        declared = [getattr(robot, name, None) for name in ("observation_features", "action_features")]
        if not all(isinstance(d, Mapping) for d in declared):
            raise RobotError(f"{kind} has no observation_features and action_features, as robots of LeRobot do")
        seen, acts = declared
        cameras = {n: tuple(x) for n, x in seen.items() if isinstance(x, Sequence) and not isinstance(x, str)}
        if bad := next((n for n, x in cameras.items() if len(x) != 3 or x[2] != 3), ""):
            raise RobotError(f"{kind}: camera {bad} is {cameras[bad]} instead of (H, W, 3)")
        state, action = tuple(n for n in seen if n not in cameras), tuple(acts)
        if not action:
            raise RobotError(f"{kind} declares no actions")
        return cls(state, action, {n: x[:2] for n, x in cameras.items()})

    def observed(
        self, observation: Mapping[str, Any]
    ) -> tuple[Float32[np.ndarray, " s"], dict[str, UInt8[np.ndarray, "H W 3"]]]:
        """State and images of an observation. Raises RobotError, naming the entry, for what was not declared so."""
        state = self._vector(observation, self.state, "observation")
        images = {}
        for name, size in self.cameras.items():
            image = np.asarray(_entry(observation, name, "observation"))
            if image.dtype != np.uint8 or image.shape != (*size, 3):
                raise RobotError(f"camera {name} gave {image.dtype} {image.shape} instead of uint8 {(*size, 3)}")
            images[name] = image
        return state, images

    def vector(self, action: Mapping[str, Any]) -> Float32[np.ndarray, " a"]:
        """An action as a vector. Raises RobotError, naming the entry, for one that lacks a value, and for NaN."""
        return self._vector(action, self.action, "action")

    def named(self, action: Float32[np.ndarray, " a"]) -> dict[str, float]:
        """An action by name."""
        return dict(zip(self.action, map(float, action), strict=True))

    def _vector(self, values: Mapping[str, Any], names: Sequence[str], what: str) -> Float32[np.ndarray, " n"]:
        if not isinstance(values, Mapping):
            raise RobotError(f"the {what} is {type(values).__name__} instead of a dictionary of values by name")
        found = [_entry(values, name, what) for name in names]
        try:
            out = np.array([float(x) for x in found], np.float32)
        except (TypeError, ValueError) as error:
            raise RobotError(f"the {what} has a value that is no number: {error}") from error
        if not np.isfinite(out).all():
            raise RobotError(f"the {what} has {names[int(np.flatnonzero(~np.isfinite(out))[0])]} = NaN or infinity")
        return out


def _entry(values: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in values:
        held = ", ".join(list(values)[:6])
        raise RobotError(f"the {what} lacks '{name}'{nearest(name, list(values))}; it has {held}")
    return values[name]
