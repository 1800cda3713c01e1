"""Helpers for importers of video files: frames at any rate and size, one at a time, with damage always noticed.

Frames are those that a player shows: turned upright and mirrored as the header says, with square pixels, in the order
of display, from the start to the end of the edit list. Times count from the start of the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import UInt8

from wamkit.config import Between, Checked, Rate
from wamkit.data.format.orientation import AS_STORED, Turn, turn_of
from wamkit.data.format.schema import Layout
from wamkit.data.format.video import CONTAINERS, reformatted
from wamkit.data.importers.base import PIXELS, Recording, SourceError, inside, pixels, reading
from wamkit.files import visible

SIDE = 16_384  # pixels; larger images are not made
_Side = Annotated[int, Between(1, SIDE)]
STEPS = 10**7  # frames of an episode; one that declares more is taken for a bomb
_ASPECT = 100  # times that a pixel may be wider than high
_SQUARE = Fraction(1)
ENDINGS = (".mp4", ".m4v", ".mkv", ".webm", ".avi", ".mov")


@dataclass(frozen=True)
class VideoFileOptions(Checked):
    """Options that importers of videos share."""

    size: tuple[_Side, _Side] = (64, 64)
    """Height and width of the stored images. Frames are resized until they cover it, and cropped to the middle."""
    fps: Rate | None = None
    """Frames a second; if not given, those of the videos, which must then agree."""


@dataclass(frozen=True)
class VideoFile:
    """The properties of a video file.

    fps: frames a second.
    frames: number of frames that are shown.
    size: (H, W) as shown: upright, with square pixels.
    seconds: the duration.
    turn: makes its frames upright.
    aspect: width of a pixel over its height, as it is stored.
    """

    path: Path
    fps: float
    frames: int
    size: tuple[int, int]
    seconds: float
    turn: Turn = AS_STORED
    aspect: Fraction = _SQUARE


def videos_in(root: Path) -> list[str]:
    """The videos in a folder and those below it, by their names relative to it."""
    found = (p for p in visible(root, "**/*") if p.suffix.lower() in ENDINGS and p.is_file())
    return [str(p.relative_to(root)) for p in found]


def videos_by_stem(root: Path) -> dict[str, Path]:
    """The videos in a folder and those below it, by their stems. Raises SourceError for two with the same stem."""
    out: dict[str, str] = {}
    for name in videos_in(root):
        if (stem := Path(name).stem) in out:
            raise SourceError(f"{root}: {out[stem]} and {name} are both video {stem}; remove one")
        out[stem] = name
    return {stem: inside(root, name) for stem, name in out.items()}


def probe_video(path: Path, episode: str = "") -> VideoFile:
    """Reads the header of a video. Raises SourceError if it is not a video."""
    import av

    with reading(path, episode), av.open(str(path), options=CONTAINERS) as container:
        _refuse_cut_matroska(path)
        s = _stream(container)
        fps = float(s.average_rate or s.base_rate or 0)
        pixels(s.height, s.width, "a frame")
        if not 0.01 <= fps <= 1000:
            raise SourceError(f"{fps:g} frames a second: no video is like that")
        frames, length = _extent(path, s, fps)
        declared, size = round((container.duration or 0) / av.time_base * fps), path.stat().st_size
        if not 0 < frames <= size or declared > size:
            raise SourceError(f"it declares {max(frames, declared)} frames in {size} bytes: no video is like that")
        length += float((s.start_time or 0) * s.time_base) - _beginning(container, s, fps)
        turn, aspect = _as_shown(container, s)
        height, width = turn.size((s.height, round(s.width * aspect)))
        return VideoFile(path, fps, frames, (height, width), length, turn, aspect)


def _extent(path: Path, stream: Any, fps: float) -> tuple[int, float]:
    """The number of frames that are shown, and the seconds from the first to the end of the last."""
    import av

    if stream.frames:
        length = float((stream.duration or 0) * stream.time_base)
        frames = round(length * fps)
        # Fewer are shown where the edit list begins late or ends early.
        return (frames, length) if 0 < frames < stream.frames else (stream.frames, stream.frames / fps)
    # Matroska, and what is streamed, state at most when all of the file ends, which may be its sound.
    frames, start, end = 0, float("inf"), float("-inf")
    with av.open(str(path), options=CONTAINERS) as container:
        for packet in container.demux(_stream(container)):
            if packet.pts is not None:
                at = packet.pts * packet.time_base
                last = at + (packet.duration * packet.time_base if packet.duration else 1 / fps)
                frames, start, end = frames + 1, min(start, float(at)), max(end, float(last))
    return frames, max(0.0, end - start)


def _stream(container: Any) -> Any:
    """The stream that a player shows: neither a cover nor a preview. Raises SourceError where there is no video."""
    if (stream := container.streams.best("video")) is None:
        raise SourceError("there is no video in it")
    return stream


def _beginning(container: Any, stream: Any, fps: float) -> float:
    """The second of a container's clock from which times are counted: where its frames begin.

    If its sound begins earlier by more than a frame, then it is that: players show the first frame meanwhile.
    """
    import av

    own, whole = float((stream.start_time or 0) * stream.time_base), (container.start_time or 0) / av.time_base
    return whole if own - whole > 1.1 / fps else own


def _as_shown(container: Any, stream: Any) -> tuple[Turn, Fraction]:
    """The turn of a video's frames and the aspect of its pixels, which may be stated in the first frame alone."""
    _careful(stream)
    first = next(container.decode(stream), None)
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or _SQUARE
    if not Fraction(1, _ASPECT) <= aspect <= _ASPECT:
        raise SourceError(f"its pixels are {aspect} times as wide as they are high: no video is like that")
    return AS_STORED if first is None else turn_of(first), aspect


def _careful(stream: Any) -> None:
    """Makes a decoder refuse damage, which FFmpeg otherwise conceals silently, and images that are too large."""
    options = {"err_detect": "explode", "max_pixels": str(PIXELS)}
    stream.codec_context.thread_count, stream.codec_context.options = 1, options


def _refuse_cut_matroska(path: Path) -> None:
    """Raises SourceError for an mkv or webm file shorter than it declares, which FFmpeg plays up to the cut."""
    with path.open("rb") as file:
        for kind in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):  # the head, then all of the rest
            if file.read(4) != kind:
                return
            first = file.read(1)
            more = 8 - first[0].bit_length() if first else 8  # leading zeros: bytes of the size that follow
            size = int.from_bytes(first + file.read(more), "big") & ((1 << 7 * (more + 1)) - 1)
            end = file.tell() + size
            if kind[0] == 0x1A:
                file.seek(end)
        unknown = size == (1 << 7 * (more + 1)) - 1  # of a live stream
        if not unknown and end > path.stat().st_size:
            raise SourceError(f"it declares {end} bytes and has {path.stat().st_size}: it is cut off")


def frame_count(video: VideoFile, fps: float, start: float = 0.0, stop: float | None = None) -> int:
    """The number of frames that `read_frames` yields: those at start, start + 1 / fps, ... before `stop`.

    start, stop: in seconds; a stop of None is the end.
    """
    end = video.seconds if stop is None else min(stop, video.seconds)
    return max(0, int(np.ceil(round((end - start) * fps, 6))))


def frame_numbers(video: VideoFile, fps: float) -> np.ndarray:
    """The number in the file of each frame that `read_frames` yields for a whole video, int (T,).

    These are the rows of data recorded beside the video that belong to the frames.
    """
    rows = np.floor(np.arange(frame_count(video, fps)) * video.fps / fps + 0.1 + 1e-6).astype(int)
    return np.minimum(rows, video.frames - 1)


def read_frames(
    video: VideoFile,
    fps: float,
    size: tuple[int, int],
    start: float = 0.0,
    stop: float | None = None,
    episode: str = "",
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The frames shown at start, start + 1 / fps, ... seconds before `stop`, resized and cropped to `size`.

    Each is the last frame shown at its instant. One frame at a time is in memory. Raises SourceError for damage, and
    for a video that ends early.
    """
    import av
    from av.video.reformatter import VideoReformatter  # one for all frames: a new one for each is twice as slow

    count, reformatter = frame_count(video, fps, start, stop), VideoReformatter()
    shown = lambda frame: resize_and_crop(frame, size, reformatter, video.aspect)  # noqa: E731
    with reading(video.path, episode), av.open(str(video.path), options=CONTAINERS) as container:
        stream = _stream(container)
        _careful(stream)
        yielded, before, end = 0, None, video.seconds
        for now, frame in _timed(container, stream, video, start):
            before = frame if before is None else before
            # A frame is shown until the next one begins, so it is yielded when that one comes.
            # Containers round times, some to milliseconds: a tenth of a frame early is in time.
            while yielded < count and start + yielded / fps < now - 0.1 / video.fps:
                yielded += 1
                yield shown(before)
            if yielded >= count:
                return
            before = frame
            if stream.frames:  # else the container does not say how long the last one is shown
                end = now + max(1 / video.fps, float((frame.duration or 0) * stream.time_base))
        while before is not None and yielded < count and start + yielded / fps < end + 0.5 / video.fps:
            yielded += 1
            yield shown(before)
    if yielded < count:
        raise SourceError(f"{video.path}: it ends after {yielded} of {count} frames; is it cut off?")


def _timed(container: Any, stream: Any, video: VideoFile, start: float) -> Iterator[tuple[float, Any]]:
    """The frames of a video in the order of display, each with the second at which it is shown.

    start: frames that end before this second may be left out.
    """
    began = _beginning(container, stream, video.fps)
    # AVI has no times of display, and FFmpeg gives its frames those of decoding.
    counted = container.format.name == "avi" and stream.codec_context.has_b_frames
    if start > 1 and began >= 0 and not counted:  # FFmpeg does not find keyframes before second 0
        container.seek(round((start + began) / stream.time_base), stream=stream)
    for number, frame in enumerate(container.decode(stream)):
        if frame.pts is None and not counted and start > 1:
            raise SourceError("its frames have no times; write it again (ffmpeg -i FILE -c copy OUT.mp4)")
        timed = frame.pts is not None and not counted
        yield float(frame.pts * stream.time_base) - began if timed else number / video.fps, frame


def read_all_frames(
    video: VideoFile, size: tuple[int, int], count: int, episode: str = "", first: int = 0
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The frames of a video in the order of display, whatever their times, for data with a row for each frame.

    size: as in `read_frames`.
    count: the number of rows. Frames after the last row are left out: cameras often stop later than the rest.
    first: number of frames to leave out before.

    Raises SourceError for damage, and for fewer frames.
    """
    import av
    from av.video.reformatter import VideoReformatter

    number, reformatter = -1, VideoReformatter()
    with reading(video.path, episode), av.open(str(video.path), options=CONTAINERS) as container:
        stream = _stream(container)
        _careful(stream)
        for number, frame in enumerate(container.decode(stream)):
            if number >= first + count:
                break
            if number >= first:
                yield resize_and_crop(frame, size, reformatter, video.aspect)
    if number + 1 < first + count:
        where = f"{video.path} (episode {episode})" if episode else str(video.path)
        raise SourceError(f"{where}: it shows {number + 1} frames for {first + count} rows; is it cut off?")


_EXACT = 1 << 5 | 1 << 18 | 1 << 14
"""swscale's flags area, accurate_rnd and full_chroma_inp, which PyAV names since version 18.

By default FFmpeg rounds 4:2:0 down where it need not resize, to images one to two grey levels too dark. It also does so
when it converts directly to rgb24.
"""


def resize_and_crop(
    frame: Any, size: tuple[int, int], reformatter: Any, aspect: Fraction = _SQUARE
) -> UInt8[np.ndarray, "h w 3"]:
    """A PyAV frame as RGB, upright, resized by area averaging until it covers `size`, then cropped to the middle.

    aspect: width of a stored pixel over its height.

    The opposite order would take five times as long for frames of 1080 rows.
    """
    turn = turn_of(frame)
    H, W, top, left = _cover(turn.size((frame.height, round(frame.width * aspect))), size)
    h, w = turn.size((H, W))
    rgb = reformatted(frame, reformatter, height=h, width=w, format="gbrp", interpolation=_EXACT).to_ndarray()
    rgb = turn.upright(rgb)
    return np.ascontiguousarray(rgb[top : top + size[0], left : left + size[1]])


def _cover(have: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(H, W, top, left): the smallest image in the proportions of `have` that covers `size`, and its middle."""
    scale = max(size[0] / have[0], size[1] / have[1])
    H, W = (max(b, round(a * scale)) for a, b in zip(have, size, strict=True))
    if max(H, W) > SIDE:
        raise SourceError(f"frames of {have} cannot be cropped to the shape of {size}")
    return H, W, (H - size[0]) // 2, (W - size[1]) // 2


def cropped_intrinsics(matrix: np.ndarray, have: tuple[int, int], size: tuple[int, int]) -> tuple[float, ...]:
    """A camera's 3x3 matrix after `resize_and_crop`, row by row.

    matrix: for frames of (H, W) `have`, as they are shown, in pixels from the upper left corner of the first pixel.
    """
    H, W, top, left = _cover(have, size)
    change = np.array([[W / have[1], 0, -left], [0, H / have[0], -top], [0, 0, 1]])
    return tuple(float(x) for x in (change @ np.asarray(matrix, np.float64)).reshape(-1))


def common_rate(paths: Iterable[Path], fps: float | None) -> float:
    """`fps` if given, else the rate that all videos have. Raises SourceError naming two that differ."""
    if fps is not None:
        return fps
    videos = [probe_video(path) for path in paths]
    for video in videos[1:]:
        if abs(video.fps / videos[0].fps - 1) > 0.01:
            raise SourceError(
                f"{videos[0].path} has {videos[0].fps:g} frames a second, {video.path} has {video.fps:g}: all need one "
                f"rate, for example --options.fps {min(v.fps for v in videos):g}"
            )
    return videos[0].fps


def video_layout(camera: str, size: tuple[int, int], fps: float) -> Layout:
    """The layout of video from one camera, without state or actions."""
    return Layout((camera,), (3, *size), (), (), fps, "none", expert=False, rewards=False)


def video_recording(
    name: str,
    text: str,
    camera: str,
    video: VideoFile,
    fps: float,
    size: tuple[int, int],
    start: float = 0.0,
    stop: float | None = None,
    **more: Any,
) -> Recording:
    """A recording of video from one camera, from `start` to `stop` seconds, without state or actions.

    more: further fields of the recording.
    """
    if (steps := frame_count(video, fps, start, stop)) > STEPS:
        raise SourceError(f"{video.path} (episode {name}): it declares {steps} frames, more than {STEPS}; refused")
    empty = np.zeros((steps, 0), np.float32)
    images = {camera: lambda: read_frames(video, fps, size, start, stop, name)}
    videos = {camera: video.path} if start == 0 and stop is None else {}
    return Recording(name=name, text=text, state=empty, action=empty, images=images, videos=videos, **more)
