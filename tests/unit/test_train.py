"""The trainer: exact resume, clean interruption, diagnosis, schedules, batches."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from wamkit.config import ConfigError
from wamkit.data.loading.augment import Augment
from wamkit.data.loading.windows import Frames, Prefetcher, Windows, observations
from wamkit.families.base import Stage
from wamkit.families.bc import BC, BCConfig
from wamkit.families.unified import Unified, UnifiedConfig
from wamkit.files import exclusive
from wamkit.inference.model import load
from wamkit.nn.normalizer import Normalizer
from wamkit.runs.checkpoint import load_checkpoint, save_checkpoint
from wamkit.runs.config import RunConfig, TrainConfig
from wamkit.runs.run import build, find_device, run_to_dict
from wamkit.training.optim import Optimizer, orthogonalise
from wamkit.training.schedule import learning_rate, stage_spans
from wamkit.training.trainer import FeatureCache, Trainer, TrainingDiverged, native_bf16, read_metrics
from wamkit.types import Spec, WamkitError

SPEC = Spec(cameras=("top",), height=16, width=16, proprio_dim=2, action_dim=2, chunk=4, frame_offsets=(2, 4))
SMALL = TrainConfig(steps=12, batch_size=8, threads=2, save_every=4, log_every=1, warmup=2, precision="fp32")


def frames(episodes: int = 4, length: int = 9, seed: int = 0) -> Frames:
    rng = np.random.default_rng(seed)
    n = episodes * length
    return Frames(
        images=rng.integers(0, 256, (n, 1, 3, 16, 16), np.uint8),
        proprio=rng.standard_normal((n, 2), np.float32),
        action=rng.standard_normal((n, 2), np.float32),
        action_expert=rng.standard_normal((n, 2), np.float32),
        episode=np.repeat(np.arange(episodes), length),
        text=tuple("open it" if e % 2 else "close it" for e in range(episodes)),
        is_demonstration=np.arange(episodes) != 1,
        has_action=np.ones(episodes, bool),
    )


def trainer(out: Path, config: TrainConfig = SMALL, family: str = "unified", data: Frames | None = None) -> Trainer:
    torch.manual_seed(config.seed)
    normalizer = Normalizer({k: (torch.zeros(2), torch.ones(2)) for k in ("proprio", "action")})
    cls, options = {"unified": (Unified, UnifiedConfig), "bc": (BC, BCConfig)}[family]
    model = cls(options(width=32, depth=1, heads=2), SPEC, normalizer)
    return Trainer(model, frames() if data is None else data, config, out, {"train": dataclasses.asdict(config)})


def state(out: Path) -> dict[str, torch.Tensor]:
    saved = load_checkpoint(out, training=True)
    return {**{f"w.{k}": v for k, v in saved.weights.items()}, **{f"m.{k}": v for k, v in saved.model_state.items()}}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_is_deterministic_and_learns(tmp_path, optimizer):
    config = dataclasses.replace(SMALL, optimizer=optimizer, steps=60, save_every=60)
    data = frames()
    data.action_expert[:] = 1.0
    for name in ("a", "b"):
        trainer(tmp_path / name, config, "bc", data).run()
    assert same(state(tmp_path / "a"), state(tmp_path / "b"))
    rows = [json.loads(x) for x in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    policy = [r["policy"] for r in rows if "policy" in r]
    assert np.mean(policy[-10:]) < 0.8 * np.mean(policy[:10])
    other = dataclasses.replace(config, seed=1)
    trainer(tmp_path / "c", other, "bc", data).run()
    assert not same(state(tmp_path / "a"), state(tmp_path / "c"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumed_equals_uninterrupted(tmp_path, precision):
    """Stopped after every checkpoint in turn, in the first stage and in the second: the final weights agree to the bit."""
    config = dataclasses.replace(SMALL, precision=precision)
    trainer(tmp_path / "whole", config).run()
    out = tmp_path / "parts"
    for _ in range(3):
        t = trainer(out, config)
        save, count = t._save, []

        def stop_after_one(save=save, count=count):
            save()
            count.append(1)
            raise KeyboardInterrupt

        t._save = stop_after_one
        with pytest.raises(KeyboardInterrupt):
            t.run()
    trainer(out, config).run()
    assert same(state(tmp_path / "whole"), state(out))
    steps = [json.loads(x)["step"] for x in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 13))


def test_in_bfloat16_threads_do_not_decide_the_result(tmp_path):
    """Six runs agree to the bit, though two threads share one process (autocast's cache once made them differ)."""
    config = dataclasses.replace(SMALL, precision="bf16", steps=6)
    runs = []
    for i in range(6):
        trainer(tmp_path / str(i), config).run()
        runs.append(state(tmp_path / str(i)))
    assert all(same(runs[0], other) for other in runs[1:])


def test_muon_dealt_to_three_hands_gives_what_one_gives():
    """How the matrices are dealt out to threads changes nothing; fp32 rounding of stacked products aside."""
    weights = []
    for threads in (1, 3):
        torch.manual_seed(0)
        model = torch.nn.Sequential(*(torch.nn.Linear(8, n, bias=False) for n in (8, 8, 32, 32, 8)))
        names = [n for n, _ in model.named_parameters()]
        optimizer = Optimizer(model, lr=0.1, weight_decay=0.0, matrices=names[:4], threads=threads)
        assert len(optimizer.parts) == 1 + threads
        for step in range(3):
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            optimizer.step(0.1)
        weights.append([p.detach().clone() for p in model.parameters()])
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b)


def test_orthogonalise_leaves_singular_vectors_and_evens_singular_values():
    g = torch.Generator().manual_seed(0)
    for shape in ((16, 64), (64, 16), (16, 16)):
        x = torch.randn(3, *shape, generator=g)
        u, _, vh = torch.linalg.svd(x, full_matrices=False)
        core = u.mT @ orthogonalise(x) @ vh.mT
        values = core.diagonal(dim1=-2, dim2=-1)
        torch.testing.assert_close(core, torch.diag_embed(values), atol=1e-3, rtol=0)
        assert values.max() < 1.25 and (values > 0.5).float().mean() > 0.9


SCRIPT = """
import sys, pathlib
sys.path.insert(0, {tests!r})
from test_train import trainer, SMALL
import dataclasses
trainer(pathlib.Path(sys.argv[1]), dataclasses.replace(SMALL, steps=60, save_every=5)).run()
"""


def launch(out: Path) -> subprocess.Popen:
    code = SCRIPT.format(tests=str(Path(__file__).parent))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), *sys.path]))}
    return subprocess.Popen([sys.executable, "-c", code, str(out)], env=env, stderr=subprocess.PIPE, text=True)


def wait_for_step(out: Path, process: subprocess.Popen) -> None:
    deadline = time.time() + 60
    while not list((out / "checkpoints").glob("step-*")) and process.poll() is None and time.time() < deadline:
        time.sleep(0.01)


def test_kill_9_and_again_gives_the_same_weights(tmp_path):
    assert launch(tmp_path / "whole").wait() == 0
    rng, kills = np.random.default_rng(0), 0
    while True:
        process = launch(tmp_path / "killed")
        wait_for_step(tmp_path / "killed", process)
        time.sleep(float(rng.uniform(0, 0.4)))
        if kills == 2:
            assert process.wait() == 0
            break
        process.kill()
        process.wait()
        kills += 1
    assert same(state(tmp_path / "whole"), state(tmp_path / "killed"))


def test_sigterm_saves_and_says_how_to_go_on(tmp_path):
    process = launch(tmp_path)
    wait_for_step(tmp_path, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    if process.returncode:  # it may have finished just before
        assert "SIGTERM: stopped and saved at step" in err and "the same command continues" in err
    assert load_checkpoint(tmp_path).step > 0


def test_another_configuration_is_refused(tmp_path):
    trainer(tmp_path).run()
    config = (tmp_path / "config.json").read_bytes()
    with pytest.raises(WamkitError, match=r"another configuration \(train.lr was 0.005, now 1.0\)"):
        trainer(tmp_path, dataclasses.replace(SMALL, lr=1.0)).run()
    assert (tmp_path / "config.json").read_bytes() == config  # a refused run leaves no trace


def test_a_lost_pointer_does_not_start_over(tmp_path):
    trainer(tmp_path).run()
    (tmp_path / "checkpoints" / "latest").unlink()
    again = trainer(tmp_path)
    again._resume()
    assert again.step == 12


def test_weights_of_other_sizes_or_families_are_named(tmp_path):
    numbers = {k: {"mean": [0.0, 0.0], "std": [1.0, 1.0]} for k in ("proprio", "action")}
    small, large = (RunConfig("bc", BCConfig(width=w, depth=1, heads=2)) for w in (32, 64))
    other = RunConfig("unified", UnifiedConfig(width=32, depth=1, heads=2))
    weights = build(small, SPEC, numbers).state_dict()
    for run in (large, other):
        parts = {"ema_state": None, "optimizer_state": {}, "rng_state": {}, "extra": {}}
        config = run_to_dict(run, SPEC, numbers)
        save_checkpoint(tmp_path / run.family, step=1, model_state=weights, config=config, **parts)
        with pytest.raises(WamkitError, match=f"does not hold what its configuration describes, a '{run.family}'"):
            load(tmp_path / run.family)


def test_one_trainer_a_run_folder(tmp_path):
    with exclusive(tmp_path), pytest.raises(WamkitError, match="another process is writing here"):
        trainer(tmp_path).run()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(WamkitError, match="could not write .*file.*choose another folder"):
            trainer(out).run()


def test_damaged_metrics_are_named_and_a_cut_last_line_is_dropped(tmp_path):
    trainer(tmp_path).run()
    path = tmp_path / "metrics.jsonl"
    rows = read_metrics(path)
    path.write_text("".join(line + "\n" for line, _ in rows) + '{"step": 13, "lo')
    assert read_metrics(path) == rows
    path.write_text("junk\n" + path.read_text())
    with pytest.raises(WamkitError, match="metrics.jsonl, line 1 is no row"):
        read_metrics(path)


@pytest.mark.parametrize("name", ["nosuch", "meta", "", "cuda:99"])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(WamkitError, match=f"device '{name}' cannot be used here"):
        find_device(name)


def test_shifts_beyond_the_picture_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="train.shift = 8: pictures are 16x16"):
        trainer(tmp_path, dataclasses.replace(SMALL, shift=8))


def test_divergence_stops_with_a_diagnosis(tmp_path):
    bad = frames()
    bad.action_expert[5] = np.nan
    with pytest.raises(TrainingDiverged, match=r"policy in rows .*not finite in \['action_expert'\]"):
        trainer(tmp_path, data=bad, family="bc").run()
    with pytest.raises(TrainingDiverged, match="data of this batch is finite"):
        t = trainer(tmp_path / "x", family="bc")
        with torch.no_grad():
            t.model.action.stream.head.weight.fill_(math.inf)
        t.run()


def test_a_wrong_loss_name_is_refused(tmp_path):
    with pytest.raises(WamkitError, match="did you mean 'policy'"):
        trainer(tmp_path, dataclasses.replace(SMALL, weights=(("polcy", 2.0),))).run()


def test_loss_weights_scale_gradients(tmp_path):
    t, u = trainer(tmp_path / "a"), trainer(tmp_path / "b", dataclasses.replace(SMALL, weights=(("codec", 3.0),)))
    stage = t.model.stages()[0]
    for x in (t, u):
        x.active = [p for n, p in x.model.named_parameters() if n.startswith(stage.prefixes)]
    batch = t.windows.batch(0)
    _, ga = t._gradients(batch, 0, stage, t.active, 8)
    _, gb = u._gradients(batch, 0, stage, u.active, 8)
    for a, b in zip(ga, gb, strict=True):
        torch.testing.assert_close(3 * a, b)


def test_stages_cover_all_steps():
    stages = (Stage("a", 1 / 3, ("",)), Stage("b", 1 / 3, ("",)), Stage("c", 1 / 3, ("",)))
    for steps in (1, 2, 7, 100):
        spans = stage_spans(stages, steps)
        assert [s for _, s, _ in spans] == [0, *(e for _, _, e in spans[:-1])] and spans[-1][2] == steps
    with pytest.raises(WamkitError, match="sum to 1"):
        stage_spans((Stage("a", 0.5, ("",)),), 10)


def test_learning_rate_warms_up_and_decays():
    config = TrainConfig(lr=2.0, warmup=10, final_lr=0.1)
    rates = [learning_rate(k, 100, 300, config) for k in range(100, 300)]
    assert rates[0] == pytest.approx(0.2, rel=1e-3) and max(rates) == pytest.approx(2.0, rel=0.02)
    assert rates[-1] == pytest.approx(0.2, rel=0.01) and all(
        a >= b for a, b in zip(rates[10:], rates[11:], strict=False)
    )


def test_precision_follows_the_processor():
    assert native_bf16("cuda") and isinstance(native_bf16("cpu"), bool)


# ------------------------------------------------------------------------------------------------------------------ loader


def test_windows_hold_what_they_say():
    f = frames(episodes=2, length=6)
    batch = Windows(f, SPEC, seed=0, batch_size=1).gather(np.array([0, 4, 5, 7]))
    assert torch.equal(batch.obs, torch.from_numpy(f.images[[0, 4, 5, 7]]))
    assert batch.frame_valid.tolist() == [[True, True], [False, False], [False, False], [True, True]]
    assert batch.action_valid.tolist() == [
        [True] * 4,
        [True, True, False, False],
        [True, False, False, False],
        [True] * 4,
    ]
    assert torch.equal(batch.future[0], torch.from_numpy(f.images[[2, 4]]))
    assert torch.equal(batch.action[1], torch.from_numpy(f.action[[4, 5, 5, 5]]))  # never from the next episode
    assert batch.is_demonstration.tolist() == [True, True, True, False] and batch.text[0] == "close it"


def test_the_past_ends_where_the_episode_began():
    f, spec = frames(episodes=2, length=6), dataclasses.replace(SPEC, past_offsets=(-3, -1))
    batch = Windows(f, spec, seed=0, batch_size=1).gather(np.array([6, 7, 10]))
    assert batch.past_valid.tolist() == [[False, False], [False, True], [True, True]]
    assert torch.equal(batch.past, torch.from_numpy(f.images[[[6, 6], [6, 6], [7, 9]]]))
    assert torch.equal(batch.past_proprio, torch.from_numpy(f.proprio[[[6, 6], [6, 6], [7, 9]]]))
    assert torch.equal(batch.obs, torch.from_numpy(f.images[[6, 7, 10]]))
    first, second, _ = observations(batch)
    assert first.past == (None, None) and np.array_equal(second.past[1].images, f.images[6])


def test_batches_are_a_function_of_seed_and_step():
    f = frames()
    a, b, c = (Windows(f, SPEC, seed=s, batch_size=5, augment=Augment(2, 0.3)) for s in (0, 0, 1))
    for k in (7, 0, 3):
        assert torch.equal(a.batch(k).obs, b.batch(k).obs)
    assert not np.array_equal(a.indices(3), c.indices(3))
    seen = np.concatenate([Windows(f, SPEC, seed=0, batch_size=9).indices(k) for k in range(4)])
    assert np.array_equal(np.sort(seen), np.arange(36))  # every frame once an epoch


def test_prefetcher_keeps_order_and_passes_errors_on():
    made = Prefetcher(lambda k: k * 10, 3, 6)
    assert [next(made) for _ in range(3)] == [30, 40, 50]
    made.close()

    def broken(k):
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        next(Prefetcher(broken, 0, 1))


def test_no_frames_is_an_error():
    empty = frames(episodes=1, length=1)
    empty = dataclasses.replace(empty, episode=empty.episode[:0])
    with pytest.raises(WamkitError, match="no frames"):
        Windows(empty, SPEC, seed=0, batch_size=1)


def test_features_are_computed_ahead_where_that_is_less_work(tmp_path):
    """Each window's row is what the family makes of that window alone; a short stage or moving pictures get none."""
    a = trainer(tmp_path / "a")
    stage = a.model.stages()[-1]
    a.prepare(stage, 12)
    assert len(a.windows.features["latents"]) == len(a.windows.frames)
    batch = a.windows.batch(3)
    alone = a.model.features(dataclasses.replace(batch, features={}), stage.name)["latents"]
    torch.testing.assert_close(batch.features["latents"], alone, rtol=1e-4, atol=1e-5)
    a.prepare(a.model.stages()[0], 12)
    assert a.windows.features == {}
    a.prepare(stage, 4)
    assert a.windows.features == {}, "36 windows, but only 32 rows to train on"
    moving = trainer(tmp_path / "b", dataclasses.replace(SMALL, shift=2))
    moving.prepare(stage, 12)
    assert moving.windows.features == {}


def test_features_are_kept_on_disk_for_the_next_run_with_the_same_encoder(tmp_path):
    """The same numbers as without; read rather than made where encoder and data are the same; made again where damaged."""
    plain = trainer(tmp_path / "plain")
    stage = plain.model.stages()[-1]
    plain.prepare(stage, 12)
    folder = tmp_path / "kept"

    def prepared(name, data="d", changed=False, limit=10**8, made=True):
        new = trainer(tmp_path / name)
        new.latents = FeatureCache(folder, data, limit)
        if changed:
            with torch.no_grad():
                for n, p in new.model.named_parameters():
                    if not n.startswith(stage.prefixes):
                        p.add_(torch.linspace(-0.1, 0.1, p.numel()).reshape(p.shape))
        calls = []
        features = new.model.features
        new.model.features = lambda *a: calls.append(a) or features(*a)
        new.prepare(stage, 12)
        assert (len(calls) > 1) == made, name  # one batch is always made, to know how large all would be
        return new.windows.features

    first = prepared("a")["latents"]
    assert isinstance(first, np.memmap) and np.array_equal(first, plain.windows.features["latents"])
    assert np.array_equal(prepared("b", made=False)["latents"], first)
    assert not np.array_equal(prepared("c", changed=True)["latents"], first)
    prepared("d", data="other")
    assert len(list(folder.iterdir())) == 3
    file = next(folder.glob("*/latents.npy"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    for path in folder.glob("*/latents.npy"):
        path.write_bytes(content)
    assert np.array_equal(prepared("e")["latents"], plain.windows.features["latents"])
    room = int(1.5 * sum(p.stat().st_size for p in file.parent.iterdir()))
    prepared("f", limit=room, made=False)
    assert len(list(folder.iterdir())) == 1  # what was used longest ago has gone
    assert prepared("g", limit=100)["latents"].base is None  # too large for the disk: in memory


def test_scaled_gradients_move_as_gradients_that_were_scaled():
    """Clipping on the optimiser's threads is clipping: the same bits, and `after` hears of all that moved."""
    weights, told = [], []
    for inside in (True, False):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8, 4))
        optimizer = Optimizer(net, lr=0.1, weight_decay=0.0, matrices=["0.weight"], threads=2)
        for _ in range(2):
            net(torch.ones(2, 3, 3, 3)).square().sum().backward()
            scale = torch.tensor(0.25)
            if not inside:
                torch._foreach_mul_([p.grad for p in net.parameters()], scale)
            optimizer.step(0.1, after=told.extend, scale=scale if inside else None)
            optimizer.zero_grad()
        weights.append([p.detach() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert len(told) == 2 * 2 * 4
