"""Speed of SSIM against torchmetrics, and its distance from scikit-image: 64 clips of 16 images of 64x64.

Needs torchmetrics and scikit-image, which wamkit does not. Usage: python benchmarks/ssim.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from wamkit.eval.metrics.image import ssim


@dataclass(frozen=True)
class Args:
    """Number and size of the images, number of repetitions."""

    clips: int = 64
    frames: int = 16
    size: int = 64
    runs: int = 7
    threads: int = 1


def noisy_images(args: Args) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth images and noisy ones, float32 in [0, 1], (N, 3, size, size)."""
    generator = torch.Generator().manual_seed(0)
    n = args.clips * args.frames
    coarse = torch.rand(n, 3, 8, 8, generator=generator)
    truth = torch.nn.functional.interpolate(coarse, (args.size, args.size), mode="bilinear")
    return truth, (truth + 0.05 * torch.randn(truth.shape, generator=generator)).clamp(0, 1)


def against_scikit(truth: torch.Tensor, image: torch.Tensor) -> float:
    """The largest difference over 64 images."""
    how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1, "channel_axis": 0}
    pairs = zip(truth[:64].double().numpy(), image[:64].double().numpy(), strict=True)
    return float(
        np.abs(ssim(truth[:64], image[:64]).numpy() - [structural_similarity(x, y, **how) for x, y in pairs]).max()
    )


def timed(job: Callable[[], object]) -> tuple[float, float]:
    """Seconds that passed, and seconds of processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    job()
    return time.perf_counter() - wall, time.process_time() - cpu


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    truth, image = noisy_images(args)
    jobs: dict[str, Callable[[], object]] = {
        "torchmetrics": lambda: structural_similarity_index_measure(image, truth, data_range=1.0, reduction="none"),
        "wamkit": lambda: ssim(truth, image),
    }
    for job in jobs.values():
        job()  # the first run pays for what is set up once
    rows = {name: [] for name in jobs}
    for _ in range(args.runs):
        for name, job in jobs.items():
            rows[name].append(timed(job))
    seconds = {name: np.array(r) for name, r in rows.items()}
    for name, (wall, cpu) in ((n, np.median(s, 0)) for n, s in seconds.items()):
        print(f"{name:13} {wall:.3f} s, {cpu:.3f} s of processor (medians of {args.runs})")
    ratio = seconds["torchmetrics"] / seconds["wamkit"]
    wall, cpu = np.median(ratio, 0)
    print(
        f"torchmetrics / wamkit: {wall:.1f} by the clock ({ratio[:, 0].min():.1f} to {ratio[:, 0].max():.1f}), "
        f"{cpu:.1f} by processor time"
    )
    print(f"largest difference to scikit-image: {against_scikit(truth, image):.1e}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
