"""A job for worker processes, in a module that no other package hides from them: draccus ships one called tests."""

from __future__ import annotations

import os
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
