"""The robot's loop: the right action at each step whatever the delay, limits, and what happens without answers."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

import numpy as np
import pytest
import wamkit_client
from servers import ask, serving
from wamkit_client import Chunks, Guard, Limits, Runner, Unsafe

H, SIZE = 8, 2
METADATA = {"wamkit": {"actions": {"shape": [H, SIZE], "low": [-1000, -1000], "high": [1000, 1000]}}}


class Stub:
    """A server that answers when it is let: action i of the answer to the observation of step q is (q + i, q)."""

    def __init__(self, metadata=METADATA):
        self.metadata, self.let, self.asked = metadata, threading.Semaphore(0), threading.Semaphore(0)
        self.broken: Exception | None = None
        self.connected = 0

    def infer(self, observation):
        self.asked.release()
        self.let.acquire()
        if self.broken is not None:
            raise self.broken
        q = observation["step"]
        return {"actions": np.array([[q + i, q] for i in range(H)], np.float32)}

    def connect(self, wait):
        self.connected, self.broken = self.connected + 1, None


class Loop:
    """A loop of 16 Hz in time that the test moves."""

    def __init__(self, **options):
        self.now, self.stub = 100.0, Stub(options.pop("metadata", METADATA))
        self.runner = Runner(self.stub, hz=16, clock=lambda: self.now, **options)
        self.k = -1

    def step(self, seconds=0.0625):
        self.now, self.k = self.now + seconds, self.k + 1
        return self.runner.step({"step": self.k})

    def answer(self):
        """Lets the query that is under way return, and waits until it has."""
        assert self.stub.asked.acquire(timeout=5)
        self.stub.let.release()
        until = time.monotonic() + 5
        while self.runner._busy and time.monotonic() < until:
            time.sleep(0.001)
        assert not self.runner._busy


def test_an_answer_is_taken_from_the_step_on_at_which_it_comes():
    """Delay of 3 steps: the first 3 actions of each chunk have passed and are never taken."""
    loop = Loop(first=np.array([-5.0, 7.0]), replan_every=4)
    for _ in range(3):
        assert loop.step().tolist() == [-5, 7]  # it stands where it was
    loop.answer()
    taken = [loop.step().tolist() for _ in range(3)]  # the next query begins at step 4
    loop.answer()
    taken += [loop.step().tolist() for _ in range(4)]
    assert taken == [[3, 0], [4, 0], [5, 0], [6, 4], [7, 4], [8, 4], [9, 4]]
    assert list(loop.runner.delays) == [3, 2]
    counts = loop.runner.counts
    assert (counts.steps, counts.held, counts.asked, counts.answered, counts.failed) == (10, 3, 3, 2, 0)
    loop.runner.close()


def test_joined_chunks_have_known_means():
    old, new = np.array([[0.0], [2.0], [4.0]]), np.array([[10.0], [12.0], [14.0]])
    ensemble = Chunks("ensemble", decay=0.5)
    ensemble.add(0, old), ensemble.add(1, new)
    weight = np.exp(-0.5)
    assert ensemble.at(1).tolist() == pytest.approx([(2 + weight * 10) / (1 + weight)])
    assert ensemble.at(3).tolist() == [14.0] and ensemble.left(3) == 1 and ensemble.at(4) is None
    switch = Chunks("switch")
    switch.add(1, new), switch.add(0, old)  # one that comes late is left out
    assert switch.at(0) is None and switch.at(1).tolist() == [10.0]


def test_without_answers_the_robot_stands_still_and_then_stops():
    stopped = []
    loop = Loop(stop_after=1.0, on_stop=stopped.append, replan_every=4)
    loop.step()
    loop.answer()
    moved = [loop.step().tolist() for _ in range(7)]
    assert moved[-1] == [7, 0]
    held = [loop.step().tolist() for _ in range(16)]  # one second
    assert held == [[7, 0]] * 16 and not stopped
    assert [loop.step().tolist() for _ in range(2)] == [[7, 0]] * 2
    assert stopped == ["no action for 1.1 s"] and loop.runner.stopped
    loop.answer()  # too late
    assert [loop.step().tolist() for _ in range(3)] == [[7, 0]] * 3 and len(stopped) == 1
    loop.runner.close()


def test_displacements_stand_still_at_zero():
    told = {"wamkit": {"actions": {**METADATA["wamkit"]["actions"], "still": [True, False]}}}
    loop = Loop(metadata=told, replan_every=8)
    loop.step()
    loop.answer()
    for _ in range(7):
        last = loop.step()
    assert last.tolist() == [7, 0]
    loop.stub.broken = RuntimeError
    assert loop.step().tolist() == [0, 0]
    loop.runner.close()


def test_plans_of_before_a_gap_are_dropped():
    """Also the answer that was under way; a clock that goes back counts as a gap."""
    for gap in (1.0, -3.0):
        loop = Loop(replan_every=2, first=np.zeros(SIZE))
        loop.step()
        loop.answer()
        assert loop.step().tolist() == [1, 0] and loop.step().tolist() == [2, 0]
        assert loop.step(gap).tolist() == [2, 0]
        loop.answer()  # asked at step 2
        assert loop.step().tolist() == [2, 0] and loop.runner.counts.gaps == 1
        loop.answer()
        assert loop.step().tolist() == [5, 4]
        loop.runner.close()


def test_actions_stay_within_limits():
    limits = Limits.of(
        {"wamkit": {"actions": {"shape": [4, 2], "low": [-1, -2], "high": [1, 2]}}}, high=[0.5, 9], rate=0.4, jerk=0.3
    )
    assert limits.low.tolist() == [-1, -2] and limits.high.tolist() == [0.5, 2]
    guard, path = Guard(limits, np.zeros(2)), []
    for _ in range(6):
        path.append(guard(np.array([9.0, 9.0])))
    x = np.array([np.zeros(2), *path])
    change = np.diff(x, axis=0)
    assert np.abs(change).max() <= 0.4 + 1e-6 and np.abs(np.diff(change[:, 1])).max() <= 0.3 + 1e-6
    assert x[-1].tolist() == pytest.approx([0.5, 0.3 + 5 * 0.4 - 0.3], abs=1e-5) and guard.limited == 6
    for bad, message in ((np.array([np.nan, 0]), "value 0 of an action is not finite"), (np.zeros(3), "shape")):
        with pytest.raises(Unsafe, match=message):
            guard(bad)
    for given, message in (
        ({"low": [3, 3]}, "is above high"),
        ({"rate": 0}, "rate: expected numbers above 0"),
        ({"low": [1]}, "low: expected 2"),
    ):
        with pytest.raises(ValueError, match=message):
            Limits.of({"wamkit": {"actions": {"shape": [4, 2], "high": [1, 1]}}}, **given)


def test_an_action_that_is_not_finite_stops_the_robot():
    stopped = []
    loop = Loop(on_stop=stopped.append, first=np.zeros(SIZE))
    loop.step()
    loop.runner._chunks.add(0, np.full((H, SIZE), np.nan, np.float32))
    assert loop.step().tolist() == [0, 0] and stopped == ["value 0 of an action is not finite"]
    loop.runner.close()


def test_the_loop_does_not_wait_for_a_slow_model(run, model, monkeypatch):
    """A model of 0.1 s in a loop of 50 Hz: every step returns at once, and no chunk is taken from its beginning."""
    generate = model.family.generate
    monkeypatch.setattr(model.family, "generate", lambda *args: time.sleep(0.1) or generate(*args))
    with serving(run, model) as server, wamkit_client.connect(server.url) as robot:
        with Runner(robot, hz=50, replan_every=4) as runner:
            took = []
            for _ in range(60):
                start = time.monotonic()
                action = runner.step(ask())
                took.append(time.monotonic() - start)
                assert action.shape == (4,)
                time.sleep(max(0.0, 0.02 - (time.monotonic() - start)))
        assert np.median(took) < 0.005 and max(took) < 0.1
        assert runner.counts.answered >= 2 and min(runner.delays) >= 5 and runner.counts.held < 30


def test_a_server_that_is_killed_is_found_again(run, model):
    """The arm stands still meanwhile, and no action of before is taken afterwards."""
    with ExitStack() as first:
        server = first.enter_context(serving(run, model))
        port, robot = server.port, wamkit_client.connect(server.url, timeout=5)
        runner = Runner(robot, hz=50, replan_every=4, stop_after=30)

        def steps(count):
            found = []
            for _ in range(count):
                found.append(runner.step(ask()))
                time.sleep(0.02)
            return np.array(found)

        steps(30)
        assert runner.counts.answered > 2
    held = steps(40)[-8:]
    assert (held == held[0]).all() and runner.counts.failed >= 1 and not runner.stopped
    with serving(run, model, port=port):
        began = time.monotonic()
        while runner.counts.reconnected == 0 and time.monotonic() - began < 5:
            steps(1)
        assert time.monotonic() - began < 1.5
        answered, moved = runner.counts.answered, steps(20)
        assert runner.counts.answered > answered and not (moved == held[0]).all()
        runner.close()
        robot.close()
