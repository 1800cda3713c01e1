"""Videos whose header says how they are to be shown: turned, with wide pixels, later, or in part.

Frames are grey, four quadrants in four levels, and each frame is lighter than the one before. `shown` reads both back.
"""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CORNERS = np.array([[20, 60], [100, 140]])
"""Grey of the quadrants of the first frame as it is stored: upper row, then lower row."""
STEP = 3  # grey levels from frame to frame
TURNS = {
    "clockwise": ((0, 1, -1, 0), [[100, 20], [140, 60]]),
    "counterclockwise": ((0, -1, 1, 0), [[60, 140], [20, 100]]),
    "upside-down": ((-1, 0, 0, -1), [[140, 100], [60, 20]]),
    "mirrored": ((-1, 0, 0, 1), [[60, 20], [140, 100]]),
    "flipped": ((1, 0, 0, -1), [[100, 140], [20, 60]]),
    "transposed": ((0, 1, 1, 0), [[20, 100], [60, 140]]),
    "transposed-twice-mirrored": ((0, -1, -1, 0), [[140, 60], [100, 20]]),
}
"""(a, b, c, d) of a display matrix, by which the stored point (x, y) is shown at (a x + c y, b x + d y), and CORNERS as
they are then shown."""


def image(number: int, height: int = 32, width: int = 64) -> np.ndarray:
    """Frame `number` as it is stored, RGB uint8 (H, W, 3)."""
    grey = np.kron(CORNERS + STEP * number, np.ones((height // 2, width // 2)))
    return np.repeat(grey[..., None], 3, 2).astype(np.uint8)


def write(
    path: Path,
    frames: int = 12,
    rate: int = 10,
    times: list[int] | None = None,
    codec: str = "libx264",
    aspect: Fraction | None = None,
    height: int = 32,
    sound: bool = False,
    pixels: str = "yuv420p",
    **container_options: str,
) -> Path:
    """Encodes frames. times: of each frame, in halves of a frame; sound: from second 0 on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = height, 64, pixels
        clock = Fraction(1, 2 * rate if times else rate)
        stream.codec_context.time_base = clock
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if sound:
            silence = container.add_stream("aac", rate=8000)
            for i in range(0, 8000, 1024):
                chunk = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                chunk.sample_rate, chunk.pts = 8000, i
                container.mux(silence.encode(chunk))
            container.mux(silence.encode())
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(image(number, height), format="rgb24")
            frame.pts, frame.time_base = times[number] if times else number, clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def turn(path: Path, matrix: tuple[float, float, float, float]) -> Path:
    """Writes (a, b, c, d) into the header of an mp4 or mov file."""
    data = bytearray(path.read_bytes())
    a, b, c, d = (round(65536 * x) for x in matrix)
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def trim(path: Path, first: int, frames: int, rate: int = 10) -> Path:
    """Makes the edit list of an mp4 begin at frame `first` and last for `frames`."""
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12
    _, start, speed = struct.unpack_from(">IiI", data, at)
    ticks = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)[0]
    struct.pack_into(">IiI", data, at, 1000 * frames // rate, start + first * ticks // rate, speed)
    path.write_bytes(data)
    return path


def remux(source: Path, path: Path) -> Path:
    """Copies a video into another container."""
    with av.open(str(source)) as before, av.open(str(path), "w") as after:
        stream = before.streams.video[0]
        copy = after.add_stream_from_template(stream)
        for packet in before.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                after.mux(packet)
    return path


def corners(frame: np.ndarray) -> np.ndarray:
    """The grey of the four quadrants of an image (H, W, 3), to 10 levels."""
    h, w = frame.shape[0] // 4, frame.shape[1] // 4
    grey = frame.mean(2)
    return np.array([[grey[y, x] for x in (w, 3 * w)] for y in (h, 3 * h)]).round(-1)


def shown(frames: object) -> list[int]:
    """The numbers of the frames in a sequence of images (H, W, 3)."""
    return [round((float(x.mean()) - CORNERS.mean()) / STEP) for x in frames]
