"""H.264 video in MP4: encoding and exact random access, by PyAV.

Measured on 64x64 MetaWorld renders (button-press-topdown, the close `corner2` view, 100 frames; drawer-open is within 1
dB; PyAV 18.1; medium preset, GOP 2):

| encoder         | RGB PSNR, dB (worst frame) | PSNR of Y | bytes a frame |
|-----------------|----------------------------|-----------|---------------|
| yuv420p, CRF 18 | 28.4 (27.5)                | 36        | 550           |
| yuv420p, CRF 0  | 29.9 (29.0)                | 45        | 1630          |
| yuv444p, CRF 18 | 32.3 (30.1)                | 36        | 600           |
| yuv444p, CRF 3  | 43.9 (40.3)                | 50        | 1760          |
| RGB, lossless   | exact                      | exact     | 3500          |

At this size the saturated robot is a few pixels wide, and halving the chroma limits the image to 30 dB at any bit
rate. Hence 4:4:4 at CRF 3 (profile High 4:4:4 Predictive). Everything built on FFmpeg decodes it (tried: lerobot and
PyAV), but not every browser. GOP 2 makes random access cheap. Without B-frames, decode order is display order. With one
thread, the same frames always give the same bytes.

Larger images often exceed the frame cache and are then decoded for every batch, so decoding speed counts, and their
edges are soft. At 128x128, yuv444p, GOP 2:

| 60 frames of drawer-open | PSNR, dB (worst) | bytes a frame | ms of one core to decode a frame |
|--------------------------|------------------|---------------|----------------------------------|
| CRF 3                    | 50.2 (49.1)      | 6,700         | 0.58                             |
| CRF 10                   | 45.9 (44.5)      | 4,200         | 0.41                             |
| CRF 10, tune fastdecode  | 45.7 (44.3)      | 4,400         | 0.21                             |

(fastdecode: CAVLC instead of CABAC, no deblocking.)
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8, UInt16

from wamkit.data.format.orientation import AS_STORED, Turn, turn_of
from wamkit.files import StoreError

CODEC, PIXEL_FORMAT, GOP = "libx264", "yuv444p", 2
_SMALL = 96 * 96  # pixels
_TREE = 64  # pixels; where a side is shorter, x264's AVX-512 code for macroblock trees gives other bytes now and then
# FFmpeg goes by content, not by name: a playlist in place of an MP4 would make it read other files.
CONTAINERS = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"}
# FFmpeg (in PyAV 17 and 18) converts these to planes with the end of each row uninitialised, unless the width is a
# multiple of 16.
_CUT_SHORT = ("yuv420p", "yuv422p", "yuvj420p", "yuvj422p", "yuva420p")
_BUFFERS, _REFERENCES = 1 << 20, 24  # bytes, and frames of three bytes a pixel, that an open decoder holds
_SEEK_AHEAD = 8  # frames; up to about this distance, decoding on is cheaper than seeking


def encoder(size: tuple[int, int]) -> dict[str, str]:
    """The options of x264 that depend on the size (H, W) of the images; see the tables above."""
    quality = {"crf": "3"} if size[0] * size[1] <= _SMALL else {"crf": "10", "tune": "fastdecode"}
    return quality if min(size) >= _TREE else quality | {"x264-params": "no-mbtree=1"}


def encode_video(frames: UInt8[np.ndarray, "T 3 H W"], fps: float) -> bytes:
    """The bytes of an MP4 file of RGB frames, T >= 1, at `fps` frames a second.

    The same frames give the same bytes. Raises StoreError for frames of another type or shape.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1] != 3 or not len(frames):
        raise StoreError(f"cannot encode {frames.dtype} {frames.shape}; expected uint8 (T, 3, H, W) with T >= 1")
    images = np.ascontiguousarray(frames.transpose(0, 2, 3, 1))
    return encode_frames(images, fps, images.shape[1:3], len(images))


def encode_frames(frames: Iterable[UInt8[np.ndarray, "H W 3"]], fps: float, size: tuple[int, int], count: int) -> bytes:
    """The bytes of an MP4 file of frames from an iterator, of which one at a time is in memory.

    size: the (H, W) that frames must have.
    count: how many there must be.

    Raises StoreError for a frame of another type or shape, and for a wrong number of them.
    """
    rate, buffer, reformatter = Fraction(fps).limit_denominator(100_000), io.BytesIO(), VideoReformatter()
    number = -1
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(CODEC, rate=rate, options={"preset": "medium", **encoder(size)})
        stream.height, stream.width, stream.pix_fmt = *size, PIXEL_FORMAT
        context = stream.codec_context
        context.gop_size, context.max_b_frames, context.thread_count = GOP, 0, 1
        for number, image in enumerate(frames):
            if image.dtype != np.uint8 or image.shape != (*size, 3):
                raise StoreError(f"image {number} is {image.dtype} {image.shape} instead of uint8 {(*size, 3)}")
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = reformatted(rgb, reformatter, format=PIXEL_FORMAT)
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if number + 1 != count:
        raise StoreError(f"there are {number + 1} images for {count} steps")
    return buffer.getvalue()


def decode_video(
    source: Path | bytes,
    fps: float,
    numbers: Sequence[int],
    shape: tuple[int, int],
    size: tuple[int, int] | None = None,
    total: int | None = None,
) -> UInt8[np.ndarray, "N 3 H W"]:
    """The frames `numbers`, ascending, of a video; see `Video`, which stays open for more."""
    with Video(source, fps, shape, total) as video:
        return video.frames(numbers, size)


def shown_size(path: Path, size: tuple[int, int]) -> tuple[int, int]:
    """The (H, W) at which a video with frames of the stored (H, W) `size` is shown: turned as its header says.

    It is `size` where the file cannot be decoded; `Video` says why.
    """
    try:
        with decoding_errors(), av.open(str(path), options=CONTAINERS) as container:
            stream = container.streams.video[0] if container.streams.video else None
            if stream is None or (stream.height, stream.width) != size:
                return size
            careful(stream, size)
            return turn_of(next(container.decode(stream))).size(size)
    except (StoreError, StopIteration):
        return size


class Video:
    """An open video with random access. Frame k is the one within half a frame of k / fps seconds from its start.

    source: an MP4 file, or its bytes.
    fps: frames a second that it must have.
    shape: the (H, W) that its frames must have once they are upright, as its header says.
    total: the number of frames that it must have, if known.

    Raises StoreError, without naming the source, when it cannot be read. For one thread at a time. After an error the
    video must be opened again.
    """

    def __init__(self, source: Path | bytes, fps: float, shape: tuple[int, int], total: int | None = None):
        self._fps, self._shape = Fraction(fps).limit_denominator(100_000), shape
        self._rgb = RgbConverter()
        with decoding_errors():
            self._container = av.open(
                io.BytesIO(source) if isinstance(source, bytes) else str(source), options=CONTAINERS
            )
        try:
            self._stream = self._checked(fps, total)
        except BaseException:
            self.close()
            raise
        self._at, self._decoded, self._turn = -1, self._container.decode(self._stream), None
        with decoding_errors():
            self._clock, self._began = (
                (1 / (self._fps * self._stream.time_base)).as_integer_ratio(),
                self._stream.start_time or 0,
            )

    def _checked(self, fps: float, total: int | None) -> av.VideoStream:
        if not self._container.streams.video:
            raise StoreError("there is no video in it")
        stream, shape = self._container.streams.video[0], self._shape
        if (stream.height, stream.width) not in (shape, shape[::-1]):
            raise StoreError(f"its frames are {_size((stream.height, stream.width))} instead of {_size(shape)}")
        self.count = stream.frames
        if total is not None and 0 < stream.frames < total:  # frames beyond the last row are left alone
            raise StoreError(f"it has {stream.frames} frames instead of {total}")
        rate = float(stream.average_rate or fps)  # computed from the duration, so off by up to one frame
        if stream.frames and abs(rate / fps - 1) > 0.01 + 1 / stream.frames:
            raise StoreError(f"it has {rate:g} frames a second, but meta/info.json says fps {fps:g}")
        careful(stream, shape)
        return stream

    def frames(
        self, numbers: Sequence[int], size: tuple[int, int] | None = None, start: int = 0
    ) -> UInt8[np.ndarray, "N 3 H W"]:
        """RGB frames by number.

        numbers: ascending, counted from frame `start`.
        size: (H, W) to resize to, by area averaging; None for the stored size.

        Only the frames needed are decoded: distant ones are reached through the keyframe before them. Raises StoreError
        for a frame that is missing or damaged.
        """
        out = empty_frames((len(numbers), 3, *(size or self._shape)))
        with decoding_errors():
            for row, number in enumerate(numbers):
                self._rgb.write(self._find(start + number), out[row], self._turn)
        return out

    def depth(self, numbers: Sequence[int], start: int = 0) -> UInt16[np.ndarray, "N H W"]:
        """The 12-bit codes of a video of depth maps, as they were before encoding. numbers, start: as in `frames`.

        Raises StoreError for another pixel format, from which the codes cannot be recovered exactly.
        """
        out = empty_frames((len(numbers), *self._shape), np.uint16)
        with decoding_errors():
            for row, number in enumerate(numbers):
                frame = self._find(start + number)
                if frame.format.name != "gray12le":
                    raise StoreError(
                        f"its pixels are {frame.format.name}; wamkit reads depth maps from videos of gray12le"
                    )
                out[row] = self._turn.upright(frame.to_ndarray())
        return out

    def _find(self, number: int) -> av.VideoFrame:
        ticks, frames = self._clock  # `ticks` of the stream's clock last as long as `frames` frames
        if not 0 < number - self._at <= _SEEK_AHEAD:
            self._container.seek(self._began + round((number - 0.5) * ticks / frames), stream=self._stream)
            self._decoded = self._container.decode(self._stream)
        for frame in self._decoded:
            if frame.pts is None:
                raise StoreError(f"frame {number} cannot be found: a frame before it has no time")
            self._at = round((frame.pts - self._began) * frames / ticks)
            if self._at >= number:
                break
        if self._at != number:
            raise StoreError(f"frame {number} is missing")
        if self._turn is None:
            self._turn, stored = turn_of(frame), (frame.height, frame.width)
            if (shown := self._turn.size(stored)) != self._shape:
                self._turn = None
                raise StoreError(f"its frames are {_size(shown)} instead of {_size(self._shape)}")
        return frame

    def close(self) -> None:
        """Closes the file and the decoder."""
        self._container.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
"""By default swscale uses all cores, which is much slower for small images on a busy machine. PyAV before 17 knows one
thread only."""


def reformatted(frame: av.VideoFrame, by: VideoReformatter | None = None, **to: Any) -> av.VideoFrame:
    """A frame with other pixels or another size, converted on one thread. by: keeps FFmpeg's tables for the next one.

    to: arguments of PyAV's `VideoReformatter.reformat`.
    """
    return (by or VideoReformatter()).reformat(frame, **to, **_ONE_THREAD)


class RgbConverter:
    """Converts decoded frames to RGB. One for all frames of a video, since FFmpeg builds tables for each converter."""

    def __init__(self) -> None:
        self._packed, self._colours, self._sizes = VideoReformatter(), VideoReformatter(), VideoReformatter()

    def write(self, frame: av.VideoFrame, out: UInt8[np.ndarray, "3 H W"], turn: Turn = AS_STORED) -> None:
        """Writes a frame into `out`, resized by area averaging if the sizes differ. turn: makes it upright."""
        if turn != AS_STORED:
            stored = np.empty((3, *turn.size(out.shape[1:])), np.uint8)
            self.write(frame, stored)
            out[:] = turn.upright(stored, 1)
            return
        # Planes are copied as they are, whereas packed pixels would have to be reordered. Resizing is a separate step:
        # combined with a change of colour space, FFmpeg halves the chroma resolution first, or rounds down.
        if frame.width % 16 and frame.format.name in _CUT_SHORT:
            frame = reformatted(frame, self._packed, format="rgb24")
        self._write_planes(reformatted(frame, self._colours, format="gbrp"), out)

    def write_array(self, image: UInt8[np.ndarray, "3 h w"], out: UInt8[np.ndarray, "3 H W"]) -> None:
        """Writes an RGB image into `out`, with the same bytes as a decoded frame that holds it."""
        height, width = image.shape[1:]
        frame = av.VideoFrame(width, height, "gbrp")
        for channel, rows in zip((1, 2, 0), _planes(frame), strict=True):  # four times as fast as `from_ndarray`
            rows[:] = image[channel]
        self._write_planes(frame, out)

    def _write_planes(self, frame: av.VideoFrame, out: UInt8[np.ndarray, "3 H W"]) -> None:
        height, width = out.shape[1:]
        if (frame.height, frame.width) != (height, width):
            frame = reformatted(frame, self._sizes, height=height, width=width, interpolation="AREA")
        for channel, rows in zip((1, 2, 0), _planes(frame), strict=True):
            out[channel] = rows


def _planes(frame: av.VideoFrame) -> list[UInt8[np.ndarray, "H W"]]:
    """The memory of the planes of a frame, green, blue and red."""
    memory = [np.frombuffer(plane, np.uint8).reshape(frame.height, plane.line_size) for plane in frame.planes]  # type: ignore[call-overload]
    return [rows[:, : frame.width] for rows in memory]


def decoder_bytes(size: tuple[int, int]) -> int:
    """The approximate memory of an open video with frames of `size` (H, W): buffers, and frames that it refers to."""
    return _BUFFERS + _REFERENCES * 3 * size[0] * size[1]


def careful(stream: av.VideoStream, shape: tuple[int, int]) -> None:
    """Makes a decoder refuse damage, which FFmpeg otherwise conceals silently, and larger frames than `shape`."""
    most = (shape[0] + 64) * (shape[1] + 64)  # FFmpeg counts whole blocks of up to 64 pixels a side
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"err_detect": "explode", "max_pixels": str(most)}


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def empty_frames(shape: tuple[int, ...], dtype: type[np.generic] = np.uint8) -> np.ndarray:
    """An array for frames. Raises StoreError where it does not fit into memory."""
    with decoding_errors():
        return np.empty(shape, dtype)


@contextlib.contextmanager
def decoding_errors() -> Iterator[None]:
    """Turns the errors of FFmpeg, and of impossible sizes and times in a file, into StoreError."""
    try:
        yield
    except (av.FFmpegError, EOFError, ValueError, ArithmeticError, MemoryError) as error:
        raise StoreError(f"it cannot be decoded ({error})") from error
