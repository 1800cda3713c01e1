"""A folder of videos, with captions or without: no actions, no proprioception.

    anything/**/*.mp4 (m4v, mkv, webm, avi, mov)
    anything/**/name.txt              the caption of name.mp4, or
    captions.csv, captions.jsonl      columns file, text and, for captions of a part, start and stop in seconds;
                                      separated by commas, or by semicolons or tabs, where decimals may be commas

The caption of a part becomes a span, that of a whole file its text. Files without captions get `--options.text`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite
from pathlib import Path
from typing import Any, Literal

from wamkit.data.format.schema import Layout
from wamkit.data.importers.base import (
    IMPORTERS,
    Importer,
    Recording,
    SourceError,
    csv_table,
    inside,
    json_lines,
    reading,
    text_of,
)
from wamkit.data.importers.video_files import (
    VideoFileOptions,
    common_rate,
    frame_count,
    probe_video,
    video_layout,
    video_recording,
    videos_in,
)
from wamkit.metadata import CameraFacts, DatasetMetadata
from wamkit.types import Span


@dataclass(frozen=True)
class VideoOptions(VideoFileOptions):
    """Options of the importer `video`."""

    text: str = ""
    """Text of videos without captions."""
    role: Literal["scene", "wrist", "ego", "other"] = "ego"
    """Role of the camera."""
    licence: str = ""
    """Licence of the data."""


@IMPORTERS.register("video")
class Video(Importer):
    """A folder of videos, with captions or without."""

    Options = VideoOptions
    options: VideoOptions

    @cached_property
    def _rate(self) -> float:
        return common_rate((inside(self.root, n) for n in self.episodes()), self.options.fps)

    def layout(self) -> Layout:
        return video_layout("video", self.options.size, self._rate if self.episodes() else 1.0)

    def metadata(self) -> DatasetMetadata:
        cameras = {"video": CameraFacts(self.options.role)}
        return DatasetMetadata("a folder of videos", "", licence=self.options.licence, cameras=cameras)

    def episodes(self) -> Sequence[str]:
        return videos_in(self.root)

    def read(self, name: str) -> Recording:
        video, fps = probe_video(inside(self.root, name), name), self._rate
        text, spans = self._texts(name, frame_count(video, fps), fps)
        return video_recording(name, text, "video", video, fps, self.options.size, spans=spans)

    def _texts(self, name: str, steps: int, fps: float) -> tuple[str, tuple[Span, ...]]:
        """The text of a video and the captions of its parts."""
        text, spans = self.options.text, []
        beside = inside(self.root, str(Path(name).with_suffix(".txt")))
        if beside.exists():
            with reading(beside, name):
                text = text_of(beside).strip()
        for row in self._captions:
            if row["file"] != name:
                continue
            if row.get("start") in (None, ""):
                text = row["text"]
                continue
            with reading(self.root, name):
                seconds = [str(inf if row.get(k) in (None, "") else row[k]) for k in ("start", "stop")]
                times = [float(x.replace(",", ".")) * fps for x in seconds]
                start, stop = (round(t) if isfinite(t) else -1 for t in times)
            if not 0 <= start < stop or start >= steps:
                place = f"from {row['start']} to {row.get('stop')} seconds"
                raise SourceError(f"{self.root}: the caption '{row['text']}' of {name} is {place}")
            spans.append(Span(start, min(stop, steps), row["text"]))
        if not text and not spans:
            raise SourceError(f"{name}: it has no text; add a caption, or --options.text for all videos without one")
        return text, tuple(spans)

    @cached_property
    def _captions(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        table, lines = inside(self.root, "captions.csv"), inside(self.root, "captions.jsonl")
        if table.exists():
            with reading(table):
                rows += list(csv_table(table, ("file", "text")))
        if lines.exists():
            with reading(lines):
                rows += [row for _, row in json_lines(lines)]
        for row in rows:
            if not isinstance(row, dict) or not all(isinstance(row.get(k), str) for k in ("file", "text")):
                raise SourceError(f"{self.root}: a row of captions has no file or text: {str(row)[:200]}; correct it")
            if not inside(self.root, row["file"]).is_file():
                raise SourceError(f"{self.root}: the caption '{row['text']}' is of {row['file']}, which does not exist")
        return rows
