"""Requests, and a server on a free port."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from wamkit.runs.run import Run
from wamkit.serving.background import in_background
from wamkit.serving.engine import Engine
from wamkit.serving.inputs import Inputs
from wamkit.serving.server import PolicyServer, ServerOptions
from wamkit.types import Query


def ask(seed=0, **more):
    """A request that fits the model."""
    rng = np.random.default_rng(seed)
    return {
        "observation/images/corner2": rng.integers(0, 256, (48, 64, 3), np.uint8),
        "observation/state": rng.normal(0, 1, 4).astype(np.float32),
        "prompt": "open the drawer",
        **more,
    }


@contextmanager
def serving(run, model, max_batch=8, max_pending=64, keys=(), prompt="", metadata=None, **options):
    """A `PolicyServer` in a thread of its own. It has stopped when the block ends."""
    engine = Engine(model, max_batch=max_batch, max_pending=max_pending)
    chosen = replace(
        ServerOptions(port=0, queries=(Query.POLICY, Query.JOINT, Query.FORWARD, Query.INVERSE)), **options
    )

    def make():
        inputs = Inputs.of(Run.open(run), words=keys, prompt=prompt)
        inputs.metadata = metadata
        server, loop = PolicyServer(engine, inputs, chosen, {"run": "here"}), asyncio.get_running_loop()
        server.end = lambda: loop.call_soon_threadsafe(server.stop)
        return server

    with in_background(make) as server:
        server.url = f"ws://127.0.0.1:{server.port}"
        yield server
