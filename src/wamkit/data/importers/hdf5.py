"""Helpers for importers of HDF5 files: opening them, and reading arrays from untrusted files.

Members are looked up link by link: no link of a file may lead to another one, and h5py would follow it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from wamkit.data.importers.base import LIMIT, WIDTH, MissingView, SourceError, image_size, reading, whole, words
from wamkit.files import parse_json
from wamkit.types import WamkitError

_LINKS = 8  # soft links on the way to a member


@contextmanager
def opened(path: Path, episode: str = "") -> Iterator[Any]:
    """The file, open for reading. Errors raised inside become a SourceError that names it and the episode."""
    try:
        import h5py
    except ImportError as error:
        raise WamkitError("HDF5 files need the package h5py: pip install 'wamkit[import]'") from error
    with reading(path, episode), h5py.File(path, "r") as file:
        yield file


def has(group: Any, name: str) -> bool:
    """True if there is something called `name`, a path, under `group`. Raises SourceError for links to other files."""
    return _find(group, name, _LINKS) is not None


def member(group: Any, name: str) -> Any:
    """The group or array `name`, a path, under `group`. Raises SourceError where there is none, and for links to other
    files."""
    found = _find(group, name, _LINKS)
    if found is None:
        raise SourceError(f"it has no '{name}' in {group.name}")
    return found


def names(group: Any, name: str) -> list[str]:
    """The names in the group `name` under `group`, sorted; none where there is no such group."""
    import h5py

    found = _find(group, name, _LINKS)
    return sorted(found) if isinstance(found, h5py.Group) else []


def _find(group: Any, name: str, links: int) -> Any:
    import h5py

    at = group
    for part in filter(None, name.split("/")):
        link = at.get(part, getlink=True) if isinstance(at, h5py.Group) else None
        if link is None:
            return None
        if isinstance(link, h5py.ExternalLink):
            raise SourceError(f"'{name}' in {group.name} is a link to another file, {link.filename}; refused")
        if not isinstance(link, h5py.SoftLink):
            at = at[part]
        elif links:
            at = _find(at.file if link.path.startswith("/") else at, link.path, links - 1)
        else:
            raise SourceError(f"'{name}' in {group.name} is a link to a link to a link, and so on; refused")
    return at


def dataset(group: Any, name: str) -> Any:
    """The HDF5 data set `name` under `group`, unread.

    Raises SourceError for links and storage outside the file, for anything but numbers and fixed-length texts, and for
    values that were never written, which HDF5 reads as zeros.
    """
    import h5py

    at = member(group, name)
    if not isinstance(at, h5py.Dataset):
        raise SourceError(f"'{name}' in {group.name} is a group instead of an array")
    if at.external or at.is_virtual:
        raise SourceError(f"'{name}' in {group.name} stores its values in another file; refused")
    if at.shape is None or at.dtype.kind not in "biufS":
        raise SourceError(f"'{name}' in {group.name} holds {at.dtype} instead of numbers")
    if at.chunks and math.prod(at.chunks) * at.dtype.itemsize > LIMIT:
        raise SourceError(f"'{name}' in {group.name} has parts of {at.chunks}, too large to unpack; refused")
    there = at.id.get_num_chunks() if at.chunks else min(at.id.get_storage_size(), 1)
    wanted = math.prod(-(-n // c) for n, c in zip(at.shape, at.chunks, strict=True)) if at.chunks else 1
    if there < wanted and math.prod(at.shape):
        raise SourceError(f"'{name}' in {group.name} declares {at.shape}, and {there} of its {wanted} parts are there")
    return at


def array(group: Any, name: str) -> np.ndarray:
    """The array `name` under `group`. Raises SourceError as `dataset` does, and for a size beyond LIMIT."""
    import h5py

    out = member(group, name)
    # h5py's own `nbytes` overflows.
    declared = math.prod(out.shape or ()) * out.dtype.itemsize if isinstance(out, h5py.Dataset) else 0
    if declared > LIMIT:
        raise SourceError(f"{out.name} declares {declared} bytes, more than an episode's arrays ever take; refused")
    return dataset(group, name)[()]


def columns(group: Any, name: str) -> int:
    """The number n of columns of the array `name`, declared (T, n). Raises SourceError for another shape."""
    at = dataset(group, name)
    if at.ndim != 2:
        raise SourceError(f"{at.name} is {at.shape} instead of (T, n)")
    return whole(at.shape[1], f"the number of columns of {at.name}", 1, WIDTH)


def images_in(group: Any, name: str) -> Any:
    """The HDF5 data set `name` of images, unread. Raises SourceError unless it is declared uint8 (T, H, W, 3)."""
    images = dataset(group, name)
    if images.ndim != 4:
        raise SourceError(f"'{name}' is {images.dtype} {images.shape} instead of uint8 (T, H, W, 3)")
    image_size(images.dtype, images.shape[1:], name)
    return images


def stored_frames(path: Path, name: str, episode: str, steps: int | None = None) -> Iterator[np.ndarray]:
    """The images, uint8 (H, W, 3), in the array `name` of a file, one at a time.

    steps: how many there must be.
    """
    with opened(path, episode) as file:
        images = images_in(file, name)
        if not len(images):
            raise MissingView(f"{path} (episode {episode}): '{name}' has no images; fetch the file again")
        if steps is not None and len(images) != steps:
            raise SourceError(f"'{name}' has {len(images)} images for {steps} steps")
        for i in range(len(images)):
            yield images[i]


def sorted_by_number(names: Any) -> list[str]:
    """Names sorted by the numbers in them: demo_2 before demo_10."""
    return sorted(names, key=lambda n: ([int(x) for x in re.findall(r"\d+", n)], n))


def json_attribute(holder: Any, name: str) -> dict[str, Any]:
    """The object in a JSON attribute; {} where there is none. Raises SourceError for anything else."""
    raw = holder.attrs.get(name, "{}")
    if not isinstance(raw, (str, bytes)):
        raise SourceError(f"its attribute {name} is no text")
    content = parse_json(raw, f"its attribute {name}")
    if not isinstance(content, dict):
        raise SourceError(f"its attribute {name} is JSON, but no object with keys")
    return content


def control(data: Any) -> tuple[str, str, str]:
    """The control of robosuite's arm by the attribute env_args of a file: controller, reference, frame; "" if not said.

    The reference is "delta" or "absolute". Where there is a controller whose reference is not said, it is "delta",
    robosuite's default.
    """
    config = arguments(data).get("controller_configs", {})
    config = config[0] if isinstance(config, list) and config else config
    parts = config.get("body_parts") if isinstance(config, dict) else None  # robosuite 1.5
    if isinstance(parts, dict):
        config = next((part for side in ("right", "left") if isinstance(part := parts.get(side), dict)), {})
    config = config if isinstance(config, dict) else {}
    kind, frame = words(config.get("type", ""), "type in controller_configs"), config.get("input_ref_frame")
    absolute = config.get("control_delta") is False or config.get("input_type") == "absolute"
    reference = "absolute" if absolute else "delta" if config else ""
    return kind, reference, frame if frame in ("base", "world") else ""


def arguments(data: Any) -> dict[str, Any]:
    """The environment's arguments, `env_kwargs` in the attribute env_args, as robosuite's recorders store them."""
    content = json_attribute(data, "env_args").get("env_kwargs", {})
    if not isinstance(content, dict):
        raise SourceError("env_kwargs in its attribute env_args is no object with keys")
    return content
