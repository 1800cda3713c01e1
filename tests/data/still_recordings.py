"""Recordings with PNG images and depth maps, and edits of their files."""

from __future__ import annotations

import dataclasses
import json
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from recordings import CAMERAS, LAYOUT, make_episode, without_checksums

from wamkit.data.format.store import Store

LENGTHS, FRONT, WRIST = (7, 9, 30), "observation.images.front", "observation.images.wrist"
DATA = "data/chunk-000/file-001.parquet"
DEPTH = ("far", 24, 40)


def still_episode(seed, length):
    """As `make_episode`, with a depth map that holds all there is from nothing measured to the farthest."""
    maps = np.random.default_rng(seed).integers(0, 65536, (length, *DEPTH[1:])).astype(np.uint16)
    maps[:, 0, :2] = 0, 65535
    return dataclasses.replace(make_episode(seed, length), depth={"far": maps})


def fill_stills(root, **changes):
    store = Store.create(root, **LAYOUT | {"stills": CAMERAS, "depth": (DEPTH,)} | changes)
    for seed, length in enumerate(LENGTHS):
        store.append(still_episode(seed, length) if store.depth_cameras else make_episode(seed, length))
    store.finalize()
    return Store.open(root)


def put(root, key, cells, kind=None):
    """Puts other cells into a column of episode 1's data."""
    without_checksums(root)
    table = pq.read_table(root / DATA)
    table = table.drop_columns([key]) if key in table.column_names else table
    pq.write_table(
        table.append_column(key, cells if isinstance(cells, pa.Array) else pa.array(cells, kind)), root / DATA
    )


def cells_of(root, key):
    return pq.read_table(root / DATA)[key].to_pylist()


def edit_features(root, **features):
    without_checksums(root)
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    for key, changes in features.items():
        info["features"].setdefault(key, {}).update(changes)
    path.write_text(json.dumps(info))


def png(height, width, *more, body=b""):
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), *more]
    chunks += [(b"IDAT", zlib.compress(body or bytes(height * (3 * width + 1)))), (b"IEND", b"")]
    parts = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
