"""The queue between connections and a model: requests of many sessions are answered in batches, in a thread of its own.

A session has one request in the queue: a newer observation takes the place of the older one. The queue is bounded, and
a request whose time is over is not computed.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from wamkit.inference.model import Model
from wamkit.inference.realtime import Ahead
from wamkit.types import Observation, Query, Sample, WamkitError


class Refused(WamkitError):
    """A request was not computed: the queue is full, the request came too late, or the server stops."""


@dataclass
class Request:
    """One query of a session.

    seed, steps, actions, future, ahead: see `Model.sample`; `actions` (A, a) and `future` (F, V, 3, H, W) are of one
        row.
    until: `time.monotonic()` after which the answer is of no use; None for never.
    answer: receives the `Answer`, or the error.
    """

    session: str
    obs: Observation
    query: Query
    seed: int
    steps: int | None = None
    actions: np.ndarray | None = None
    future: np.ndarray | None = None
    ahead: Ahead | None = None
    until: float | None = None
    asked: float = field(default_factory=time.monotonic)
    answer: Future[Answer] = field(default_factory=Future)

    def fits(self, other: Request) -> bool:
        """True if both can be rows of one batch."""
        mine, theirs = ((r.query, r.steps, _shape(r.actions), _shape(r.future), r._left()) for r in (self, other))
        return mine == theirs

    def _left(self) -> tuple[int, int | None] | None:
        """Lengths of what is ahead: rows that are guided and rows that are not never share a batch."""
        return None if self.ahead is None else (len(self.ahead.actions), self.ahead.decided)


@dataclass(frozen=True)
class Answer:
    """A row of the model's answer.

    waited, computed: seconds in the queue, and in the model.   rows: of the batch.
    """

    sample: Sample
    waited: float
    computed: float
    rows: int


class Engine:
    """Answers requests with `model`, up to `max_batch` sessions at a time, out of a queue of up to `max_pending`.

    With `max_batch` 1 a session's answers are those of a process of its own, to the bit; in batches up to rounding.
    """

    def __init__(self, model: Model, *, max_batch: int = 8, max_pending: int = 64):
        self.model, self.max_batch, self.max_pending = model, max_batch, max_pending
        self._pending: OrderedDict[str, Request] = OrderedDict()
        self._change = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="wamkit-engine", daemon=True)
        self._thread.start()

    def ask(self, request: Request) -> Future[Answer]:
        """Puts a request into the queue, in the place of an older one of its session. Raises Refused."""
        with self._change:
            if self._stopping:
                raise Refused("the server is stopping")
            older = self._pending.get(request.session)
            if older is None and len(self._pending) >= self.max_pending:
                self._forget_left()
            if older is None and len(self._pending) >= self.max_pending:
                raise Refused(f"the server is overloaded: {self.max_pending} requests wait already; ask again later")
            self._pending[request.session] = request
            self._change.notify()
        if older is not None:
            _refuse(older, "a newer observation of this session came before this one was answered")
        return request.answer

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._pending)

    def warm_up(self, obs: Observation, query: Query) -> float:
        """Answers twice, and once more with actions ahead, so that no client waits for what happens once. Returns
        seconds.
        """
        start, spec = time.monotonic(), self.model.spec
        chunk = self.model.usual()[1][None] if query is Query.FORWARD else None
        images = np.asarray(obs.images)
        future = np.stack([images] * len(spec.frame_offsets))[None] if query is Query.INVERSE else None
        for _ in range(2):
            found = self.model.sample([obs], query, seed=[0], actions=chunk, future=future).actions
        if self.model.family.denoised is not None and query in (Query.POLICY, Query.JOINT) and found is not None:
            self.model.sample([obs], query, seed=[0], ahead=[Ahead(found[0], 1)])
        return time.monotonic() - start

    def _forget_left(self) -> None:
        """Takes requests out of the queue whose clients are gone."""
        for key in [k for k, request in self._pending.items() if request.answer.cancelled()]:
            del self._pending[key]

    def stop(self, seconds: float = 10.0) -> None:
        """Answers what is in the queue, for up to `seconds`, takes nothing new, and ends."""
        with self._change:
            self._stopping = True
            self._change.notify()
        self._thread.join(seconds)
        with self._change:
            left = list(self._pending.values())
            self._pending.clear()
        for request in left:
            _refuse(request, "the server is stopping")

    def _run(self) -> None:
        while batch := self._next():
            self._compute(batch)

    def _next(self) -> list[Request]:
        """The oldest request and others that fit it; none once the engine stops and the queue is empty."""
        while True:
            with self._change:
                while not self._pending and not self._stopping:
                    self._change.wait()
                if not self._pending:
                    return []
                now, late, batch = time.monotonic(), [], list[Request]()
                for key, request in list(self._pending.items()):
                    if request.until is not None and request.until <= now:
                        late.append(self._pending.pop(key))
                    elif not batch or len(batch) < self.max_batch and request.fits(batch[0]):
                        del self._pending[key]
                        if request.answer.set_running_or_notify_cancel():  # else its client is gone
                            batch.append(request)
            for request in late:
                _refuse(request, "the deadline passed before the request was computed")
            if batch:
                return batch

    def _compute(self, batch: Sequence[Request]) -> None:
        start = time.monotonic()
        try:
            samples = self._sample(batch)
        except Exception as error:  # the client is told; the engine goes on
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
                return
            for request in batch:  # one of them is at fault: the others are answered
                self._compute([request])
            return
        now = time.monotonic()
        for request, sample in zip(batch, samples, strict=True):
            if request.until is not None and request.until <= now:
                request.answer.set_exception(Refused("the deadline passed while the request was computed"))
            else:
                request.answer.set_result(Answer(sample, start - request.asked, now - start, len(batch)))

    def _sample(self, batch: Sequence[Request]) -> list[Sample]:
        first = batch[0]
        stacked = {
            name: None if getattr(first, name) is None else np.stack([getattr(r, name) for r in batch])
            for name in ("actions", "future")
        }
        answer = self.model.sample(
            [r.obs for r in batch],
            first.query,
            seed=[r.seed for r in batch],
            steps=first.steps,
            actions=stacked["actions"],
            future=stacked["future"],
            ahead=[r.ahead for r in batch],
        )
        return [answer.row(i) for i in range(len(batch))]


def _refuse(request: Request, why: str) -> None:
    if request.answer.set_running_or_notify_cancel():  # else its client is gone
        request.answer.set_exception(Refused(why))


def _shape(array: np.ndarray | None) -> tuple[int, ...] | None:
    return None if array is None else array.shape
