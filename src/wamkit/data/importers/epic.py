"""EPIC-KITCHENS-100: long first-person videos of cooking, and a table of what is done when.

    <source>/**/<video_id>.MP4           as downloaded: P01/videos/P01_01.MP4
    <source>/**/*.csv                    EPIC_100_train.csv, EPIC_100_validation.csv: video_id, start_timestamp, stop_timestamp,
                                         narration, narration_id, verb, noun, ...

Each narrated part becomes an episode, called by its narration_id; its text is the narration. Times are used, as hours:minutes:seconds:
the table's frame numbers count frames of a re-encoding that has its own rate.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

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

COLUMNS = ("video_id", "start_timestamp", "stop_timestamp", "narration", "narration_id")


@dataclass(frozen=True)
class EpicOptions(VideoFileOptions):
    """Of the importer `epic`."""

    fps: float | None = 10.0
    """Pictures a second; the videos have 50 or 59.94."""


@IMPORTERS.register("epic")
class Epic(Importer):
    """EPIC-KITCHENS-100: first-person video with narrations."""

    Options = EpicOptions
    options: EpicOptions

    @cached_property
    def _videos(self) -> dict[str, Path]:
        return {stem: inside(self.root, name) for stem, name in videos_by_stem(self.root).items()}

    @cached_property
    def _parts(self) -> dict[str, dict[str, str]]:
        """Narrated parts of videos that are here, by their ids, in the order of the tables."""
        parts: dict[str, dict[str, str]] = {}
        tables = sorted(self.root.rglob("*.csv"))
        for path in tables:
            with reading(path), path.open(newline="", encoding="utf-8") as file:
                rows = csv.DictReader(file)
                if not set(COLUMNS) <= set(rows.fieldnames or ()):
                    continue  # EPIC_100_video_info.csv and others
                for row in (row for row in rows if row["video_id"] in self._videos):
                    if None in row.values() or row["narration_id"] in parts:
                        what = "is cut off" if None in row.values() else "has a narration that is there already"
                        raise SourceError(f"line {rows.line_num} {what}: {row['narration_id']}")
                    parts[row["narration_id"]] = row
        if not parts:
            raise SourceError(
                f"{self.root}: no narration in its {len(tables)} *.csv files is of one of its {len(self._videos)} videos"
            )
        return parts

    @cached_property
    def _rate(self) -> float:
        if self.options.fps:
            return self.options.fps
        return common_rate(
            [probe_video(self._videos[v]) for v in sorted({p["video_id"] for p in self._parts.values()})], None
        )

    def layout(self) -> Layout:
        return Layout(("head",), (3, *self.options.size), (), (), self._rate, "none", expert=False, rewards=False)

    def metadata(self) -> DatasetMetadata:
        return DatasetMetadata("EPIC-KITCHENS-100", "", licence="CC BY-NC 4.0", cameras={"head": CameraFacts("ego")})

    def episodes(self) -> Sequence[str]:
        return list(self._parts)

    def read(self, name: str) -> Recording:
        part, fps = self._parts[name], self._rate
        film = probe_video(self._videos[part["video_id"]], name)
        with reading(film.path, name):
            start, stop = (seconds(part[k]) for k in ("start_timestamp", "stop_timestamp"))
            if not 0 <= start < stop or start >= film.seconds:
                raise SourceError(f"it has {film.seconds:.1f} seconds, the narration is of {start:g} to {stop:g}")
        none = np.zeros((frame_count(film, fps, start, stop), 0), np.float32)
        images = {"head": lambda: read_frames(film, fps, self.options.size, start, stop, name)}
        return Recording(name, part["narration"].strip(), none, none, images, task=part.get("verb", ""))


def seconds(stamp: str) -> float:
    """Hours:minutes:seconds, with fractions, in seconds."""
    hours, minutes, rest = stamp.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(rest)
