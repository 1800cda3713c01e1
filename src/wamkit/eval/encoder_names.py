"""Pretrained encoders as they are named on the command line."""

from __future__ import annotations

from collections.abc import Sequence

from wamkit.errors import nearest
from wamkit.types import EvaluationError


def encoder_names(named: Sequence[str]) -> list[tuple[str, str]]:
    """Kind and weights of encoders named KIND=WEIGHTS: lpips-alex=TRUNK,HEADS and lpips-vgg=TRUNK,HEADS, dinov2=,
    videomae= (a path or a hub id), i3d=FILE.

    Raises EvaluationError for another kind, and for one without weights.
    """
    pairs = []
    for text in named:
        kind, _, weights = text.partition("=")
        if kind in ("lpips-alex", "lpips-vgg"):
            if not all(weights.partition(",")[::2]):
                raise EvaluationError(f"LPIPS is two files: {kind}=TRUNK,HEADS, not {text!r}")
        elif not weights or kind not in ("dinov2", "videomae", "i3d"):
            near = nearest(kind, ("lpips-alex", "lpips-vgg", "dinov2", "videomae", "i3d"))
            raise EvaluationError(
                "an encoder is named by its kind and weights: lpips-alex=TRUNK,HEADS, lpips-vgg=TRUNK,HEADS, "
                f"dinov2=MODEL, videomae=MODEL or i3d=FILE, not {text!r}{near if weights else ''}"
            )
        pairs.append((kind, weights))
    return pairs
