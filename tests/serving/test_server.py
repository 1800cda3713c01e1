"""The server over real sockets: equal to `wamkit.Policy`, apart from each other, and unmoved by what is malformed."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import wamkit_client
import websockets
import websockets.sync.client as websocket
from frames import MALFORMED
from servers import ask, serving
from wamkit_client.protocol import pack, unpack

from conftest import untrained_run
from wamkit.inference.model import load
from wamkit.inference.policy import Policy
from wamkit.inference.realtime import Ahead
from wamkit.metadata import DatasetMetadata, Field
from wamkit.nn.options import TargetConfig
from wamkit.nn.tokens import ngram_ids
from wamkit.serving.engine import Engine, Refused, Request
from wamkit.serving.inputs import Inputs
from wamkit.serving.latency import request
from wamkit.serving.server import example
from wamkit.serving.sessions import Sessions
from wamkit.types import ObservationError, Query, Sample, WamkitError


@pytest.fixture(scope="module")
def server(run, model):
    with serving(run, model) as server:
        yield server


@pytest.fixture
def robot(server):
    with wamkit_client.connect(server.url) as robot:
        yield robot


def get(server, path):
    with urllib.request.urlopen(server.url.replace("ws:", "http:") + path, timeout=10) as answer:
        return answer.read().decode()


def observed(request):
    return Inputs(("corner2",), (), 4, 4).observation(request)


def test_it_answers_what_a_policy_answers(server, robot, model):
    """The chunks of an episode, the noise of each query included; another instruction begins another episode."""
    policy, session = Policy(model, replan_every=1), None
    for k in range(3):
        answer = robot.infer(ask(k))
        _, session = policy.act(observed(ask(k)), session)
        assert np.array_equal(answer["actions"], session.chunk) and answer["actions"].dtype == np.float32
        assert answer["server_timing"]["infer_ms"] > 0 and set(answer) == {"actions", "server_timing"}
    _, first = policy.act(observed(ask(0)))
    for begins in ({"prompt": "close it"}, {"wamkit": {"reset": True}}, {"wamkit": {"session_id": "other"}}):
        _, new = policy.act(observed(ask(0, **{k: v for k, v in begins.items() if k == "prompt"})))
        assert np.array_equal(robot.infer(ask(0, **begins))["actions"], new.chunk)
        robot.infer(ask(0))
    with wamkit_client.connect(server.url) as another:
        assert np.array_equal(another.infer(ask(0))["actions"], first.chunk)


def test_other_queries_answer_as_the_model_does(robot, model):
    obs, actions = observed(ask()), np.random.default_rng(1).normal(0, 1, (16, 4)).astype(np.float32)
    joint = robot.infer(ask(wamkit={"query": "joint", "seed": 5, "steps": 2, "imagined": True}))
    expected = model.sample([obs], "joint", seed=[5], steps=2)
    assert np.array_equal(joint["actions"], expected.actions[0])
    assert np.array_equal(joint["future"], expected.future[0].transpose(0, 1, 3, 4, 2))
    assert "future" not in robot.infer(ask(wamkit={"query": "joint", "steps": 1}))
    forward = robot.infer(ask(wamkit={"query": "forward", "seed": 5, "steps": 2, "actions": actions}))
    expected = model.sample([obs], "forward", seed=[5], steps=2, actions=actions[None])
    assert np.array_equal(forward["future"], expected.future[0].transpose(0, 1, 3, 4, 2)) and "actions" not in forward
    inverse = robot.infer(ask(wamkit={"query": "inverse", "seed": 5, "steps": 2, "future": forward["future"]}))
    assert np.array_equal(
        inverse["actions"], model.sample([obs], "inverse", seed=[5], steps=2, future=expected.future).actions[0]
    )


def test_an_answer_goes_on_from_what_the_robot_does_meanwhile(robot, model):
    left = np.random.default_rng(1).normal(0, 1, (9, 4)).astype(np.float32)
    given = {"ahead": left, "decided": 3, "seed": 5, "steps": 2}
    found = robot.infer(ask(wamkit=given))["actions"]
    expected = model.sample([observed(ask())], "policy", seed=[5], steps=2, ahead=[Ahead(left, 3)])
    assert np.array_equal(found, expected.actions[0]) and np.array_equal(found[:3], left[:3])
    assert robot.metadata["wamkit"]["ahead"] == {"learned": 0}  # so it is guided
    without = robot.infer(ask(wamkit={"seed": 5, "steps": 2}))["actions"]
    assert not np.allclose(found[3:], without[3:], atol=1e-3)
    every = robot.infer(ask(wamkit=given | {"decided": 9}))["actions"]
    assert np.array_equal(every, robot.infer(ask(wamkit={k: v for k, v in given.items() if k != "decided"}))["actions"])


def test_a_family_that_cannot_go_on_from_given_actions_says_so(tmp_path):
    run = untrained_run(tmp_path / "run", ["drawer-open-v3"], {}, "query_ar")
    with serving(run, load(run), queries=(Query.POLICY,)) as server, wamkit_client.connect(server.url) as robot:
        assert robot.metadata["wamkit"]["ahead"] is None
        with pytest.raises(wamkit_client.ServerError, match="this 'query_ar' cannot go on from given actions"):
            robot.infer(ask(wamkit={"ahead": np.zeros((2, 4), np.float32)}))
        with pytest.raises(ValueError, match="chunking='rtc' needs: 'ensemble' joins the chunks of any model"):
            wamkit_client.Runner(robot, chunking="rtc", first=np.zeros(4))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"wamkit": {"decided": 2}}, "wamkit.decided: it says how many of `ahead` are decided, which is missing"),
        ({"wamkit": {"ahead": 3}}, "wamkit.ahead: expected an array, got a int"),
        ({"wamkit": {"ahead": np.zeros(4)}}, r"wamkit.ahead: expected float32 \(steps, 4\), got \(4,\)"),
        ({"wamkit": {"ahead": np.zeros((17, 4))}}, r"actions: expected float \(1 to 16, 4\), got float64 \(17, 4\)"),
        ({"wamkit": {"ahead": np.full((2, 4), np.inf)}}, "ahead: actions: not all values are finite"),
        ({"wamkit": {"ahead": np.zeros((2, 4)), "decided": 3}}, "decided: expected a whole number from 0 to 2"),
        ({"wamkit": {"ahead": np.zeros((0, 4))}}, r"expected float \(1 to 16, 4\)"),
        ({"wamkit": {"query": "inverse", "ahead": np.zeros((2, 4))}}, "future|takes no actions ahead"),
        ({"observation/images/corner2": None}, "observation/images/corner2 is missing"),
        ({"observation/state": np.zeros(3, np.float32)}, r"expected float32 \(4,\), got 3 values"),
        ({"observation/state": np.full(4, 1e30, np.float32)}, "are these the robot's units"),
        ({"wamkit": 3}, "wamkit: expected a mapping, got a int"),
        ({"wamkit": {"qurey": "joint"}}, "there is no option 'qurey'; there is query, seed"),
        ({"wamkit": {"query": "video"}}, "'video' is not served; served are policy, joint, forward, inverse"),
        ({"wamkit": {"query": "x" * 10**6}}, "wamkit.query: 'xxx"),
        ({"wamkit": {"query": "forward"}}, "the query 'forward' needs actions"),
        ({"wamkit": {"query": "policy", "actions": np.zeros((16, 4))}}, "the query 'policy' takes no actions"),
        ({"wamkit": {"query": "forward", "actions": np.zeros((15, 4))}}, r"expected finite float32 \(16, 4\)"),
        ({"wamkit": {"query": "inverse", "future": np.zeros((2, 1, 4, 4, 3))}}, "expected uint8"),
        ({"wamkit": {"steps": 0}}, "steps: expected a whole number from 1 to 100"),
        ({"wamkit": {"seed": -1}}, "seed: expected a whole number from 0"),
        ({"wamkit": {"seed": True}}, "seed: expected a whole number from 0"),
        ({"wamkit": {"deadline_ms": 0}}, "deadline_ms: expected milliseconds above 0"),
        ({"wamkit": {"deadline_ms": float("nan")}}, "deadline_ms: expected milliseconds above 0"),
        ({"wamkit": {"imagined": 1}}, "imagined: expected true or false, got a int"),
        ({"session_id": ""}, "session_id: expected a text of 1 to 200 characters"),
        ({"endpoint": np.zeros(2)}, "endpoint: expected 'infer' or 'reset'"),
        ({"endpoint": "kill"}, "endpoint: expected 'infer' or 'reset'"),
        ({"observation/state": np.full(4, 1e300)}, "value 0 is not finite"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(robot, changed, message):
    request = {k: v for k, v in ask(**changed).items() if v is not None}
    with pytest.raises(wamkit_client.ServerError, match=message) as caught:
        robot.infer(request)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 500
    assert robot.infer(ask())["actions"].shape == (16, 4)


def test_malformed_messages_are_refused_and_the_connection_goes_on(server, model):
    with websocket.connect(server.url, compression=None) as plain:
        assert "wamkit" in unpack(plain.recv())
        for name, message in [*MALFORMED.items(), ("a list", pack([1])), ("a text frame", "hello")]:
            plain.send(message)
            said = plain.recv(10)
            assert isinstance(said, str) and "\n" not in said and "Traceback" not in said, name
            plain.send(pack(ask()))
            assert unpack(plain.recv(10))["actions"].shape == (16, 4), name
        plain.send(bytes(server.options.max_bytes + 1))
        with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
            plain.recv(10)
    assert closed.value.rcvd.code == 1009
    with wamkit_client.connect(server.url) as robot:
        assert robot.infer(ask())["actions"].shape == (16, 4)


@pytest.mark.parametrize("max_batch", [1, 8])
def test_eight_robots_at_once_get_what_each_would_get_alone(run, model, max_batch):
    """To the bit where each is answered alone, and up to rounding in batches."""
    policy = Policy(model, replan_every=1)

    def alone(robot):
        session, chunks = None, []
        for k in range(4):
            _, session = policy.act(observed(ask(10 * robot + k)), session)
            chunks.append(session.chunk)
        return np.stack(chunks)

    def served(robot):
        with wamkit_client.connect(server.url) as client:
            start.wait()
            return np.stack([client.infer(ask(10 * robot + k))["actions"] for k in range(4)])

    start = threading.Barrier(8)
    with serving(run, model, max_batch=max_batch) as server, ThreadPoolExecutor(8) as pool:
        found = np.stack(list(pool.map(served, range(8))))
        rows = [line for line in get(server, "/metrics").splitlines() if line.startswith("wamkit_batch_rows")]
    expected = np.stack([alone(robot) for robot in range(8)])
    if max_batch == 1:
        assert np.array_equal(found, expected)
    else:
        assert np.abs(found - expected).max() < 1e-5
        requests, rows_of_all = (float(line.split()[1]) for line in rows if "_count" in line or "_sum" in line)
        assert requests == 32 and rows_of_all > 32


def test_health_and_others_do_not_wait_for_the_model(run, model, monkeypatch):
    generate, inside = model.family.generate, threading.Event()

    def slow(*args):
        inside.set()
        time.sleep(1.0)
        return generate(*args)

    monkeypatch.setattr(model.family, "generate", slow)
    with serving(run, model, max_pending=1) as server, ThreadPoolExecutor(2) as pool:
        robots = [wamkit_client.connect(server.url) for _ in range(3)]
        first = pool.submit(robots[0].infer, ask())
        assert inside.wait(10)
        start = time.monotonic()
        assert get(server, "/healthz") == "OK\n" and time.monotonic() - start < 0.5
        second = pool.submit(robots[1].infer, ask(wamkit={"deadline_ms": 100}))
        while server.engine.waiting < 1:
            time.sleep(0.01)
        with pytest.raises(wamkit_client.ServerError, match="overloaded: 1 requests wait already"):
            robots[2].infer(ask())
        with pytest.raises(wamkit_client.ServerError, match="the deadline passed before the request was computed"):
            second.result(10)
        assert first.result(10)["actions"].shape == (16, 4)
        assert 'outcome="refused"} 2.0' in get(server, "/metrics")
        for robot in robots:
            robot.close()


def test_a_newer_observation_takes_the_place_of_an_older_one(model):
    """Of the same robot, in the queue; one that is being computed is answered."""
    engine = Engine(model, max_batch=1)
    obs = observed(ask())
    with engine._change:  # nothing is taken out of the queue meanwhile
        engine._pending["a"] = older = Request("a", obs, Query.POLICY, 1)
        newer = threading.Thread(target=lambda: answers.append(engine.ask(Request("a", obs, Query.POLICY, 2))))
        answers: list = []
        newer.start()
        time.sleep(0.1)
    newer.join()
    with pytest.raises(Refused, match="a newer observation of this session came"):
        older.answer.result(10)
    expected = model.sample([obs], "policy", seed=[2]).actions[0]
    assert np.array_equal(answers[0].result(10).sample.actions, expected)
    engine.stop()
    with pytest.raises(Refused, match="the server is stopping"):
        engine.ask(Request("a", obs, Query.POLICY, 3))


def test_a_request_that_fails_does_not_take_others_with_it(model):
    engine = Engine(model)
    good, bad = observed(ask()), observed(ask())
    bad = type(bad)(bad.images, np.full(4, 1e30, np.float32), bad.text)
    with engine._change:
        requests = [Request(str(i), bad if i == 1 else good, Query.POLICY, i) for i in range(3)]
        engine._pending.update({r.session: r for r in requests})
        engine._change.notify()
    assert [r.answer.exception(10) is None for r in requests] == [True, False, True]
    engine.stop()


def test_an_answer_that_is_not_finite_is_not_sent(run, model, monkeypatch):
    def broken(*args):
        answer = generate(*args)
        return (answer[0] * float("nan"), *answer[1:])

    generate = model.family.generate
    monkeypatch.setattr(model.family, "generate", broken)
    with serving(run, model) as server, wamkit_client.connect(server.url) as robot:
        with pytest.raises(wamkit_client.ServerError, match="the query 'policy' of this 'unified': actions"):
            robot.infer(ask())
        assert 'outcome="not finite"} 1.0' in get(server, "/metrics")
        monkeypatch.setattr(model.family, "generate", generate)
        assert robot.infer(ask())["actions"].shape == (16, 4)


def test_a_fault_of_the_server_is_named_without_its_inside(run, model, monkeypatch):
    monkeypatch.setattr(model.family, "generate", lambda *args: 1 / 0)
    with serving(run, model) as server, wamkit_client.connect(server.url) as robot:
        with pytest.raises(wamkit_client.ServerError) as caught:
            robot.infer(ask())
    assert str(caught.value) == "the server failed (ZeroDivisionError); its log says more"


def test_tokens_connections_and_pages_are_checked(run, model):
    with serving(run, model, token="a" * 20, max_connections=2, origins=("https://lab.example",)) as server:
        for token in ("", "b" * 20):
            with pytest.raises(ConnectionError, match="HTTP 401"):
                wamkit_client.connect(server.url, token=token)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(server, "/metrics")
        assert get(server, "/healthz") == "OK\n"
        key = {"Authorization": "Api-Key " + "a" * 20}
        with pytest.raises(websockets.exceptions.InvalidStatus, match="403"):
            websocket.connect(server.url, additional_headers=key, origin="https://evil.example")
        with websocket.connect(server.url, additional_headers=key, origin="https://lab.example") as page:
            assert "wamkit" in unpack(page.recv())
        robots = [wamkit_client.connect(server.url, token="a" * 20, wait=5) for _ in range(2)]
        with pytest.raises(ConnectionError, match="HTTP 503"):
            wamkit_client.connect(server.url, token="a" * 20)
        robots[0].close()
        until = time.monotonic() + 5
        while server.connections > 1 and time.monotonic() < until:
            time.sleep(0.01)
        with wamkit_client.connect(server.url, token="a" * 20) as robot:
            assert robot.infer(ask())["actions"].shape == (16, 4)
        robots[1].close()


def test_sessions_are_a_connections_own(run, model):
    """Names of sessions reach no other client; one too many takes the place of the client's own oldest."""
    with serving(run, model, max_sessions=2) as server, wamkit_client.connect(server.url) as robot:
        first = robot.infer(ask(session_id="a"))["actions"]
        second = robot.infer(ask(session_id="a"))["actions"]
        assert not np.array_equal(first, second)
        with wamkit_client.connect(server.url) as other:
            assert np.array_equal(other.infer(ask(session_id="a"))["actions"], first)
            with wamkit_client.connect(server.url) as third:
                with pytest.raises(wamkit_client.ServerError, match="2 sessions are open already"):
                    third.infer(ask())
            assert np.array_equal(robot.infer(ask(session_id="b"))["actions"], first)  # in the place of its own "a"
            assert np.array_equal(robot.infer(ask(session_id="a"))["actions"], first)
            assert np.array_equal(other.infer(ask(session_id="a"))["actions"], second)
            server.sessions._clock = lambda: time.monotonic() + 2 * server.options.session_age
            robot.infer(ask(session_id=np.array([7], np.int32)))
            assert [name for _, name in server.sessions._sessions] == ["7"]
    with serving(run, model) as server:
        with wamkit_client.connect(server.url) as robot:
            for name in "abc":
                robot.infer(ask(session_id=name))
            assert len(server.sessions) == 3
        until = time.monotonic() + 5
        while len(server.sessions) and time.monotonic() < until:
            time.sleep(0.01)
        assert not len(server.sessions) and not server.connections


@pytest.mark.parametrize("memory", [False, True])
def test_a_model_with_history_is_shown_what_its_session_saw(tmp_path, memory):
    """At its own steps, whatever is refused in between, and whether or not requests wait for each other."""
    options = {"chunk_causal": True, "targets": TargetConfig(shared_level=True)} if memory else {}
    run = untrained_run(tmp_path / "run", ["drawer-open-v3"], {}, "unified", past_offsets=(-16, -8), **options)
    model = load(run)
    seen, expected = [observed(ask(k)) for k in range(4)], []
    for k in range(4):  # 8 steps pass between two queries
        past = (seen[k - 2] if k > 1 else None, seen[k - 1] if k else None)
        noise = int(np.random.SeedSequence((0, k)).generate_state(1, np.uint64)[0] >> 1)
        expected.append(model.sample(dataclasses.replace(seen[k], past=past), "policy", seed=[noise]).actions)
    with serving(run, model) as server:
        Engine(model).warm_up(example(server.inputs, model), Query.POLICY)
        with wamkit_client.connect(server.url) as robot:
            for k in range(4):
                with pytest.raises(wamkit_client.ServerError):
                    robot.infer(ask(k, wamkit={"executed": 8, "seed": -1}))
                answer = robot.infer(ask(k, wamkit={"executed": 8}))["actions"]
                assert np.abs(answer - expected[k]).max() < 1e-4
        with websocket.connect(server.url, compression=None) as plain:
            plain.recv()
            for k in range(2):
                plain.send(pack(ask(k)))
            for k in range(2):
                assert np.abs(unpack(plain.recv(10))["actions"] - expected[k]).max() < 1e-4


@pytest.mark.parametrize("query", list(Query))
def test_any_query_may_be_the_first_that_is_served(model, query):
    engine = Engine(model)
    assert engine.warm_up(example(Inputs(("corner2",), (), 4, 4), model), query) > 0
    engine.stop()


def test_a_robot_that_asks_between_steps_is_shown_what_was_seen_last_before():
    """As often as it likes: what it looks back at never begins anew in the middle of an episode."""
    sessions = Sessions((-16, -8), seed=0)
    session, sample = sessions.of("robot", "", "go"), Sample(Query.POLICY, None, None, None, ())
    found, seen = [], []
    for k, executed in enumerate((0, 8, 8, 9, 8, 3)):  # steps 0, 8, 16, 25, 33, 36
        step, obs = sessions.observed(session, observed(ask(k)), executed)
        found.append(
            [next((i for i, x in enumerate(seen) if x is p or p and p.images is x.images), None) for p in obs.past]
        )
        seen.append(obs)
        sessions.answered(session, step, obs, sample)
    assert found == [[None, None], [None, 0], [0, 1], [1, 2], [2, 3], [2, 3]] and len(session.seen) <= 4


def test_a_late_answer_is_an_error(run, model, monkeypatch):
    generate = model.family.generate
    monkeypatch.setattr(model.family, "generate", lambda *args: time.sleep(0.3) or generate(*args))
    with serving(run, model) as server, wamkit_client.connect(server.url) as robot:
        with pytest.raises(wamkit_client.ServerError, match="the deadline passed while the request was computed"):
            robot.infer(ask(wamkit={"deadline_ms": 100}))
        assert robot.infer(ask())["actions"].shape == (16, 4)


def test_what_a_model_is_warmed_up_with_is_near_what_it_learned_from(model, monkeypatch):
    """Zeros may lie far off: a joint held at 1.57, a state beyond 1e5."""
    normalizer = model.family.normalizer
    for name, mean, deviation in (
        ("proprio", [0.0, 2e5, 1.57, 0], [1, 1, 1e-5, 1]),
        ("action", [0, 3, 0, 0], [1, 1e-5, 1, 1]),
    ):
        monkeypatch.setitem(normalizer._buffers, f"mean_{name}", torch.tensor(mean))
        monkeypatch.setitem(normalizer._buffers, f"std_{name}", torch.tensor(deviation))
    state, chunk = model.usual()
    assert state.tolist() == pytest.approx([0, 2e5, 1.57, 0]) and chunk[7].tolist() == [0, 3, 0, 0]
    engine, inputs = Engine(model), Inputs(("corner2",), (), 4, 4)
    assert engine.warm_up(example(inputs, model), Query.FORWARD) > 0
    assert model.sample(inputs.read(request(inputs, model, (48, 64), 0)), "policy", seed=0).actions.shape == (16, 4)
    with pytest.raises(ObservationError, match="deviations from"):
        model.sample(observed(ask()), "policy", seed=0)
    engine.stop()


def test_texts_of_strangers_are_kept_for_a_while_alone():
    assert ngram_ids.cache_parameters()["maxsize"] <= 1024


def test_what_clients_asked_that_have_left_is_not_computed(run, model, monkeypatch):
    generate, inside, let, count = model.family.generate, threading.Event(), threading.Event(), []

    def slow(*args):
        count.append(1)
        inside.set()
        let.wait(10)
        return generate(*args)

    monkeypatch.setattr(model.family, "generate", slow)
    with serving(run, model, max_batch=1, max_pending=3) as server, ThreadPoolExecutor(2) as pool:
        busy = wamkit_client.connect(server.url)
        first = pool.submit(busy.infer, ask())
        assert inside.wait(10)
        for _ in range(3):
            with wamkit_client.connect(server.url, timeout=0.3) as robot:
                with pytest.raises(TimeoutError):
                    robot.infer(ask())
        with wamkit_client.connect(server.url) as robot:
            last = pool.submit(robot.infer, ask())
            time.sleep(0.3)
            let.set()
            assert last.result(10)["actions"].shape == first.result(10)["actions"].shape == (16, 4)
        assert len(count) == 2
        busy.close()


def test_requests_without_an_instruction_have_the_servers(run, model):
    with serving(run, model, prompt="open the drawer") as server, wamkit_client.connect(server.url) as robot:
        without = {k: v for k, v in ask().items() if k != "prompt"}
        first = robot.infer(without)["actions"]
        with wamkit_client.connect(server.url) as other:
            assert np.array_equal(other.infer(ask())["actions"], first)


def test_an_interrupted_client_takes_no_late_answer(server, monkeypatch):
    robot = wamkit_client.connect(server.url)
    receive = robot._socket.recv
    monkeypatch.setattr(robot._socket, "recv", lambda timeout: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        robot.infer(ask())
    assert receive and robot._socket is None
    robot.reconnect()
    assert robot.infer(ask())["actions"].shape == (16, 4)
    robot.close()
    with pytest.raises(ConnectionError, match="was closed"):
        robot.reconnect()


def test_roboarenas_dialect(run, model):
    state = "state=observation/joint_position,observation/gripper_position"
    keys = ("corner2=observation/exterior_image_0_left", state)
    joints = DatasetMetadata("here", "arm", action=(Field("arm", 0, 3, "joint"), Field("grip", 3, 4, "gripper")))
    with serving(run, model, keys=keys, dialect="roboarena", metadata=joints) as server:
        with websocket.connect(server.url, compression=None) as plain:
            told = unpack(plain.recv())
            assert told == {
                "image_resolution": [32, 32],
                "needs_wrist_camera": False,
                "n_external_cameras": 1,
                "needs_stereo_camera": False,
                "needs_session_id": True,
                "action_space": "joint_position",
            }
            request = {
                "endpoint": "infer",
                "session_id": "episode-1",
                "observation/exterior_image_0_left": np.zeros((32, 32, 3), np.uint8),
                "observation/joint_position": np.zeros(3),
                "observation/gripper_position": np.zeros(1),
                "prompt": "go",
            }
            answers = []
            for _ in range(2):
                plain.send(pack(request))
                answers.append(unpack(plain.recv(10)))
            assert answers[0].shape == (16, 4) and not np.array_equal(*answers)  # the second query has another noise
            plain.send(pack({"endpoint": "reset", "session_id": "episode-1"}))
            assert plain.recv(10) == "reset successful"
            plain.send(pack(request))
            assert np.array_equal(unpack(plain.recv(10)), answers[0])
            plain.send(pack({"endpoint": "reset"}))  # all of the connection's
            assert plain.recv(10) == "reset successful"
            plain.send(pack(request))
            assert np.array_equal(unpack(plain.recv(10)), answers[0])
    for fields, said in (
        ((), "these actions are not described"),
        ((Field("arm", 0, 4, "joint", "delta"),), "these actions are joint delta"),
    ):
        with pytest.raises(WamkitError, match=said):
            Inputs((), (), 4, 4, metadata=DatasetMetadata("here", "arm", action=fields)).action_space()


def test_what_waits_is_answered_when_the_server_stops(run, model, monkeypatch):
    generate, inside = model.family.generate, threading.Event()

    def slow(*args):
        inside.set()
        time.sleep(0.5)
        return generate(*args)

    monkeypatch.setattr(model.family, "generate", slow)
    with serving(run, model) as server, ThreadPoolExecutor(1) as pool:
        robot = wamkit_client.connect(server.url)
        answer = pool.submit(robot.infer, ask())
        assert inside.wait(10)
        server.end()
        assert answer.result(10)["actions"].shape == (16, 4)
        with pytest.raises((ConnectionError, wamkit_client.ServerError)):
            robot.infer(ask())
        with pytest.raises(ConnectionError, match=r"no server answers|refuses"):
            wamkit_client.connect(server.url)


def test_a_client_that_gives_up_takes_no_late_answer(run, model, monkeypatch):
    generate = model.family.generate
    monkeypatch.setattr(model.family, "generate", lambda *args: time.sleep(0.5) or generate(*args))
    with serving(run, model) as server:
        robot = wamkit_client.connect(server.url, timeout=0.1)
        with pytest.raises(TimeoutError, match="did not answer within 0.1 s"):
            robot.infer(ask())
        with pytest.raises(ConnectionError, match="call connect"):
            robot.infer(ask())
        monkeypatch.setattr(model.family, "generate", generate)
        robot.timeout = 10
        robot.connect(wait=5)
        assert robot.infer(ask())["actions"].shape == (16, 4)
        robot.close()


def test_the_command_serves_until_it_is_told_to_stop(run, tmp_path):
    """With a token and TLS, as an address needs that others reach. It ends with code 0."""
    token, cert, key = tmp_path / "token.txt", tmp_path / "cert.pem", tmp_path / "key.pem"
    token.write_text("0123456789abcdef0123\n")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        + ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
        check=True,
        capture_output=True,
    )
    command = [sys.executable, "-m", "wamkit", "serve", str(run), "--port", "0", "--host", "0.0.0.0"]
    command += ["--token-file", str(token), "--tls", str(cert), str(key), "--queries", "policy", "joint"]
    environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        try:
            said = []
            for line in process.stdout:
                said.append(line.strip())
                if line.startswith("serving at"):
                    break
            assert "observation/images/corner2: uint8 (any, any, 3)" in said
            assert said[-1].startswith("serving at wss://0.0.0.0:")
            url = f"wss://127.0.0.1:{said[-1].rpartition(':')[2]}"
            trusting = ssl.create_default_context(cafile=str(cert))
            with wamkit_client.connect(url, token="0123456789abcdef0123", tls=trusting, wait=10) as robot:
                assert robot.metadata["wamkit"]["queries"] == ["policy", "joint"]
                assert robot.metadata["wamkit"]["weights"] and robot.infer(ask())["actions"].shape == (16, 4)
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == 0
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "can be reached from other machines: name a file that holds a token, --token-file"),
        (["--token-file", "missing"], "missing cannot be read"),
        (["--token-file", "short"], "a token has 16 ASCII characters or more"),
        (["--tls", "short", "short"], "not a certificate and its key"),
        (["--queries", "plicy"], "there is no query 'plicy' (did you mean 'policy'?)"),
        (["--queries"], "name at least one query"),
        (["--keys", "corner=x", "state=y"], "there is no 'corner' (did you mean 'corner2'?)"),
        (["--port", "PORT"], "cannot listen on 127.0.0.1:"),
    ],
)
def test_bad_options_are_refused(run, tmp_path, monkeypatch, capsys, options, message):
    from wamkit.cli.main import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "short").write_text("abc")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", str(run), *(port if word == "PORT" else word for word in options)]) == 1
    said = capsys.readouterr().err
    assert message in said and len(said.strip().splitlines()) == 1


def test_the_log_is_one_line_of_json_an_event(server, robot, caplog):
    with caplog.at_level("INFO", "wamkit.serving"):
        with pytest.raises(wamkit_client.ServerError):
            robot.infer({})
        wamkit_client.connect(server.url).close()
    events = [json.loads(r.message) for r in caplog.records if r.name == "wamkit.serving"]
    assert {"request malformed", "connected"} <= {e["event"] for e in events}
    assert all("\n" not in r.message for r in caplog.records)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_a_client_of_another_language_gets_the_same_arrays(server):
    """Written from the protocol alone, in JavaScript."""
    file = Path(__file__).with_name("client.mjs")
    command = ["node", "--experimental-websocket", "--no-warnings", str(file), server.url, "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    image = (np.arange(48 * 64 * 3) * 7 % 256).astype(np.uint8).reshape(48, 64, 3)
    state = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    request = {**ask(), "observation/images/corner2": image, "observation/state": state}
    with wamkit_client.connect(server.url) as robot:
        expected = [robot.infer(request)["actions"] for _ in range(5)]
    assert all(a["shape"] == [16, 4] and a["dtype"] == "<f4" for a in answers)
    assert np.array_equal([np.float32(a["values"]).reshape(16, 4) for a in answers], expected)
