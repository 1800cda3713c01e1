"""Conversions between representations of rotations.

rot6d has no jumps, and models learn from it. It is the first two rows of the rotation matrix, as in pytorch3d, UMI and
GR00T (Zhou et al., arXiv:1812.07035, use columns). Any six values whose halves are not parallel are a rotation, by
Gram-Schmidt. Euler angles are in radians, about the fixed axes x, y, z in that order (roll, pitch, yaw).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from wamkit.errors import nearest

SIZES = {"quat_xyzw": 4, "quat_wxyz": 4, "axis_angle": 3, "euler_xyz": 3, "rot6d": 6, "matrix": 9}
"""Values in each representation."""


def to_matrix(x: Float[np.ndarray, "... n"], written: str) -> Float[np.ndarray, "... 3 3"]:
    """Rotation matrices, float64.

    x: rotations in the representation `written`, one of SIZES.

    Quaternions need not have unit length. (0, 0, 0, 0) is taken for the identity. Raises ValueError for another
    representation.

    Examples:
        A quarter turn about z, as a quaternion (w, x, y, z):

        >>> half = np.sqrt(0.5)
        >>> to_matrix(np.array([half, 0, 0, half]), "quat_wxyz").round(3) + 0.0
        array([[ 0., -1.,  0.],
               [ 1.,  0.,  0.],
               [ 0.,  0.,  1.]])
    """
    from scipy.spatial.transform import Rotation  # loads slowly

    lead, flat = x.shape[:-1], np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    if written in SIZES and not len(flat):  # scipy before 1.15 takes no empty arrays
        return np.empty((*lead, 3, 3))
    if written == "rot6d":
        a, b = flat[:, :3], flat[:, 3:]
        a = a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12)
        b = b - (a * b).sum(1, keepdims=True) * a
        b = b / np.maximum(np.linalg.norm(b, axis=1, keepdims=True), 1e-12)
        out = np.stack([a, b, np.cross(a, b)], 1)
    elif written == "matrix":
        out = flat.reshape(-1, 3, 3)
    elif written == "axis_angle":
        out = Rotation.from_rotvec(flat).as_matrix()
    elif written == "euler_xyz":
        out = Rotation.from_euler("xyz", flat).as_matrix()
    elif written in ("quat_xyzw", "quat_wxyz"):
        flat = flat if written == "quat_xyzw" else np.roll(flat, -1, 1)
        flat = np.where(np.linalg.norm(flat, axis=1, keepdims=True) > 0, flat, [0.0, 0.0, 0.0, 1.0])
        out = Rotation.from_quat(flat).as_matrix()
    else:
        near = nearest(written, SIZES)
        raise ValueError(f"there is no representation of rotations '{written}'{near}; there are {', '.join(SIZES)}")
    return out.reshape(*lead, 3, 3)


def from_matrix(R: Float[np.ndarray, "... 3 3"], written: str) -> Float[np.ndarray, "... n"]:
    """Rotations in the representation `written`: the inverse of `to_matrix`.

    Quaternions have a real part of at least 0, axis-angle vectors a length of at most pi.
    """
    from scipy.spatial.transform import Rotation  # loads slowly

    lead = R.shape[:-2]
    if written in ("rot6d", "matrix"):
        return R[..., : SIZES[written] // 3, :].reshape(*lead, SIZES[written])
    if written in SIZES and not R.size:
        return np.empty((*lead, SIZES[written]))
    turn = Rotation.from_matrix(R.reshape(-1, 3, 3))
    if written == "axis_angle":
        out = turn.as_rotvec()
    elif written == "euler_xyz":
        out = turn.as_euler("xyz")
    elif written in ("quat_xyzw", "quat_wxyz"):
        out = turn.as_quat(canonical=True)
        out = out if written == "quat_xyzw" else np.roll(out, 1, 1)
    else:
        near = nearest(written, SIZES)
        raise ValueError(f"there is no representation of rotations '{written}'{near}; there are {', '.join(SIZES)}")
    return out.reshape(*lead, SIZES[written])
