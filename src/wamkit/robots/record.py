"""Recording of a robot: a leader acts, an operator keeps, repeats or drops each episode by a key.

Images go to a file of raw frames while the robot moves, so that nothing is encoded meanwhile; they become videos when
the episode is kept. What was kept is safe: an episode is in the data set before the next one begins.
"""

from __future__ import annotations

import inspect
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from wamkit.config import Checked, Count, Positive, Rate
from wamkit.data.format.metadata_io import save_metadata
from wamkit.data.format.schema import Layout
from wamkit.data.format.stills import encode_camera
from wamkit.data.format.store import Store
from wamkit.data.importers.base import camera_facts, camera_layout
from wamkit.metadata import DatasetMetadata
from wamkit.robots.base import Features, Leader, Robot, RobotError, call
from wamkit.robots.keys import Keys, NoKeys
from wamkit.types import Episode

KEEP, REPEAT, DROP, STOP = "enter", "r", "d", "q"
"""Keys: begin or keep an episode; record it again; leave it out; end the session."""
HELP = "enter: begin, then keep   r: repeat   d: drop   q: end"
LATE = 0.05
"""Share by which steps may take longer than asked before the session says so."""


@dataclass(frozen=True)
class RecordConfig(Checked):
    """Options of a recording.

    texts: instructions, which episodes take in turn.   episodes: how many the data set shall hold.
    fps: steps a second.   seconds: longest episode.
    hands_free: begin and keep every episode without a key; it ends after `seconds`, or when the leader is done.
    demonstration: whether kept episodes show how the task is done, as those of a person do.
    """

    texts: tuple[str, ...]
    episodes: Count = 10
    fps: Rate = 30.0
    seconds: Positive = 60.0
    hands_free: bool = False
    demonstration: bool = True


@dataclass(frozen=True)
class Clock:
    """Time for the loop; tests bring their own."""

    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep


@dataclass
class _Take:
    """The steps of an episode that is being recorded. folder: of the raw frames."""

    folder: Path
    features: Features
    state: list[np.ndarray] = field(default_factory=list)
    action: list[np.ndarray] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    files: dict[str, BinaryIO] = field(default_factory=dict)

    def add(self, state: np.ndarray, images: Mapping[str, np.ndarray], action: np.ndarray, seconds: float) -> None:
        """One step."""
        for name, image in images.items():
            if name not in self.files:
                self.files[name] = (self.folder / f"{len(self.files)}.raw").open("wb")
            self.files[name].write(np.ascontiguousarray(image).data)
        self.state.append(state)
        self.action.append(action)
        self.times.append(seconds)

    def frames(self, camera: str) -> Iterator[np.ndarray]:
        """The images of a camera, one at a time."""
        self.files[camera].flush()
        shape = (*self.features.cameras[camera], 3)
        with Path(self.files[camera].name).open("rb") as file:
            for _ in self.action:
                yield np.frombuffer(file.read(math.prod(shape)), np.uint8).reshape(shape)

    def close(self) -> None:
        """Closes the files."""
        for file in self.files.values():
            file.close()


def record(
    robot: Robot,
    leader: Leader | Any,
    out: Path,
    config: RecordConfig,
    *,
    keys: Keys | None = None,
    say: Callable[[str], None] = print,
    clock: Clock = Clock(),  # noqa: B008 (frozen)
) -> Store:
    """Records until the data set in `out` holds `config.episodes`, or a key ends the session; returns the store.

    The same call continues. The robot and its leader are connected by the caller. A leader may have `begin`, which is
    called with the instruction of each episode, and `rest`, in place of leading between episodes.

    keys: of the operator; none with `hands_free`.   say: shows a line.

    Raises RobotError where the robot or its leader fails. The steps before that are stored, as an episode that shows
    what actions do rather than how the task is done. Raises StoreError where `out` holds other data.
    """
    features = Features.of(robot)
    keys = keys or NoKeys()
    store = _store(out, robot, features, config)
    session = _Session(robot, leader, features, config, keys, say, clock)
    if not config.hands_free:
        say(HELP)
    while len(store) < config.episodes:
        text = config.texts[len(store) % len(config.texts)]
        say(f"episode {len(store)}: {text}" + ("" if config.hands_free else "   (enter begins)"))
        if not config.hands_free and session.until((KEEP, STOP)) == STOP:
            break
        before = len(store)
        folder = Path(tempfile.mkdtemp(prefix=".recording-", dir=out))
        take = _Take(folder, features)
        try:
            if hasattr(leader, "begin"):
                leader.begin(text)
            try:
                decision = session.take(take)
            finally:
                if hasattr(leader, "rest"):
                    leader.rest()
            if decision == STOP:
                break
            if decision == KEEP and take.action:
                _append(store, take, text, config, config.demonstration)
                say(f"  kept: {len(take.action)} steps{_rate_note(take, config.fps)}")
            elif config.hands_free:
                raise RobotError("the leader was done before the first step, so there is nothing to keep")
            else:
                say("  again" if decision == REPEAT else "  dropped")
        except KeyboardInterrupt:
            if take.action and len(store) == before:  # else it is kept already
                _append(store, take, text, config, False)
                store.finalize()
                say(f"  interrupted: {len(take.action)} steps are kept, marked as no demonstration")
            raise
        except RobotError as error:
            if take.action:
                _append(store, take, text, config, False)
                store.finalize()
                raise RobotError(
                    f"{error}; the {len(take.action)} steps before are episode {len(store) - 1} of {out}, marked as no "
                    "demonstration; the same command continues"
                ) from error
            raise
        finally:
            take.close()
            shutil.rmtree(folder, ignore_errors=True)
    store.finalize()
    return store


@dataclass(frozen=True)
class _Session:
    robot: Robot
    leader: Any
    features: Features
    config: RecordConfig
    keys: Keys
    say: Callable[[str], None]
    clock: Clock

    def until(self, wanted: Sequence[str]) -> str:
        """Lets the leader move the robot, unrecorded, until one of the keys is typed; returns it. A leader with `rest`
        leaves it alone."""
        while True:
            began = self.clock.now()
            pressed = self._pressed()
            if found := next((k for k in pressed if k in wanted), ""):
                return found
            if hasattr(self.leader, "rest"):
                self.leader.rest()
            else:
                observation = call(self.robot, "get_observation")
                if (action := self._lead(observation)) is not None:
                    call(self.robot, "send_action", action)
            self.clock.sleep(max(0.0, began + 1 / self.config.fps - self.clock.now()))

    def take(self, take: _Take) -> str:
        """Records until a key, the longest time, or the leader ends the episode; returns the key that was meant."""
        began, period = self.clock.now(), 1 / self.config.fps
        due = began
        for _ in range(math.ceil(self.config.seconds * self.config.fps)):
            if found := next((k for k in self._pressed() if k in (KEEP, REPEAT, DROP, STOP)), ""):
                return found
            observation = call(self.robot, "get_observation")
            state, images = self.features.observed(observation)
            seconds = self.clock.now() - began
            if (action := self._lead(observation)) is None:
                break
            sent = call(self.robot, "send_action", action)
            take.add(state, images, self.features.vector(sent if isinstance(sent, Mapping) else action), seconds)
            # A step a little late makes the next one earlier; a robot that stalled does not catch up in a burst.
            due, now = due + period, self.clock.now()
            due = due if now < due + period / 2 else now
            self.clock.sleep(max(0.0, due - now))
        if self.config.hands_free:
            return KEEP
        self.say("  that was the longest time: enter keeps it")
        return self.until((KEEP, REPEAT, DROP, STOP))

    def _pressed(self) -> Sequence[str]:
        pressed = self.keys.pressed()
        if hasattr(self.leader, "type"):
            self.leader.type(pressed)
        return pressed

    def _lead(self, observation: Mapping[str, Any]) -> dict[str, float] | None:
        """The leader's action, by name; None where it is done."""
        takes = len(inspect.signature(self.leader.get_action).parameters)
        action = call(self.leader, "get_action", *([observation] if takes else []))
        return None if action is None else self.features.named(self.features.vector(action))


def _store(out: Path, robot: Robot, features: Features, config: RecordConfig) -> Store:
    name = str(getattr(robot, "name", type(robot).__name__))
    layout = Layout(
        **camera_layout(features.cameras),
        proprio_names=features.state,
        action_names=features.action,
        fps=config.fps,
        robot_type=name,
        expert=False,
        rewards=False,
        extras=(("clock", "float32", 1),),
    )
    fresh = not (out / "meta/info.json").exists()
    store = Store.open_or_create(out, **vars(layout))
    if fresh:
        cameras = camera_facts(features.cameras)
        save_metadata(out, DatasetMetadata("wamkit record", name, rate=config.fps, cameras=cameras))
    return store


def _append(store: Store, take: _Take, text: str, config: RecordConfig, demonstration: bool) -> None:
    T, layout = len(take.action), store.layout
    encoded = {c: encode_camera(take.frames(c), layout, c, T) for c in layout.cameras}
    action = np.stack(take.action)
    state = np.stack(take.state) if layout.proprio_names else np.zeros((T, 0), np.float32)
    episode = Episode(
        task=text,
        text=text,
        seed=-1,
        fps=config.fps,
        cameras=layout.cameras,
        images=None,
        proprio=state,
        action=action,
        action_expert=action,
        reward=np.zeros(T, np.float32),
        success=np.zeros(T, bool),
        is_demonstration=demonstration,
        extras={"clock": np.array(take.times, np.float32)[:, None]},
    )
    store.append(episode, encoded)


def _rate_note(take: _Take, fps: float) -> str:
    """What the session says where steps took longer than they should."""
    if len(take.times) < 2:
        return ""
    rate = (len(take.times) - 1) / (take.times[-1] - take.times[0])
    return "" if rate > fps * (1 - LATE) else f"; only {rate:.3g} steps a second instead of {fps:g}: lower --fps"
