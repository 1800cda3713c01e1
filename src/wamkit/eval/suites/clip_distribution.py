"""Clip distribution: distance of imagined from real clips as sets, by features without learned weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Integer, Shaped
from torch import Tensor
from torch.nn import functional as F

from wamkit.data.loading.windows import Frames, Windows
from wamkit.eval.metrics.image import unit
from wamkit.eval.metrics.video_distribution import ClipFeatures, frechet_distance, polynomial_mmd
from wamkit.eval.queries import answerable, query_windows, row_batches, whole_windows, window_seeds
from wamkit.eval.registry import EVALUATIONS, Context, Evaluation
from wamkit.eval.results import VISUAL, EvalResult, Row, Table
from wamkit.inference.model import Model
from wamkit.types import Query

Encoder = Callable[[Shaped[Tensor, "m V C H W"]], Float[Tensor, "m K"]]

KEY, TITLE = "clip_distribution", "Are its clips like real ones, as a set?"

POOLED = "pooled8"
"""Name of `pooled`, part of the names of its figures."""

WINDOWS = 256


def pooled(frames: Shaped[Tensor, "m V C H W"]) -> Float[Tensor, "m K"]:
    """Means of colour and of edge strength in 8 x 8 cells of every view, K = V (C + 1) 64, colours in [0, 1].

    No weights, hence the same for everyone. Sees the places of colours, and blur. Blind to the identity of objects, and
    to changes within a cell that keep its mean.
    """
    x = unit(frames)
    edges = x.diff(dim=-1).abs()[..., :-1, :] + x.diff(dim=-2).abs()[..., :-1]
    cells = [
        F.adaptive_avg_pool2d(y.flatten(0, 1), 8).unflatten(0, y.shape[:2]) for y in (x, edges.mean(2, keepdim=True))
    ]
    return torch.cat([c.flatten(1) for c in cells], 1)


@dataclass(frozen=True)
class ClipSet:
    """Real and imagined futures of demonstrations, uint8. episode: the episode of each clip, for intervals."""

    current: Shaped[Tensor, "N V C H W"]
    truth: Shaped[Tensor, "N F V C H W"]
    imagined: Shaped[Tensor, "N F V C H W"]
    episode: Integer[np.ndarray, " N"]

    def whole(self, future: Shaped[Tensor, "N F V C H W"]) -> Shaped[Tensor, "N K V C H W"]:
        """Clips that begin with the current frame and go on with `future`; K = F + 1."""
        return torch.cat([self.current.unsqueeze(1), future], 1)

    @property
    def copied(self) -> Shaped[Tensor, "N F V C H W"]:
        """The future of a model that copies its current frame."""
        return self.current.unsqueeze(1).expand_as(self.truth)


def clip_set(model: Model, frames: Frames, *, seed: int = 0) -> ClipSet:
    """Futures that `model` imagines for up to `WINDOWS` windows of demonstrations. Empty without demonstrations.

    Views that no window has are left out, and so are windows that lack one of the others: a set of clips has one shape.
    """
    query = next(q for q in (Query.JOINT, Query.VIDEO, Query.FORWARD) if q in model.queries)
    starts = whole_windows(frames, model.spec, 4)
    starts = starts[frames.is_demonstration[frames.episode[starts]]]
    starts = np.sort(np.random.default_rng(seed).permutation(starts)[:WINDOWS])
    windows = Windows(frames, model.spec, seed=0, batch_size=1)
    current, truth, imagined, valid = [], [], [], []
    for rows in row_batches(len(starts)):
        batch = answerable(windows.gather(starts[rows]), model.embodiment)
        out = query_windows(model, batch, query, window_seeds(starts[rows], seed))
        current.append(batch.obs)
        truth.append(batch.future)
        imagined.append(torch.from_numpy(out.future))
        every = torch.ones(batch.obs.shape[:2], dtype=torch.bool)
        valid.append(every if batch.view_valid is None else batch.view_valid)
    if not len(starts):
        return ClipSet(*(torch.empty(0) for _ in range(3)), episode=frames.episode[starts])
    has = torch.cat(valid)
    views = has.any(0)
    whole = has[:, views].all(1)
    now, real, guess = (torch.cat(x)[whole] for x in (current, truth, imagined))
    return ClipSet(now[:, views], real[:, :, views], guess[:, :, views], episode=frames.episode[starts[whole.numpy()]])


def clip_distribution_table(clips: ClipSet, *, encoder: Encoder = pooled, name: str = POOLED, seed: int = 0) -> Table:
    """Distances of imagined from real clips of demonstrations, beside their floor (two halves of real clips) and
    copying.

    A clip is the current frame and the F futures of a window. The table has no rows for fewer than four demonstrations,
    which a floor needs.
    """
    if (found := len(np.unique(clips.episode))) < 4:
        return Table(KEY, TITLE, f"A floor needs four demonstrations, there are {found}.", (), VISUAL)
    truth, guess, still = (
        ClipFeatures.encode(clips.whole(x), encoder, name, clips.episode)
        for x in (clips.truth, clips.imagined, clips.copied)
    )
    distance, copied = (polynomial_mmd(truth, x, seed) for x in (guess, still))
    frechet = frechet_distance(truth, guess, seed)
    floor = distance.floor
    rows = [
        Row(
            f"mmd.{name}",
            distance.name,
            distance.value.value,
            distance.value,
            fmt=".1e",
            note=f"two halves of real clips {floor.value:.1e} ({floor.low:.1e} to {floor.high:.1e}); "
            f"a copied frame {copied.value.value:.1e}",
        ),
        Row(
            f"frechet.{name}",
            f"{frechet.name}, over its floor",
            frechet.value / frechet.floor if frechet.floor > 0 else float("nan"),
            None,
            fmt=".2f",
            note=f"{frechet.value:.2e} over {frechet.floor:.2e} of two halves of real clips; 1 is as like",
        ),
    ]
    how = (
        f"{len(clips.episode)} clips of {found} demonstrations; unbiased polynomial MMD, 0 is alike. "
        "Never compare it with another encoder's."
    )
    return Table(KEY, TITLE, how, tuple(rows), VISUAL)


def evaluated_clips(context: Context) -> ClipSet:
    """Clips of the validation episodes, imagined once per context."""
    return context.shared("clips", lambda: clip_set(context.model, context.frames))


@EVALUATIONS.register("clip_distribution")
class ClipDistribution(Evaluation):
    """Distances of imagined from real clips as sets."""

    suite, order = "full", 20

    def needs(self, context: Context) -> bool:
        return context.imagines

    def run(self, context: Context) -> EvalResult:
        return EvalResult((clip_distribution_table(evaluated_clips(context)),))
