"""Clean interruption: signals that let the loop save before it stops."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from wamkit.errors import WamkitError

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
"""Ctrl-C, the end of a job's time, and a closed terminal."""


class Interrupted(WamkitError):
    """Training was asked to stop; everything up to the named step is saved.

    signal: name of the signal. The exit code is 128 and its number, as of a process that it ends: stopped, not failed.
    """

    def __init__(self, message: str, signal_name: str = "SIGINT"):
        super().__init__(message, signal_name)
        self.message, self.signal = message, signal_name
        self.exit_code = 128 + signal.Signals[signal_name]

    def __str__(self) -> str:
        return self.message


@contextmanager
def stop_signals() -> Iterator[list[str]]:
    """Turns the `SIGNALS` into entries of the list that it yields. Outside the main thread it does nothing.

    A signal that the process ignores stays ignored (nohup). In a process that is forked meanwhile they do what they did
    before.
    """
    stopped: list[str] = []
    owner, old = os.getpid(), {}

    def note(number: int, frame: object) -> None:
        if os.getpid() == owner:
            stopped.append(signal.Signals(number).name)
        else:
            signal.signal(number, old[number])
            os.kill(os.getpid(), number)

    try:
        for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
            if (before := signal.getsignal(number)) not in (signal.SIG_IGN, None):
                signal.signal(number, note)
                old[number] = before
    except ValueError:  # not the main thread: signals are the caller's business
        old = {}
    try:
        yield stopped
    finally:
        for number, before in old.items():
            signal.signal(number, before)
