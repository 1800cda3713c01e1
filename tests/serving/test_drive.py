"""Loops under a delay in simulated time: which action comes at which step, and success in a simulator."""

from __future__ import annotations

import json

import numpy as np
import pytest

from conftest import untrained_run
from wamkit.cli.main import main
from wamkit.metadata import DatasetMetadata, Field
from wamkit.serving.drive import Delay, Delayed, Driving, still_dimensions
from wamkit.types import Observation

NOW = Observation(None, np.zeros(1, np.float32), "go")


def chunks(count=8):
    """Action i of the answer to step q is (q + i, q); q is the number of `asked` entries' last."""
    asked = []

    def ask(obs, seed):
        asked.append(seed)
        q = ask.step
        return np.array([[q + i, q] for i in range(count)], np.float32)

    return ask, asked


def taken(loop, delay, steps, replan_every=4, still=(False, False)):
    ask, asked = chunks()
    actor, session, found = Delayed(ask, delay, loop, replan_every, np.array(still)), Driving(3), []
    for k in range(steps):
        ask.step = k
        before = len(asked)
        looks = actor.needs_images(session)
        action, session = actor.act(NOW, session)
        assert looks == (len(asked) > before)
        found.append(action.tolist())
    return found, session, asked


def test_without_delay_all_loops_act_as_a_policy_does():
    for loop in ("wait", "switch"):
        found, session, asked = taken(loop, lambda seed, query: 0, 9)
        assert found == [[k, k // 4 * 4] for k in range(9)] and session.stood == 0 and len(set(asked)) == 3
    noise = [int(np.random.SeedSequence((3, k)).generate_state(1, np.uint64)[0] >> 1) for k in range(3)]
    assert asked == noise  # that of `wamkit.Policy`


def test_an_answer_is_taken_from_when_it_comes():
    """Three steps of delay. `switch` has skipped the first three of each chunk, `wait` has stood and begins at 0."""
    found, session, _ = taken("switch", lambda seed, query: 3, 12)
    assert found == [[0, 0]] * 3 + [[3, 0], [4, 0], [5, 0], [6, 0], [7, 4], [8, 4], [9, 4], [10, 4], [11, 8]]
    assert session.stood == 3
    found, session, _ = taken("wait", lambda seed, query: 3, 14)
    chunk = [[0, 0], [1, 0], [2, 0], [3, 0]]
    assert found == [[0, 0]] * 3 + chunk + [[3, 0]] * 3 + [[7, 7], [8, 7], [9, 7], [10, 7]] and session.stood == 6
    found, _, _ = taken("ensemble", lambda seed, query: 2, 8)
    first, second = np.array([6, 0]), np.array([6, 4])
    assert found[5] == [5, 0]
    mean = (first + np.exp(-0.01) * second) / (1 + np.exp(-0.01))
    assert found[6] == pytest.approx(mean.tolist(), abs=1e-5)


def test_where_no_chunk_reaches_the_robot_stands_still():
    """A delay longer than the chunk: displacements are zero, targets stay."""
    found, session, _ = taken("switch", lambda seed, query: 10, 24, still=(True, False))
    assert found == [[0, 0]] * 24 and session.stood == 24
    found, session, _ = taken("switch", lambda seed, query: 6, 12, replan_every=6, still=(True, False))
    assert found == [[0, 0]] * 6 + [[6, 0], [7, 0]] + [[0, 0]] * 4 and session.stood == 10


def test_delays_are_whole_steps_and_the_same_every_time():
    assert [Delay(x).steps(20.0)(0, 0) for x in (0, 0.05, 0.051, 0.2)] == [0, 1, 2, 4]
    jittered = Delay(0.2, 0.1).steps(20.0)
    drawn = [jittered(s, q) for s in range(50) for q in range(20)]
    assert drawn == [Delay(0.2, 0.1).steps(20.0)(s, q) for s in range(50) for q in range(20)]
    assert min(drawn) >= 0 and 3.9 < np.mean(drawn) < 5.1 and 1.5 < np.std(drawn) < 2.5


def test_displacements_are_known_from_the_metadata():
    fields = Field("hand", 0, 2, "position", "delta"), Field("grip", 2, 3, "gripper")
    assert still_dimensions(DatasetMetadata("x", "arm", action=fields), 3).tolist() == [True, True, False]
    assert not still_dimensions(None, 3).any()


def test_the_command_compares_loops_and_continues(tmp_path, capsys):
    run = untrained_run(tmp_path / "run", ["drawer-open-v3"], {"height": 32, "width": 32, "max_steps": 20})
    command = ["drive", str(run), "--latency", "0", "100", "--loops", "wait", "switch", "--episodes", "2"]
    assert main([*command, "--processes", "1"]) == 0
    said = capsys.readouterr().out
    assert "wait           0 ms" in said and "switch       100 ms" in said
    summary = json.loads((run / "drive/summary.json").read_text())
    rows = {(r["loop"], r["latency_ms"]): r for r in summary["rows"]}
    assert rows["wait", 0]["stood"] == 0 and rows["wait", 0] == {**rows["switch", 0], "loop": "wait"}
    # 100 ms at 80 Hz are 8 steps: 8 of each 16 are stood through by the loop that waits, 8 of all 20 by the other.
    assert rows["wait", 100]["stood"] == pytest.approx(12 / 20) and rows["switch", 100]["stood"] == pytest.approx(
        8 / 20
    )
    parts = {p: p.stat().st_mtime_ns for p in (run / "drive/parts").iterdir()}
    assert main([*command, "--processes", "1"]) == 0 and len(parts) == 4
    assert parts == {p: p.stat().st_mtime_ns for p in (run / "drive/parts").iterdir()}
    capsys.readouterr()
    assert main(["drive", str(run), "--latency"]) == 1 and "name at least one of each" in capsys.readouterr().err
