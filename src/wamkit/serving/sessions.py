"""The state of each robot's episode on the server: its noise, its steps, and what models with history look back at."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from wamkit.serving.engine import Refused
from wamkit.types import KVMemory, Observation, Sample


@dataclass
class Session:
    """One episode of one robot.

    prompt: its instruction; another one begins another episode.
    queries: answered so far, which decide the noise.   step: control steps taken so far.
    seen: step -> the observation, or the model's memory of it.
    used: `time.monotonic()` of the last request.
    """

    seed: int
    prompt: str = ""
    queries: int = 0
    step: int = 0
    seen: dict[int, Observation | KVMemory] = field(default_factory=dict)
    used: float = 0.0

    def noise(self) -> int:
        """The seed of the next query, that of `wamkit.Policy` in a session of the same seed."""
        return int(np.random.SeedSequence((self.seed, self.queries)).generate_state(1, np.uint64)[0] >> 1)


class Sessions:
    """Sessions by name: at most `most` of them, each forgotten when nothing was asked for `age` seconds.

    past_offsets: of the model's `Spec`.   seed: of every session.   clock: of `used`.
    """

    def __init__(
        self,
        past_offsets: tuple[int, ...],
        *,
        most: int = 64,
        age: float = 3600.0,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.past_offsets, self.most, self.age, self.seed, self._clock = past_offsets, most, age, seed, clock
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def of(self, name: str, prompt: str) -> Session:
        """The session `name`, begun anew where the instruction is another one. Raises Refused for one too many."""
        now = self._clock()
        for key, old in list(self._sessions.items()):  # the least recently used first
            if now - old.used <= self.age:
                break
            del self._sessions[key]
        session = self._sessions.get(name)
        if session is None and len(self._sessions) >= self.most:
            raise Refused(f"{self.most} sessions are open already: close one, or serve with more --max-sessions")
        if session is None or session.prompt != prompt:
            session = Session(self.seed, prompt)
        session.used = now
        self._sessions[name] = session
        self._sessions.move_to_end(name)
        return session

    def end(self, name: str) -> None:
        """Forgets a session, if there is one of this name."""
        self._sessions.pop(name, None)

    def observed(self, session: Session, obs: Observation, executed: int) -> Observation:
        """`obs` with what the session saw before it, `executed` steps after the last request."""
        if session.queries:
            session.step += executed
        seen = [session.seen.get(session.step + offset) for offset in self.past_offsets]
        return replace(obs, past=tuple(seen))

    def answered(self, session: Session, obs: Observation, sample: Sample) -> None:
        """Notes an answer: the noise of the next one, and what it looks back at."""
        session.queries += 1
        if self.past_offsets:
            session.seen[session.step] = sample.memory[0] if sample.memory else replace(obs, past=())
            first = session.step + self.past_offsets[0]
            session.seen = {k: v for k, v in session.seen.items() if k >= first}
