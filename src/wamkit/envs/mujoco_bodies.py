"""The hand of a robot and what it is there to move, as any MuJoCo model with one robot tells them."""

from __future__ import annotations

from typing import Any

import numpy as np

from wamkit.envs.ground_truth import GroundTruth

HAND, THING = range(2)


class TrackedBodies:
    """Two rows of `GroundTruth`: the robot's hand, and all that joints let move and that is not the robot (a drawer, a door, a puck).

    robot: bool (bodies,), which bodies the robot consists of.   hand: the body from which on it is the hand.
    """

    names = ("hand", "thing")

    def __init__(self, mujoco: Any, model: Any, robot: np.ndarray, hand: int):
        self._mujoco, self._model, self._robot = mujoco, model, robot
        parent, free = model.body_parentid, model.body_dofnum > 0
        below = lambda first: _below(parent, first)  # noqa: E731
        rows = [below(np.arange(model.nbody) == hand), below(free & ~robot) & ~robot]
        self._weights = np.stack([w / max(w.sum(), 1e-12) for w in (model.body_mass * row for row in rows)])
        self._rows = np.stack(rows)
        self._data = mujoco.MjData(model)

    def truth(self, physics: np.ndarray, drawn: np.ndarray | None) -> GroundTruth:
        """Of the instant with this `mjSTATE_INTEGRATION`. drawn: int32 (H, W), the geom that each pixel shows.

        position: the centre of mass.   contact: at the instant itself, of the thing with the robot.   Velocities, turns, distances,
        masses and sizes are not told.
        """
        mujoco, model, data = self._mujoco, self._model, self._data
        mujoco.mj_setState(model, data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_forward(model, data)
        exists = self._rows.any(1)
        position = np.where(exists[:, None], self._weights @ data.xipos, np.nan)
        sides = model.geom_bodyid[data.contact.geom]
        robot, thing = self._robot[sides], self._rows[THING][sides]
        touched = bool((robot & thing[:, ::-1]).any())
        contact = np.zeros((1, 2, 4), bool)
        contact[0, HAND, THING] = contact[0, THING, HAND] = contact[0, THING, -1] = touched
        mask = None
        if drawn is not None:
            body = np.where(drawn >= 0, model.geom_bodyid[drawn], 0)
            mask = (self._rows[:, body] & (drawn >= 0))[None]
        nan = lambda *shape: np.full(shape, np.nan)  # noqa: E731
        return GroundTruth(
            position=position[None],
            quaternion=nan(1, 2, 4),
            velocity=nan(1, 2, 3),
            angular_velocity=nan(1, 2, 3),
            contact=contact,
            distance=nan(1, 2),
            mask=mask,
            pusher=nan(1, 2),
            exists=exists,
            mass=nan(2),
            inertia=nan(2, 3),
            size=nan(2, 3),
        )


def _below(parent: np.ndarray, first: np.ndarray) -> np.ndarray:
    """bool (bodies,): the bodies `first` and all that hang on them; parents come before their children."""
    out = first.copy()
    for body in range(1, len(out)):
        out[body] |= out[parent[body]]
    return out
