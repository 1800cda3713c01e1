"""Checkpoints: exact resume, damage of every kind, a full disk, and kills at random moments."""

from __future__ import annotations

import itertools  # noqa: F401
import json
import os
import random
import re
import shutil  # noqa: F401  for the code that runs in subprocesses, like the next two
import signal  # noqa: F401
import textwrap
import time  # noqa: F401
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import warm
from wamkit.runs import checkpoint
from wamkit.runs.checkpoint import TRAINING, Checkpoint, CheckpointError, load_checkpoint, save_checkpoint

FILES = ("weights.safetensors", "training.safetensors", "state.json", "manifest.json")


def save(folder: Path, step: int, **changes: Any) -> Path:
    """A checkpoint whose every number tells its step."""
    given: dict[str, Any] = {
        "step": step,
        "model_state": {"w": torch.full((4, 4), float(step)), "count": torch.tensor(step)},
        "ema_state": {"w": torch.full((4, 4), step + 0.5)},
        "optimizer_state": {"state": {0: {"step": torch.tensor(float(step))}}, "groups": [{"betas": (0.9, 0.95)}]},
        "rng_state": {"cpu": torch.get_rng_state(), "seed": 7},
        "config": {"train": {"steps": 10}},
        "extra": {"loader": {"position": step}},
    }
    return save_checkpoint(folder, **{**given, **changes})


def is_step(loaded: Checkpoint, step: int) -> bool:
    return loaded.step == step == loaded.extra["loader"]["position"] and bool((loaded.weights["w"] == step + 0.5).all())


def identical(a: Any, b: Any) -> bool:
    """Same types, same values to the bit, same memory layout."""
    if isinstance(a, Tensor):
        return type(a) is type(b) and a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(identical(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(identical, a, b))
    return type(a) is type(b) and a == b


# What goes in comes out.


def test_everything_comes_back_exactly(tmp_path: Path) -> None:
    shared = torch.arange(12.0).reshape(3, 4)
    model = {
        "a.b": torch.randn(2, 3, 5, 5).to(memory_format=torch.channels_last),
        "a": torch.randn(3, dtype=torch.float64),
        "half": torch.randn(3).bfloat16(),
        "flag": torch.tensor([True, False]),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 2),
        "tied1": shared,
        "tied2": shared,
        "row": shared[1],
        "transposed": shared.t(),
    }
    ema = {"a": model["a"] + 1}
    groups = [{"betas": (0.9, 0.1 + 0.2), "none": None, "lr": 1e-300}]
    optimizer = {"state": {0: {"m": model["a.b"] * 2}, 1: {}}, "groups": groups, "0": {"x": True}}
    rng = {"cpu": torch.get_rng_state(), "numpy": 2**127 + 1, "x.y": {"z": torch.ones(1)}, "x": {"y.z": torch.zeros(1)}}
    extra = {"nested": [(1, [2.5, float("inf")]), {"__tensor__": "text"}], 3: "three", "text": "über"}
    config = {"pairs": (("a", 1.0),), "name": None}
    states = {"model_state": model, "ema_state": ema, "optimizer_state": optimizer, "rng_state": rng}
    path = save_checkpoint(tmp_path, step=3, **states, config=config, extra=extra)
    assert path.name == "step-00000003" and {p.name for p in path.iterdir()} == set(FILES)
    back = load_checkpoint(tmp_path, training=True)
    for name, state in states.items():
        assert identical(getattr(back, name), state), name
    assert identical(back.weights, {**model, **ema})
    assert identical([back.config, back.extra, back.step, back.path], [config, extra, 3, path])


def test_inference_gets_the_average_or_the_raw_weights_and_nothing_else(tmp_path: Path) -> None:
    save(tmp_path / "ema", 1)
    save(tmp_path / "raw", 1, ema_state=None)
    averaged, raw = load_checkpoint(tmp_path / "ema"), load_checkpoint(tmp_path / "raw", training=True)
    assert averaged.weights["w"][0, 0] == 1.5 and averaged.weights["count"] == 1
    assert averaged.model_state is averaged.optimizer_state is averaged.rng_state is None
    assert raw.weights["w"][0, 0] == 1.0 and raw.ema_state is None and raw.model_state is not None


@pytest.mark.parametrize("place", ["runs/first/checkpoints", "runs/first", "runs/first/checkpoints/step-00000002"])
def test_a_run_its_checkpoints_or_one_of_them_can_be_named(tmp_path: Path, place: str) -> None:
    save(tmp_path / "runs/first/checkpoints", 2)
    assert is_step(load_checkpoint(tmp_path / place), 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": {"a": {"b": [object()]}}}, r"extra.a.b\[0\] is a object"),
        ({"extra": {"mean": torch.zeros(1)}}, "extra.mean is a Tensor"),
        ({"optimizer_state": {"x": {1, 2}}}, "optimizer.x is a set"),
        ({"ema_state": {"module.w": torch.zeros(1)}}, r"ema_state has \['module.w'\]"),
        ({"keep": 0}, "keep must be at least 1"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_writing(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        save(tmp_path, 1, **changes)
    assert not list(tmp_path.iterdir())


def test_old_checkpoints_go_and_the_newest_stay(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        save(tmp_path, step, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["latest", "step-00000015", "step-00000020"]
    save(tmp_path, 7, keep=1)  # a run that went back: what was saved last is never the one to go
    assert sorted(os.listdir(tmp_path)) == ["latest", "step-00000007"]
    assert is_step(load_checkpoint(tmp_path), 7)


def test_saving_a_step_again_never_touches_the_one_in_use(tmp_path: Path) -> None:
    for value in range(4):
        save(tmp_path, 5, extra={"value": value})
        assert load_checkpoint(tmp_path).extra["value"] == value
    assert sorted(os.listdir(tmp_path)) == ["latest", "step-00000005.2", "step-00000005.3"]


# Exact resume.


def _network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 5))
    return net.to(memory_format=torch.channels_last)


def _train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        x = torch.randn(6, 3, 8, 8).to(memory_format=torch.channels_last)
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"foreach": False, "amsgrad": True}], ids=str)
def test_resumed_adamw_is_bit_identical_to_an_uninterrupted_run(tmp_path: Path, options: dict) -> None:
    net = _network()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2, **options)
    _train(net, optimizer, 4)
    save_checkpoint(
        tmp_path,
        step=4,
        model_state=net.state_dict(),
        ema_state=None,
        optimizer_state=optimizer.state_dict(),
        rng_state={"cpu": torch.get_rng_state()},
        config={},
        extra={},
    )
    saved_state = optimizer.state_dict()
    back = load_checkpoint(tmp_path, training=True)
    assert identical(back.optimizer_state, saved_state)

    _train(net, optimizer, 4)
    resumed = _network()
    resumed_optimizer = torch.optim.AdamW(resumed.parameters(), 1e-2, **options)
    torch.manual_seed(99)
    resumed.load_state_dict(back.model_state)
    resumed_optimizer.load_state_dict(back.optimizer_state)
    torch.set_rng_state(back.rng_state["cpu"])
    _train(resumed, resumed_optimizer, 4)
    assert identical(dict(resumed.state_dict()), dict(net.state_dict()))
    assert identical(resumed_optimizer.state_dict(), optimizer.state_dict())


# Damage.


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_found(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1)
    file = save(tmp_path, 2) / name
    good, other = file.read_bytes(), tmp_path / "step-00000001"
    bits = random.Random(0).sample(range(len(good) * 8), 60)
    for bit in bits:
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        file.write_bytes(bad)
        with pytest.raises(CheckpointError, match=rf"{name} is damaged.*{other} is intact: load that, or write 'step-"):
            load_checkpoint(tmp_path, training=True)
    file.write_bytes(good)
    assert is_step(load_checkpoint(tmp_path, training=True), 2)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_truncated_file_is_named_with_what_to_do(tmp_path: Path, name: str) -> None:
    file = save(tmp_path, 2) / name
    good = file.read_bytes()
    file.write_bytes(good[:-1])
    sizes = f"has {len(good) - 1} bytes, {len(good)} were written"
    with pytest.raises(CheckpointError, match=rf"{name} ({sizes}|is damaged).*no other intact checkpoint"):
        load_checkpoint(tmp_path, training=True)
    file.unlink()
    needed = ": the run answers without it, but cannot be trained on" if name == TRAINING else ""
    with pytest.raises(CheckpointError, match=rf"{name} is missing{needed}; no other intact checkpoint"):
        load_checkpoint(tmp_path / "step-00000002", training=True)
    save(tmp_path, 1)
    (tmp_path / "latest").write_text("step-00000002\n")
    with pytest.raises(CheckpointError, match=rf"{name} is missing{needed}; .*step-00000001 is intact"):
        load_checkpoint(tmp_path, training=True)


def test_the_advice_for_a_damaged_checkpoint_works(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (save(tmp_path, 2) / "state.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path)
    name, latest = re.search(r"write '(.*)' into (\S+) to go on", str(caught.value)).groups()
    Path(latest).write_text(name)
    assert is_step(load_checkpoint(tmp_path), 1)


def test_latest_that_names_nothing_is_an_error_and_a_missing_latest_is_not(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for text in ("step-00000003\n", "", "../elsewhere", "\x00"):
        (tmp_path / "latest").write_text(text)
        with pytest.raises(CheckpointError, match=r"latest names .* no checkpoint there; .*step-00000001 is intact"):
            load_checkpoint(tmp_path)
    (tmp_path / "latest").unlink()  # as after a kill between the first checkpoint and the first `latest`
    assert is_step(load_checkpoint(tmp_path), 1)
    with pytest.raises(CheckpointError, match="no checkpoint in .*nowhere"):
        load_checkpoint(tmp_path / "nowhere")


def test_a_newer_format_says_which_version_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as future:
        future.setattr(checkpoint, "FORMAT_VERSION", 99)
        future.setattr(checkpoint, "wamkit_version", lambda: "7.1.0")
        save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"written by wamkit 7.1.0 in checkpoint format 99; .*: upgrade"):
        load_checkpoint(tmp_path)


# Full disks and kills.


def _output(code: str, *args: object) -> str:
    """What a process of its own prints that executes `code` with the names of this file."""
    head = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from {Path(__file__).stem} import *\n"
    status, printed = warm.output(head + textwrap.dedent(code), *args)
    assert status == 0, printed
    return printed


def test_a_full_disk_is_an_error_and_the_previous_checkpoint_stays(tmp_path: Path) -> None:
    # A file size limit makes writing fail as a full disk does: here in state.json, the weights and the training state.
    code = """
        import resource
        folder = Path(sys.argv[1])
        save(folder, 1)
        big = {"w": torch.zeros(4, 4), "big": torch.zeros(100_000)}
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        for limit in (4, 5_000, 403_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                save(folder, 2, model_state=big)
                print("saved")
            except CheckpointError as e:
                print(e)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert is_step(load_checkpoint(folder, training=True), 1)
        print(sorted(os.listdir(folder)))
        save(folder, 2)
        assert is_step(load_checkpoint(folder), 2)
    """
    lines = _output(code, tmp_path).splitlines()
    assert len(lines) == 4 and lines[3] == "['latest', 'step-00000001']"
    for line in lines[:3]:
        assert f"could not save step 2 under {tmp_path}" in line and "File too large" in line


def test_a_full_disk_at_the_last_moment_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(checkpoint, "atomic_write", full)
        with pytest.raises(CheckpointError, match="No space left on device"):
            save(tmp_path, 2)
    assert is_step(load_checkpoint(tmp_path), 1)
    save(tmp_path, 2)
    assert is_step(load_checkpoint(tmp_path), 2)


def test_kill_9_at_random_moments_leaves_a_complete_checkpoint(tmp_path: Path) -> None:
    # Each saver goes on from the checkpoint that its killed predecessor left, and says in a pipe what is on disk.
    code = """
        folder, moments = Path(sys.argv[1]), random.Random(0)
        torch.set_num_threads(1)
        big = {"w": torch.zeros(4, 4), "big": torch.zeros(50_000)}
        littered = 0
        for kill in range(12):
            read, progress = os.pipe()
            if not (child := os.fork()):
                step = load_checkpoint(folder).step if (folder / "latest").exists() else 0
                while True:
                    step += 1
                    save(folder, step, model_state=big)
                    os.write(progress, b"%d\\n" % step)
            os.close(progress)
            first = os.read(read, 100)
            time.sleep(moments.uniform(0, 0.05))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            said = int((first + os.read(read, 100_000)).split()[-1])
            os.close(read)
            loaded = load_checkpoint(folder, training=True)
            assert loaded.step in (said, said + 1), (loaded.step, said)
            assert is_step(loaded, loaded.step)
            littered += any(p.name.startswith(".") for p in folder.iterdir())
        save(folder, 10_000)
        names = sorted(os.listdir(folder))
        assert names[0] == "latest" and names[-1] == "step-00010000" and len(names) == 3, names
        print(littered, "kills hit a save in progress")
    """
    printed = _output(code, tmp_path / "checkpoints")
    assert int(printed.split()[0]) >= 2, printed


def test_a_kill_before_any_step_of_a_save_leaves_a_complete_checkpoint(tmp_path: Path) -> None:
    # The same, not left to chance: the saver dies at its n-th system call that changes the disk, for every n.
    code = """
        source, n = Path(sys.argv[1]), 0
        torch.set_num_threads(1)
        seen, finished = set(), False
        while not finished:
            n += 1
            folder = source.with_name(f"kill-{n}")
            shutil.copytree(source, folder)
            if not (child := os.fork()):
                calls = itertools.count(1)
                def dying(function):
                    def call(*args, **kwargs):
                        if next(calls) == n:
                            os.kill(os.getpid(), signal.SIGKILL)
                        return function(*args, **kwargs)
                    return call
                for name in ("mkdir", "rename", "replace", "fsync", "rmdir", "unlink", "chmod", "open"):
                    setattr(os, name, dying(getattr(os, name)))
                save(folder, 3)
                os._exit(0)
            finished = os.waitpid(child, 0)[1] == 0
            loaded = load_checkpoint(folder, training=True)
            assert is_step(loaded, loaded.step)
            seen.add(loaded.step)
            save(folder, 4)
            assert is_step(load_checkpoint(folder), 4)
            assert not [p for p in os.listdir(folder) if p.startswith(".")]
        assert seen == {2, 3}, seen
        print(n)
    """
    save(tmp_path / "start", 1)
    save(tmp_path / "start", 2)
    assert int(_output(code, tmp_path / "start")) > 12


def test_json_files_are_plain_text_and_nothing_is_pickled(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest["files"]) == set(FILES) - {"manifest.json"}
    assert manifest["format_version"] == checkpoint.FORMAT_VERSION
    assert json.loads((path / "state.json").read_text())["step"] == 1
    for name in FILES[:2]:  # safetensors: the length of a JSON header, then the header
        data = (path / name).read_bytes()
        assert json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
