"""A trained run as the start of another one, on other data: which of its weights the new model takes over.

Weights of the same name and shape are kept. Tables over places in the image are resized, view by view, as vision
transformers do with their positions (Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.2). Of the layers that read
or write the vectors of a mixture, the parts of the embodiments that both know are kept, so that a model gains a robot.
All others start anew. Statistics are those of the new data.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wamkit.data.embodiment import Embodiment
from wamkit.families.base import Family
from wamkit.runs.base_model import check_base, video_backbone
from wamkit.runs.run import Run
from wamkit.types import Spec, WamkitError

How = Literal["kept", "resized", "widened", "new"]
_PLACES = re.compile(r"(^|\.)(grid|ask|cell|place\d*|future\.stream\.(position|queries))$")
"""Names of tables over places: rows for the cells of the views, or images of all views side by side."""
_STATE = re.compile(r"proprio|state|feel")
"""In names of what reads or writes the proprioception; the actions' have none of these words."""


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
        taken, how = (None, "new") if old is None else _fitted(name, old, value, source.spec, model.spec, aligned)
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


def _fitted(name: str, old: Tensor, new: Tensor, was: Spec, now: Spec, aligned: bool) -> tuple[Tensor | None, How]:
    """The weights to start from, and how they came about; None for those that start anew."""
    same_views = was.cameras == now.cameras
    places = old.ndim == new.ndim and bool(_PLACES.search(name)) and (old.shape != new.shape or not same_views)
    if places and (resized := _resized(old, new, was, now)) is not None:
        return (old, "kept") if torch.equal(resized, old) else (resized, "resized")
    if old.shape == new.shape:
        return old, "kept"
    if aligned and old.ndim == new.ndim:
        return _widened(name, old, new, was, now)
    return None, "new"


def _resized(old: Tensor, new: Tensor, was: Spec, now: Spec) -> Tensor | None:
    """A table over places for the new views, each from that of the same name, else of the same number, else the first.

    None where it is none for all views.
    """
    if image := old.ndim == 4:
        size, fits = tuple(new.shape[2:]), old.shape[:2] == new.shape[:2] and len(old) == 1
    else:  # (..., cells, D)
        before, after = _grid(old.shape[-2], was), _grid(new.shape[-2], now)
        if before is None or after is None or (*old.shape[:-2], old.shape[-1]) != (*new.shape[:-2], new.shape[-1]):
            return None
        size, fits = after, True
        old = old.transpose(-1, -2).reshape(1, -1, *before)
    if not fits or old.shape[3] % was.views or size[1] % now.views:
        return None
    views, each = old.chunk(was.views, 3), (size[0], size[1] // now.views)
    known = {camera: view for camera, view in zip(was.cameras, views, strict=True)}
    chosen = [known.get(c, views[i] if i < was.views else views[0]) for i, c in enumerate(now.cameras)]
    out = torch.cat([F.interpolate(v, each, mode="bilinear", align_corners=False) for v in chosen], 3)
    return out if image else out.reshape(*new.shape[:-2], new.shape[-1], -1).transpose(-1, -2)


def _grid(cells: int, spec: Spec) -> tuple[int, int] | None:
    """Rows and columns of a table with one row for each cell of the views, side by side; None for other tables."""
    pixels = spec.height * spec.width * spec.views
    stride = math.isqrt(pixels // cells) if pixels % cells == 0 else 0
    if not stride or stride * stride * cells != pixels or spec.height % stride or spec.width % stride:
        return None
    return spec.height // stride, spec.width * spec.views // stride


def _widened(name: str, old: Tensor, new: Tensor, was: Spec, now: Spec) -> tuple[Tensor | None, How]:
    """The new tensor with the parts of the dimensions that the old one had, where an axis is one of the vectors'."""
    out = new.clone()
    axes = [i for i, (a, b) in enumerate(zip(old.shape, new.shape, strict=True)) if a != b]
    of_state = bool(_STATE.search(name))
    a, b = (was.proprio_dim, now.proprio_dim) if of_state else (was.action_dim, now.action_dim)
    if len(axes) != 1 or not 0 < a < b:
        return None, "new"
    axis = axes[0]
    steps, rest = divmod(old.shape[axis], a)  # of which one token holds the vectors
    if rest or new.shape[axis] != steps * b:
        return None, "new"
    before, after = (x.movedim(axis, 0).unflatten(0, (steps, -1)) for x in (old, out))
    after[:, : before.shape[1]] = before
    return out, "widened"


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
