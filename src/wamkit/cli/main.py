"""The entry point of the command line: finds the commands, runs one, maps errors to one line and an exit code."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from wamkit import __version__
from wamkit.cli.parse import COMMANDS, first_line, options_of, parse
from wamkit.errors import WamkitError, missing_package
from wamkit.registry import RegistryError


def entry() -> None:
    """The console script, and `python -m wamkit`."""
    _show_all_characters()
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nwamkit: interrupted", file=sys.stderr)
        sys.exit(130)


def _show_all_characters() -> None:
    """Has a terminal that lacks a character of an output show its code, in place of an error after the work is done.

    Terminals that are not UTF-8 lack most characters, and all of them lack bytes of file names that are no text.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    0: done.
    1: an error that wamkit raised on purpose, printed as one line.
    2: a wrong command. Wrong options raise SystemExit with this code.
    128 and the number of a signal: stopped, not failed, and the same command continues: 130 after Ctrl-C, 143 after
        SIGTERM, 129 after SIGHUP. Training has saved its last step; other commands have kept what was finished.
    """
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        if name in ("-h", "--help"):
            print(usage())
            return 0
        if name == "--version":
            print(__version__)
            return 0
        run = COMMANDS.get(name)
    except RegistryError as error:
        print(f"wamkit: {error}", file=sys.stderr)
        return 2
    rank = os.environ.get("RANK", "0")  # of one of several processes of a torchrun
    said_by = name if rank == "0" else f"{name}, rank {rank}"
    try:
        run(parse(options_of(run), name, rest))
    except WamkitError as error:
        print(f"wamkit {said_by}: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if not (line := missing_package(error)):
            raise
        print(f"wamkit {said_by}: {line}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os._exit(0)
    except KeyboardInterrupt:
        print(f"\nwamkit {said_by}: interrupted; the same command continues", file=sys.stderr)
        return 130
    return 0


def usage() -> str:
    """All commands, each with the first line of its help."""
    names = COMMANDS.names()
    wide = max(len(name) for name in names)
    lines = [f"  {name:<{wide}}  {first_line(options_of(COMMANDS.get(name)))}" for name in names]
    return "\n".join(
        ["usage: wamkit COMMAND [options]", "", *lines, "", "`wamkit COMMAND --help` lists the options of a command."]
    )
