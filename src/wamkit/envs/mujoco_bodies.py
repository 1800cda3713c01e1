"""Ground truth of a robot's hand and of the object that it is there to move, from any MuJoCo model with one robot."""

from __future__ import annotations

from typing import Any

import numpy as np

from wamkit.envs.ground_truth import GroundTruth

HAND, OBJECT = range(2)
"""Rows of the ground truth."""


class TrackedBodies:
    """Two rows of `GroundTruth`: the robot's hand, and everything movable that is not the robot (a drawer, a door, a
    puck).

    robot: bool (bodies,), the bodies of the robot.   hand: the body that, with all that hangs on it, is the hand.
    """

    names = ("hand", "object")

    def __init__(self, mujoco: Any, model: Any, robot: np.ndarray, hand: int):
        self._mujoco, self._model, self._robot = mujoco, model, robot
        parent, free = model.body_parentid, model.body_dofnum > 0
        subtree = lambda roots: _subtrees(parent, roots)  # noqa: E731
        rows = [subtree(np.arange(model.nbody) == hand), subtree(free & ~robot) & ~robot]
        self._weights = np.stack([w / max(w.sum(), 1e-12) for w in (model.body_mass * row for row in rows)])
        self._rows = np.stack(rows)
        self._data = mujoco.MjData(model)

    def ground_truth(self, physics: np.ndarray, geoms: np.ndarray | None) -> GroundTruth:
        """Ground truth of one instant (T = 1).

        physics: float64 (n,), the instant's `mjSTATE_INTEGRATION`.   geoms: int32 (H, W), the geom that each pixel
            shows.
        position: the centre of mass.   contact: of the object with the robot, at the instant itself.
        Unknown (NaN): velocities, rotations, distances, masses and sizes.
        """
        mujoco, model, data = self._mujoco, self._model, self._data
        mujoco.mj_setState(model, data, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_forward(model, data)
        exists = self._rows.any(1)
        position = np.where(exists[:, None], self._weights @ data.xipos, np.nan)
        touched = self.touched(data)
        contact = np.zeros((1, 2, 4), bool)
        contact[0, HAND, OBJECT] = contact[0, OBJECT, HAND] = contact[0, OBJECT, -1] = touched
        mask = None
        if geoms is not None:
            body = np.where(geoms >= 0, model.geom_bodyid[geoms], 0)
            mask = (self._rows[:, body] & (geoms >= 0))[None]
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

    def touched(self, data: Any) -> bool:
        """True if the robot touches the object in `data`, a state of the model as the simulator left it."""
        sides = self._model.geom_bodyid[data.contact.geom]
        robot, movable = self._robot[sides], self._rows[OBJECT][sides]
        return bool((robot & movable[:, ::-1]).any())


def _subtrees(parent: np.ndarray, roots: np.ndarray) -> np.ndarray:
    """bool (bodies,): the bodies `roots` and all that hang on them; parents come before their children."""
    out = roots.copy()
    for body in range(1, len(out)):
        out[body] |= out[parent[body]]
    return out
