"""The trainer: exact resume, and refusals before any effect."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from small_runs import SMALL, SPEC, frames, same, small_model, state, trainer

from wamkit.config import ConfigError
from wamkit.families.bc import BCConfig
from wamkit.families.unified import UnifiedConfig
from wamkit.files import exclusive
from wamkit.inference.model import load
from wamkit.runs.checkpoint import load_checkpoint, save_checkpoint
from wamkit.runs.config import RunConfig
from wamkit.runs.provenance import Provenance
from wamkit.runs.run import build, find_device, run_to_dict
from wamkit.training.trainer import Trainer
from wamkit.types import WamkitError


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_is_deterministic_and_learns(tmp_path, optimizer):
    config = dataclasses.replace(SMALL, optimizer=optimizer, steps=40, save_every=40)
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
    """Stopped after every checkpoint in turn, in both stages: the final weights agree to the bit."""
    config = dataclasses.replace(SMALL, precision=precision)
    trainer(tmp_path / "whole", config).run()
    out = tmp_path / "parts"
    for _ in range(3):
        t = trainer(out, config)
        save, count = t._save, []

        def stop_after_one(*state, save=save, count=count):
            save(*state)
            count.append(1)
            raise KeyboardInterrupt

        t._save = stop_after_one
        with pytest.raises(KeyboardInterrupt):
            t.run()
    trainer(out, config).run()
    assert same(state(tmp_path / "whole"), state(out))
    steps = [json.loads(x)["step"] for x in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 13))


def test_steps_in_a_loop_of_the_callers_are_those_of_run(tmp_path):
    """The same bits, and a checkpoint wherever the caller asks for one."""
    trainer(tmp_path / "whole").run()
    for progress in trainer(tmp_path / "own").steps():
        if not progress.saved:
            progress.save()
        assert load_checkpoint(tmp_path / "own", training=True).step == progress.step
    assert progress.step == SMALL.steps
    assert same(state(tmp_path / "whole"), state(tmp_path / "own"))


def test_steps_that_are_not_asked_for_are_not_taken(tmp_path):
    """A loop that ends early lets go of the folder, and another goes on."""
    trainer(tmp_path / "whole").run()
    steps = trainer(tmp_path / "own").steps()
    next(steps)
    next(steps).save()
    with pytest.raises(WamkitError, match="own"), exclusive(tmp_path / "own"):
        pass
    steps.close()
    with exclusive(tmp_path / "own"):
        assert load_checkpoint(tmp_path / "own", training=True).step == 2
    trainer(tmp_path / "own").run()
    assert same(state(tmp_path / "whole"), state(tmp_path / "own"))


def test_a_finished_run_is_trained_further(tmp_path):
    """From the state that it ended with, over a schedule of its own; cut short, it goes on to the same bits."""
    more = dataclasses.replace(SMALL, steps=20)
    for name in ("whole", "parts"):
        trainer(tmp_path / name).run()
    assert same(state(tmp_path / "whole"), state(tmp_path / "parts"))
    first = state(tmp_path / "whole")
    trainer(tmp_path / "whole", more).run()
    out, (t, save) = tmp_path / "parts", (trainer(tmp_path / "parts", more), Trainer._save)

    def stop(*arguments):
        save(t, *arguments)
        raise KeyboardInterrupt

    t._save = stop
    with pytest.raises(KeyboardInterrupt):
        t.run()
    assert load_checkpoint(out).step == 16 and load_checkpoint(out).extra["began"] == 12
    trainer(out, more).run()
    assert same(state(tmp_path / "whole"), state(out)) and not same(first, state(out))
    rows = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    stages = [s.name for s in small_model().stages()]
    assert [r["step"] for r in rows] == list(range(1, 21)) and [rows[k]["stage"] for k in (12, 19)] == [
        stages[0],
        stages[-1],
    ]
    assert rows[11]["lr"] < 0.1 * SMALL.lr < rows[-3]["lr"]  # a cosine of its own, not the tail of a longer one


def test_training_further_needs_a_finished_run_and_more_steps(tmp_path):
    trainer(tmp_path).run()
    with pytest.raises(WamkitError, match=r"at step 12 of 12, so 8 steps are no further training"):
        trainer(tmp_path, dataclasses.replace(SMALL, steps=8)).run()
    with pytest.raises(WamkitError, match=r"train.lr was 0.005, now 1.0; train.steps was 12, now 20"):
        trainer(tmp_path, dataclasses.replace(SMALL, lr=1.0, steps=20)).run()
    (tmp_path / "checkpoints/latest").write_text("step-00000008\n")
    with pytest.raises(WamkitError, match=r"at step 8 of 12.*--train.steps 12 finishes it"):
        trainer(tmp_path, dataclasses.replace(SMALL, steps=20)).run()


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
        config = run_to_dict(run, SPEC, numbers, Provenance())
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


@pytest.mark.parametrize("name", ["nosuch", "meta", "", "cuda:99"])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(WamkitError, match=f"device '{name}' cannot be used here"):
        find_device(name)


def test_shifts_beyond_the_image_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="train.shift = 8: images are 16x16"):
        trainer(tmp_path, dataclasses.replace(SMALL, shift=8))


def test_a_wrong_loss_name_is_refused(tmp_path):
    with pytest.raises(WamkitError, match="did you mean 'policy'"):
        trainer(tmp_path, dataclasses.replace(SMALL, weights=(("polcy", 2.0),))).run()
