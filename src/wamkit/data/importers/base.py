"""The importer contract: an importer describes a source and reads its episodes one by one.

It never writes. `wamkit.data.importers.run` stores the episodes, continues an import that was cut off, and decides what
happens to episodes that cannot be read.
"""

from __future__ import annotations

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, UInt8

from wamkit import files
from wamkit.data.format.remedy import with_advice
from wamkit.data.format.schema import Layout
from wamkit.files import StoreError
from wamkit.metadata import CameraFacts, DatasetMetadata, Field
from wamkit.registry import Registry
from wamkit.types import Span, WamkitError

ImageStream = Callable[[], Iterator[UInt8[np.ndarray, "H W 3"]]]
"""Starts a new pass over a camera's images: RGB, or grey with one channel, upright, one a step."""

LIMIT = 2**29
"""Bytes that an array of an episode may declare. A file with a larger one is taken for a decompression bomb."""
PIXELS = 2**25
"""Pixels that an image or a frame may declare: those of 8K video. A file with a larger one is taken for a bomb."""
WIDTH = 2**16
"""Dimensions that a state, an action or another vector may declare."""


class SourceError(WamkitError):
    """A source does not follow its format. The message names the file, the episode and the reason."""


class MissingView(SourceError):
    """The images of one camera of an episode are not there."""


@dataclass(frozen=True)
class Recording:
    """One episode of T steps as its source has it: numeric arrays in memory, images one at a time.

    name: unique within the source.
    text: the instruction; empty where only `spans` have one.
    state: float32 (T, s).
    action: float32 (T, a). Row t was observed before action t, unless the importer's metadata have `offset` 1.
    images: by camera; each yields T images, uint8 (H, W, 3).
    videos: by camera, the video file whose first T frames, as they are, one a step, are the images. Where they are
        also as the layout wants them, the file is copied, and `images` are not asked for.
    spans: steps with another text.
    task: name of the task; the text if empty.
    success: bool (T,), after the step; None where the source does not say.
    reward: float32 (T,), after the step; None where the source does not say.
    extras: further columns by name, (T, d).
    is_demonstration: true if it shows how the task is done.
    notes: what someone should look at in it, although it was read.
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
    notes: tuple[str, ...] = ()
    videos: Mapping[str, Path] = field(default_factory=dict)

    def __len__(self) -> int:
        """T, the number of steps."""
        return len(self.state)


class Importer(ABC):
    """A reader of one source: a file or folder at `root`.

    root: the source.
    options: an instance of the class's own frozen dataclass `Options`.
    flat: whether the command line names the options without "options." before them.

    Construction reads nothing, and `read` holds the arrays of one episode only. Every method raises SourceError for
    missing, damaged or dangerous files; `reading` turns the errors of libraries into one.
    """

    Options: ClassVar[type]
    flat: ClassVar[bool] = False

    def __init__(self, root: Path, options: object):
        self.root, self.options = Path(root), options

    @abstractmethod
    def layout(self) -> Layout:
        """The properties that all episodes share; `rewards` is true where the source knows success, `expert` never."""

    @abstractmethod
    def metadata(self) -> DatasetMetadata:
        """The meaning of dimensions and cameras, as far as the source states it."""

    def dropped(self) -> Sequence[str]:
        """Columns of numbers in the source that are not stored, as text for a note."""
        return ()

    @abstractmethod
    def episodes(self) -> Sequence[str]:
        """The names of the episodes, in an order that never changes."""

    @abstractmethod
    def read(self, name: str) -> Recording:
        """The episode called `name`."""


IMPORTERS: Registry[type[Importer]] = Registry("importer", "wamkit.importers", package="wamkit.data.importers")


@contextmanager
def reading(path: Path, episode: str = "") -> Iterator[None]:
    """Turns every error raised inside into a SourceError of one line: `path`, the episode, the reason and what to do.

    Refuses a `path` that is neither file nor folder, such as a pipe or a device: reading it might never end.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise SourceError("it is a pipe or a device instead of a file; refused")
        yield
    except WamkitError as error:
        if str(path) in str(error) and isinstance(error, SourceError):  # already named, further inside
            raise
        named = str(error) if str(path) in str(error) else f"{_where(path, episode)}: {error}"
        raise SourceError(_advised(named, episode)) from error
    except Exception as error:
        # Readers of foreign formats raise whatever their C libraries do, and share no narrower class.
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise SourceError(_advised(f"{_where(path, episode)}: {reason}", episode)) from error


def _where(path: Path, episode: str) -> str:
    return f"{path} (episode {episode})" if episode else str(path)


def _advised(message: str, episode: str) -> str:
    """`message` in one line of bearable length, with what to do where it does not say so."""
    again = f"fetch the file again{', or leave the episode out by --on-error skip' if episode else ''}"
    message = with_advice(" ".join(message[:2000].split()), lambda: again)
    message = message if len(message) < 600 else f"{message[:600]}..."
    return message if ";" in message else f"{message}; {again}"


def inside(root: Path, name: str) -> Path:
    """The file `name` under `root`. Raises SourceError for a name that leads out: absolute, upwards or by a link.

    A link to another place under `root` is followed, and one to a hub's `blobs/`; see `wamkit.files.inside`.
    """
    try:
        return files.inside(root, name)
    except (StoreError, ValueError) as error:
        raise SourceError(str(error) if isinstance(error, StoreError) else f"{root}: {ascii(name)}: {error}") from error


def checked(array: np.ndarray, shape: tuple[int, ...], what: str) -> np.ndarray:
    """`array` as float32. Raises SourceError unless it holds finite numbers and has this shape.

    shape: the required shape; -1 for any size.
    what: its name, for the message.
    """
    fits = array.ndim == len(shape) and all(b in (-1, a) for a, b in zip(array.shape, shape, strict=True))
    if not fits or not array.size and array.shape[1:] != (0,):
        raise SourceError(f"{what} is {array.shape} instead of {shape}")
    if array.dtype.kind not in "biuf":
        raise SourceError(f"{what} is {array.dtype} instead of numbers")
    with np.errstate(over="ignore"):  # too large a number becomes infinite, and is named below
        out = np.asarray(array, np.float32)
    bad = ~np.isfinite(out).reshape(len(out), -1).all(1)
    if bad.any():
        raise SourceError(f"{what} is NaN or infinite at step {int(np.flatnonzero(bad)[0])}")
    return out


def image_size(dtype: np.dtype, shape: Sequence[int], what: str) -> tuple[int, int]:
    """(H, W) of an image by its declared type and shape. Raises SourceError unless that is uint8 (H, W, 3), or grey."""
    if dtype != np.uint8 or len(shape) != 3 or shape[2] not in (1, 3):
        raise SourceError(f"'{what}' is {dtype} {tuple(shape)} instead of uint8 (H, W, 3)")
    return pixels(shape[0], shape[1], what)


def pixels(height: Any, width: Any, what: str) -> tuple[int, int]:
    """(H, W) as they are declared. Raises SourceError for others than whole numbers, and for more than PIXELS."""
    sides = whole(height, f"the height of '{what}'", 1, PIXELS), whole(width, f"the width of '{what}'", 1, PIXELS)
    if sides[0] * sides[1] > PIXELS:
        raise SourceError(f"'{what}' declares {sides[0]}x{sides[1]} pixels, more than {PIXELS}; refused")
    return sides


def whole(value: Any, what: str, low: int, high: int) -> int:
    """A whole number from a file. Raises SourceError for anything else, and outside low to high, inclusive."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise SourceError(f"{what} is {_short(value)} instead of a whole number from {low} to {high}; correct it")
    return int(value)


def real(value: Any, what: str, low: float, high: float) -> float:
    """A number from a file. Raises SourceError for anything else, and outside low to high, inclusive."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not low <= value <= high:
        raise SourceError(f"{what} is {_short(value)} instead of a number from {low:g} to {high:g}; correct it")
    return float(value)


def words(value: Any, what: str) -> str:
    """A text from a file. Raises SourceError for anything else, and for halves of characters, which UTF-8 lacks."""
    if not isinstance(value, str):
        raise SourceError(f"{what} is {_short(value)} instead of a text; correct it")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise SourceError(f"{what} is not UTF-8: {ascii(value[:80])}; correct it")
    return value


def entry(content: Any, key: str, kind: type = object, otherwise: Any = None) -> Any:
    """The value of `key` in an object of a JSON file. Raises SourceError where `content` has none of this kind.

    otherwise: the value where there is no such key. None if there must be one.
    """
    if not isinstance(content, dict):
        raise SourceError(f"it has {_short(content)} in place of an object with '{key}'; correct it")
    if key not in content and otherwise is None:
        raise SourceError(f"it has no '{key}'")
    value = content.get(key, otherwise)
    if not isinstance(value, kind):
        raise SourceError(f"'{key}' is {_short(value)} instead of a {kind.__name__}; correct it")
    return value


def text_of(path: Path) -> str:
    """The text in a file of at most LIMIT bytes; see `wamkit.files.decoded`."""
    return files.read_text(path, LIMIT)


def csv_table(path: Path, columns: Iterable[str]) -> csv.DictReader[str]:
    """The rows of a text file of at most LIMIT bytes, separated by "," ";", tabs or "|".

    columns: those that its first line must have; the first separator that gives them is the file's. "," if none does.
    """
    text = text_of(path)
    header, wanted = text.partition("\n")[0].rstrip("\r"), set(columns)
    fits = (mark for mark in ",;\t|" if wanted <= set(next(csv.reader([header], delimiter=mark), [])))
    return csv.DictReader(io.StringIO(text, newline=""), delimiter=next(fits, ","))


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The number, from 1, and the value of each line of a JSON Lines file; empty lines are skipped."""
    for number, line in enumerate(text_of(path).split("\n"), 1):
        if line.strip():
            yield number, files.parse_json(line, f"{path}, line {number}")


def _short(value: Any) -> str:
    """A value for a message: numbers and short texts as they are, of others the type."""
    if isinstance(value, int) and abs(value) > 10**20:
        return "an absurdly large number"
    text = repr(value) if value is None or isinstance(value, (bool, int, float, str, np.number)) else ""
    return text if 0 < len(text) <= 40 else f"a {type(value).__name__}"


def camera_layout(sizes: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """The arguments of `Layout` for cameras with images of these (H, W), by name."""
    every = tuple(sizes.values())
    differ = len(set(every)) > 1
    return {
        "cameras": tuple(sizes),
        "image_shape": (3, *(every[0] if every else (1, 1))),
        "sizes": every if differ else (),
    }


def first_seen(episodes: Iterable[tuple[str, Iterable[str]]]) -> dict[str, str]:
    """The first episode that each camera saw, by camera, sorted: an episode may lack cameras that others have.

    episodes: names of episodes, each with its cameras.
    """
    found: dict[str, str] = {}
    for name, cameras in episodes:
        found = dict.fromkeys(cameras, name) | found
    return dict(sorted(found.items()))


def camera_facts(names: Iterable[str]) -> dict[str, CameraFacts]:
    """Metadata of a robot's cameras: role "wrist" for names with "wrist" or "hand" in them, "scene" for others."""
    return {c: CameraFacts("wrist" if "wrist" in c or "hand" in c else "scene") for c in names}


def dimension_names(fields: Sequence[Field]) -> tuple[str, ...]:
    """A name for each dimension of a vector of these fields: position_0, position_1, ..."""
    return tuple(f"{f.name}_{i}" for f in fields for i in range(f.stop - f.start))


def text_spans(texts: Sequence[str]) -> tuple[Span, ...]:
    """The runs of steps with another text than the first step. texts: one a step."""
    starts = [t for t in range(1, len(texts)) if texts[t] != texts[t - 1]]
    runs = zip(starts, [*starts[1:], len(texts)], strict=False)
    return tuple(Span(a, b, texts[a]) for a, b in runs if texts[a] != texts[0])
