"""Executors by name. `wamkit.workers.Executor` is the contract: what hands out jobs, and takes their results.

A package adds its own under the entry point group `wamkit.executors`:

    @EXECUTORS.register("slurm")
    class Slurm:
        def pool(self, worker, processes, jobs): ...
        def close(self): ...
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from wamkit.registry import Registry
from wamkit.workers import Executor, LocalProcesses, executed_by

EXECUTORS: Registry[Callable[[], Executor]] = Registry("executor", "wamkit.executors", package="wamkit.executors")
"""Name of an executor -> its class, made without arguments; it raises where it cannot run here."""

DEFAULT = "local"
EXECUTORS.register(DEFAULT)(LocalProcesses)


@contextlib.contextmanager
def executing_on(name: str = DEFAULT) -> Iterator[None]:
    """Has the executor `name` run the jobs of collections, evaluations and comparisons inside; ends it afterwards.

    Raises RegistryError for an unknown name, ModuleNotFoundError where its package is not installed, and WamkitError
    where it cannot run jobs, such as a cluster that does not answer or has other versions.
    """
    executor = EXECUTORS.get(name)()
    with contextlib.closing(executor), executed_by(executor):
        yield
