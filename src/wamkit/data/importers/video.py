"""A plain folder of videos, with captions or without: no actions, no proprioception.

    anything/**/*.mp4 (mkv, webm, avi, mov)
    anything/**/name.txt              the caption of name.mp4, or
    captions.csv, captions.jsonl      columns file, text and, for what is said of a part, start and stop in seconds

A part's caption becomes a span; the caption of a whole file its text. Files that no caption names have `--options.text`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from wamkit.data.format.metadata_io import CameraFacts, DatasetMetadata
from wamkit.data.format.schema import Layout
from wamkit.data.importers.base import IMPORTERS, Importer, Recording, SourceError, inside, reading
from wamkit.data.importers.video_files import (
    VideoFile,
    VideoFileOptions,
    common_rate,
    frame_count,
    probe_video,
    read_frames,
    videos_in,
)
from wamkit.types import Span


@dataclass(frozen=True)
class VideoOptions(VideoFileOptions):
    """Of the importer `video`."""

    text: str = ""
    """What is said of videos that no caption names."""
    role: Literal["scene", "wrist", "ego", "other"] = "ego"
    """What the camera looks at."""
    licence: str = ""


@IMPORTERS.register("video")
class Video(Importer):
    """A folder of videos, with captions or without."""

    Options = VideoOptions
    options: VideoOptions

    def _frames(self, name: str) -> VideoFile:
        return probe_video(inside(self.root, name), name)

    @cached_property
    def _rate(self) -> float:
        return self.options.fps or common_rate([self._frames(n) for n in self.episodes()], None)

    def layout(self) -> Layout:
        fps = self._rate if self.episodes() else 1.0
        return Layout(("video",), (3, *self.options.size), (), (), fps, "none", expert=False, rewards=False)

    def metadata(self) -> DatasetMetadata:
        return DatasetMetadata(
            "a folder of videos", "", licence=self.options.licence, cameras={"video": CameraFacts(self.options.role)}
        )

    def episodes(self) -> Sequence[str]:
        return videos_in(self.root)

    def read(self, name: str) -> Recording:
        film, fps = self._frames(name), self._rate
        steps = frame_count(film, fps)
        text, spans = self._said(name, steps, fps)
        none = np.zeros((steps, 0), np.float32)
        return Recording(
            name, text, none, none, {"video": lambda: read_frames(film, fps, self.options.size, episode=name)}, spans
        )

    def _said(self, name: str, steps: int, fps: float) -> tuple[str, tuple[Span, ...]]:
        """The text of a video and what is said of its parts."""
        text, spans = self.options.text, []
        beside = inside(self.root, name).with_suffix(".txt")
        if beside.exists():
            with reading(beside, name):
                text = beside.read_text(encoding="utf-8").strip()
        for row in self._captions:
            if row["file"] != name:
                continue
            if row.get("start") in (None, ""):
                text = row["text"]
                continue
            with reading(self.root, name):
                start, stop = (round(float(row[k]) * fps) for k in ("start", "stop"))
            if not 0 <= start < stop or start >= steps:
                raise SourceError(
                    f"{self.root}: the caption '{row['text']}' of {name} is from {row['start']} to {row['stop']} seconds"
                )
            spans.append(Span(start, min(stop, steps), row["text"]))
        if not text and not spans:
            raise SourceError(f"{name}: nobody says what it shows: add a caption, or --options.text for all without")
        return text, tuple(spans)

    @cached_property
    def _captions(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        table, lines = self.root / "captions.csv", self.root / "captions.jsonl"
        if table.exists():
            with reading(table), table.open(newline="", encoding="utf-8") as file:
                rows += list(csv.DictReader(file))
        if lines.exists():
            with reading(lines):
                rows += [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines() if line.strip()]
        for row in rows:
            if not isinstance(row, dict) or not all(isinstance(row.get(k), str) for k in ("file", "text")):
                raise SourceError(f"{self.root}: a row of captions has no file or text: {row}")
            if not inside(self.root, row["file"]).is_file():
                raise SourceError(f"{self.root}: the caption '{row['text']}' is of {row['file']}, which is not there")
        return rows
