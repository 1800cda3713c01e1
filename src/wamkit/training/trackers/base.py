"""The contract of trackers: where figures, images and videos of training are looked at, beside metrics.jsonl.

metrics.jsonl stays the record that runs resume from and that reports read.
"""

from __future__ import annotations

import importlib.util
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8

from wamkit.files import atomic_write, read_text
from wamkit.registry import Registry

IDENTITY = "tracked-as.txt"
"""File of a run folder: the name under which trackers know the run."""


class Tracker(ABC):
    """A tracker of one run. It may raise anything: that ends the tracker, never training.

    out: the run folder.   step: the step that the run resumes at, 0 for a new one.   config: the resolved
    configuration of the run, JSON-able.
    """

    package: ClassVar[str] = ""
    """The package that it needs; "" for none."""
    takes_back: ClassVar[bool] = False
    """True if, on opening, it takes back what is of steps after `step`. For any other, calls are held until a
    checkpoint has their step, so that no step comes twice after an interruption."""

    @abstractmethod
    def __init__(self, out: Path, step: int, config: Mapping[str, Any]): ...

    @classmethod
    @abstractmethod
    def opening(cls, out: Path) -> str:
        """A command that opens what is tracked of the run in `out`, or its place."""

    @abstractmethod
    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds figures by name. A step may come in several parts."""

    @abstractmethod
    def image(self, name: str, image: UInt8[np.ndarray, "3 H W"], step: int) -> None: ...

    @abstractmethod
    def video(self, name: str, frames: UInt8[np.ndarray, "T 3 H W"], fps: float, step: int) -> None: ...

    @abstractmethod
    def text(self, name: str, text: str, step: int) -> None: ...

    def flush(self) -> None:  # noqa: B027 # house: a hook; trackers that write at once need none
        """Writes what is buffered."""

    @abstractmethod
    def close(self) -> None: ...


TRACKERS: Registry[type[Tracker]] = Registry("tracker", "wamkit.trackers", package="wamkit.training.trackers")
"""All trackers by name. Packages add theirs under the entry-point group `wamkit.trackers`."""
DEFAULT_TRACKERS = ("tensorboard",)


def check_trackers(names: Iterable[str]) -> None:
    """Raises RegistryError for a name that is unknown, and ModuleNotFoundError for a package that is not there."""
    for name in names:
        package = TRACKERS.get(name).package
        if package and importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def openings(names: Iterable[str], out: Path) -> list[str]:
    """A line for each tracker: how to open what it has of the run in `out`."""
    return [f"{name}: {TRACKERS.get(name).opening(out)}" for name in dict.fromkeys(names)]


def identity(out: Path) -> str:
    """The name of the run in `out` among others: that of its folder, with a mark that no other has.

    It is kept in the folder, so that a run that continues, moved or not, is the same one, and another at its place is
    not.
    """
    path = out / IDENTITY
    if not path.exists():
        atomic_write(
            path, f"{re.sub(r'[^A-Za-z0-9_-]+', '-', out.resolve().name)[:60]}-{secrets.token_hex(4)}\n".encode()
        )
    return read_text(path, 200).strip()
