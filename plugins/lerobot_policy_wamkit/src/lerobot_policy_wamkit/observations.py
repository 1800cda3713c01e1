"""Observations of LeRobot as those of wamkit. This module needs no lerobot."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from wamkit.types import Observation, ObservationError, WamkitError

STATE, IMAGE, IMAGES, TASK = "observation.state", "observation.image", "observation.images.", "task"


def view_keys(
    cameras: Sequence[str], available: Collection[str], names: Mapping[str, str], optional: Collection[str] = ()
) -> tuple[str | None, ...]:
    """The key of each view's images, None for a view that is not there.

    A view is looked for under the key that `names` gives it, else under `observation.images.VIEW`. The images of an
    environment with one camera, which LeRobot names `observation.image`, are those of a run with one camera.

    cameras: views of the run.   available: keys of the images that there are.   optional: views that may be missing.
    Raises WamkitError for a view that is missing, and for a name that is no view.
    """
    if unknown := [name for name in names if name not in cameras]:
        raise WamkitError(f"cameras: the run has no view '{unknown[0]}'; it has {', '.join(cameras)}")
    found: list[str | None] = []
    for camera in cameras:
        key = names.get(camera, IMAGES + camera)
        if key not in available and camera not in names and len(cameras) == 1 and IMAGE in available:
            key = IMAGE
        if key not in available and camera not in optional:
            raise WamkitError(
                f"the run sees by the camera '{camera}', but there is no {key}, only "
                f"{', '.join(sorted(available)) or 'no images'}; name the one that it is: "
                f"""--policy.cameras='{{"{camera}": "{next(iter(sorted(available)), IMAGE)}"}}'"""
            )
        found.append(key if key in available else None)
    return tuple(found)


def observations(
    batch: Mapping[str, Any], keys: Sequence[str | None], states: int, size: tuple[int, int]
) -> list[Observation]:
    """The rows of a batch of LeRobot, one `Observation` each.

    batch: images float (B, 3, H, W) in [0, 1] or uint8, `observation.state` float (B, s), `task` a text or B of them.
    keys: of each view's images, as `view_keys` gives them.   states: number of values of the state.
    size: (H, W) of the black images of absent views.
    Raises ObservationError for what is missing.
    """
    if missing := [key for key in (*keys, STATE) if key and key not in batch and (key != STATE or states)]:
        raise ObservationError(f"the observation lacks {missing[0]}; it has {', '.join(sorted(batch))}")
    views = [None if key is None else _bytes(batch[key]) for key in keys]
    rows = len(batch[next(key for key in keys if key)])
    state = batch[STATE].float().cpu().numpy() if states else np.zeros((rows, 0), np.float32)
    texts = batch.get(TASK) or ""
    texts = [texts] * rows if isinstance(texts, str) else list(texts)
    seen = np.array([view is not None for view in views])
    black = np.zeros((3, *size), np.uint8)
    return [
        Observation(
            images=tuple(black if view is None else view[i] for view in views),
            proprio=state[i],
            text=texts[i],
            view_valid=None if seen.all() else seen,
        )
        for i in range(rows)
    ]


def _bytes(images: torch.Tensor) -> np.ndarray:
    """Images as uint8. LeRobot divides bytes by 255; multiplied again and rounded, they are what they were."""
    if images.dtype != torch.uint8:
        images = (images.float() * 255).round().clamp(0, 255).to(torch.uint8)
    return images.cpu().numpy()
