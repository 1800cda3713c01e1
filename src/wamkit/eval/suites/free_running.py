"""Real episodes with what the simulator knows of their things, and what a model makes of them when it goes on by itself.

A take is an expert's episode from a reset state that nothing was trained on. A model is shown its first picture and then lives on its
own pictures: it is asked what the recorded actions lead to, and from there again, to the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, UInt8
from tqdm import tqdm

from wamkit.envs.ground_truth import GroundTruth, read_ground_truth
from wamkit.envs.spec import EnvSpec
from wamkit.eval.suites.counterfactuals import FIRST_SEED, expert_episode
from wamkit.inference.checks import row_seeds, unsupported
from wamkit.inference.model import Model
from wamkit.types import EvaluationError, Observation, Query, Snapshot, Spec, UnsupportedQuery
from wamkit.workers import run_parallel

BATCH = 32


@dataclass(frozen=True)
class ReferenceEpisode:
    """A real episode of T steps. start: its first state.   obs: what was seen.   actions: float32 (T, a).   truth: of all T instants."""

    task: str
    seed: int
    start: Snapshot
    obs: tuple[Observation, ...]
    actions: Float32[np.ndarray, "T a"]
    truth: GroundTruth

    def __len__(self) -> int:
        return len(self.actions)

    def pictures(self, steps: Sequence[int]) -> UInt8[np.ndarray, "Q V 3 H W"]:
        """What was seen at these steps."""
        return np.stack([self.obs[t].images for t in steps])


def _work(job: tuple[EnvSpec, Spec, str, int]) -> ReferenceEpisode:
    where, spec, task, seed = job
    env = where.shared(task)
    episode = expert_episode(env, seed, spec.past_offsets)
    truth = read_ground_truth(env, [m.state for m in episode.moments])
    obs = tuple(replace(m.obs, past=()) for m in episode.moments)
    return ReferenceEpisode(task, seed, episode.moments[0].state, obs, episode.actions, truth)


def takes(
    env: EnvSpec, spec: Spec, *, first: int = 0, episodes: int = 6, processes: int = 2, desc: str = "takes"
) -> list[ReferenceEpisode]:
    """`episodes` of each task. The same on any number of processes. Raises WamkitError in a world that tells no truth or has no expert."""
    jobs = [(env, spec, task, FIRST_SEED + first + i) for task in env.tasks for i in range(episodes)]
    work = run_parallel(
        jobs, _work, processes=processes, desc=desc, unit="episode", describe=lambda j: f"{j[2]}, seed {j[3]}"
    )
    with closing(work):
        return list(work)


@dataclass(frozen=True)
class Continuation:
    """What a model made of one take. steps: at which, the first one 0.   frames: uint8 (Q, V, 3, H, W); the first is the real one."""

    take: ReferenceEpisode
    steps: tuple[int, ...]
    frames: UInt8[np.ndarray, "Q V 3 H W"]


def free_run(
    model: Model, real: Sequence[ReferenceEpisode], *, seed: int = 0, steps: int | None = None, progress: bool = True
) -> list[Continuation]:
    """`model` lives on its own pictures through every take, as far as whole queries reach; one for each take that is long enough.

    It is asked for forward dynamics with the recorded actions or, where it has none, for video. Proprioception is the recorded one. Past
    moments, for models that look back, are its own pictures too. Pictures are as many steps apart as its first horizon where all its
    horizons are multiples of that, else as its last.
    Raises UnsupportedQuery for a model that imagines nothing, and EvaluationError where every take is too short.
    """
    query = next((q for q in (Query.FORWARD, Query.VIDEO, Query.JOINT) if q in model.queries), None)
    if query is None:
        raise UnsupportedQuery(unsupported(model.name, Query.VIDEO))
    offsets = model.spec.frame_offsets
    even = [o for o in offsets if offsets == tuple(offsets[0] * (k + 1) for k in range(len(offsets)))] or [offsets[-1]]
    jump, chunk = offsets[-1], model.spec.chunk
    seen: list[dict[int, np.ndarray]] = [{0: take.obs[0].images} for take in real]
    going = [i for i, take in enumerate(real) if jump < len(take)]
    if not going:
        raise EvaluationError(f"no episode is longer than the {jump} steps that are imagined at once")
    t, bar = 0, tqdm(total=max(len(x) for x in real) // jump, desc="continue", unit="query", disable=not progress)
    with bar:
        while going:
            for low in range(0, len(going), BATCH):
                rows = going[low : low + BATCH]
                obs = [_now(real[i], seen[i], t, model.spec.past_offsets) for i in rows]
                given = {"actions": np.stack([_chunk(real[i], t, chunk) for i in rows])}
                noise = [s + 7919 * i for s, i in zip(row_seeds(seed + t, len(rows)), rows, strict=True)]
                out = model.sample(obs, query, seed=noise, steps=steps, **(given if query is Query.FORWARD else {}))
                for i, future in zip(rows, out.future, strict=True):
                    seen[i] |= {t + o: future[offsets.index(o)] for o in even}
            t += jump
            going = [i for i in going if t + jump < len(real[i])]
            bar.update()
    went = [
        Continuation(take, tuple(sorted(s)), np.stack([s[k] for k in sorted(s)]))
        for take, s in zip(real, seen, strict=True)
    ]
    return [c for c in went if len(c.steps) > 1]


def _now(take: ReferenceEpisode, seen: dict[int, np.ndarray], t: int, past: Sequence[int]) -> Observation:
    at = lambda k: replace(take.obs[k], images=seen[k])  # noqa: E731
    return replace(at(t), past=tuple(at(t + o) if t + o in seen else None for o in past))


def _chunk(take: ReferenceEpisode, t: int, length: int) -> np.ndarray:
    """The recorded actions from `t` on; after the last one, that again."""
    return take.actions[np.minimum(np.arange(t, t + length), len(take) - 1)]
