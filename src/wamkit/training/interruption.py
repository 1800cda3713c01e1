"""Clean interruption: signals that let the loop save before it stops."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from wamkit.types import WamkitError


class Interrupted(WamkitError):
    """Training was asked to stop (Ctrl-C or SIGTERM); everything up to the named step is saved."""


@contextmanager
def stop_signals() -> Iterator[list[str]]:
    """Turns SIGINT and SIGTERM into entries of the list that it yields. Outside the main thread it does nothing."""
    stopped: list[str] = []

    def note(number: int, frame: object) -> None:
        stopped.append(signal.Signals(number).name)

    old = {}
    try:
        old = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are the caller's business
        old = {}
    try:
        yield stopped
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)
