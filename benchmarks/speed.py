"""Speed of queries, training steps and environments, each beside its reference in the same process, on an idle machine.

Usage: python benchmarks/speed.py RUN --data DATA
  query      one policy query (a whole chunk), batch 1, on one thread: median and 95th percentile
  step       the trainer's step against a bare PyTorch loop over the same module, the same batches and the same threads
  arithmetic FLOPs of a training step on one thread, over the rate of a one-thread matrix product timed between the
             steps: in float32 and, where the processor multiplies it natively, in bfloat16, each against its own kind
  waiting    share of the trainer's time spent waiting for data
  frames     rendering + stepping MetaWorld on one core
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from wamkit.data.loading.dataset import open_frames
from wamkit.data.loading.windows import Prefetcher
from wamkit.envs import make_env
from wamkit.inference.model import load
from wamkit.runs.run import Run
from wamkit.training.precision import autocast, native_bf16
from wamkit.training.run_folder import RunFolder
from wamkit.training.trainer import Trainer
from wamkit.types import Observation, Query


@dataclass(frozen=True)
class Args:
    """Run, data and size of the measurement."""

    run: Annotated[Path, tyro.conf.Positional]
    """A trained run."""
    data: Path = Path("data/demos")
    """The data set it was trained on."""
    steps: int = 20
    """Training steps a round."""
    rounds: int = 5
    """Rounds, alternating between the trainer and its reference; medians are reported."""


# torch counts attention's products on a GPU only.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
        sdpa_backward_flop_count(g, q, k, v)
    ),
}


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def query(args: Args) -> None:
    torch.set_num_threads(1)
    model = load(args.run)
    frames, _ = open_frames(args.data)
    times = []
    for i in range(220):
        obs = Observation(frames.images[i], frames.proprio[i], frames.text[0])
        times.append(1000 * seconds(lambda obs=obs: model.sample(obs, "policy", seed=0)))
    times, steps = sorted(times[20:]), model.default_steps(Query.POLICY)
    high = times[int(0.95 * len(times))]
    print(f"query       {statistics.median(times):6.1f} ms median, {high:.1f} ms at 95 %; {steps} denoising steps")


def fresh(args: Args, folder: str, threads: int, precision: str = "auto") -> Trainer:
    """A trainer of the run's weights in its last stage, features computed ahead."""
    opened = Run.open(args.run)
    run, model = opened.config, opened.family()
    frames, _ = open_frames(args.data)
    config = dataclasses.replace(run.train, threads=threads, precision=precision)
    trainer, stage = Trainer(model, frames, config, RunFolder(Path(folder), {})), model.stages()[-1]
    trainer.strategy.begin(stage)
    trainer.precompute.prepare(stage, run.train.steps)
    return trainer


def step(args: Args, folder: str) -> None:
    """The trainer's own step against the least that PyTorch needs for the same update."""
    ours = fresh(args, folder, 2)
    stage, learning, optimizer = ours.model.stages()[-1], ours.strategy.learning, ours.strategy.optimizer
    torch.set_num_threads(1)  # as the trainer's loop does: the pool's threads have the cores
    batches = [ours.windows.batch(k) for k in range(args.steps)]
    pool = ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,))

    def bare() -> None:
        for batch in batches:
            parts = [batch.rows(rows) for rows in torch.arange(len(batch)).tensor_split(2)]

            def gradients(i: int, parts: list = parts) -> tuple:
                with autocast(ours.config):
                    losses = ours.model(parts[i], torch.Generator().manual_seed(i), stage.name)
                return torch.autograd.grad(sum(v.sum() for v in losses.values()), learning)

            for p, a, b in zip(learning, *pool.map(gradients, range(2)), strict=True):
                p.grad = a + b
            optimizer.step(1e-6, pool.map)
            optimizer.zero_grad()

    waits: list[float] = []

    def trainer() -> None:
        prefetch = Prefetcher(ours.windows.batch, 0, args.steps)
        spent = seconds(lambda: [ours.strategy(next(prefetch), k, 1e-6) for k in range(args.steps)])
        waits.append(prefetch.waited_s / spent)
        prefetch.close()

    bare(), trainer()
    waits.clear()
    pairs = [(seconds(bare), seconds(trainer)) for _ in range(args.rounds)]
    ratio = statistics.median(b / t for b, t in pairs)
    ms = 1000 * statistics.median(t for _, t in pairs) / args.steps
    print(f"step        {ms:6.1f} ms; throughput {ratio:.1%} of a bare loop's (median of {args.rounds})")
    print(f"waiting     {statistics.median(waits):6.2%} of the time for data")


def arithmetic(args: Args, folder: str, precision: str) -> None:
    torch.set_num_threads(1)
    ours = fresh(args, folder, 1, precision)
    batch = ours.windows.batch(0)
    gradients = lambda: ours.strategy.gradients(batch, step=0, part=0, rows=len(batch))  # noqa: E731
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        gradients()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(1024, 1024, dtype=dtype), torch.randn(1024, 1024, dtype=dtype)
    shares, flop = [], counter.get_total_flops()
    # In the trainer's own thread, as it does: the main thread's heap gives memory back to the system at every step.
    there = lambda work: next(iter(ours.strategy.map(seconds, [work])))  # noqa: E731
    for _ in range(args.rounds + 1):
        spent = there(lambda: [gradients() for _ in range(4)]) / 4
        peak = 2 * 1024**3 / min(there(lambda: a @ b) for _ in range(20))
        shares.append(flop / spent / peak)
    print(
        f"arithmetic  {statistics.median(shares[1:]):6.1%} of a one-thread {precision} matrix product's "
        f"{peak / 1e9:.0f} GFLOP/s; {flop / 1e9:.1f} GFLOP a step in {1000 * spent:.0f} ms"
    )


def frames() -> None:
    env = make_env("metaworld", task="drawer-open-v3")
    env.reset(seed=0)
    action = np.zeros(4, np.float32)
    rates = [60 / seconds(lambda: [env.step(action) for _ in range(60)]) for _ in range(4)]
    print(f"frames      {statistics.median(rates[1:]):6.1f} a second, rendered and stepped at 64x64 on one core")


def main(args: Args) -> None:
    with tempfile.TemporaryDirectory() as folder:
        query(args)
        step(args, folder)
        for precision in ("fp32", "bf16") if native_bf16("cpu") else ("fp32",):
            arithmetic(args, folder, precision)
    frames()


if __name__ == "__main__":
    main(tyro.cli(Args))
