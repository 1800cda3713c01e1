"""Ratios of latencies that design choices promise, each pair asked in turns on one thread, random weights, medians.

Usage: python benchmarks/latency.py
  discrete      a joint answer (pictures and actions) and a policy's, all with a cache: every token by itself, all action steps at once
                (WorldVLA's mask), and in rounds (UD-VLA)
  hidden_state  a policy query that imagines the future first, against one that reads the features of a single pass; the same
                weights, 8 rows, wide enough that arithmetic dominates
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from wamkit.family import Family
from wamkit.nn.tokens import Normalizer
from wamkit.recipes import RECIPES
from wamkit.run import RunConfig, family_class
from wamkit.show import EXAMPLE
from wamkit.types import Observation, Query

SPEC = dataclasses.replace(EXAMPLE, points=0)
ROUNDS = 30


def model(run: RunConfig) -> Family:
    """The model of `run` with random weights."""
    torch.manual_seed(0)
    sizes = {"proprio": SPEC.proprio_dim, "action": SPEC.action_dim}
    numbers = Normalizer({k: (torch.zeros(n), torch.ones(n)) for k, n in sizes.items()})
    return family_class(run.family)(run.model, SPEC, numbers).eval()


def observation(seed: int = 0) -> Observation:
    """A picture of noise."""
    shape, rng = (SPEC.views, 3, SPEC.height, SPEC.width), np.random.default_rng(seed)
    return Observation(rng.integers(0, 256, shape, np.uint8), np.zeros(SPEC.proprio_dim, np.float32), "open the drawer")


def compared(*works: Callable[[], object]) -> list[float]:
    """Medians in milliseconds of pieces of work, done in turns."""
    spent: list[list[float]] = [[] for _ in works]
    for _ in range(ROUNDS + 3):
        for times, work in zip(spent, works, strict=True):
            start = time.perf_counter()
            work()
            times.append(1000 * (time.perf_counter() - start))
    return [statistics.median(times[3:]) for times in spent]


def discrete() -> None:
    run, obs = RECIPES.get("metaworld-discrete")(), observation()
    ways = {"token by token": {"action_mask": False}, "steps at once": {}, "in rounds": {"decode": "parallel"}}
    models = [model(dataclasses.replace(run, model=dataclasses.replace(run.model, **way))) for way in ways.values()]
    for query in (Query.JOINT, Query.POLICY):
        ms = compared(*(lambda m=m, q=query: m.sample(obs, q) for m in models))
        each = (f"{n} {t:.1f} ms ({ms[0] / t:.2f} times as fast)" for n, t in zip(ways, ms, strict=True))
        print(f"discrete      {query:7s}{', '.join(each)}")


def hidden_state(width: int, rows: int) -> None:
    run = RECIPES.get("metaworld-hidden_state")()
    sizes = {"width": width, "action_width": width // 2, "heads": max(4, width // 32)}
    on, off = (
        model(dataclasses.replace(run, model=dataclasses.replace(run.model, imagine=imagine, **sizes)))
        for imagine in (True, False)
    )
    off.load_state_dict(on.state_dict())
    obs = [observation(i) for i in range(rows)]
    slow, fast = compared(lambda: on.sample(obs, "policy"), lambda: off.sample(obs, "policy"))
    print(
        f"hidden_state  width {width}, {rows} rows: imagining {slow:6.1f} ms, not {fast:6.1f} ms: {slow / fast:.2f} times as fast"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    discrete()
    hidden_state(112, 1)
    hidden_state(256, 8)
    hidden_state(512, 8)
