"""Orientation of frames: how a video's header, or a JPEG image's, says that they are to be turned.

Cameras store the pixels as the sensor reads them out, and a display matrix that turns them upright. FFmpeg's decoders
attach the matrix to each frame and leave the pixels as they are; players, and the program ffmpeg, apply it.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import av
import numpy as np

from wamkit.files import StoreError

_SLACK = 1.0  # degrees; FFmpeg ignores less


@dataclass(frozen=True)
class Turn:
    """The turn that makes a stored frame upright.

    swap: exchange rows and columns, before the rest.
    down: turn the order of the rows around.
    right: turn the order of the columns around.
    """

    swap: bool = False
    down: bool = False
    right: bool = False

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (H, W) of stored frames of an upright `size`, and the other way round."""
        return size[::-1] if self.swap else size

    def upright(self, frames: np.ndarray, axis: int = 0) -> np.ndarray:
        """A view of `frames`, upright. axis: that of the rows; columns come next."""
        frames = frames.swapaxes(axis, axis + 1) if self.swap else frames
        return np.flip(frames, [axis + i for i, flip in enumerate((self.down, self.right)) if flip])


AS_STORED = Turn()


def turn_of(frame: av.VideoFrame) -> Turn:
    """The turn that a decoded frame's display matrix asks for: by multiples of 90 degrees, mirrored or not.

    Raises StoreError for other angles, which need new pixels.
    """
    a, b, c, d = _matrix(frame)
    across, along = math.hypot(a, c), math.hypot(b, d)
    if not across or not along:
        return AS_STORED
    angle = math.degrees(math.atan2(b / along, a / across))
    if abs(angle - 90 * round(angle / 90)) > _SLACK:
        raise StoreError(
            f"its header turns frames by {angle:.0f} degrees, and wamkit turns by multiples of 90; "
            "encode it again with its frames upright (ffmpeg -i FILE OUT.mp4)"
        )
    return Turn(True, b < 0, c < 0) if 45 < abs(angle) < 135 else Turn(False, d < 0, a < 0)


def _matrix(frame: av.VideoFrame) -> tuple[float, float, float, float]:
    """(a, b, c, d): the stored point (x, y) is shown at (a x + c y, b x + d y); libavutil/display.h."""
    try:
        found = bytes(frame.side_data.get("DISPLAYMATRIX", b""))  # iterating gives values before PyAV 19, keys since
    except ValueError:  # PyAV 18 lists no side data where one is newer than it, such as EXIF; it may be mirrored
        turn = math.radians(-frame.rotation)
        return math.cos(turn), math.sin(turn), -math.sin(turn), math.cos(turn)
    if len(found) < 36:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = struct.unpack("=9i", found[:36])
    return a, b, c, d
