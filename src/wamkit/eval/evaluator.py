"""A world model in the simulator's place: policies act inside of it, and a judge reads success off what it imagines.

The judge is trained on real frames and calibrated on other real ones; its own error there stands beside every figure, so that a wrong
ranking can be blamed on the judge or on the dynamics. The judge also reads proprioception, which policies are shown and world models do not
imagine. How well imagined success orders policies is `eval.ranking.agreement`'s to say; it needs eight or more policies that were trained apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from wamkit.data.loader import Frames
from wamkit.eval import EvaluationError
from wamkit.eval.inverse import reader
from wamkit.family import Family, row_seeds, unsupported
from wamkit.types import Observation, Query, Spec, UnsupportedQuery

_BATCH = 64


class Judge(nn.Module):
    """Reads one picture: the logit of success, and proprioception.

    threshold: of the probability from which success is believed.   accuracy: on real episodes that it was not trained on, balanced
    over those that succeeded and those that did not: 1 is always right, 0.5 a guess.
    """

    def __init__(self, spec: Spec, views: int, mean: np.ndarray, std: np.ndarray):
        super().__init__()
        self.net = reader(3 * views, spec, 1 + len(mean))
        self.threshold, self.accuracy = 0.5, float("nan")
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32))

    def forward(self, pictures: UInt8[Tensor, "B V 3 H W"]) -> tuple[Float[Tensor, " B"], Float[Tensor, "B s"]]:
        """(logit, normalised proprioception)."""
        out = self.net(pictures.float().flatten(1, 2) / 127.5 - 1)
        return out[:, 0], out[:, 1:]

    @torch.no_grad()
    def read(self, pictures: UInt8[np.ndarray, "B V 3 H W"]) -> tuple[np.ndarray, np.ndarray]:
        """Probability of success float32 (B,), and proprioception in the robot's units, float32 (B, s)."""
        parts = [self(x) for x in torch.from_numpy(np.ascontiguousarray(pictures)).split(_BATCH)]
        logit, state = (torch.cat(x) for x in zip(*parts, strict=True))
        return logit.sigmoid().numpy(), (state * self.std + self.mean).numpy()


def shown(success: Bool[np.ndarray, " N"], episode: np.ndarray) -> Bool[np.ndarray, " N"]:
    """Whether the picture of each row shows success: what the action *before* it came to."""
    out = np.roll(success, 1)
    out[np.flatnonzero(np.diff(episode, prepend=-1))] = False
    return out


def train_judge(
    frames: Frames,
    success: Bool[np.ndarray, " N"],
    held_out: Frames,
    held_out_success: Bool[np.ndarray, " N"],
    spec: Spec,
    *,
    seed: int = 0,
    steps: int = 800,
    every: int = 8,
    progress: bool = True,
) -> Judge:
    """A judge of `frames`, calibrated on `held_out`. success: after the action of each row, as a store's "next.success" has it.

    every: steps between the frames of an episode that it will be shown: the more it sees, the more often one of them deceives it.

    About a minute on one core; the same seed gives the same weights. Raises EvaluationError where either has no success, or nothing else.
    """
    truth, told = shown(success, frames.episode), shown(held_out_success, held_out.episode)
    for name, x in (("training", truth), ("held-out", told)):
        if x.all() or not x.any():
            raise EvaluationError(f"the {name} recordings all succeed or all fail: a judge needs pictures of both")
    torch.manual_seed(seed)
    judge = Judge(spec, frames.images.shape[1], frames.proprio.mean(0), np.maximum(frames.proprio.std(0), 1e-6))
    rng, good, bad = np.random.default_rng(seed), np.flatnonzero(truth), np.flatnonzero(~truth)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in tqdm(range(steps), desc="judge", unit="step", leave=False, disable=not progress):
        # Half of the pictures show success, which few do; near misses come with the other half.
        rows = np.concatenate([rng.choice(good, _BATCH // 2), rng.choice(bad, _BATCH // 2)])
        logit, state = judge(torch.from_numpy(np.ascontiguousarray(frames.images[rows])))
        wanted = (torch.from_numpy(frames.proprio[rows]) - judge.mean) / judge.std
        loss = F.binary_cross_entropy_with_logits(logit, torch.from_numpy(truth[rows]).float())
        loss = loss + F.mse_loss(state, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return _calibrated(judge.eval(), held_out, told, every)


def _calibrated(judge: Judge, frames: Frames, told: np.ndarray, every: int) -> Judge:
    """The threshold that tells successful episodes from others best, by their best picture, as dreams are judged."""
    start = np.maximum.accumulate(np.where(np.diff(frames.episode, prepend=-1), np.arange(len(frames)), 0))
    rows = np.flatnonzero((np.arange(len(frames)) - start) % every == 0)
    probability, _ = judge.read(frames.images[rows])
    names = np.unique(frames.episode[rows])
    best = np.array([probability[frames.episode[rows] == e].max() for e in names])
    truth = np.array([told[frames.episode == e].any() for e in names])
    if truth.all() or not truth.any():
        raise EvaluationError("the held-out episodes all succeed or all fail: a judge is calibrated on both")
    edges = np.unique(best)
    cuts = np.concatenate([[edges[0] / 2], (edges[1:] + edges[:-1]) / 2, [(1 + edges[-1]) / 2]])
    right = np.array([((best >= c)[truth].mean() + (best < c)[~truth].mean()) / 2 for c in cuts])
    ties = cuts[right >= right.max() - 1e-9]
    judge.threshold, judge.accuracy = float(ties[len(ties) // 2]), float(right.max())
    return judge


@dataclass(frozen=True)
class Dream:
    """What became of R starts inside a world model. success: bool (R,).   steps: until success was seen, or `max_steps`.

    frames: uint8 (R, Q, V, 3, H, W), what was imagined, one picture every `replan_every` steps.
    actions: float32 (R, Q * replan_every, a), what was done.
    """

    success: Bool[np.ndarray, " R"]
    steps: np.ndarray
    frames: UInt8[np.ndarray, "R Q V 3 H W"]
    actions: Float32[np.ndarray, "R T a"]


def dream(
    policy: Family,
    world: Family,
    judge: Judge,
    starts: Sequence[Observation],
    *,
    replan_every: int = 8,
    max_steps: int = 200,
    seed: int = 0,
    candidates: int = 1,
    spread: float = 0.0,
    progress: bool = True,
) -> Dream:
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
    return Dream(success, steps, np.stack(frames, 1), np.concatenate(done, 1))


def _looking(seen: Sequence[dict[int, Observation]], t: int, spec: Spec, times: int) -> list[Observation]:
    """What is seen at step `t`, with what the model looks back at; each row so many times."""
    now = [replace(own[t], past=tuple(own.get(t + o) for o in spec.past_offsets)) for own in seen]
    return [o for o in now for _ in range(times)]
