"""Signals and kills, in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from small_runs import same, state

from wamkit.runs.checkpoint import load_checkpoint

SCRIPT = """
import sys, pathlib
sys.path.insert(0, {tests!r})
from small_runs import SMALL, trainer
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
