"""From a model to a policy: action chunks, replanning, and sessions that belong to the caller."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from wamkit.inference.checks import row_seeds, unsupported
from wamkit.inference.model import Model
from wamkit.types import KVMemory, Observation, ObservationError, Query, UnsupportedQuery, WamkitError, half_chunk


@dataclass(frozen=True)
class Session:
    """The state of one episode under a policy. Immutable: `Policy.act` returns the next one.

    seed: seed of the session's noise.
    step: actions taken so far.
    queries: model queries so far.
    chunk: float32 (A, a) in the robot's units; None before the first query.
    used: actions taken of the chunk.
    seen: (step, observation or its memory) of earlier steps that a coming query may look back at.
    future: uint8 (F, V, 3, H, W), the future imagined along with the chunk; None if the query imagines none.
    """

    seed: int = 0
    step: int = 0
    queries: int = 0
    chunk: np.ndarray | None = None
    used: int = 0
    seen: tuple[tuple[int, Observation | KVMemory], ...] = ()
    future: np.ndarray | None = None


def query_seed(seed: int, query: int) -> int:
    """The seed of a session's `query`-th query, from 0 on; `seed` is the session's."""
    return int(np.random.SeedSequence((seed, query)).generate_state(1, np.uint64)[0] >> 1)


class Policy:
    """Queries `model` for a chunk of actions and returns them one by one; queries again after `replan_every` of them.

    replan_every: half of the chunk if not given.
    query: `policy`, or `joint` to imagine the future along with the actions.
    steps: denoising steps a query; None for the model's own number.
    seed: seed of sessions that this policy starts.
    use_memory: whether a model that keeps memory attends to it, instead of encoding earlier observations again at
        every query. The actions are equal up to rounding.

    The policy holds no state, so that one instance serves any number of robots.
    """

    def __init__(
        self,
        model: Model,
        *,
        replan_every: int | None = None,
        query: Query | str = Query.POLICY,
        steps: int | None = None,
        seed: int = 0,
        use_memory: bool = True,
    ):
        if not isinstance(model, Model):
            raise WamkitError(f"a policy needs a model, as `wamkit.load` returns; got {type(model).__name__}")
        self.query = Query(query)
        if self.query not in model.queries:
            raise UnsupportedQuery(unsupported(model.name, self.query))
        if self.query not in (Query.POLICY, Query.JOINT):
            raise WamkitError(
                f"a policy acts on the query 'policy' or 'joint'; '{self.query}' has inputs that a policy does not have"
            )
        replan_every = half_chunk(model.spec.chunk) if replan_every is None else replan_every
        if not isinstance(replan_every, int) or not 1 <= replan_every <= model.spec.chunk:
            raise WamkitError(
                f"replan_every must lie in 1 .. {model.spec.chunk}, the length of an action chunk; got {replan_every}"
            )
        self.model, self.replan_every, self.steps, self.seed = model, replan_every, steps, row_seeds(seed, 1)[0]
        self.past_offsets, self.use_memory = model.spec.past_offsets, use_memory

    def needs_images(self, session: Session | None) -> bool:
        """True if the next `act` needs images, for its own query or for a later one that looks back at them.

        Inside a chunk it usually does not, and rendering can be saved.
        """
        step = 0 if session is None else session.step
        return any((step - offset) % self.replan_every == 0 for offset in (0, *self.past_offsets))

    def queried(self, before: Session | None, after: Session) -> bool:
        """True if the `act` between these two sessions queried the model."""
        return after.queries > (before.queries if before else 0)

    def act(self, obs: Observation, session: Session | None = None) -> tuple[np.ndarray, Session]:
        """The next action, float32 (a,) in the robot's units, and the session to pass back; None starts a new one."""
        session = session or Session(self.seed)
        chunk, used, queries, seen = session.chunk, session.used, session.queries, session.seen
        future = session.future
        kept: Observation | KVMemory = replace(obs, past=())
        if chunk is None or used >= self.replan_every:
            # One noise a query, the same for the same session seed: a replayed episode takes the same actions.
            noise = query_seed(session.seed, queries)
            looking = replace(obs, past=self._past(session))
            answer = self.model.sample(looking, self.query, seed=[noise], steps=self.steps)
            assert answer.actions is not None  # both queries of a policy return actions
            chunk, used, queries = answer.actions, 0, queries + 1
            future = answer.future
            if answer.memory and self.use_memory:
                kept = answer.memory[0]
        if self.past_offsets:
            if obs.images is not None:
                seen = (*seen, (session.step, kept))
            seen = tuple((k, o) for k, o in seen if k > session.step + self.past_offsets[0])
        return chunk[used], Session(session.seed, session.step + 1, queries, chunk, used + 1, seen, future)

    def _past(self, session: Session) -> tuple[Observation | KVMemory | None, ...]:
        """Observations or memory at the steps that the model looks back at; None before the session's first step."""
        seen, steps = dict(session.seen), [session.step + offset for offset in self.past_offsets]
        if missing := [k for k in steps if k >= 0 and k not in seen]:
            raise ObservationError(
                f"the policy looks back at step {missing[0]}, but `act` got no images there: "
                "render them where `needs_images` is true"
            )
        return tuple(seen.get(k) for k in steps)
