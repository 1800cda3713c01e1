"""A scripted expert for PushT: a search over pushes in a simulator of its own.

A candidate push is a point on the outline of the T with a depth and an angle. The pusher moves around the T to that
point and pushes. Candidates are simulated from the present state; the best one is then refined by variations of it. A
push takes about ten steps, after which the next one is planned.

The candidates are the same ones for every push, so that equal states are followed by equal pushes: a policy that sees
the present alone cannot learn a choice that was made by chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

OUTLINE = np.array([(-60, 0), (60, 0), (60, 30), (15, 30), (15, 120), (-15, 120), (-15, 30), (-60, 30)], float)
"""Corners of gym-pusht's T, px from its origin, ordered so that the outside is on the right."""

MIDDLE = np.array([0.0, 45.0])
"""Centre of mass of the T, px from its origin."""

RADIUS = 15.0
"""Radius of the pusher, px."""

CANDIDATES, VARIATIONS = 40, 24
"""Candidates for each push, and variations of the best one."""

_DETOUR = 115.0  # px from the middle of the T at which the pusher moves around it
_STEP = 12.0  # px by which the target position moves per step while pushing
_STEP_COST = 0.03  # px of error that a step is worth


@dataclass(frozen=True)
class _Push:
    """A candidate. point: index on the outline.   depth: px beyond it.   slant: radians between its normal and the
    motion."""

    point: int
    depth: float
    slant: float


class Planner:
    """Plans pushes for `sim`, gym-pusht's environment, by trying them in `trial`, a second one."""

    def __init__(self, sim: Any, trial: Any):
        self._sim, self._trial = sim, trial
        trial.reset(seed=0)
        trial._get_coverage = lambda: 0.0  # takes most of a step, and is not needed here
        points, normals = [], []
        for start, stop in zip(OUTLINE, np.roll(OUTLINE, -1, 0), strict=True):
            length = np.linalg.norm(stop - start)
            shares = (np.arange(n := max(2, int(length // 15))) + 0.5) / n
            points.append(start + shares[:, None] * (stop - start))
            normals += [np.array([stop[1] - start[1], start[0] - stop[0]]) / length] * n
        self._points, self._normals = np.concatenate(points), np.array(normals)
        self._goal = _placed(OUTLINE, trial.goal_pose[:2], trial.goal_pose[2])

    def plan(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Target positions of the pusher, float32 (2,) each, one per step: a whole push from the present state.

        rng: of other candidates, where none of the usual ones brings the T nearer to its mark.
        """
        plan, cost = self._search(np.random.default_rng(0))
        return plan if cost < self._error([]) else self._search(rng)[0]

    def _search(self, rng: np.random.Generator) -> tuple[list[np.ndarray], float]:
        best, least, plan = None, np.inf, list[np.ndarray]()
        for k in range(CANDIDATES + VARIATIONS):
            push = self._random(rng) if k < CANDIDATES or best is None else self._varied(best, rng)
            path = self._path(push)
            if (cost := self._error(path) + _STEP_COST * len(path)) < least:
                best, least, plan = push, cost, path
        return plan, least

    def _random(self, rng: np.random.Generator) -> _Push:
        return _Push(int(rng.integers(len(self._points))), 1 + 60 * rng.random() ** 2, rng.normal(0, 0.35))

    def _varied(self, push: _Push, rng: np.random.Generator) -> _Push:
        point = (push.point + int(rng.integers(-1, 2))) % len(self._points)
        return _Push(point, max(0.5, push.depth * np.exp(rng.normal(0, 0.4))), push.slant + rng.normal(0, 0.15))

    def _path(self, push: _Push) -> list[np.ndarray]:
        """Around the T to a position before the point, against it, and onwards."""
        block = self._sim.block
        here = slice(push.point, push.point + 1)
        point = _placed(self._points[here], block.position, block.angle)[0]
        outward = _placed(self._normals[here], (0, 0), block.angle + push.slant)[0]
        middle = _placed(MIDDLE[None], block.position, block.angle)[0]
        near, far = point + (RADIUS + 5) * outward, point + (RADIUS + 20) * outward
        start, stop = (np.arctan2(*(p - middle)[::-1]) for p in (np.array(self._sim.agent.position), far))
        turn = (stop - start + np.pi) % (2 * np.pi) - np.pi
        arcs = int(abs(turn) / 0.6)
        angles = start + turn * np.arange(0 if arcs > 2 else 1, arcs + 2) / (arcs + 1) if arcs else ()
        path = [middle + _DETOUR * np.array([np.cos(a), np.sin(a)]) for a in angles]
        path += [far, near, near]
        steps = max(2, int(np.ceil((push.depth + 5) / _STEP)))
        path += [near - (push.depth + 5) * outward * (k + 1) / steps for k in range(steps)]
        return [np.clip(p, RADIUS, 512 - RADIUS).astype(np.float32) for p in (*path, path[-1], path[-1])]

    def _error(self, path: list[np.ndarray]) -> float:
        """Root mean square distance, px, of the T's corners from those of its mark after `path`."""
        trial, now = self._trial, self._sim
        trial._setup()
        trial.agent.position, trial.agent.velocity = now.agent.position, now.agent.velocity
        trial.block.angle = now.block.angle  # first: a rotation about the centre of mass moves the origin
        trial.block.position, trial.block.velocity = now.block.position, now.block.velocity
        trial.block.angular_velocity = now.block.angular_velocity
        for position in path:
            trial.step(position)
        corners = _placed(OUTLINE, trial.block.position, trial.block.angle)
        return float(np.sqrt(((corners - self._goal) ** 2).sum(1).mean()))


def _placed(points: np.ndarray, origin: Any, angle: float) -> np.ndarray:
    """`points` (n, 2) of a body in world coordinates."""
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, s], [-s, c]]) + np.array(origin)
