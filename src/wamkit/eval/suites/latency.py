"""Latency of one query by part: encoding, reading the context, denoising, and reading off the answer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import nn

from wamkit.families.base import Family
from wamkit.inference.model import Model
from wamkit.types import Observation, Query


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
