"""The processes of one training: one by default, those of a `torchrun` otherwise, and what they tell one another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from wamkit.config import ConfigError
from wamkit.training.interruption import Interrupted
from wamkit.types import WamkitError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables by which torchrun tells a process its place."""
TIMEOUT = timedelta(hours=2)
"""Longest wait for another process, which validates or saves alone; then a process ends with an error. One that dies is
noticed at once."""

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """One of `size` processes of a training, number `rank`. Its methods are called by all of them, in one order."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """True for the process that writes files and shows progress."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """This process' rows of a batch of `count`: parts of equal size, the first ones a row longer."""
        each, more = divmod(count, self.size)
        start = self.rank * each + min(self.rank, more)
        return slice(start, start + each + (self.rank < more))

    def agreed(self, said: str) -> str:
        """The first text, in order of ranks, that is not empty."""
        if self.size == 1:
            return said
        found = torch.tensor(bool(said), dtype=torch.uint8)
        dist.all_reduce(found, dist.ReduceOp.MAX)  # most often nobody says anything
        return next(text for text in self.all(said) if text) if found else ""

    def all(self, x: Any) -> list[Any]:
        """Values that the processes gave, in order of ranks."""
        if self.size == 1:
            return [x]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, x)
        return found

    def gather(self, mine: Tensor, count: int) -> Tensor:
        """The `count` rows of a batch, of which this process has its own (`rows`)."""
        if self.size == 1:
            return mine
        parts = [World(rank, self.size).rows(count) for rank in range(self.size)]
        lengths = [part.stop - part.start for part in parts]
        padded = mine.new_zeros(max(lengths), *mine.shape[1:])
        padded[: len(mine)] = mine
        found = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(found, padded)
        return torch.cat([x[:n] for x, n in zip(found, lengths, strict=True)])

    def by_first(self, function: Callable[[], T]) -> T:
        """The result of `function` in the first process. An OSError or WamkitError of it is raised in all processes."""
        if self.size == 1:
            return function()
        told: list[Any] = [None, None]
        if self.first:
            try:
                told[0] = function()
            except (OSError, WamkitError) as error:
                told[1] = error
        dist.broadcast_object_list(told)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def wait(self) -> None:
        """Waits until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def check_same(self, facts: Mapping[str, str]) -> None:
        """Raises WamkitError, naming the process and the fact, unless these are the same in all processes."""
        for rank, theirs in enumerate(told := self.all(dict(facts))):
            for name, value in told[0].items():
                if theirs.get(name) != value:
                    raise WamkitError(
                        f"the processes of this training differ: rank {rank} has {name} {theirs.get(name)}, rank 0 "
                        f"has {value}; give all of them the same data, options and versions"
                    )


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The world that the environment of this process describes: itself alone, or all that a torchrun started.

    device: of the training, "cpu" or "cuda"; on GPUs each process takes that of its local rank. Raises ConfigError
    where that cannot be.
    """
    if not _several():
        yield World()
        return
    if missing := [name for name in VARIABLES if name not in os.environ]:
        raise ConfigError(f"WORLD_SIZE is set, {', '.join(missing)} not: start the processes with torchrun")
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"train.device = {device!r} under torchrun: choose cpu, or cuda for a GPU a process")
    if device == "cuda":
        _take_gpu(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    except Interrupted:  # all of them stopped
        dist.destroy_process_group()
        raise
    # Not after another error: this process would wait for others that wait for it. They notice when it ends.
    dist.destroy_process_group()


@contextmanager
def first_speaks() -> Iterator[None]:
    """A block in which all processes of a torchrun but the first print nothing to stdout."""
    if not _several() or os.environ.get("RANK", "0") == "0":
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def _several() -> bool:
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _take_gpu(number: int) -> None:
    if not torch.cuda.is_available() or not dist.is_nccl_available():
        raise ConfigError("train.device = cuda under torchrun needs GPUs and NCCL, and they are not here: choose cpu")
    if number >= (count := torch.cuda.device_count()):
        raise ConfigError(f"there are {count} GPUs, and process {number} of this machine would have none: start fewer")
    torch.cuda.set_device(number)
