"""Shared fixtures: a tiny spec, batches of random numbers, and shape checking of the contract's public functions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("MUJOCO_GL", "osmesa")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks the real Hub
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start, too: their models are tiny

import pytest
import torch

from wamkit.envs.spec import EnvSpec
from wamkit.nn.normalizer import Normalizer
from wamkit.registry import load_package
from wamkit.runs.checkpoint import save_checkpoint
from wamkit.runs.config import RunConfig, family_class
from wamkit.runs.provenance import Provenance
from wamkit.runs.run import build, run_to_dict
from wamkit.types import Batch, Spec

POINTS = 16
"""Scene points a side of their grid, in batches for families that look at them."""

LONG = (
    "cli/test_documented_commands.py",
    "cli/test_cli.py",
    "contract/test_families.py",
    "contract/test_plugin.py",
    "unit/test_envs.py",
    "unit/test_compare.py",
    "unit/test_policy_ranking.py",
    "unit/test_collect.py",
    "training/test_trainer.py",
    "training/test_interruption.py",
    "compatibility/test_old_files.py",
    "cases/test_laboratory.py",
    "unit/test_evaluate.py",
)
"""Files that take longest, the longest first: they begin first, so that no process ends alone with one of them."""

load_package("wamkit.families")
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Keeps pytest-xdist from beginning with the files that have most tests, which are the quick ones."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def files_outlive_no_power_cut() -> Iterator[None]:
    """Leaves out fsync: kills lose nothing that was written, and waiting for the disk is most of a small test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture
def spec() -> Spec:
    return Spec(
        cameras=("left", "right"),
        height=32,
        width=32,
        proprio_dim=5,
        action_dim=4,
        chunk=8,
        frame_offsets=(4, 8),
        fps=20.0,
    )


@pytest.fixture
def normalizer(spec: Spec) -> Normalizer:
    g = torch.Generator().manual_seed(5)
    vector = lambda n: (torch.randn(n, generator=g), torch.rand(n, generator=g) + 0.5)  # noqa: E731
    flow = (torch.zeros(3), torch.full((3,), 0.05))
    return Normalizer({"proprio": vector(spec.proprio_dim), "action": vector(spec.action_dim), "point_flow": flow})


def random_batch(spec: Spec, rows: int, seed: int = 0) -> Batch:
    """A batch of random values for any family: with scene points, whether or not `spec` has them."""
    return Batch.random(replace(spec, point_grid=POINTS), rows, seed)


def untrained_run(
    out: Path,
    tasks: Sequence[str],
    options: Mapping[str, Any],
    family: str = "bc",
    seed: int = 0,
    env: str = "metaworld",
    width: int = 32,
    depth: int = 1,
    past_offsets: tuple[int, ...] = (),
    fps: float = 80.0,
    **model: Any,
) -> Path:
    """A model as it was before its first step, for MetaWorld with 32x32 pixels; `bc` imagines nothing."""
    sizes = {"height": 32, "width": 32, "proprio_dim": 4, "action_dim": 4}
    spec = Spec(("corner2",), **sizes, past_offsets=past_offsets, fps=fps)
    numbers = {key: {"mean": [0.0] * 4, "std": [1.0] * 4} for key in ("proprio", "action")}
    config = RunConfig(family, family_class(family).Config(width=width, depth=depth, heads=2, **model))
    window = replace(config.window, past_offsets=past_offsets)
    config = replace(config, train=replace(config.train, seed=seed), window=window)
    provenance = Provenance(EnvSpec(env, tuple(tasks), options), seeds=(0,), episodes=1)
    save_checkpoint(
        out / "checkpoints",
        step=1,
        model_state=build(config, spec, numbers).state_dict(),
        ema_state=None,
        optimizer_state={},
        rng_state={},
        config=run_to_dict(config, spec, numbers, provenance),
        extra={"elapsed_s": 1.0},
    )
    (out / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    (out / "config.json").write_text("{}")
    return out


@pytest.fixture
def batch(spec: Spec) -> Batch:
    return random_batch(spec, 6)
