"""Ground truth: the simulator's own knowledge of its bodies, read from recorded snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np

from wamkit.types import Snapshot, WamkitError


class HasGroundTruth(Protocol):
    """An environment that knows the state of its bodies."""

    task: str

    def restore(self, snapshot: Snapshot, render: bool = True) -> dict[str, Any]: ...

    def ground_truth(self, masks: bool = True) -> GroundTruth: ...


@dataclass(frozen=True)
class GroundTruth:
    """The simulator's knowledge of T instants of one scene with up to N bodies.

    exists: bool (N,), the bodies that are there.
    position: float64 (T, N, 3), centres in world metres.
    quaternion: (T, N, 4), (w, x, y, z).
    velocity, angular_velocity: (T, N, 3), of the centre, in m/s and rad/s, world axes.
    contact: bool (T, N, N + 2), whether body n touched body j at any time in the step that led to the instant (a
        collision takes less than a step). The last two columns are what is fixed (table, wall) and the pusher.
    distance: (T, N), metres to the nearest other body, negative inside it, at most 1.
    mask: bool (T, N, H, W), pixels that show the body; None where masks were not asked for.
    pusher: (T, 2), its position in metres, NaN where there is none.
    mass: (N,), kg.   inertia: (N, 3), kg m^2, about the body's own axes.   size: (N, 3), half extents along these, in
        metres.
    Rows of bodies that do not exist are NaN, False where bool. So is everything that an environment does not know.
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
        """Share of the image that shows each body, float64 (T, N) in [0, 1]; 0 behind the wall and outside the
        image."""
        if self.mask is None:
            raise WamkitError("areas need masks: read the ground truth with masks=True")
        return self.mask.mean((2, 3))

    def at_size(self, height: int, width: int) -> GroundTruth:
        """The same with masks of another size: each pixel shows what the nearest one showed."""
        if self.mask is None or self.mask.shape[2:] == (height, width):
            return self
        rows, columns = (
            ((np.arange(new) + 0.5) * old / new).astype(int)
            for new, old in zip((height, width), self.mask.shape[2:], strict=True)
        )
        return replace(self, mask=self.mask[:, :, rows[:, None], columns])

    def at(self, frames: Sequence[int]) -> GroundTruth:
        """The instants `frames` (ascending) alone.

        A contact then counts if it happened at any step since the frame before; for the first frame, in its own step.
        """
        per_instant = ("position", "quaternion", "velocity", "angular_velocity", "distance", "mask", "pusher")
        chosen = {n: getattr(self, n)[list(frames)] for n in per_instant if getattr(self, n) is not None}
        starts = [frames[0], *(f + 1 for f in frames[:-1])]
        contact = np.stack([self.contact[a : b + 1].any(0) for a, b in zip(starts, frames, strict=True)])
        return replace(self, **chosen, contact=contact)


def read_ground_truth(env: HasGroundTruth, snapshots: Sequence[Snapshot], masks: bool = True) -> GroundTruth:
    """Ground truth of the recorded instants of one episode (`wamkit collect --snapshots`), T = len(snapshots).

    masks: whether segmentation masks are rendered, which takes as long as rendering the images.
    Raises WamkitError for no snapshots, and for those of another task or of several scenes. Leaves `env` at the last
    one.
    """
    if not snapshots:
        raise WamkitError("the ground truth of an episode needs its snapshots: collect with --snapshots")
    if len({(s.attributes.get("seed"), s.attributes.get("jitter"), s.attributes.get("take")) for s in snapshots}) > 1:
        raise WamkitError("the snapshots are of several scenes: read the ground truth of one episode at a time")
    parts = []
    for snapshot in snapshots:
        env.restore(snapshot, render=False)
        parts.append(env.ground_truth(masks))
    constant = ("exists", "mass", "inertia", "size")
    names = [f.name for f in fields(GroundTruth) if f.name not in constant and (masks or f.name != "mask")]
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return GroundTruth(**{"mask": None} | joined, **{name: getattr(parts[0], name) for name in constant})
