"""Keys of a terminal as they are typed, without waiting for a line."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

ARROWS = {"\x1b[A": "up", "\x1b[B": "down", "\x1b[C": "right", "\x1b[D": "left"}


class Keys(Protocol):
    """A source of keys."""

    def pressed(self) -> Sequence[str]:
        """The keys since the last call: characters, "enter", "up", "down", "left", "right", "escape"."""


class NoKeys:
    """Nobody types."""

    def pressed(self) -> Sequence[str]:
        """None."""
        return ()


class TerminalKeys:
    """The keys of standard input, which must be a terminal."""

    def pressed(self) -> Sequence[str]:
        """See `Keys`."""
        typed, file = "", sys.stdin.fileno()
        while select.select([file], [], [], 0)[0]:
            data = os.read(file, 1024)
            if not data:
                break
            typed += data.decode(errors="ignore")
        return list(_split(typed))


def _split(typed: str) -> Iterator[str]:
    while typed:
        if typed[:3] in ARROWS:
            yield ARROWS[typed[:3]]
            typed = typed[3:]
            continue
        yield {"\r": "enter", "\n": "enter", "\x1b": "escape"}.get(typed[0], typed[0])
        typed = typed[1:]


@contextmanager
def terminal_keys() -> Iterator[Keys]:
    """Keys as they are typed, where standard input is a terminal; else none. The terminal is restored at the end."""
    if not sys.stdin.isatty():
        yield NoKeys()
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield TerminalKeys()
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
