"""Number format of training: float32, or bfloat16 products under autocast."""

from __future__ import annotations

import torch

from wamkit.runs.config import TrainConfig


def native_bf16(device: str) -> bool:
    """True if bfloat16 products are faster than float32 on `device`: on GPUs, and on CPUs with AVX512-BF16 or AMX."""
    if device != "cpu":
        return True
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def uses_bf16(config: TrainConfig) -> bool:
    """True if `config.precision` means bfloat16 on `config.device`."""
    return config.precision == "bf16" or (config.precision == "auto" and native_bf16(config.device))


def autocast(config: TrainConfig) -> torch.autocast:
    """A context in which products have the precision of `config`.

    It keeps no cache of cast weights. All threads would share that cache, and the first thread to leave empties it for
    the others, so that the rounding of gradients would depend on timing.
    """
    return torch.autocast(config.device.split(":")[0], torch.bfloat16, uses_bf16(config), cache_enabled=False)
