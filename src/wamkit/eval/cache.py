"""Cache of finished results beside a run, so that an interrupted evaluation continues."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np

from wamkit.config import digest, from_dict
from wamkit.eval.results import EvalResult, Row, Table, Worst, made_by
from wamkit.files import StoreError, atomic_write, file_size, parse_json
from wamkit.types import Interval


def cached(folder: Path, name: str, key: Mapping[str, Any], make: Callable[[], EvalResult]) -> EvalResult:
    """The result stored in `folder` under `name` and `key`, or else the result of `make`, which is stored.

    The key is extended by wamkit's version and commit. A damaged file counts as missing. In a checkout with uncommitted
    changes nothing is read, since results may come from other code.
    """
    maker = made_by()
    key = {**key, "wamkit": maker["wamkit"], "commit": maker["commit"]}
    path = folder / "parts" / f"{name}-{digest(key, default=str)}.npz"
    if not maker["commit"].endswith("-dirty") and (found := _read(path)) is not None:
        return found
    result = make()
    atomic_write(path, _write(result))
    return result


def cached_arrays(path: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays at `path`, or else those of `make`, which are stored there. A damaged file counts as missing."""
    try:
        with _archive(path) as archive:
            return dict(archive)
    except _DAMAGED:
        pass
    arrays, archive = make(), io.BytesIO()
    np.savez_compressed(archive, **arrays)
    atomic_write(path, archive.getvalue())
    return arrays


_DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, BadZipFile, zlib.error, StoreError)
_MOST = 1 << 30
"""Bytes of a result's arrays that are still read."""


def _archive(path: Path) -> Any:
    """The arrays at `path`; their bytes have checksums. Raises one of `_DAMAGED`, also for more than is read."""
    file_size(path)
    with ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > _MOST:
            raise StoreError(f"{path} holds more than {_MOST} bytes")
    return np.load(path, allow_pickle=False)


def _write(result: EvalResult) -> bytes:
    arrays = {f"{i} {name}": x for i, w in enumerate(result.worst) for name, x in w.columns.items()}
    worst = [{**{k: v for k, v in vars(w).items() if k != "columns"}, "columns": list(w.columns)} for w in result.worst]
    text = json.dumps({"tables": [asdict(t) for t in result.tables], "worst": worst}, default=float)
    archive = io.BytesIO()
    np.savez_compressed(archive, json=np.frombuffer(text.encode(), np.uint8), **arrays)
    return archive.getvalue()


def _read(path: Path) -> EvalResult | None:
    try:
        with _archive(path) as archive:
            data = parse_json(archive["json"].tobytes(), str(path), finite=False)
            worst = tuple(
                Worst(**{**w, "columns": {name: archive[f"{i} {name}"] for name in w["columns"]}})
                for i, w in enumerate(data["worst"])
            )
        return EvalResult(tuple(_table(t) for t in data["tables"]), worst)
    except _DAMAGED:
        return None


def _table(data: dict[str, Any]) -> Table:
    rows = [Row(**{**r, "interval": r["interval"] and from_dict(Interval, r["interval"])}) for r in data["rows"]]
    return Table(**{**data, "rows": tuple(rows)})
