"""Ego4D: long first-person videos and narrations, which are points in time.

    <source>/**/<video_uid>.mp4          full scale, or the smaller ones that `ego4d --datasets video_540ss` downloads
    <source>/**/narration.json           {video_uid: {"narration_pass_1": {"narrations": [{"timestamp_sec", "narration_text",
                                         "annotation_uid"}]}, "narration_pass_2": ...}}

A narration holds until the next one of its pass, at most for so many seconds, and becomes an episode. "#C C opens the drawer" is said of
the wearer: the marks are taken away. "#O" is said of others, and "#unsure" is no narration.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wamkit.config import check_bounds
from wamkit.data.format.metadata_io import CameraFacts, DatasetMetadata
from wamkit.data.format.schema import Layout
from wamkit.data.importers.base import IMPORTERS, Importer, Recording, SourceError, inside, reading
from wamkit.data.importers.video_files import (
    VideoFileOptions,
    common_rate,
    frame_count,
    probe_video,
    read_frames,
    videos_by_stem,
)


@dataclass(frozen=True)
class Ego4DOptions(VideoFileOptions):
    """Of the importer `ego4d`."""

    fps: float | None = 10.0
    """Pictures a second; the videos have 30."""
    longest: float = 4.0
    """Seconds that a narration holds at most."""
    of: Literal["wearer", "all"] = "wearer"
    """Whose deeds: the wearer's, or others' too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self, longest=(0.1, inf))


@IMPORTERS.register("ego4d")
class Ego4D(Importer):
    """Ego4D: first-person video with narrations."""

    Options = Ego4DOptions
    options: Ego4DOptions

    @cached_property
    def _videos(self) -> dict[str, Path]:
        return {stem: inside(self.root, name) for stem, name in videos_by_stem(self.root).items()}

    @cached_property
    def _parts(self) -> dict[str, tuple[str, float, float, str]]:
        """(video, first second, last second, text) of the narrations, by name."""
        files = sorted(self.root.rglob("narration.json"))
        if not files:
            raise SourceError(f"{self.root}: there is no narration.json in it")
        parts: dict[str, tuple[str, float, float, str]] = {}
        with reading(files[0]):
            said = json.loads(files[0].read_text(encoding="utf-8"))
            for video in (v for v in sorted(said) if v in self._videos):
                for number in (1, 2):
                    rows = said[video].get(f"narration_pass_{number}", {}).get("narrations", [])
                    parts |= {f"{video}/{number}/{i}": p for i, p in enumerate(self._of(video, rows))}
        return parts

    def _of(self, video: str, rows: list[dict[str, Any]]) -> list[tuple[str, float, float, str]]:
        for row in rows:
            if not 0 <= float(row["timestamp_sec"]) < inf:
                raise SourceError(f"video {video}: '{row['narration_text']}' is said at {row['timestamp_sec']} seconds")
        rows = sorted(rows, key=lambda r: float(r["timestamp_sec"]))
        times, out = [float(row["timestamp_sec"]) for row in rows], []
        for row, start in zip(rows, times, strict=True):
            text = row["narration_text"].strip()
            # Of several that are said at once each holds until something is said later.
            stop = min(next((t for t in times if t > start), inf), start + self.options.longest)
            mine = text.upper().startswith("#C")
            if "#unsure" in text.lower() or not (mine or self.options.of == "all"):
                continue
            text = re.sub(r"^(#\w+\s+)+", "", text)
            text = re.sub(r"^[A-Z]\s+", "", text) if mine else text
            if text and stop > start:
                out.append((video, start, stop, text))
        return out

    @cached_property
    def _rate(self) -> float:
        if self.options.fps:
            return self.options.fps
        return common_rate([probe_video(self._videos[v]) for v in sorted({v for v, *_ in self._parts.values()})], None)

    def layout(self) -> Layout:
        if not self._videos:
            raise SourceError(f"{self.root}: there are no videos (*.mp4) in it")
        return Layout(("head",), (3, *self.options.size), (), (), self._rate, "none", expert=False, rewards=False)

    def metadata(self) -> DatasetMetadata:
        return DatasetMetadata("Ego4D", "", licence="Ego4D licence", cameras={"head": CameraFacts("ego")})

    def episodes(self) -> Sequence[str]:
        return list(self._parts)

    def read(self, name: str) -> Recording:
        video, start, stop, text = self._parts[name]
        film, fps = probe_video(self._videos[video], name), self._rate
        steps = frame_count(film, fps, start, stop)
        if not steps:
            raise SourceError(
                f"{film.path} (episode {name}): it has {film.seconds:.1f} seconds, the narration is of {start:g}"
            )
        none = np.zeros((steps, 0), np.float32)
        return Recording(
            name, text, none, none, {"head": lambda: read_frames(film, fps, self.options.size, start, stop, name)}
        )
