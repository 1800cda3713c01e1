"""Independent jobs in worker processes, one thread each, with results in order.

Processes, because a simulator renders with one OpenGL context a process. One thread in each, because libraries that
start a thread a core in each of several processes are many times slower. An `Executor` has the processes: children of
this one, unless `executed_by` gives another (see `wamkit.executors`). A job is a pure function of its description, so
results do not depend on where it ran.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeVar

from wamkit.errors import WamkitError

J = TypeVar("J")
R = TypeVar("R")

_PRELOADED = [
    "torch",
    "triton._C.libtriton",  # before MuJoCo: see `wamkit.envs.rendering`
    "mujoco",
    "metaworld",
    "scipy.stats",
    "av",
    "pyarrow.parquet",
    "safetensors.torch",
    "wamkit.inference.policy",
]
"""Modules that most workers need and that take seconds to import. They are imported once, in the process that workers
are forked from; modules that are not installed are left out."""

_CHOOSE_OPENGL = ("mujoco", "metaworld")
"""Those that choose a library to render with when they are imported: left to the workers, which choose it
(`wamkit.envs.rendering`), unless MUJOCO_GL has chosen."""

ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LP_NUM_THREADS")}
"""Environment variables of the workers. LP_NUM_THREADS belongs to the software renderer (llvmpipe)."""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Limits each operator of PyTorch to one thread.

    If a pool's threads use the cores, idle threads of OpenMP would spin on them. Small networks are faster on one
    thread, and sums have one order.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class WorkerError(WamkitError):
    """A job failed in its worker process. The message names the job and holds the traceback of the worker."""


class Pool(Protocol):
    """The workers of one call of `run_parallel`, each with one job at a time."""

    @property
    def full(self) -> bool:
        """True if no worker is free: a job that finishes frees one."""

    def send(self, index: int, job: Any) -> None:
        """Has a free worker start on a job. index: its place among the jobs."""

    def receive(self) -> Iterable[tuple[int, Any, str | None]]:
        """Waits until a job is done, and gives (index, result, error) of all that are; an error is None or a text."""

    def close(self) -> None:
        """Ends the jobs that are not done."""


class Executor(Protocol):
    """Processes that jobs run in. Order, progress, and naming the job that failed are left to `run_parallel`."""

    def pool(self, worker: Callable[[Any], Any], processes: int, jobs: int) -> Pool:
        """Workers for so many jobs, at most `processes` at a time. Each computes `answer(worker, job)`."""

    def close(self) -> None:
        """Ends all processes that it started."""


class LocalProcesses:
    """Child processes on this machine."""

    def pool(self, worker: Callable[[Any], Any], processes: int, jobs: int) -> Pool:
        """Children, or those that `kept_workers` keeps."""
        return _Pool(worker, min(processes, jobs))

    def close(self) -> None:
        """Does nothing: children end with their pool, or with `kept_workers`."""
        return None


_executor: Executor = LocalProcesses()


@contextlib.contextmanager
def executed_by(executor: Executor) -> Iterator[None]:
    """Has `executor` run the jobs of every `run_parallel` inside."""
    global _executor
    before, _executor = _executor, executor
    try:
        yield
    finally:
        _executor = before


def run_parallel(
    jobs: Sequence[J],
    worker: Callable[[J], R],
    *,
    processes: int = 2,
    desc: str = "",
    unit: str = "episode",
    describe: Callable[[J], str] = repr,
    progress: bool = True,
    done: int = 0,
) -> Iterator[R]:
    """Yields worker(job) for every job, in the order of `jobs`, computed by `processes` worker processes.

    worker: a module-level function. It and the jobs are sent to new processes, so both must be picklable, and the
        calling script needs the usual `if __name__ == "__main__":`.
    processes: number of workers, at least 1. Even a single job runs in a worker, so that the caller's process keeps its
        threads and has no render context.
    desc, unit: label and unit of the progress bar.
    describe: name of a job in errors.
    progress: show a bar on stderr, with rate and time left.
    done: number of jobs that were finished earlier, for the bar.

    Workers are children of this process, unless `executed_by` says otherwise. Children are forked from a process that
    holds imports only ("forkserver"). It starts at the first call and keeps the environment variables of that moment.
    They end with the generator (see also `kept_workers`), and also if this process is interrupted, terminated or
    killed. At most 2 x processes results wait for an earlier one, so memory is bounded however slow the first job is.

    Raises WorkerError if a job fails or its process dies.
    """
    if processes < 1:
        raise WamkitError(f"processes must be at least 1, found {processes}")
    if not jobs:
        return
    pool = _executor.pool(worker, processes, len(jobs))
    ready: dict[int, R] = {}
    window, sent = 2 * processes, 0
    with contextlib.closing(pool), _bar(len(jobs), done, desc, unit, progress) as count:
        for wanted in range(len(jobs)):
            while wanted not in ready:
                while not pool.full and sent < min(len(jobs), wanted + window):
                    pool.send(sent, jobs[sent])
                    sent += 1
                for index, result, error in pool.receive():
                    if error is not None:
                        raise WorkerError(f"{desc or 'worker'}: {describe(jobs[index])} failed: {error}")
                    ready[index] = result
                    count()
            yield ready.pop(wanted)


@contextlib.contextmanager
def _bar(jobs: int, done: int, desc: str, unit: str, progress: bool) -> Iterator[Callable[[], Any]]:
    """A function that counts a finished job on the bar; without a bar it does nothing, and needs no package."""
    if not progress:
        yield lambda: None
        return
    from tqdm import tqdm

    with tqdm(total=jobs + done, initial=done, desc=desc, unit=unit, smoothing=0.1) as bar:
        yield bar.update


_Child = tuple[Connection, Any]
"""A child process, with the pipe to it."""

_waiting: list[_Child] | None = None
"""Children without a pool, inside of `kept_workers`; None outside."""


@contextlib.contextmanager
def kept_workers() -> Iterator[None]:
    """Keeps children from one call of `run_parallel` to the next; they end with the block, or the outermost one.

    They have imported what they need, and hold environments and models that the next jobs may need as well. They also
    keep the working folder in which they started, so it must not change inside.
    """
    global _waiting
    if _waiting is not None:
        yield
        return
    _waiting = []
    try:
        yield
    finally:
        children, _waiting = _waiting, None
        _end(children)


class _Pool:
    """Child processes with a pipe each. A child runs one job at a time."""

    def __init__(self, worker: Callable[[Any], Any], processes: int):
        self._worker = worker
        self.idle: list[Connection] = []
        self.busy: dict[Connection, int] = {}
        self._children: dict[Connection, Any] = {}
        while _waiting and len(self._children) < processes:
            pipe, child = _waiting.pop()
            if child.is_alive():
                self._children[pipe] = child
            else:
                pipe.close()
        forks = "forkserver" in multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if forks else "spawn")
        if forks:
            chosen = os.environ.get("MUJOCO_GL") or sys.platform != "linux"
            context.set_forkserver_preload([m for m in _PRELOADED if chosen or m not in _CHOOSE_OPENGL])
        with environment(ONE_THREAD):
            while len(self._children) < processes:
                ours, theirs = context.Pipe()
                child = context.Process(target=_serve, args=(theirs,), daemon=True)
                child.start()
                theirs.close()
                self._children[ours] = child
        self.idle += self._children

    @property
    def full(self) -> bool:
        return not self.idle

    def send(self, index: int, job: Any) -> None:
        pipe = self.idle.pop()
        pipe.send((self._worker, job))
        self.busy[pipe] = index

    def receive(self) -> Iterator[tuple[int, Any, str | None]]:
        """Waits until a job is done, and yields (index, result, error) of all that are."""
        for pipe in wait(list(self.busy)):
            index = self.busy.pop(pipe)
            try:
                result, error = pipe.recv()
            except (EOFError, OSError):
                self._children[pipe].join(5)
                result, error = None, f"its process ended with exit code {self._children[pipe].exitcode}"
            self.idle.append(pipe)
            yield index, result, error

    def close(self) -> None:
        if _waiting is not None:
            _waiting.extend((pipe, self._children.pop(pipe)) for pipe in self.idle)
        _end(list(self._children.items()))


def _end(children: Sequence[_Child]) -> None:
    for pipe, child in children:
        pipe.close()
        child.terminate()
    for _, child in children:
        child.join(5)
        if child.is_alive():
            child.kill()
            child.join()


def _serve(pipe: Connection) -> None:
    """The loop of a child: it takes jobs and sends results or errors, until the pipe closes or the parent is gone."""
    import torch

    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the parent ends its children in order
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    while True:
        try:
            worker, job = pipe.recv()
        except (EOFError, OSError):
            return
        pipe.send(answer(worker, job))


def answer(worker: Callable[[J], R], job: J) -> tuple[R | None, str | None]:
    """worker(job) and None, or None and the text of its error: the traceback, but for errors raised on purpose."""
    try:
        return worker(job), None
    except Exception as error:
        return None, str(error) if isinstance(error, WamkitError) else traceback.format_exc()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Sets environment variables for the children that start inside: libraries read thread counts when they load."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
