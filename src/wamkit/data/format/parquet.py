"""Reading of parquet files that others wrote: what a file declares is compared with what is allowed, then read."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wamkit.files import StoreError, file_size

RESTORE = "restore it from a copy or record the data again"
"""Advice about a file of a data set."""

_NUMBERS = ("BOOLEAN", "INT32", "INT64", "INT96", "FLOAT", "DOUBLE")
_WIDEST = 16  # bytes of a number in memory, with the places of empty cells and of lists' ends


def read_parquet(
    path: str | Path,
    columns: Collection[str] | None = None,
    *,
    leave_out: str | None = None,
    max_rows: int = 10_000_000,
    max_bytes: int = 1 << 30,
    where: str = "",
    content: bytes | None = None,
) -> pa.Table:
    """The table in a parquet file whose page checksums, if it has any, are right.

    columns: those to read, in the order of the file; None for all. Those that are not there are left out.
    leave_out: the columns whose names begin with this are not read.
    max_rows, max_bytes: rows and bytes in memory of a table that is still read. They are compared with the file's
        metadata first, since a file of 5 MB can declare 60 million rows, and one of 90 kB hold 2 GB of text.
    where: the file as errors name it, if not by its path.
    content: of the file, if it has been read.

    Raises StoreError for anything that is missing, damaged or larger, whatever pyarrow raises.
    """
    where = where or str(path)
    with open_parquet(path, where, content, pre_buffer=False) as file, parquet_errors(where):
        schema = file.schema_arrow
        names = schema.names if columns is None else [n for n in schema.names if n in columns]
        if leave_out is not None:
            names = [n for n in names if not n.startswith(leave_out)]
        if len(set(names)) < len(names):
            raise StoreError(f"{where} has several columns of one name; {RESTORE}")
        texts = _checked(file, schema, set(names), where, max_rows, max_bytes)
        if not texts:
            return _selected(file.read(names, use_threads=False), names)
    with open_parquet(path, where, content, pre_buffer=False, read_dictionary=texts) as file, parquet_errors(where):
        parts, size, plain = [], 0, pa.schema([schema.field(n) for n in names])
        for group in range(file.num_row_groups):  # pyarrow reads no lists of texts of several groups at once
            part = _selected(file.read_row_group(group, names, use_threads=False), names)
            # Each text is there once, however often it occurs.
            size += sum(decoded_size(chunk) for c in part.columns for chunk in c.chunks)
            _refuse(where, size, max_bytes)
            parts.append(part.cast(plain))
        return pa.concat_tables(parts)


def _selected(table: pa.Table, names: list[str]) -> pa.Table:
    return table if table.num_columns == len(names) else table.select(names)  # pyarrow reads "a.b" along with "a"


def open_parquet(path: str | Path, where: str = "", content: bytes | None = None, **options: Any) -> pq.ParquetFile:
    """Opens a parquet file, for those who read a few rows at a time. Reading it belongs into `parquet_errors`.

    where: the file as errors name it, if not by its path.
    content: of the file, if it has been read.
    options: further arguments of `pyarrow.parquet.ParquetFile`.
    """
    where = where or str(path)
    file_size(path)
    with parquet_errors(where):
        source = path if content is None else pa.BufferReader(content)
        return pq.ParquetFile(source, page_checksum_verification=True, **options)


@contextlib.contextmanager
def parquet_errors(where: str, advice: str = f"; {RESTORE}") -> Iterator[None]:
    """Turns everything that pyarrow raises for a damaged file into one StoreError."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, MemoryError, pa.ArrowException) as error:
        raise StoreError(f"{where} cannot be read ({' '.join(str(error).split())}){advice}") from error


def _checked(
    file: pq.ParquetFile, schema: pa.Schema, names: Collection[str], where: str, max_rows: int, max_bytes: int
) -> list[str]:
    """Compares the metadata of the columns `names` with the limits.

    Returns the texts in them if they may still be too large: one that occurs often is stored once.
    """
    rows = file.metadata.num_rows
    if rows > max_rows:
        raise StoreError(f"{where} declares {rows} rows, and at most {max_rows} are read; {RESTORE}")
    leaves, total, most, texts = [], 0, 0, {}
    for kind, places in stored_columns(file, schema, names):
        if _is_sized(kind):
            leaves += places
        else:
            total += rows * _WIDEST
    for column in (c for group in range(file.metadata.num_row_groups) for c in chunks(file, group, leaves)):
        values, size, kind = column.num_values, column.total_uncompressed_size, column.physical_type
        total += values * _WIDEST
        if kind not in _NUMBERS:  # each value may be as large as the whole column
            most += size * values
            texts[column.path_in_schema] = kind
    _refuse(where, total, max_bytes)
    return [name for name, kind in texts.items() if kind == "BYTE_ARRAY"] if total + most > max_bytes else []


def stored_columns(
    file: pq.ParquetFile, schema: pa.Schema, names: Collection[str]
) -> Iterator[tuple[pa.DataType, range]]:
    """(type, numbers of the parquet columns in which it is stored) of each column of a table that is among `names`.

    schema: `file.schema_arrow`, which takes long to make.

    Raises ValueError if the file stores them elsewhere. Belongs into `parquet_errors`.
    """
    stored, at = file.schema, 0
    alone = len(stored) == len(schema)  # then the types of other columns need not be looked at, which takes long too
    for i, name in enumerate(schema.names):
        kind = schema.field(i).type if name in names or not alone else pa.null()
        end = at + _leaves(kind)
        if name in names:
            if _is_sized(kind) and not all(stored.column(leaf).path.startswith(name) for leaf in range(at, end)):
                raise ValueError(f"column {name!r} is not stored where its type says")
            yield kind, range(at, end)
        at = end


def _is_sized(kind: pa.DataType) -> bool:
    """True for lists, structs, texts and the like, whose size is not known from their type and the number of rows."""
    return bool(kind.num_fields) or not pa.types.is_primitive(kind)


def _leaves(kind: pa.DataType) -> int:
    return sum(_leaves(kind.field(i).type) for i in range(kind.num_fields)) if kind.num_fields else 1


def chunks(file: pq.ParquetFile, group: int, leaves: Sequence[int]) -> list[Any]:
    """The metadata of the parquet columns `leaves` in a row group. Belongs into `parquet_errors`.

    pyarrow ends the process where such metadata contradict themselves (26.0: `column` lets a C++ exception pass), but
    raises an error when a reader is made for them. So one is made first, for no rows.
    """
    if not leaves:
        return []
    for _ in file.reader.iter_batches(0, [group], leaves, use_threads=False):
        continue
    return [file.metadata.row_group(group).column(leaf) for leaf in leaves]


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
