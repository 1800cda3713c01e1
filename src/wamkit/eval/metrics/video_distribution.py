"""Distances between the distributions of imagined and of real clips, each beside its floor.

A distance between samples is only as good as the features and means nothing without what it reads between two samples
of real clips. So every result here carries the encoder's name and a real-against-real floor. The names FID, FVD and KID
belong to particular weights (Inception, I3D) and are not used: a figure is called, say, `mmd@<encoder>`, and figures of
different encoders never compare.

Clips of one episode are alike, and so are a real clip and the one imagined from the same start. Counting such pairs
would bias either distance, so episodes carry one identity on both sides, and only pairs of different episodes are
compared.

Blind spots of all: whatever the encoder does not see; the order of frames, but for the pooled differences; and whether
a clip fits its own start or actions, since clips are never compared with their own truth (that is `metrics.image`). A
model that replays its training set scores perfectly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Integer, Shaped
from torch import Tensor

from wamkit.eval.metrics.intervals import percentile_interval, resample_counts
from wamkit.types import EvaluationError, Interval

PROJECTION_SEED = 0  # one projection for everyone: figures in another one would not compare


@dataclass(frozen=True)
class ClipFeatures:
    """Feature vectors of N clips by a named encoder.

    encoder: name and version of its weights, such as "<family>@<sha of the checkpoint>".   values: (N, D), finite.
    episode: (N,), which episode each clip is from; one numbering for real and imagined clips (see the module).
    Raises EvaluationError for an empty name, unequal lengths, no clips, or values that are not finite.
    """

    encoder: str
    values: Float[np.ndarray, "N D"]
    episode: Integer[np.ndarray, " N"]

    def __post_init__(self) -> None:
        if not self.encoder:
            raise EvaluationError("name the encoder and the version of its weights: figures of another do not compare")
        if self.values.ndim != 2 or self.values.size == 0 or self.episode.shape != self.values.shape[:1]:
            raise EvaluationError(
                f"need (N, D) features and N episodes, at least one, not {self.values.shape} and {self.episode.shape}"
            )
        if not np.isfinite(self.values).all():
            raise EvaluationError(f"{self.encoder}: features are not finite")

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: Shaped[np.ndarray, " n"]) -> ClipFeatures:
        """The clips that `rows` (indices or a mask) picks."""
        return ClipFeatures(self.encoder, self.values[rows], self.episode[rows])

    @staticmethod
    def encode(
        clips: Shaped[Tensor, "N F *V C H W"],
        frame_to_vector: Callable[[Shaped[Tensor, "m *V C H W"]], Float[Tensor, "m K"]],
        encoder: str,
        episode: Integer[np.ndarray, " N"],
        batch: int = 64,
    ) -> ClipFeatures:
        """Features of clips from any encoder of frames: per clip the mean over its frames and the mean absolute change.

        values = [mean_f z_f, mean_f |z_{f+1} - z_f|], D = 2 K: what is seen, and how much it changes from frame to
        frame. The second half tells a still clip from a moving one and does not tell which way it runs.
        frame_to_vector: up to `batch` frames, as in `clips`, to (m, K) vectors; freeze it and put it in eval mode, so
        that a frame's vector does not depend on its neighbours. Raises EvaluationError for clips of fewer than two
        frames, no clips, or vectors of another shape.
        """
        if clips.ndim < 5 or clips.shape[1] < 2 or len(clips) == 0:
            raise EvaluationError(f"need clips (N, F >= 2, [V,] C, H, W), at least one, not {tuple(clips.shape)}")
        with torch.no_grad():
            parts = [frame_to_vector(frames) for frames in clips.flatten(0, 1).split(batch)]
        if any(z.ndim != 2 for z in parts):
            raise EvaluationError(f"{encoder} gave {tuple(parts[0].shape)} for a batch of frames; need (frames, K)")
        z_NFK = torch.cat(parts).double().cpu().unflatten(0, clips.shape[:2])
        values = torch.cat([z_NFK.mean(1), z_NFK.diff(dim=1).abs().mean(1)], dim=-1)
        return ClipFeatures(encoder, values.numpy(), np.asarray(episode))


@dataclass(frozen=True)
class Discrepancy:
    """Squared MMD of imagined from real clips, and its floor: one half of the real episodes against the other.

    value, floor: with intervals over episodes; both unbiased, so either may be below 0. The model differs from real
    clips where `value.excludes(0)`; the floor says that the features and the number of clips deserve trust, and covers
    0 if they do. clips: how many a side of `value`; episodes: how many on both sides together.
    """

    encoder: str
    value: Interval
    floor: Interval
    clips: int
    episodes: int

    @property
    def name(self) -> str:
        return f"mmd@{self.encoder}"


def polynomial_mmd(
    real: ClipFeatures, imagined: ClipFeatures, seed: int, draws: int = 2000, level: float = 0.95
) -> Discrepancy:
    """Unbiased squared maximum mean discrepancy with the kernel k(x, y) = (x.y / D + 1)^3.

    MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y), x real, y imagined, means over pairs of different episodes
    (Gretton et al. 2012, Lemma 6; kernel of the Kernel Inception Distance, Binkowski et al. 2018, arXiv 1801.01401).
    0 for equal distributions at any number of clips, on average; lower is better, no upper end, in the kernel's units,
    which grow with the scale of the features. The interval resamples episodes, those on both sides together; near 0 it
    is conservative, since there the bootstrap of a U-statistic overstates the spread, by about 1.7.
    Blind spot: the cubic kernel sees the first three moments; what only differs beyond them scores 0.

    The side with more clips is cut to the other's number at random (`seed`), so that figures compare across models.
    Raises EvaluationError for different encoders or dimensions, or fewer than four real or two imagined episodes.
    """
    _comparable(real, imagined)
    rng = np.random.default_rng(seed)
    first, second = _halves(real, rng)
    floor = _mmd(*_equal_size(first, second, rng), rng, draws, level)
    x, y = _equal_size(real, imagined, rng)
    value = _mmd(x, y, rng, draws, level)
    return Discrepancy(real.encoder, value, floor, len(x), len(np.union1d(x.episode, y.episode)))


def _mmd(x: ClipFeatures, y: ClipFeatures, rng: np.random.Generator, draws: int, level: float) -> Interval:
    """Unbiased MMD^2 as a function of how often each episode was drawn.

    A kernel sum between two episodes serves every draw, and an episode drawn twice does not meet itself: its pairs
    would be of equal clips and push every draw up.
    """
    ids, member = np.unique(np.concatenate([x.episode, y.episode]), return_inverse=True)
    e, n = len(ids), len(x)
    one_hot_xE, one_hot_yE = np.eye(e)[member[:n]], np.eye(e)[member[n:]]
    counts_NE = resample_counts(rng, draws, e)
    weights_NE = np.concatenate([np.ones((1, e)), counts_NE])  # the first row is the figure itself
    values = np.zeros(len(weights_NE))
    for a, b, a_xE, b_yE, sign in (
        (x, x, one_hot_xE, one_hot_xE, 1),
        (y, y, one_hot_yE, one_hot_yE, 1),
        (x, y, one_hot_xE, one_hot_yE, -2),
    ):
        kernel = (a.values.astype(np.float64) @ b.values.astype(np.float64).T / a.values.shape[1] + 1) ** 3
        sums_EE, pairs_EE = a_xE.T @ kernel @ b_yE, np.outer(a_xE.sum(0), b_yE.sum(0))
        for table in (sums_EE, pairs_EE):
            np.fill_diagonal(table, 0.0)
        total, pairs = (((weights_NE @ t) * weights_NE).sum(1) for t in (sums_EE, pairs_EE))
        values += sign * np.divide(total, pairs, out=np.full(len(total), np.nan), where=pairs > 0)
    if math.isnan(values[0]):
        raise EvaluationError("no two clips of different episodes are left on one of the sides; give more episodes")
    return percentile_interval(float(values[0]), values[1:], e, level)


@dataclass(frozen=True)
class FrechetDistance:
    """Fréchet distance of imagined from real clips, and its floor: the distance between two halves of real clips.

    value, floor: means over random splits into halves, both with `clips` a side, so that both carry the same sample
    bias; only their difference or ratio means something.   spread: standard deviation over splits of value - floor: how
    much hangs on the split, not a confidence interval.   dims: of the features compared, after the projection.
    """

    encoder: str
    value: float
    floor: float
    spread: float
    clips: int
    dims: int

    @property
    def excess(self) -> float:
        """value - floor: about 0 for a perfect model, may be negative, lower is better."""
        return self.value - self.floor

    @property
    def name(self) -> str:
        return f"frechet{self.dims}@{self.encoder}"


def frechet_distance(
    real: ClipFeatures, imagined: ClipFeatures, seed: int, dims: int | None = 32, splits: int = 10
) -> FrechetDistance:
    """|mu1 - mu2|^2 + Tr(S1 + S2 - 2 (S1 S2)^1/2): squared Wasserstein-2 distance of Gaussians with the sets' moments.

    Source: Heusel et al. 2017 (arXiv 1706.08500), Fréchet 1957. At least 0, lower is better, in squared units of the
    features. It is biased upwards, by about D^2 / 2N for D features of variance 1, more than the differences in
    question (400 dimensions and 256 clips read 300 where the truth is 0), hence the floor, and hence `dims`: features
    of more dimensions are projected on so many fixed orthonormal directions (None: not at all). Blind spots: only the
    first two moments count, and only in the projection. Prefer `polynomial_mmd`.

    Each split compares half A of the real episodes with half B (floor), and with imagined clips of episodes not in A
    (value), equally many. Raises EvaluationError for different encoders or dimensions, fewer than four real episodes,
    or too few clips for two a side.
    """
    _comparable(real, imagined)
    if splits < 2 or (dims is not None and dims < 1):
        raise EvaluationError(f"need splits >= 2 and dims >= 1, not {splits} and {dims}")
    projection = _projection(real.values.shape[1], dims)
    rng, distances, clips = np.random.default_rng(seed), np.empty((splits, 2)), math.inf
    for split in range(splits):
        first, second = _halves(real, rng)
        other = np.flatnonzero(~np.isin(imagined.episode, first.episode))
        n = min(len(first), len(second), len(other))
        if n < 2:
            raise EvaluationError("fewer than two clips a side are left for the Fréchet distance; give more episodes")
        a, b, c = (s.values[rng.permutation(len(s))[:n]] @ projection for s in (first, second, imagined.take(other)))
        distances[split], clips = (gaussian_frechet(a, c), gaussian_frechet(a, b)), min(clips, n)
    value, floor = distances.mean(0)
    spread = float((distances[:, 0] - distances[:, 1]).std(ddof=1))
    return FrechetDistance(real.encoder, float(value), float(floor), spread, int(clips), projection.shape[1])


def gaussian_frechet(x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "M D"]) -> float:
    """The bare formula on two sets of vectors, sample covariances with N - 1. The caller adds a floor.

    With S1 = A'A and S2 = B'B, the eigenvalues of S1 S2 are the squared singular values of A B', so Tr (S1 S2)^1/2 is
    their sum: no matrix square root, no negative eigenvalue, and rank-deficient covariances (N <= D) are exact.
    Raises EvaluationError for fewer than two vectors or unequal dimensions.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise EvaluationError(f"need two sets of two or more vectors of one dimension, not {x.shape} and {y.shape}")
    x, y = x.astype(np.float64), y.astype(np.float64)
    a, b = (np.linalg.qr((z - z.mean(0)) / math.sqrt(len(z) - 1), mode="r") for z in (x, y))
    shift = np.square(x.mean(0) - y.mean(0)).sum()
    trace = np.square(a).sum() + np.square(b).sum() - 2 * np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(shift + max(trace, 0.0))  # rounding can leave -1e-15 where the covariances are equal


def _projection(size: int, dims: int | None) -> Float64[np.ndarray, "D d"]:
    if dims is None or dims >= size:
        return np.eye(size)
    return np.linalg.qr(np.random.default_rng(PROJECTION_SEED).normal(size=(size, dims)))[0]


def _comparable(real: ClipFeatures, imagined: ClipFeatures) -> None:
    if real.encoder != imagined.encoder or real.values.shape[1] != imagined.values.shape[1]:
        raise EvaluationError(
            f"features of {real.encoder} ({real.values.shape[1]}) and of {imagined.encoder} "
            f"({imagined.values.shape[1]}) do not compare; encode both sides with the same weights"
        )
    counts = len(np.unique(real.episode)), len(np.unique(imagined.episode))
    if counts[0] < 4 or counts[1] < 2:
        raise EvaluationError(
            f"{counts[0]} real and {counts[1]} imagined episodes; need 4 real ones, for a floor from two halves, and 2"
        )


def _halves(features: ClipFeatures, rng: np.random.Generator) -> tuple[ClipFeatures, ClipFeatures]:
    """The clips of a random half of the episodes, and of the rest."""
    ids = np.unique(features.episode)
    first = np.isin(features.episode, rng.permutation(ids)[: len(ids) // 2])
    return features.take(first), features.take(~first)


def _equal_size(a: ClipFeatures, b: ClipFeatures, rng: np.random.Generator) -> tuple[ClipFeatures, ClipFeatures]:
    n = min(len(a), len(b))
    x, y = (f if len(f) == n else f.take(np.sort(rng.permutation(len(f))[:n])) for f in (a, b))
    return x, y
