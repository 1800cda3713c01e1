"""A small convolutional network that reads values off images."""

from __future__ import annotations

from torch import nn

from wamkit.types import Spec


def conv_reader(channels: int, spec: Spec, values: int, width: int = 32) -> nn.Sequential:
    """(B, channels, H, W) to (B, values): four convolutions of stride 2, then two linear layers."""
    sizes = [channels, width, 2 * width, 2 * width, 4 * width]
    layers: list[nn.Module] = []
    for a, b in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Conv2d(a, b, 4, 2, 1), nn.GroupNorm(8, b), nn.SiLU()]
    stride = 2 ** (len(sizes) - 1)
    cells = (spec.height // stride) * (spec.width // stride)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width * cells, 256), nn.SiLU(), nn.Linear(256, values))
