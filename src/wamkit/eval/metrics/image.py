"""Visual fidelity of imagined futures: PSNR, SSIM and skill against copying the current frame.

Images are float32 in [0, 1] or uint8 in [0, 255], of shape [B, F, C, H, W] or [B, F, V, C, H, W]. Current frames lack
the F axis. Only imagined frames are scored, never the frame that the model was given. Every figure stands beside that
of the copying baseline, since most pixels never move: an image without its moving object can beat the copy by 3 dB.

Read with care: all of these compare pixels. A sharp, plausible future that differs from the one that happened scores
worse than a blurred average of both, and objects of a few pixels hardly count outside the moving mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import inf

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Integer, Shaped
from torch import Tensor

from wamkit.eval.metrics.intervals import bootstrap_ratio
from wamkit.types import UNDEFINED, EvaluationError, Interval

TAU = 10.5 / 255
"""A pixel moves when a channel changes by more than this: Physics-IQ's 10 of 255 (arXiv 2501.09038), plus half a step
so that rounding does not decide for uint8 images."""
WINDOW, SIGMA = 11, 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
CHUNK = 64  # frames per SSIM slice: the five blurred maps stay in cache


def unit(frames: Shaped[Tensor, ...]) -> Float32[Tensor, ...]:
    """Images as float32 in [0, 1]. Raises EvaluationError for another dtype, a value outside, or NaN."""
    if frames.dtype == torch.uint8:
        return frames.float() / 255
    if not frames.is_floating_point():
        raise EvaluationError(f"images are uint8 or floating point in [0, 1], not {frames.dtype}")
    if frames.numel() and not (frames.min() >= 0 and frames.max() <= 1):
        raise EvaluationError(
            f"images must lie in [0, 1], not [{frames.min():.3g}, {frames.max():.3g}]; clamp them first"
        )
    return frames.float()


def mse(truth: Shaped[Tensor, "*n C H W"], image: Shaped[Tensor, "*n C H W"]) -> Float32[Tensor, "*n"]:
    """Mean squared error of each image, over channels and pixels. [0, 1], lower is better. Stays when every pixel is
    drawn as four.
    """
    truth, image = _pair(truth, image)
    return (truth - image).square().mean((-3, -2, -1))


def psnr(truth: Shaped[Tensor, "*n C H W"], image: Shaped[Tensor, "*n C H W"]) -> Float32[Tensor, "*n"]:
    """-10 log10(MSE) of each image, in dB with a data range of 1. Higher is better, +inf for equal images.

    Averages of it differ from the PSNR of an averaged MSE (Jensen), so say which one a table shows. Blind to small
    objects and kind to blur: an image without its moving object beats the copy. Stays when every pixel is drawn as
    four. Equals scikit-image's `peak_signal_noise_ratio(data_range=1)`.

    Examples:
        >>> frame = torch.full((1, 3, 16, 16), 0.5)
        >>> psnr(frame, frame + 0.1).round(decimals=1)
        tensor([20.])
    """
    return decibel(mse(truth, image))


def decibel(error: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """-10 log10(error): the PSNR of a mean squared error on the [0, 1] scale."""
    return -10 * torch.log10(error)


def ssim(truth: Shaped[Tensor, "*n C H W"], image: Shaped[Tensor, "*n C H W"]) -> Float32[Tensor, "*n"]:
    """Structural similarity of each image (Wang et al. 2004): Gaussian 11x11 with sigma 1.5, valid crop, biased
    covariance, mean over RGB and pixels. In [-1, 1], 1 for equal images, higher is better.

    SSIM = (2 mx my + C1)(2 sxy + C2) / ((mx^2 + my^2 + C1)(sx + sy + C2)), C1 = 0.01^2, C2 = 0.03^2 (equations 13-16).
    Equals scikit-image with `gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1`; other
    defaults differ by up to 0.07 on the same images, so never compare across libraries. Values also do not compare
    across resolutions. Flat regions are trivially similar: a still scene scores high whatever the robot does.

    Examples:
        >>> frame = torch.linspace(0, 1, 256).view(1, 1, 16, 16)
        >>> ssim(frame, frame)
        tensor([1.])
    """
    truth, image = _pair(truth, image)
    height, width = truth.shape[-2:]
    if min(height, width) < WINDOW:
        raise EvaluationError(f"SSIM's {WINDOW}x{WINDOW} window does not fit images of {height}x{width}")
    rows, columns = _blur(height, truth.device), _blur(width, truth.device).T
    lead = truth.shape[:-3]
    pairs = (
        zip(truth.flatten(0, -4).split(CHUNK), image.flatten(0, -4).split(CHUNK), strict=True)
        if lead
        else [(truth[None], image[None])]
    )
    out = []
    for x, y in pairs:
        mx, my, xx, yy, xy = (rows @ (m @ columns) for m in (x, y, x * x, y * y, x * y))
        covariance, variances = xy - mx * my, xx - mx * mx + yy - my * my
        value = (2 * mx * my + SSIM_C1) * (2 * covariance + SSIM_C2)
        value /= (mx * mx + my * my + SSIM_C1) * (variances + SSIM_C2)
        out.append(value.mean((-3, -2, -1)))
    return torch.cat(out).reshape(lead)


def _blur(size: int, device: torch.device) -> Float32[Tensor, "valid size"]:
    """The valid part of a Gaussian blur as a banded matrix: two matmuls blur an image, several times faster than a
    depthwise convolution on a CPU."""
    taps = torch.exp(-0.5 * ((torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2) / SIGMA) ** 2)
    band = torch.zeros(size - WINDOW + 1, size, dtype=torch.float64)
    for i in range(len(band)):
        band[i, i : i + WINDOW] = taps / taps.sum()
    return band.to(device, torch.float32)


def moving_mask(
    current: Shaped[Tensor, "B *V C H W"], *frames: Shaped[Tensor, "B F *V C H W"], tau: float = TAU
) -> Bool[Tensor, "B F *V H W"]:
    """Pixels where any of `frames` differs from the current frame by more than `tau` in any channel.

    Called with the truth and *every* prediction that is to be compared, so that one mask serves all of them: a mask of
    the truth alone would forgive what a model moves wrongly, separate masks would compare different pixels. Because
    the mask depends on the predictions, masked figures of two separate calls are not comparable; their gains over
    copying are.
    """
    now = unit(current).unsqueeze(1)
    masks = [((unit(f) - now).abs() > tau).any(-3) for f in frames]
    return torch.stack(masks).any(0)


def masked_error(
    truth: Shaped[Tensor, "*n C H W"], image: Shaped[Tensor, "*n C H W"], mask: Bool[Tensor, "*n H W"]
) -> Float64[Tensor, "*n"]:
    """Sum over the masked pixels of each image of the squared error (its mean over channels); 0 for an empty mask.

    Divide by `mask.sum((-2, -1))` for the masked MSE, pooled over as many images as wanted.
    """
    truth, image = _pair(truth, image)
    return ((truth - image).square().mean(-3) * mask).sum((-2, -1), dtype=torch.float64)


def masked_psnr(
    truth: Shaped[Tensor, "*n C H W"], image: Shaped[Tensor, "*n C H W"], mask: Bool[Tensor, "*n H W"]
) -> Float64[Tensor, "*n"]:
    """PSNR in dB over the masked pixels of each image; higher is better, NaN where the mask is empty.

    Stays when every pixel is drawn as four.
    """
    return decibel(masked_error(truth, image, mask) / mask.sum((-2, -1)))


def edge_strength(image: Shaped[Tensor, "*n C H W"], mask: Bool[Tensor, "*n H W"]) -> Float64[Tensor, "*n"]:
    """Sum over the masked pixels of |difference to the pixel below| + |difference to the right|, over all channels.

    Divided by that of the truth on the same mask it says how sharp an image is: 1 as sharp, below 1 blurred. Blind to
    where the edges are, and noise counts as sharpness, so read it beside an error, never alone. Blind to brightness.
    Last row and column are left out. At least 0.
    """
    image = unit(image)
    down, right = image.diff(dim=-2)[..., :-1], image.diff(dim=-1)[..., :-1, :]
    return ((down.abs() + right.abs()).sum(-3) * mask[..., :-1, :-1]).sum((-2, -1), dtype=torch.float64)


@dataclass(frozen=True)
class Errors:
    """Squared errors of several predictions of the same futures, on the pixels of one shared mask.

    sums: float64 (P, B, F), one (B, F) table per prediction.   count: float64 (B, F), masked pixels. Both are 0 where
    a frame is invalid, so that sums over windows need no further mask.
    """

    sums: Float64[np.ndarray, "P B F"]
    count: Float64[np.ndarray, "B F"]


def moving_errors(
    current: Shaped[Tensor, "B *V C H W"],
    truth: Shaped[Tensor, "B F *V C H W"],
    predictions: Sequence[Shaped[Tensor, "B F *V C H W"]],
    frame_valid: Bool[Tensor, "B F"] | None = None,
    tau: float = TAU,
    view_valid: Bool[Tensor, "B V"] | None = None,
) -> Errors:
    """Errors of every prediction on pixels that move in the truth or in any prediction (see `moving_mask`).

    view_valid: bool (B, V), the views that were seen (default: all); others are left out.

    For action sensitivity, pass the futures imagined with true and with shuffled actions and give
    `sums[0, :, f]` and `sums[1, :, f]` to `intervals.paired_ratio`.
    """
    valid = _valid(truth, frame_valid)
    mask = moving_mask(current, truth, *predictions, tau=tau)
    mask &= _evidence(valid, view_valid, mask.ndim)
    sums = [masked_error(truth, p, mask).reshape(*valid.shape, -1).sum(-1) for p in predictions]
    count = mask.reshape(*valid.shape, -1).sum(-1, dtype=torch.float64)
    return Errors(torch.stack(sums).cpu().numpy(), count.cpu().numpy())


@dataclass(frozen=True)
class Score:
    """Visual fidelity at one horizon, pooled over windows. PSNR in dB is that of the pooled MSE; `psnr_range` has its
    interval.

    skill: 1 - sum MSE(model) / sum MSE(copy); 1 is perfect, 0 equals copying the current frame, negative is worse.
    moving_gain: masked PSNR of the model minus that of copying, in dB. Both intervals resample episodes, and both are
    NaN where nothing moved.   moving_share: the masked share of all pixels, in [0, 1].
    sharpness: edge strength over that of the truth, on pixels that move in the truth: 1 is as sharp, less is blurred.
    """

    offset: int
    windows: int
    episodes: int
    psnr: float
    psnr_range: Interval
    psnr_copy: float
    ssim: float
    ssim_copy: float
    moving_share: float
    moving_psnr: float
    moving_psnr_copy: float
    skill: Interval
    moving_gain: Interval
    sharpness: Interval


@dataclass(frozen=True)
class Fidelity:
    """Per-window figures of imagined futures, kept so that any pooling and any bootstrap can be done later.

    All arrays are (B, F): mse and ssim per frame (mean over views), NaN where invalid; moving_* the squared errors
    summed over masked pixels and the number of these, edges* the `edge_strength` on pixels that move in the truth, 0
    where invalid. *_copy is the copied current frame, *_truth what happened. Views that were not seen count nowhere.
    pixels: how many a frame has, all views together.   seen: the share of them in views that were seen.
    """

    offsets: tuple[int, ...]
    pixels: int
    frame_valid: Bool[np.ndarray, "B F"]
    mse: Float64[np.ndarray, "B F"]
    mse_copy: Float64[np.ndarray, "B F"]
    ssim: Float64[np.ndarray, "B F"]
    ssim_copy: Float64[np.ndarray, "B F"]
    moving_error: Float64[np.ndarray, "B F"]
    moving_error_copy: Float64[np.ndarray, "B F"]
    moving_count: Float64[np.ndarray, "B F"]
    edges: Float64[np.ndarray, "B F"]
    edges_truth: Float64[np.ndarray, "B F"]
    seen: Float64[np.ndarray, "B F"]

    @staticmethod
    def join(parts: Sequence[Fidelity]) -> Fidelity:
        """The windows of several batches, in order. The parts must share offsets and image size."""
        first = parts[0]
        if any((p.offsets, p.pixels) != (first.offsets, first.pixels) for p in parts):
            raise EvaluationError("cannot join fidelities of different horizons or image sizes")
        arrays = [f.name for f in fields(Fidelity) if f.name not in ("offsets", "pixels")]
        joined = {name: np.concatenate([getattr(p, name) for p in parts]) for name in arrays}
        return Fidelity(first.offsets, first.pixels, **joined)

    def score(self, offset: int, episode: Integer[np.ndarray, " B"], seed: int, level: float = 0.95) -> Score:
        """The figures at `offset` steps ahead; `episode` says which episode each window came from."""
        if offset not in self.offsets:
            raise EvaluationError(f"no futures at +{offset} were scored; there are {self.offsets}")
        f = self.offsets.index(offset)
        keep = self.frame_valid[:, f]
        if not keep.any():
            raise EvaluationError(f"no valid window at +{offset}: are the episodes shorter than that?")
        column = {k.name: getattr(self, k.name)[keep, f] for k in fields(self) if k.name not in ("offsets", "pixels")}
        clusters = np.asarray(episode)[keep]

        def ratio(top: str, bottom: str) -> Interval:
            if column[bottom].sum() == 0:
                return UNDEFINED
            return bootstrap_ratio(column[top], column[bottom], clusters, seed, level=level, bounds=(0.0, inf))

        whole, moving, count = (
            ratio("mse", "mse_copy"),
            ratio("moving_error", "moving_error_copy"),
            column["moving_count"].sum(),
        )
        error = bootstrap_ratio(column["mse"], np.ones(keep.sum()), clusters, seed, level=level, bounds=(0.0, inf))
        gain, psnr = ([float(_db(x)) for x in (r.value, r.high, r.low)] for r in (moving, error))
        return Score(
            offset=offset,
            windows=int(keep.sum()),
            episodes=len(np.unique(clusters)),
            psnr=psnr[0],
            psnr_range=Interval(*psnr, level),
            psnr_copy=float(_db(column["mse_copy"].mean())),
            ssim=float(column["ssim"].mean()),
            ssim_copy=float(column["ssim_copy"].mean()),
            moving_share=float(count / (column["seen"].sum() * self.pixels)),
            moving_psnr=float(_db(column["moving_error"].sum() / count)) if count else float("nan"),
            moving_psnr_copy=float(_db(column["moving_error_copy"].sum() / count)) if count else float("nan"),
            skill=Interval(1 - whole.value, 1 - whole.high, 1 - whole.low, level),
            moving_gain=Interval(*gain, level),
            sharpness=ratio("edges", "edges_truth"),
        )


def fidelity(
    current: Shaped[Tensor, "B *V C H W"],
    truth: Shaped[Tensor, "B F *V C H W"],
    imagined: Shaped[Tensor, "B F *V C H W"],
    offsets: Sequence[int],
    frame_valid: Bool[Tensor, "B F"] | None = None,
    tau: float = TAU,
    view_valid: Bool[Tensor, "B V"] | None = None,
) -> Fidelity:
    """Scores imagined futures against what happened and against copying the current frame.

    offsets: steps ahead of the F frames.   frame_valid: bool (B, F), true where the truth exists (default: all).
    view_valid: bool (B, V), the views that were seen (default: all); figures are means over these.
    For a tokenizer's ceiling, pass its reconstruction of the truth as `imagined`. Raises EvaluationError for shapes
    that disagree, and as `unit`.
    """
    if truth.ndim not in (5, 6) or len(offsets) != truth.shape[1] or current.shape != truth[:, 0].shape:
        raise EvaluationError(
            f"current {tuple(current.shape)}, truth {tuple(truth.shape)} and {len(offsets)} offsets "
            "do not belong together; "
            "need (B, [V,] C, H, W), (B, F, [V,] C, H, W) and F offsets"
        )
    truth, imagined = _pair(truth, imagined)
    valid = _valid(truth, frame_valid)
    seen = None if view_valid is None else view_valid.double().unsqueeze(1)
    copy = unit(current).unsqueeze(1).expand_as(truth)
    moving = moving_errors(current, truth, [imagined, copy], valid, tau, view_valid)

    def table(per_frame: Float32[Tensor, "B F *V"]) -> Float64[np.ndarray, "B F"]:
        views = per_frame.double().reshape(*valid.shape, -1)
        means = views.mean(-1) if view_valid is None else (views * seen).sum(-1) / seen.sum(-1)
        return means.masked_fill(~valid, float("nan")).cpu().numpy()

    moved = moving_mask(current, truth, tau=tau) & _evidence(valid, view_valid, truth.ndim - 1)
    edges = [edge_strength(x, moved).reshape(*valid.shape, -1).sum(-1).cpu().numpy() for x in (imagined, truth)]
    return Fidelity(
        offsets=tuple(int(o) for o in offsets),
        pixels=truth[0, 0].numel() // truth.shape[-3],
        frame_valid=valid.cpu().numpy(),
        mse=table(mse(truth, imagined)),
        mse_copy=table(mse(truth, copy)),
        ssim=table(ssim(truth, imagined)),
        ssim_copy=table(ssim(truth, copy)),
        moving_error=moving.sums[0],
        moving_error_copy=moving.sums[1],
        moving_count=moving.count,
        edges=edges[0],
        edges_truth=edges[1],
        seen=(torch.ones(valid.shape) if seen is None else seen.mean(-1).expand(valid.shape)).double().numpy(),
    )


def _evidence(valid: Tensor, view_valid: Tensor | None, axes: int) -> Tensor:
    """True for frames (B, F) that are valid, in views (B, V) that were seen, with ones for the other `axes`."""
    if view_valid is None:
        return valid.reshape(valid.shape + (1,) * (axes - 2))
    return (valid[:, :, None] & view_valid[:, None]).reshape(*valid.shape, -1, *(1,) * (axes - 3))


def _pair(truth: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    if truth.shape != image.shape:
        raise EvaluationError(
            f"images of different shapes: truth {tuple(truth.shape)}, prediction {tuple(image.shape)}"
        )
    return unit(truth), unit(image)


def _valid(truth: Tensor, frame_valid: Tensor | None) -> Tensor:
    if frame_valid is None:
        return torch.ones(truth.shape[:2], dtype=torch.bool, device=truth.device)
    if frame_valid.shape != truth.shape[:2] or frame_valid.dtype != torch.bool:
        raise EvaluationError(
            f"frame_valid is bool {tuple(truth.shape[:2])}, not {frame_valid.dtype} {tuple(frame_valid.shape)}"
        )
    return frame_valid


def _db(error: float) -> np.float64:
    with np.errstate(divide="ignore", invalid="ignore"):
        return -10 * np.log10(np.float64(error))
