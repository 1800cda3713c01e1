"""Texts within an episode, as lerobot 0.6 stores them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from still_recordings import (
    DATA,
    WRIST,
    edit_features,
    put,
    still_episode,
)

from wamkit.data.format.store import Store, StoreError
from wamkit.data.loading.dataset import open_frames
from wamkit.data.validate import validate
from wamkit.types import Span


def entry(style, content, timestamp=None, **more):
    out = {"role": "assistant", "content": content, "style": style, "camera": None, "tool_calls": None} | more
    return out if timestamp is None else out | {"timestamp": timestamp}


def with_language(root, persistent, events):
    """Adds lerobot 0.6's two columns, which its annotators write with types inferred from what is in them."""
    put(root, "language_persistent", persistent)
    put(root, "language_events", events)
    for other in (0, 2):
        path = root / f"data/chunk-000/file-00{other}.parquet"
        table = pq.read_table(path)
        for key in ("language_persistent", "language_events"):
            table = table.append_column(key, pa.array([[]] * len(table)))
        pq.write_table(table, path)
    language = {"dtype": "language", "shape": [1], "names": None}
    edit_features(root, language_persistent=language, language_events=language)
    edit_features(root, note={"dtype": "string", "shape": [1], "names": None})


def test_subtasks_are_the_texts_of_their_steps(exact_copy):
    said = [
        entry("task_aug", "push it", 0.0, role="user"),
        entry("plan", "1. reach 2. push", 0.0),
        entry("subtask", "reach", float(np.float32(0.1))),
        entry("subtask", "push", 0.3),
        entry("subtask", "reach", 0.35),
        entry("memory", None, 0.3),
    ]
    say = [{"type": "function", "function": {"name": "say", "arguments": {"text": "go"}}}]
    events = [[entry(None, None, tool_calls=say)], *[[]] * 7, [entry("vqa", "what?", camera=WRIST)]]
    with_language(exact_copy, [said] * 9, events)
    store = Store.open(exact_copy)
    texts = np.array(store.texts)[store.numeric()["task_index"]][7:16].tolist()
    assert texts == ["open the drawer"] * 2 + ["reach"] * 4 + ["push"] + ["reach"] * 2
    assert store.texts == ("press the button", "open the drawer", "reach", "push")
    assert store.episode(1).text == "open the drawer" and not store.episode(0).spans
    assert store.episode(1).spans == (Span(2, 6, "reach"), Span(6, 7, "push"), Span(7, 9, "reach"))
    assert open_frames(exact_copy)[0].text_at(13) == "push"
    with pytest.raises(StoreError, match="read-only"):
        store.append(still_episode(1, 9))


def test_a_row_group_for_each_episode_is_read(exact_copy):
    """As lerobot's own annotation pipeline writes the file: every row group has a dictionary of its own."""
    path, said = exact_copy / DATA, [entry("subtask", "reach", 0.0), entry("subtask", "push", 0.3)]
    with_language(exact_copy, [said] * 9, [[]] * 9)
    pq.write_table(pq.read_table(path), path, row_group_size=7)
    assert pq.ParquetFile(path).num_row_groups > 1
    store = Store.open(exact_copy)
    assert store.episode(1).spans == (Span(0, 6, "reach"), Span(6, 9, "push"))


@pytest.mark.parametrize(
    "cells",
    [
        pa.array([[]] * 9),
        pa.array([None] * 9),
        pa.array(range(9)),
        pa.array([[{"style": "subtask", "content": None}, {"style": None, "content": "x"}]] * 9),
        pa.array([[{"style": "subtask", "content": "x", "timestamp": "soon"}]] * 9),
        None,
    ],
)
def test_language_that_says_nothing_is_no_obstacle(exact_copy, cells):
    with_language(exact_copy, pa.array([[]] * 9) if cells is None else cells, pa.array([[]] * 9))
    if cells is None:
        table = pq.read_table(exact_copy / DATA)
        pq.write_table(table.drop_columns(["language_persistent", "language_events"]), exact_copy / DATA)
    store = Store.open(exact_copy)
    assert store.texts == ("press the button", "open the drawer") and not store.episode(1).spans
    assert not [f for f in validate(exact_copy, progress=False) if f.level == "error"]


def test_the_declared_type_of_language(exact_copy):
    """What lerobot's schema declares, in which calls of tools are JSON."""
    json_type = pa.json_() if hasattr(pa, "json_") else pa.string()
    names = {"role": pa.string(), "content": pa.string(), "style": pa.string(), "timestamp": pa.float32()}
    storage = pa.struct(names | {"camera": pa.string(), "tool_calls": pa.list_(pa.string())})
    kind = pa.struct(names | {"camera": pa.string(), "tool_calls": pa.list_(json_type)})
    cells = pa.array([[entry("subtask", "reach", 0.2, tool_calls=['{"a": 1}'])]] * 9, pa.list_(storage))
    put(exact_copy, "language_persistent", cells.cast(pa.list_(kind)))
    edit_features(exact_copy, language_persistent={"dtype": "language", "shape": [1], "names": None})
    path = exact_copy / "data/chunk-000/file-000.parquet"
    assert "language_persistent" not in pq.read_table(path).column_names
    assert Store.open(exact_copy).episode(1).spans == (Span(4, 9, "reach"),)
