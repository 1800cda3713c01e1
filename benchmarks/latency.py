"""Ratios of latencies that design choices promise, each pair asked in turns on one thread, random weights, medians.

Usage: python benchmarks/latency.py
  discrete      a joint answer (images and actions) and a policy's, all with a cache: every token by itself, all action
                steps at once (WorldVLA's mask), and in rounds (UD-VLA)
  chunk_causal  a query over a history, its moments' keys kept from earlier queries or their images read again; and a
                model that reads all moments together, which can keep nothing
  hidden_state  a policy query that imagines the future first, against one that reads the features of a single pass;
                the same weights, 8 rows, wide enough that arithmetic dominates
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from wamkit.eval.suites.latency import load_note, machine_load
from wamkit.inference.model import Model
from wamkit.nn.normalizer import Normalizer
from wamkit.runs.config import RunConfig, family_class
from wamkit.runs.meta_model import EXAMPLE
from wamkit.runs.recipes import RECIPES
from wamkit.types import Observation, Query, Spec

SPEC = dataclasses.replace(EXAMPLE, point_grid=0)
ROUNDS = 30


def model(run: RunConfig, spec: Spec = SPEC) -> Model:
    """The model of `run` with random weights, also where training begins with zeros."""
    torch.manual_seed(0)
    sizes = {"proprio": SPEC.proprio_dim, "action": SPEC.action_dim}
    numbers = Normalizer({k: (torch.zeros(n), torch.ones(n)) for k, n in sizes.items()})
    out = family_class(run.family)(run.model, spec, numbers).eval()
    with torch.no_grad():
        for p in out.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return Model(out)


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


def chunk_causal(name: str, width: int, rows: int, moments: int) -> None:
    run, obs = RECIPES.get(f"metaworld-{name}-chunk_causal")(), [observation(i) for i in range(moments + 1)]
    spec = dataclasses.replace(SPEC, past_offsets=tuple(range(-8 * moments, 0, 8)))
    sizes = {"width": width, "heads": max(4, width // 32)} | ({"action_width": width // 2} if name == "mot" else {})
    apart, together = (
        model(dataclasses.replace(run, model=dataclasses.replace(run.model, chunk_causal=c, **sizes)), spec)
        for c in (True, False)
    )
    seen = dataclasses.replace(obs[0], past=tuple(obs[1:]))
    kept = dataclasses.replace(obs[0], past=tuple(apart.encode_history(o) for o in obs[1:]))
    for query in (Query.POLICY, Query.JOINT):
        ways = ((apart, kept), (apart, seen), (together, seen))
        asked = [lambda m=m, o=o, q=query: m.sample([o] * rows, q) for m, o in ways]
        away = np.abs(asked[0]().actions - asked[1]().actions).max()
        fast, slow, all_ = compared(*asked)
        print(
            f"{name:13s} {query:7s}width {width}, {rows} rows, history of {moments}: kept {fast:5.1f} ms, read again "
            f"{slow:5.1f} ms: "
            f"{slow / fast:.2f} times as fast, {away:.0e} away; read together {all_:5.1f} ms"
        )


def hidden_state(width: int, rows: int) -> None:
    run = RECIPES.get("metaworld-hidden_state")()
    sizes = {"width": width, "action_width": width // 2, "heads": max(4, width // 32)}
    on, off = (
        model(dataclasses.replace(run, model=dataclasses.replace(run.model, imagine=imagine, **sizes)))
        for imagine in (True, False)
    )
    off.family.load_state_dict(on.family.state_dict())
    obs = [observation(i) for i in range(rows)]
    slow, fast = compared(lambda: on.sample(obs, "policy"), lambda: off.sample(obs, "policy"))
    print(
        f"hidden_state  width {width}, {rows} rows: imagining {slow:6.1f} ms, not {fast:6.1f} ms: {slow / fast:.2f} "
        "times as fast"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    discrete()
    for name in ("unified", "mot"):
        for sizes in ((128, 1, 4), (128, 1, 8), (256, 8, 4)):
            chunk_causal(name, *sizes)
    hidden_state(112, 1)
    hidden_state(256, 8)
    hidden_state(512, 8)
    print(load_note([machine_load()]))
