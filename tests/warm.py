"""Processes that a test may kill or limit, and that start at once: forked from one that has imported torch."""

from __future__ import annotations

import multiprocessing
import os
import sys
import textwrap
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from wamkit import workers


def launch(function: Callable[..., Any], *args: Any) -> BaseProcess:
    """Starts a process that calls a function of a module, forked from the process that workers are forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(workers._PRELOADED)
    process = context.Process(target=function, args=args)
    with workers.environment(workers.ONE_THREAD):  # as pools start that process, which later tests go on using
        process.start()
    return process


def output(code: str, *args: object, timeout: float = 300) -> tuple[int | None, str]:
    """Exit code of a process that executes `code`, and all that it prints; `sys.argv` holds the arguments from 1 on.

    After `timeout` seconds it is killed.
    """
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = launch(_execute, theirs, textwrap.dedent(code), [str(a) for a in args])
    theirs.close()
    printed = b""
    while ours.poll(timeout) and (part := os.read(ours.fileno(), 1 << 16)):
        printed += part
    process.join(timeout)
    process.kill()
    process.join()
    return process.exitcode, printed.decode()


def _execute(pipe: Connection, code: str, args: list[str]) -> None:
    for stream in (1, 2):
        os.dup2(pipe.fileno(), stream)
    sys.argv = ["", *args]
    exec(compile(code, "<test>", "exec"), {"__name__": "__main__"})
