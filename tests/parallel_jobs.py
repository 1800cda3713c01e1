"""A job for worker processes, in a module that no other package hides from them: draccus ships one called tests."""

from __future__ import annotations

import os
import signal
import time


def square(job):
    if job < 0:
        raise ValueError(f"{job} is negative")
    if job == 99:
        os._exit(7)
    time.sleep(0.2 if job == 1 else 0.0)
    return job * job, os.getpid()


def opengl(job):
    """The module of MuJoCo's context, as a worker has it that renders."""
    from wamkit.envs.rendering import load_mujoco

    return load_mujoco().GLContext.__module__


def die_once(job):
    """The square of a number. job: the number, and a file or None: where there is none yet, the process dies once."""
    number, path = job
    if path is not None and not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def hang(path):
    """Writes the process into a file, and takes a minute; without a file it is done."""
    if path is not None:
        path.with_suffix(".part").write_text(str(os.getpid()))
        path.with_suffix(".part").rename(path)
        time.sleep(60)


def thread_counts(job):
    """Threads of PyTorch, and the environment variables that libraries read."""
    import torch

    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LP_NUM_THREADS")
    return torch.get_num_threads(), *(os.environ.get(name) for name in names)


def write_into(array):
    """The array, with a 7 in its first place."""
    array[0] = 7
    return array


def loaded(runs):
    """A sum over the weights of each run, as a policy of it has them."""
    from wamkit.inference.model import load

    return [sum(p.double().sum().item() for p in load(run).family.parameters()) for run in runs]
