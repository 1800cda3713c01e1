"""A robot's loop that never waits for its model: queries run in a thread while the arm moves.

The loop calls `step` once a period with what it observes and sends the action that it gets. Where an answer is late, or
the server is gone, the robot stands still, and after a while it stops for good; an action that was planned for another
step is never taken.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from wamkit_client.chunks import Chunks, Joining
from wamkit_client.client import Client
from wamkit_client.protocol import ProtocolError
from wamkit_client.safety import Guard, Limits, Unsafe

_LOG = logging.getLogger("wamkit_client")
RECENT = 5
"""Queries whose delays say how long the next one will take: one that took long is forgotten soon."""


@dataclass
class Counts:
    """What happened in a run.

    steps: calls of `Runner.step`.   held: steps at which the robot stood still for want of an action.
    asked, answered, failed: queries.   reconnected: times that the connection was made anew.
    gaps: times that the loop itself came late, after which all plans were dropped.
    limited: actions that the limits changed.
    """

    steps: int = 0
    held: int = 0
    asked: int = 0
    answered: int = 0
    failed: int = 0
    reconnected: int = 0
    gaps: int = 0
    limited: int = 0


class Runner:
    """Acts with the answers of `client`, a step a period.

    hz: steps a second; those of the data that the model learned from if not given.
    chunking: see `Chunks`. With "rtc" as many actions are decided as the longest of the last `RECENT` delays had steps.
    replan_every: steps between two queries, or more where the last one is not answered yet; half of a chunk if not
        given.
    limits: `Limits.of(client.metadata)` if not given.
    stop_after: seconds without an action after which the robot is stopped for good.
    on_stop: called once, with the reason, when it is.
    first: what was commanded before the first step: where the robot stands still until the first answer, and from where
        the rate is limited. It may be left out where all dimensions stand still at zero.
    clock: seconds, monotonic.

    Use it as a context manager, or call `close`.
    Raises ValueError where neither the server nor the arguments say what is needed, and Unsafe for a bad `first`.
    """

    def __init__(
        self,
        client: Client,
        *,
        hz: float | None = None,
        chunking: Joining = "switch",
        replan_every: int | None = None,
        limits: Limits | None = None,
        stop_after: float = 2.0,
        on_stop: Callable[[str], None] | None = None,
        first: np.ndarray | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        told = client.metadata.get("wamkit", {})
        shape, fps = told.get("actions", {}).get("shape"), told.get("fps")
        limits = limits or Limits.of(client.metadata)
        if chunking == "rtc" and not told.get("ahead"):
            raise ValueError(
                "the server's model cannot go on from given actions, which chunking='rtc' needs: 'ensemble' joins the "
                "chunks of any model"
            )
        if replan_every is None and shape is None:
            raise ValueError("the server does not tell the length of a chunk: give replan_every=")
        if hz is None and fps is None:
            raise ValueError("the server does not tell the rate of its data: give hz=")
        if limits.still is None:
            raise ValueError(
                "the server does not tell which dimensions of an action stand still at zero (displacements, "
                "velocities): give limits=Limits.of(client.metadata, still=[...])"
            )
        if hz is not None and fps is not None and abs(hz / fps - 1) > 0.01:
            _LOG.warning("acting at %g Hz, the data are of %g Hz: motions take %.2g times as long", hz, fps, fps / hz)
        self.client, self.stop_after, self.on_stop = client, stop_after, on_stop
        self.period = 1 / (hz or fps)
        """Seconds of a step."""
        self.replan_every = replan_every or max(1, shape[0] // 2)
        self.guard = Guard(limits, first)
        self.counts, self.stopped = Counts(), ""
        self.delays: deque[int] = deque(maxlen=RECENT)
        """Steps from observation to answer, of the last queries."""
        self._chunks, self._clock, self._counts_steps = Chunks(chunking), clock, bool(told)
        self._step, self._taken = -1, 0
        self._before: float | None = None
        self._acted: float | None = None
        self._asked, self._slow = 0, 0.0
        self._promised = _promised(client.metadata)
        self._size = shape[1] if shape else len(limits.still)
        # What follows is shared with the thread.
        self._change = threading.Condition()
        self._wanted: tuple[int, dict[str, Any]] | None = None
        self._came: deque[tuple[int, np.ndarray]] = deque()
        self._busy, self._closing, self._dropped = False, False, 0
        self._next, self._failures, self._wrong, self._said = 0, 0, "", ""
        self._answered: int | None = None
        self._thread = threading.Thread(target=self._run, name="wamkit-runner", daemon=True)
        self._thread.start()

    def step(self, observation: Mapping[str, Any]) -> np.ndarray:
        """The action for this step, float32 (a,). Returns at once.

        observation: what the server is asked with, if it is asked at this step. It is copied.
        Raises Unsafe before the first answer, where the robot is not known to stand still: see `first`.
        """
        now = self._clock()
        self._step += 1
        self.counts.steps += 1
        self._notice_gap(now)
        if self._wrong:
            self.stop(self._wrong)
        with self._change:
            while self._came:
                asked, actions = self._came.popleft()
                self.delays.append(self._step - asked)
                self._chunks.add(self._asked, actions)
            if not self._busy and self._step >= self._next and not self.stopped:
                copied = copy.deepcopy(dict(observation))
                left = self._chunks.ahead(self._taken) if self._chunks.joining == "rtc" else None
                if left is not None:
                    decided = min(len(left), max(self.delays, default=1))
                    copied["wamkit"] = {"ahead": left, "decided": decided, **dict(copied.get("wamkit", {}))}
                self._wanted, self._busy, self._next = (self._step, copied), True, self._step + self.replan_every
                self._asked = self._taken
                self.counts.asked += 1
                self._change.notify()
        action = None if self.stopped else self._chunks.at(self._taken)
        if action is not None:
            try:
                safe = self.guard(action)
                self.counts.limited, self._acted = self.guard.limited, now
                self._taken += 1
                return safe
            except Unsafe as error:
                self.stop(f"{error}")
        return self._hold(now)

    def stop(self, reason: str) -> None:
        """Stops the robot for good: `step` holds it from now on. Calls `on_stop` the first time."""
        if self.stopped:
            return
        self.stopped = reason
        self._chunks.clear()
        _LOG.error("stopped: %s", reason)
        if self.on_stop is not None:
            self.on_stop(reason)

    def close(self, seconds: float = 2.0) -> None:
        """Ends the thread, and waits for up to so many seconds for a query under way. The client stays open."""
        with self._change:
            self._closing = True
            self._change.notify()
        self._thread.join(seconds)

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _hold(self, now: float) -> np.ndarray:
        self.counts.held += 1
        if self._acted is None:
            self._acted = now
        elif now - self._acted > self.stop_after and not self.stopped:
            why = f": the server said, {self._said}" if self._said else ""
            if self._slow:
                why = f": the loop takes {1000 * self._slow:.0f} ms a step, not {1000 * self.period:.0f}; give hz="
            self.stop(f"no action for {now - self._acted:.1f} s{why}")
        return self.guard.hold()

    def _notice_gap(self, now: float) -> None:
        """Drops all plans where the loop, or the clock, was away: the world has moved on since."""
        took = self.period if self._before is None else now - self._before
        self._before = now
        if 0 <= took <= 5 * self.period:
            self._slow = 0.0
        else:
            self.counts.gaps += 1
            _LOG.warning("a gap of %.3f s between two steps: plans are dropped", took)
            self._chunks.clear()
            with self._change:
                self._came.clear()
                self._next = self._dropped = self._step
            if self._acted is not None and not self._slow:
                self._acted = now  # the server was not asked meanwhile
            self._slow = took

    def _run(self) -> None:
        """Asks, in a thread of its own; makes a lost connection anew."""
        while True:
            with self._change:
                while self._wanted is None and not self._closing:
                    self._change.wait()
                if self._wanted is None or self._closing:
                    return
                asked, observation = self._wanted
                self._wanted = None
            actions = self._answer(asked, observation)
            with self._change:
                self._busy = False
                if actions is None:
                    self._failures += 1
                    self._next = self._step + min(2 ** (self._failures - 1), 16)
                else:
                    self._failures = 0
                    if asked >= self._dropped:
                        self._came.append((asked, actions))

    def _answer(self, asked: int, observation: dict[str, Any]) -> np.ndarray | None:
        """The chunk for the observation of step `asked`; None where there is none."""
        if self._counts_steps and self._answered is not None:
            options = observation.get("wamkit", {})
            observation["wamkit"] = {"executed": asked - self._answered, **options}
        try:
            actions = np.asarray(self.client.infer(observation)["actions"], np.float32)
            if actions.ndim != 2 or not len(actions) or actions.shape[1] != self._size:
                raise ProtocolError(f"actions of shape {actions.shape}, not (steps, {self._size})")
            self.counts.answered += 1
            self._answered, self._said = asked, ""
            return actions
        except (ConnectionError, TimeoutError) as error:
            self.counts.failed += 1
            _LOG.warning("%s", error)
            self._reconnect()
        except Exception as error:  # a thread that ends would leave the robot without answers
            self.counts.failed += 1
            self._said = str(error)
            _LOG.warning("no answer: %s", error)
        return None

    def _reconnect(self) -> None:
        said, self._answered = "", None
        while not self._closing and not self.client.closed:
            try:
                self.client.reconnect(wait=1.0)
                self.counts.reconnected += 1
                _LOG.warning("connected to %s again", self.client.url)
                now = _promised(self.client.metadata)
                if differs := [k for k in now.keys() | self._promised.keys() if now.get(k) != self._promised.get(k)]:
                    self._wrong = f"{self.client.url} serves another model now: its {', '.join(sorted(differs))} differ"
                return
            except Exception as error:
                if str(error) != said:
                    said = str(error)
                    _LOG.warning("%s", said)
                time.sleep(0.05)


def _promised(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What a server says of the meaning of its answers; weights may change, and with them what is not here."""
    told = metadata.get("wamkit", {})
    return {key: told[key] for key in ("inputs", "actions", "fps", "chunk", "ahead", "past_offsets") if key in told}
