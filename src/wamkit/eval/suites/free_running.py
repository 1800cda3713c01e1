"""Free-running rollouts: real episodes with ground truth, which a model continues from its own frames to the end.

The episodes are an expert's, from reset states that nothing was trained on. A model is shown the first image. From then
on its own frames are its input: it is queried with the recorded actions again and again.
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
from wamkit.eval.suites.counterfactuals import FIRST_SEED
from wamkit.inference.checks import row_seeds, unsupported
from wamkit.inference.model import Model
from wamkit.rollout.replay import expert_episode, observed, shown_at
from wamkit.types import EvaluationError, Observation, Query, Snapshot, Spec, UnsupportedQuery
from wamkit.workers import run_parallel

BATCH = 32
"""Episodes in one query."""


@dataclass(frozen=True)
class ReferenceEpisode:
    """A real episode of T steps.

    start: the simulator's state at the first step.   obs: T observations.   actions: float32 (T, a).
    ground_truth: of all T instants.
    """

    task: str
    seed: int
    start: Snapshot
    obs: tuple[Observation, ...]
    actions: Float32[np.ndarray, "T a"]
    ground_truth: GroundTruth

    def __len__(self) -> int:
        return len(self.actions)

    def images(self, steps: Sequence[int]) -> UInt8[np.ndarray, "Q V 3 H W"]:
        """The images at these steps."""
        return np.stack([self.obs[t].images for t in steps])


def _work(job: tuple[EnvSpec, str, int, Spec | None]) -> ReferenceEpisode:
    where, task, seed, spec = job
    env = where.shared(task)
    episode = expert_episode(env, seed)
    assert episode.snapshots is not None  # an expert's episode is recorded with them
    ground_truth = read_ground_truth(env, episode.snapshots)
    if spec is not None:
        episode, ground_truth = shown_at(episode, spec), ground_truth.at_size(spec.height, spec.width)
    obs = tuple(observed(episode, t) for t in range(len(episode)))
    return ReferenceEpisode(task, seed, episode.snapshots[0], obs, episode.action, ground_truth)


def reference_episodes(
    env: EnvSpec,
    *,
    first: int = 0,
    episodes: int = 6,
    processes: int = 2,
    desc: str = "references",
    spec: Spec | None = None,
) -> list[ReferenceEpisode]:
    """`episodes` of each task, from the reset states after the first `first` ones.

    spec: images and masks are resized to those of this model; None for the environment's own size.

    The same on any number of processes. Raises WamkitError for an environment without ground truth or without an
    expert.
    """
    jobs = [(env, task, FIRST_SEED + first + i, spec) for task in env.tasks for i in range(episodes)]
    work = run_parallel(
        jobs, _work, processes=processes, desc=desc, unit="episode", describe=lambda j: f"{j[1]}, seed {j[2]}"
    )
    with closing(work):
        return list(work)


@dataclass(frozen=True)
class Continuation:
    """A reference episode as a model continues it.

    steps: of the frames, the first one 0.   frames: uint8 (Q, V, 3, H, W); the first is the real one.
    """

    reference: ReferenceEpisode
    steps: tuple[int, ...]
    frames: UInt8[np.ndarray, "Q V 3 H W"]


def free_run(
    model: Model, real: Sequence[ReferenceEpisode], *, seed: int = 0, steps: int | None = None, progress: bool = True
) -> list[Continuation]:
    """Continues every episode with the model's own frames, as far as whole queries reach.

    Returns one continuation for each episode that is long enough. The query is forward dynamics with the recorded
    actions or, for a model without it, video. Proprioception is the recorded one. A model that looks back sees its own
    frames there, too.
    Frames are as many steps apart as the first horizon, if all horizons are multiples of it; else as the last.
    Raises UnsupportedQuery for a model that predicts no frames, and EvaluationError if every episode is too short.
    """
    query = next((q for q in (Query.FORWARD, Query.VIDEO, Query.JOINT) if q in model.queries), None)
    if query is None:
        raise UnsupportedQuery(unsupported(model.name, Query.VIDEO))
    offsets = model.spec.frame_offsets
    even = [o for o in offsets if offsets == tuple(offsets[0] * (k + 1) for k in range(len(offsets)))] or [offsets[-1]]
    jump, chunk = offsets[-1], model.spec.chunk
    seen: list[dict[int, np.ndarray]] = [{0: episode.obs[0].images} for episode in real]
    going = [i for i, episode in enumerate(real) if jump < len(episode)]
    if not going:
        raise EvaluationError(f"no episode is longer than the {jump} steps of one prediction")
    t, bar = 0, tqdm(total=max(len(x) for x in real) // jump, desc="free run", unit="query", disable=not progress)
    with bar:
        while going:
            for low in range(0, len(going), BATCH):
                rows = going[low : low + BATCH]
                obs = [_now(real[i], seen[i], t, model.spec.past_offsets) for i in rows]
                conditions = {"actions": np.stack([_chunk(real[i], t, chunk) for i in rows])}
                noise = [s + 7919 * i for s, i in zip(row_seeds(seed + t, len(rows)), rows, strict=True)]
                out = model.sample(
                    obs, query, seed=noise, steps=steps, **(conditions if query is Query.FORWARD else {})
                )
                for i, future in zip(rows, out.future, strict=True):
                    seen[i] |= {t + o: future[offsets.index(o)] for o in even}
            t += jump
            going = [i for i in going if t + jump < len(real[i])]
            bar.update()
    continuations = [
        Continuation(episode, tuple(sorted(s)), np.stack([s[k] for k in sorted(s)]))
        for episode, s in zip(real, seen, strict=True)
    ]
    return [c for c in continuations if len(c.steps) > 1]


def _now(episode: ReferenceEpisode, seen: dict[int, np.ndarray], t: int, past: Sequence[int]) -> Observation:
    at = lambda k: replace(episode.obs[k], images=seen[k])  # noqa: E731
    return replace(at(t), past=tuple(at(t + o) if t + o in seen else None for o in past))


def _chunk(episode: ReferenceEpisode, t: int, length: int) -> np.ndarray:
    """The recorded actions from `t` on; the last one is repeated."""
    return episode.actions[np.minimum(np.arange(t, t + length), len(episode) - 1)]
