"""From a model to a policy: action chunks, replanning, and sessions that belong to the caller."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wamkit.family import Family, unsupported
from wamkit.types import Observation, Query, UnsupportedQuery, WamkitError


@dataclass(frozen=True)
class Session:
    """Where one robot is in its current chunk. Immutable: `Policy.act` returns the next one.

    chunk: float32 (A, a) in the robot's units, or None before the first query.   used: actions of it already taken.
    queries: model queries so far.   seed: of this session's noise.
    """

    seed: int = 0
    chunk: np.ndarray | None = None
    used: int = 0
    queries: int = 0


class Policy:
    """Asks `model` for a chunk of actions and hands them out one by one; asks again after `replan_every` of them.

    query: `policy`, or `joint` to imagine the future along with the actions.   steps: denoising steps a query, None for
    the model's own.   seed: of sessions that this policy starts.
    The policy itself holds no state, so one instance serves any number of robots.
    """

    def __init__(
        self,
        model: Family,
        *,
        replan_every: int = 8,
        query: Query | str = Query.POLICY,
        steps: int | None = None,
        seed: int = 0,
    ):
        self.query = Query(query)
        if self.query not in model.queries:
            raise UnsupportedQuery(unsupported(model.name, self.query))
        if self.query not in (Query.POLICY, Query.JOINT):
            raise WamkitError(
                f"a policy acts on the query 'policy' or 'joint'; '{self.query}' needs to be given what it should find out"
            )
        if not 1 <= replan_every <= model.spec.chunk:
            raise WamkitError(
                f"replan_every must lie in 1 .. {model.spec.chunk}, the length of an action chunk; got {replan_every}"
            )
        self.model, self.replan_every, self.steps, self.seed = model, replan_every, steps, seed

    def needs_images(self, session: Session | None) -> bool:
        """Whether the next `act` looks at the pictures; inside a chunk it does not, and rendering can be saved."""
        return session is None or session.chunk is None or session.used >= self.replan_every

    def act(self, obs: Observation, session: Session | None = None) -> tuple[np.ndarray, Session]:
        """The next action, float32 (a,) in the robot's units, and the session to pass back; None starts a new one."""
        session = session or Session(self.seed)
        chunk = session.chunk
        if chunk is None or self.needs_images(session):
            # One noise a query, the same for the same session seed: a replayed episode takes the same actions.
            noise = int(np.random.SeedSequence((session.seed, session.queries)).generate_state(1, np.uint64)[0] >> 1)
            answer = self.model.sample(obs, self.query, seed=[noise], steps=self.steps)
            assert answer.actions is not None  # both queries that a policy may ask give actions
            chunk, session = answer.actions[0], Session(session.seed, None, 0, session.queries + 1)
        return chunk[session.used], Session(session.seed, chunk, session.used + 1, session.queries)
