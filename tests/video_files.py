"""Videos for tests of importers, written as another program would write them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np


def write_video(
    path: Path, frames: int, fps: int = 30, size: tuple[int, int] = (48, 64), codec: str = "libx264", mark: int = 0
) -> None:
    """A video with long groups of pictures, B-frames and yuv420p.

    Frame k is a grey of 20 + 4 k with a black left edge. A bright square at `mark` tells one video from another.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.bit_rate = 4_000_000
        for k in range(frames):
            image = np.full((*size, 3), 20 + 4 * k, np.uint8)
            image[:, : size[1] // 8] = 0
            image[-8:, -8 - mark : size[1] - mark] = 250 if mark else 20 + 4 * k
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def frames_shown(images: Iterable[np.ndarray]) -> list[int]:
    """The frame number of each image, read from the grey in its middle."""
    return [round((float(x[x.shape[0] // 2, x.shape[1] // 2].mean()) - 20) / 4) for x in images]
