"""Distances between sets of clips: closed forms, unbiasedness, and what honest distances must say of known models."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from wamkit.eval.metrics.video_distribution import (
    ClipFeatures,
    frechet_distance,
    gaussian_frechet,
    polynomial_mmd,
)
from wamkit.types import EvaluationError


def features(values: np.ndarray, clips_an_episode: int = 1, first: int = 0, encoder: str = "test@1") -> ClipFeatures:
    return ClipFeatures(encoder, values, first + np.arange(len(values)) // clips_an_episode)


def gaussian(seed: int, n: int = 60, d: int = 8, shift: float = 0.0, first: int = 0) -> ClipFeatures:
    return features(shift + np.random.default_rng(seed).normal(size=(n, d)), first=first)


OTHER = 10_000  # episodes from here on are none of the real ones


def test_mmd_is_the_u_statistic():
    x, y = gaussian(0, n=12), gaussian(1, n=12, first=OTHER)
    off = ~np.eye(12, dtype=bool)
    kxx, kyy, kxy = ((a.values @ b.values.T / 8 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    expected = kxx[off].mean() + kyy[off].mean() - 2 * kxy.mean()
    result = polynomial_mmd(x, y, seed=0, draws=50)
    assert result.value.value == pytest.approx(expected)
    assert (result.clips, result.episodes, result.name) == (12, 24, "mmd@test@1")


def test_mmd_does_not_pair_clips_of_one_episode():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 4)), rng.normal(size=(8, 4))
    episode = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    apart = episode[:, None] != episode[None]
    means = [((a @ b.T / 4 + 1) ** 3)[apart].mean() for a, b in ((x, x), (y, y), (x, y))]
    result = polynomial_mmd(ClipFeatures("e", x, episode), ClipFeatures("e", y, episode), seed=0, draws=50)
    assert result.value.value == pytest.approx(means[0] + means[1] - 2 * means[2])


def test_mmd_is_unbiased_at_few_clips_though_they_come_in_episodes():
    """Twelve clips of four episodes a side: the mean over repeats is 0 between equals, and the closed form for a
    shift."""
    rng = np.random.default_rng(0)

    def draw(shift: float, first: int) -> ClipFeatures:
        values = rng.normal(size=(4, 1, 3)).repeat(3, 1) * 0.8 + 0.6 * rng.normal(size=(4, 3, 3)) + shift
        return features(values.reshape(12, 3), clips_an_episode=3, first=first)

    def mean_kernel(m: np.ndarray, n: np.ndarray) -> float:  # E (x.y / 3 + 1)^3 for x ~ N(m, I), y ~ N(n, I)
        dot, second = m @ n, 3 + m @ m + n @ n + (m @ n) ** 2
        third = dot**3 + 3 * dot * (m @ m + n @ n + 3) + 6 * dot
        return third / 27 + second / 3 + dot + 1

    zero = np.zeros(3)
    for shift in (0.0, 0.5):
        moved = np.full(3, shift)
        truth = mean_kernel(zero, zero) + mean_kernel(moved, moved) - 2 * mean_kernel(zero, moved)
        values = [polynomial_mmd(draw(0, 0), draw(shift, OTHER), seed=0, draws=2).value.value for _ in range(1500)]
        error = np.std(values) / np.sqrt(len(values))
        assert np.mean(values) == pytest.approx(truth, abs=3.5 * error), (shift, np.mean(values), truth, error)
    assert truth > 0.3


def test_intervals_cover_zero_between_equals_and_not_otherwise():
    covered, floors, seen = 0, 0, 0
    for trial in range(60):
        real = gaussian(3 * trial, n=40)
        same = polynomial_mmd(real, gaussian(3 * trial + 1, n=40, first=OTHER), seed=trial, draws=150)
        moved = polynomial_mmd(real, gaussian(3 * trial + 2, n=40, shift=0.5, first=OTHER), seed=trial, draws=150)
        covered += not same.value.excludes(0)
        floors += not same.floor.excludes(0)
        seen += moved.value.low > 0
    assert covered >= 56 and floors >= 56 and seen >= 50, (covered, floors, seen)


def test_a_model_that_copies_reality_is_perfect():
    real = features(np.random.default_rng(0).normal(size=(60, 6)), clips_an_episode=3)
    mmd, frechet = polynomial_mmd(real, real, seed=0, draws=100), frechet_distance(real, real, seed=0)
    assert mmd.value.value == pytest.approx(0, abs=1e-12) and not mmd.floor.excludes(0)
    assert frechet.excess == pytest.approx(0, abs=1e-9) and frechet.floor > 0


def test_worse_clips_are_farther():
    real, noise = gaussian(0, n=80), np.random.default_rng(1).normal(size=(80, 8))
    fresh = gaussian(2, n=80).values
    sides = [features(fresh + s * noise, first=OTHER) for s in (0.0, 0.5, 1.0, 2.0)]
    for values in (
        [polynomial_mmd(real, y, seed=0, draws=2).value.value for y in sides],
        [frechet_distance(real, y, seed=0).excess for y in sides],
    ):
        assert values == sorted(values) and abs(values[0]) < 0.2 * values[-1], values


def test_too_little_variety_is_seen():
    rng = np.random.default_rng(0)
    real = gaussian(0, n=80)
    collapsed = features(np.repeat(rng.normal(size=(2, 8)), 40, 0) + 0.01 * rng.normal(size=(80, 8)), first=OTHER)
    assert polynomial_mmd(real, collapsed, seed=0, draws=300).value.low > 0
    assert frechet_distance(real, collapsed, seed=0).excess > 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(8, 30))
def test_frechet_is_the_formula_with_a_matrix_square_root(seed, d, n):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)), 1 + rng.normal(size=(n + 3, d))
    a, b = np.atleast_2d(np.cov(x.T)), np.atleast_2d(np.cov(y.T))
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert gaussian_frechet(x, y) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert gaussian_frechet(x, y) == pytest.approx(gaussian_frechet(y, x))
    assert gaussian_frechet(x, x) == pytest.approx(0, abs=1e-9)


def test_frechet_closed_forms():
    x = np.random.default_rng(0).normal(size=(20, 50))  # fewer vectors than dimensions: both covariances are singular
    assert gaussian_frechet(x, x + 2) == pytest.approx(4 * 50)
    spread = np.trace(np.cov(x.T))
    assert gaussian_frechet(x, 3 * x) == pytest.approx(4 * np.square(x.mean(0)).sum() + 4 * spread)
    for bad in (x[:1], x[:, :3]):
        with pytest.raises(EvaluationError, match="one dimension"):
            gaussian_frechet(x, bad)


def test_floor_shows_the_sample_bias_of_frechet():
    """Two samples of one law: the value is far from 0 and falls with N, the floor falls with it, the excess stays near
    0.
    """
    results = [
        frechet_distance(gaussian(0, n=n, d=32), gaussian(1, n=n, d=32, first=OTHER), seed=0, splits=4)
        for n in (128, 512, 2048)
    ]
    values, floors = [r.value for r in results], [r.floor for r in results]
    assert values == sorted(values, reverse=True) and floors == sorted(floors, reverse=True)
    assert results[0].clips == 64 and values[0] == pytest.approx(32**2 / (2 * 64), rel=0.35)
    assert all(abs(r.excess) < 0.12 * r.value for r in results)


def test_projection_lowers_the_bias_and_is_the_same_for_all():
    real, same = gaussian(0, n=128, d=200), gaussian(1, n=128, d=200, first=OTHER)
    whole, projected = (frechet_distance(real, same, seed=0, dims=d) for d in (None, 32))
    assert (whole.dims, projected.dims) == (200, 32) and projected.floor < 0.3 * whole.floor
    assert projected.name == "frechet32@test@1" and projected == frechet_distance(real, same, seed=0)
    assert projected.spread > 0


def test_unequal_numbers_are_cut_by_the_seed():
    real, imagined = gaussian(0, n=60), gaussian(1, n=30, first=OTHER)
    first, again, other = (polynomial_mmd(real, imagined, seed=s, draws=50) for s in (0, 0, 1))
    assert first == again and first.value != other.value and first.clips == 30
    assert frechet_distance(real, imagined, seed=0).clips == 30


def test_clip_features_pool_what_is_seen_and_what_changes():
    clips = torch.randint(0, 256, (3, 4, 2, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    encode = lambda frames: frames.float().mean((-1, -2)).flatten(1)  # noqa: E731
    out = ClipFeatures.encode(clips, encode, "channel means@1", np.array([0, 0, 1]), batch=5)
    z = clips.double().mean((-1, -2)).flatten(2).numpy()
    assert out.values.shape == (3, 12) and out.encoder == "channel means@1" and len(out) == 3
    assert out.values[:, :6] == pytest.approx(z.mean(1), rel=1e-5)
    assert out.values[:, 6:] == pytest.approx(np.abs(np.diff(z, axis=1)).mean(1), rel=1e-4)
    still = ClipFeatures.encode(clips[:, :1].expand_as(clips), encode, "channel means@1", np.arange(3))
    assert (still.values[:, 6:] == 0).all()
    for bad, message in [(clips[:, :1], "F >= 2"), (clips[:0], "at least one"), (clips[0, 0], "F >= 2")]:
        with pytest.raises(EvaluationError, match=message):
            ClipFeatures.encode(bad, encode, "e", np.arange(3))
    with pytest.raises(EvaluationError, match="need \\(frames, K\\)"):
        ClipFeatures.encode(clips, lambda frames: frames.float(), "e", np.arange(3))


def test_sets_that_do_not_compare():
    real, imagined = gaussian(0, n=20), gaussian(1, n=20, first=OTHER)
    one_episode = ClipFeatures("test@1", real.values, np.zeros(20, int))
    shared = ClipFeatures("test@1", imagined.values[:4], np.array([0, 0, 1, 1]))
    for call in (polynomial_mmd, frechet_distance):
        for a, b, message in [
            (real, features(imagined.values, encoder="test@2"), "same weights"),
            (real, features(imagined.values[:, :3]), "same weights"),
            (real.take(np.arange(3)), imagined, "3 real and 20 imagined"),
            (real, one_episode, "20 real and 1 imagined"),
        ]:
            with pytest.raises(EvaluationError, match=message):
                call(a, b, seed=0)
    with pytest.raises(EvaluationError, match="fewer than two clips a side"):
        frechet_distance(real.take(np.array([0, 1, 2, 3])), shared, seed=0, splits=30)
    for values, episode, encoder, message in [
        (real.values, real.episode, "", "name the encoder"),
        (real.values, real.episode[1:], "e", "N episodes"),
        (real.values[:0], real.episode[:0], "e", "at least one"),
        (np.full((2, 2), np.nan), np.arange(2), "e", "not finite"),
    ]:
        with pytest.raises(EvaluationError, match=message):
            ClipFeatures(encoder, values, episode)
    with pytest.raises(EvaluationError, match="splits >= 2"):
        frechet_distance(real, imagined, seed=0, splits=1)
