"""Leaders for robots without one of their own: keys of the terminal, and a gamepad."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wamkit.errors import missing_package
from wamkit.robots.base import RobotError
from wamkit.types import WamkitError


class Keyboard:
    """Moves one value of the action at a time: a digit chooses it, up and down move it.

    The target starts where the robot is, if the state has values of the same names, and else at 0.

    names: of the action.   step: change of the chosen value a key.
    """

    def __init__(self, names: Sequence[str], step: float = 2.0):
        self.names, self.step, self.chosen = tuple(names), step, 0
        self._target: dict[str, float] | None = None

    def type(self, keys: Sequence[str]) -> None:
        """Follows keys; those that it does not know are for others."""
        for key in keys:
            if key.isdigit() and 0 < int(key) <= len(self.names):
                self.chosen = int(key) - 1
            if key in ("up", "down") and self._target is not None:
                self._target[self.names[self.chosen]] += self.step if key == "up" else -self.step

    def get_action(self, observation: Mapping[str, Any]) -> Mapping[str, float]:
        """The targets."""
        if self._target is None:
            self._target = {n: float(observation.get(n, 0.0)) for n in self.names}
        return dict(self._target)


class Gamepad:
    """Moves the values of the action by the axes of a gamepad, one after the other; buttons 0 and 1 move the last one.

    names: of the action.   speed: change a call at full deflection.   joystick: an object with `get_axis(i)`,
    `get_numaxes()` and `get_button(i)`; the first one that pygame finds if not given.

    Raises WamkitError where pygame is missing, and RobotError where no gamepad is connected.
    """

    DEAD = 0.15
    """Share of the deflection within which an axis rests."""

    def __init__(self, names: Sequence[str], speed: float = 2.0, joystick: Any = None):
        self.names, self.speed = tuple(names), speed
        self._joystick = _first_joystick() if joystick is None else joystick
        self._target: dict[str, float] | None = None

    def get_action(self, observation: Mapping[str, Any]) -> Mapping[str, float]:
        """The targets."""
        if self._target is None:
            self._target = {n: float(observation.get(n, 0.0)) for n in self.names}
        stick, last = self._joystick, self.names[-1]
        for i, name in enumerate(self.names[: stick.get_numaxes()]):
            if abs(value := stick.get_axis(i)) > self.DEAD:
                self._target[name] += self.speed * value
        self._target[last] += self.speed * (stick.get_button(0) - stick.get_button(1))
        return dict(self._target)


def _first_joystick() -> Any:
    try:
        import pygame
    except ModuleNotFoundError as error:
        raise WamkitError(missing_package(error) or str(error)) from error
    pygame.init()
    pygame.joystick.init()
    if not pygame.joystick.get_count():
        raise RobotError("no gamepad is connected; connect one, or take another --leader")
    stick = pygame.joystick.Joystick(0)

    class Polled:
        """The joystick, with pygame's events read before its state."""

        def __getattr__(self, name: str) -> Any:
            pygame.event.pump()
            return getattr(stick, name)

    return Polled()
