"""A robot's loop that never waits for its model: queries run in a thread while the arm moves.

The loop calls `step` once a period with what it observes and sends the action that it gets. Where an answer is late, or
the server is gone, the robot stands still, and after a while it stops for good; an action that was planned for another
step is never taken.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from wamkit_client.chunks import Chunks, Joining
from wamkit_client.client import Client, ServerError
from wamkit_client.protocol import ProtocolError
from wamkit_client.safety import Guard, Limits, Unsafe

_LOG = logging.getLogger("wamkit_client")


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
    """Acts at `hz` with the answers of `client`.

    chunking: see `Chunks`.
    replan_every: steps between two queries, or more where the last one is not answered yet; half of a chunk if not
        given.
    limits: `Limits.of(client.metadata)` if not given.
    stop_after: seconds without an action after which the robot is stopped for good.
    on_stop: called once, with the reason, when it is.
    first: what was commanded before the first step, for the rate limit; None if unknown.
    clock: seconds, monotonic.

    Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        client: Client,
        *,
        hz: float,
        chunking: Joining = "switch",
        replan_every: int | None = None,
        limits: Limits | None = None,
        stop_after: float = 2.0,
        on_stop: Callable[[str], None] | None = None,
        first: np.ndarray | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        told = client.metadata.get("wamkit", {})
        shape = told.get("actions", {}).get("shape")
        if shape is None and replan_every is None:
            raise ValueError("the server does not tell the length of a chunk: give replan_every")
        self.client, self.period, self.stop_after, self.on_stop = client, 1 / hz, stop_after, on_stop
        self.replan_every = replan_every or max(1, shape[0] // 2)
        self.guard = Guard(limits or Limits.of(client.metadata), first)
        self.counts, self.stopped = Counts(), ""
        self.delays: deque[int] = deque(maxlen=100)
        """Steps from observation to answer, of the last queries."""
        self._size = None if shape is None else shape[1]
        self._chunks, self._clock = Chunks(chunking), clock
        self._step = -1
        self._asked: int | None = None
        self._before: float | None = None
        self._acted: float | None = None
        self._change = threading.Condition()
        self._wanted: tuple[int, Mapping[str, Any]] | None = None
        self._came: deque[tuple[int, np.ndarray]] = deque()
        self._busy, self._closing, self._dropped = False, False, 0
        self._thread = threading.Thread(target=self._query, name="wamkit-runner", daemon=True)
        self._thread.start()

    def step(self, observation: Mapping[str, Any]) -> np.ndarray:
        """The action for this step, float32 (a,). Returns at once.

        observation: what the server is asked with, if it is asked at this step.
        Raises Unsafe where nothing is known yet of the action's size: before the first answer, of a server that does
        not tell it.
        """
        now = self._clock()
        self._step += 1
        self.counts.steps += 1
        self._notice_gap(now)
        with self._change:
            while self._came:
                asked, actions = self._came.popleft()
                self.delays.append(self._step - asked)
                self._chunks.add(asked, actions)
            due = self._asked is None or self._step - self._asked >= self.replan_every
            if not self._busy and due and not self.stopped:
                self._wanted, self._busy, self._asked = (self._step, observation), True, self._step
                self.counts.asked += 1
                self._change.notify()
        action = None if self.stopped else self._chunks.at(self._step)
        if action is not None:
            try:
                safe = self.guard(action)
                self.counts.limited, self._acted, self._size = self.guard.limited, now, len(safe)
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

    def close(self) -> None:
        """Ends the thread. The client stays open."""
        with self._change:
            self._closing = True
            self._change.notify()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _hold(self, now: float) -> np.ndarray:
        self.counts.held += 1
        if self._acted is None:
            self._acted = now
        elif now - self._acted > self.stop_after and not self.stopped:
            self.stop(f"no action for {now - self._acted:.1f} s")
        size = self._size if self.guard.last is None else len(self.guard.last)
        if size is None:
            raise Unsafe("nothing is known of the action yet: give first=")
        return self.guard(self.guard.holding(size))

    def _notice_gap(self, now: float) -> None:
        """Drops all plans where the loop, or the clock, was away: the world has moved on since."""
        if self._before is not None and not 0 <= now - self._before <= 5 * self.period:
            self.counts.gaps += 1
            _LOG.warning("a gap of %.3f s between two steps: plans are dropped", now - self._before)
            self._chunks.clear()
            with self._change:
                self._came.clear()
                self._asked = None
            self._dropped = self._step
        self._before = now

    def _query(self) -> None:
        """Asks, in a thread of its own; makes a lost connection anew."""
        while True:
            with self._change:
                while self._wanted is None and not self._closing:
                    self._change.wait()
                if self._wanted is None or self._closing:
                    return
                asked, observation = self._wanted
                self._wanted = None
            actions = self._answer(observation)
            with self._change:
                self._busy = False
                if actions is None:
                    self._asked = None  # ask again at the next step
                elif asked >= self._dropped:
                    self._came.append((asked, actions))

    def _answer(self, observation: Mapping[str, Any]) -> np.ndarray | None:
        """The chunk for an observation; None where there is none."""
        try:
            actions = np.asarray(self.client.infer(dict(observation))["actions"], np.float32)
            if actions.ndim != 2 or not len(actions):
                raise ProtocolError(f"actions of shape {actions.shape}")
            self.counts.answered += 1
            return actions
        except (ServerError, ProtocolError, KeyError) as error:
            self.counts.failed += 1
            _LOG.warning("no answer: %s", error)
        except (ConnectionError, TimeoutError) as error:
            self.counts.failed += 1
            _LOG.warning("%s", error)
            self._reconnect()
        return None

    def _reconnect(self) -> None:
        said = ""
        while not self._closing:
            try:
                self.client.connect(wait=1.0)
                self.counts.reconnected += 1
                _LOG.warning("connected to %s again", self.client.url)
                return
            except (ConnectionError, TimeoutError, ServerError) as error:
                if str(error) != said:
                    said = str(error)
                    _LOG.warning("%s", said)
                time.sleep(0.05)
