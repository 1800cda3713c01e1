"""Files of results: sealed, named by their weights, and one folder a protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wamkit.config import digest, sealed, unsealed, without_nan
from wamkit.files import StoreError, atomic_write, exclusive, make_folder, read_json


def write_result(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON-able `content` with its checksum, NaN as null."""
    plain = json.loads(json.dumps(without_nan(content), default=float))
    atomic_write(path, (json.dumps(sealed(plain), indent=2) + "\n").encode())


def read_result(path: Path) -> dict[str, Any]:
    """The content that `write_result` wrote. Raises StoreError if it is missing or damaged."""
    return unsealed(read_json(path), path)


@contextmanager
def results_folder(base: Path, file: str, protocol: Mapping[str, Any], label: str) -> Iterator[Path]:
    """The folder for results under `protocol`, held against other processes inside the block.

    It is `base` or, if the result `file` there is of another protocol, a folder in `base` named by `label` and a digest
    of the protocol. So results under one protocol never replace those under another.
    protocol: JSON-able; it is what `file` has under that key. Its `note` does not tell protocols apart.
    """
    make_folder(base)
    with exclusive(base, wait=True):
        own = _identity(protocol)
        alone = base / f"{label}-{digest(own)[:8]}"
        yield base if _identity_of(base / file) in (None, own) and not (alone / file).exists() else alone


def weights_of(path: Path) -> str:
    """The digest of the weights that a result is of; "" where there is none."""
    try:
        return str(read_result(path).get("weights", ""))
    except StoreError:
        return ""


def _identity(protocol: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(without_nan({k: v for k, v in protocol.items() if k != "note"}), default=str))


def _identity_of(path: Path) -> Any:
    """The protocol of a result; None where there is none that could be lost."""
    try:
        return _identity(read_result(path)["protocol"])
    except (StoreError, LookupError, AttributeError):
        return None
