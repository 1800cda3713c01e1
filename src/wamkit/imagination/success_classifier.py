"""A classifier that reads success off images, so that a world model can stand in for the simulator.

It is trained on real frames and calibrated on other real ones. Its error on the latter accompanies every figure, so
that a wrong ranking of policies can be attributed to the classifier or to the dynamics. It also reads proprioception,
which policies observe and world models do not predict. `eval.metrics.rank_correlation.agreement` measures how well
imagined success orders policies, for which eight or more policies with separate training are needed.
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
from wamkit.nn.normalizer import Normalizer
from wamkit.nn.scaling import measured
from wamkit.types import EvaluationError, Spec

_BATCH = 64


class SuccessClassifier(nn.Module):
    """Reads the logit of success, and proprioception, from one image a view.

    threshold: probability from which success is predicted.
    accuracy: on real episodes that it was not trained on, balanced over successes and failures: 1 is always right, 0.5
        chance.
    """

    def __init__(self, spec: Spec, views: int, proprio: Float[np.ndarray, "N s"]):
        super().__init__()
        self.net = conv_reader(3 * views, spec, 1 + proprio.shape[1])
        self.threshold, self.accuracy = 0.5, float("nan")
        mean, std = map(torch.from_numpy, measured(proprio, "mean_std"))
        self.normalizer = Normalizer({"proprio": (mean, std)})

    def forward(self, images: UInt8[Tensor, "B V 3 H W"]) -> tuple[Float[Tensor, " B"], Float[Tensor, "B s"]]:
        """(logit, normalised proprioception)."""
        out = self.net(images.float().flatten(1, 2) / 127.5 - 1)
        return out[:, 0], out[:, 1:]

    @torch.no_grad()
    def read(self, images: UInt8[np.ndarray, "B V 3 H W"]) -> tuple[np.ndarray, np.ndarray]:
        """Probability of success float32 (B,), and proprioception in the robot's units, float32 (B, s)."""
        parts = [self(x) for x in torch.from_numpy(np.ascontiguousarray(images)).split(_BATCH)]
        logit, state = (torch.cat(x) for x in zip(*parts, strict=True))
        return logit.sigmoid().numpy(), self.normalizer.decode("proprio", state).numpy()


def success_labels(success: Bool[np.ndarray, " N"], episode: np.ndarray) -> Bool[np.ndarray, " N"]:
    """True where the image of a row shows success: the success after the action *before* it.

    success: after the action of each row.   episode: int (N,), the episode of each row.
    """
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
    """A classifier trained on `frames` and calibrated on `held_out`.

    success, held_out_success: after the action of each row, as in a store's column "next.success".
    every: steps between the frames of an episode that it will be shown. The more it sees, the more often one deceives
        it.

    Takes about a minute on one core; the same seed gives the same weights. Raises EvaluationError for recordings that
    all succeed or all fail.
    """
    label, held_out_label = success_labels(success, frames.episode), success_labels(held_out_success, held_out.episode)
    for name, x in (("training", label), ("held-out", held_out_label)):
        if x.all() or not x.any():
            raise EvaluationError(f"the {name} recordings all succeed or all fail: a success classifier needs both")
    torch.manual_seed(seed)
    classifier = SuccessClassifier(spec, frames.images.shape[1], frames.proprio)
    rng, good, bad = np.random.default_rng(seed), np.flatnonzero(label), np.flatnonzero(~label)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in tqdm(range(steps), desc="success classifier", unit="step", leave=False, disable=not progress):
        # Few frames show success, so each batch holds as many of them as of others, near misses among these.
        rows = np.concatenate([rng.choice(good, _BATCH // 2), rng.choice(bad, _BATCH // 2)])
        logit, state = classifier(torch.from_numpy(np.ascontiguousarray(frames.images[rows])))
        target = classifier.normalizer.encode("proprio", torch.from_numpy(frames.proprio[rows]))
        loss = F.binary_cross_entropy_with_logits(logit, torch.from_numpy(label[rows]).float())
        loss = loss + F.mse_loss(state, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return _calibrated(classifier.eval(), held_out, held_out_label, every)


def _calibrated(classifier: SuccessClassifier, frames: Frames, label: np.ndarray, every: int) -> SuccessClassifier:
    """Sets the threshold that best separates successful episodes from others by their best image, as in imagined
    rollouts."""
    start = np.maximum.accumulate(np.where(np.diff(frames.episode, prepend=-1), np.arange(len(frames)), 0))
    rows = np.flatnonzero((np.arange(len(frames)) - start) % every == 0)
    probability, _ = classifier.read(frames.images[rows])
    names = np.unique(frames.episode[rows])
    best = np.array([probability[frames.episode[rows] == e].max() for e in names])
    success = np.array([label[frames.episode == e].any() for e in names])
    if success.all() or not success.any():
        raise EvaluationError("the held-out episodes all succeed or all fail: calibration needs both")
    edges = np.unique(best)
    cuts = np.concatenate([[edges[0] / 2], (edges[1:] + edges[:-1]) / 2, [(1 + edges[-1]) / 2]])
    right = np.array([((best >= c)[success].mean() + (best < c)[~success].mean()) / 2 for c in cuts])
    ties = cuts[right >= right.max() - 1e-9]
    classifier.threshold, classifier.accuracy = float(ties[len(ties) // 2]), float(right.max())
    return classifier
