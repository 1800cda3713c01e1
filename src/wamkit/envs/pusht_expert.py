"""A scripted expert for PushT: it imagines some pushes in a simulator of its own and carries out the one that helps most.

Of the outline of the T a point is drawn, with how deep and how aslant to push there; the pusher goes round the T, lays itself against
the point and pushes. What comes of it is simulated from where the bodies are now; the best of the first draws is varied. One push
takes some ten steps, and then the next is planned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

OUTLINE = np.array([(-60, 0), (60, 0), (60, 30), (15, 30), (15, 120), (-15, 120), (-15, 30), (-60, 30)], float)
"""Corners of gym-pusht's T, px from its origin, in the direction in which outward is to the right of the way."""

MIDDLE = np.array([0.0, 45.0])
"""Centre of mass of the T, likewise."""

RADIUS = 15.0
"""Of the pusher, px."""

DRAWS, VARIATIONS = 40, 24
"""Pushes that are imagined for each that is made."""

_ROUND = 115.0  # px from the middle of the T at which the pusher passes it
_STEP = 12.0  # px by which the wanted place moves at a step while pushing
_HASTE = 0.03  # px of error that a step is worth


@dataclass(frozen=True)
class _Push:
    """Which point of the outline; px to push beyond it; radians between its normal and the way there."""

    point: int
    depth: float
    slant: float


class Planner:
    """Plans pushes for `sim`, gym-pusht's environment; `dream` is another one, in which they are tried."""

    def __init__(self, sim: Any, dream: Any):
        self._sim, self._dream = sim, dream
        dream.reset(seed=0)
        dream._get_coverage = lambda: 0.0  # most of a step, and not wanted
        points, normals = [], []
        for start, stop in zip(OUTLINE, np.roll(OUTLINE, -1, 0), strict=True):
            length = np.linalg.norm(stop - start)
            shares = (np.arange(n := max(2, int(length // 15))) + 0.5) / n
            points.append(start + shares[:, None] * (stop - start))
            normals += [np.array([stop[1] - start[1], start[0] - stop[0]]) / length] * n
        self._points, self._normals = np.concatenate(points), np.array(normals)
        self._goal = _placed(OUTLINE, dream.goal_pose[:2], dream.goal_pose[2])

    def plan(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Wanted places of the pusher, float32 (2,) each, one a step: a whole push, from where the bodies are now."""
        best, least, path = None, np.inf, []
        for k in range(DRAWS + VARIATIONS):
            push = self._draw(rng) if k < DRAWS or best is None else self._varied(best, rng)
            way = self._way(push)
            if (cost := self._imagined(way) + _HASTE * len(way)) < least:
                best, least, path = push, cost, way
        return path

    def _draw(self, rng: np.random.Generator) -> _Push:
        return _Push(int(rng.integers(len(self._points))), 1 + 60 * rng.random() ** 2, rng.normal(0, 0.35))

    def _varied(self, push: _Push, rng: np.random.Generator) -> _Push:
        point = (push.point + int(rng.integers(-1, 2))) % len(self._points)
        return _Push(point, max(0.5, push.depth * np.exp(rng.normal(0, 0.4))), push.slant + rng.normal(0, 0.15))

    def _way(self, push: _Push) -> list[np.ndarray]:
        """Round the T to before the point, against it, and on."""
        block = self._sim.block
        here = slice(push.point, push.point + 1)
        point = _placed(self._points[here], block.position, block.angle)[0]
        outward = _placed(self._normals[here], (0, 0), block.angle + push.slant)[0]
        middle = _placed(MIDDLE[None], block.position, block.angle)[0]
        near, far = point + (RADIUS + 5) * outward, point + (RADIUS + 20) * outward
        start, stop = (np.arctan2(*(place - middle)[::-1]) for place in (np.array(self._sim.agent.position), far))
        turn = (stop - start + np.pi) % (2 * np.pi) - np.pi
        arcs = int(abs(turn) / 0.6)
        angles = start + turn * np.arange(0 if arcs > 2 else 1, arcs + 2) / (arcs + 1) if arcs else ()
        way = [middle + _ROUND * np.array([np.cos(a), np.sin(a)]) for a in angles]
        way += [far, near, near]
        steps = max(2, int(np.ceil((push.depth + 5) / _STEP)))
        way += [near - (push.depth + 5) * outward * (k + 1) / steps for k in range(steps)]
        return [np.clip(place, RADIUS, 512 - RADIUS).astype(np.float32) for place in (*way, way[-1], way[-1])]

    def _imagined(self, way: list[np.ndarray]) -> float:
        """Root mean square distance, px, of the T's corners from those of its mark after `way`."""
        dream, now = self._dream, self._sim
        dream._setup()
        dream.agent.position, dream.agent.velocity = now.agent.position, now.agent.velocity
        dream.block.angle = now.block.angle  # first: it turns about the centre of mass, which moves the origin
        dream.block.position, dream.block.velocity = now.block.position, now.block.velocity
        dream.block.angular_velocity = now.block.angular_velocity
        for place in way:
            dream.step(place)
        corners = _placed(OUTLINE, dream.block.position, dream.block.angle)
        return float(np.sqrt(((corners - self._goal) ** 2).sum(1).mean()))


def _placed(points: np.ndarray, origin: Any, angle: float) -> np.ndarray:
    """`points` (n, 2) of a body, in the world."""
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, s], [-s, c]]) + np.array(origin)
