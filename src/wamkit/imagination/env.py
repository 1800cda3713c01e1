"""Imagined rollouts: the world model in the simulator's place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from tqdm import tqdm

from wamkit.imagination.success_classifier import SuccessClassifier
from wamkit.inference.checks import row_seeds, unsupported
from wamkit.inference.model import Model
from wamkit.types import EvaluationError, Observation, Query, Spec, UnsupportedQuery


@dataclass(frozen=True)
class ImaginedRollout:
    """What became of R starts inside a world model. success: bool (R,).   steps: until success was seen, or `max_steps`.

    frames: uint8 (R, Q, V, 3, H, W), what was imagined, one picture every `replan_every` steps.
    actions: float32 (R, Q * replan_every, a), what was done.
    """

    success: Bool[np.ndarray, " R"]
    steps: np.ndarray
    frames: UInt8[np.ndarray, "R Q V 3 H W"]
    actions: Float32[np.ndarray, "R T a"]


def imagined_rollout(
    policy: Model,
    world: Model,
    judge: SuccessClassifier,
    starts: Sequence[Observation],
    *,
    replan_every: int = 8,
    max_steps: int = 200,
    seed: int = 0,
    candidates: int = 1,
    spread: float = 0.0,
    progress: bool = True,
) -> ImaginedRollout:
    """Policy and world model in turn: actions, what they would lead to `replan_every` steps later, actions again.

    candidates: so many chunks are imagined at every query, and the one is taken whose picture the judge likes best: a search for what
    pleases the world model, which shows how far it can be exploited. spread: standard deviation of an offset, over the chunk,
    that is added to all of them but the first, in units of the actions' own deviation.
    Models that look back see dreamed pictures, none where a look falls between two of them.
    Raises UnsupportedQuery for models that lack the query, and EvaluationError where the world model imagines nothing at that distance.
    """
    if Query.POLICY not in policy.queries:
        raise UnsupportedQuery(unsupported(policy.name, Query.POLICY))
    if Query.FORWARD not in world.queries:
        raise UnsupportedQuery(unsupported(world.name, Query.FORWARD))
    offsets = world.spec.frame_offsets
    if replan_every not in offsets:
        raise EvaluationError(f"the world model imagines {offsets} steps ahead, and not {replan_every}")
    if candidates < 1 or spread < 0:
        raise EvaluationError(f"candidates = {candidates}, spread = {spread}: at least 1, and at least 0")
    at, R, N = offsets.index(replan_every), len(starts), candidates
    seen: list[dict[int, Observation]] = [{0: replace(o, past=())} for o in starts]
    frames, done, steps, success = [], [], np.full(R, max_steps), np.zeros(R, bool)
    for k in tqdm(range(max_steps // replan_every), desc="dream", unit="query", leave=False, disable=not progress):
        t, noise = k * replan_every, row_seeds(seed + k, R * N)
        actions = policy.sample(_looking(seen, t, policy.spec, N), Query.POLICY, seed=noise).actions
        if spread:
            offset = np.random.default_rng((seed, k)).normal(0, spread, (R, N, 1, actions.shape[-1]))
            offset[:, 0] = 0
            actions = actions + (offset * actions.std((0, 1))).reshape(R * N, 1, -1).astype(np.float32)
        future = world.sample(_looking(seen, t, world.spec, N), Query.FORWARD, seed=noise, actions=actions).future[
            :, at
        ]
        probability, state = judge.read(future)
        best = np.arange(R) * N + probability.reshape(R, N).argmax(1)
        reached = probability[best] >= judge.threshold
        steps = np.where(reached & ~success, t + replan_every, steps)
        success |= reached
        frames.append(future[best])
        done.append(actions[best, :replan_every])
        for own, start, x, p in zip(seen, starts, future[best], state[best], strict=True):
            own[t + replan_every] = replace(start, images=x, proprio=p, past=())
    return ImaginedRollout(success, steps, np.stack(frames, 1), np.concatenate(done, 1))


def _looking(seen: Sequence[dict[int, Observation]], t: int, spec: Spec, times: int) -> list[Observation]:
    """What is seen at step `t`, with what the model looks back at; each row so many times."""
    now = [replace(own[t], past=tuple(own.get(t + o) for o in spec.past_offsets)) for own in seen]
    return [o for o in now for _ in range(times)]
