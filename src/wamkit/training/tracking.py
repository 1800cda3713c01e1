"""The trackers of one training run together: none of them can stop it, and none shows a step twice."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from wamkit.errors import shortened
from wamkit.training.trackers.base import TRACKERS, Tracker


class Tracking:
    """Hands figures, images, videos and texts to trackers by their names.

    names: of `TRACKERS`.   out, step, config: as in `Tracker`.
    """

    def __init__(self, names: Sequence[str], out: Path, step: int, config: Mapping[str, Any]):
        self._trackers: dict[str, Tracker] = {}
        self._held: list[tuple[str, tuple[Any, ...]]] = []
        for name in dict.fromkeys(names):
            with self._ending(name):
                self._trackers[name] = TRACKERS.get(name)(out, step, config)

    def __bool__(self) -> bool:
        """True while a tracker is left."""
        return bool(self._trackers)

    def show(self, kind: str, *args: Any) -> None:
        """Calls the method `kind` of every tracker: at once, or with `commit` where it could not be taken back."""
        self._call(kind, args, taking_back=True)
        if any(not tracker.takes_back for tracker in self._trackers.values()):
            self._held.append((kind, args))

    def flush(self) -> None:
        """Writes what trackers buffer."""
        self._call("flush", (), taking_back=True)

    def commit(self) -> None:
        """Notes that a checkpoint has all steps that were shown."""
        for kind, args in [*self._held, ("flush", ())]:
            self._call(kind, args, taking_back=False)
        self._held.clear()

    def close(self) -> None:
        """Closes all trackers. What no checkpoint has yet is dropped, since training will show it again."""
        for taking_back in (True, False):
            self._call("close", (), taking_back)
        self._trackers.clear()

    def _call(self, kind: str, args: Sequence[Any], taking_back: bool) -> None:
        for name, tracker in list(self._trackers.items()):
            if tracker.takes_back is taking_back:
                with self._ending(name):
                    getattr(tracker, kind)(*args)

    @contextmanager
    def _ending(self, name: str) -> Iterator[None]:
        """Ends the tracker `name` where the block raises."""
        whole = False
        with goes_on(f"the tracker {name}"):
            yield
            whole = True
        if not whole:
            self._trackers.pop(name, None)


@contextmanager
def goes_on(what: str) -> Iterator[None]:
    """Lets training go on where the block raises, and says why there is none of `what`."""
    try:
        yield
    except Exception as error:  # whatever the package of a tracker may raise
        reason = shortened(f"{type(error).__name__}: {error}")
        rest = "the rest goes on, and metrics.jsonl has the figures of training"
        tqdm.write(f"note: {what} failed ({reason}); {rest}", file=sys.stderr)
