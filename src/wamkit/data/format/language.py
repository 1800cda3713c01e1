"""Texts within an episode as lerobot 0.6 stores them: the column `language_persistent` of the data files.

Each row of an episode holds the same list of annotations: {role, content, style, timestamp, camera, tool_calls}. One of
the style "subtask" describes the steps from its time, in seconds, until the next one's. Other styles, and the column
`language_events`, are ignored.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from wamkit.data.format.episode_index import RESTORE, EpisodeMeta, Row, by_file
from wamkit.data.format.parquet import decoded_size, open_parquet, parquet_errors, stored_columns
from wamkit.files import StoreError

COLUMN = "language_persistent"
_LARGEST = 1 << 26  # bytes of an episode's annotations
_TOLERANCE = 1e-4  # seconds, lerobot's: times of frames are float32


def step_texts(
    rows: Sequence[Row], features: Mapping[str, Any], columns: Mapping[str, np.ndarray], texts: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """The text of each frame: an index, int64 (N,), into the returned list of texts.

    The text is that of the frame's subtask, or without one the instruction of its task in `texts`. Malformed
    annotations are ignored. Raises StoreError for a file that cannot be read.
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
    """The subtasks of each episode in a data file as (start in seconds, text), earliest first."""
    out: list[list[tuple[float, str]]] = []
    with open_parquet(path) as file, parquet_errors(str(path)):
        kinds = [kind for kind, _ in stored_columns(file, file.schema_arrow, (COLUMN,))]
        if len(kinds) != 1 or not (pa.types.is_list(kinds[0]) or pa.types.is_large_list(kinds[0])):
            return [[] for _ in metas]
        texts = [c.path for c in file.schema if c.path.startswith(f"{COLUMN}.") and c.physical_type == "BYTE_ARRAY"]
    # Each text is held once, however often it occurs.
    options = {"buffer_size": 1 << 16, "pre_buffer": False, "read_dictionary": texts}
    with open_parquet(path, **options) as file, parquet_errors(str(path)):
        first, row = metas[0].from_index, 0
        # Few rows at a time, since every row repeats the list, and of one row group, which has a dictionary of its own.
        groups = range(file.num_row_groups)
        some = (file.iter_batches(64, row_groups=[group], columns=[COLUMN], use_threads=False) for group in groups)
        for batch in itertools.chain.from_iterable(some):
            while len(out) < len(metas) and metas[len(out)].from_index - first < row + len(batch):
                cell = batch.column(COLUMN)[metas[len(out)].from_index - first - row]
                if cell.is_valid and (size := decoded_size(cell.values)) > _LARGEST:
                    where = f"{path} (episode {metas[len(out)].index})"
                    raise StoreError(f"{where}: its annotations take {size} bytes, more than {_LARGEST}; {RESTORE}")
                out.append(_read(cell.as_py()))
            row += len(batch)
    return out


def _read(cell: Any) -> list[tuple[float, str]]:
    entries = [e for e in cell if isinstance(e, dict)] if isinstance(cell, list) else []
    found = [(e.get("timestamp"), e.get("content")) for e in entries if e.get("style") == "subtask"]
    return sorted(
        (t, text) for t, text in found if isinstance(t, int | float) and isinstance(text, str) and text.strip()
    )
