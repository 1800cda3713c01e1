"""A run folder as one object: what is read when, what is found damaged, and folders of earlier versions."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from conftest import untrained_run
from wamkit.cli.main import main
from wamkit.config import to_dict
from wamkit.envs.spec import EnvSpec
from wamkit.eval.protocols import Protocol
from wamkit.eval.suites.closed_loop import _Job, _key, closed_loop
from wamkit.inference.model import load, opened
from wamkit.runs import checkpoint
from wamkit.runs.checkpoint import TRAINING, CheckpointError, load_checkpoint, save_checkpoint
from wamkit.runs.run import Run
from wamkit.types import WamkitError

TASK = "drawer-open-v3"
OPTIONS = {"max_steps": 3, "height": 32, "width": 32}


@pytest.fixture
def folder(tmp_path) -> Path:
    return untrained_run(tmp_path / "run", [TASK], OPTIONS)


@pytest.fixture
def hashed(monkeypatch) -> Counter:
    """The files whose bytes are hashed in this process, and how often."""
    count: Counter = Counter()
    whole = checkpoint._sha256
    monkeypatch.setattr(checkpoint, "_sha256", lambda file: count.update([file.name]) or whole(file))
    return count


def files(folder: Path) -> Path:
    return next((folder / "checkpoints").glob("step-*"))


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_what_a_run_says_of_itself(folder):
    run = Run.open(folder)
    assert run.manifest.digest == hashlib.sha256((files(folder) / "manifest.json").read_bytes()).hexdigest()
    assert all(run.is_named(d) for d in (run.digest, run.digest[:8], run.manifest.digest))
    assert not run.is_named("") and not run.is_named("0" * 64)
    assert (run.step, run.name, run.config.family, run.spec.height) == (1, "run", "bc", 32)
    assert run.provenance.env == EnvSpec("metaworld", (TASK,), OPTIONS) and run.provenance.seeds == (0,)
    assert run.embodiments == {} and run.extra["elapsed_s"] == 1.0
    again = pickle.loads(pickle.dumps(run))
    assert again == run and hash(again) == hash(run) and again.provenance == run.provenance
    assert len(pickle.dumps(run)) < 20_000
    assert opened(run) is opened(again) and load(run) is not load(run)


def resaved(folder: Path, out: Path, **changes) -> Run:
    """The run of `folder`, saved again with other content."""
    old = load_checkpoint(folder, training=True)
    given = {"step": old.step, "model_state": old.model_state, "config": old.config, "extra": dict(old.extra)}
    states = {"ema_state": None, "optimizer_state": {}, "rng_state": {}}
    save_checkpoint(out / "checkpoints", **given | states | changes)
    return Run.open(out)


def test_the_digest_is_of_the_weights_and_of_what_their_answers_depend_on(folder, tmp_path):
    """Two trainings that end with equal bits are one model, however long they took and wherever they ran."""
    run, config = Run.open(folder), load_checkpoint(folder).config
    others = ("train", {**config["train"], "save_every": 7}), ("mixture", {"sources": ["/elsewhere"]})
    same = [{"extra": {"elapsed_s": 99.0, "cpu_s": 3.0}}, *({"config": {**config, k: v}} for k, v in others)]
    for i, change in enumerate(same):
        other = resaved(folder, tmp_path / f"same {i}", **change)
        assert other.digest == run.digest and other.manifest.digest != run.manifest.digest
    weights = {k: v.clone() for k, v in load_checkpoint(folder).weights.items()}
    next(v for v in weights.values() if v.is_floating_point()).view(-1)[0] += 1
    stds = {**config["statistics"], "action": {"mean": [0.0] * 4, "std": [2.0] * 4}}
    different = [{"model_state": weights}, {"config": {**config, "statistics": stds}}]
    for i, change in enumerate(different):
        assert resaved(folder, tmp_path / f"different {i}", **change).digest != run.digest


def test_episodes_under_the_digest_of_an_earlier_version_are_read(folder):
    """Earlier versions named weights by their manifest, and a finished piece by that."""
    run, protocol = Run.open(folder), Protocol(EnvSpec("metaworld", (TASK,), OPTIONS), episodes=1, steps=1)
    closed_loop(run, protocol, processes=1)
    (part,) = (folder / "eval/parts").iterdir()
    record = {"task": TASK, "seed": 1_000_000, "text": "x", "success": True, "steps": 3, "latency_ms": [1.0]}
    job = _Job(run, protocol, TASK, (1_000_000,))
    part.unlink(), part.with_name(f"{_key(job, run.manifest.digest)}.json").write_text(json.dumps([record]))
    assert closed_loop(run, protocol, processes=1)[0].text == "x"


def test_a_file_is_hashed_once_and_only_when_it_is_read(folder, hashed):
    run = Run.open(folder)
    assert hashed == {"state.json": 1}
    load(run), load(folder), Run.open(folder).weights()
    assert hashed == {"state.json": 1, "weights.safetensors": 1}
    load_checkpoint(folder, training=True)
    assert hashed == {"state.json": 1, "weights.safetensors": 1, TRAINING: 1}


def test_an_evaluation_hashes_each_file_once_and_never_touches_the_training_state(folder, hashed, capsys):
    (files(folder) / TRAINING).unlink()
    words = ["eval", str(folder), "--episodes", "1", "--held-out", "0", "--processes", "1"]
    assert main(words) == 0 and (folder / "eval/report.html").exists()
    assert hashed == {"state.json": 1, "weights.safetensors": 1}
    assert "all tasks" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["state.json", "weights.safetensors"])
def test_damage_is_found_when_the_file_is_read_even_after_it_was_intact(folder, name):
    load(folder)
    damage(files(folder) / name)
    with pytest.raises(CheckpointError, match=f"{name} is damaged: its SHA-256 is not the one in manifest.json"):
        load(folder)


def test_a_damaged_training_state_is_found_when_resuming_and_not_before(folder):
    damage(files(folder) / TRAINING)
    assert load(folder).name == "bc"
    with pytest.raises(CheckpointError, match=f"{TRAINING} is damaged"):
        load_checkpoint(folder, training=True)


def test_a_run_that_is_not_there_is_named(tmp_path):
    with pytest.raises(WamkitError, match="there is no run at .*nowhere: train one"):
        Run.open(tmp_path / "nowhere")


def test_folders_of_earlier_versions_open(tmp_path, folder):
    """Their provenance was called `source`, and lay flat; options and fields had other names."""
    new = load_checkpoint(folder, training=True)
    config = {k: v for k, v in new.config.items() if k != "provenance"}
    config["spec"] = {"points" if k == "point_grid" else k: v for k, v in config["spec"].items()}
    config["source"] = {
        "env": "metaworld",
        "options": {"points": 8, "max_steps": 3},
        "tasks": [TASK],
        "collect_seed": 5,
        "seeds": [3, 4],
        "episodes": 2,
        "frames": 9,
        "robot": "",
    }
    save_checkpoint(
        tmp_path / "old",
        step=1,
        model_state=new.model_state,
        ema_state=None,
        optimizer_state={},
        rng_state={},
        config=config,
        extra={},
    )
    old = Run.open(tmp_path / "old")
    assert old.provenance.env == EnvSpec("metaworld", (TASK,), {"point_grid": 8, "max_steps": 3})
    assert (old.provenance.collect_seed, old.provenance.seeds, old.provenance.frames) == (5, (3, 4), 9)
    assert old.spec == Run.open(folder).spec
    a, b = (load(run).family.state_dict() for run in (old, folder))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_episodes_that_were_played_by_an_earlier_version_are_read(folder):
    """The key of a finished piece is made of the same facts in the same order as ever."""
    run = Run.open(folder)
    env = EnvSpec("metaworld", (TASK,), {"point_grid": 8, **OPTIONS})
    options = [["points", 8], *map(list, OPTIONS.items())]
    protocol = {"env": "metaworld", "tasks": None, "options": options, "episodes": None, "replan_every": 8}
    protocol |= {"query": "policy", "steps": 4, "text": None, "robot": ""}
    content = json.dumps([run.digest, protocol, TASK, [1_000_000]], sort_keys=True)
    part = folder / "eval/parts" / f"{hashlib.sha256(content.encode()).hexdigest()[:16]}.json"
    record = {"task": TASK, "seed": 1_000_000, "text": "x", "success": True, "steps": 3, "latency_ms": [1.0]}
    part.parent.mkdir(parents=True)
    part.write_text(json.dumps([record]))
    (found,) = closed_loop(run, Protocol(env, episodes=1, steps=4))
    assert found.success and found.text == "x" and to_dict(found) == record | {"outcome": "", "load": None}


SHAPES = """
import sys
from dataclasses import replace
from wamkit.families.base import FAMILIES
from wamkit.runs.config import RunConfig
from wamkit.runs.run import Layout, build, layout
from wamkit.types import Spec

own = Spec(cameras=("corner2",), height=32, width=32, proprio_dim=4, action_dim=4)
numbers = {key: {"mean": [0.0] * 4, "std": [1.0] * 4} for key in ("proprio", "action")}
built = 0
for name in FAMILIES.names():
    family = FAMILIES.get(name)
    run = RunConfig(name, family.Config(width=32, depth=1, heads=2))
    spec = replace(own, point_grid=32 if family.needs_point_cloud else 0)
    found = layout(run, spec, numbers, 1000)
    assert not {"torch._dynamo", "sympy"} & set(sys.modules), name
    real = build(run, spec, numbers).state_dict()
    assert found == {k: Layout(v.dtype, tuple(v.shape)) for k, v in real.items()}, name
    built += 1
print(built)
"""


def test_shapes_of_weights_are_known_without_values_and_without_a_compiler():
    """Loading a model imported torch._dynamo and sympy, which takes three times as long as importing torch."""
    done = subprocess.run([sys.executable, "-c", SHAPES], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and int(done.stdout) >= 13, done.stderr[-2000:]
