"""Child processes that tests start in order to kill."""

from __future__ import annotations

import multiprocessing

PROCESSES = multiprocessing.get_context("fork")  # a child starts in milliseconds, and only to be killed


def run(function, *arguments):
    process = PROCESSES.Process(target=function, args=arguments)
    process.start()
    return process
