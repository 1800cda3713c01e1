"""What an importer is: it says what a source holds, and hands its episodes out one by one.

It never writes. `wamkit.data.importers.run` stores what it reads, continues where it was cut off, and decides what becomes of episodes
that cannot be read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float, UInt8

from wamkit.data.format.metadata_io import DatasetMetadata
from wamkit.data.format.schema import Layout
from wamkit.registry import Registry
from wamkit.types import Span, WamkitError

ImageStream = Callable[[], Iterator[UInt8[np.ndarray, "H W 3"]]]
"""Starts a camera's film anew: RGB pictures, upright, one a step, as many as the episode has steps."""

LIMIT = 2**32
"""Bytes that one array of an episode may claim to have: beyond them a file is taken for a decompression bomb."""


class SourceError(WamkitError):
    """A source is not what its format says; the message names file, episode and reason."""


@dataclass(frozen=True)
class Recording:
    """One episode of T steps as its source has it: numbers in memory, pictures as they come.

    name: unique within the source.   text: the instruction; empty where only `spans` have one.
    state: float32 (T, s).   action: float32 (T, a); row t was seen before action t, unless the importer's meaning has `offset` 1.
    success: bool (T,), after the step, or None where the source does not say.   extras: further numbers by name, (T, d).
    is_demonstration: whether it shows how the task is done.
    """

    name: str
    text: str
    state: Float[np.ndarray, "T s"]
    action: Float[np.ndarray, "T a"]
    images: Mapping[str, ImageStream]
    spans: tuple[Span, ...] = ()
    task: str = ""
    success: np.ndarray | None = None
    reward: np.ndarray | None = None
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)
    is_demonstration: bool = True

    def __len__(self) -> int:
        return len(self.state)


class Importer(ABC):
    """Reads one source, a file or a folder at `root`. Options of a format are fields of its own frozen `Options`.

    Made cheaply: nothing is read before it is asked for, and never more than one episode's numbers at a time. Every method raises
    SourceError for what is missing, damaged or dangerous (`reading` makes one of whatever a library raises).
    """

    Options: ClassVar[type]

    def __init__(self, root: Path, options: object):
        self.root, self.options = Path(root), options

    @abstractmethod
    def layout(self) -> Layout:
        """What all episodes have in common. `rewards` where the source knows of success, `expert` never."""

    @abstractmethod
    def metadata(self) -> DatasetMetadata:
        """What the numbers mean, as far as the source says."""

    @abstractmethod
    def episodes(self) -> Sequence[str]:
        """The episodes' names, in an order that never changes."""

    @abstractmethod
    def read(self, name: str) -> Recording:
        """One of them."""


IMPORTERS: Registry[type[Importer]] = Registry("importer", "wamkit.importers", package="wamkit.data.importers")


@contextmanager
def reading(path: Path, episode: str = "") -> Iterator[None]:
    """Whatever goes wrong in reading `path` becomes a SourceError that names it, the episode and the reason."""
    try:
        yield
    except WamkitError as error:
        if str(path) in str(error):  # said already, by someone further in
            raise
        raise SourceError(f"{_where(path, episode)}: {error}") from error
    except Exception as error:
        # Readers of foreign formats raise whatever their C libraries do; there is nothing else to catch them by.
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise SourceError(f"{_where(path, episode)}: {reason}") from error


def _where(path: Path, episode: str) -> str:
    return f"{path} (episode {episode})" if episode else str(path)


def inside(root: Path, name: str) -> Path:
    """The file `name` under `root`. Raises SourceError for a name that leads elsewhere: absolute, upwards, or by a link."""
    path = root / name
    if Path(name).is_absolute() or not path.resolve().is_relative_to(root.resolve()):
        raise SourceError(f"{root}: '{name}' leads out of the data set; refuse it, or correct the name")
    return path


def checked(array: np.ndarray, shape: tuple[int, ...], what: str) -> np.ndarray:
    """`array` as float32, finite and of this shape (-1: any). Raises SourceError saying what is wrong at which step."""
    fits = array.ndim == len(shape) and all(b in (-1, a) for a, b in zip(array.shape, shape, strict=True))
    if not fits:
        raise SourceError(f"{what} is {array.shape} instead of {shape}")
    out = np.asarray(array, np.float32)
    bad = ~np.isfinite(out).reshape(len(out), -1).all(1)
    if bad.any():
        raise SourceError(f"{what} is NaN or infinite at step {int(np.flatnonzero(bad)[0])}")
    return out
