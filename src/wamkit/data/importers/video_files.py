"""Pictures of foreign videos, one after the other: at a rate and size of our choosing, and never a damaged one unnoticed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from wamkit.config import check_bounds
from wamkit.data.format.video import CONTAINERS
from wamkit.data.importers.base import SourceError, reading

SIDE = 16_384  # pixels; a video that declares more is taken for a decompression bomb
ENDINGS = (".mp4", ".mkv", ".webm", ".avi", ".mov")


@dataclass(frozen=True)
class VideoFile:
    """What a video file says of itself. fps: pictures a second.   frames: how many.   size: (H, W)."""

    path: Path
    fps: float
    frames: int
    size: tuple[int, int]

    @property
    def seconds(self) -> float:
        return self.frames / self.fps


def videos_in(root: Path) -> list[str]:
    """Videos in the folder and those below it, by their names from there."""
    found = (p for p in root.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
    return sorted(str(p.relative_to(root)) for p in found)


def videos_by_stem(root: Path) -> dict[str, str]:
    """The same by their names without folder and ending. Raises SourceError for two of one name."""
    out: dict[str, str] = {}
    for name in videos_in(root):
        if (stem := Path(name).stem) in out:
            raise SourceError(f"{root}: {out[stem]} and {name} are both video {stem}; remove one")
        out[stem] = name
    return out


def probe_video(path: Path, episode: str = "") -> VideoFile:
    """Reads the head of a video. Raises SourceError for what is none."""
    import av

    with reading(path, episode), av.open(str(path), options=CONTAINERS) as container:
        if not container.streams.video:
            raise SourceError(f"{path}: there is no video in it")
        s = container.streams.video[0]
        fps = float(s.average_rate or s.base_rate or 0)
        if not 0 < fps <= 1000 or not 0 < s.height <= SIDE or not 0 < s.width <= SIDE:
            raise SourceError(f"{path}: {s.height}x{s.width} pictures, {fps:g} a second: no video is like that")
        frames = s.frames or round(float((container.duration or 0) / av.time_base) * fps)
        if not frames:
            raise SourceError(f"{path}: it has no pictures")
        return VideoFile(path, fps, frames, (s.height, s.width))


def frame_count(film: VideoFile, fps: float, start: float = 0.0, stop: float | None = None) -> int:
    """How many pictures `play` gives: those at start, start + 1 / fps, ... before `stop` (seconds; None: the end)."""
    end = film.seconds if stop is None else min(stop, film.seconds)
    return max(0, int(np.ceil(round((end - start) * fps, 6))))


def frame_numbers(film: VideoFile, fps: float) -> np.ndarray:
    """The number of each picture that `play` gives of a whole film: which rows of what was recorded beside it belong to them."""
    rows = np.floor(np.arange(frame_count(film, fps)) * film.fps / fps + 0.1 + 1e-6).astype(int)
    return np.minimum(rows, film.frames - 1)


def read_frames(
    film: VideoFile, fps: float, size: tuple[int, int], start: float = 0.0, stop: float | None = None, episode: str = ""
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The pictures that stand at start, start + 1 / fps, ... seconds, as `fitted` makes them of `size`.

    Each is the last one shown at its instant. One picture is held at a time. Raises SourceError for damage, and where the
    video ends early.
    """
    import av
    from av.video.reformatter import VideoReformatter  # one for all pictures: a new one for each is twice as slow

    count, reformatter = frame_count(film, fps, start, stop), VideoReformatter()
    with reading(film.path, episode), av.open(str(film.path), options=CONTAINERS) as container:
        stream = container.streams.video[0]
        # Without "explode" FFmpeg paints over damaged parts and says nothing.
        stream.codec_context.thread_count, stream.codec_context.options = 1, {"err_detect": "explode"}
        began = (stream.start_time or 0) * stream.time_base
        if start > 1:
            container.seek(round((Fraction(start).limit_denominator(10**6) + began) / stream.time_base), stream=stream)

        given, before = 0, None
        for frame in container.decode(stream):
            # A picture shows until the next one begins, so it is given when that one comes.
            now = float(frame.pts * stream.time_base - began)
            # Containers round times, some to milliseconds: a tenth of a picture early is in time.
            while before is not None and given < count and start + given / fps < now - 0.1 / film.fps:
                given += 1
                yield resize_and_crop(before, size, reformatter)
            if given >= count:
                return
            before = frame
        while before is not None and given < count and start + given / fps < film.seconds + 0.5 / film.fps:
            given += 1
            yield resize_and_crop(before, size, reformatter)
    if given < count:
        raise SourceError(f"{film.path}: it ends after {given} of {count} pictures; is it cut off?")


_EXACT = 1 << 5 | 1 << 18 | 1 << 14
"""swscale's area, accurate_rnd and full_chroma_inp, which PyAV names since 18.

By default FFmpeg rounds down where it need not resize 4:2:0, to pictures one to two grey levels too dark, and so it does straight to rgb24.
"""


def resize_and_crop(frame: Any, size: tuple[int, int], reformatter: Any) -> UInt8[np.ndarray, "h w 3"]:
    """A picture of PyAV's, resized by area until it covers `size`, of which the middle is kept.

    In this order, as a picture of 1080 rows takes a fifth of the time that it takes when it is cut first.
    """
    H, W, top, left = _cover((frame.height, frame.width), size)
    rgb = reformatter.reformat(frame, height=H, width=W, format="gbrp", interpolation=_EXACT, threads=1).to_ndarray()
    return np.ascontiguousarray(rgb[top : top + size[0], left : left + size[1]])


def _cover(have: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Height and width of the smallest picture of the shape `have` that covers `size`, and where (top, left) its middle begins."""
    scale = max(size[0] / have[0], size[1] / have[1])
    H, W = (max(b, round(a * scale)) for a, b in zip(have, size, strict=True))
    if max(H, W) > SIDE:
        raise SourceError(f"pictures of {have} cannot be cut to the shape of {size}")
    return H, W, (H - size[0]) // 2, (W - size[1]) // 2


def cropped_intrinsics(matrix: np.ndarray, have: tuple[int, int], size: tuple[int, int]) -> tuple[float, ...]:
    """A camera's 3x3 matrix for pictures of (H, W) `have` as it is for those that `fitted` makes of them, row by row.

    In pixels from the upper left corner, which is where the first pixel begins.
    """
    H, W, top, left = _cover(have, size)
    change = np.array([[W / have[1], 0, -left], [0, H / have[0], -top], [0, 0, 1]])
    return tuple(float(x) for x in (change @ np.asarray(matrix, np.float64)).reshape(-1))


@dataclass(frozen=True)
class VideoFileOptions:
    """What importers of videos share."""

    size: tuple[int, int] = (64, 64)
    """Height and width of the stored pictures: each is resized until it covers that, and its middle kept."""
    fps: float | None = None
    """Pictures a second; those of the videos, which must then agree, if not given."""

    def __post_init__(self) -> None:
        check_bounds(self, size=(1, SIDE), **({} if self.fps is None else {"fps": (0.01, 1000)}))


def common_rate(films: list[VideoFile], fps: float | None) -> float:
    """`fps`, or the rate that all videos have. Raises SourceError naming two that differ."""
    if fps is not None:
        return fps
    for film in films[1:]:
        if abs(film.fps / films[0].fps - 1) > 0.01:
            raise SourceError(
                f"{films[0].path} has {films[0].fps:g} pictures a second, {film.path} has {film.fps:g}: one rate for all is needed, "
                f"--options.fps {min(f.fps for f in films):g} for example"
            )
    return films[0].fps
