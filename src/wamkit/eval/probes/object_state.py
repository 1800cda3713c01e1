"""A state probe: reads presence, place and size of objects from one frame, learned from a simulator's frames alone.

What a model imagines is pixels, and laws of physics are about objects. A probe in between must not know what is
plausible: it sees one frame at a time, is trained on real frames, and is frozen. Its errors are part of every figure
that is made from it, so always give `probe_error` on held-out real frames, and the floor (`physical.Violations`). On
frames unlike any real one it can be wrong in any way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from wamkit.types import EvaluationError
from wamkit.workers import one_thread

BATCH = 32


@dataclass(frozen=True)
class States:
    """States of N objects in M frames.

    position: float (M, N, d), in metres (d = 3, world) or any other unit; NaN where the object is not present.
    present: bool (M, N), whether the frame shows it.   area: float (M, N), its share of the frame in [0, 1], 0 where
    not present.
    """

    position: Float[np.ndarray, "M N d"]
    present: Bool[np.ndarray, "M N"]
    area: Float[np.ndarray, "M N"]

    def __post_init__(self) -> None:
        if self.position.ndim != 3 or not self.position.shape[:2] == self.present.shape == self.area.shape:
            raise EvaluationError(
                "states need position (M, N, d), present and area (M, N): "
                f"{self.position.shape}, {self.present.shape}, {self.area.shape}"
            )
        if not np.isfinite(self.position[self.present]).all() or not (self.area[self.present] > 0).all():
            raise EvaluationError("an object that is present has a finite position and a positive area")


@dataclass(frozen=True)
class ProbeError:
    """Errors of a probe on real frames that it was not trained on.

    position, position_p95: mean and 95th percentile of the distance in the positions' unit, where the object is present
    and read.
    area: mean |log(read / true)| there, nats.   lost, invented: shares of present objects that are not read, and of
    absent ones that are. NaN where there is no such case.
    """

    position: float
    position_p95: float
    area: float
    lost: float
    invented: float


class Probe(nn.Module):
    """Convolutions, a spatial softmax (Finn et al., arXiv 1509.06113: where each channel is brightest, as an expected
    place), and a small network that tells the rest. Predicts in units of the training states' spread (`centre`,
    `scale`).
    """

    def __init__(self, objects: int, dims: int, width: int = 32):
        super().__init__()
        self.objects, self.dims = objects, dims
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 6, stride=4, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
        )
        self.head = nn.Sequential(
            nn.Linear(5 * 2 * width, 4 * width), nn.ReLU(), nn.Linear(4 * width, objects * (dims + 2))
        )
        self.register_buffer("centre", torch.zeros(objects, dims + 1))
        self.register_buffer("scale", torch.ones(objects, dims + 1))

    def forward(self, frames: UInt8[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N k"]]:
        """(presence logits, place and log area in the training states' spread, k = dims + 1)."""
        features = self.body(frames.float() / 127.5 - 1)
        rows, columns = (torch.linspace(-2, 2, n) for n in features.shape[-2:])
        cells = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1)
        features = features.flatten(2)
        where = features.softmax(-1)
        size = [features.amax(-1), features.mean(-1), (features * where).sum(-1)]
        out = self.head(torch.cat([(where @ cells).flatten(1), *size], -1)).unflatten(1, (self.objects, -1))
        return out[..., 0], out[..., 1:]


def train_probe(
    frames: UInt8[np.ndarray, "M 3 H W"], states: States, seed: int, steps: int = 1500, width: int = 32
) -> Probe:
    """A probe trained on these frames; the same seed gives the same bits. On one thread, 1500 steps take about 35 s at
    64x64.

    Loss: binary cross-entropy of presence, and where present smooth L1 of place and log area in units of their spread.
    AdamW, learning rate 3e-3 to 0 by a cosine, 32 frames a step. Raises EvaluationError for frames and states that do
    not belong together, and for an object that is in no frame at all.
    """
    _check(frames, states.present)
    if not states.present.any(0).all():
        raise EvaluationError(f"object {int(np.argmin(states.present.any(0)))} is in no frame: nothing to learn from")
    present = torch.from_numpy(states.present)
    values = np.concatenate([states.position, np.log(np.maximum(states.area, 1e-9))[..., None]], -1)
    target = torch.from_numpy(values).float().nan_to_num(0)
    images, generator = torch.from_numpy(frames), torch.Generator().manual_seed(seed)
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = Probe(states.position.shape[1], states.position.shape[2], width)
        for k in range(probe.objects):
            mine = target[present[:, k], k]
            probe.centre[k], probe.scale[k] = mine.mean(0), mine.std(0, correction=0).clamp_min(1e-3)
        goal = (target - probe.centre) / probe.scale
        optimizer = torch.optim.AdamW(probe.parameters(), lr=3e-3, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            rows = torch.randint(len(images), (min(BATCH, len(images)),), generator=generator)
            logit, read = probe(images[rows])
            shown = present[rows]
            miss = F.smooth_l1_loss(read, goal[rows], reduction="none", beta=0.1).mean(-1)
            loss = F.binary_cross_entropy_with_logits(logit, shown.float())
            loss = loss + (miss * shown).sum() / shown.sum().clamp_min(1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return probe.eval().requires_grad_(False)


def read_states(probe: Probe, frames: UInt8[np.ndarray, "M 3 H W"]) -> States:
    """States that the probe reads from each frame alone; an object is present at a probability of .5 or more."""
    _check(frames)
    parts = []
    with one_thread(), torch.no_grad():
        for images in torch.from_numpy(frames).split(8 * BATCH):
            logit, read = probe(images)
            parts.append(torch.cat([logit[..., None], read * probe.scale + probe.centre], -1).double())
    out = torch.cat(parts).numpy()
    present = out[..., 0] >= 0
    position = np.where(present[..., None], out[..., 1:-1], np.nan)
    return States(position, present, np.where(present, np.exp(out[..., -1]), 0.0))


def probe_error(probe: Probe, frames: UInt8[np.ndarray, "M 3 H W"], states: States) -> ProbeError:
    """Errors of the probe on real frames, which must not be those that it was trained on."""
    _check(frames, states.present)
    read = read_states(probe, frames)
    both = read.present & states.present
    away = np.linalg.norm(read.position[both] - states.position[both], axis=-1)
    area = np.abs(np.log(read.area[both] / states.area[both]))
    lost, invented = ~read.present[states.present], read.present[~states.present]
    mean = [float(x.mean()) if x.size else float("nan") for x in (away, area, lost, invented)]
    return ProbeError(mean[0], float(np.percentile(away, 95)) if away.size else float("nan"), *mean[1:])


def _check(frames: np.ndarray, present: np.ndarray | None = None) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1] != 3 or not len(frames):
        raise EvaluationError(f"frames are uint8 (M, 3, H, W), at least one; found {frames.dtype}{frames.shape}")
    if present is not None and (len(present) != len(frames) or not present.shape[1]):
        raise EvaluationError(
            f"{len(frames)} frames and states of {present.shape} (frames, objects) do not belong together"
        )
