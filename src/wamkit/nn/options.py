"""Options that families share. A name means the same thing everywhere, and what it may hold is said once."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any

from wamkit.config import ConfigError, check_bounds
from wamkit.nn.encoders import TextConfig
from wamkit.nn.objectives import check_modes
from wamkit.types import Spec


@dataclass(frozen=True)
class TrunkConfig:
    """Of families with a trunk over tokens of what is known."""

    width: int = 128
    """Of tokens."""
    depth: int = 4
    """Blocks of the trunk."""
    heads: int = 4
    proprio_noise: float = 0.05
    """Deviation, in normalised units, of the noise that training adds to proprioception."""
    text: TextConfig = field(default_factory=TextConfig)


@dataclass(frozen=True)
class CodecConfig:
    """Of families whose future is the latents of a frame codec, trained in a stage of its own before all else."""

    codec_channels: int = 8
    """Latent numbers an 8x8-pixel cell of a future frame."""
    codec_lr: float = 1.2
    """The codec's learning rate, as a multiple of train.lr."""
    codec_share: float = 0.4
    """Share of all steps that train the codec."""


BOUNDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        ("width", "depth", "heads", "action_width", "head_width", "head_depth", "actions_per_token"), (1, inf)
    ),
    **dict.fromkeys(("denoising_steps", "policy_steps", "inverse_steps", "codec_channels", "rounds"), (1, inf)),
    **dict.fromkeys(("codec_share",), (0.01, 0.99)),
    **dict.fromkeys(("decay", "at", "partial", "inverse", "blind"), (0, 1)),
    **dict.fromkeys(("codec_lr", "future_shift", "inverse_shift"), (1e-6, inf)),
    **dict.fromkeys(("proprio_noise",), (0, inf)),
}
"""What fields of these names may hold, in the configuration of any family: the same name means the same thing everywhere."""


def check_sizes(config: Any, spec: Spec) -> None:
    """Raises ConfigError, saying which numbers do not fit together and what would, before anything is built."""
    check_bounds(config, **{name: bounds for name, bounds in BOUNDS.items() if hasattr(config, name)})
    size = lambda name: getattr(config, name, None)  # noqa: E731
    fits = [("width", size("width"), "heads", size("heads"))]
    fits += [(n, size(n), "two", 2) for n in ("width", "action_width", "head_width")]  # noise levels: sines and cosines
    fits += [("window.chunk", spec.chunk, "actions_per_token", size("actions_per_token"))]
    fits += [(n, getattr(spec, n), "a picture cell", 16) for n in ("height", "width")]
    for name, whole, other, part in fits:
        if whole and part and whole % part:
            near = [n for n in (whole // part * part, (whole // part + 1) * part) if n]
            raise ConfigError(
                f"{name} {whole} is not a multiple of {other}, {part}: {' or '.join(map(str, near))} would fit"
                if other != "two"
                else f"{name} {whole} must be even: {whole - 1} or {whole + 1} would fit"
            )
    if (modes := size("modes")) is not None:
        check_modes(modes)
