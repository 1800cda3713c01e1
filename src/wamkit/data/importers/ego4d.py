"""Ego4D: long first-person videos, and narrations at points in time.

    <source>/**/<video_uid>.mp4          full scale, or the smaller ones that `ego4d --datasets video_540ss` downloads
    <source>/**/narration.json           {video_uid: {"narration_pass_1": {"narrations": [{"timestamp_sec",
                                         "narration_text", "annotation_uid"}]}, "narration_pass_2": ...}}

A narration becomes an episode that lasts until the next narration of its pass, up to `--options.longest` seconds.
"#C C opens the drawer" describes the wearer, and the marks are removed. "#O" describes others. "#unsure" is ignored.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

from wamkit.config import AtMost, Between, Rate
from wamkit.data.format.schema import Layout
from wamkit.data.importers.base import (
    IMPORTERS,
    LIMIT,
    Importer,
    Recording,
    SourceError,
    entry,
    inside,
    reading,
    real,
    words,
)
from wamkit.data.importers.video_files import (
    VideoFileOptions,
    common_rate,
    frame_count,
    probe_video,
    video_layout,
    video_recording,
    videos_by_stem,
)
from wamkit.files import read_json, visible
from wamkit.metadata import CameraFacts, DatasetMetadata

SECONDS = 10**6  # a video that is narrated later than that is none


@dataclass(frozen=True)
class Ego4DOptions(VideoFileOptions):
    """Options of the importer `ego4d`."""

    fps: Rate | None = 10.0
    """Frames a second; the videos have 30."""
    longest: Annotated[float, Between(0.1, inf), AtMost(1e6)] = 4.0
    """Greatest length of an episode, in seconds."""
    of: Literal["wearer", "all"] = "wearer"
    """Import narrations of the wearer only, or of others too."""


@IMPORTERS.register("ego4d")
class Ego4D(Importer):
    """Ego4D: first-person video with narrations."""

    Options = Ego4DOptions
    options: Ego4DOptions

    @cached_property
    def _videos(self) -> dict[str, Path]:
        return videos_by_stem(self.root)

    @cached_property
    def _parts(self) -> dict[str, tuple[str, float, float, str]]:
        """(video, start, stop, text) of the narrations by name; times are in seconds."""
        files = visible(self.root, "**/narration.json")
        if not files:
            raise SourceError(f"{self.root}: there is no narration.json in it")
        parts: dict[str, tuple[str, float, float, str]] = {}
        path = inside(self.root, str(files[0].relative_to(self.root)))
        with reading(path):
            passes = read_json(path, max_bytes=LIMIT)
            if not isinstance(passes, dict):
                raise SourceError("it is no object with videos as keys; is it Ego4D's?")
            for video in (v for v in sorted(passes) if v in self._videos):
                for number in (1, 2):
                    rows = entry(entry(passes[video], f"narration_pass_{number}", dict, {}), "narrations", list, [])
                    parts |= {f"{video}/{number}/{i}": p for i, p in enumerate(self._narrations(video, rows))}
        return parts

    def _narrations(self, video: str, rows: list[dict[str, Any]]) -> list[tuple[str, float, float, str]]:
        said = []
        for i, row in enumerate(rows):
            text = words(entry(row, "narration_text"), f"narration {i} of video {video}")
            when = real(entry(row, "timestamp_sec"), f"timestamp_sec of '{text[:80]}' in video {video}", 0, SECONDS)
            said.append((when, text.strip()))
        said, out = sorted(said, key=lambda s: s[0]), []
        times = [when for when, _ in said]
        for start, text in said:
            later = bisect_right(times, start)  # simultaneous narrations all last until a later one
            stop = min(times[later] if later < len(times) else inf, start + self.options.longest)
            wearer = text.upper().startswith("#C")
            if "#unsure" in text.lower() or not (wearer or self.options.of == "all"):
                continue
            text = re.sub(r"^(#\w+\s+)+", "", text)
            text = re.sub(r"^[A-Z]\s+", "", text) if wearer else text
            if text and stop > start:
                out.append((video, start, stop, text))
        return out

    @cached_property
    def _rate(self) -> float:
        used = sorted({video for video, *_ in self._parts.values()})
        return common_rate((self._videos[v] for v in used), self.options.fps)

    def layout(self) -> Layout:
        if not self._videos:
            raise SourceError(f"{self.root}: there are no videos (*.mp4) in it")
        return video_layout("head", self.options.size, self._rate)

    def metadata(self) -> DatasetMetadata:
        return DatasetMetadata("Ego4D", "", licence="Ego4D licence", cameras={"head": CameraFacts("ego")})

    def episodes(self) -> Sequence[str]:
        return list(self._parts)

    def read(self, name: str) -> Recording:
        uid, start, stop, text = self._parts[name]
        video = probe_video(self._videos[uid], name)
        if not frame_count(video, self._rate, start, stop):
            raise SourceError(
                f"{video.path} (episode {name}): it has {video.seconds:.1f} seconds, the narration is at {start:g}"
            )
        return video_recording(name, text, "head", video, self._rate, self.options.size, start, stop)
