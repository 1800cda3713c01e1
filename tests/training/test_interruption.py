"""Signals and kills, in processes of their own."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from small_runs import same, state, train_thirty_steps

import warm
from wamkit.cli.browse import Browse
from wamkit.cli.main import main
from wamkit.runs.checkpoint import load_checkpoint
from wamkit.training.interruption import Interrupted, stop_signals


def launch(out: Path) -> BaseProcess:
    """A process that trains into `out`, with stderr in a file beside it."""
    return warm.launch(train_thirty_steps, out, out.with_name(f"{out.name}.err"))


def ended(process: BaseProcess) -> int | None:
    """Exit code of the process, once it has ended."""
    process.join(300)
    return process.exitcode


def wait_for_step(out: Path, process: BaseProcess) -> None:
    deadline = time.time() + 300
    while not list((out / "checkpoints").glob("step-*")) and process.is_alive() and time.time() < deadline:
        time.sleep(0.01)


def test_kill_9_and_again_gives_the_same_weights(tmp_path):
    assert ended(launch(tmp_path / "whole")) == 0
    rng, kills = np.random.default_rng(0), 0
    while True:
        process = launch(tmp_path / "killed")
        wait_for_step(tmp_path / "killed", process)
        time.sleep(float(rng.uniform(0, 0.4)))
        if kills == 2:
            assert ended(process) == 0
            break
        process.kill()
        ended(process)
        kills += 1
    assert same(state(tmp_path / "whole"), state(tmp_path / "killed"))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, name):
    out = tmp_path / "run"
    process = launch(out)
    wait_for_step(out, process)
    os.kill(process.pid, signal.Signals[name])
    if ended(process):  # it may have finished just before
        err = (tmp_path / "run.err").read_text()
        assert f"{name}: stopped and saved at step" in err and "the same command continues" in err
    assert load_checkpoint(out).step > 0


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_stopped_command_exits_as_a_process_that_the_signal_ended(monkeypatch, capsys, name, code):
    """Saved and stopped is not failed, which is 1."""

    def stopped(args: Browse) -> None:
        raise Interrupted(f"{name}: stopped and saved at step 3", name)

    monkeypatch.setattr("wamkit.cli.main.COMMANDS", {"browse": stopped})
    assert main(["browse", "data"]) == code
    assert f"wamkit browse: {name}: stopped and saved at step 3" in capsys.readouterr().err


def test_a_signal_that_is_ignored_stays_ignored():
    """As under nohup, which ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as stopped:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
        assert stopped == ["SIGTERM"]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_forked_process_does_not_run_the_handler_of_its_parent():
    told, tell = os.pipe()
    with stop_signals() as stopped:
        child = os.fork()
        if child == 0:
            os.write(tell, b"x")
            time.sleep(20)  # SIGTERM ends it
            os._exit(0)
        os.read(told, 1)  # Python drops signals that arrive while it forks
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM and not stopped
