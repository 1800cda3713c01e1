"""`wamkit record`: episodes of a robot, led by a person or a program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from wamkit.cli.parse import COMMANDS, Options
from wamkit.config import Count, Positive, Rate


@dataclass(frozen=True)
class Record(Options):
    """Record episodes of a robot into a data set; the same command continues.

    The robot is any object with LeRobot's `get_observation` and `send_action`. Enter begins an episode and keeps it, r
    records it again, d leaves it out, q ends. In between, the leader moves the robot unrecorded.
    """

    _: KW_ONLY
    robot: str
    """The robot, as MODULE:CLASS."""
    out: Path
    """Folder of the data set."""
    text: tuple[str, ...]
    """Instruction; several are taken in turn."""
    leader: str = "keyboard"
    """Leader: keyboard, gamepad, or MODULE:CLASS with LeRobot's `get_action`. A class that takes an argument `robot` is
    given the robot."""
    episodes: Count = 10
    """Episodes that the data set shall hold."""
    fps: Rate = 30.0
    """Steps a second."""
    seconds: Positive = 60.0
    """Longest episode."""
    hands_free: bool = False
    """Begin and keep every episode without a key, for leaders that are programs."""
    robot_options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the robot's class, KEY=VALUE."""
    leader_options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the leader's class, KEY=VALUE."""


@COMMANDS.register("record")
def run(args: Record) -> None:
    """Connects, records, disconnects, and prints the size of the data set."""
    from contextlib import ExitStack

    from wamkit.errors import WamkitError
    from wamkit.files import check_place
    from wamkit.robots.base import Features, built, connected, make
    from wamkit.robots.keys import NoKeys, terminal_keys
    from wamkit.robots.leaders import Gamepad, Keyboard
    from wamkit.robots.record import RecordConfig, record

    if not args.text:
        raise WamkitError('say what the robot is told to do, --text "put the cube into the bowl"')
    check_place(args.out / "meta/info.json")
    config = RecordConfig(args.text, args.episodes, args.fps, args.seconds, args.hands_free)
    robot = make(args.robot, "robot", args.robot_options)
    own = {"keyboard": Keyboard, "gamepad": Gamepad}.get(args.leader)
    if own is not None:
        leader = built(own, f"leader {args.leader}", {**args.leader_options, "names": Features.of(robot).action})
    else:
        leader = make(args.leader, "leader", args.leader_options, robot)
    with terminal_keys() as keys:
        if not args.hands_free and isinstance(keys, NoKeys):
            raise WamkitError("standard input is no terminal, so no key can keep an episode: take --hands-free")
        with ExitStack() as stack:
            for part in (robot, leader):
                connected(part, "connect")
                stack.callback(connected, part, "disconnect")
            store = record(robot, leader, args.out, config, keys=keys)
    print(f"recorded: {len(store)} episodes, {store.frames} frames in {store.root}")
