"""A world model in the simulator's place: policies act inside of it, and a judge reads success off what it imagines.

The judge is trained on real frames and calibrated on other real ones; its own error there stands beside every figure, so that a wrong
ranking can be blamed on the judge or on the dynamics. The judge also reads proprioception, which policies are shown and world models do not
imagine. How well imagined success orders policies is `eval.ranking.agreement`'s to say; it needs eight or more policies that were trained apart.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from wamkit.data.loading.windows import Frames
from wamkit.nn.conv_reader import conv_reader
from wamkit.types import EvaluationError, Spec

_BATCH = 64


class SuccessClassifier(nn.Module):
    """Reads one picture: the logit of success, and proprioception.

    threshold: of the probability from which success is believed.   accuracy: on real episodes that it was not trained on, balanced
    over those that succeeded and those that did not: 1 is always right, 0.5 a guess.
    """

    def __init__(self, spec: Spec, views: int, mean: np.ndarray, std: np.ndarray):
        super().__init__()
        self.net = conv_reader(3 * views, spec, 1 + len(mean))
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


def train_success_classifier(
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
) -> SuccessClassifier:
    """A judge of `frames`, calibrated on `held_out`. success: after the action of each row, as a store's "next.success" has it.

    every: steps between the frames of an episode that it will be shown: the more it sees, the more often one of them deceives it.

    About a minute on one core; the same seed gives the same weights. Raises EvaluationError where either has no success, or nothing else.
    """
    truth, told = shown(success, frames.episode), shown(held_out_success, held_out.episode)
    for name, x in (("training", truth), ("held-out", told)):
        if x.all() or not x.any():
            raise EvaluationError(f"the {name} recordings all succeed or all fail: a judge needs pictures of both")
    torch.manual_seed(seed)
    judge = SuccessClassifier(
        spec, frames.images.shape[1], frames.proprio.mean(0), np.maximum(frames.proprio.std(0), 1e-6)
    )
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


def _calibrated(judge: SuccessClassifier, frames: Frames, told: np.ndarray, every: int) -> SuccessClassifier:
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
