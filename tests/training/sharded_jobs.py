"""Work of one of several processes that train together, for `test_sharded`."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from small_runs import SMALL, frames, small_model
from torch.distributed.tensor import DTensor

from conftest import random_batch
from wamkit.data.loading.mixture import divided
from wamkit.families.base import FAMILIES, Family
from wamkit.families.unified import UnifiedConfig
from wamkit.nn.backbones.video_dit import Parts
from wamkit.nn.backbones.video_model import weights_later
from wamkit.nn.normalizer import Normalizer
from wamkit.nn.options import BackboneConfig, LoraConfig
from wamkit.runs.config import RunConfig, TrainConfig, WindowConfig
from wamkit.training.launch import make_trainer
from wamkit.training.run_folder import RunFolder
from wamkit.training.sharded import Sharded, whole
from wamkit.training.step import CpuThreads
from wamkit.training.trainer import Trainer
from wamkit.training.world import World, joined
from wamkit.types import Spec

LONGER = dataclasses.replace(SMALL, steps=12, save_every=100)
VIEWS = Spec(
    ("left", "right"), 32, 32, 5, 4, chunk=8, frame_offsets=(4, 8), fps=20.0, past_offsets=(-4,), point_grid=16
)


def trainer(out: Path, world: World, config: TrainConfig = LONGER, **facts: Any) -> Trainer:
    folder = RunFolder(out, {"train": dataclasses.asdict(config), "processes": world.size, **facts})
    return Trainer(small_model("unified", config.seed), frames(), config, folder, trackers=(), world=world)


def train(world: World, out: Path) -> None:
    """All steps, or up to a signal that the last process alone gets, at the step that a file names."""
    at = out / "stop"
    stop = int(at.read_text()) if at.exists() else 0
    for progress in trainer(out / "run", world).steps():
        if progress.step == stop and world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def slowly(world: World, out: Path) -> None:
    """Thirty steps, saved every five; the process number of each rank in a file."""
    config = dataclasses.replace(LONGER, steps=30, save_every=5)
    (out / f"pid{world.rank}").write_text(str(os.getpid()))
    trainer(out / "run", world, config).run()


def differ(world: World, out: Path) -> None:
    """Two processes with two seeds of their data."""
    trainer(out / "run", world, provenance=f"data {world.rank}").run()


def replicated(world: World, out: Path) -> None:
    """All steps, with a copy of the weights in each process, and activations that are computed again."""
    config = dataclasses.replace(LONGER, replicas=world.size, checkpoint_activations=True)
    trainer(out / "run", world, config).run()


def mixed(world: World, out: Path) -> None:
    """A mixture: whose rows a process has differs from step to step."""
    config, data = dataclasses.replace(LONGER, steps=4, shift=2), divided(frames().labelled(2, 1), 0.5, 10.0)
    folder = RunFolder(out / f"of{world.size}", {"train": dataclasses.asdict(config)})
    Trainer(small_model("unified", config.seed), data, config, folder, trackers=(), world=world).run()


def few(world: World, out: Path) -> None:
    """Fewer rows than processes."""
    trainer(out / "run", world, dataclasses.replace(LONGER, batch_size=1))


def load(world: World, out: Path) -> None:
    """Loads the newest checkpoint of the run, and writes the tensors that this world has of it."""
    other = trainer(out / "run", world)
    other._resume()
    state = other.strategy.state()
    found = {f"model.{k}": v for k, v in state["model_state"].items()}
    found |= {f"ema.{k}": v for k, v in state["ema_state"].items()}
    for part, content in state["optimizer_state"].items():
        for number, entries in content["state"].items():
            found |= {f"{part}.{number}.{k}": v for k, v in entries.items()}
    found = {k: whole(v).clone().contiguous() for k, v in found.items()}
    if world.first:
        save_file(found, out / f"of{world.size}.safetensors")


def family_of(name: str) -> Family:
    cls, sizes = FAMILIES.get(name), {"proprio": VIEWS.proprio_dim, "action": VIEWS.action_dim, "point_flow": 3}
    spec = VIEWS if cls.needs_point_cloud else dataclasses.replace(VIEWS, point_grid=0)
    normalizer = Normalizer({k: (torch.zeros(n), torch.ones(n)) for k, n in sizes.items()})
    torch.manual_seed(0)
    model = cls(cls.Config(width=32, depth=1, heads=2), spec, normalizer)
    return model.to(memory_format=torch.contiguous_format)


def compared(world: World, build: Callable[[], Family], number: int) -> dict[str, float]:
    """Gradients of stage `number` against those of threads in one process; then a step of both, and their averages."""
    config = dataclasses.replace(SMALL, threads=world.size, batch_size=5)
    alone = CpuThreads(build(), config)
    with weights_later():
        model = build()
    assert any(isinstance(m, Parts) for m in model.modules()) == any(p.is_meta for p in model.parameters())
    together = Sharded(model, config, world)
    batch, stage = random_batch(alone.model.spec, 5), alone.model.stages()[number]
    mine = batch.rows(torch.arange(5)[world.rows(5)])
    alone.begin(stage)
    together.begin(stage)
    parts = torch.arange(5).tensor_split(world.size)
    gradients = [alone.gradients(batch.rows(rows), 0, i, 5)[1] for i, rows in enumerate(parts)]
    _, total = together.losses(mine, 0, world.rank, 5)
    total.backward()
    sums = [sum(of[1:], of[0]) for of in zip(*gradients, strict=True)]
    differ = [
        (x - (torch.zeros_like(x) if p.grad is None else whole(p.grad))).abs().max().item()
        for x, p in zip(sums, together.learning, strict=True)
    ]
    together.optimizer.zero_grad()
    a, b = alone(batch, 1, 1e-3), together(mine, 1, 1e-3)
    weights = {name: whole(x) for name, x in together.state()["model_state"].items()}
    served = together.average.served(together.model).state_dict()
    if not world.first:
        return {}
    return {
        "gradients": max(differ),
        "losses": max((a.losses_B[k] - b.losses_B[k]).abs().max().item() for k in a.losses_B),
        "norm": abs(float(a.norm / b.norm - 1)),
        "weights": max((x - weights[n]).abs().max().item() for n, x in alone.model.state_dict().items()),
        "average": max((x - served[n]).abs().max().item() for n, x in alone.average.state.items()),
    }


def families(world: World, out: Path) -> None:
    """Every stage of every family, of codecs one alone: they are all the same."""
    found = {}
    for name in FAMILIES.names():
        for number, stage in enumerate(family_of(name).stages()):
            if stage.name != "codec" or name == "unified":
                found[f"{name} {stage.name}"] = compared(world, partial(family_of, name), number)
    if world.first:
        (out / "families.json").write_text(json.dumps(found))


def on_wan(folder: Path, name: str, rank: int) -> Family:
    """A family on the tiny Wan in `folder`, with adapters of a rank, or none."""
    cls, spec = (
        FAMILIES.get(name),
        dataclasses.replace(VIEWS, point_grid=0, past_offsets=(), frame_offsets=(2, 4, 6, 8)),
    )
    backbone = BackboneConfig("wan", str(folder), text_length=6, expert_mlp=24, lora=LoraConfig(rank))
    narrow = {"action_width": 16} if name == "mot" else {}
    torch.manual_seed(0)
    sizes = {"proprio": spec.proprio_dim, "action": spec.action_dim}
    normalizer = Normalizer({k: (torch.zeros(n), torch.ones(n)) for k, n in sizes.items()})
    model = cls(cls.Config(backbone=backbone, **narrow), spec, normalizer)
    return model.to(memory_format=torch.contiguous_format)


def adapted(world: World, out: Path) -> None:
    """Four steps of adapters on the tiny Wan; stopped after two of them where a file says so."""
    backbone = BackboneConfig("wan", str(out / "wan"), text_length=6, lora=LoraConfig(2))
    config = RunConfig(
        "unified",
        UnifiedConfig(backbone=backbone),
        WindowConfig(chunk=4, frame_offsets=(1, 2, 3, 4)),
        dataclasses.replace(SMALL, steps=4, batch_size=2, optimizer="adamw", save_every=100),
    )
    place = out / (out / "place").read_text()
    trainer = make_trainer(config, out / "data", place, trackers=(), world=world)
    released = [p for name, p in trainer.model.named_parameters() if name in trainer.model.frozen]
    assert released and all(isinstance(p, DTensor) == (world.size > 1) for p in released)
    for progress in trainer.steps():
        if progress.step == 2 and (out / "stop").exists():
            os.kill(os.getpid(), signal.SIGTERM)


def further(world: World, out: Path) -> None:
    """Twelve steps of AdamW, by however many processes; a call takes three where a file says so."""
    config = dataclasses.replace(LONGER, optimizer="adamw")
    for progress in trainer(out / "run", world, config).steps():
        if progress.step % 3 == 2 and (out / "stop").exists():
            os.kill(os.getpid(), signal.SIGTERM)


def changed(world: World, out: Path) -> None:
    """A run of two processes with another optimiser."""
    trainer(out / "run", world, dataclasses.replace(LONGER, optimizer="adamw")).run()


def apart(world: World, out: Path) -> None:
    """Processes with a run folder each, as on machines that share none."""
    trainer(out / f"own{world.rank}", world).run()


def full(world: World, out: Path) -> None:
    """A run whose process number `rank` of the file `full` may write small files alone after its first checkpoint."""
    config = dataclasses.replace(LONGER, save_every=6)
    for progress in trainer(out / "run", world, config).steps():
        if progress.step == 6 and world.rank == int((out / "full").read_text()):
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))


def video(world: World, out: Path) -> None:
    """Families on a pretrained video model, whole and with adapters."""
    found = {}
    for name, rank in (("unified", 0), ("unified", 2), ("mot", 0), ("mot", 2), ("hidden_state", 0)):
        build = partial(on_wan, out / "wan", name, rank)
        found[f"{name} {rank}"] = compared(world, build, len(build().stages()) - 1)
    if world.first:
        (out / "video.json").write_text(json.dumps(found))


def work(job: str, out: Path, rank: int, size: int, port: int, said: Path) -> None:
    """Job number `rank` of `size`. What it prints is in the file `said`."""
    sys.stdout = sys.stderr = said.open("a", buffering=1)
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {k: str(v) for k, v in told.items()}
    torch.set_num_threads(1)
    with joined("cpu") as world:
        JOBS[job](world, out)


def serve(pipe: Connection) -> None:
    """Starts jobs until it is told None: sends the numbers of their processes, then their exit codes."""
    fork = multiprocessing.get_context("fork")
    while (asked := pipe.recv()) is not None:
        job, out, size, port, files = asked
        if job in ("video", "adapted"):  # once, not in every process
            import_module("diffusers").WanTransformer3DModel, import_module("peft")
        processes = [fork.Process(target=work, args=(job, out, rank, size, port, files[rank])) for rank in range(size)]
        for process in processes:
            process.start()
        pipe.send([process.pid for process in processes])
        for process in processes:
            process.join(200)
        pipe.send([process.exitcode for process in processes])


_ALL = (train, slowly, differ, replicated, mixed, few, load, families, video, adapted, full, further, changed, apart)
JOBS = {f.__name__: f for f in _ALL}
