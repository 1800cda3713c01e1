"""Speed, memory and agreement of one GPU, on models with random weights: fits ten minutes of one H200.

Usage: python benchmarks/gpu.py [--minutes 10] [--parts finetune query] [--out FILE.json]
       python benchmarks/gpu.py --device cpu --size tiny   (the same code on a tiny model, without a GPU)
  parity               losses, gradients and answers of a tiny model on the device against those of the CPU, float32
  finetune             Wan2.2-TI2V-5B as `mot`, all weights, blocks checkpointed, with kept latents and texts
  lora                 the same with adapters of rank 128 on the video model, nothing checkpointed
  query                a policy query and a joint one, image in and actions out, batch 1: in float32, as they are
                       served, and with the backbones' matrices in bfloat16
  query_compiled       in bfloat16, each block compiled
  query_graph          the policy query as one CUDA graph, with blocks as they are
  query_graph_compiled the same with compiled blocks
  encode               the video autoencoder: windows encoded, one image, and back
  demo                 training of the demo's model in its two stages, on one batch
  finetune_compiled    `finetune`, each block compiled

It needs the extra `pretrained` (diffusers, peft), but no weights: they are drawn on the device, and say nothing about
quality. Arithmetic is that of `wamkit show`: three forward passes a sample, two where the video model is frozen, and a
recomputed one counts for nothing, nor do adapters. Medians, after warming up. A part that does not fit into the minutes
that are left is left out by name; one that runs out of memory, or fails, says so, and the others go on.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch._dynamo.utils import counters

from wamkit.families.base import Family, Stage
from wamkit.files import atomic_write
from wamkit.inference.checks import query_batch, row_seeds
from wamkit.inference.model import Model
from wamkit.nn import flow
from wamkit.nn.attention_mask import ACTION, FUTURE, Program
from wamkit.nn.autoencoders.wan import WanAutoencoder
from wamkit.nn.backbones.released import RELEASED
from wamkit.nn.backbones.wan import WanModel
from wamkit.nn.diffusers_weights import diffusers
from wamkit.nn.encoders import PromptEncoder
from wamkit.nn.normalizer import Normalizer
from wamkit.nn.options import BackboneConfig, LoraConfig
from wamkit.runs.config import RunConfig, family_class
from wamkit.runs.meta_model import example, meta_model
from wamkit.runs.recipes import RECIPES
from wamkit.runs.sizing import FREE, RANK, Sizes, sizes_of
from wamkit.serving.latency import query_parts
from wamkit.training.step import make_step
from wamkit.types import Batch, Observation, Query, Spec, WamkitError

PEAKS = {
    "A100": 312.0,
    "H20": 148.0,
    "H100": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H200": 989.0,
    "B200": 2250.0,
    "L40S": 362.0,
    "RTX 4090": 165.0,
    "RTX 5090": 209.0,
}
"""Dense bfloat16 TFLOP/s of cards, by what their names contain, as their makers state them."""
AIMS = {
    ("finetune", "mfu"): "at least 0.25; published 0.15 to 0.21",
    ("lora", "mfu"): "at least 0.25",
    ("query", "policy_ms"): "at most 100",
    ("query", "joint_ms"): "at most 150",
    ("query_compiled", "policy_ms"): "at most 40",
    ("query_graph", "policy_ms"): "at most 40",
    ("query_graph_compiled", "policy_ms"): "at most 40",
    ("finetune_compiled", "mfu"): "at least 0.25",
}
"""Aims on one H200 at full size, by part and figure. They were set before anything was measured."""
FULL = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
TINY = "a tiny one"
SIZES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    FULL: RELEASED[FULL],
    TINY: {
        "transformer": {
            **RELEASED[FULL]["transformer"],
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 32,
            "freq_dim": 32,
            "ffn_dim": 48,
            "num_layers": 2,
        },
        "vae": {
            **RELEASED[FULL]["vae"],
            "z_dim": 4,
            "base_dim": 4,
            "decoder_base_dim": 4,
            "num_res_blocks": 1,
            "dim_mult": [1, 1, 1, 1],
            "attn_scales": [],
            "temperal_downsample": [False, True, True],
            "latents_mean": [0.0] * 4,
            "latents_std": [1.0] * 4,
        },
        "text_encoder": {"d_model": 32},
    },
}
"""config.json of each part of the video models."""
STEPS = 10
"""Denoising steps of queries, as Fast-WAM's."""
LEAST = 3
"""Repetitions that a median is taken of, however little time is left."""


@dataclass(frozen=True)
class Args:
    """Machine, size and time of the measurement."""

    device: str = "cuda"
    """Torch device: cuda, cuda:1, cpu."""
    size: Literal["full", "tiny"] = "full"
    """The 5B model, or a tiny one of the same classes."""
    minutes: float = 10.0
    """Time for all parts together."""
    parts: tuple[str, ...] = ()
    """Names of parts; all if none is given."""
    out: Path = Path("runs/gpu.json")
    """File of results, written after each part."""
    peak: float | None = None
    """Dense bfloat16 TFLOP/s of the card, where it is not known by name."""
    rows: int = 32
    """Largest batch; what does not fit into the free memory is made smaller."""
    repeats: int = 10
    """Repetitions of what is timed."""


@dataclass
class Setup:
    """Device, size and time of all parts.

    peak: TFLOP/s of the device, None where shares of it are not stated.   deadline: by `time.monotonic`.
    backend: of torch.compile.
    """

    device: str
    size: Literal["full", "tiny"]
    peak: float | None
    deadline: float
    rows: int = 32
    repeats: int = 10
    backend: str = "inductor"
    _sizes: dict[str, Sizes] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """True for a device that works beside the host."""
        return torch.device(self.device).type == "cuda"

    @property
    def seconds_left(self) -> float:
        """Time until the deadline."""
        return self.deadline - time.monotonic()

    def synchronize(self) -> None:
        """Waits until the device has done what it was told."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def sizes(self, run: RunConfig) -> Sizes:
        """Parameters, arithmetic and memory of the model of `run`, counted on torch's meta device."""
        key = repr(run.model)
        if key not in self._sizes:
            with instead_of_released(RandomWan(run.model.backbone.path, "meta")):
                self._sizes[key] = sizes_of(meta_model(run))
        return self._sizes[key]

    def median_ms(self, work: Callable[[], Any], warm: int = 2) -> float:
        """Median milliseconds of `work`, the device's own included, after some repetitions that do not count."""
        times = list[float]()
        for i in range(-warm, self.repeats):
            if len(times) >= LEAST and self.seconds_left < 0:
                break
            self.synchronize()
            began = time.perf_counter()
            work()
            self.synchronize()
            if i >= 0:
                times.append(1000 * (time.perf_counter() - began))
        return statistics.median(times)


Part = Callable[[Setup], dict[str, Any]]


class RandomPrompts(PromptEncoder):
    """The text encoder of a video model with random features in its place, handed over as those that are kept.

    static: features that are given whatever the texts are, for a graph that reads them where they lie.
    """

    def __init__(self, length: int, size: int):
        super().__init__(Path(), length)
        self._size, self.static = size, None

    def __call__(self, texts: Sequence[str], device: torch.device) -> Tensor:
        return super().__call__(texts, device) if self.static is None else self.static

    def _features(self, text: str, device: torch.device) -> Tensor:
        return torch.randn(self.length, self._size, generator=torch.Generator().manual_seed(len(text)))


class RandomAutoencoder(WanAutoencoder):
    """The autoencoder of a video model with the weights that `model` has."""

    def __init__(self, model: Any, device: str):
        self.model = model.eval().requires_grad_(False)
        config = self.model.config
        self._mean, self._std = (torch.tensor(v, device=device) for v in (config.latents_mean, config.latents_std))
        self._alone = threading.Lock()


class RandomWan(WanModel):
    """A Wan model without files: its weights are drawn on `device`, nothing of them passes through the host."""

    def __init__(self, path: str, device: str):
        super().__init__(path, SIZES[path])
        self.device = device

    @cached_property
    def _autoencoder(self) -> RandomAutoencoder:
        torch.manual_seed(1)
        with torch.device(self.device):
            return RandomAutoencoder(self.autoencoder_shapes(), self.device)

    def prompts(self, length: int, template: str) -> RandomPrompts:
        return self._prompts.setdefault((length, template), RandomPrompts(length, self.text_dim))


@contextmanager
def instead_of_released(video: RandomWan) -> Iterator[None]:
    """A block in which families are built on `video`, whatever their configuration names."""
    places = ("wamkit.nn.backbones.video_model", "wamkit.nn.video_tokens")
    with ExitStack() as stack:
        for place in places:
            stack.enter_context(patch(f"{place}.video_model", lambda config: video))
        drawn = lambda kind, folder, what: kind.from_config(dict(video.config))  # noqa: E731
        stack.enter_context(patch(f"{places[0]}.load_weights", drawn))
        yield


def configuration(size: str, **backbone: Any) -> RunConfig:
    """`mot` on the video model, with Fast-WAM's steps; the tiny one on small images, with a narrow expert."""
    run = RECIPES.get("wan2.2-ti2v-5b-mot")()
    own = {"expert_mlp": 24, "text_length": 6} if size == "tiny" else {}
    model = dataclasses.replace(
        run.model,
        program=Program.DECOUPLED,
        policy_steps=STEPS,
        denoising_steps=STEPS,
        backbone=BackboneConfig("wan", FULL if size == "full" else TINY, **own, **backbone),
    )
    if size == "full":
        return dataclasses.replace(run, model=model)
    window = dataclasses.replace(run.window, chunk=8, frame_offsets=tuple(range(1, 9)), size=(32, 32))
    return dataclasses.replace(run, model=dataclasses.replace(model, action_width=16), window=window)


def build(run: RunConfig, device: str, seed: int = 0) -> Family:
    """The model of `run` with random weights, drawn on `device`."""
    spec = example(run)
    torch.manual_seed(seed)
    with ExitStack() as stack:
        if path := run.model.backbone.path:
            stack.enter_context(instead_of_released(RandomWan(path, device)))
        stack.enter_context(torch.device(device))
        sizes = {"proprio": spec.proprio_dim, "action": spec.action_dim}
        numbers = Normalizer({name: (torch.zeros(n), torch.ones(n)) for name, n in sizes.items()})
        return family_class(run.family)(run.model, spec, numbers)


@torch.no_grad()
def without_zeros(model: Family) -> Family:
    """`model` with random weights also where training begins with zeros, so that every layer matters to its answers."""
    for p in model.parameters():
        if not p.any():
            p.normal_(0, 0.02)
    return model


def kept_batch(model: Family, rows: int, seed: int = 0) -> Batch:
    """Random windows with random latents, as the trainer hands over those that it keeps."""
    batch, future, context = Batch.random(model.spec, rows, seed), model.codec, model.context
    g = torch.Generator().manual_seed(seed)
    sizes = {"latents": future.cells, "present": context.cells}
    features = {k: torch.randn(rows, n, future.channels, generator=g) for k, n in sizes.items()}
    return dataclasses.replace(batch, features=features)


def observation(spec: Spec, seed: int = 0) -> Observation:
    """An image of noise."""
    shape, rng = (spec.views, 3, spec.height, spec.width), np.random.default_rng(seed)
    return Observation(rng.integers(0, 256, shape, np.uint8), np.zeros(spec.proprio_dim, np.float32), "open the drawer")


def mfu(tflop: float, rate: float, peak: float | None) -> float | None:
    """Share of a device's peak that `rate` samples a second of `tflop` each are; None without a peak."""
    return None if peak is None else tflop * rate / peak


def halved_until_it_fits(rows: int, work: Callable[[int], Any]) -> tuple[int, Any]:
    """The most rows, of half as many again and again, for which there is memory, and the result of `work` for them.

    Raises torch.OutOfMemoryError where one row does not fit either.
    """
    while True:
        try:
            return rows, work(rows)
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
        rows //= 2
        release()


def release() -> None:
    """Gives memory back that nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def compiled(model: Family, setup: Setup) -> None:
    """Compiles each block by itself, in place; all blocks share their graphs."""
    counters.clear()
    for block in model.blocks():
        block.forward = torch.compile(block.forward, backend=setup.backend, dynamic=False)


def dynamo_figures() -> dict[str, int]:
    """Numbers of graphs that were compiled, and of places where they were broken."""
    return {"graphs": counters["stats"]["unique_graphs"], "graph_breaks": sum(counters["graph_break"].values())}


def part_parity(setup: Setup) -> dict[str, Any]:
    """Largest differences between the device and the CPU."""
    run, found = configuration("tiny"), list[tuple[Any, ...]]()
    batch = None
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # which convolutions would use
        for device in ("cpu", setup.device):
            model = without_zeros(build(run, "cpu")).eval().to(device)
            stage = model.stages()[-1]
            batch = batch or kept_batch(model, 4)
            losses = model(batch.to(device), torch.Generator().manual_seed(1), stage.name)
            sum(v.sum() for v in losses.values()).backward()
            gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).cpu()
            asked = partial(Model(model).sample, [observation(model.spec, seed) for seed in range(2)], seed=0)
            policy, joint = asked(query="policy"), asked(query="joint")
            own = torch.cat([losses[k].detach().cpu() for k in sorted(losses)])
            found.append((own, gradient, policy.actions, joint.actions, joint.future.astype(np.int16)))
    away = [float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(*found, strict=True)]
    names = ("losses", "gradients", "policy_actions", "joint_actions", "joint_frames")
    return (
        {f"{name}_away": value for name, value in zip(names, away, strict=True)}
        | {
            "largest_gradient": float(found[0][1].abs().max()),
            "largest_action": float(np.abs(found[0][2]).max()),
        }
        | ({} if setup.on_gpu else {"note": "two runs of the CPU"})
    )


def _trained(setup: Setup, *, adapted: bool, compiles: bool = False) -> dict[str, Any]:
    """Training steps of the product's own strategy, with features that are kept and batches that come from the host."""
    lora = {"lora": LoraConfig(RANK if setup.size == "full" else 4)} if adapted else {}
    run = configuration(setup.size, **lora)
    sizes = setup.sizes(configuration(setup.size))  # adapters are counted with it, and their arithmetic is left out
    rows = min(setup.rows, _rows(setup, sizes, adapted))
    model = build(run, setup.device)
    train = dataclasses.replace(
        run.train, device=_one_pass(setup.device), batch_size=rows, checkpoint_activations=not adapted
    )
    if compiles:  # before blocks are checkpointed: a block that is run again is a compiled one
        compiled(model, setup)
    strategy = make_step(model, train)
    strategy.begin(model.stages()[-1])
    count = iter(range(10**6))

    def measure(rows: int) -> tuple[float, dict[str, Tensor]]:
        batch, last = kept_batch(model, rows), {}
        _forget_peak(setup)  # of a larger batch that did not fit

        def step() -> None:
            last.update(strategy(batch, next(count), train.lr).losses_B)

        try:
            return setup.median_ms(step), last
        finally:
            strategy.optimizer.zero_grad()

    rows, (ms, losses) = halved_until_it_fits(rows, measure)
    rate = 1000 * rows / ms
    tflop = (2 if adapted else 3) * sizes.forward
    return {
        "rows": rows,
        "step_ms": ms,
        "samples_per_s": rate,
        "tokens_per_s": rate * sizes.tokens,
        "tflop_a_sample": tflop,
        "model_tflop_per_s": rate * tflop,
        "mfu": mfu(tflop, rate, setup.peak),
        "peak_memory_gb": _peak_memory(setup),
        "finite": all(bool(v.isfinite().all()) for v in losses.values()),
        "learned_m": sum(p.numel() for p in strategy.learning) / 1e6,
    } | (dynamo_figures() if compiles else {})


def _one_pass(device: str) -> str:
    """The device by a name for which steps are one pass of the whole batch, as on a GPU: "cpu" would mean threads."""
    return "cpu:0" if device == "cpu" else device


def _rows(setup: Setup, sizes: Sizes, adapted: bool) -> int:
    """Rows that the free memory should hold; as many as there may be on a CPU, whose models are tiny.

    adapted: with adapters, and every activation kept; else blocks are checkpointed.
    """
    if not setup.on_gpu:
        return setup.rows
    free = FREE * torch.cuda.mem_get_info(setup.device)[0] - sizes.fixed(adapted)
    if adapted:  # weights are kept in bfloat16 too, as they were cast for products
        weights = sum(n for name, n in sizes.parameters.items() if "autoencoder" not in name)
        return max(1, int((free - 2 * weights) // sizes.kept))
    c = SIZES[FULL if setup.size == "full" else TINY]["transformer"]
    # Tokens, keys and values of all blocks in bfloat16, and all of the one block that is run again.
    tokens = 2 * 3 * sizes.tokens * c["num_attention_heads"] * c["attention_head_dim"]
    kept = tokens * c["num_layers"] + sizes.kept // c["num_layers"]
    return max(1, int(free // kept))


def _forget_peak(setup: Setup) -> None:
    if setup.on_gpu:
        torch.cuda.reset_peak_memory_stats(setup.device)


def _peak_memory(setup: Setup) -> float | None:
    """Most memory that tensors had, in GB; None on a CPU."""
    return torch.cuda.max_memory_allocated(setup.device) / 1e9 if setup.on_gpu else None


def part_finetune(setup: Setup) -> dict[str, Any]:
    """All weights learn, and each block's activations are computed again."""
    return _trained(setup, adapted=False)


def part_lora(setup: Setup) -> dict[str, Any]:
    """Adapters and the expert for actions learn; the video model's own matrices have no gradient."""
    return _trained(setup, adapted=True)


def part_finetune_compiled(setup: Setup) -> dict[str, Any]:
    """`part_finetune` with compiled blocks."""
    return _trained(setup, adapted=False, compiles=True)


def in_bfloat16(model: Family, setup: Setup) -> AbstractContextManager[Any]:
    """Casts matrices of the backbones, and norms of queries and keys, in place; queries belong inside of the result.

    A norm whose weights and tokens differ in precision is not computed by one kernel.
    """
    for backbone in model.backbones:
        for module in backbone.modules():
            if isinstance(module, (nn.Linear, nn.RMSNorm)):
                module.to(torch.bfloat16)
    return torch.autocast(torch.device(setup.device).type, torch.bfloat16, cache_enabled=False)


def _served(setup: Setup) -> Family:
    """The model of queries."""
    return without_zeros(build(configuration(setup.size), setup.device)).eval().requires_grad_(False)


def _asked(setup: Setup, model: Family) -> dict[str, Any]:
    """Milliseconds of a policy query and of a joint one, and of parts of them."""
    whole, obs = Model(model), observation(model.spec)
    found: dict[str, Any] = {}
    for query in (Query.POLICY, Query.JOINT):
        parts = query_parts(whole, [obs], query, repeats=max(LEAST, setup.repeats))["parts"]
        shown = {"total": "", "encode": "_encode", "prefill": "_prefill", "denoise": "_denoise", "decode": "_decode"}
        found |= {f"{query}{name}_ms": parts[part]["p50"] for part, name in shown.items()}
    return found


def part_query(setup: Setup) -> dict[str, Any]:
    """Queries in float32, and with matrices in bfloat16."""
    model = _served(setup)
    ask = lambda: Model(model).sample(observation(model.spec), "policy", seed=0).actions  # noqa: E731
    exact, served = ask(), _asked(setup, model)
    with in_bfloat16(model, setup):
        away = float(np.abs(ask() - exact).max())
        found = _asked(setup, model)
    return found | {
        "policy_float32_ms": served["policy_ms"],
        "joint_float32_ms": served["joint_ms"],
        "bfloat16_away": away,
        "policy_tflop": setup.sizes(configuration(setup.size)).query,
        "steps": STEPS,
        "peak_memory_gb": _peak_memory(setup),
    }


def part_query_compiled(setup: Setup) -> dict[str, Any]:
    """Queries with compiled blocks."""
    model = _served(setup)
    with in_bfloat16(model, setup):
        ask = lambda: Model(model).sample(observation(model.spec), "policy", seed=0).actions  # noqa: E731
        plain = ask()
        compiled(model, setup)
        began = time.perf_counter()
        away = float(np.abs(ask() - plain).max())
        first = time.perf_counter() - began
        return _asked(setup, model) | {"first_s": first, "away": away, **dynamo_figures()}


@dataclass
class StaticPolicy:
    """A policy query of `mot` whose inputs lie at fixed places, with neither a copy from the host nor a look at values.

    Its program lets actions see the whole context and themselves, so that no mask is needed.
    """

    model: Any
    batch: Batch
    noise: Tensor
    levels: list[Tensor]
    steps: list[float]

    @classmethod
    def of(cls, model: Any, obs: Observation, seed: int = 0) -> StaticPolicy:
        """The query that `Model.sample` answers with `seed`."""
        device = next(model.parameters()).device
        batch = query_batch([obs], Query.POLICY, model.spec, None, None).to(device)
        generators = [torch.Generator().manual_seed(s) for s in row_seeds(seed, 1)]
        path = flow.denoise(model.default_steps(Query.POLICY), model.config.targets.action_shift(Query.POLICY))
        levels = list(torch.tensor(path, device=device).split(1))
        steps = [b - a for a, b in zip(path[:-1], path[1:], strict=True)]
        config = model.context.config
        prompts = model.context.model.prompts(config.text_length, config.prompt)
        prompts.static = prompts(batch.text, device)
        return cls(model, batch, model.action.noise(generators, device), levels, steps)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """Actions, in the robot's units, on the device."""
        model, batch, x = self.model, self.batch, self.noise
        context = model.context(batch, model.normalizer)
        cache = model.experts({FUTURE: context}, {FUTURE: None})[1]
        for level, step in zip(self.levels, self.steps, strict=False):
            tokens = model.action.tokens(x, level, batch, model.normalizer)
            y, _ = model.experts({ACTION: [tokens]}, {ACTION: None}, cache)
            x = x + step * model.action.stream.velocity(y[ACTION][0])
        return model.action.unpack(x, model.normalizer)


def _graphed(setup: Setup, *, compiles: bool) -> dict[str, Any]:
    model = _served(setup)
    obs = observation(model.spec)
    with in_bfloat16(model, setup):
        asked = torch.from_numpy(Model(model).sample(obs, "policy", seed=0).actions)
        if compiles:
            compiled(model, setup)
        query = StaticPolicy.of(model, obs)
        away = float((query()[0].float().cpu() - asked).abs().max())
        found: dict[str, Any] = {"away": away, "ungraphed_ms": setup.median_ms(query)}
        if compiles:
            found |= dynamo_figures()
        if not setup.on_gpu:
            return found | {"note": "a CPU has no CUDA graphs"}
        # On a stream of its own first, where libraries take the memory that they keep.
        stream = torch.cuda.Stream(setup.device)
        stream.wait_stream(torch.cuda.current_stream(setup.device))
        with torch.cuda.stream(stream):
            for _ in range(LEAST):
                query()
        torch.cuda.current_stream(setup.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = query()
        images, state = query.batch.obs.cpu().pin_memory(), query.batch.proprio.cpu().pin_memory()

        def ask() -> Tensor:
            query.batch.obs.copy_(images, non_blocking=True)
            query.batch.proprio.copy_(state, non_blocking=True)
            graph.replay()
            return out.float().cpu()

        found["policy_ms"] = setup.median_ms(ask)
        return found | {"away": float((ask()[0] - asked).abs().max()), "peak_memory_gb": _peak_memory(setup)}


def part_query_graph(setup: Setup) -> dict[str, Any]:
    """The policy query as one CUDA graph."""
    return _graphed(setup, compiles=False)


def part_query_graph_compiled(setup: Setup) -> dict[str, Any]:
    """The same, with compiled blocks in it."""
    return _graphed(setup, compiles=True)


def part_encode(setup: Setup) -> dict[str, Any]:
    """The autoencoder in float32, as it is used, and in bfloat16 for comparison."""
    run = configuration(setup.size)
    spec, sizes = example(run), setup.sizes(run)
    coder = RandomWan(run.model.backbone.path, setup.device).autoencoder
    network: Any = coder.model
    shape = (3, 1 + len(spec.frame_offsets), spec.height, spec.width * spec.views)
    clips = lambda rows: torch.rand(rows, *shape, device=setup.device) * 2 - 1  # noqa: E731
    one = clips(1)
    z = coder.encode(one)
    found = {
        "image_ms": setup.median_ms(lambda: coder.encode(one[:, :, :1])),
        "window_ms": setup.median_ms(lambda: coder.encode(one)),
        "decode_ms": setup.median_ms(lambda: coder.decode(z)),
    }

    def rate(rows: int, encode: Callable[[Tensor], Any], dtype: torch.dtype) -> float:
        x = clips(rows).to(dtype)
        return 1000 * rows / setup.median_ms(lambda: encode(x))

    @torch.no_grad()
    def plain(x: Tensor) -> Tensor:
        return network.encode(x).latent_dist.mode()

    most = 8 if setup.size == "full" else 2
    for name, encode, dtype in (("", coder.encode, torch.float32), ("_bfloat16", plain, torch.bfloat16)):
        nn.Module.to(network, dtype)  # that of diffusers warns
        rows, windows = halved_until_it_fits(most, partial(rate, encode=encode, dtype=dtype))
        found |= {
            f"rows{name}": rows,
            f"windows_per_s{name}": windows,
            f"tflop_per_s{name}": windows * sizes.encode,
        }
    return found | {"peak_memory_gb": _peak_memory(setup)}


def part_demo(setup: Setup) -> dict[str, Any]:
    """The demo's model on the device: its steps, its losses on one batch, and the time that all of its steps take."""
    run = RECIPES.get("metaworld-unified")()
    if setup.size == "tiny":
        run = dataclasses.replace(run, model=dataclasses.replace(run.model, width=32, depth=1, heads=2))
    model = build(run, setup.device)
    train = dataclasses.replace(run.train, device=_one_pass(setup.device), precision="auto")
    strategy = make_step(model, train)
    batch = Batch.random(model.spec, train.batch_size)
    found: dict[str, Any] = {"parameters_m": sum(p.numel() for p in model.parameters()) / 1e6}
    seconds = 0.0
    for stage in model.stages():
        strategy.begin(stage)
        features = model.features(batch.to(setup.device), stage.name)
        own = dataclasses.replace(batch, features=features).to(setup.device)
        lost = list[float]()

        def step(stage: Stage = stage, own: Batch = own, lost: list[float] = lost) -> None:
            result = strategy(own, 0, stage.lr * train.lr / 10)  # step 0 again and again: one noise
            lost.append(sum(v.mean().item() for v in result.losses_B.values()))

        ms = setup.median_ms(step)
        seconds += stage.share * train.steps * ms / 1000
        found |= {
            f"{stage.name}_step_ms": ms,
            f"{stage.name}_loss_first": lost[0],
            f"{stage.name}_loss_last": lost[-1],
        }
    return found | {"steps": train.steps, "all_steps_s": seconds, "peak_memory_gb": _peak_memory(setup)}


PARTS: Mapping[str, tuple[Part, int]] = {
    "parity": (part_parity, 30),
    "finetune": (part_finetune, 90),
    "lora": (part_lora, 70),
    "query": (part_query, 60),
    "query_compiled": (part_query_compiled, 110),
    "query_graph": (part_query_graph, 40),
    "encode": (part_encode, 40),
    "demo": (part_demo, 20),
    "query_graph_compiled": (part_query_graph_compiled, 70),
    "finetune_compiled": (part_finetune_compiled, 110),
}
"""Parts in their order, with the seconds at full size that each should be left; a tiny one takes a few."""


def peak_of(name: str) -> float:
    """Peak of the card called `name`. Raises WamkitError, naming the option, for one that is not known."""
    fits = [card for card in PEAKS if card in name]
    if not fits:
        known = ", ".join(PEAKS)
        raise WamkitError(f"the peak of {name!r} is not known here (known: {known}): give its TFLOP/s with --peak")
    return PEAKS[max(fits, key=len)]


def machine(device: str) -> dict[str, Any]:
    """The device and the programs, as they are written down. Raises WamkitError for a GPU that is not there."""
    found: dict[str, Any] = {"device": device, "torch": torch.__version__}
    if torch.device(device).type != "cuda":
        return found
    if not torch.cuda.is_available():
        raise WamkitError("no GPU is found: choose --device cpu --size tiny to try the script without one")
    if torch.device(device).index is not None:
        torch.cuda.set_device(device)
    memory = torch.cuda.get_device_properties(device).total_memory
    return found | {"name": torch.cuda.get_device_name(device), "memory_gb": round(memory / 1e9, 1)}


def measure(setup: Setup, names: Sequence[str], out: Path, about: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Results of parts by name, written to `out` after each one."""
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        part, seconds = PARTS[name]
        seconds = seconds if setup.size == "full" else 1
        if setup.seconds_left < seconds:
            results[name] = {"left_out": f"{max(0, setup.seconds_left):.0f} s are left, and it may take {seconds}"}
        else:
            print(f"{name} ...", flush=True)
            began = time.monotonic()
            _forget_peak(setup)
            try:
                results[name] = part(setup)
            except torch.OutOfMemoryError as error:
                results[name] = {"out_of_memory": str(error).splitlines()[0]}
            except Exception as error:
                traceback.print_exc()
                results[name] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
            results[name]["seconds"] = time.monotonic() - began
            digits = lambda v: float(f"{v:.4g}") if isinstance(v, float) else v  # noqa: E731
            results[name] = {key: digits(value) for key, value in results[name].items()}
        atomic_write(out, json.dumps({**about, "parts": results}, indent=1).encode())
        torch._dynamo.reset()
        release()
    return results


def table(results: Mapping[str, Mapping[str, Any]], aims: Mapping[tuple[str, str], str]) -> str:
    """Results as one table, with what was aimed at beside it."""
    rows = [("part", "figure", "measured", "aim")]
    for part, figures in results.items():
        rows += [(part, name, str(value), aims.get((part, name), "")) for name, value in figures.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(
        "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]).rstrip() for row in rows
    )


def main(args: Args) -> int:
    """Measures; the exit status is 1 where a part failed."""
    unknown = [name for name in args.parts if name not in PARTS]
    if unknown:
        raise WamkitError(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    diffusers()  # or one line that says how to get it
    found = machine(args.device)
    peak = args.peak if args.peak or "name" not in found else peak_of(found["name"])
    deadline = time.monotonic() + 60 * args.minutes
    setup = Setup(args.device, args.size, peak, deadline, args.rows, args.repeats)
    aims = AIMS if args.size == "full" else {}
    about = {"machine": found, "size": args.size, "peak_tflop_per_s": peak, "random_weights": True}
    about["aims_on_one_h200"] = {f"{part}.{figure}": aim for (part, figure), aim in aims.items()}
    results = measure(setup, args.parts or tuple(PARTS), args.out, about)
    print(table(results, aims))
    print(f"written to {args.out}; random weights, so nothing here is about quality")
    return int(any("failed" in figures for figures in results.values()))


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Args)))
    except WamkitError as error:
        sys.exit(f"error: {error}")
