"""Recording of robots: keys, images, faults of the robot, and the simulated arm of the examples."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from wamkit.cli.main import main
from wamkit.data.format.store import Store, StoreError
from wamkit.data.loading.dataset import open_frames
from wamkit.robots.base import Features, RobotError
from wamkit.robots.keys import _split
from wamkit.robots.leaders import Gamepad, Keyboard
from wamkit.robots.record import Clock, RecordConfig, record

ROOT = Path(__file__).parents[2]
CONFIG = RecordConfig(("push",), episodes=2, fps=10, seconds=1)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """`wamkit validate` writes its page into the current folder."""
    monkeypatch.chdir(tmp_path)


class Slide:
    """A cart on a rail that goes where it is told, seen by a camera as a bright column. Time passes with its steps."""

    name = "slide"
    observation_features = {"cart.pos": float, "speed": float, "rail": (32, 48, 3)}
    action_features = {"cart.pos": float}

    def __init__(self, fails_at: int = -1, lag: float = 0.0):
        self.at, self.asked, self.time, self.fails_at, self.lag = 0.0, 0, 0.0, fails_at, lag
        self.sent: list[float] = []

    def get_observation(self):
        self.asked += 1
        self.time += self.lag
        if self.asked == self.fails_at:
            raise OSError("the bus is gone")
        image = np.zeros((32, 48, 3), np.uint8)
        image[:, int(np.clip(self.at, 0, 47))] = 250
        return {"cart.pos": self.at, "speed": 0.5, "rail": image}

    def send_action(self, action):
        self.at = min(action["cart.pos"], 40.0)
        self.sent.append(self.at)
        return {"cart.pos": self.at}


class Right:
    """Goes one to the right at every call."""

    def __init__(self):
        self.at = 0.0

    def get_action(self):
        self.at += 1
        return {"cart.pos": self.at}


class Typed:
    """Types `keys[n]` at the n-th look; nothing where there is none."""

    def __init__(self, keys: dict[int, str]):
        self.keys, self.looks = keys, 0

    def pressed(self):
        self.looks += 1
        return [self.keys[self.looks]] if self.looks in self.keys else []


def clock_of(robot: Slide) -> Clock:
    def sleep(seconds: float) -> None:
        robot.time += seconds

    return Clock(lambda: robot.time, sleep)


def recorded(robot, out, config=CONFIG, keys=None, leader=None) -> tuple[Store, list[str]]:
    said: list[str] = []
    keys = None if keys is None else Typed(keys)
    store = record(robot, leader or Right(), out, config, keys=keys, say=said.append, clock=clock_of(robot))
    return store, said


def test_what_is_kept_is_what_was_seen_and_sent(tmp_path):
    robot = Slide()
    store, said = recorded(robot, tmp_path / "data", RecordConfig(("a", "b"), 3, 10, 1, hands_free=True))
    assert [m.length for m in store.episodes] == [10] * 3 and [m.text for m in store.episodes] == ["a", "b", "a"]
    columns = store.numeric()
    assert np.array_equal(columns["action"][:, 0], np.arange(1, 31))
    assert np.array_equal(columns["observation.state"][:, 0], np.arange(30)) and store.layout.robot_type == "slide"
    assert store.layout.proprio_names == ("cart.pos", "speed") and store.layout.action_names == ("cart.pos",)
    frames = open_frames(store, (32, 48))[0]
    assert [int(np.asarray(frames.images[t])[0, 0, 16].argmax()) for t in (0, 7, 19)] == [0, 7, 19]
    assert "kept: 10 steps" in said[1] and "only" not in said[1]
    assert main(["validate", str(tmp_path / "data")]) == 0
    assert not list((tmp_path / "data").glob(".recording-*"))


def test_keys_begin_keep_repeat_drop_and_end(tmp_path):
    robot = Slide()
    # looks 1-3 wait, begin; 4-8 record, keep. begin, repeat. begin, drop. begin, record, end: not kept.
    keys = {3: "enter", 8: "enter", 10: "enter", 13: "r", 14: "enter", 17: "d", 18: "enter", 22: "q"}
    store, said = recorded(robot, tmp_path / "data", keys=keys)
    assert [m.length for m in store.episodes] == [4]
    assert [line.strip() for line in said if line.startswith("  ")] == ["kept: 4 steps", "again", "dropped"]
    assert len(robot.sent) > 4  # between episodes the leader moves it unrecorded
    # The same call goes on, and the clip that the robot reported is what is stored.
    robot.at = 39.0
    leader = Right()
    leader.at = 38.0
    store, _ = recorded(robot, tmp_path / "data", keys={1: "enter", 6: "enter"}, leader=leader)
    assert [m.length for m in store.episodes] == [4, 4]
    assert store.numeric()["action"][4:, 0].tolist() == [39, 40, 40, 40]


def test_a_robot_that_stalled_does_not_catch_up_in_a_burst(tmp_path):
    """Half a second at step 5 of 10 Hz: none of the steps that were missed is made up for."""
    robot, times = Slide(), []

    class Stalling(Right):
        def get_action(self):
            times.append(robot.time)
            if len(times) == 5:
                robot.time += 0.5
            return super().get_action()

    recorded(robot, tmp_path / "data", RecordConfig(("a",), 1, 10, 1, hands_free=True), leader=Stalling())
    gaps = np.diff(times)
    assert gaps[:4].tolist() == pytest.approx([0.1] * 4) and gaps[4] == pytest.approx(0.5)
    assert gaps[5:].tolist() == pytest.approx([0.1] * 4)


def test_an_interruption_keeps_what_was_recorded(tmp_path):
    class Interrupted(Right):
        def get_action(self):
            if self.at == 6:
                raise KeyboardInterrupt
            return super().get_action()

    with pytest.raises(KeyboardInterrupt):
        recorded(Slide(), tmp_path / "data", leader=Interrupted(), keys={1: "enter"})
    (kept,) = Store.open(tmp_path / "data").episodes
    assert kept.length == 6 and not kept.is_demonstration


def test_a_leader_is_told_when_episodes_begin_and_end(tmp_path):
    told = []

    class Told(Right):
        def begin(self, text):
            told.append(text)

        def rest(self):
            told.append("rest")

    robot = Slide()
    keys = {3: "enter", 8: "enter", 10: "q"}
    store, _ = recorded(robot, tmp_path / "data", leader=Told(), keys=keys)
    assert len(robot.sent) == 4 == store.frames  # between episodes it does not lead
    assert told == ["rest", "rest", "push", "rest", "rest"]


def test_the_longest_time_waits_for_a_key(tmp_path):
    keys = {1: "enter", 9: "x", 12: "enter"}
    store, said = recorded(Slide(), tmp_path / "data", RecordConfig(("a",), 1, 10, 0.5), keys)
    assert [m.length for m in store.episodes] == [5] and any("longest time" in line for line in said)


def test_a_robot_that_stops_answering_loses_nothing(tmp_path):
    config = RecordConfig(("push",), 3, 10, 1, hands_free=True)
    words = r"Slide.get_observation failed: the bus is gone; the 4 steps before are episode 1"
    with pytest.raises(RobotError, match=words):
        recorded(Slide(fails_at=15), tmp_path / "data", config)
    store = Store.open(tmp_path / "data")
    assert [(m.length, m.is_demonstration) for m in store.episodes] == [(10, True), (4, False)]
    assert main(["validate", str(tmp_path / "data")]) == 0
    assert len(recorded(Slide(), tmp_path / "data", config)[0]) == 3


def test_a_slow_robot_is_told_of_and_its_clock_is_kept(tmp_path):
    store, said = recorded(Slide(lag=0.2), tmp_path / "data", RecordConfig(("a",), 1, 10, 1, hands_free=True))
    assert "only 5 steps a second instead of 10: lower --fps" in said[1]
    assert store.layout.extras == (("clock", "float32", 1),)


def test_what_does_not_fit_is_refused_by_name(tmp_path):
    robot = Slide()
    recorded(robot, tmp_path / "data", RecordConfig(("a",), 1, 10, 1, hands_free=True))
    with pytest.raises(StoreError, match="fps"):
        recorded(Slide(), tmp_path / "data", RecordConfig(("a",), 2, 20, 1, hands_free=True))
    features = Features.of(robot)
    seen = robot.get_observation()
    for change, words in (
        ({"speed": float("nan")}, "speed = NaN"),
        ({"rail": np.zeros((8, 8, 3), np.uint8)}, r"camera rail gave uint8 \(8, 8, 3\) instead of uint8 \(32, 48, 3\)"),
    ):
        with pytest.raises(RobotError, match=words):
            features.observed(seen | change)
    with pytest.raises(RobotError, match=r"lacks 'cart.pos' \(did you mean 'cart_pos'\?\)"):
        features.vector({"cart_pos": 1.0})
    with pytest.raises(RobotError, match="has no observation_features"):
        Features.of(SimpleNamespace())
    with pytest.raises(RobotError, match="the leader was done before the first step"):
        done = SimpleNamespace(get_action=lambda: None)
        recorded(Slide(), tmp_path / "none", RecordConfig(("a",), 1, 10, 1, hands_free=True), leader=done)


def test_leaders_that_are_none(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))

    class Vector(Right):
        def get_action(self):
            return np.ones(1)

    with pytest.raises(RobotError, match="the action is ndarray instead of a dictionary of values by name"):
        recorded(Slide(), tmp_path / "data", RecordConfig(("a",), 1, 10, 1, hands_free=True), leader=Vector())
    arm = ["--robot", "examples.so101:SimulatedArm", "--text", "a", "--out", str(tmp_path / "none")]
    assert main(["record", *arm, "--leader-options", "speed=3"]) == 1
    assert "leader keyboard cannot be made" in capsys.readouterr().err
    sys.modules.pop("examples.so101", None)


def test_keyboard_and_gamepad_move_what_they_should():
    assert list(_split("1\x1b[A\x1b[Dq\n\x1b")) == ["1", "up", "left", "q", "enter", "escape"]
    keyboard, seen = Keyboard(("a", "b"), step=2), {"a": 1.0, "b": 5.0}
    assert keyboard.get_action(seen) == seen
    keyboard.type(["up", "2", "down", "down", "z", "9"])
    assert keyboard.get_action({}) == {"a": 3.0, "b": 1.0}
    axes, buttons = [0.5, -0.1], [1, 0]
    stick = SimpleNamespace(get_axis=axes.__getitem__, get_numaxes=lambda: 2, get_button=buttons.__getitem__)
    pad = Gamepad(("a", "b"), speed=2, joystick=stick)
    assert pad.get_action(seen) == {"a": 2.0, "b": 7.0}  # an axis near its middle rests; button 0 moves the last


def test_the_simulated_arm_is_recorded_by_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    robot, size = ["record", "--robot", "examples.so101:SimulatedArm"], ["--robot-options", "height=32", "width=48"]
    rest = ["--leader", "examples.so101:Touch", "--text", "touch the block", "--out", str(tmp_path / "arm")]
    words = [*robot, *size, *rest]
    assert main([*words, "--episodes", "2"]) == 1  # no terminal here
    assert "take --hands-free" in capsys.readouterr().err
    short = ["--episodes", "2", "--hands-free", "--fps", "200", "--seconds", "1"]
    assert main([*words, *short]) == 0
    store = Store.open(tmp_path / "arm")
    assert len(store) == 2 and store.cameras == ("front", "wrist")
    assert store.layout.proprio_names[0] == "shoulder_pan.pos"
    assert all(5 < m.length < 150 for m in store.episodes)  # it touched the block, before the longest time
    assert main(["record", "--robot", "examples.so101:Arm", *rest, *short]) == 1
    assert "has no 'Arm'" in capsys.readouterr().err
    assert main([*robot, "--robot-options", "speed=1", *rest, *short]) == 1
    assert "cannot be made" in capsys.readouterr().err
    sys.modules.pop("examples.so101", None)
