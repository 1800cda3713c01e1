"""Scene points as an RGB-D camera gives them: where the rays of a regular grid of pixels hit the scene (MuJoCo).

The grid is anchored in the present frame, so nothing has to be tracked or segmented at run time. The simulator also
knows the body that each point lies on and the pose of every body, and therefore where every point moves.
"""

from __future__ import annotations

from typing import Any

import numpy as np

FAR = 5.0
"""Metres along the ray at which a point is placed if the ray hits nothing."""


class ScenePoints:
    """A grid of `side` x `side` pixels of one camera, row by row from the upper left of the upright image.

    model: as loaded, before its meshes were changed for rendering: rays look faces up in a tree built from the original
        ones.
    turned: whether the image is rotated by half a turn.
    robot: bool (bodies,), the bodies of the robot, whose position any robot knows from its kinematics.
    poses: rows of `body_pose`.
    """

    def __init__(
        self,
        mujoco: Any,
        model: Any,
        *,
        camera: int,
        side: int,
        aspect: float,
        turned: bool,
        robot: np.ndarray,
        poses: int,
    ):
        self._mujoco, self._model, self._camera, self._robot, self._poses = mujoco, model, camera, robot, poses
        tangent = np.tan(np.radians(model.cam_fovy[camera]) / 2)
        centres = (2 * np.arange(side) + 1) / side - 1  # of `side` cells of (-1, 1)
        rows, columns = np.meshgrid(centres, centres, indexing="ij")
        sign = -1 if turned else 1
        rays = np.stack([sign * aspect * tangent * columns, -sign * tangent * rows, -np.ones_like(rows)], -1)
        self._rays = (rays / np.linalg.norm(rays, axis=-1, keepdims=True)).reshape(-1, 3)
        # The groups that a new MjvOption renders.
        self._groups = np.array(mujoco.MjvOption().geomgroup, np.uint8)

    def cast(self, data: Any) -> tuple[np.ndarray, np.ndarray]:
        """(points float32 (K, 4): x, y, z in world metres and 1 on the robot, body int32 (K,)) of the present state."""
        K, origin = len(self._rays), data.cam_xpos[self._camera]
        rays = self._rays @ data.cam_xmat[self._camera].reshape(3, 3).T
        geom, distance = np.full(K, -1, np.int32), np.full(K, -1.0)
        self._mujoco.mj_multiRay(
            self._model, data, origin, rays.reshape(-1), self._groups, 1, -1, geom, distance, K, FAR
        )
        hit = geom >= 0
        body = np.where(hit, self._model.geom_bodyid[geom], 0).astype(np.int32)
        xyz = origin + rays * np.where(hit, distance, FAR)[:, None]
        return np.concatenate([xyz, self._robot[body][:, None]], 1).astype(np.float32), body

    def body_pose(self, data: Any) -> np.ndarray:
        """float32 (poses, 7): position and unit quaternion (w, x, y, z) of every body; identity where there is none."""
        pose = np.tile(np.array([0, 0, 0, 1, 0, 0, 0], np.float32), (self._poses, 1))
        pose[: len(data.xpos)] = np.concatenate([data.xpos, data.xquat], 1)
        return pose
