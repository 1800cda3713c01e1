"""Reading of parquet files: sizes that are declared, texts that are stored once, checksums, and damage."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wamkit.data.format.parquet import read_parquet, stored_columns
from wamkit.files import StoreError


def write(path: Path, columns: dict, **options) -> Path:
    pq.write_table(pa.table(columns), path, write_page_checksum=True, **options)
    return path


def test_a_small_file_of_many_rows_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", {"a": pa.array(np.zeros(12_000_000, np.int8))}, write_statistics=False)
    assert path.stat().st_size < 60_000
    before = pa.total_allocated_bytes()
    with pytest.raises(StoreError, match="x.parquet declares 12000000 rows, and at most 10000000 are read; restore"):
        read_parquet(path)
    with pytest.raises(StoreError, match="x.parquet needs .* bytes of memory, and at most 1000000 are given"):
        read_parquet(path, max_rows=1 << 40, max_bytes=1_000_000)
    assert pa.total_allocated_bytes() == before
    tracemalloc.start()
    assert read_parquet(path, [], max_rows=1 << 40).num_columns == 0
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_text_that_is_stored_once_counts_as_often_as_it_occurs(tmp_path: Path) -> None:
    text = "x" * 1_000_000
    often = pa.DictionaryArray.from_arrays(pa.array(np.zeros(3000, np.int32)), [text])
    columns = {"a": pa.ListArray.from_arrays([0, 3000, 3000], often), "b": [{"c": text}, {"c": None}], "d": [1, 2]}
    path = write(tmp_path / "x.parquet", columns, store_schema=False)
    assert path.stat().st_size < 200_000
    with pytest.raises(StoreError, match="x.parquet needs 300.* bytes of memory, and at most 1073741824 are given"):
        read_parquet(path)
    assert read_parquet(path, ["d"]).to_pydict() == {"d": [1, 2]}
    table = read_parquet(path, ["b"], max_bytes=5_000_000)
    assert table.equals(pq.read_table(path, columns=["b"]))


def test_columns_are_those_asked_for(tmp_path: Path) -> None:
    columns = {"action": [1.0], "action.expert": [[2.0]], "stats/a": [3], "é": ["4"], "s": [{"x": 1}]}
    path = write(tmp_path / "x.parquet", columns)
    assert read_parquet(path, ["action", "none"]).to_pydict() == {"action": [1.0]}
    assert read_parquet(path, leave_out="stats/").column_names == ["action", "action.expert", "é", "s"]
    assert read_parquet(path).to_pydict() == columns


def test_damage_has_one_error_whatever_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", {"observation": np.arange(50.0), "task": ["press"] * 50})
    whole = path.read_bytes()
    for at in range(4, len(whole), 7):
        data = bytearray(whole)
        data[at] ^= 0x80
        path.write_bytes(data)
        try:
            read_parquet(path)
        except StoreError as error:
            assert str(error).startswith(f"{path} ") and "\n" not in str(error)
    path.write_bytes(whole.replace(b"observation", b"observatio\xff"))
    with pytest.raises(StoreError, match="x.parquet cannot be read .*; restore it"):
        read_parquet(path)
    with pytest.raises(StoreError, match="none cannot be read .No such file"):
        read_parquet(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreError, match="pipe is a pipe, not a file"):
        read_parquet(tmp_path / "pipe")


def test_a_column_that_lies_elsewhere_than_its_type_says_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", {"a": ["x"], "pair": [{"left": 1, "right": 2}], "b": [1.0]})
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        assert [x for _, x in stored_columns(file, schema, schema.names)] == [range(0, 1), range(1, 3), range(3, 4)]
        forged = pa.schema([schema.field(i) for i in (1, 0, 2)])
        with pytest.raises(ValueError, match="'pair' is not stored where its type says"):
            list(stored_columns(file, forged, ["pair"]))
