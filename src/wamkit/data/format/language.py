"""What is said within an episode, as lerobot 0.6 writes it down: the column `language_persistent` of the data files.

Each row of an episode holds the same list, of everything said of it: {role, content, style, timestamp, camera, tool_calls}. An entry
of the style "subtask" says what is done from its time (seconds) until the next one's. Other styles, and the column `language_events`,
are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wamkit.data.format.episode_index import RESTORE, EpisodeMeta, Row, by_file
from wamkit.files import StoreError

COLUMN = "language_persistent"
_TOLERANCE = 1e-4  # seconds, lerobot's: times of frames are float32


def said(
    rows: Sequence[Row], features: Mapping[str, Any], columns: Mapping[str, np.ndarray], texts: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """Which text each frame has, int64 (N,), and all texts: the instruction of its task in `texts`, or where there is one, its subtask.

    Raises StoreError for a file that cannot be read; an entry that is not what the format says is no subtask.
    """
    index = columns["task_index"]
    if features.get(COLUMN, {}).get("dtype") != "language":
        return index, list(texts)
    index, number = index.copy(), {text: i for i, text in reversed(list(enumerate(texts)))}
    more = list(texts)
    for path, metas in by_file(rows).items():
        for meta, subtasks in zip(metas, _subtasks(path, metas), strict=True):
            here = slice(meta.from_index, meta.from_index + meta.length)
            for start, text in subtasks:
                if text not in number:
                    number[text] = len(more)
                    more.append(text)
                index[here][columns["timestamp"][here] >= start - _TOLERANCE] = number[text]
    return index, more


def _subtasks(path: Path, metas: Sequence[EpisodeMeta]) -> list[list[tuple[float, str]]]:
    """(from when on in seconds, text) of the subtasks of each episode in a data file, earliest first."""
    out: list[list[tuple[float, str]]] = []
    try:
        with pq.ParquetFile(path, buffer_size=1 << 16, pre_buffer=False, page_checksum_verification=True) as file:
            if COLUMN not in file.schema_arrow.names:
                return [[] for _ in metas]
            first, row = metas[0].from_index, 0
            for batch in file.iter_batches(64, columns=[COLUMN], use_threads=False):  # a list in every row is a lot
                while len(out) < len(metas) and metas[len(out)].from_index - first < row + len(batch):
                    out.append(_read(batch.column(COLUMN)[metas[len(out)].from_index - first - row].as_py()))
                row += len(batch)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path} cannot be read ({error}); {RESTORE}") from error
    return out


def _read(said: Any) -> list[tuple[float, str]]:
    entries = [e for e in said if isinstance(e, dict)] if isinstance(said, list) else []
    found = [(e.get("timestamp"), e.get("content")) for e in entries if e.get("style") == "subtask"]
    return sorted(
        (t, text) for t, text in found if isinstance(t, int | float) and isinstance(text, str) and text.strip()
    )
