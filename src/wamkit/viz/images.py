"""Images and videos as files: tiling, enlarging, PNG, JPEG, H.264, data URIs. Frames are uint8, channels first, RGB."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from wamkit.data.format.stills import encode_png
from wamkit.data.format.video import reformatted
from wamkit.files import atomic_write, scratch_folder, write_error
from wamkit.types import EvaluationError

DIFFERENCE_GAIN = 2
"""Gain of `difference`: an error of half the range is white. At a gain of 1 most errors are too dark to see."""


def difference(
    truth: UInt8[np.ndarray, "*n H W"], imagined: UInt8[np.ndarray, "*n H W"]
) -> UInt8[np.ndarray, "*n H W"]:
    """Absolute difference times DIFFERENCE_GAIN, clipped to 255: black where the two agree."""
    gap = np.abs(truth.astype(np.int16) - imagined.astype(np.int16)) * DIFFERENCE_GAIN
    return gap.clip(0, 255).astype(np.uint8)


def side_by_side(images: Sequence[UInt8[np.ndarray, "*n 3 H W"]], gap: int = 2) -> UInt8[np.ndarray, "*n 3 H wide"]:
    """Images (or videos) of one shape next to each other, `gap` white columns between them.

    Raises EvaluationError for different shapes.
    """
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise EvaluationError(f"images side by side need one shape, not {sorted(shapes)}")
    white = np.full((*images[0].shape[:-1], gap), 255, np.uint8)
    return np.concatenate([x for image in images for x in (white, image)][1:], axis=-1)


def enlarge(frames: UInt8[np.ndarray, "*n H W"], scale: int) -> UInt8[np.ndarray, "*n bigH bigW"]:
    """Every pixel as a block of scale x scale, so that a large screen does not smooth small images."""
    return frames.repeat(scale, axis=-2).repeat(scale, axis=-1)


def png(image: UInt8[np.ndarray, "3 H W"]) -> bytes:
    """One RGB image as PNG. Raises EvaluationError for a wrong shape or dtype."""
    _check(image, 3)
    return encode_png(np.ascontiguousarray(image.transpose(1, 2, 0)), level=9)


def strip_png(frames: UInt8[np.ndarray, "N 3 H W"], scale: int = 3, gap: int = 2) -> bytes:
    """N frames in one row, enlarged, as PNG."""
    _check(frames, 4)
    return png(enlarge(side_by_side(list(frames), gap), scale))


def save_video(path: str | os.PathLike[str], frames: UInt8[np.ndarray, "T 3 H W"], fps: float, scale: int = 1) -> Path:
    """Writes the video that `mp4` makes, atomically, and returns its path. Raises as `mp4`."""
    atomic_write(path, mp4(frames, fps, scale))
    return Path(path)


def mp4(frames: UInt8[np.ndarray, "T 3 H W"], fps: float, scale: int = 1) -> bytes:
    """Frames as H.264 in MP4 (yuv420p, BT.709, index first), which every browser and phone plays.

    fps: frames a second, above 0.   scale: side of the block that each pixel becomes.
    Odd heights and widths get one repeated row or column, since yuv420p needs even sizes.
    Raises EvaluationError for no frames, a wrong shape or dtype, or fps <= 0, and WriteError if the folder for
    temporary files has no room.
    """
    _check(frames, 4)
    if len(frames) == 0 or not fps > 0:
        raise EvaluationError(f"a video needs frames and a positive rate, not {len(frames)} frames at {fps} per second")
    pixels = enlarge(frames, scale)
    pixels = np.pad(pixels, ((0, 0), (0, 0), (0, pixels.shape[2] % 2), (0, pixels.shape[3] % 2)), mode="edge")
    with scratch_folder() as folder:  # the index can only be moved to the front in a real file
        file = folder / "clip.mp4"
        try:
            _encode(file, pixels, Fraction(fps).limit_denominator(1000))
            return file.read_bytes()
        except OSError as error:
            raise write_error(file, error) from error


def _encode(file: Path, pixels: UInt8[np.ndarray, "T 3 H W"], rate: Fraction) -> None:
    with av.open(str(file), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = pixels.shape[2], pixels.shape[3], "yuv420p"
        # Macroblock trees of small images, like B frames below, differ from run to run in x264's AVX-512 code.
        stream.options = {"crf": "20", "preset": "veryfast", "threads": "1", "x264-params": "no-mbtree=1"}
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = 1  # BT.709, or players guess by size
        context.color_range = 1
        context.max_b_frames = 0  # with them, x264's AVX-512 code gives other bytes from run to run
        for image in pixels.transpose(0, 2, 3, 1):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = reformatted(frame, format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def jpegs(frames: UInt8[np.ndarray, "N 3 H W"], quality: int = 2) -> list[bytes]:
    """N frames as a JPEG each, 4:4:4. quality: FFmpeg's, from 1 (best) to 31. Raises EvaluationError as `mp4` does."""
    _check(frames, 4)
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.height, encoder.width, encoder.pix_fmt, encoder.time_base = *frames.shape[2:], "yuvj444p", Fraction(1, 25)
    encoder.options, encoder.thread_count = {"qmin": str(quality), "qmax": str(quality)}, 1
    reformatter, out = VideoReformatter(), []
    for number, image in enumerate(frames.transpose(0, 2, 3, 1)):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame = reformatted(frame, reformatter, format="yuvj444p", dst_colorspace="ITU601", dst_color_range="JPEG")
        frame.pts = number
        out += [bytes(packet) for packet in encoder.encode(frame)]
    return out + [bytes(packet) for packet in encoder.encode()]


def data_uri(content: bytes, kind: str) -> str:
    """Content as an address of its own. kind: the media type, as in "image/png"."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _check(frames: np.ndarray, axes: int) -> None:
    if frames.dtype != np.uint8 or frames.ndim != axes or frames.shape[-3] != 3:
        wanted = "(T, 3, H, W)" if axes == 4 else "(3, H, W)"
        raise EvaluationError(f"images are uint8 {wanted}, not {frames.dtype} {frames.shape}")
