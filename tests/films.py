"""Videos for tests of importers, as another program would write them."""

from __future__ import annotations

import av
import numpy as np


def write(path, frames: int, fps: int = 30, size=(48, 64), codec="libx264", mark: int = 0) -> None:
    """A video of another hand: long groups of pictures, B-frames, yuv420p. Picture k is a grey of 20 + 4 k, its left edge black, and
    a bright square at `mark` tells one video from another."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.bit_rate = 4_000_000
        for k in range(frames):
            picture = np.full((*size, 3), 20 + 4 * k, np.uint8)
            picture[:, : size[1] // 8] = 0
            picture[-8:, -8 - mark : size[1] - mark] = 250 if mark else 20 + 4 * k
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def numbers(pictures) -> list[int]:
    """Which picture each one is, by its grey in the middle."""
    return [round((float(p[p.shape[0] // 2, p.shape[1] // 2].mean()) - 20) / 4) for p in pictures]
