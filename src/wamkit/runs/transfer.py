"""A trained run as the start of another one, on other data: which of its weights the new model takes over.

Weights of the same name and shape are kept. Tables over places in the image are resized, as vision transformers do
with their positions (Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.2). Of the layers that read or write the
vectors of a mixture, the parts of the embodiments that both know are kept, so that a model gains a robot. All others
start anew. Statistics are those of the new data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from wamkit.data.embodiment import Embodiment
from wamkit.families.base import Family
from wamkit.runs.base_model import check_base, video_backbone
from wamkit.runs.run import Run
from wamkit.types import Spec, WamkitError

How = Literal["kept", "resized", "widened", "new"]


@dataclass(frozen=True)
class Transferred:
    """The fate of one tensor of the new model. old: its shape in the source, () where that lacks it."""

    name: str
    how: How
    shape: tuple[int, ...]
    old: tuple[int, ...] = ()


def transfer(model: Family, source: Run, embodiments: Mapping[str, Embodiment] | None = None) -> list[Transferred]:
    """Sets the weights of `model`, before its first step, to those of `source` as far as they fit.

    embodiments: those of the new model, if it is one of a mixture.
    Raises WamkitError for a run of another family, and CheckpointError for damaged weights.
    """
    check_family(source.label, source.config.family, model.name)
    _check_backbone(source, model.config)
    given, own = source.weights(), model.state_dict()
    aligned = _aligned(source.embodiments, embodiments or {})
    out = []
    for name, value in own.items():
        old = given.get(name)
        if name.startswith("normalizer."):
            continue
        taken, how = (None, "new") if old is None else _fitted(old, value, source.spec, model.spec, aligned)
        if taken is not None:
            own[name] = taken.to(value)
        out.append(Transferred(name, how, tuple(value.shape), () if old is None else tuple(old.shape)))
    model.load_state_dict(own)
    return out


def check_family(label: str, source: str, family: str) -> None:
    """Raises WamkitError where the run `label`, of the family `source`, cannot be the start of one of `family`."""
    if source != family:
        raise WamkitError(
            f"{label} is a '{source}', whose weights do not fit a '{family}': leave --recipe out, or take "
            f"--recipe {source}"
        )


def _check_backbone(source: Run, config: Any) -> None:
    """Raises WamkitError where weights of a pretrained backbone would be lost, since not both runs list them."""
    was, now = video_backbone(source.config.model), video_backbone(config)
    if was is None and now is None:
        return
    lists = [b and (b.freeze, b.lora.rank) for b in (was, now)]
    if lists[0] != lists[1]:
        raise WamkitError(
            f"{source.label} and the new run differ in backbone.freeze or backbone.lora.rank, so that weights of their "
            "pretrained backbone would be lost: give both the same, or start from what `wamkit export --merge` writes"
        )
    if was and now and (was.freeze or was.lora.rank):
        check_base(config, source.described)


def _aligned(old: Mapping[str, Embodiment], new: Mapping[str, Embodiment]) -> bool:
    """True where the vectors of both mixtures begin alike: the embodiments that both know have the same places."""
    shared = old.keys() & new.keys()

    def places(e: Embodiment) -> list[tuple[int, int]]:
        return [(slot.at, slot.size) for slot in (*e.state, *e.action)]

    return bool(shared) and shared == old.keys() and all(places(old[n]) == places(new[n]) for n in shared)


def _fitted(old: Tensor, new: Tensor, was: Spec, now: Spec, aligned: bool) -> tuple[Tensor | None, How]:
    """The weights to start from, and how they came about; None for those that start anew."""
    if old.shape == new.shape:
        return old, "kept"
    if old.ndim == new.ndim == 4 and old.shape[:2] == new.shape[:2] and old.shape[0] == 1:
        return F.interpolate(old, new.shape[2:], mode="bilinear", align_corners=False), "resized"
    if old.ndim == new.ndim == 2 and old.shape[1] == new.shape[1]:
        before, after = (_grid(len(x), s) for x, s in ((old, was), (new, now)))
        if before and after:
            image = old.T.reshape(1, -1, *before)
            return F.interpolate(image, after, mode="bilinear", align_corners=False)[0].flatten(1).T, "resized"
    if aligned and old.ndim == new.ndim:
        return _widened(old, new, was, now)
    return None, "new"


def _grid(cells: int, spec: Spec) -> tuple[int, int] | None:
    """Rows and columns of a table with one row for each cell of the views, side by side; None for other tables."""
    pixels = spec.height * spec.width * spec.views
    stride = math.isqrt(pixels // cells) if pixels % cells == 0 else 0
    if not stride or stride * stride * cells != pixels or spec.height % stride or spec.width % stride:
        return None
    return spec.height // stride, spec.width * spec.views // stride


def _widened(old: Tensor, new: Tensor, was: Spec, now: Spec) -> tuple[Tensor | None, How]:
    """The new tensor with the parts of the dimensions that the old one had, wherever an axis is one of the vectors'."""
    out = new.clone()
    axes = [i for i, (a, b) in enumerate(zip(old.shape, new.shape, strict=True)) if a != b]
    if len(axes) != 1:
        return None, "new"
    axis = axes[0]
    for steps in _steps(old.shape[axis], new.shape[axis], was, now):
        before, after = (x.movedim(axis, 0).unflatten(0, (steps, -1)) for x in (old, out))
        after[:, : before.shape[1]] = before
        return out, "widened"
    return None, "new"


def _steps(old: int, new: int, was: Spec, now: Spec) -> Iterator[int]:
    """The number of steps in one token, where an axis holds states or actions of so many steps."""
    for a, b in ((was.action_dim, now.action_dim), (was.proprio_dim, now.proprio_dim)):
        if a and b > a and old % a == 0 and new % b == 0 and old // a == new // b:
            yield old // a


def transfer_table(taken: list[Transferred]) -> str:
    """Lines for people: numbers of values by how they came about, and the tensors that were not simply kept."""
    total = {
        how: sum(math.prod(t.shape) for t in taken if t.how == how) for how in ("kept", "resized", "widened", "new")
    }
    lines = [", ".join(f"{how} {count:,} values" for how, count in total.items() if count)]
    for t in taken:
        if t.how != "kept":
            shapes = " -> ".join("x".join(map(str, s)) for s in (t.old, t.shape) if s or t.old == s)
            lines.append(f"  {t.how:<8} {t.name} ({shapes})")
    return "\n".join(lines)
