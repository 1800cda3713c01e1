"""Videos that are stored as they were recorded, byte for byte: what speaks against it, and their entry in info.json.

A copy loses nothing and costs a small part of encoding. Each frame is decoded once, without its colours being
converted, so that damage is found now rather than in training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from wamkit.data.format.orientation import AS_STORED, turn_of
from wamkit.data.format.video import CONTAINERS, Video, careful, decoding_errors
from wamkit.files import StoreError

_CODECS = ("h264", "hevc", "av1", "vp9", "mpeg4")
_PIXELS = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p")
_SLACK = 1e-4  # seconds by which lerobot lets the time of a frame differ


@dataclass(frozen=True)
class VideoCopy:
    """A video file that is to be stored as it is.

    sha256: the checksum of its content, computed before it was looked at.
    """

    path: Path
    sha256: str


def reason_to_encode(path: Path, fps: float, size: tuple[int, int], steps: int) -> str:
    """The reason why the images of an episode cannot be a copy of a video file; "" if they can.

    fps, steps: frames a second, and how many from the first one on. There may be more.
    size: the (H, W) that they must have as they are stored.

    A copy is an MP4 in which step k is frame k, at k / fps seconds, upright and with square pixels, in a codec that
    players have. A file that cannot be read has a reason too.
    """
    try:
        with decoding_errors(), av.open(str(path), options=CONTAINERS) as container:
            if reason := next(_reasons(container, fps, size, steps), ""):
                return reason
        with Video(path, fps, size, steps) as video:
            video.frames([0, steps - 1])
    except StoreError as error:
        return str(error)
    return ""


def _reasons(container: Any, fps: float, size: tuple[int, int], steps: int) -> Iterator[str]:
    if "mp4" not in container.format.name or len(container.streams.video) != 1:
        yield f"its container is {container.format.name}, with {len(container.streams.video)} videos in it"
    stream, number = container.streams.video[0], 0
    if (codec := stream.codec.canonical_name) not in _CODECS:
        yield f"its codec is {codec}"
    if (stream.height, stream.width) != size:
        yield f"its frames are {stream.height}x{stream.width} instead of {size[0]}x{size[1]}"
    if abs(float(stream.average_rate or fps) / fps - 1) * steps >= 0.5:  # lerobot finds frames by it
        yield f"its frames are not {fps:g} a second"
    careful(stream, size)
    for packet in container.demux(stream):
        if packet.is_discard:
            yield "its edit list leaves frames out"
        for frame in packet.decode():
            if (frame.height, frame.width) != size or turn_of(frame) != AS_STORED:
                yield "its frames are turned"
            if frame.format.name not in _PIXELS:
                yield f"its pixels are {frame.format.name}"
            if frame.pts is None or abs(float(frame.pts * stream.time_base) - number / fps) >= _SLACK:
                yield f"its frames are not {fps:g} a second, from 0 on"
            number += 1
            if number == steps:
                if (stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1) != 1:
                    yield "its pixels are not square"
                return
    yield f"it shows {number} frames for {steps} steps"


def video_info(path: Path, fps: float) -> dict[str, Any]:
    """The `info` of a video's feature in info.json, with lerobot's keys. Raises StoreError if it cannot be read."""
    with decoding_errors(), av.open(str(path), options=CONTAINERS) as container:
        stream = container.streams.video[0]
        return {
            "video.height": stream.height,
            "video.width": stream.width,
            "video.channels": 3,
            "video.codec": stream.codec.canonical_name,
            "video.pix_fmt": stream.codec_context.pix_fmt,
            "video.fps": int(fps) if fps == int(fps) else fps,
            "video.is_depth_map": False,
            "has_audio": bool(container.streams.audio),
        }
