"""A run as one file: the same answers to the bit, and refusals of what `wamkit export` did not write."""

from __future__ import annotations

import json
import os
import random
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tests.data.recordings import fill

import wamkit
from wamkit.cli.main import main
from wamkit.runs.checkpoint import CheckpointError
from wamkit.runs.exported import KEY, Exported, _digest
from wamkit.runs.run import Run
from wamkit.types import WamkitError

FAST = [
    *("--size", "16", "32", "--train.steps", "2", "--train.batch-size", "2", "--train.threads", "1"),
    *("--train.precision", "fp32", "--window.chunk", "4", "--window.frame-offsets", "2", "4"),
    *("--model.width", "16", "--model.depth", "1", "--model.heads", "2", "--model.text.buckets", "64"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    data = fill(folder / "data", 2).root
    assert main(["train", "--data", str(data), "--out", str(folder / "run"), *FAST]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def file(run):
    out = run.parent / "model.safetensors"
    assert main(["export", str(run), "--out", str(out)]) == 0
    return out


def answer(path):
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 40, 50), np.uint8)
    out = wamkit.load(path).sample(wamkit.Observation(images, np.ones(3, np.float32), "go"), "joint", seed=3)
    return out.actions, out.future


def forge(file, out, change):
    """A copy whose metadata `change` altered, with a right checksum."""
    raw = file.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    told = json.loads(header["__metadata__"][KEY])
    change(told["run"])
    told["sha256"] = _digest(told["run"])
    save_file(load_file(file), out, {KEY: json.dumps(told)})
    return out


def test_an_exported_run_answers_to_the_bit_as_its_folder_does(run, file, tmp_path):
    one, other = Run.open(run), Run.open(file)
    assert (one.digest, one.step, one.described) == (other.digest, other.step, other.described)
    moved = shutil.copy(file, tmp_path / "elsewhere.safetensors")
    for path in (file, moved):
        assert all(np.array_equal(a, b) for a, b in zip(answer(run), answer(path), strict=True))
    assert other.home == file.with_suffix("") and one.home == run
    assert file.stat().st_size < 1.2 * next(run.glob("checkpoints/step-*/weights.safetensors")).stat().st_size + 9000
    assert main(["export", str(file), "--out", str(tmp_path / "again.safetensors")]) == 0
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()
    assert main(["export", str(run), "--out", str(moved)]) == 0  # over an export of ours


def test_it_is_shown_like_its_folder(run, file, capsys):
    shown = []
    for path in (run, file):
        assert main(["show", str(path)]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] and "unified" in shown[0]


def test_its_results_do_not_go_into_a_data_set_of_its_name(run, file, tmp_path, capsys):
    shutil.copytree(run.parent / "data", tmp_path / "pick")
    shutil.copy(file, tmp_path / "pick.safetensors")
    before = sorted((tmp_path / "pick").rglob("*"))
    for command in (["eval"], ["sample"], ["diagnose"]):
        assert main([*command, str(tmp_path / "pick.safetensors")]) == 1
        assert "which is a data set: rename the file" in capsys.readouterr().err
    assert sorted((tmp_path / "pick").rglob("*")) == before


def test_every_flipped_bit_is_noticed(file, tmp_path):
    good, out = file.read_bytes(), tmp_path / "bad.safetensors"
    for bit in random.Random(0).sample(range(len(good) * 8), 60):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        out.write_bytes(bad)
        with pytest.raises(WamkitError, match=r"bad.safetensors"):
            Run.open(out).weights()
    for size in (0, 5, 100, len(good) - 1):
        out.write_bytes(good[:size])
        with pytest.raises(WamkitError, match=r"bad.safetensors"):
            Run.open(out).weights()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run["config"]["model"].update(width=32), "does not hold what its configuration describes"),
        (lambda run: run["config"].pop("spec"), "the configuration lacks 'spec'"),
        (lambda run: run["config"]["image"].update(height=64), "does not fit the model's images, 16x32"),
        (lambda run: run.update(weights={"a": 3}), "no|lacks|not"),
        (lambda run: run.update(format_version=99), "which reads formats up to 1: upgrade wamkit"),
        (lambda run: run.update(step="x"), "not as they were written"),
    ],
)
def test_files_that_were_changed_are_refused(file, tmp_path, change, message):
    with pytest.raises(WamkitError, match=message):
        Run.open(forge(file, tmp_path / "forged.safetensors", change)).family()


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="model.safetensors is no run: .* is a pipe"):
        Exported.open(tmp_path / "model.safetensors")


def test_another_programs_safetensors_are_no_run(run, file, tmp_path, capsys):
    weights = next(run.glob("checkpoints/step-*/weights.safetensors"))
    with pytest.raises(WamkitError, match=r"weights.safetensors is no run: wamkit export did not write it"):
        wamkit.load(weights)
    (tmp_path / "huge.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(WamkitError, match="declares a header of"):
        wamkit.load(tmp_path / "huge.safetensors")
    mine = shutil.copy(weights, tmp_path / "mine.safetensors")
    assert main(["export", str(run), "--out", str(mine)]) == 1 and "did not write" in capsys.readouterr().err
    assert (
        main(["export", str(run), "--out", str(tmp_path / "m.pt")]) == 1 and ".safetensors" in capsys.readouterr().err
    )


def test_inference_needs_no_optimiser_state_and_training_says_that_it_does(run, tmp_path, capsys):
    light = shutil.copytree(run, tmp_path / "light")
    next(light.glob("checkpoints/step-*/training.safetensors")).unlink()
    assert all(np.array_equal(a, b) for a, b in zip(answer(run), answer(light), strict=True))
    command = ["train", "--data", str(run.parent / "data"), "--out", str(light), *FAST]
    assert main(command) == 1
    assert (
        "training.safetensors is missing: the run answers without it, but cannot be trained" in capsys.readouterr().err
    )
