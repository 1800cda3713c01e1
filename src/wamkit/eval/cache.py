"""Finished parts of an evaluation, kept beside the run so that one which was cut short continues."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from wamkit.config import digest, from_dict
from wamkit.eval.results import Row, Table, Worst, made_by
from wamkit.files import atomic_write
from wamkit.types import Interval


@dataclass(frozen=True)
class EvalResult:
    """What one part of an evaluation found: tables, and the worst cases as pictures."""

    tables: tuple[Table, ...] = ()
    worst: tuple[Worst, ...] = field(default=())


def cached(folder: Path, name: str, key: Mapping[str, Any], make: Callable[[], EvalResult]) -> EvalResult:
    """The part that was made under `key` before or, where there is none or its file is damaged, what `make` gives, kept for the next time.

    A key also holds wamkit's version and commit. With uncommitted changes nothing is read, for nobody knows what made it.
    """
    maker = made_by()
    key = {**key, "wamkit": maker["wamkit"], "commit": maker["commit"]}
    path = folder / "parts" / f"{name}-{digest(key, default=str)}.npz"
    if not maker["commit"].endswith("-dirty") and (found := _read(path)) is not None:
        return found
    part = make()
    atomic_write(path, _write(part))
    return part


def cached_arrays(path: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays at `path` or, where there are none or the file is damaged, what `make` gives, kept there for the next time."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        pass
    arrays, archive = make(), io.BytesIO()
    np.savez_compressed(archive, **arrays)
    atomic_write(path, archive.getvalue())
    return arrays


def _write(part: EvalResult) -> bytes:
    arrays = {f"{i} {name}": x for i, w in enumerate(part.worst) for name, x in w.columns.items()}
    words = [{**{k: v for k, v in vars(w).items() if k != "columns"}, "columns": list(w.columns)} for w in part.worst]
    said = json.dumps({"tables": [asdict(t) for t in part.tables], "worst": words}, default=float)
    archive = io.BytesIO()
    np.savez_compressed(archive, said=np.frombuffer(said.encode(), np.uint8), **arrays)
    return archive.getvalue()


def _read(path: Path) -> EvalResult | None:
    try:
        with np.load(path, allow_pickle=False) as archive:
            said = json.loads(archive["said"].tobytes())
            worst = tuple(
                Worst(**{**w, "columns": {name: archive[f"{i} {name}"] for name in w["columns"]}})
                for i, w in enumerate(said["worst"])
            )
        return EvalResult(tuple(_table(t) for t in said["tables"]), worst)
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile):
        return None


def _table(said: dict[str, Any]) -> Table:
    rows = [Row(**{**r, "interval": r["interval"] and from_dict(Interval, r["interval"])}) for r in said["rows"]]
    return Table(**{**said, "rows": tuple(rows)})
