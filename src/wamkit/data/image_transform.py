"""The image transform of a run: it brings images of any size to that of the network.

Training and inference share it, so that an image gives the same bytes wherever it comes from: a recording's frame that
is resized while it is loaded, or the same frame as a camera delivers it to a policy.

Images are resized by area averaging, each side by itself, as most policies are fed (Octo, OpenVLA): the whole view
stays, and where the proportions change it is stretched. A size of the recording's proportions avoids that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from wamkit.config import check_bounds
from wamkit.data.format.video import RgbConverter
from wamkit.nn.tokens import ImageTokens
from wamkit.types import Spec

LARGEST_SIDE = 16_384
"""Pixels of a side of an image."""
SANE = 128 * 128
"""Pixels of a view that two CPU cores train on in an hour or two."""


@dataclass(frozen=True)
class ImageTransform:
    """Resizing to `height` x `width` by area averaging.

    Examples:
        >>> ImageTransform(32, 64)(np.zeros((2, 3, 480, 640), np.uint8)).shape
        (2, 3, 32, 64)
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        check_bounds(self, height=(1, LARGEST_SIDE), width=(1, LARGEST_SIDE))

    @classmethod
    def of(cls, spec: Spec) -> ImageTransform:
        """The transform to the images of `spec`."""
        return cls(spec.height, spec.width)

    def __call__(self, images: UInt8[np.ndarray, "*B 3 h w"]) -> UInt8[np.ndarray, "*B 3 H W"]:
        """Images of any size, h and w up to `LARGEST_SIDE`, at this one. Those that have it already come back as is."""
        if images.shape[-2:] == (self.height, self.width):
            return images
        flat, convert = images.reshape(-1, *images.shape[-3:]), RgbConverter()
        out = np.empty((len(flat), 3, self.height, self.width), np.uint8)
        for image, row in zip(flat, out, strict=True):
            convert.write_array(image, row)
        return out.reshape(*images.shape[:-2], self.height, self.width)


def nearest_size(height: int, width: int, stride: int = ImageTokens.stride) -> tuple[int, int]:
    """The height and width nearest to these that are multiples of `stride`.

    Examples:
        >>> nearest_size(360, 640)
        (352, 640)
    """
    near = [max(1, (2 * n + stride - 1) // (2 * stride)) * stride for n in (height, width)]
    return near[0], near[1]


def sane_size(height: int, width: int, stride: int = ImageTokens.stride) -> tuple[int, int]:
    """A height and width, multiples of `stride`, with the proportions of these and `SANE` pixels at most.

    Of those with a quarter of `SANE` pixels or more it is the one with the least stretch, and of equals the largest.
    Images that are small enough keep their nearest size.

    Examples:
        >>> sane_size(480, 640), sane_size(1080, 1920), sane_size(64, 64)
        ((96, 128), (80, 144), (64, 64))
    """
    if height * width <= SANE:
        return nearest_size(height, width, stride)
    scale = (SANE / (height * width)) ** 0.5
    most = max(stride, int(height * scale)) // stride
    found = []
    for rows in range(1, most + 1):
        size = rows * stride, nearest_size(stride, round(rows * stride * width / height), stride)[1]
        if SANE // 4 <= size[0] * size[1] <= SANE:
            found.append((round(stretch((height, width), size), 3), -size[0], size))
    return min(found)[2] if found else nearest_size(round(height * scale), round(width * scale), stride)


def stretch(recorded: Sequence[int], size: Sequence[int]) -> float:
    """The factor, at least 1, by which images of the size `recorded` are stretched on one side to become `size`."""
    ratio = recorded[0] * size[1] / (recorded[1] * size[0])
    return max(ratio, 1 / ratio)
