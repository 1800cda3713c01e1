"""Latency of one query by part: encoding, reading the context, denoising, and reading off the answer."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import nn

from wamkit.eval.results import processor
from wamkit.families.base import Family
from wamkit.inference.model import Model
from wamkit.types import Observation, Query


@dataclass(frozen=True)
class Load:
    """Other work of the machine while times were taken.

    average: processes that ran or waited to run, over the last minute, one's own included.   cores: that this process
    may use.   threads: that one query uses.   cpu: name of the processor.
    """

    average: float
    cores: int
    threads: int
    cpu: str

    @property
    def busy(self) -> bool:
        """True if clearly more wanted to run than there are cores, so that times are longer than the machine's own."""
        return self.average > self.cores + 0.5


def machine_load() -> Load:
    """The load of this machine now; an average of 0 where the system tells none."""
    average = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Load(round(average, 2), cores, torch.get_num_threads(), processor())


def load_note(loads: Sequence[Load]) -> str:
    """The load that times were taken under, in words. Warns where the machine was busy for more than a tenth of it."""
    if not loads:
        return "the load that these times were taken under was not recorded"
    average = statistics.median(load.average for load in loads)
    machines = dict.fromkeys(f"{x.cpu}, {x.cores} cores, {x.threads} thread{'s' * (x.threads > 1)}" for x in loads)
    note = f"load average {average:.1f} on {' and '.join(machines)}"
    busy = sum(load.busy for load in loads)
    return f"{note}; the machine was BUSY, so times are too long" if 10 * busy > len(loads) else note


@dataclass(frozen=True)
class Latency:
    """Medians in milliseconds of one query, batch 1, one thread.

    total: the whole query.   encode: images, values and text to tokens.   prefill: passes of the trunk that read no
    cache: the context's own, or the only one.   step: one denoising step, of which there are `steps`.   decode: what is
    left.
    """

    total: float
    encode: float
    prefill: float
    step: float
    steps: int
    decode: float


def query_latency(
    model: Model, observations: Sequence[Observation], query: Query = Query.POLICY, *, repeats: int = 60
) -> Latency:
    """Times `query`, asked about the observations in turn, `repeats` times after a tenth as many to warm up.

    A denoising step's time is the difference between queries of n and of 2 n steps, asked alternately, over n; families
    that answer `query` without have none. Parts are medians of their own, so that `decode`, which closes the sum, is at
    least 0.
    Blind spot: a machine that does other work; compare only what was timed on one machine within one sitting.
    """
    clock = _Clock(model.family)
    n = model.default_steps(query) if model.denoises(query) else 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows: list[tuple[float, float, float]] = []
        twice: list[float] = []
        for i in range(-(repeats // 10) - 1, repeats):
            obs = observations[i % len(observations)]
            clock.spent.clear()
            total = _ms(lambda obs=obs: model.sample(obs, query, seed=0))
            parts = {k: clock.spent.get(k, 0.0) for k in ("encode", "prefill")}
            double = _ms(lambda obs=obs: model.sample(obs, query, seed=0, steps=2 * n)) if n else 0.0
            if i >= 0:
                rows.append((total, parts["encode"], parts["prefill"]))
                twice.append(double - total)
    finally:
        torch.set_num_threads(threads)
        clock.remove()
    total, encode, prefill = (statistics.median(column) for column in zip(*rows, strict=True))
    step = max(0.0, statistics.median(twice) / n) if n else 0.0
    return Latency(total, encode, prefill, step, n, max(0.0, total - encode - prefill - n * step))


def _ms(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


class _Clock:
    """Adds up the milliseconds that a model spends in its encoder, and in backbones that were given no cache."""

    def __init__(self, model: Family):
        self.spent: dict[str, float] = {}
        self._wrapped: list[nn.Module] = []
        self._wrap(model.context, lambda args, kw: "encode")
        for backbone in model.backbones:
            self._wrap(backbone, lambda args, kw: None if kw.get("past") or len(args) > 2 and args[2] else "prefill")

    def _wrap(self, module: nn.Module, part: Callable[[tuple, dict], str | None]) -> None:
        forward = module.forward

        @wraps(forward)
        def timed(*args: Any, **kw: Any) -> Any:
            began = time.perf_counter()
            out = forward(*args, **kw)
            if name := part(args, kw):
                self.spent[name] = self.spent.get(name, 0.0) + 1000 * (time.perf_counter() - began)
            return out

        module.forward = timed  # type: ignore[method-assign]
        self._wrapped.append(module)

    def remove(self) -> None:
        """Puts the modules' own methods back."""
        for module in self._wrapped:
            del module.forward
