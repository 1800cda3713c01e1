"""Reading of parquet files that others wrote: what a file declares is compared with what is allowed, then read."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wamkit.files import StoreError, file_size

RESTORE = "restore it from a copy or record the data again"
"""Advice about a file of a data set."""

_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8, "BYTE_ARRAY": 4}
_WIDEST = 16
_LEVELS = 4  # bytes a value, for the places of empty cells and of lists' ends


def read_parquet(
    path: str | Path,
    columns: Collection[str] | None = None,
    *,
    leave_out: str | None = None,
    max_rows: int = 10_000_000,
    max_bytes: int = 1 << 30,
    where: str = "",
) -> pa.Table:
    """The table in a parquet file whose page checksums, if it has any, are right.

    columns: those to read, in the order of the file; None for all. Those that are not there are left out.
    leave_out: the columns whose names begin with this are not read.
    max_rows, max_bytes: rows and bytes in memory of a table that is still read. They are compared with the file's
        metadata first, since a file of 5 MB can declare 60 million rows, and one of 90 kB hold 2 GB of text.
    where: the file as errors name it, if not by its path.

    Raises StoreError for anything that is missing, damaged or larger, whatever pyarrow raises.
    """
    where = where or str(path)
    with open_parquet(path, where) as file, parquet_errors(where):
        schema = file.schema_arrow
        names = schema.names if columns is None else [n for n in schema.names if n in columns]
        if leave_out is not None:
            names = [n for n in names if not n.startswith(leave_out)]
        if len(set(names)) < len(names):
            raise StoreError(f"{where} has several columns of one name; {RESTORE}")
        texts = _checked(file, set(names), where, max_rows, max_bytes)
        if not texts:
            return _read(file, names)
    with open_parquet(path, where, read_dictionary=texts) as file, parquet_errors(where):
        table = _read(file, names)  # each text once, however often it occurs
        _refuse(where, sum(decoded_size(chunk) for c in table.columns for chunk in c.chunks), max_bytes)
        return table.cast(pa.schema([schema.field(n) for n in names]))


def _read(file: pq.ParquetFile, names: list[str]) -> pa.Table:
    table = file.read(names, use_threads=False)
    return table if table.num_columns == len(names) else table.select(names)  # pyarrow reads "a.b" along with "a"


def open_parquet(path: str | Path, where: str = "", **options: Any) -> pq.ParquetFile:
    """Opens a parquet file, for those who read a few rows at a time. Reading it belongs into `parquet_errors`.

    where: the file as errors name it, if not by its path.
    options: further arguments of `pyarrow.parquet.ParquetFile`.
    """
    where = where or str(path)
    file_size(path)
    with parquet_errors(where):
        return pq.ParquetFile(path, page_checksum_verification=True, **options)


@contextlib.contextmanager
def parquet_errors(where: str, advice: str = f"; {RESTORE}") -> Iterator[None]:
    """Turns everything that pyarrow raises for a damaged file into one StoreError."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, MemoryError, pa.ArrowException) as error:
        raise StoreError(f"{where} cannot be read ({' '.join(str(error).split())}){advice}") from error


def _checked(file: pq.ParquetFile, names: Collection[str], where: str, max_rows: int, max_bytes: int) -> list[str]:
    """Compares the metadata of the columns `names` with the limits.

    Returns the texts in them if they may still be too large: one that occurs often is stored once.
    """
    facts, total, most, texts = file.metadata, 0, 0, {}
    if facts.num_rows > max_rows:
        raise StoreError(f"{where} declares {facts.num_rows} rows, and at most {max_rows} are read; {RESTORE}")
    groups = [facts.row_group(i) for i in range(facts.num_row_groups)]
    chunks = (group.column(leaf) for group in groups for leaf in range(group.num_columns))
    if sum(c.num_values * (c.total_uncompressed_size + _WIDEST) for c in chunks) <= max_bytes:
        return []  # even if each value were as large as the whole column
    members = tuple(f"{name}." for name in names)
    for group in groups:
        for leaf in range(group.num_columns):
            column = group.column(leaf)
            path = column.path_in_schema
            if path not in names and not path.startswith(members):
                continue
            values, size, kind = column.num_values, column.total_uncompressed_size, column.physical_type
            width = file.schema.column(leaf).length if kind == "FIXED_LEN_BYTE_ARRAY" else _WIDTHS[kind]
            total += size + values * (_LEVELS + width)
            if kind == "BYTE_ARRAY":
                most += size * values
                texts[path] = True
    _refuse(where, total, max_bytes)
    return list(texts) if total + most > max_bytes else []


def _refuse(where: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise StoreError(f"{where} needs {size} bytes of memory, and at most {max_bytes} are given; {RESTORE}")


def decoded_size(array: pa.Array) -> int:
    """The bytes that an array takes once its dictionaries are decoded."""
    if pa.types.is_dictionary(array.type):
        lengths = pc.fill_null(pc.binary_length(array.dictionary), 0).cast(pa.int64())
        return (pc.sum(lengths.take(array.indices)).as_py() or 0) + 8 * len(array)
    if pa.types.is_struct(array.type):
        return sum(map(decoded_size, array.flatten()))
    if pa.types.is_nested(array.type):
        return decoded_size(array.flatten()) + 8 * len(array)
    return array.nbytes
