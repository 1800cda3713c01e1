"""Several processes that train together on gloo, against threads of one process."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import multiprocessing
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from recordings import fill
from safetensors.torch import load_file
from sharded_jobs import serve
from small_runs import SMALL, frames, same, state, trainer

from tiny_video_models import make_folder
from wamkit.cli.main import main
from wamkit.data.loading.augment import Augment
from wamkit.data.loading.mixture import MixedWindows
from wamkit.families.base import FAMILIES
from wamkit.families.cascade_idm import CascadeIDM
from wamkit.nn.family_options import CascadeIDMConfig
from wamkit.nn.normalizer import Normalizer
from wamkit.nn.objectives import spare_joint
from wamkit.runs.checkpoint import load_checkpoint, read_manifest
from wamkit.training.optim import Optimizer
from wamkit.training.world import World
from wamkit.types import WamkitError


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {**os.environ, **{k: str(v) for k, v in told.items()}, "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    """A port below those that systems hand out, so that no other program is given it in the meantime."""
    while True:
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port := random.randrange(12_000, 30_000)))
            return port


class Jobs:
    """A process that has imported what jobs need, and starts them: they fork from it, which has computed nothing."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=serve, args=(theirs,), daemon=False)
        self._process.start()

    def start(self, size: int, job: str, out: Path) -> list[int]:
        """Process numbers of a job, by rank."""
        mark = uuid.uuid4().hex
        self._files = [out / f"said-{mark}-{rank}" for rank in range(size)]
        self._pipe.send((job, out, size, free_port(), self._files))
        return self._pipe.recv()

    def ended(self) -> list[tuple[int | None, str]]:
        """Exit codes and outputs of the job that was started last."""
        assert self._pipe.poll(240)
        texts = [file.read_text() if file.exists() else "" for file in self._files]
        return list(zip(self._pipe.recv(), texts, strict=True))

    def __call__(self, size: int, job: str, out: Path) -> list[tuple[int | None, str]]:
        self.start(size, job, out)
        return self.ended()

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join(60)


@pytest.fixture(scope="module")
def together():
    jobs = Jobs()
    yield jobs
    jobs.close()


def commands(size: int, words: list[str]) -> list[tuple[int, str, str]]:
    """Exit codes, stdout and stderr of a command in several processes, as torchrun starts them."""
    port, pipes = free_port(), {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen([sys.executable, *words], env=environment(rank, size, port), **pipes) for rank in range(size)
    ]
    outputs = [p.communicate(timeout=240) for p in processes]
    return [(p.returncode, *texts) for p, texts in zip(processes, outputs, strict=True)]


@pytest.fixture(scope="module")
def whole_run(together, tmp_path_factory) -> Path:
    """Twelve steps of two processes, from the first to the last."""
    out = tmp_path_factory.mktemp("whole")
    assert [code for code, _ in together(2, "train", out)] == [0, 0]
    return out / "run"


def test_gradients_of_every_family_are_those_of_threads(together, tmp_path):
    """To the bit, in every stage; and after a step losses, weights and averages but for rounding of the norm."""
    (code, said), _ = together(2, "families", tmp_path)
    assert code == 0, said
    found = json.loads((tmp_path / "families.json").read_text())
    assert {name.split()[0] for name in found} == set(FAMILIES.names())
    for name, figures in found.items():
        assert figures["gradients"] == figures["losses"] == 0.0, (name, figures)
        assert max(figures.values()) < 1e-5, (name, figures)


def test_gradients_on_a_video_model_are_those_of_threads(together, tmp_path):
    """Of its own weights and of adapters, whose released weights are divided too, and do not learn."""
    pytest.importorskip("diffusers", reason="the extra `pretrained` is not installed")
    make_folder("wan", tmp_path / "wan")
    (code, said), _ = together(2, "video", tmp_path)
    assert code == 0, said
    for name, figures in json.loads((tmp_path / "video.json").read_text()).items():
        assert figures["losses"] == 0.0, (name, figures)
        assert max(figures.values()) < 1e-5, (name, figures)


def test_a_run_of_two_processes_stops_together_and_resumes_to_the_bit(together, whole_run, tmp_path):
    """A signal that one process alone gets: all save the same step, and go on from it as if nothing had been."""
    (tmp_path / "stop").write_text("5")
    first = together(2, "train", tmp_path)
    assert all("SIGTERM: stopped and saved at step 6 of 12" in said for _, said in first)
    (tmp_path / "stop").unlink()
    assert [code for code, _ in together(2, "train", tmp_path)] == [0, 0]
    assert same(state(tmp_path / "run"), state(whole_run))


def test_losses_of_a_run_are_those_of_one_process(whole_run, tmp_path):
    """One with two parts of each batch. They differ by the rounding of norms alone."""
    trainer(tmp_path / "run", SMALL).run()
    rows = [
        [json.loads(line) for line in (r / "metrics.jsonl").read_text().splitlines()]
        for r in (whole_run, tmp_path / "run")
    ]
    for ours, theirs in zip(*rows, strict=True):
        assert ours["step"] == theirs["step"] and ours.keys() == theirs.keys()
        for name in ("codec", "policy", "future", "action"):
            assert (name in ours) == (name in theirs)
            assert ours.get(name, 0.0) == pytest.approx(theirs.get(name, 0.0), rel=1e-4)


def test_a_mixture_is_divided_too(together, tmp_path):
    """Losses by data set are those of one process, with images that are augmented row by row."""
    for size in (1, 2):
        assert [code for code, _ in together(size, "mixed", tmp_path)] == [0] * size
    one, two = (
        [json.loads(line) for line in (tmp_path / f"of{size}/metrics.jsonl").read_text().splitlines()]
        for size in (1, 2)
    )
    for a, b in zip(one, two, strict=True):
        figures = [k for k in a if "/" in k]
        assert {"rows/labelled", "rows/action_free"} <= set(figures)
        assert {k: b[k] for k in figures} == pytest.approx({k: a[k] for k in figures}, rel=1e-4)


def test_a_checkpoint_of_two_processes_is_read_by_one_and_by_four(together, whole_run, tmp_path):
    shutil.copytree(whole_run, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["processes"] == 2
    for size in (1, 2, 4):
        codes, said = zip(*together(size, "load", tmp_path), strict=True)
        assert set(codes) == {0}
        assert (f"trained by 2 processes so far, and is by {size} from here" in said[0]) == (size != 2)
    first, second, fourth = (load_file(tmp_path / f"of{size}.safetensors") for size in (1, 2, 4))
    assert same(second, fourth)
    saved = load_checkpoint(whole_run, training=True)
    for name, x in saved.model_state.items():
        assert torch.equal(first[f"model.{name}"], x) and torch.equal(second[f"model.{name}"], x)
    momenta = lambda f: sorted(float(x.sum()) for k, x in f.items() if k.endswith("momentum"))  # noqa: E731
    assert momenta(first) == pytest.approx(momenta(second)) and len(momenta(first)) > 4


def test_each_process_writes_its_part(whole_run):
    """Of all that training goes on from; the weights for inference are one file, as those of one process."""
    manifest = read_manifest(whole_run)
    parts = [manifest.path / name for name in manifest.parts]
    assert [p.parent.name for p in parts] == ["training", "training"]
    sizes = [p.stat().st_size for p in parts]
    assert 0.8 < sizes[0] / sizes[1] < 1.5  # what is not divided is the first one's
    assert json.loads((manifest.path / "manifest.json").read_text())["format_version"] == 2
    saved = load_checkpoint(whole_run, training=True)
    weights = load_file(manifest.path / "weights.safetensors")
    assert same(weights, saved.weights) and same({k: weights[k] for k in saved.ema_state}, saved.ema_state)
    assert manifest.layout() == {name: (x.dtype, x.shape) for name, x in saved.weights.items()}
    assert {p.stat().st_mode for p in parts} == {(manifest.path / "state.json").stat().st_mode}


def test_a_damaged_part_is_refused_by_all_processes(together, whole_run, tmp_path):
    """Each verifies some of the files; inference needs none of the parts."""
    shutil.copytree(whole_run, tmp_path / "run")
    manifest = read_manifest(tmp_path / "run")
    part = manifest.path / manifest.parts[1]
    good = part.read_bytes()
    part.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    for code, said in together(2, "load", tmp_path):
        assert code != 0 and f"{part} is damaged: its SHA-256 is not the one in manifest.json" in said
    assert load_checkpoint(tmp_path / "run").step == 12
    with pytest.raises(WamkitError, match="is damaged"):
        load_checkpoint(tmp_path / "run", training=True)
    part.unlink()
    with pytest.raises(WamkitError, match="the run answers without it, but cannot be trained on"):
        load_checkpoint(tmp_path / "run", training=True)
    part.write_bytes(good)
    (part.parent / "another.safetensors").write_bytes(good)  # which the manifest does not list
    assert load_checkpoint(tmp_path / "run", training=True).step == 12


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_of_one_process_ends_all_and_leaves_the_earlier_checkpoint(together, tmp_path, rank):
    (tmp_path / "full").write_text(str(rank))
    for code, said in together(2, "full", tmp_path):
        assert code != 0 and "CheckpointError: " in said and "File too large" in said
    assert load_checkpoint(tmp_path / "run", training=True).step == 6
    assert [p.name for p in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-00000006"]


def test_a_run_goes_from_one_process_to_two_and_back(together, tmp_path):
    """Moments of AdamW come from one memory layout into another and back, and are right in both."""
    for place, sizes in (("moved", (1, 2, 2, 1)), ("stayed", (1,))):
        (tmp_path / place).mkdir()
        if len(sizes) > 1:
            (tmp_path / place / "stop").touch()
        for size in sizes:
            codes, said = zip(*together(size, "further", tmp_path / place), strict=True)
            assert all(not code or "stopped and saved" in x for code, x in zip(codes, said, strict=True)), said
    moved, stayed = state(tmp_path / "moved" / "run"), state(tmp_path / "stayed" / "run")
    assert load_checkpoint(tmp_path / "moved" / "run").step == 12
    for name, x in stayed.items():
        torch.testing.assert_close(moved[name], x, rtol=1e-4, atol=2e-5)


def test_other_options_are_named_before_anything_is_read(together, whole_run, tmp_path):
    shutil.copytree(whole_run, tmp_path / "run")
    for code, said in together(2, "changed", tmp_path):
        assert code != 0 and "trained with another configuration (train.optimizer was muon, now adamw)" in said


def test_processes_that_do_not_share_a_folder_are_refused_at_once(together, tmp_path):
    began = time.monotonic()
    for code, said in together(2, "apart", tmp_path):
        assert code != 0 and "the process of rank 1 does not see" in said
    assert time.monotonic() - began < 60 and not list(tmp_path.glob("own*/checkpoints"))


def test_adapters_go_on_to_the_same_bits(together, tmp_path):
    """On released weights that are read in parts, also where a checkpoint has the rest; as one process learns them."""
    pytest.importorskip("peft", reason="the extra `pretrained` is not installed")
    make_folder("wan", tmp_path / "wan")
    fill(tmp_path / "data", 3)
    for size, place in ((1, "one"), (2, "two")):
        (tmp_path / "place").write_text(place)
        codes, said = zip(*together(size, "adapted", tmp_path), strict=True)
        assert set(codes) == {0}, said
    (tmp_path / "place").write_text("cut")
    (tmp_path / "stop").touch()
    assert "stopped and saved at step 3" in together(2, "adapted", tmp_path)[0][1]
    (tmp_path / "stop").unlink()
    assert [code for code, _ in together(2, "adapted", tmp_path)] == [0, 0]
    one, two, cut = (state(tmp_path / place) for place in ("one", "two", "cut"))
    assert same(two, cut) and any("lora_B" in name and x.abs().sum() > 0 for name, x in two.items())
    for name, x in one.items():
        torch.testing.assert_close(two[name], x, rtol=1e-3, atol=1e-4)


def test_replicas_learn_the_same(together, whole_run, tmp_path):
    """Each process with all weights, and activations that are computed again: only norms are rounded otherwise."""
    assert [code for code, _ in together(2, "replicated", tmp_path)] == [0, 0]
    a, b = state(whole_run), state(tmp_path / "run")
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-2, atol=1e-4)


def test_a_killed_process_ends_the_others_and_the_run_resumes_to_the_bit(together, tmp_path):
    """kill -9 of one process while both train."""
    assert [code for code, _ in together(2, "slowly", tmp_path)] == [0, 0]
    whole = state(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    numbers = together.start(2, "slowly", tmp_path)
    metrics = tmp_path / "run" / "checkpoints"
    deadline = time.monotonic() + 120
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(numbers[1], signal.SIGKILL)
    began = time.monotonic()
    together.ended()
    assert time.monotonic() - began < 90  # the other one noticed, and did not wait for its time-out
    assert [code for code, _ in together(2, "slowly", tmp_path)] == [0, 0]
    assert same(state(tmp_path / "run"), whole)


def test_processes_that_differ_are_refused(together, tmp_path):
    for code, said in together(2, "differ", tmp_path):
        assert code != 0 and "the processes of this training differ: rank 1 has configuration" in said
    assert all("fewer rows than the 2 processes" in said for _, said in together(2, "few", tmp_path))
    assert not (tmp_path / "run" / "config.json").exists()


def test_the_command_is_the_same_under_torchrun(tmp_path):
    """From a data set to a run that answers, by processes of which the first alone speaks."""
    fill(tmp_path / "data", 3)
    words = f"-m wamkit train --recipe bc --data {tmp_path / 'data'} --out {tmp_path / 'run'} --train.steps 4"
    words += " --train.batch-size 4 --model.width 32 --model.depth 2 --window.chunk 4 --window.frame-offsets 2 4"
    (code, said, error), (other, silence, problem) = commands(2, shlex.split(words))
    assert (code, other) == (0, 0), error + problem
    assert f"trained: {tmp_path / 'run'}" in said and silence == ""
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["processes"] == 2 and load_checkpoint(tmp_path / "run").step == 4


def test_a_device_that_no_process_can_take_is_refused(tmp_path, monkeypatch, capsys):
    fill(tmp_path / "data", 3)
    for name, value in environment(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    words = ["train", "--recipe", "bc", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    assert main([*words, "--train.device", "cuda:1"]) == 1
    assert "choose cpu, or cuda for a GPU a process" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main([*words, "--train.device", "cuda"]) == 1
        assert "needs GPUs and NCCL" in capsys.readouterr().err
    monkeypatch.delenv("MASTER_PORT")
    assert main(words) == 1
    assert "MASTER_PORT not: start the processes with torchrun" in capsys.readouterr().err


def test_a_checkpoint_of_one_process_is_read_by_two(together, tmp_path):
    """One with two threads, among which Muon's matrices are dealt: its momenta are all there, and divided."""
    assert together(1, "train", tmp_path)[0][0] == 0
    for size in (1, 2):
        codes, said = zip(*together(size, "load", tmp_path), strict=True)
        assert set(codes) == {0}, said
    one, two = (load_file(tmp_path / f"of{size}.safetensors") for size in (1, 2))
    for name in (n for n in one if n.startswith(("model.", "ema.", "0."))):
        assert torch.equal(one[name], two[name]), name
    momenta = lambda f: sorted(float(x.abs().sum()) for k, x in f.items() if k.endswith("momentum"))  # noqa: E731
    assert momenta(one) == pytest.approx(momenta(two)) and len(momenta(two)) > 4


@pytest.mark.parametrize("count", [1, 5, 8, 9])
def test_rows_are_divided_without_overlap_or_gap(count):
    for size in range(1, count + 1):
        parts = [list(range(count))[World(rank, size).rows(count)] for rank in range(size)]
        assert sum(parts, []) == list(range(count))
        assert [len(p) for p in parts] == [len(p) for p in torch.arange(count).tensor_split(size)]


def test_rows_of_a_batch_are_those_of_the_whole():
    """Images are augmented in a part as they are in the whole batch."""
    augment = Augment(shift=3, colour=0.3)
    windows = frames().windows(trainer(Path("unused")).model.spec, seed=4, batch_size=8, augment=augment)
    whole = windows.batch(3)
    for rows in (slice(0, 3), slice(3, 8)):
        part = windows.batch(3, rows)
        for name in ("obs", "future", "action", "proprio"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rows]), name
        assert part.text == whole.text[rows]
    assert MixedWindows.batch.__doc__ == type(windows).batch.__doc__


def test_states_of_an_optimiser_are_dealt_anew_to_other_shards():
    """Momenta follow their matrices, whatever number of shards they were divided into."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(*[torch.nn.Linear(6, n) for n in (6, 6, 6, 5, 6)])
    names = [n for n, p in net.named_parameters() if p.ndim == 2]
    one, two, three = (Optimizer(net, lr=0.1, weight_decay=0.0, matrices=names, shards=shards) for shards in (1, 2, 3))
    for i, p in enumerate(net.parameters()):
        p.grad = torch.full_like(p, i + 1.0)
    two.step(0.0)

    def momenta(optimizer: Optimizer) -> dict[int, float]:
        found = {}
        for part in optimizer.parts[1:]:
            found |= {id(p): float(s["momentum"].mean()) for p, s in part.state.items()}
        return found

    for other in (one, three):
        other.load_state_dict(two.state_dict())
        assert momenta(other) == momenta(two) and len(momenta(other)) == 5
    assert len(np.unique(list(momenta(two).values()))) == 5


def test_moments_take_the_layout_of_their_weights():
    """Divided weights are contiguous, and fused AdamW on a CPU computes nonsense where layouts differ."""

    def net(layout: torch.memory_format) -> torch.nn.Conv2d:
        torch.manual_seed(0)
        return torch.nn.Conv2d(3, 4, 3).to(memory_format=layout)

    def stepped(model: torch.nn.Conv2d, optimizer: Optimizer) -> torch.Tensor:
        for i, p in enumerate(model.parameters()):
            p.grad = torch.sin(torch.arange(p.numel()).float() + i).view(p.shape).clone()
        optimizer.step(0.1)
        return model.weight.detach().contiguous()

    flat, last = net(torch.contiguous_format), net(torch.channels_last)
    first, second = (Optimizer(m, lr=0.1, weight_decay=0.0) for m in (flat, last))
    stepped(flat, first)
    last.load_state_dict(flat.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    torch.testing.assert_close(stepped(flat, first), stepped(last, second), rtol=0, atol=1e-6)


@pytest.mark.parametrize("expert", [[True] * 3, [False] * 3, [True, False, False]])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.99])
def test_a_step_makes_as_many_passes_whatever_its_rows_are(expert, share):
    """Else processes would wait for one another: each pass gathers the weights of every block."""
    batch = frames().windows(trainer(Path("unused")).model.spec, seed=0, batch_size=3).batch(0)
    batch = dataclasses.replace(batch, is_demonstration=torch.tensor(expert))
    for rows in (batch, batch.rows(torch.tensor([0])), batch.rows(torch.tensor([2]))):
        passes = []

        def losses(part, generator, joint, passes=passes):
            passes.append(joint)
            return {"policy": torch.ones(len(part), requires_grad=True)}

        found = spare_joint(rows, share, torch.Generator().manual_seed(0), losses)
        assert sorted(passes) == [False, True] and len(found["policy"]) == len(rows)


def test_planned_frames_are_made_whatever_was_drawn(monkeypatch):
    """The inverse dynamics of `cascade_idm` makes a pass of the planner where no row draws one, too."""
    spec = trainer(Path("unused")).model.spec
    normalizer = Normalizer({k: (torch.zeros(2), torch.ones(2)) for k in ("proprio", "action")})
    for share in (0.0, 1.0):
        config = CascadeIDMConfig(width=32, depth=1, heads=2, on_decodes=share)
        model, passes = CascadeIDM(config, spec, normalizer), []
        monkeypatch.setattr(model.trunk, "forward", lambda *a, f=model.trunk.forward, p=passes: p.append(1) or f(*a))
        batch = frames().windows(spec, seed=0, batch_size=2).batch(0)
        model(batch, torch.Generator().manual_seed(0), "idm")
        assert len(passes) == 1 + config.decode_steps


def test_the_division_of_a_training_is_no_part_of_what_it_is(tmp_path):
    """A run goes on with activations that are computed again, and with other replicas."""
    trainer(tmp_path / "run", dataclasses.replace(SMALL, steps=8)).run()
    other = dataclasses.replace(SMALL, steps=8, checkpoint_activations=True, replicas=2)
    assert trainer(tmp_path / "run", other).folder.load().step == 8
