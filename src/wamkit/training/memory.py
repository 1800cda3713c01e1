"""The memory that training needs at least, compared with that of the machine before anything is built."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import torch

from wamkit.config import to_dict
from wamkit.errors import WamkitError
from wamkit.runs.base_model import video_backbone
from wamkit.runs.config import RunConfig
from wamkit.runs.meta_model import meta_model
from wamkit.runs.run import find_device
from wamkit.types import Spec

_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def check_memory(run: RunConfig, spec: Spec, processes: int = 1) -> None:
    """Raises WamkitError, with the parts, where training needs more memory than its device has. Builds no weights.

    A model with a pretrained part is not judged. processes: that train together, on a device each.
    """
    if is_pretrained(run):
        return
    parts, limit = needed(run, spec, processes), _limit(run.train.device)
    if (total := sum(parts.values())) > limit:
        listed = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in parts.items())
        raise WamkitError(
            f"training needs at least {total / 1e9:.1f} GB of memory ({listed}), and {run.train.device} has "
            f"{limit / 1e9:.1f} GB: lower --model.width, --model.depth or --train.batch-size"
        )


def is_pretrained(run: RunConfig) -> bool:
    """True for a model with a pretrained part, whose size is known only once it is loaded."""
    return video_backbone(run.model) is not None or '"pretrained"' in repr(to_dict(run.model)).replace("'", '"')


def needed(run: RunConfig, spec: Spec, processes: int = 1) -> dict[str, int]:
    """Bytes by part, a lower bound: weights with all that accompanies them, a batch of frames, and activations.

    processes: that divide them.
    """
    model, rows = meta_model(run, spec), max(1, run.train.batch_size // processes)
    # Weights, their average, one moment, and a gradient for each thread of a CPU.
    copies = 3 + (min(run.train.threads, rows) if processes == 1 and run.train.device == "cpu" else 1)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    weights //= max(1, processes // run.train.replicas)
    frames = 1 + len(spec.past_offsets) + len(spec.frame_offsets)
    pixels = rows * frames * spec.views * 3 * spec.height * spec.width
    tokens = sum(segment.length for segment in model.attention_layout()[0])
    return {
        "weights and gradients": copies * weights,
        "frames": 5 * pixels,  # as bytes and as floats
        "activations": 4 * rows * tokens * getattr(run.model, "width", 0) * len(model.blocks()),
    }


def _limit(device: str) -> int:
    """Bytes that the device has, or that this process may use of them."""
    if find_device(device).type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return min(_host_limits())


def _host_limits() -> Iterator[int]:
    yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if (most := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
        yield most
    for file in map(Path, _CGROUPS):
        if file.is_file() and (text := file.read_text().strip()).isdecimal():
            yield int(text)
