"""Latency of a query by part, as a robot waits for it: what `wamkit latency` measures.

Each query is timed as a whole, with its parts inside it; the denoising steps are what the parts leave, so that all of
them add up. Transport is measured over a socket of this machine, by a client and a server as robots use them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np
import torch
import wamkit_client

from wamkit.eval.suites.latency import machine_load
from wamkit.inference.model import Model
from wamkit.nn import SequenceBackbone, flow, heads
from wamkit.serving.background import in_background
from wamkit.serving.engine import Engine
from wamkit.serving.inputs import Inputs
from wamkit.serving.server import PolicyServer, ServerOptions
from wamkit.types import Observation, Query

PARTS = ("preprocess", "text", "encode", "prefill", "denoise", "decode")
"""Parts of a query, in the order in which they are computed."""


@dataclass(frozen=True)
class Times:
    """Milliseconds of a part: percentiles over queries."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Times:
        """The percentiles of a list of times."""
        return cls(*(round(float(x), 4) for x in np.percentile(milliseconds, (50, 95, 99))))


def query_parts(
    model: Model, observations: Sequence[Observation], query: Query, *, steps: int | None = None, repeats: int = 100
) -> dict[str, Any]:
    """Times of one query, batch 1: of each of `PARTS`, of a denoising step, and of the whole; and what was measured.

    preprocess: checks, resizing of images, and the batch.   text: the instruction's encoder.   encode: images and state
    to tokens.   prefill: passes of the backbones before denoising.   denoise: all denoising steps, and whatever else is
    left.   decode: actions and frames to the robot's units.

    observations: asked about in turn.   first: the first query, before anything was warm.
    """
    clock = _Clock(model)
    denoising = (steps or model.default_steps(query)) if model.denoises(query) else 0
    spec = model.spec
    given: dict[str, Any] = {"steps": steps}
    if query is Query.FORWARD:
        given["actions"] = model.usual()[1]
    if query is Query.INVERSE:
        given["future"] = np.stack([np.asarray(observations[0].images)] * len(spec.frame_offsets))
    rows, first = list[dict[str, float]](), 0.0
    try:
        for i in range(-max(2, repeats // 10), repeats):
            obs = observations[i % len(observations)]
            clock.spent = dict.fromkeys(PARTS, 0.0)
            began = clock.now()
            model.sample(obs, query, seed=0, **given)
            total = clock.now() - began
            first = first or total
            if i >= 0:
                spent = clock.spent | {"encode": clock.spent["encode"] - clock.spent["text"]}
                spent["denoise"] = max(0.0, total - sum(spent.values()))
                rows.append(spent | {"total": total})
    finally:
        clock.remove()
    times = {name: Times.of([row[name] for row in rows]) for name in (*PARTS, "total")}
    if denoising:
        times["step"] = Times.of([row["denoise"] / denoising for row in rows])
    parameter = next(model.family.parameters())
    return {
        "query": str(query),
        "parts": {name: vars(t) for name, t in times.items()},
        "first_ms": round(first, 3),
        "denoising_steps": denoising,
        "repeats": repeats,
        "device": str(parameter.device),
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "load": vars(machine_load()),
    }


class _Clock:
    """Adds up the milliseconds that a model spends in parts of a query. Parts inside another count for the inner one,
    but for `text`, which `encode` holds."""

    def __init__(self, model: Model):
        self.spent: dict[str, float] = {}
        self._wrapped: list[tuple[Any, str, Any]] = []
        self._denoising = False
        family = model.family
        self._device = next(family.parameters()).device
        self._wrap(model, "_batch", "preprocess")
        self._wrap(model, "_sample", "decode")
        self._wrap(family.context, "forward", "encode")
        if hasattr(family.context, "text"):
            self._wrap(family.context.text, "forward", "text")
        for backbone in family.backbones:
            self._wrap(backbone, "forward", "prefill")
            if isinstance(backbone, SequenceBackbone):
                self._wrap(backbone, "read", "prefill")
        for module in (flow, heads):
            self._wrap(module, "euler", "")
        if family.denoised is not None:
            self._wrap(family.denoised, "unpack", "decode")
        if family.codec is not None:
            self._wrap(family.codec, "decode", "decode")

    def now(self) -> float:
        """Milliseconds, once the device has done what it was told."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return 1000 * time.perf_counter()

    def _wrap(self, owner: Any, name: str, part: str) -> None:
        """Times a method or function. part: "" for one inside of which nothing counts for another part."""
        method, own = getattr(owner, name), name in vars(owner)

        @wraps(method)
        def timed(*args: Any, **kw: Any) -> Any:
            if self._denoising:
                return method(*args, **kw)
            self._denoising = not part
            began = self.now()
            try:
                return method(*args, **kw)
            finally:
                self._denoising = False
                if part:
                    self.spent[part] += self.now() - began

        object.__setattr__(owner, name, timed)
        self._wrapped.append((owner, name, method if own else None))

    def remove(self) -> None:
        """Puts everything back."""
        for owner, name, method in self._wrapped:
            if method is None:
                object.__delattr__(owner, name)
            else:
                object.__setattr__(owner, name, method)


def transport(model: Model, inputs: Inputs, query: Query, image: tuple[int, int], repeats: int = 100) -> Times:
    """Milliseconds that a client waits beyond the model's own time, over a socket of this machine.

    image: height and width of the images that it sends. They are read, checked and resized within this time.
    """
    engine = Engine(model, max_batch=1)
    options = ServerOptions(port=0, queries=(query,))
    waits = list[float]()
    with in_background(lambda: PolicyServer(engine, inputs, options)) as server:
        with wamkit_client.connect(f"ws://127.0.0.1:{server.port}") as client:
            requests = [request(inputs, model, image, seed) for seed in range(4)]
            for i in range(-max(2, repeats // 10), repeats):
                began = time.perf_counter()
                answer = client.infer(requests[i % len(requests)])
                took = 1000 * (time.perf_counter() - began)
                if i >= 0:
                    waits.append(took - answer["server_timing"]["infer_ms"])
    return Times.of(waits)


def request(inputs: Inputs, model: Model, image: tuple[int, int], seed: int) -> dict[str, Any]:
    """A request of random images (H, W), a usual state and an instruction."""
    rng = np.random.default_rng(seed)
    images = {inputs.keys.image(camera): rng.integers(0, 256, (*image, 3), np.uint8) for camera in inputs.cameras}
    return {**images, inputs.keys.state[0]: model.usual()[0], inputs.keys.prompt: "open the drawer"}
