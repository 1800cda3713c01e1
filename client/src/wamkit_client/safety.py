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
    still: (a,) bool, dimensions that stand still at zero (displacements, velocities); others do where they are.
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
    ) -> Limits:
        """The limits that a server tells, narrowed by the robot's own.

        metadata: of `Client.metadata`.   rate, jerk: one number for all dimensions, or one each.
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
        still = actions.get("still")
        return cls(lowest, highest, each("rate", rate), each("jerk", jerk), None if still is None else np.array(still))


class Guard:
    """Applies `Limits` from step to step, and counts what they changed.

    The first action has no rate and no jerk yet, unless `last` says what was commanded before.
    """

    def __init__(self, limits: Limits, last: np.ndarray | None = None):
        self.limits, self.last, self._change = limits, last, None if last is None else np.zeros_like(last, float)
        self.limited = 0
        """Actions that were changed."""

    def __call__(self, action: np.ndarray) -> np.ndarray:
        """The action within the limits, float32 (a,). Raises Unsafe for one that is not finite or of another size."""
        given = np.asarray(action, np.float64)
        if given.ndim != 1 or self.last is not None and given.shape != self.last.shape:
            raise Unsafe(f"an action of shape {given.shape}")
        if not np.isfinite(given).all():
            raise Unsafe(f"value {int(np.isfinite(given).argmin())} of an action is not finite")
        limits, safe = self.limits, given
        if self.last is not None:
            change = safe - self.last
            if limits.jerk is not None and self._change is not None:
                change = np.clip(change, self._change - limits.jerk, self._change + limits.jerk)
            if limits.rate is not None:
                change = np.clip(change, -limits.rate, limits.rate)
            safe = self.last + change
        if limits.low is not None or limits.high is not None:
            safe = np.clip(safe, limits.low, limits.high)
        if not np.array_equal(safe, given):
            self.limited += 1
        self._change = None if self.last is None else safe - self.last
        self.last = safe
        return safe.astype(np.float32)

    def holding(self, size: int) -> np.ndarray:
        """The action that stands still, float32 (a,): zero for displacements, the last command for targets."""
        last = np.zeros(size) if self.last is None else self.last
        still = self.limits.still
        return (last if still is None else np.where(still, 0.0, last)).astype(np.float32)
