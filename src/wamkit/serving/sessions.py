"""The state of each robot's episode on the server: its noise, its steps, and what models with history look back at."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from wamkit.inference.policy import query_seed
from wamkit.serving.engine import Refused
from wamkit.types import KVMemory, Observation, Sample


@dataclass
class Session:
    """One episode of one robot.

    prompt: its instruction; another one begins another episode.
    queries: answered so far, which decide the noise.   under_way: asked and not answered yet.
    step: control steps taken up to the last answered request.
    seen: step -> the observation, or the model's memory of it.
    used: `time.monotonic()` of the last request.
    turn: held while a request is answered, where later ones look back at it.
    """

    seed: int
    prompt: str = ""
    queries: int = 0
    under_way: int = 0
    step: int = 0
    seen: dict[int, Observation | KVMemory] = field(default_factory=dict)
    used: float = 0.0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def noise(self) -> int:
        """The seed of the next query, that of `wamkit.Policy` in a session of the same seed."""
        return query_seed(self.seed, self.queries + self.under_way)


class Sessions:
    """Sessions by their connection and name: at most `most`, each forgotten after `age` seconds without a request.

    Names are a connection's own, so that no client reaches another one's episode. One too many takes the place of the
    least recently used of the same connection.
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
        self._sessions: OrderedDict[tuple[str, str], Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def of(self, owner: str, name: str, prompt: str) -> Session:
        """The session `name` of a connection, begun anew where the instruction is another one.

        Raises Refused for one too many.
        """
        now, key = self._clock(), (owner, name)
        for other, old in list(self._sessions.items()):  # the least recently used first
            if now - old.used <= self.age:
                break
            del self._sessions[other]
        session = self._sessions.get(key)
        if session is None and len(self._sessions) >= self.most:
            own = next((k for k in self._sessions if k[0] == owner), None)
            if own is None:
                raise Refused(f"{self.most} sessions are open already: close one, or serve with more --max-sessions")
            del self._sessions[own]
        if session is None or session.prompt != prompt:
            session = Session(self.seed, prompt)
        session.used = now
        self._sessions[key] = session
        self._sessions.move_to_end(key)
        return session

    def end(self, owner: str, name: str | None = None) -> None:
        """Forgets a session of a connection, or all of them."""
        for key in [k for k in self._sessions if k[0] == owner and name in (None, k[1])]:
            del self._sessions[key]

    def observed(self, session: Session, obs: Observation, executed: int) -> tuple[int, Observation]:
        """The step of `obs`, `executed` steps after the last request, and `obs` with what the session saw before it."""
        step = session.step + (executed if session.queries else 0)
        return step, replace(obs, past=tuple(_seen(session, step + offset) for offset in self.past_offsets))

    def answered(self, session: Session, step: int, obs: Observation, sample: Sample) -> None:
        """Notes an answer: the noise of the next one, and what it looks back at."""
        session.queries, session.step = session.queries + 1, step
        if self.past_offsets:
            session.seen[step] = sample.memory[0] if sample.memory else replace(obs, past=())
            oldest = max((k for k in session.seen if k <= step + self.past_offsets[0]), default=0)
            session.seen = {k: v for k, v in session.seen.items() if k >= oldest}


def _seen(session: Session, step: int) -> Observation | KVMemory | None:
    """What the session saw at `step`, or last before it; None from before it began, as in training.

    Robots ask when they can, not always as many steps apart as a model looks back.
    """
    found = [k for k in session.seen if k <= step]
    return session.seen[max(found)] if found else None
