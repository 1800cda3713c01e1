"""Picture metrics against scikit-image, and rankings that an honest metric must produce."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from wamkit.eval.metrics.image import (
    Fidelity,
    edge_strength,
    fidelity,
    masked_error,
    masked_psnr,
    moving_errors,
    moving_mask,
    mse,
    psnr,
    ssim,
    unit,
)
from wamkit.eval.metrics.intervals import paired_ratio
from wamkit.types import EvaluationError

EPISODE = np.arange(6) // 2


def square(*corners: tuple[int, int], size: int = 32, side: int = 8) -> torch.Tensor:
    """uint8 (N, 3, size, size): a bright square per corner on a fixed textured ground."""
    ground = torch.randint(60, 120, (3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    frames = ground.repeat(len(corners), 1, 1, 1)
    for frame, (y, x) in zip(frames, corners, strict=True):
        frame[:, y : y + side, x : x + side] = 230
    return frames


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """Current (6, 3, 32, 32) and truth (6, 2, 3, 32, 32): the square moves by 4, then by 8 pixels."""
    current = square(*[(2 + 2 * b, 2) for b in range(6)])
    truth = torch.stack([square(*[(2 + 2 * b, 2 + d) for b in range(6)]) for d in (4, 8)], dim=1)
    return current, truth


def noisy(frames: torch.Tensor, sigma: float, seed: int = 0) -> torch.Tensor:
    return (unit(frames) + sigma * torch.randn(frames.shape, generator=torch.Generator().manual_seed(seed))).clamp(0, 1)


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 24, 40), (3, 11, 11)])
def test_psnr_and_ssim_equal_scikit_image(shape):
    truth = torch.rand(5, *shape, generator=torch.Generator().manual_seed(1))
    image = noisy(truth, 0.15)
    for value, similarity, x, y in zip(
        psnr(truth, image), ssim(truth, image), truth.numpy(), image.numpy(), strict=True
    ):
        assert float(value) == pytest.approx(peak_signal_noise_ratio(x, y, data_range=1), abs=1e-4)
        options = {
            "gaussian_weights": True,
            "sigma": 1.5,
            "use_sample_covariance": False,
            "data_range": 1,
            "channel_axis": 0,
        }
        # float64: in float32 scikit-image itself is only good to about 1e-6
        assert float(similarity) == pytest.approx(
            structural_similarity(x.astype(float), y.astype(float), **options), abs=2e-6
        )


def test_known_answers():
    black, grey = torch.zeros(2, 3, 16, 16), torch.full((2, 3, 16, 16), 0.1)
    assert psnr(black, grey).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)
    assert mse(black[0], grey[0]).item() == pytest.approx(0.01)
    assert ssim(black, grey).tolist() == pytest.approx([1e-4 / (0.01 + 1e-4)] * 2, rel=1e-4)
    assert psnr(grey, grey).tolist() == [math.inf, math.inf]
    assert ssim(grey[0], grey[0]).item() == pytest.approx(1.0)
    assert ssim(torch.rand(2, 70, 3, 16, 16), torch.rand(2, 70, 3, 16, 16)).shape == (2, 70)  # more than one slice


def test_worse_images_score_worse():
    _, truth = scene()
    levels = [noisy(truth, s) for s in (0.0, 0.02, 0.05, 0.1, 0.2)]
    for metric in (psnr, ssim):
        scores = [metric(truth, x).mean().item() for x in levels]
        assert scores == sorted(scores, reverse=True)


def test_uint8_and_float_agree():
    current, truth = scene()
    image = noisy(truth, 0.05).mul(255).round().to(torch.uint8)
    assert torch.equal(psnr(truth, image), psnr(truth.float() / 255, image.float() / 255))
    a, b = fidelity(current, truth, image, (4, 8)), fidelity(current.float() / 255, truth, image.float() / 255, (4, 8))
    assert np.array_equal(a.mse, b.mse) and np.array_equal(a.moving_count, b.moving_count)


def test_mask_is_the_union_of_truth_and_every_prediction():
    current, truth, elsewhere = square((2, 2)), square((2, 14))[None], square((20, 2))[None]
    mask = moving_mask(current, truth, elsewhere)
    assert torch.equal(mask, moving_mask(current, truth) | moving_mask(current, elsewhere))
    assert mask.shape == (1, 1, 32, 32) and mask.sum() == 3 * 8 * 8
    assert not moving_mask(current, current[None]).any()
    assert not moving_mask(current, (current[None].int() + 10).to(torch.uint8)).any()  # the threshold itself is still
    assert moving_mask(current, (current[None].int() + 11).to(torch.uint8)).all()


def test_masked_error_counts_masked_pixels_only():
    truth, image = torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 16, 16)
    image[:, :, :4, :4] = 0.5
    mask = torch.zeros(2, 16, 16, dtype=torch.bool)
    mask[0, :4, :8] = True
    assert masked_error(truth, image, mask).tolist() == pytest.approx([16 * 0.25, 0.0])
    assert masked_psnr(truth, image, mask)[0].item() == pytest.approx(-10 * math.log10(0.125))
    assert masked_psnr(truth, image, mask)[1].isnan()


def test_sharpness_falls_with_blur_and_ignores_what_stands_still():
    current, truth = scene()
    kernel = torch.tensor([1.0, 2.0, 1.0])
    kernel = (kernel[:, None] * kernel / 16).expand(3, 1, 3, 3)
    blurred, values = truth.float() / 255, []
    for _ in range(4):
        values.append(fidelity(current, truth, blurred.clamp(0, 1), (4, 8)).score(8, EPISODE, seed=0).sharpness.value)
        blurred = torch.nn.functional.conv2d(blurred.flatten(0, 1), kernel, padding=1, groups=3).view_as(blurred)
    assert values[0] == pytest.approx(1.0, abs=1e-6) and values == sorted(values, reverse=True) and values[-1] < 0.8
    step, mask = torch.zeros(3, 8, 8), torch.ones(8, 8, dtype=torch.bool)
    step[:, :, 4:] = 0.5
    assert edge_strength(step, mask).item() == pytest.approx(7 * 3 * 0.5)
    assert edge_strength(step, ~mask).item() == 0


def test_perfect_copy_and_deleted_object():
    current, truth = scene()
    perfect = fidelity(current, truth, truth, (4, 8)).score(4, EPISODE, seed=0)
    assert perfect.skill.value == 1.0 and perfect.psnr == math.inf and perfect.ssim == pytest.approx(1.0)
    assert perfect.moving_gain.value == math.inf and (perfect.windows, perfect.episodes) == (6, 3)
    copy = fidelity(current, truth, current[:, None].expand_as(truth), (4, 8)).score(8, EPISODE, seed=0)
    assert (copy.skill.value, copy.moving_gain.value) == (0.0, 0.0) and copy.psnr == copy.psnr_copy
    ground = square((40, 40)).expand(6, 2, 3, 32, 32)
    deleted = fidelity(current, truth, ground, (4, 8)).score(8, EPISODE, seed=0)
    late = fidelity(
        current, truth, square(*[(2 + 2 * b, 9) for b in range(6)])[:, None].expand_as(truth), (4, 8)
    ).score(8, EPISODE, seed=0)
    assert (
        late.skill.value > deleted.skill.value > 0
    )  # why skill alone never tells the story: no object beats a copied one
    assert late.moving_share < deleted.moving_share + 0.05


def test_skill_is_pooled_and_its_interval_brackets_it():
    current, truth = scene()
    imagined = noisy(truth, 0.03)
    imagined[0, 0] = 0.5
    result = fidelity(current, truth, imagined, (4, 8))
    score = result.score(4, EPISODE, seed=0)
    assert score.skill.value == pytest.approx(1 - result.mse[:, 0].sum() / result.mse_copy[:, 0].sum())
    assert score.skill.low <= score.skill.value <= score.skill.high
    assert score.moving_gain.low <= score.moving_gain.value <= score.moving_gain.high
    assert score.moving_gain.value == pytest.approx(score.moving_psnr - score.moving_psnr_copy)
    assert score.psnr == pytest.approx(-10 * math.log10(result.mse[:, 0].mean()))
    assert score == result.score(4, EPISODE, seed=0)


def test_invalid_frames_do_not_count():
    current, truth = scene()
    imagined, valid = noisy(truth, 0.05), torch.ones(6, 2, dtype=torch.bool)
    valid[4:, 1] = False
    spoiled_truth, spoiled = truth.clone(), imagined.clone()
    spoiled_truth[4:, 1], spoiled[4:, 1] = 255, 0
    result = fidelity(current, spoiled_truth, spoiled, (4, 8), valid)
    clean = fidelity(current[:4], truth[:4], imagined[:4], (4, 8))
    assert result.score(8, EPISODE, seed=0) == clean.score(8, EPISODE[:4], seed=0)
    assert np.isnan(result.mse[4:, 1]).all() and result.moving_count[4:, 1].sum() == 0
    with pytest.raises(EvaluationError, match="no valid window"):
        fidelity(current, truth, imagined, (4, 8), torch.zeros(6, 2, dtype=torch.bool)).score(4, EPISODE, seed=0)


def test_still_scene_has_no_skill():
    current, _ = scene()
    still = current[:, None]
    score = fidelity(current, still, still, (4,)).score(4, EPISODE, seed=0)
    assert score.skill.undefined and score.moving_gain.undefined and score.moving_share == 0


def test_batches_join_and_views_pool():
    current, truth = scene()
    imagined = noisy(truth, 0.05)
    whole = fidelity(current, truth, imagined, (4, 8))
    joined = Fidelity.join([fidelity(current[s], truth[s], imagined[s], (4, 8)) for s in (slice(0, 4), slice(4, 6))])
    assert joined.score(8, EPISODE, seed=0).skill.value == pytest.approx(whole.score(8, EPISODE, seed=0).skill.value)
    views = fidelity(
        *(x.unsqueeze(-4).repeat(*[1] * (x.ndim - 3), 2, 1, 1, 1) for x in (current, truth, imagined)), (4, 8)
    )
    assert np.allclose(views.mse, whole.mse) and np.allclose(views.ssim, whole.ssim)
    assert np.allclose(views.moving_count, 2 * whole.moving_count) and views.pixels == 2 * whole.pixels
    assert views.score(4, EPISODE, seed=0).moving_psnr == pytest.approx(whole.score(4, EPISODE, seed=0).moving_psnr)


def test_actions_that_matter_show_in_the_paired_ratio():
    current, truth = scene()
    with_true, with_shuffled = noisy(truth, 0.02), noisy(truth[:, [1, 0]], 0.02)
    errors = moving_errors(current, truth, [with_true, with_shuffled])
    assert errors.sums.shape == (2, 6, 2) and errors.count.shape == (6, 2)
    assert paired_ratio(errors.sums[0, :, 1], errors.sums[1, :, 1], EPISODE, seed=0).high < 0.2
    deaf = moving_errors(current, truth, [with_true, with_true])
    assert paired_ratio(deaf.sums[0, :, 1], deaf.sums[1, :, 1], EPISODE, seed=0).value == 1.0


def test_bad_images_are_refused():
    current, truth = scene()
    image = unit(truth)
    for bad, message in [
        (image * 2, r"lie in \[0, 1\]"),
        (image.fill_(float("nan")), r"lie in \[0, 1\]"),
        (truth.int(), "not torch.int32"),
        (truth[:, :1], "different shapes"),
    ]:
        with pytest.raises(EvaluationError, match=message):
            mse(truth, bad)
    with pytest.raises(EvaluationError, match="does not fit"):
        ssim(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
    with pytest.raises(EvaluationError, match="do not belong together"):
        fidelity(current, truth, truth, (8,))
    with pytest.raises(EvaluationError, match="frame_valid is bool"):
        fidelity(current, truth, truth, (4, 8), torch.ones(6, 2))
    with pytest.raises(EvaluationError, match="no futures at"):
        fidelity(current, truth, truth, (4, 8)).score(5, EPISODE, seed=0)
