"""A run in a simulator whose time goes on while the model computes: success under an injected delay.

Time is that of the simulator, so that the same seed gives the same episode whatever the machine. The loop is that of
`wamkit_client.Runner`: chunks are joined by `wamkit_client.Chunks`, and where none reaches a step, the robot stands
still. "wait" is the loop without a thread, which stands still during every query.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from wamkit_client.chunks import Chunks, Joining
from wamkit_client.runner import RECENT

from wamkit.config import digest, from_dict, sealed, unsealed
from wamkit.envs.base import held_out_seeds
from wamkit.eval.metrics.intervals import clopper_pearson
from wamkit.eval.protocols import Protocol
from wamkit.files import StoreError, atomic_write, read_json
from wamkit.inference.policy import Policy, query_seed
from wamkit.inference.realtime import Ahead
from wamkit.metadata import DatasetMetadata
from wamkit.rollout.loop import Transition, rollout
from wamkit.runs.run import Run
from wamkit.types import Observation
from wamkit.workers import run_parallel

Loop = Literal["wait", "switch", "ensemble", "rtc"]
SEEDS_PER_JOB = 5
_LOOPS = 3
"""Version of the loops' rules, which finished pieces are kept by."""


@dataclass(frozen=True)
class Driving:
    """The state of an episode.

    seed: of noise and delays.   step: of the next action.   queries: begun so far.
    asked: step of the last query; None before the first.
    coming: (actions taken before it was asked, step from which it is there, chunk) of the query under way.
    delays: steps that the last queries took.
    held: (actions taken before it was asked, chunk) of those that came.
    last: the last action; None before the first.
    stood: steps at which the robot stood still.
    """

    seed: int
    step: int = 0
    queries: int = 0
    asked: int | None = None
    coming: tuple[int, int, np.ndarray] | None = None
    delays: tuple[int, ...] = ()
    held: tuple[tuple[int, np.ndarray], ...] = ()
    last: np.ndarray | None = None
    stood: int = 0

    @property
    def taken(self) -> int:
        """Actions taken so far: a step at which the robot stood still is none."""
        return self.step - self.stood


class Delayed:
    """An actor that gets each answer some steps after it asked.

    ask: gives the chunk (A, a) for an observation, the seed of its noise, and what is ahead, if the loop says so.
    delay: steps that a query takes, by (seed of the episode, number of the query).
    loop: see `Loop`.   replan_every: steps between two queries, if the last one is answered by then.
    still: bool (a,), dimensions that stand still at zero; the others do where they are, at first at zero too.
    """

    def __init__(
        self,
        ask: Callable[[Observation, int, Ahead | None], np.ndarray],
        delay: Callable[[int, int], int],
        loop: Loop,
        replan_every: int,
        still: np.ndarray,
    ):
        self.ask, self.delay, self.loop, self.replan_every, self.still = ask, delay, loop, replan_every, still

    def needs_images(self, session: Driving) -> bool:
        """True if a query begins at the next step."""
        return self._asks(self._arrived(session))

    def queried(self, before: Driving, after: Driving) -> bool:
        """True if a query began between these two."""
        return after.queries > before.queries

    def act(self, observation: Observation, session: Driving) -> tuple[np.ndarray, Driving]:
        """The next action, and the session to pass back."""
        now = self._arrived(session)
        if self._asks(now):
            chunk = self.ask(observation, query_seed(now.seed, now.queries), self._ahead(now))
            took = self.delay(now.seed, now.queries)
            ready, delays = now.step + took, (*now.delays, took)[-RECENT:]
            now = replace(now, asked=now.step, queries=now.queries + 1, coming=(now.taken, ready, chunk), delays=delays)
            now = self._arrived(now)
        joining: Joining = "switch" if self.loop == "wait" else self.loop
        waiting = self.loop == "wait" and now.coming is not None
        action = None if waiting else Chunks(joining, _held=list(now.held)).at(now.taken)
        stood = now.stood + (action is None)
        if action is None:
            last = np.zeros(len(self.still), np.float32) if now.last is None else now.last
            action = np.where(self.still, 0, last).astype(np.float32)
        return action, replace(now, step=now.step + 1, last=action, stood=stood)

    def _ahead(self, session: Driving) -> Ahead | None:
        left = Chunks("rtc", _held=list(session.held)).ahead(session.taken) if self.loop == "rtc" else None
        return None if left is None else Ahead(left, min(len(left), max(session.delays)))

    def _arrived(self, session: Driving) -> Driving:
        """The session with the answer that has come by now."""
        if session.coming is None or session.coming[1] > session.step:
            return session
        asked, _, chunk = session.coming
        held = (*(h for h in session.held if h[0] + len(h[1]) > session.taken), (asked, chunk))
        return replace(session, coming=None, held=held)

    def _asks(self, session: Driving) -> bool:
        if session.coming is not None:
            return False
        if session.asked is None:
            return True
        if self.loop == "wait":
            return session.taken - session.held[-1][0] >= self.replan_every
        return session.step - session.asked >= self.replan_every


@dataclass(frozen=True)
class Delay:
    """Seconds that a query takes: a normal distribution around `latency` with the deviation `jitter`, not below 0."""

    latency: float
    jitter: float = 0.0

    def steps(self, fps: float) -> Callable[[int, int], int]:
        """Whole steps at `fps`, rounded up, by (seed, number of the query)."""

        def drawn(seed: int, query: int) -> int:
            noise = np.random.default_rng((seed, query, 7)).normal() if self.jitter else 0.0
            return int(np.ceil(max(0.0, self.latency + self.jitter * noise) * fps - 1e-6))

        return drawn


@dataclass(frozen=True)
class Drive:
    """One episode.

    steps: up to the first success, or all.   stood: of them, those at which the robot stood still.
    jump: largest change of any dimension of the action from one step to the next, in half ranges of the action space.
    seam: the same at steps at which one chunk took over from another, mean over them; None without any.
    inside: the same at all other steps, which is how much the motion changes by itself.
    """

    task: str
    seed: int
    success: bool
    steps: int
    stood: int
    jump: float
    seam: float | None = None
    inside: float | None = None


@dataclass(frozen=True)
class _Job:
    run: Run
    protocol: Protocol
    loop: Loop
    delay: Delay
    task: str
    seeds: tuple[int, ...]

    @property
    def key(self) -> str:
        p = self.protocol
        played = {"env": p.env.env, "options": list(p.env.options.items()), "robot": p.env.embodiment}
        asked = {"replan_every": p.replan_every, "query": p.query, "steps": p.steps}
        return digest([_LOOPS, self.run.digest, played, asked, self.loop, asdict(self.delay), self.task, self.seeds])


def still_dimensions(metadata: DatasetMetadata | None, size: int) -> np.ndarray:
    """Dimensions of the action that are displacements or velocities, bool (size,); none where nothing is known."""
    still = np.zeros(size, bool)
    for part in metadata.action if metadata else ():
        still[part.start : part.stop] = part.representation in ("delta", "velocity")
    return still


def play(job: _Job) -> list[Drive]:
    """The episodes of a job, in this process."""
    policy, env = job.protocol.make_policy(job.run), job.protocol.env.make(job.task)
    metadata = job.run.metadata.get(job.protocol.env.embodiment) or job.run.metadata.get("")
    still = still_dimensions(metadata, env.action_space.shape[0])
    scale = (env.action_space.high - env.action_space.low) / 2
    try:
        found = []
        for seed in job.seeds:
            actor = Delayed(_asking(policy), job.delay.steps(env.fps), job.loop, policy.replan_every, still)
            seen: list[Transition] = []
            start = Driving(seed)
            episode = rollout(env, actor, seed=seed, session=start, record_images=False, observers=[seen.append])
            steps = int(episode.success.argmax()) + 1 if episode.succeeded else len(episode)
            came = [t.next_session.queries - (t.next_session.coming is not None) for t in seen[:steps]]
            took_over = [i for i in range(1, steps) if 0 < came[i - 1] < came[i]]
            stood = seen[steps - 1].next_session.stood
            change = changes(episode.action[:steps], took_over, scale)
            found.append(Drive(job.task, seed, bool(episode.succeeded), steps, stood, *change))
        return found
    finally:
        env.close()


def changes(
    action_Ta: np.ndarray, took_over: Sequence[int], half_range: np.ndarray
) -> tuple[float, float | None, float | None]:
    """Changes of T actions from one step to the next, as in `Drive`: the largest, the mean at the steps `took_over`,
    and the mean at all others.

    Examples:
        >>> changes(np.array([[0.0, 0.0], [0.1, 0.2], [0.1, 1.2], [0.5, 1.2]]), [2], np.array([1.0, 2.0]))
        (0.5, 0.5, 0.25)
    """
    change_T = (np.abs(np.diff(action_Ta, axis=0)) / half_range).max(1)
    at_seam = np.isin(np.arange(1, len(action_Ta)), took_over)
    return float(change_T.max(initial=0)), _mean(change_T[at_seam]), _mean(change_T[~at_seam])


def _asking(policy: Policy) -> Callable[[Observation, int, Ahead | None], np.ndarray]:
    def ask(obs: Observation, seed: int, ahead: Ahead | None) -> np.ndarray:
        actions = policy.model.sample(obs, policy.query, seed=[seed], steps=policy.steps, ahead=ahead).actions
        assert actions is not None  # both queries of a policy return actions
        return actions

    return ask


def drives(
    run: Run, protocol: Protocol, loops: Sequence[Loop], delays: Sequence[Delay], *, processes: int = 2
) -> dict[tuple[Loop, Delay], list[Drive]]:
    """Plays every loop under every delay from the same held-out reset states. Finished pieces are kept in run/drive."""
    protocol = protocol.replanning(run)
    jobs = [
        _Job(run, protocol, loop, delay, task, held_out_seeds(protocol.episodes)[i : i + SEEDS_PER_JOB])
        for delay in delays
        for loop in loops
        for task in protocol.env.tasks
        for i in range(0, protocol.episodes, SEEDS_PER_JOB)
    ]
    files = {job.key: run.home / f"drive/parts/{job.key}.json" for job in jobs}
    done = {job.key: _read(files[job.key]) for job in jobs}
    todo = [job for job in jobs if done[job.key] is None]
    work = run_parallel(todo, play, processes=processes, desc="drive", unit="job")
    with closing(work):  # type: ignore[type-var]
        for job, found in zip(todo, work, strict=True):
            content = sealed({"drives": [asdict(d) for d in found]})
            atomic_write(files[job.key], json.dumps(content).encode())
            done[job.key] = found
    out: dict[tuple[Loop, Delay], list[Drive]] = {}
    for job in jobs:
        out.setdefault((job.loop, job.delay), []).extend(done[job.key] or [])
    return out


def _read(path: Any) -> list[Drive] | None:
    try:
        return [from_dict(Drive, row) for row in unsealed(read_json(path), path)["drives"]]
    except (StoreError, ValueError, LookupError, TypeError):
        return None


def _mean(values: Sequence[float] | np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None


def table(found: dict[tuple[Loop, Delay], list[Drive]]) -> list[dict[str, Any]]:
    """A row for each loop and delay: success with its interval, share of steps stood still, largest jumps, and changes
    from chunk to chunk and inside of chunks."""
    rows = []
    for (loop, delay), episodes in found.items():
        rate = clopper_pearson(sum(d.success for d in episodes), len(episodes))
        rows.append(
            {
                "loop": loop,
                "latency_ms": 1e3 * delay.latency,
                "jitter_ms": 1e3 * delay.jitter,
                "episodes": len(episodes),
                "success": rate.value,
                "low": rate.low,
                "high": rate.high,
                "stood": sum(d.stood for d in episodes) / max(1, sum(d.steps for d in episodes)),
                "jump": float(np.mean([d.jump for d in episodes])),
                "seam": _mean([d.seam for d in episodes if d.seam is not None]),
                "inside": _mean([d.inside for d in episodes if d.inside is not None]),
            }
        )
    return rows
