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
from wamkit_client.protocol import pack
from websockets.sync.server import serve

H, SIZE = 8, 2
ACTIONS = {"shape": [H, SIZE], "low": [-1000, -1000], "high": [1000, 1000], "still": [False, False]}
METADATA = {"wamkit": {"actions": ACTIONS, "fps": 16}}


class Stub:
    """A server that answers when it is let: action i of the answer to the observation of step q is (q + i, q)."""

    def __init__(self, metadata=METADATA):
        self.metadata, self.let, self.asked = metadata, threading.Semaphore(0), threading.Semaphore(0)
        self.broken: Exception | None = None
        self.closed, self.url, self.executed, self.images = False, "here", [], []
        self.told = []

    def infer(self, observation):
        self.asked.release()
        self.let.acquire()
        if self.broken is not None:
            raise self.broken
        q = observation["step"]
        self.told.append(observation.get("wamkit", {}))
        self.executed.append(observation.get("wamkit", {}).get("executed"))
        self.images.append(observation.get("image", [0])[0])
        return {"actions": np.array([[q + i, q] for i in range(H)], np.float32)}

    def reconnect(self, wait):
        self.broken = None


class Loop:
    """A loop of 16 Hz in time that the test moves."""

    def __init__(self, **options):
        self.now, self.stub = 100.0, Stub(options.pop("metadata", METADATA))
        options.setdefault("first", np.zeros(SIZE))
        self.runner = Runner(self.stub, clock=lambda: self.now, **options)
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


def test_a_real_time_query_is_given_what_the_robot_will_do_meanwhile():
    loop = Loop(chunking="rtc", replan_every=4, metadata={"wamkit": METADATA["wamkit"] | {"ahead": {"learned": 0}}})
    for _ in range(3):
        loop.step()
    loop.answer()
    assert "ahead" not in loop.stub.told[0]
    for _ in range(2):  # the second query begins at step 4, when one action of the first chunk was taken
        loop.step()
    loop.answer()
    told = loop.stub.told[1]
    assert told["ahead"].tolist() == [[k, 0] for k in range(1, 8)] and told["decided"] == 3
    assert told["executed"] == 4  # what models with history count by
    loop.runner.close()


def test_an_answer_is_taken_from_the_step_on_at_which_it_comes():
    """Delays of 3 and 2 steps: where the robot moved meanwhile, as many actions have passed and are never taken."""
    loop = Loop(first=np.array([-5.0, 7.0]), replan_every=4)
    for _ in range(3):
        assert loop.step().tolist() == [-5, 7]  # it stands where it was
    loop.answer()
    taken = [loop.step().tolist() for _ in range(3)]  # the next query begins at step 4
    loop.answer()
    taken += [loop.step().tolist() for _ in range(4)]
    assert taken == [[0, 0], [1, 0], [2, 0], [6, 4], [7, 4], [8, 4], [9, 4]]
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
    moved = [loop.step().tolist() for _ in range(8)]
    assert moved[-1] == [7, 0]
    held = [loop.step().tolist() for _ in range(16)]  # one second
    assert held == [[7, 0]] * 16 and not stopped
    assert [loop.step().tolist() for _ in range(2)] == [[7, 0]] * 2
    assert stopped == ["no action for 1.1 s"] and loop.runner.stopped
    loop.answer()  # too late
    assert [loop.step().tolist() for _ in range(3)] == [[7, 0]] * 3 and len(stopped) == 1
    loop.runner.close()


def test_displacements_stand_still_at_zero():
    told = {"wamkit": {"actions": {**ACTIONS, "still": [True, False]}, "fps": 16}}
    loop = Loop(metadata=told, replan_every=8)
    loop.step()
    loop.answer()
    for _ in range(8):
        last = loop.step()
    assert last.tolist() == [7, 0]
    assert loop.step().tolist() == [0, 0]
    loop.runner.close()


def test_plans_of_before_a_gap_are_dropped():
    """Also the answer that was under way; a clock that goes back counts as a gap."""
    for gap in (1.0, -3.0):
        loop = Loop(replan_every=2, first=np.zeros(SIZE))
        loop.step()
        loop.answer()
        assert loop.step().tolist() == [0, 0] and loop.step().tolist() == [1, 0]
        assert loop.step(gap).tolist() == [1, 0]
        loop.answer()  # asked at step 2
        assert loop.step().tolist() == [1, 0] and loop.runner.counts.gaps == 1
        loop.answer()
        assert loop.step().tolist() == [4, 4]
        loop.runner.close()


def test_actions_stay_within_limits():
    told = {"wamkit": {"actions": {"shape": [4, 2], "low": [-1, -2], "high": [1, 2]}}}
    limits = Limits.of(told, high=[0.5, 9], rate=0.4, jerk=0.3)
    assert limits.low.tolist() == [-1, -2] and limits.high.tolist() == [0.5, 2] and limits.still is None
    for bad, message in ((np.array([np.nan, 0]), "value 0 of an action is not finite"), (np.zeros(3), "shape")):
        with pytest.raises(Unsafe, match=message):
            Guard(limits)(bad)
        with pytest.raises(Unsafe, match=message):
            Guard(limits, bad)
    for given, message in (
        ({"low": [3, 3]}, "is above high"),
        ({"rate": 0}, "rate: expected numbers above 0"),
        ({"low": [1]}, "low: expected 2"),
    ):
        with pytest.raises(ValueError, match=message):
            Limits.of({"wamkit": {"actions": {"shape": [4, 2], "high": [1, 1]}}}, **given)


@pytest.mark.parametrize(("rate", "jerk"), [(0.2, 0.02), (0.2, 0.1), (0.5, 0.3), (None, 0.05), (0.1, None)])
def test_a_target_is_reached_without_passing_it(rate, jerk):
    """Within the rate and the jerk at every step, up to the target, and it stays there; from outside the bounds too."""
    limits = Limits.of({}, low=[-1, -1], high=[1, 2], rate=rate and [rate] * 2, jerk=jerk and [jerk] * 2)
    guard, path = Guard(limits, np.array([0.0, 5.0])), [np.array([0.0, 5.0])]
    for _ in range(150):
        path.append(guard(np.array([9.0, -9.0])))
    x = np.array(path, np.float64)
    change = np.diff(x, axis=0)
    assert x[-1].tolist() == pytest.approx([1, -1], abs=1e-6)
    assert x[:, 0].max() <= 1 + 1e-6 and x[:, 1].min() >= -1 - 1e-6
    assert rate is None or np.abs(change).max() <= rate + 1e-6
    assert jerk is None or np.abs(np.diff(change, axis=0, prepend=np.zeros((1, 2)))).max() <= jerk + 1e-6


def test_standing_still_moves_nothing():
    """Neither into the bounds, which an arm may begin outside of, nor along a displacement that is never zero."""
    limits = Limits(np.array([0.05, 0.0]), np.array([1.0, 1.0]), np.array([0.1, 0.1]), None, np.array([True, False]))
    guard = Guard(limits, np.array([0.0, 5.0]))
    assert [guard.hold().tolist() for _ in range(3)] == [[0, 5]] * 3
    guard(np.array([1.0, 1.0]))
    assert guard.hold().tolist() == pytest.approx([0, 4.9])
    for unknown, message in ((Limits(), "give still="), (Limits(still=np.array([True, False])), "give first=")):
        with pytest.raises(Unsafe, match=message):
            Guard(unknown).hold()
    assert Guard(Limits(still=np.array([True, True]))).hold().tolist() == [0, 0]


def test_a_runner_asks_for_what_nothing_tells():
    for metadata, options, message in (
        ({}, {}, "give replan_every="),
        ({}, {"replan_every": 4}, "give hz="),
        ({}, {"replan_every": 4, "hz": 20}, r"give limits=Limits.of\(client.metadata, still="),
    ):
        with pytest.raises(ValueError, match=message):
            Runner(Stub(metadata), **options)
    loop = Loop(first=None)
    with pytest.raises(Unsafe, match="give first="):
        loop.step()
    loop.runner.close(0)


def test_the_server_is_told_what_was_executed_and_a_copy_of_what_was_seen():
    loop, seen = Loop(replan_every=3), {"step": 0, "image": np.zeros(3)}
    for k in range(8):
        seen["step"], seen["image"][:] = k, k  # the robot's own buffers
        loop.now += 0.0625
        loop.runner.step(seen)
        if k % 3 == 1:
            loop.answer()
    assert loop.stub.executed == [None, 3, 3] and loop.stub.images == [0, 3, 6]
    assert list(loop.runner.delays) == [2, 2]
    loop.runner.close()


def test_what_is_nested_is_copied_too():
    loop, image = Loop(replan_every=4), np.zeros(3)
    told = loop.stub
    told.infer = lambda seen: told.asked.release() or told.let.acquire() and told.images.append(seen["images"]["a"][0])
    loop.runner.step({"images": {"a": image}})
    image[:] = 7
    loop.answer()
    assert told.images == [0]
    loop.runner.close()


def test_a_loop_that_is_always_too_slow_stops_and_says_why():
    stopped = []
    loop = Loop(stop_after=2.0, on_stop=stopped.append)
    for _ in range(8):
        assert loop.step(0.5).tolist() == [0, 0]
        loop.answer() if loop.runner._busy else None
    (said,) = stopped
    assert said == "no action for 2.5 s: the loop takes 500 ms a step, not 62; give hz="
    loop.runner.close()


def test_what_the_server_said_is_the_reason_of_a_stop():
    stopped = []
    loop = Loop(stop_after=0.5, on_stop=stopped.append)
    loop.stub.broken = wamkit_client.ServerError("steps: expected a whole number from 1 to 100")
    for _ in range(12):
        loop.step()
        loop.answer() if loop.runner._busy else None
    assert stopped == ["no action for 0.6 s: the server said, steps: expected a whole number from 1 to 100"]
    loop.runner.close()


@pytest.mark.parametrize(
    ("told", "named"), [({"fps": 10}, "fps"), ({"actions": {**ACTIONS, "low": [0, 0]}}, "actions")]
)
def test_another_model_after_a_lost_connection_is_not_obeyed(told, named):
    stopped = []
    loop = Loop(on_stop=stopped.append)
    loop.step()
    loop.stub.broken = ConnectionError("lost")
    loop.stub.reconnect = lambda wait: setattr(loop.stub, "metadata", {"wamkit": METADATA["wamkit"] | told})
    loop.answer()
    assert loop.step().tolist() == [0, 0] and stopped == [f"here serves another model now: its {named} differ"]
    loop.runner.close()


def test_an_answer_of_another_size_is_none():
    loop = Loop(chunking="ensemble")
    loop.step()
    loop.stub.infer = lambda seen: {"actions": np.zeros((H, SIZE + 1))}
    loop.stub.let.release()
    while loop.runner._busy:
        time.sleep(0.001)
    loop.step()
    while loop.runner._busy:
        time.sleep(0.001)
    assert loop.runner.counts.failed >= 1 and loop.runner._said == "actions of shape (8, 3), not (steps, 2)"
    loop.runner.close()


def test_a_server_that_reads_nothing_does_not_hold_its_client():
    """Neither a query nor, from another thread, closing the connection."""
    over = threading.Event()

    def silent(connection):
        connection.send(pack(METADATA))
        over.wait(30)

    with serve(silent, "127.0.0.1", 0, compression=None, max_queue=1) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url, large = f"ws://127.0.0.1:{server.socket.getsockname()[1]}", {"image": np.zeros((4096, 4096), np.uint8)}
        try:
            robot = wamkit_client.connect(url, timeout=0.5, max_bytes=1 << 26)
            began = time.monotonic()
            with pytest.raises((TimeoutError, ConnectionError)):
                robot.infer(large)
            assert time.monotonic() - began < 5
            patient = wamkit_client.connect(url, timeout=20)
            lost = lambda: pytest.raises((ConnectionError, TimeoutError), patient.infer, large)  # noqa: E731
            asking = threading.Thread(target=lost, daemon=True)
            asking.start()
            while not patient._sending:
                time.sleep(0.01)
            time.sleep(0.2)
            began = time.monotonic()
            patient.close()
            asking.join(5)
            assert time.monotonic() - began < 3 and not asking.is_alive()
        finally:
            over.set()
            server.shutdown()


def test_no_proxy_is_asked(run, model, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving(run, model) as server, wamkit_client.connect(server.url) as robot:
        assert robot.infer(ask())["actions"].shape == (16, 4)
        with pytest.raises(
            wamkit_client.ServerError, match="takes .* bytes, the observation has .*: send smaller images"
        ):
            robot.infer({"image": np.zeros(17 << 20, np.uint8)})


def test_refusals_are_answered_with_patience():
    """A server that fails in any way is asked after 1, 2, 4, ... steps, and the thread lives on."""
    loop = Loop(replan_every=2)
    asked = []
    for k in range(16):
        loop.step()
        if loop.runner._busy:
            asked.append(k)
            loop.stub.broken = [ValueError("x"), KeyError("actions"), RuntimeError("overloaded")][len(asked) % 3]
            loop.answer()
    assert asked == [0, 1, 3, 7, 15] and loop.runner.counts.failed == 5
    loop.stub.broken = None
    while not loop.runner._busy:
        loop.step()
    loop.answer()
    assert loop.step().tolist() != [0, 0] and loop.runner.counts.answered == 1
    loop.runner.close()


def test_an_action_that_is_not_finite_stops_the_robot():
    stopped = []
    loop = Loop(on_stop=stopped.append, first=np.zeros(SIZE))
    loop.step()
    loop.runner._chunks.add(0, np.full((H, SIZE), np.nan, np.float32))
    assert loop.step().tolist() == [0, 0] and stopped == ["value 0 of an action is not finite"]
    loop.runner.close()


def test_the_loop_does_not_wait_for_a_slow_model(run, model, monkeypatch):
    """A model of 0.1 s in a loop of 50 Hz: every step returns at once."""
    generate = model.family.generate
    monkeypatch.setattr(model.family, "generate", lambda *args: time.sleep(0.1) or generate(*args))
    with serving(run, model) as server, wamkit_client.connect(server.url) as robot:
        limits = Limits.of(robot.metadata, still=[True] * 4)
        with Runner(robot, hz=50, replan_every=4, limits=limits) as runner:
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
        still = Limits.of(robot.metadata, still=[False] * 4)
        runner = Runner(robot, hz=50, replan_every=4, stop_after=30, limits=still, first=np.zeros(4))

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
