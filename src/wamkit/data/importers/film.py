"""Pictures of foreign videos, one after the other: at a rate and size of our choosing, and never a damaged one unnoticed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from wamkit.config import within
from wamkit.data.importers.base import SourceError, reading

SIDE = 16_384  # pixels; a video that declares more is taken for a decompression bomb


@dataclass(frozen=True)
class Film:
    """What a video file says of itself. fps: pictures a second.   frames: how many.   size: (H, W)."""

    path: Path
    fps: float
    frames: int
    size: tuple[int, int]

    @property
    def seconds(self) -> float:
        return self.frames / self.fps


def film_of(path: Path, episode: str = "") -> Film:
    """Reads the head of a video. Raises SourceError for what is none."""
    import av

    with reading(path, episode), av.open(str(path)) as container:
        if not container.streams.video:
            raise SourceError(f"{path}: there is no video in it")
        s = container.streams.video[0]
        fps = float(s.average_rate or s.base_rate or 0)
        if not 0 < fps <= 1000 or not 0 < s.height <= SIDE or not 0 < s.width <= SIDE:
            raise SourceError(f"{path}: {s.height}x{s.width} pictures, {fps:g} a second: no video is like that")
        frames = s.frames or round(float((container.duration or 0) / av.time_base) * fps)
        if not frames:
            raise SourceError(f"{path}: it has no pictures")
        return Film(path, fps, frames, (s.height, s.width))


def steps_between(film: Film, fps: float, start: float = 0.0, stop: float | None = None) -> int:
    """How many pictures `play` gives: those at start, start + 1 / fps, ... before `stop` (seconds; None: the end)."""
    end = film.seconds if stop is None else min(stop, film.seconds)
    return max(0, int(np.ceil(round((end - start) * fps, 6))))


def play(
    film: Film, fps: float, size: tuple[int, int], start: float = 0.0, stop: float | None = None, episode: str = ""
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The pictures that stand at start, start + 1 / fps, ... seconds, cut to the shape of `size` around the middle, then resized by area.

    Each is the last one shown at its instant. One picture is held at a time. Raises SourceError for damage, and where the
    video ends early.
    """
    import av
    from av.video.reformatter import VideoReformatter  # one for all pictures: a new one for each is twice as slow

    count, reformatter = steps_between(film, fps, start, stop), VideoReformatter()
    top, left, height, width = middle(film.size, size)
    with reading(film.path, episode), av.open(str(film.path)) as container:
        stream = container.streams.video[0]
        # Without "explode" FFmpeg paints over damaged parts and says nothing.
        stream.codec_context.thread_count, stream.codec_context.options = 1, {"err_detect": "explode"}
        began = (stream.start_time or 0) * stream.time_base
        if start > 1:
            container.seek(round((Fraction(start).limit_denominator(10**6) + began) / stream.time_base), stream=stream)

        def picture(frame: av.VideoFrame) -> np.ndarray:
            rgb = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
            return _resized(rgb[top : top + height, left : left + width], size)

        given, before = 0, None
        for frame in container.decode(stream):
            # A picture shows until the next one begins, so it is given when that one comes.
            now = float(frame.pts * stream.time_base - began)
            # Containers round times, some to milliseconds: a tenth of a picture early is in time.
            while before is not None and given < count and start + given / fps < now - 0.1 / film.fps:
                given += 1
                yield picture(before)
            if given >= count:
                return
            before = frame
        while before is not None and given < count and start + given / fps < film.seconds + 0.5 / film.fps:
            given += 1
            yield picture(before)
    if given < count:
        raise SourceError(f"{film.path}: it ends after {given} of {count} pictures; is it cut off?")


def middle(have: tuple[int, int], want: tuple[int, int]) -> tuple[int, int, int, int]:
    """The largest middle part (top, left, height, width) of the shape of `want`."""
    (H, W), (h, w) = have, want
    height, width = (H, max(1, round(H * w / h))) if H * w <= W * h else (max(1, round(W * h / w)), W)
    return (H - height) // 2, (W - width) // 2, height, width


def _resized(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    import av

    if rgb.shape[:2] == size:
        return np.ascontiguousarray(rgb)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
    return frame.reformat(width=size[1], height=size[0], format="rgb24", interpolation="AREA").to_ndarray()


@dataclass(frozen=True)
class FilmOptions:
    """What importers of videos share."""

    size: tuple[int, int] = (64, 64)
    """Height and width of the stored pictures: the middle of each is cut to that shape, then resized."""
    fps: float | None = None
    """Pictures a second; those of the videos, which must then agree, if not given."""

    def __post_init__(self) -> None:
        within(self, size=(1, SIDE), **({} if self.fps is None else {"fps": (0.01, 1000)}))


def common_rate(films: list[Film], fps: float | None) -> float:
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
