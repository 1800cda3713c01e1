"""How long `discrete` takes for a joint answer (pictures and actions): token by token with a cache, and in parallel rounds.

Usage: python benchmarks/latency.py. Recipes `metaworld-discrete` and `-parallel` at their sizes with random weights, one observation, one
thread; medians, the two asked in turns.
"""

from __future__ import annotations

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
    models = {}
    for name in ("metaworld-discrete", "metaworld-discrete-parallel"):
        run = RECIPES.get(name)()
        numbers = Normalizer({k: (torch.zeros(n), torch.ones(n)) for k, n in sizes.items()})
        models[name] = family_class(run.family)(run.model, EXAMPLE, numbers).eval()
    for query in (Query.JOINT, Query.POLICY):
        spent: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(ROUNDS + 3):
            for name, model in models.items():
                start = time.perf_counter()
                model.sample(obs, query)
                spent[name].append(1000 * (time.perf_counter() - start))
        ar, parallel = (statistics.median(times[3:]) for times in spent.values())
        print(
            f"{query:8s} token by token {ar:6.1f} ms, in rounds {parallel:6.1f} ms: {ar / parallel:.2f} times as fast"
        )


if __name__ == "__main__":
    main()
