"""A model that leads a robot: what it is asked with, what is sent, and what is recorded."""

from __future__ import annotations

import dataclasses
import sys
import time

import numpy as np
import pytest
import wamkit_client
from servers import serving

from wamkit.cli.main import main
from wamkit.data.format.store import Store
from wamkit.data.loading.dataset import open_frames
from wamkit.metadata import DatasetMetadata, Field
from wamkit.robots.base import RobotError
from wamkit.robots.record import RecordConfig, record
from wamkit.serving.on_robot import ModelLeader
from wamkit.types import Query, WamkitError

NAMES = ("x.pos", "y.pos", "z.pos", "spin.vel")


class Crane:
    """A hook that goes where it is told, seen by a camera as a bright square."""

    name = "crane"
    observation_features = {**dict.fromkeys(NAMES, float), "corner2": (40, 60, 3)}
    action_features = dict.fromkeys(NAMES, float)
    made: list[Crane] = []

    def __init__(self, fails_at: int = -1):
        self.at, self.sent, self.fails_at = dict.fromkeys(NAMES, 0.5), [], fails_at
        self.connections: list[str] = []
        Crane.made.append(self)

    def connect(self):
        self.connections.append("connected")

    def disconnect(self):
        self.connections.append("disconnected")

    def get_observation(self):
        if len(self.sent) == self.fails_at:
            raise OSError("the bus is gone")
        image = np.zeros((40, 60, 3), np.uint8)
        image[10:20, 10 + round(self.at["x.pos"]) :][:, :10] = 250
        return {**self.at, "corner2": image}

    def send_action(self, action):
        self.sent.append(dict(action))
        self.at = {n: float(np.clip(x, -2, 2)) for n, x in action.items()}
        return action


sys.modules.setdefault("crane_of_tests", sys.modules[__name__])


def drive(run, out, *options):
    return main(
        [
            *("drive", str(run), "--robot", "crane_of_tests:Crane", "--out", str(out), "--text", "lift it"),
            *("--hands-free", "--seconds", "2", "--fps", "10", "--episodes", "2", "--stop-after", "60", *options),
        ]
    )


def test_a_run_drives_a_robot_and_the_drive_is_a_data_set(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Crane.made.clear()
    assert drive(run, tmp_path / "driven", "--query", "joint", "--rate", "0.25") == 0
    assert "recorded: 2 episodes, 40 frames" in capsys.readouterr().out
    (crane,) = Crane.made
    assert crane.connections == ["connected", "disconnected"] and len(crane.sent) == 2 * (20 + 1)
    store = Store.open(tmp_path / "driven")
    assert store.cameras == ("corner2", "imagined_corner2") and store.layout.fps == 10
    assert [(m.text, m.is_demonstration) for m in store.episodes] == [("lift it", False)] * 2
    first = store.episode(0)
    sent = np.array([[a[n] for n in NAMES] for a in crane.sent], np.float32)
    assert np.array_equal(first.action, sent[:20]) and np.abs(np.diff(sent[:20], axis=0)).max() <= 0.2501
    assert sent[0].tolist() == [0.5, 0.5, 0.5, 0.0]  # until the first answer targets stay and velocities are zero
    assert first.images.shape[1] == 2 and first.images[:, 0].max() > 200
    assert first.images[0, 1].max() < 20 < first.images[-1, 1].max()  # black until something was imagined
    assert main(["validate", str(tmp_path / "driven")]) == 0
    frames, *_ = open_frames(tmp_path / "driven")  # a model may learn from it
    assert len(frames.proprio) == 40
    assert drive(run, tmp_path / "driven", "--query", "joint") == 0  # it holds as many episodes already
    assert len(Crane.made[-1].sent) == 0


def test_the_model_sees_what_the_robot_sees(run, model):
    asked = []

    class Listening(wamkit_client.Client):
        def infer(self, observation):
            answer = super().infer(observation)
            asked.append((observation, answer))
            return answer

    with serving(run, model) as server, Listening(server.url) as client:
        crane = Crane()
        leader = ModelLeader(client, crane, "lift it", hz=10, chunking="rtc", replan_every=4, stop_after=60)
        leader.begin("lift it higher")
        seen = crane.get_observation()
        until = time.monotonic() + 20
        while len(asked) < 3 and time.monotonic() < until:  # a busy machine may lose plans to a gap
            crane.send_action(leader.get_action(seen))
            time.sleep(0.1)
        leader.close()
    request, _ = asked[0]
    assert np.array_equal(request["observation/images/corner2"], seen["corner2"])
    assert request["observation/state"].tolist() == [0.5] * 4 and request["prompt"] == "lift it higher"
    assert request["wamkit"]["reset"] is True and "drive/step" not in request
    later = [r["wamkit"] for r, _ in asked[1:]]
    assert all("reset" not in told for told in later)
    (told,) = [t for t in later if "ahead" in t][:1]
    assert 1 <= len(told["ahead"]) <= 16 and told["ahead"].shape[1] == 4 and told["decided"] >= 1
    taken = [list(a.values()) for a in crane.sent]
    planned = [action for _, answer in asked for action in answer["actions"]]
    assert any(np.allclose(action, t, atol=1e-5) for action in planned for t in taken)


def test_what_does_not_fit_is_named_before_anything_moves(run, tmp_path, capsys):
    Crane.made.clear()
    for options, said in (
        (["--latency", "50"], "--latency is of a simulator"),
        (["--token-file", "x"], "--token-file is of a server, and"),
        (["--query", "forward"], "a robot acts on policy or joint"),
        (["--env", "metaworld"], "--env is of a simulator"),
        (["--robot-options", "colour=red"], "robot crane_of_tests:Crane cannot be made"),
    ):
        assert drive(run, tmp_path / "x", *options) == 1 and said in capsys.readouterr().err
    assert main(["drive", str(run), "--out", str(tmp_path / "x")]) == 1
    assert "--out is of a robot" in capsys.readouterr().err
    assert main(["drive", str(run), "--chunking", "rtc"]) == 1
    assert "--chunking is of a robot" in capsys.readouterr().err
    assert main(["drive", str(run), "--robot", "crane_of_tests:Crane", "--hands-free"]) == 1
    assert "say where to record to" in capsys.readouterr().err
    assert main(["drive", "ws://127.0.0.1:9", "--robot", "crane_of_tests:Crane", "--hands-free", "--text", "a",
                 "--out", str(tmp_path / "x")]) == 1  # fmt: skip
    assert "no server answers at ws://127.0.0.1:9" in capsys.readouterr().err
    assert all(not c.sent and "connected" not in c.connections for c in Crane.made) and not (tmp_path / "x").exists()


def test_a_robot_of_other_cameras_or_values_is_refused(run, model):
    with serving(run, model) as server, wamkit_client.connect(server.url) as client:
        blind = Crane()
        blind.observation_features = {**dict.fromkeys(NAMES, float), "top": (40, 60, 3)}
        with pytest.raises(WamkitError, match="the model sees the camera corner2; the robot's cameras: top"):
            ModelLeader(client, blind, "go", hz=20)
        short = Crane()
        short.action_features = {"x.pos": float}
        with pytest.raises(WamkitError, match="the model's action has 4 values, the robot's 1: x.pos"):
            ModelLeader(client, short, "go", hz=20)
        with pytest.raises(WamkitError, match="limits: rate: expected numbers above 0"):
            ModelLeader(client, Crane(), "go", hz=20, rate=-1.0)
        unseen = Crane()
        unseen.action_features = {f"{n}.target": float for n in "abcd"}
        with pytest.raises(WamkitError, match=r"does not tell where its target 'a.target' is"):
            ModelLeader(client, unseen, "go", hz=20)
    with serving(run, model, queries=(Query.POLICY,)) as server, wamkit_client.connect(server.url) as client:
        with pytest.raises(WamkitError, match="the server answers policy, not 'joint'"):
            ModelLeader(client, Crane(), "go", hz=20, query=Query.JOINT)
    with serving(run, model, keys=["corner2=images/top"]) as server, wamkit_client.connect(server.url) as client:
        with pytest.raises(WamkitError, match="the model sees the camera none"):
            ModelLeader(client, Crane(), "go", hz=20)
    with serving(run, model, keys=["state=joints"]) as server, wamkit_client.connect(server.url) as client:
        with pytest.raises(WamkitError, match="entries are not wamkit's own, but .*joints"):
            ModelLeader(client, Crane(), "go", hz=20)
    fields = [Field(n, i, i + 1, "joint") for i, n in enumerate(NAMES)]
    swapped = DatasetMetadata("x", "crane", state=(fields[1], fields[0], *fields[2:]))
    swapped = dataclasses.replace(swapped, state=tuple(
        dataclasses.replace(f, start=i, stop=i + 1) for i, f in enumerate(swapped.state)))  # fmt: skip
    with serving(run, model, metadata=swapped) as server, wamkit_client.connect(server.url) as client:
        with pytest.raises(
            WamkitError, match=r"the model's state is y.pos, x.pos, .*, the robot's in another order: x.pos"
        ):
            ModelLeader(client, Crane(), "go", hz=20)


def test_a_robot_that_fails_keeps_what_was_recorded(run, tmp_path, capsys):
    assert drive(run, tmp_path / "d", "--robot-options", "fails_at=7") == 1
    assert "Crane.get_observation failed: the bus is gone; the 7 steps before are episode 0" in capsys.readouterr().err
    assert Store.open(tmp_path / "d").frames == 7 and Crane.made[-1].connections[-1] == "disconnected"


def test_a_lost_server_stops_the_robot_and_the_recording_says_why(run, model, tmp_path):
    crane = Crane()
    with serving(run, model) as server:
        client = wamkit_client.connect(server.url)
    leader = ModelLeader(client, crane, "go", hz=20)
    with pytest.raises(RobotError, match=r"the robot was stopped: no action for 2\.. s; the 4. steps before"):
        record(crane, leader, tmp_path / "d", RecordConfig(("go",), fps=20, seconds=5, hands_free=True))
    leader.close()
    client.close()
    assert all(a == dict(zip(NAMES, (0.5, 0.5, 0.5, 0), strict=True)) for a in crane.sent)  # it stood still
    assert len(crane.sent) == 1 + Store.open(tmp_path / "d").frames


def test_between_episodes_the_model_leaves_the_robot_alone(run, model, tmp_path):
    crane, typed = Crane(), iter([(), (), ("enter",), *[()] * 5, ("enter",), (), ("q",)])

    class Keys:
        def pressed(self):
            return next(typed)

    with serving(run, model) as server, wamkit_client.connect(server.url) as client:
        leader = ModelLeader(client, crane, "go", hz=20)
        config = RecordConfig(("go",), fps=20, demonstration=False)
        store = record(crane, leader, tmp_path / "d", config, keys=Keys(), say=lambda line: None)
        leader.close()
    assert store.frames == 5 and len(crane.sent) == 6
    last, stop = crane.sent[-2:]
    assert stop == {**last, "spin.vel": 0.0}  # when the episode ended, its targets stayed and its velocity went


def asked_once(run, model, crane, seconds=20.0, **options):
    """A leader whose first answer has come, with what it sent then."""
    server = serving(run, model)
    url = server.__enter__().url
    client = wamkit_client.connect(url)
    leader = ModelLeader(client, crane, "go", hz=10, stop_after=60, **options)
    until = time.monotonic() + seconds
    while not (leader.runner and leader.runner.counts.answered) and time.monotonic() < until:
        crane.send_action(leader.get_action(crane.get_observation()))
        time.sleep(0.1)
    return server, client, leader


def test_an_action_that_stops_the_robot_leaves_it_standing(run, model):
    crane = Crane()
    server, client, leader = asked_once(run, model, crane)
    for _ in range(3):
        crane.send_action({**leader.get_action(crane.get_observation()), "spin.vel": 0.5})
    leader.runner.stop("a test")
    with pytest.raises(RobotError, match="the robot was stopped: a test"):
        leader.get_action(crane.get_observation())
    leader.rest()
    assert crane.sent[-1]["spin.vel"] == 0.0 and leader.runner is None
    leader.rest()  # once is enough
    sent = len(crane.sent)
    leader.close(), client.close(), server.__exit__(None, None, None)
    assert len(crane.sent) == sent


def test_an_episode_shows_nothing_that_the_one_before_imagined(run, model):
    crane = Crane()
    server, client, leader = asked_once(run, model, crane, query=Query.JOINT)
    assert set(leader.imagined()) == {"corner2"}
    leader.begin("go again")
    leader._step, leader.runner = 0, object()  # an episode whose first answer has not come
    assert leader.imagined() == {}
    leader.runner = None
    client.close(), server.__exit__(None, None, None)


def test_a_robot_stands_still_as_the_server_tells(run, model):
    deltas = Field("hand", 0, 3, "position", "delta"), Field("spin", 3, 4, "gripper", "absolute")
    told = DatasetMetadata("x", "crane", action=deltas)
    with serving(run, model, metadata=told) as server, wamkit_client.connect(server.url) as client:
        leader = ModelLeader(client, Crane(), "go", hz=10)
        assert leader._options["limits"].still.tolist() == [True] * 4  # three by the server, one by its name
        action = leader.get_action(Crane().get_observation())
        leader.close()
    assert set(action.values()) == {0.0}
