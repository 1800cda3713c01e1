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

    def ask(obs, seed, ahead):
        asked.append(seed)
        ask.ahead.append(ahead)
        q = ask.step
        return np.array([[q + i, q] for i in range(count)], np.float32)

    ask.ahead = []
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
    """Three steps of delay. Where the robot moved meanwhile, the first three of a chunk have passed; where it stood, as
    before the first answer and always in `wait`, none has."""
    found, session, _ = taken("switch", lambda seed, query: 3, 12)
    assert found == [[0, 0]] * 3 + [[0, 0], [1, 0], [2, 0], [3, 0], [7, 4], [8, 4], [9, 4], [10, 4], [11, 8]]
    assert session.stood == 3
    found, session, _ = taken("wait", lambda seed, query: 3, 14)
    chunk = [[0, 0], [1, 0], [2, 0], [3, 0]]
    assert found == [[0, 0]] * 3 + chunk + [[3, 0]] * 3 + [[7, 7], [8, 7], [9, 7], [10, 7]] and session.stood == 6
    found, _, _ = taken("ensemble", lambda seed, query: 2, 8)
    first, second = np.array([4, 0]), np.array([6, 4])
    assert found[5] == [3, 0]
    mean = (first + np.exp(-0.01) * second) / (1 + np.exp(-0.01))
    assert found[6] == pytest.approx(mean.tolist(), abs=1e-5)


def test_a_real_time_query_is_given_what_is_left_and_how_much_of_it_is_decided():
    ask, _ = chunks()
    delays = [2, 3, 1, 1]
    actor, session = Delayed(ask, lambda seed, query: delays[query], "rtc", 4, np.array([False, False])), Driving(3)
    for k in range(13):
        ask.step = k
        _, session = actor.act(NOW, session)
    assert ask.ahead[0] is None  # there is no chunk before the first
    told = [(a.actions[:, 0].tolist(), a.decided) for a in ask.ahead[1:]]
    assert told == [([2, 3, 4, 5, 6, 7], 2), ([8, 9, 10, 11], 3), ([12, 13, 14, 15], 3)]  # the longest of recent delays


def test_where_no_chunk_reaches_the_robot_stands_still():
    """A delay longer than the chunk: displacements are zero, targets stay, and what has passed is not taken."""
    found, session, _ = taken("switch", lambda seed, query: 10, 34, still=(True, False))
    chunk = [[k, 0] for k in range(8)]
    assert found[:30] == [[0, 0]] * 10 + chunk + [[0, 0]] * 12 and session.stood == 10 + 12
    assert found[30:] == [[20, 20], [21, 20], [22, 20], [23, 20]]  # that of step 10 had passed at step 20
    found, session, _ = taken("switch", lambda seed, query: 6, 12, replan_every=6, still=(True, False))
    assert found == [[0, 0]] * 6 + chunk[:6] and session.stood == 6


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


def test_a_family_that_cannot_run_in_real_time_says_so(tmp_path, capsys):
    run = untrained_run(tmp_path / "run", ["drawer-open-v3"], {"max_steps": 8}, "query_ar")
    command = ["drive", str(run), "--latency", "50", "--episodes", "1", "--processes", "1"]
    assert main([*command, "--loops", "rtc"]) == 1
    assert "does not denoise its actions, so 'rtc' cannot join its chunks: leave it out" in capsys.readouterr().err
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "'rtc' cannot join its chunks" in said and "ensemble      50 ms" in said and "rtc           50" not in said


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
    assert main([*command[:3], "100", "--loops", "rtc", "--episodes", "2", "--processes", "1"]) == 0
    (row,) = json.loads((run / "drive/summary.json").read_text())["rows"]
    assert row["loop"] == "rtc" and row["stood"] == pytest.approx(8 / 20) and row["seam"] >= 0
    capsys.readouterr()
    assert main(["drive", str(run), "--latency"]) == 1 and "name at least one delay" in capsys.readouterr().err
