"""What only a simulator knows of its things, and how it is read from recorded snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np

from wamkit.types import Snapshot, WamkitError


class HasGroundTruth(Protocol):
    """An environment that can tell what its things do."""

    task: str
    render_images: bool

    def restore(self, snapshot: Snapshot) -> dict[str, Any]: ...

    def truth(self, masks: bool = True) -> GroundTruth: ...


@dataclass(frozen=True)
class GroundTruth:
    """What only the simulator knows of T instants of one scene, of N things of which `exists` tells those that are there.

    position: float64 (T, N, 3), centres in world metres.   quaternion: (T, N, 4), (w, x, y, z).
    velocity, angular_velocity: (T, N, 3), of the centre, in m/s and rad/s, world axes.
    contact: bool (T, N, N + 2), whether an object touched object j, and in the last two columns what is fixed (table, wall) and
    the pusher, at any time in the step that led to the instant: a collision takes less than a step.
    distance: (T, N), metres to the nearest other thing, negative inside of it, at most 1.
    mask: bool (T, N, H, W), pixels that show the object; None where they were not asked for.
    pusher: (T, 2), its place in metres, NaN where there is none.
    mass: (N,), kg.   inertia: (N, 3), kg m^2, about the object's own axes.   size: (N, 3), half extents along these, in metres.
    Rows that do not exist are NaN, false where bool; so is what an environment does not tell.
    """

    position: np.ndarray
    quaternion: np.ndarray
    velocity: np.ndarray
    angular_velocity: np.ndarray
    contact: np.ndarray
    distance: np.ndarray
    mask: np.ndarray | None
    pusher: np.ndarray
    exists: np.ndarray
    mass: np.ndarray
    inertia: np.ndarray
    size: np.ndarray

    @property
    def area(self) -> np.ndarray:
        """Share of the picture that shows each object, float64 (T, N) in [0, 1]; 0 behind the wall and outside of the picture."""
        if self.mask is None:
            raise WamkitError("areas need masks: read the truth with masks=True")
        return self.mask.mean((2, 3))

    def at(self, frames: Sequence[int]) -> GroundTruth:
        """The instants `frames` (ascending) alone; their contacts are those since the frame before, the first one's its own step's."""
        moments = ("position", "quaternion", "velocity", "angular_velocity", "distance", "mask", "pusher")
        taken = {n: getattr(self, n)[list(frames)] for n in moments if getattr(self, n) is not None}
        starts = [frames[0], *(f + 1 for f in frames[:-1])]
        contact = np.stack([self.contact[a : b + 1].any(0) for a, b in zip(starts, frames, strict=True)])
        return replace(self, **taken, contact=contact)


def read_ground_truth(env: HasGroundTruth, snapshots: Sequence[Snapshot], masks: bool = True) -> GroundTruth:
    """The simulator's truth of the recorded instants of one episode (`wamkit collect --snapshots`), T = len(snapshots).

    masks: whether segmentation masks are drawn, which takes as long as drawing the pictures.
    Raises WamkitError for no snapshots, and for those of another task or of several scenes. Leaves `env` at the last one.
    """
    if not snapshots:
        raise WamkitError("the truth of an episode needs its snapshots: collect with --snapshots")
    if len({(s.attributes.get("seed"), s.attributes.get("jitter"), s.attributes.get("take")) for s in snapshots}) > 1:
        raise WamkitError("the snapshots are of several scenes: read the truth of one episode at a time")
    drawing, parts = env.render_images, []
    env.render_images = False
    try:
        for snapshot in snapshots:
            env.restore(snapshot)
            parts.append(env.truth(masks))
    finally:
        env.render_images = drawing
    still = ("exists", "mass", "inertia", "size")
    names = [f.name for f in fields(GroundTruth) if f.name not in still and (masks or f.name != "mask")]
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return GroundTruth(**{"mask": None} | joined, **{name: getattr(parts[0], name) for name in still})
