"""The guard between training and evaluation: no reset state of any data set of a run is one of its evaluation."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from conftest import untrained_run
from wamkit.cli import diagnose, sample
from wamkit.config import save_json, to_dict
from wamkit.data.loading.mixture import MixtureConfig, SourceConfig
from wamkit.envs.base import held_out_seeds
from wamkit.envs.spec import EnvSpec
from wamkit.eval.evaluate import evaluate
from wamkit.eval.protocols import Protocol
from wamkit.eval.registry import EvalOptions
from wamkit.eval.suites import counterfactuals
from wamkit.eval.suites.paired import paired
from wamkit.eval.suites.policy_ranking import Rank, rank
from wamkit.eval.suites.robustness import sweep
from wamkit.rollout.collect import CollectConfig, collect, plan
from wamkit.runs.checkpoint import load_checkpoint, save_checkpoint
from wamkit.runs.config import RunConfig, family_class
from wamkit.runs.provenance import Provenance
from wamkit.runs.run import Run
from wamkit.training.launch import LoadingOptions, _open_mixture
from wamkit.types import WamkitError

TASK = "drawer-open-v3"
ENV = EnvSpec("metaworld", (TASK,), {"max_steps": 3, "height": 32, "width": 32})


def recorded_seeds(episodes: int) -> tuple[int, ...]:
    """Seeds that held-out recordings begin with."""
    config = CollectConfig(tasks=ENV.tasks, out=Path(), episodes=episodes, off_expert=1, held_out=True)
    return tuple(job.seeds[0] for job in plan(config))


def trained_on(out: Path, *seeds: int, family: str = "unified") -> Path:
    """A run of a mixture whose second source has `seeds`."""
    untrained_run(out, ENV.tasks, ENV.options, family)
    saved = load_checkpoint(out)
    origins = {"demos": to_dict(Provenance(ENV, seeds=(0,))), "more": to_dict(Provenance(ENV, seeds=seeds))}
    save_checkpoint(
        out / "checkpoints",
        step=1,
        model_state=saved.weights,
        ema_state=None,
        optimizer_state={},
        rng_state={},
        config={**saved.config, "origins": origins},
        extra={"elapsed_s": 1.0},
    )
    return out


def refused(call, seed: int) -> None:
    with pytest.raises(WamkitError, match=rf"\[{seed}\] were trained on: the data set 'more' of its mixture has them"):
        call()


def test_evaluation_sees_every_source_of_a_mixture(tmp_path):
    first = held_out_seeds(1)[0]
    run = Run.open(trained_on(tmp_path / "run", first))
    clean = Run.open(untrained_run(tmp_path / "clean", ENV.tasks, ENV.options))
    policies = tuple(untrained_run(tmp_path / f"p{k}", ENV.tasks, ENV.options, seed=k) for k in range(3))
    refused(lambda: evaluate(run, Protocol(episodes=1), EvalOptions(held_out=0)), first)
    refused(lambda: sweep(run, Protocol(episodes=1)), first)
    refused(lambda: paired([clean, run], Protocol(episodes=1)), first)
    refused(lambda: rank(Rank(run.path, (clean.path, *policies), episodes=1)), first)
    refused(lambda: rank(Rank(clean_world(tmp_path), (run.path, *policies), episodes=1)), first)
    assert not [*tmp_path.glob("*/eval")]


def clean_world(folder: Path) -> Path:
    return untrained_run(folder / "world", ENV.tasks, ENV.options, "unified")


def test_recordings_and_replays_see_every_source_too(tmp_path):
    first, *_ = seeds = recorded_seeds(6)
    run = trained_on(tmp_path / "recorded", *seeds[:1])
    refused(lambda: evaluate(Run.open(run), Protocol(episodes=1), EvalOptions(held_out=6)), first)
    refused(lambda: sample.run(sample.Sample(run)), first)
    replayed = counterfactuals.FIRST_SEED
    run = trained_on(tmp_path / "replayed", replayed)
    refused(lambda: evaluate(Run.open(run), Protocol(episodes=1), EvalOptions(held_out=1, suite="full")), replayed)
    refused(lambda: diagnose.run(diagnose.Diagnose(run)), replayed)
    assert not [*tmp_path.glob("*/eval")] and not [*tmp_path.glob("*/diagnose")]


def test_a_mixture_notes_the_seeds_of_all_its_sources(tmp_path, capsys):
    """Trained on A and on A's held-out recordings: the first source alone would be no word of it."""
    common = {"env": "pusht", "tasks": ("push-t",), "episodes": 0, "off_expert": 1, "off_expert_steps": 20}
    for name, held_out in (("a", False), ("b", True)):
        collect(CollectConfig(out=tmp_path / name, held_out=held_out, **common), progress=False)
    mixture = MixtureConfig((SourceConfig("a"), SourceConfig("b")), size=(32, 32), views=("scene",))
    save_json(tmp_path / "mixture.json", mixture)
    config = RunConfig("unified", family_class("unified").Config(width=32, depth=1, heads=2))
    opened = _open_mixture(config, tmp_path / "mixture.json", LoadingOptions(), tmp_path / "run")
    seeds = {name: origin["seeds"] for name, origin in opened.facts["origins"].items()}
    assert len(seeds) == 2 and seeds["a"][0] < 1_000_000 < 2_000_000 <= seeds["b"][0]
    assert dataclasses.asdict(opened.provenance)["seeds"] == tuple(seeds["a"])
