"""How long `discrete` takes for an answer: every token by itself, all action steps at once (WorldVLA's mask), and in rounds (UD-VLA).

Usage: python benchmarks/latency.py. All with a key-value cache, at the sizes of `metaworld-discrete` with random weights, one observation,
one thread; medians, asked in turns.
"""

from __future__ import annotations

import dataclasses
import statistics
import time

import numpy as np
import torch

from wamkit.nn.tokens import Normalizer
from wamkit.recipes import RECIPES
from wamkit.run import family_class
from wamkit.show import EXAMPLE
from wamkit.types import Observation, Query

ROUNDS = 30


def main() -> None:
    torch.set_num_threads(1)
    shape, rng = (EXAMPLE.views, 3, EXAMPLE.height, EXAMPLE.width), np.random.default_rng(0)
    obs = Observation(
        rng.integers(0, 256, shape, np.uint8), np.zeros(EXAMPLE.proprio_dim, np.float32), "open the drawer"
    )
    sizes = {"proprio": EXAMPLE.proprio_dim, "action": EXAMPLE.action_dim}
    numbers = Normalizer({k: (torch.zeros(n), torch.ones(n)) for k, n in sizes.items()})
    run = RECIPES.get("metaworld-discrete")()
    ways = {"token by token": {"action_mask": False}, "steps at once": {}, "in rounds": {"decode": "parallel"}}
    build = family_class(run.family)
    models = {n: build(dataclasses.replace(run.model, **way), EXAMPLE, numbers).eval() for n, way in ways.items()}
    for query in (Query.JOINT, Query.POLICY):
        spent: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(ROUNDS + 3):
            for name, model in models.items():
                start = time.perf_counter()
                model.sample(obs, query)
                spent[name].append(1000 * (time.perf_counter() - start))
        ms = {name: statistics.median(times[3:]) for name, times in spent.items()}
        print(
            f"{query:8s}"
            + ", ".join(f"{n} {t:.1f} ms ({ms['token by token'] / t:.2f} times as fast)" for n, t in ms.items())
        )


if __name__ == "__main__":
    main()
