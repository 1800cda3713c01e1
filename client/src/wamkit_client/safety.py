"""Limits on the robot's side: whatever a model answers, an action stays within bounds, rates and jerks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


class Unsafe(RuntimeError):
    """An action that cannot be limited to a safe one: it is not finite, or of another size."""


@dataclass(frozen=True)
class Limits:
    """Limits of an action's dimensions, in the robot's units; None where there is none.

    low, high: (a,).
    rate: (a,), most that a dimension changes from one step to the next.
    jerk: (a,), most that this change changes from one step to the next.
    still: (a,) bool, dimensions that stand still at zero (displacements, velocities); others, targets, do where they
        are. None if it is not known, so that nothing can be held.
    """

    low: np.ndarray | None = None
    high: np.ndarray | None = None
    rate: np.ndarray | None = None
    jerk: np.ndarray | None = None
    still: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        metadata: Mapping[str, Any],
        *,
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
        rate: float | Sequence[float] | None = None,
        jerk: float | Sequence[float] | None = None,
        still: Sequence[bool] | None = None,
    ) -> Limits:
        """The limits that a server tells, narrowed by the robot's own.

        metadata: of `Client.metadata`.   rate, jerk: one number for all dimensions, or one each.
        still: in place of what the server tells.
        Raises ValueError for limits of another size, or that leave nothing.
        """
        actions = metadata.get("wamkit", {}).get("actions", {})
        size = actions["shape"][1] if "shape" in actions else None

        def each(name: str, given: Any) -> np.ndarray | None:
            if given is None:
                return None
            values = np.asarray(given, np.float64)
            if values.ndim == 0 and size is not None:
                values = np.full(size, values)
            if values.ndim != 1 or size not in (None, len(values)) or np.isnan(values).any():
                raise ValueError(f"{name}: expected {size or 'as many numbers as an action has'}, got {given!r}")
            return values

        def narrowest(name: str, told: Any, own: Any, choose: Any) -> np.ndarray | None:
            both = [x for x in (each(name, told), each(name, own)) if x is not None]
            return choose.reduce(both) if both else None

        lowest = narrowest("low", actions.get("low"), low, np.maximum)
        highest = narrowest("high", actions.get("high"), high, np.minimum)
        if lowest is not None and highest is not None and (lowest > highest).any():
            raise ValueError(f"low {lowest.tolist()} is above high {highest.tolist()}")
        for name, given in (("rate", rate), ("jerk", jerk)):
            if given is not None and not (np.asarray(given) > 0).all():
                raise ValueError(f"{name}: expected numbers above 0, got {given!r}")
        held = each("still", actions.get("still") if still is None else still)
        return cls(lowest, highest, each("rate", rate), each("jerk", jerk), None if held is None else held > 0)


class Guard:
    """Applies `Limits` from step to step, and counts what they changed.

    last: what was commanded before the first step; without it the first action has no rate and no jerk yet.

    An arm that begins outside the bounds is led back at the limited rate. Under a limit of jerk a change begins to
    shrink in time to end at its target, and standing still takes as many steps as it needs to shrink to nothing.
    Raises Unsafe for a `last` that is not finite or of another size.
    """

    def __init__(self, limits: Limits, last: np.ndarray | None = None):
        self.limits, self.last, self._change = limits, None, None
        self.limited = 0
        """Actions that were changed."""
        if last is not None:
            self.last = self._checked(last)
            self._change = np.zeros_like(self.last)

    def __call__(self, action: np.ndarray) -> np.ndarray:
        """The action within the limits, float32 (a,). Raises Unsafe for one that is not finite or of another size."""
        given, limits = self._checked(action), self.limits
        bounded = given
        if limits.low is not None or limits.high is not None:
            bounded = np.clip(given, limits.low, limits.high)
        safe = self._moved(bounded)
        self.limited += not np.array_equal(safe, given)
        return safe.astype(np.float32)

    def hold(self) -> np.ndarray:
        """The action that stands still, float32 (a,): zero for displacements, the last command for targets.

        Raises Unsafe where that is not known.
        """
        still = self.limits.still
        if still is None:
            raise Unsafe("it is not known which dimensions of an action stand still at zero: give still=")
        if self.last is None and not still.all():
            raise Unsafe("it is not known what was commanded before: give first=")
        return self._moved(np.where(still, 0.0, np.zeros(len(still)) if self.last is None else self.last)).astype(
            np.float32
        )

    def _moved(self, target: np.ndarray) -> np.ndarray:
        """The next command on the way from the last one to `target`."""
        limits, safe = self.limits, target
        if self.last is not None:
            change = target - self.last
            if limits.rate is not None:
                change = np.clip(change, -limits.rate, limits.rate)
            if limits.jerk is not None and self._change is not None:
                # The largest change from which one that shrinks by `jerk` a step ends at the target: its m further
                # steps and itself add up to what is left.
                left = np.abs(target - self.last)
                m = np.floor((np.sqrt(1 + 8 * left / limits.jerk) - 1) / 2)
                most = limits.jerk * m / 2 + left / (m + 1)
                change = np.clip(change, -most, most)
                change = np.clip(change, self._change - limits.jerk, self._change + limits.jerk)
            safe = self.last + change
        self._change = None if self.last is None else safe - self.last
        self.last = safe
        return safe

    def _checked(self, action: np.ndarray) -> np.ndarray:
        given = np.asarray(action, np.float64)
        sizes = [len(x) for x in (self.last, *vars(self.limits).values()) if x is not None]
        if given.ndim != 1 or any(len(given) != n for n in sizes):
            raise Unsafe(f"an action of shape {given.shape}" + (f", expected ({sizes[0]},)" if sizes else ""))
        if not np.isfinite(given).all():
            raise Unsafe(f"value {int(np.isfinite(given).argmin())} of an action is not finite")
        return given
