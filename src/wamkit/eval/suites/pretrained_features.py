"""Perceptual and distribution metrics by pretrained encoders that the user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer, Shaped
from torch import Tensor

from wamkit.eval.encoder_names import encoder_names
from wamkit.eval.metrics.intervals import bootstrap_ratio
from wamkit.eval.metrics.perceptual import I3D, LPIPS, Dinov2, VideoMAE, clip_features
from wamkit.eval.metrics.video_distribution import ClipFeatures, frechet_distance, gaussian_frechet, polynomial_mmd
from wamkit.eval.registry import EVALUATIONS, Context, Evaluation
from wamkit.eval.results import VISUAL, EvalResult, Row, Table
from wamkit.eval.suites.clip_distribution import evaluated_clips
from wamkit.types import EvaluationError, WamkitError


@dataclass(frozen=True)
class Encoders:
    """Encoders that a user named. pairs: compare images.   videos: compare sets of clips. See `encoder_table`."""

    pairs: tuple[LPIPS | Dinov2, ...] = ()
    videos: tuple[VideoMAE | I3D, ...] = ()

    @property
    def names(self) -> list[str]:
        """Each with the hash of its weights."""
        return [e.name for e in (*self.pairs, *self.videos)]


def named_encoders(named: Sequence[str]) -> Encoders:
    """Those that KIND=WEIGHTS name: lpips-alex=TRUNK,HEADS and lpips-vgg=TRUNK,HEADS, dinov2=, videomae= (a path or a
    hub id), i3d=FILE.

    Raises EvaluationError for another kind, and as the encoders do for weights that are not of that kind.
    """
    pairs: list[LPIPS | Dinov2] = []
    videos: list[VideoMAE | I3D] = []
    for kind, weights in encoder_names(named):
        if kind in ("lpips-alex", "lpips-vgg"):
            trunk, _, heads = weights.partition(",")
            pairs.append(LPIPS(trunk, heads, "vgg" if kind == "lpips-vgg" else "alex"))
        elif kind == "dinov2":
            pairs.append(Dinov2(weights))
        else:
            videos.append(VideoMAE(weights) if kind == "videomae" else I3D(weights))
    return Encoders(tuple(pairs), tuple(videos))


def encoder_table(
    current: Shaped[Tensor, "N *V 3 H W"],
    truth: Shaped[Tensor, "N F *V 3 H W"],
    imagined: Shaped[Tensor, "N F *V 3 H W"],
    episode: Integer[np.ndarray, " N"],
    *,
    pairs: Sequence[LPIPS | Dinov2] = (),
    videos: Sequence[VideoMAE | I3D] = (),
    seed: int = 0,
) -> Table:
    """Every figure of these encoders, each beside that of copying the current frame.

    pairs: compare each imagined frame with the true one.   videos: compare sets of clips, the current frame the first
    of each; views are clips of the same episode. Both distances of sets need four episodes. Intervals resample
    episodes. Raises EvaluationError where there is no encoder, and as these do.
    """
    if not pairs and not videos:
        raise EvaluationError("name the weights of an encoder: without them there is none of its figures")
    copy = current.unsqueeze(1).expand_as(truth)
    rows = []
    for pair in pairs:
        model, still = (pair(truth, x).reshape(len(truth), -1).mean(1).double().cpu().numpy() for x in (imagined, copy))
        value = bootstrap_ratio(model, np.ones(len(model)), np.asarray(episode), seed, bounds=(0.0, inf))
        rows.append(
            Row(
                pair.name,
                pair.name,
                value.value,
                value,
                fmt=".3f",
                note=f"{pair.better} is better; copying has {still.mean():.3f}",
            )
        )
    for encoder in videos:
        real, made, still_set = (_whole(encoder, current, x, episode) for x in (truth, imagined, copy))
        mmd, copied = (polynomial_mmd(real, x, seed) for x in (made, still_set))
        note = f"floor {mmd.floor.value:.3g}, copying {copied.value.value:.3g}; unbiased, {mmd.clips} clips a side"
        rows.append(
            Row(f"mmd.{encoder.name}", f"MMD ({encoder.name})", mmd.value.value, mmd.value, fmt=".3g", note=note)
        )
        # FVD is the bare formula on all clips and dimensions; only the halves show its bias with so few clips.
        halves = frechet_distance(real, made, seed, dims=None)
        note = (
            f"copying {gaussian_frechet(real.values, still_set.values):.3g}; of {len(real)} clips a side. "
            f"Mind the bias: with {halves.clips} a side {halves.value:.3g}, and between real ones {halves.floor:.3g}"
        )
        far = gaussian_frechet(real.values, made.values)
        rows.append(Row(f"frechet.{encoder.name}", f"{encoder.distance} ({encoder.name})", far, fmt=".3g", note=note))
    how = (
        f"{len(truth)} futures of {truth.shape[1]} frames. Names are those of the weights (a hash follows @). Figures "
        "of other weights, resolutions, rates or numbers of frames do not compare."
    )
    return Table("pretrained_features", "Do pretrained encoders see it so?", how, tuple(rows), VISUAL)


def _whole(encoder: VideoMAE | I3D, current: Tensor, future: Tensor, episode: np.ndarray) -> ClipFeatures:
    """Features of clips from the current frame on; views are clips of their own."""
    clips = torch.cat([current.unsqueeze(1), future], 1)
    views = clips.shape[2] if clips.ndim == 6 else 1
    clips = clips.transpose(1, 2).flatten(0, 1) if clips.ndim == 6 else clips
    return clip_features(encoder, clips, np.repeat(np.asarray(episode), views))


@EVALUATIONS.register("pretrained_features")
class PretrainedFeatures(Evaluation):
    """Figures of the pretrained encoders that the options name."""

    order = 30

    def encoders(self, context: Context) -> Encoders:
        """The encoders, loaded once per context."""
        return context.shared("encoders", lambda: named_encoders(context.options.encoders))

    def needs(self, context: Context) -> bool:
        return bool(context.options.encoders)

    def check(self, context: Context) -> None:
        encoders, model = self.encoders(context), context.model
        if not context.imagines:
            raise WamkitError(f"encoders compare imagined frames, and {model.name} imagines none: leave out --encoder")
        least, found = 4 if encoders.videos else 1, context.options.held_out * len(context.env.tasks)
        if found < least:
            raise WamkitError(f"these encoders need {least} validation episodes or more, not {found}: raise --held-out")
        frames = 1 + len(model.spec.frame_offsets)
        if short := [e for e in encoders.videos if frames < e.least]:
            raise WamkitError(
                f"{short[0].name} needs clips of {short[0].least} frames or more; this model imagines clips of {frames}"
            )

    def settings(self, context: Context) -> Mapping[str, Any]:
        return {"encoders": self.encoders(context).names}

    def run(self, context: Context) -> EvalResult:
        encoders, c = self.encoders(context), evaluated_clips(context)
        models = {"pairs": encoders.pairs, "videos": encoders.videos}
        return EvalResult((encoder_table(c.current, c.truth, c.imagined, c.episode, **models),))
