"""A note, before training starts, on images that are larger than this machine trains on in reasonable time."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from wamkit.data.image_transform import SANE, sane_size
from wamkit.runs.config import RunConfig
from wamkit.training.memory import is_pretrained, needed
from wamkit.training.precision import autocast
from wamkit.training.trainer import Trainer
from wamkit.types import Spec
from wamkit.workers import one_thread

LARGE = 2 * SANE
"""Pixels of a view beyond which a step is timed."""
SLOW, HEAVY = 2.0, 4e9
"""Seconds a step, and bytes of memory, from which images are called large."""
_BACKWARD = 3  # a backward pass takes about twice as long as the forward pass before it
_HEAPS = 2  # gradients pass through about as much again, and the heaps of threads hold on to what was freed


def large_images(run: RunConfig, spec: Spec, trainer: Trainer) -> str:
    """A line with the expected time and memory of training, and the `--size` that brings them down.

    Empty where views have at most `LARGE` pixels, and where a step takes neither long nor much memory. Both are
    those of a forward pass of two windows, extrapolated; memory is that of the whole process at its peak.
    """
    pixels = spec.height * spec.width
    if pixels <= LARGE:
        return ""
    parts = {} if is_pretrained(run) else needed(run, spec)
    fixed = _resident(run.train.device) + parts.get("weights and gradients", 0)
    seconds, kept = _probe(run, trainer)
    images = parts.get("frames", 0) + _HEAPS * max(kept, parts.get("activations", 0))
    if seconds < SLOW and fixed + images < HEAVY:
        return ""
    height, width = sane_size(spec.height, spec.width)
    share, hours = height * width / pixels, run.train.steps * seconds / 3600
    memory, less = ((fixed + images * part) / 1e9 for part in (1, share))
    return (
        f"note: images of {spec.height}x{spec.width} will take about {seconds:.2g} s a step, "
        f"{hours:.2g} hours for {run.train.steps} steps, and {memory:.1f} GB of memory; "
        f"--size {height} {width} would take about {seconds * share:.2g} s and {less:.1f} GB"
    )


def _resident(device: str) -> int:
    """Bytes of this process in memory; 0 where the model is on another device."""
    pages = Path("/proc/self/statm")
    if device != "cpu" or not pages.exists():
        return 0
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _probe(run: RunConfig, trainer: Trainer) -> tuple[float, int]:
    """Expected seconds of a training step, and the bytes that a backward pass needs kept, from forward passes."""
    model, rows = trainer.model, run.train.batch_size
    batch = trainer.windows.gather(trainer.windows.indices(0)[: min(2, rows)]).to(run.train.device)
    threads = min(run.train.threads, rows, os.cpu_count() or 1) if run.train.device == "cpu" else 1
    weights = {p.data_ptr() for p in model.parameters()}
    seconds, most = 0.0, 0
    for stage in model.stages():
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        began = time.perf_counter()
        with one_thread(), autocast(run.train), saved_tensors_hooks(keep, lambda tensor: tensor):
            losses = model(batch, torch.Generator().manual_seed(0), stage.name)
        seconds += stage.share * (time.perf_counter() - began)
        most = max(most, sum(size for at, size in kept.items() if at not in weights))
        del losses  # which held all that was kept
    return _BACKWARD * seconds * rows / (len(batch) * threads), most * rows // len(batch)
