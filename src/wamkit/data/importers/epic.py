"""EPIC-KITCHENS-100: long first-person videos of cooking, and tables of narrated actions.

    <source>/**/<video_id>.MP4           as downloaded: P01/videos/P01_01.MP4
    <source>/**/*.csv                    EPIC_100_train.csv, EPIC_100_validation.csv: video_id, start_timestamp,
                                         stop_timestamp, narration, narration_id, verb, noun, ...

Each narrated part becomes an episode. Its name is the narration_id, its text the narration. Times are used, as
hours:minutes:seconds, because the table's frame numbers refer to a re-encoding with a frame rate of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from wamkit.config import Rate
from wamkit.data.format.schema import Layout
from wamkit.data.importers.base import IMPORTERS, Importer, Recording, SourceError, csv_table, inside, reading
from wamkit.data.importers.video_files import (
    VideoFileOptions,
    common_rate,
    probe_video,
    video_layout,
    video_recording,
    videos_by_stem,
)
from wamkit.files import visible
from wamkit.metadata import CameraFacts, DatasetMetadata

COLUMNS = ("video_id", "start_timestamp", "stop_timestamp", "narration", "narration_id")


@dataclass(frozen=True)
class EpicOptions(VideoFileOptions):
    """Options of the importer `epic`."""

    fps: Rate | None = 10.0
    """Frames a second; the videos have 50 or 59.94."""


@IMPORTERS.register("epic")
class Epic(Importer):
    """EPIC-KITCHENS-100: first-person video with narrations."""

    Options = EpicOptions
    options: EpicOptions

    @cached_property
    def _videos(self) -> dict[str, Path]:
        return videos_by_stem(self.root)

    @cached_property
    def _parts(self) -> dict[str, dict[str, str]]:
        """Narrated parts of the videos that are present, by id, in the order of the tables."""
        parts: dict[str, dict[str, str]] = {}
        tables = visible(self.root, "**/*.csv")
        for path in tables:
            with reading(path):
                path = inside(self.root, str(path.relative_to(self.root)))
                rows = csv_table(path, COLUMNS)
                if not set(COLUMNS) <= set(rows.fieldnames or ()):
                    continue  # EPIC_100_video_info.csv and others
                for row in (row for row in rows if row["video_id"] in self._videos):
                    if None in row.values() or row["narration_id"] in parts:
                        what = "is cut off" if None in row.values() else "has a duplicate narration"
                        raise SourceError(f"line {rows.line_num} {what}: {row['narration_id']}")
                    parts[row["narration_id"]] = row
        if not parts:
            raise SourceError(
                f"{self.root}: none of its {len(tables)} *.csv files has a narration of one of its "
                f"{len(self._videos)} videos"
            )
        return parts

    @cached_property
    def _rate(self) -> float:
        used = sorted({p["video_id"] for p in self._parts.values()})
        return common_rate((self._videos[v] for v in used), self.options.fps)

    def layout(self) -> Layout:
        return video_layout("head", self.options.size, self._rate)

    def metadata(self) -> DatasetMetadata:
        return DatasetMetadata("EPIC-KITCHENS-100", "", licence="CC BY-NC 4.0", cameras={"head": CameraFacts("ego")})

    def episodes(self) -> Sequence[str]:
        return list(self._parts)

    def read(self, name: str) -> Recording:
        part = self._parts[name]
        video = probe_video(self._videos[part["video_id"]], name)
        with reading(video.path, name):
            start, stop = (seconds(part[k]) for k in ("start_timestamp", "stop_timestamp"))
            if not 0 <= start < stop or start >= video.seconds:
                raise SourceError(f"it has {video.seconds:.1f} seconds, the narration is from {start:g} to {stop:g}")
        text, task = part["narration"].strip(), part.get("verb", "")
        return video_recording(name, text, "head", video, self._rate, self.options.size, start, stop, task=task)


def seconds(stamp: str) -> float:
    """The seconds of a time as hours:minutes:seconds, with fractions."""
    hours, minutes, rest = stamp.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(rest.replace(",", "."))
