"""Motion: agreement of segmentation masks in space and time (Physics-IQ), and distances between trajectories.

Physics-IQ (arXiv 2501.09038) compares masks of what moves. Its own masks come from a background model of blurred grey
frames, in which objects of 3 pixels vanish; a simulator's segmentation has none of that, so masks here are given, not
made from pixels. Every figure is NaN where it is undefined, as its docstring says; nothing divides by zero. Those of
masks stay when every pixel is drawn as four; those of paths see no pixels. For paths, leave out those frames at which
nothing was seen: a lost object has no path, and only `physics.permanence` says that it is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance

from wamkit.types import EvaluationError


class Figure(NamedTuple):
    """A mean (or, where it says so, a sum) and the number of its cases; NaN without any."""

    value: float
    count: int

    @staticmethod
    def mean(values: Shaped[np.ndarray, "*n"]) -> Figure:
        """The mean of all `values`; bool gives a share in [0, 1]."""
        values = np.asarray(values, np.float64)
        return Figure(float(values.mean()) if values.size else math.nan, values.size)


def motion_mask(
    mask: Bool[np.ndarray, "T N H W"], position: Float[np.ndarray, "T N 3"], dt: float, slow: float = 0.01
) -> Bool[np.ndarray, "T H W"]:
    """Pixels of the objects that are moving: whose centre goes faster than `slow` (m/s) in the step that led to the
    frame.

    The first frame shows no motion, as in Physics-IQ. Blind to turning in place. Objects that were not seen (NaN) do
    not move.
    """
    mask, position = np.asarray(mask, bool), np.asarray(position, np.float64)
    if mask.ndim != 4 or position.shape != (*mask.shape[:2], 3):
        raise EvaluationError(f"masks (T, N, H, W) and positions (T, N, 3) are needed: {mask.shape}, {position.shape}")
    moving = np.zeros(mask.shape[:2], bool)
    moving[1:] = np.linalg.norm(np.diff(position, axis=0), axis=-1) / dt > slow  # NaN is not more
    return (mask & moving[..., None, None]).any(1)


def spatial_iou(truth: Bool[np.ndarray, "T H W"], mask: Bool[np.ndarray, "T H W"]) -> float:
    """*Where* did anything move: IoU of the two masks' unions over time. [0, 1], 1 is best, NaN where both are empty.

    Physics-IQ's spatial IoU. Blind to when, in which order and how often.
    """
    truth, mask = _masks(truth, mask)
    return _ratio(_sum(truth.any(0) & mask.any(0)), _sum(truth.any(0) | mask.any(0)))


def spatiotemporal_iou(truth: Bool[np.ndarray, "T H W"], mask: Bool[np.ndarray, "T H W"]) -> Figure:
    """*Where and when*: mean IoU of the frames. [0, 1], 1 is best; `count` frames were compared.

    Physics-IQ's spatiotemporal IoU, but frames in which both masks are empty are skipped (T - count of them) where it
    counts them as 1: there a still prediction of a clip that moves in 3 of 16 frames gets 0.88.
    Falls to 0 for a small object that is right but a few pixels off.
    """
    truth, mask = _masks(truth, mask)
    union = (truth | mask).sum((1, 2))
    return Figure.mean((truth & mask).sum((1, 2))[union > 0] / union[union > 0])


def weighted_spatial_iou(truth: Bool[np.ndarray, "T H W"], mask: Bool[np.ndarray, "T H W"]) -> float:
    """*Where and how much*: sum min(W, W') / sum max(W, W'), W the masks' means over time. [0, 1], 1 is best.

    Physics-IQ's weighted spatial IoU. NaN where both masks are empty. Blind to order: a clip played backwards scores 1.
    """
    truth, mask = _masks(truth, mask)
    a, b = truth.sum(0, dtype=np.int64), mask.sum(0, dtype=np.int64)
    return _ratio(_sum(np.minimum(a, b)), _sum(np.maximum(a, b)))


def area_ratio(truth: Bool[np.ndarray, "T H W"], mask: Bool[np.ndarray, "T H W"]) -> float:
    """Pixels that the prediction moves over those that really move, all frames together. [0, inf), 1 is best, NaN where
    none move.

    Read beside the IoUs: it tells too much motion from too little. Blind to where.
    """
    truth, mask = _masks(truth, mask)
    return _ratio(_sum(mask), _sum(truth))


@dataclass(frozen=True)
class PhysicsIQ:
    """Physics-IQ's four figures of one clip. mse: mean over frames, of images in [0, 1]. skipped: frames in which
    nothing moved in either.
    """

    spatial: float
    spatiotemporal: float
    weighted: float
    mse: float
    area_ratio: float
    skipped: int


def physics_iq(
    truth: Bool[np.ndarray, "T H W"],
    mask: Bool[np.ndarray, "T H W"],
    truth_frames: Float[np.ndarray, "T 3 H W"],
    frames: Float[np.ndarray, "T 3 H W"],
) -> PhysicsIQ:
    """The figures of one clip against what happened, or of one real take against another (the ceiling).

    truth_frames, frames: in [0, 1], or uint8.   Raises EvaluationError for shapes that disagree, and for no frames.
    """
    when, images = spatiotemporal_iou(truth, mask), [np.asarray(x) for x in (truth_frames, frames)]
    if images[0].shape != images[1].shape or len(images[0]) != len(np.asarray(truth)):
        raise EvaluationError(f"one image a mask is needed: {images[0].shape}, {images[1].shape}")
    a, b = (x / 255 if x.dtype == np.uint8 else x.astype(np.float64) for x in images)
    return PhysicsIQ(
        spatial=spatial_iou(truth, mask),
        spatiotemporal=when.value,
        weighted=weighted_spatial_iou(truth, mask),
        mse=float(np.square(a - b).mean()),
        area_ratio=area_ratio(truth, mask),
        skipped=len(a) - when.count,
    )


def physics_iq_score(clips: Sequence[PhysicsIQ], ceiling: Sequence[PhysicsIQ]) -> tuple[float, dict[str, float]]:
    """(score, ratios): the three IoUs over those of real take against real take, and Physics-IQ's score in [0, 100],
    higher is better.

    score = 100 clip(mean of the ratios - (MSE - MSE*), 0, 1), * the ceiling. Everything is averaged over the data set,
    clips in which nothing moved left out, before it is divided. A ratio above 1 is possible, where takes differ more
    than the prediction.
    ceiling: from replays with other friction, mass and place (`PhysicsConfig.jitter`); how much is a choice, so name
    it. Raises EvaluationError where the takes agree nowhere, or either side has no clip in which anything moved.
    """
    ratios = {}
    for name in ("spatial", "spatiotemporal", "weighted"):
        top, bottom = (np.array([getattr(c, name) for c in side], np.float64) for side in (clips, ceiling))
        if not np.isfinite(top).any() or not np.isfinite(bottom).any():
            raise EvaluationError(f"{name} IoU is undefined: nothing moves in any clip, or in any of the ceiling's")
        if np.nanmean(bottom) == 0:
            raise EvaluationError(f"{name} IoU of the ceiling is 0: its takes have nothing in common; use less jitter")
        ratios[name] = float(np.nanmean(top) / np.nanmean(bottom))
    worse = np.mean([c.mse for c in clips]) - np.mean([c.mse for c in ceiling])
    return float(100 * np.clip(np.mean(list(ratios.values())) - worse, 0, 1)), ratios


def ade(truth: Float[np.ndarray, "T d"], path: Float[np.ndarray, "T d"]) -> float:
    """Average displacement error: mean distance at equal times, in the paths' unit (metres). 0 is best.

    A right path that is late by a constant time is charged for the whole of it.
    """
    truth, path = _paths(truth, path, equal=True)
    return float(np.linalg.norm(truth - path, axis=1).mean())


def fde(truth: Float[np.ndarray, "T d"], path: Float[np.ndarray, "T d"]) -> float:
    """Final displacement error: distance at the last frame, in the paths' unit. 0 is best. Blind to the way there."""
    truth, path = _paths(truth, path, equal=True)
    return float(np.linalg.norm(truth[-1] - path[-1]))


def discrete_frechet(truth: Float[np.ndarray, "T d"], path: Float[np.ndarray, "S d"]) -> float:
    """Discrete Frechet distance (Eiter and Mannila 1994): the shortest leash on which both paths can be walked, never
    going back.

    In the paths' unit; 0 is best. One outlier decides. Blind to speed, not to order.
    """
    return float(_walk(cdist(*_paths(truth, path)), max))


def hausdorff(truth: Float[np.ndarray, "T d"], path: Float[np.ndarray, "S d"]) -> float:
    """Symmetric Hausdorff distance: the farthest that any point of either is from the other path. In the paths' unit; 0
    is best.

    One outlier decides. Blind to order: a path walked backwards has 0.
    """
    distance = cdist(*_paths(truth, path))
    return float(max(distance.min(0).max(), distance.min(1).max()))


def ndtw(truth: Float[np.ndarray, "T d"], path: Float[np.ndarray, "S d"], threshold: float = 0.02) -> float:
    """exp(-DTW(R, Q) / (|R| d_th)), R the truth (Ilharco et al. 2019, arXiv 1907.05446). (0, 1], 1 is best.

    threshold: d_th, the distance that counts as near, in the paths' unit (2 cm). Exact dynamic time warping, Euclidean
    cost. Blind to speed. Values of different thresholds do not compare.
    """
    truth, path = _paths(truth, path)
    return math.exp(-_walk(cdist(truth, path), lambda a, b: a + b) / (len(truth) * threshold))


def speed_w1(truth: Float[np.ndarray, "T d"], path: Float[np.ndarray, "S d"]) -> float:
    """Wasserstein-1 distance of the two distributions of speed, over the true mean speed. [0, inf), 0 is best, no unit.

    Frames are one step apart in both. Blind to place, direction and order. 0 where neither moves, NaN where the truth
    alone is still.
    """
    truth, path = _paths(truth, path)
    if min(len(truth), len(path)) < 2:
        raise EvaluationError("speeds need two frames")
    a, b = (np.linalg.norm(np.diff(x, axis=0), axis=1) for x in (truth, path))
    gap = float(wasserstein_distance(a, b))
    return 0.0 if gap == 0 else _ratio(gap, float(a.mean()))


def _walk(cost: np.ndarray, join: Callable[[float, float], float]) -> float:
    """The best way through `cost` from corner to corner by steps of one, its costs joined by `join`."""
    last = [math.inf] * (cost.shape[1] + 1)
    last[0] = join(0.0, 0.0)
    for row in cost.tolist():
        now = [math.inf]
        for j, c in enumerate(row):
            now.append(join(c, min(last[j], last[j + 1], now[j])))
        last = now
    return last[-1]


def _ratio(top: float, bottom: float) -> float:
    return top / bottom if bottom else math.nan


def _sum(x: np.ndarray) -> float:
    return float(x.sum())


def _masks(truth: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    truth, mask = np.asarray(truth), np.asarray(mask)
    if truth.dtype != bool or mask.dtype != bool or truth.ndim != 3 or truth.shape != mask.shape or not len(truth):
        raise EvaluationError(
            "need two bool masks (T, H, W) of one shape, T at least 1; "
            f"found {truth.dtype}{truth.shape}, {mask.dtype}{mask.shape}"
        )
    return truth, mask


def _paths(truth: np.ndarray, path: np.ndarray, equal: bool = False) -> tuple[np.ndarray, np.ndarray]:
    truth, path = np.asarray(truth, np.float64), np.asarray(path, np.float64)
    if truth.ndim != 2 or path.ndim != 2 or truth.shape[1] != path.shape[1] or not len(truth) or not len(path):
        raise EvaluationError(f"paths are (T, d) with at least one frame and one d; found {truth.shape}, {path.shape}")
    if equal and len(truth) != len(path):
        raise EvaluationError(f"paths compared at equal times need one length; found {len(truth)} and {len(path)}")
    if not (np.isfinite(truth).all() and np.isfinite(path).all()):
        raise EvaluationError("a path has frames that are not finite: leave out those at which nothing was seen")
    return truth, path
