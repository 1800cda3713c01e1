"""Two processes that train together against one with two parts of each batch: gradients, losses, kills.

    python benchmarks/distributed.py --data DATA [--steps 200] [--kills 20]

gradients: in every step both compute the gradients of the same weights; how many are equal to the bit.
losses: two runs of so many steps, each on its own; how far their losses are apart.
kills: kill -9 of one of the processes at random moments, until a run of as many steps ends; whether its weights are
those of a run that nobody disturbed, and how long the other process lived on.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import tyro

from wamkit.runs.checkpoint import load_checkpoint
from wamkit.runs.config import RunConfig
from wamkit.runs.recipes import RECIPES
from wamkit.training.launch import make_trainer
from wamkit.training.sharded import whole
from wamkit.training.step import CpuThreads
from wamkit.training.trainer import Trainer
from wamkit.training.world import World, joined

SIZE = 2


@dataclass(frozen=True)
class Args:
    """What is compared, on which data."""

    data: Path
    """Data set."""
    recipe: str = "metaworld-unified"
    """Recipe of the runs."""
    steps: int = 200
    """Steps of the comparisons of gradients and of losses."""
    kills: int = 20
    """Kills, of runs of `kill_steps` steps that save every tenth."""
    kill_steps: int = 60
    """Steps of the runs that are disturbed."""
    seed: int = 0
    """Seed of the moments of the kills."""


def run_of(args: Args, steps: int, **train: object) -> RunConfig:
    config = RECIPES.get(args.recipe)()
    options = {"steps": steps, "threads": SIZE, "log_every": 1, "save_every": 10**6, "precision": "fp32"} | train
    return replace(config, train=replace(config.train, **options))


def trainer(args: Args, config: RunConfig, out: Path, world: World) -> Trainer:
    return make_trainer(config, args.data, out, trackers=(), world=world)


def gradients(world: World, args: Args, out: Path) -> None:
    """Both in each process, on the same weights; the first writes what it found."""
    config = run_of(args, args.steps)
    together, one = trainer(args, config, out / "a", world), trainer(args, config, out / "b", World())
    one.model.to(memory_format=torch.contiguous_format)  # as divided weights are: another layout, another rounding
    alone = CpuThreads(one.model, config.train)
    equal, count, apart, stages = 0, 0, 0.0, together.model.stages()
    with torch.no_grad():
        own = dict(alone.model.named_parameters())
    for i, stage in enumerate(stages):
        together.strategy.begin(stage)
        alone.begin(stage)
        rows = config.train.batch_size
        for step in range(i * args.steps // len(stages), (i + 1) * args.steps // len(stages)):
            batch = one.windows.batch(step)
            parts = [batch.rows(r) for r in torch.arange(rows).tensor_split(SIZE)]
            each = [alone.gradients(p, step, k, rows)[1] for k, p in enumerate(parts)]
            sums = [sum(g[1:], g[0]) for g in zip(*each, strict=True)]
            mine = together.windows.batch(step, world.rows(rows))
            losses, total = together.strategy.losses(mine, step, world.rank, rows)
            total.backward()
            found = [
                torch.zeros_like(g) if p.grad is None else whole(p.grad)
                for g, p in zip(sums, together.strategy.learning, strict=True)
            ]
            together.strategy.optimizer.zero_grad()
            equal += sum(torch.equal(a, b) for a, b in zip(sums, found, strict=True))
            count += len(sums)
            apart = max([apart, *((a - b).abs().max().item() for a, b in zip(sums, found, strict=True))])
            together.strategy(mine, step, 1e-3)
            with torch.no_grad():
                for name, p in together.model.named_parameters():
                    own[name].copy_(whole(p))
    if world.first:
        (out / "gradients.json").write_text(json.dumps({"equal": equal, "of": count, "largest difference": apart}))


def train(world: World, args: Args, out: Path) -> None:
    trainer(args, run_of(args, args.steps), out / "run", world).run()


def disturbed(world: World, args: Args, out: Path) -> None:
    trainer(args, run_of(args, args.kill_steps, save_every=10), out / "run", world).run()


def work(job: Callable[[World, Args, Path], None], args: Args, out: Path, rank: int, size: int, port: int) -> None:
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {k: str(v) for k, v in told.items()}
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(quiet, stream)
    torch.set_num_threads(1)
    with joined("cpu") as world:
        job(world, args, out)


def start(job: Callable[[World, Args, Path], None], args: Args, out: Path, size: int = SIZE) -> list[BaseProcess]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work, args=(job, args, out, rank, size, port)) for rank in range(size)]
    for process in processes:
        process.start()
    return processes


def ended(processes: list[BaseProcess]) -> list[int | None]:
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def losses_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def apart(args: Args, out: Path) -> dict[str, float]:
    """Two runs, of two processes and of one; the largest differences of their losses, relative."""
    for size in (1, SIZE):
        assert set(ended(start(train, args, out / str(size), size))) == {0}
    rows = list(zip(*(losses_of(out / str(size) / "run") for size in (1, SIZE)), strict=True))
    names = [k for k in rows[-1][0] if k in ("codec", "policy", "action", "future")]
    found = {k: max(abs(a[k] / b[k] - 1) for a, b in rows if k in a and k in b) for k in names}
    return {f"{k}, relative": v for k, v in found.items()} | {"steps": len(rows)}


def killed(args: Args, out: Path) -> dict[str, float]:
    """Runs that are killed, until there were `kills`."""
    (out / "whole").mkdir(parents=True)
    assert set(ended(start(disturbed, args, out / "whole"))) == {0}
    whole_run, rng = load_checkpoint(out / "whole" / "run", training=True), random.Random(args.seed)
    kills, runs, same, lived = 0, 0, 0, list[float]()
    while kills < args.kills:
        folder = out / f"killed{runs}"
        folder.mkdir()
        while True:
            processes = start(disturbed, args, folder)
            for _ in range(600):
                if (
                    kills >= args.kills
                    or not all(p.is_alive() for p in processes)
                    or (folder / "run/checkpoints").exists()
                ):
                    break
                time.sleep(0.02)
            time.sleep(rng.random() * 3)
            victim, other = rng.sample(processes, 2)
            if hit := kills < args.kills and victim.is_alive():
                victim.kill()
                began = time.monotonic()
                other.join()
                lived.append(time.monotonic() - began)
                kills += 1
            if set(codes := ended(processes)) == {0}:
                break
            assert hit, f"processes that nobody killed ended with {codes}"
        runs += 1
        found = load_checkpoint(folder / "run", training=True)
        same += all(torch.equal(x, found.model_state[n]) for n, x in whole_run.model_state.items())
    return {
        "kills": kills,
        "runs": runs,
        "runs whose weights are equal to the bit": same,
        "median seconds that the other process lived on": statistics.median(lived),
        "most": max(lived),
    }


def main(args: Args) -> None:
    out = Path(tempfile.mkdtemp(prefix="distributed-"))
    try:
        for size in (1, SIZE):
            (out / str(size)).mkdir()
        assert set(ended(start(gradients, args, out))) == {0}
        print("gradients", (out / "gradients.json").read_text(), flush=True)
        print("losses", json.dumps(apart(args, out)), flush=True)
        print("kills", json.dumps(killed(args, out)), flush=True)
    finally:
        shutil.rmtree(out, ignore_errors=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
