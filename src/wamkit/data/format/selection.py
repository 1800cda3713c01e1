"""Some episodes of a data set as a data set of their own: a folder that links to the files which stay as they are."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from wamkit.data.format import checksums, schema
from wamkit.data.format.episode_index import EpisodeMeta, Row, by_file
from wamkit.data.format.parquet import RESTORE, parquet_errors, read_parquet
from wamkit.files import StoreError, atomic_write, make_folder, temporary, visible, write_error

_SAME = ("meta/tasks.parquet", "meta/wamkit.json", "meta/modality.json", "collect.json", "import.json")
_MOST = 1 << 34  # bytes of the images in a data file, decoded


def select(
    root: Path,
    info: Mapping[str, Any],
    rows: Sequence[Row],
    chosen: Sequence[int],
    out: Path,
    sums: checksums.Checksums,
) -> Path:
    """Makes `out` a data set of the episodes `chosen` of that in `root`, unless it is one, and returns it.

    rows: all episodes.   chosen: numbers of episodes, ascending.   sums: checksums, with which files are compared.

    Videos are links. Tables are written anew with the numbers that episodes and frames now have.
    Raises StoreError for files that are missing or damaged, WriteError where `out` cannot be written.
    """
    if out.exists():
        return out
    for i in chosen:
        for path, recorded in rows[i].files().items():
            _verify(sums, path, recorded)
    sums.compare_small()
    sums.refuse()
    lengths = [rows[i].meta.length for i in chosen]
    places = {i: (n, a) for n, (i, a) in enumerate(zip(chosen, accumulate([0, *lengths[:-1]]), strict=True))}
    draft = temporary(out)
    shutil.rmtree(draft, ignore_errors=True)
    for name in (n for n in _SAME if (root / n).exists()):
        _link(root / name, draft / name)
    rewritten = set[Path]()
    for path, metas in by_file(rows).items():
        if all(places.get(m.index) == (m.index, m.from_index) for m in metas):
            _link(path, draft / path.relative_to(root))
        elif any(m.index in places for m in metas):
            atomic_write(draft / path.relative_to(root), _data(path, metas, places))
            rewritten.add(path)
    for i, (number, _) in places.items():
        for path in rows[i].files().keys() - {rows[i].data}:
            name = path.relative_to(root)
            if path == rows[i].snapshots:
                name = name.with_name(name.name.replace(f"{i:06d}", f"{number:06d}"))
            _link(path, draft / name)
    _write_facts(root, draft, places, {i for i in chosen if rows[i].data in rewritten})
    totals = {"total_episodes": len(chosen), "total_frames": sum(lengths)}
    changed = {**info, **totals, "splits": {"train": f"0:{len(chosen)}"}}
    atomic_write(draft / "meta/info.json", json.dumps(changed, indent=4, ensure_ascii=False).encode())
    try:
        os.rename(draft, out)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        if not out.is_dir():  # else another process was faster
            raise write_error(out, error) from error
    return out


_Places = Mapping[int, tuple[int, int]]
"""Numbers of episodes -> their new number, and the new number of their first frame."""


def _verify(sums: checksums.Checksums, path: Path, recorded: str | None) -> None:
    try:
        sums.verify(path, recorded)
    except (OSError, StoreError) as error:
        raise StoreError(f"{path}: {error}; {RESTORE}") from error


def _link(path: Path, at: Path) -> None:
    """Puts the file `path` at a second place: as a link where the reader follows it, else as a copy."""
    if at.exists():
        return
    make_folder(at.parent)
    target = path.resolve()
    try:
        if "blobs" in target.parts:
            at.symlink_to(target)
        else:
            shutil.copyfile(target, at)
    except OSError as error:
        raise write_error(at, error) from error


def _data(path: Path, metas: Sequence[EpisodeMeta], places: _Places) -> bytes:
    """A data file with the frames of the chosen episodes alone, renumbered."""
    table = read_parquet(path, max_bytes=_MOST)
    owner, kept = (
        np.repeat([m.index for m in metas], [m.length for m in metas]),
        [m for m in metas if m.index in places],
    )
    if not {"episode_index", "index"} <= set(table.column_names) or table.num_rows != len(owner):
        raise StoreError(f"{path}: its frames are not those of meta/episodes; {RESTORE}")
    table = table.filter(pa.array(np.isin(owner, [m.index for m in kept])))
    columns = {
        "episode_index": np.repeat([places[m.index][0] for m in kept], [m.length for m in kept]),
        "index": np.concatenate([places[m.index][1] + np.arange(m.length) for m in kept]),
    }
    return _bytes(table, columns, str(path))


def _write_facts(root: Path, draft: Path, places: _Places, rewritten: Collection[int]) -> None:
    """Writes meta/episodes, each file with its chosen rows. rewritten: episodes whose data have other checksums now."""
    for path in visible(root / "meta/episodes", "**/*.parquet"):
        table = read_parquet(path)
        index = table["episode_index"].to_pylist()
        here = [i for i in index if i in places]
        if not here:
            continue
        table = table.filter(pa.array([i in places for i in index]))
        lengths = table["length"].to_pylist()
        if not rewritten.isdisjoint(here):
            table = table.select([n for n in table.column_names if n != "wamkit/sha256/data"])
        firsts = [places[i][1] for i in here]
        columns = {
            "episode_index": [places[i][0] for i in here],
            "dataset_from_index": firsts,
            "dataset_to_index": [a + n for a, n in zip(firsts, lengths, strict=True)],
        }
        columns = {k: np.array(v) for k, v in columns.items() if k in table.column_names}
        atomic_write(draft / path.relative_to(root), _bytes(table, columns, str(path)))


def _bytes(table: pa.Table, columns: Mapping[str, np.ndarray], where: str) -> bytes:
    """A parquet file with `columns` in place of those of the table, in the same types, and without its seal."""
    with parquet_errors(where):
        for name, values in columns.items():
            at = table.schema.get_field_index(name)
            field = table.schema.field(at)
            table = table.set_column(at, field, pa.array(values).cast(field.type))
        told = {k: v for k, v in (table.schema.metadata or {}).items() if k != checksums.SEAL.encode()}
        large = any(pa.types.is_struct(field.type) for field in table.schema)
        # Parquet checks a page's size after so many rows, and readers decode whole pages.
        return schema.parquet_bytes(table.replace_schema_metadata(told), **({"write_batch_size": 4} if large else {}))
