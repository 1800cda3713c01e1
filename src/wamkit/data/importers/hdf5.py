"""Helpers for importers of HDF5 files: opening them, and reading arrays from untrusted files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from wamkit.data.importers.base import LIMIT, SourceError, reading
from wamkit.types import WamkitError


@contextmanager
def opened(path: Path, episode: str = "") -> Iterator[Any]:
    """The file, open for reading. Errors raised inside become a SourceError that names it and the episode."""
    try:
        import h5py
    except ImportError as error:
        raise WamkitError("HDF5 files need the package h5py: pip install 'wamkit[import]'") from error
    with reading(path, episode), h5py.File(path, "r") as file:
        yield file


def array(group: Any, name: str) -> np.ndarray:
    """The array `name` under `group`. Raises SourceError as `dataset` does, and for a size beyond LIMIT."""
    out = dataset(group, name)
    if out.nbytes > LIMIT:
        raise SourceError(f"{out.name} declares {out.nbytes} bytes, more than an episode's arrays ever take")
    return out[()]


def dataset(group: Any, name: str) -> Any:
    """The HDF5 data set `name` under `group`, unread. Raises SourceError for links and storage outside the file."""
    import h5py

    at = group
    for part in name.split("/"):
        link = at.get(part, getlink=True)
        if link is None:
            raise SourceError(f"it has no '{name}' in {group.name}")
        if isinstance(link, h5py.ExternalLink):
            raise SourceError(f"'{name}' in {group.name} is a link to another file, {link.filename}; refused")
        at = at[part]
    if not isinstance(at, h5py.Dataset):
        raise SourceError(f"'{name}' in {group.name} is a group instead of an array")
    if at.external or at.is_virtual:
        raise SourceError(f"'{name}' in {group.name} stores its values in another file; refused")
    return at


def stored_frames(path: Path, name: str, episode: str) -> Iterator[np.ndarray]:
    """The images, uint8 (H, W, 3), in the array `name` of a file, one at a time."""
    with opened(path, episode) as file:
        images = dataset(file, name)
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise SourceError(f"'{name}' is {images.dtype} {images.shape} instead of uint8 (T, H, W, 3)")
        for i in range(len(images)):
            yield images[i]


def sorted_by_number(names: Any) -> list[str]:
    """Names sorted by the numbers in them: demo_2 before demo_10."""
    return sorted(names, key=lambda n: ([int(x) for x in re.findall(r"\d+", n)], n))


def json_attribute(holder: Any, name: str) -> Any:
    """The content of a JSON attribute; {} where there is none."""
    raw = holder.attrs.get(name, "{}")
    return json.loads(raw.decode() if isinstance(raw, bytes) else raw)
