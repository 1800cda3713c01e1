"""Edits that damage the files of a store, as functions of its folder."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def edit_json(**changes):
    def edit(root):
        path = root / "meta/info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def edit_data(change):
    def edit(root):
        path = root / "data/chunk-000/file-001.parquet"
        pq.write_table(change(pq.read_table(path)), path)

    return edit


def poke_nan(table):
    values = np.array(table["action"].to_pylist(), np.float32)
    values[3, 1] = np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 2)
    return table.set_column(table.column_names.index("action"), "action", column)


def as_text(table):
    column = pa.array([str(x) for x in table["next.reward"].to_pylist()])
    return table.set_column(table.column_names.index("next.reward"), "next.reward", column)


def edit_feature(key, **changes):
    """Changes a feature of info.json; a value of None takes the field out."""

    def edit(root):
        path = root / "meta/info.json"
        info = json.loads(path.read_text())
        feature = info["features"][key] | changes
        info["features"][key] = {k: v for k, v in feature.items() if v is not None}
        path.write_text(json.dumps(info))

    return edit


def edit_facts(**changes):
    """Changes columns of episode 1 in meta/episodes; a value of None takes the column out."""

    def edit(root):
        path = root / "meta/episodes/chunk-000/file-001.parquet"
        facts = pq.read_table(path).to_pylist()[0] | changes
        pq.write_table(pa.Table.from_pylist([{k: v for k, v in facts.items() if v is not None}]), path)

    return edit


def without_feature(root):
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"].pop("action")
    path.write_text(json.dumps(info))


def cut(name, keep):
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:keep])


def flip(name, where):
    def edit(root):
        data = bytearray((root / name).read_bytes())
        data[where if where >= 0 else len(data) + where] ^= 4
        (root / name).write_bytes(data)

    return edit


def empty(root):
    for path in sorted(root.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


DATA, VIDEO = "data/chunk-000/file-001.parquet", "videos/observation.images.wrist/chunk-000/file-001.mp4"
