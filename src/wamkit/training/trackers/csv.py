"""Plain files in RUN/csv: a table of the figures, images as PNG, videos as MP4."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wamkit.files import atomic_write, make_folder, read_text
from wamkit.training.trackers.base import TRACKERS, Tracker
from wamkit.viz.images import png, save_video

MAX_BYTES = 1 << 28
"""Size of a table that is still read."""


@TRACKERS.register("csv")
class Csv(Tracker):
    """A table for spreadsheets and data frames, with a column for each figure, and files beside it."""

    takes_back = True

    def __init__(self, out: Path, step: int, config: Mapping[str, Any]):
        self._folder = out / "csv"
        make_folder(self._folder)
        columns, rows = self._read()
        self._begin(columns or ["step"], [row for row in rows if int(row["step"]) <= step])

    @classmethod
    def opening(cls, out: Path) -> str:
        return f"{out}/csv/metrics.csv, with images and videos beside it"

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        row = {"step": step, **values}
        if new := [name for name in row if name not in self._writer.fieldnames]:
            self.close()
            columns, rows = self._read()
            self._begin([*columns, *new], rows)
        self._writer.writerow(row)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        atomic_write(self._file_of(name, step, "png"), png(image))

    def video(self, name: str, frames: np.ndarray, fps: float, step: int) -> None:
        save_video(self._file_of(name, step, "mp4"), frames, fps)

    def text(self, name: str, text: str, step: int) -> None:
        atomic_write(self._file_of(name, step, "txt"), text.encode())

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _file_of(self, name: str, step: int, kind: str) -> Path:
        return self._folder / f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name)}-{step:06d}.{kind}"

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        """Columns and rows of the table. A last line that a kill cut short is left out."""
        path = self._folder / "metrics.csv"
        content = read_text(path, MAX_BYTES) if path.exists() else ""
        table = csv.DictReader(io.StringIO(content[: content.rfind("\n") + 1]))
        rows = list(table)
        return list(table.fieldnames or ()), rows

    def _begin(self, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes the table anew, to go on at its end."""
        whole, path = io.StringIO(), self._folder / "metrics.csv"
        writer = csv.DictWriter(whole, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic_write(path, whole.getvalue().encode())
        self._file = path.open("a")
        self._writer = csv.DictWriter(self._file, columns, lineterminator="\n")
