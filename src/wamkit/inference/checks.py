"""Checks of what a query is given: observations, actions, futures, seeds. Every error names the field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from wamkit.data.image_transform import LARGEST_SIDE, ImageTransform
from wamkit.families.base import FAMILIES
from wamkit.types import Batch, KVMemory, Observation, ObservationError, Query, Spec


def unsupported(name: str, query: Query) -> str:
    """The message for a query that the family `name` does not model; it lists the families that do."""
    able = sorted(n for n in FAMILIES.names() if query in FAMILIES.get(n).queries)
    if name in able:
        return (
            f"this '{name}' was configured so that it cannot answer '{query}' "
            "(its program keeps one stream from the other)"
        )
    return f"family '{name}' does not model the query '{query}'; families that do: {', '.join(able) or 'none'}"


def row_seeds(seed: int | Sequence[int], rows: int) -> list[int]:
    """One seed a row, from one seed for all rows or one for each.

    Raises ObservationError for the wrong number of seeds, and for seeds that are not whole numbers from 0 on.
    """
    given = np.asarray(seed)
    if given.dtype.kind not in "iu" or given.ndim > 1 or (given < 0).any():
        raise ObservationError(f"seed = {seed!r}: must be a whole number from 0 on, or one for each row")
    if given.ndim and len(given) != rows:
        raise ObservationError(f"{rows} observations need {rows} seeds (or one), got {len(given)}")
    return given.tolist() if given.ndim else [(int(given) + 1_000_003 * i) % 2**63 for i in range(rows)]


def query_batch(
    rows: Sequence[Observation], query: Query, spec: Spec, actions: np.ndarray | None, future: np.ndarray | None
) -> Batch:
    """Checks the inputs of a query against `spec` and stacks them to a `Batch` of B rows.

    actions: float (A, a) or (B, A, a), for `forward` alone.
    future: uint8 (F, V, 3, H, W) or (B, F, V, 3, H, W), for `inverse` alone.
    Fields that the query is not given hold zeros.
    Raises ObservationError naming the row and the field.
    """
    B, F_ = len(rows), len(spec.frame_offsets)
    if B == 0:
        raise ObservationError("no observation was given")
    for i, row in enumerate(rows):
        _check_row(row, spec, f"observation {i}")
    image = (spec.views, 3, spec.height, spec.width)
    a = _given("actions", actions, query is Query.FORWARD, (B, spec.chunk, spec.action_dim), np.floating, query)
    f = _given("future", future, query is Query.INVERSE, (B, F_, *image), np.uint8, query)
    action = torch.from_numpy(a.astype(np.float32))
    # Before the episode began, and where a memory stands for the observation, the present fills the row unread.
    past = [[p if isinstance(p, Observation) else row for p in row.past] for row in rows]
    earlier = lambda f, shape: np.array([[f(p) for p in ps] for ps in past]).reshape(B, -1, *shape)  # noqa: E731
    seen = [r.view_valid for r in rows]
    every = np.ones(spec.views, bool)
    return Batch(
        obs=torch.from_numpy(np.stack([_seen(r) for r in rows])),
        future=torch.from_numpy(f.astype(np.uint8)),
        frame_valid=torch.ones(B, F_, dtype=torch.bool),
        proprio=torch.from_numpy(np.stack([r.proprio for r in rows])),
        action=action,
        action_expert=action,
        action_valid=torch.ones(B, spec.chunk, dtype=torch.bool),
        past=torch.from_numpy(earlier(_seen, image).astype(np.uint8)),
        past_proprio=torch.from_numpy(earlier(lambda p: p.proprio, (spec.proprio_dim,)).astype(np.float32)),
        past_valid=torch.tensor([[p is not None for p in row.past] for row in rows], dtype=torch.bool),
        text=[r.text for r in rows],
        has_action=torch.ones(B, dtype=torch.bool),
        is_demonstration=torch.ones(B, dtype=torch.bool),
        point_cloud=torch.from_numpy(np.stack([r.point_cloud for r in rows if r.point_cloud is not None]))
        if spec.point_grid
        else None,
        view_valid=None
        if all(s is None for s in seen)
        else torch.from_numpy(np.stack([every if s is None else s for s in seen])),
    )


def fitted(obs: Observation, image: ImageTransform, where: str = "observation") -> Observation:
    """`obs` with its images, and those of its past, as the network takes them. Raises ObservationError."""
    if not isinstance(obs, Observation) or obs.images is None:
        return obs  # which `check_observation` refuses by name
    past = tuple(fitted(p, image, f"{where}, past") if isinstance(p, Observation) else p for p in obs.past)
    return replace(obs, images=fitted_images(obs.images, image, where), past=past)


def fitted_images(images: Any, image: ImageTransform, where: str) -> np.ndarray:
    """Images of any size, uint8 (..., V, 3, h, w) or V arrays (3, h, w), as the network takes them."""
    if isinstance(images, (tuple, list)):
        return np.stack([fitted_images(view, image, where) for view in images]) if images else np.zeros(0, np.uint8)
    shape: tuple[int, ...] = images.shape if isinstance(images, np.ndarray) else ()
    if shape[-3:-2] != (3,) or images.dtype != np.uint8 or not 1 <= min(shape) <= max(shape) < LARGEST_SIDE:
        got = f"{images.dtype} {shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise ObservationError(
            f"{where}: images: expected uint8 (V, 3, H, W), colour before height and width, of any size; got {got}"
        )
    return image(images)


def _seen(obs: Observation) -> np.ndarray:
    """The images of an observation, zeros for views that it lacks."""
    images = np.asarray(obs.images)
    return images if obs.view_valid is None else np.where(obs.view_valid[:, None, None, None], images, np.uint8(0))


def check_observation(obs: Observation, spec: Spec, where: str = "observation") -> None:
    """Raises ObservationError, naming the field, unless `obs` has the shapes and types that `spec` describes."""
    if not isinstance(obs, Observation):
        raise ObservationError(f"{where}: expected wamkit.Observation, got {type(obs).__name__}")
    if obs.images is None:
        raise ObservationError(f"{where}: images are missing (the environment was told not to render)")
    wants = (
        ("images", obs.images, np.uint8, (spec.views, 3, spec.height, spec.width)),
        ("proprio", obs.proprio, np.float32, (spec.proprio_dim,)),
    )
    for field, value, dtype, shape in wants:
        if not isinstance(value, np.ndarray) or value.dtype != dtype or value.shape != shape:
            got = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
            raise ObservationError(
                f"{where}: {field}: expected {np.dtype(dtype).name} {shape} as in training, got {got}"
            )
    if (seen := obs.view_valid) is not None:
        if not isinstance(seen, np.ndarray) or seen.dtype != bool or seen.shape != (spec.views,) or not seen.any():
            got = f"{seen.dtype} {seen.shape}" if isinstance(seen, np.ndarray) else type(seen).__name__
            raise ObservationError(
                f"{where}: view_valid: expected bool ({spec.views},), true for one view at least, got {got}"
            )
    if not np.isfinite(obs.proprio).all():
        raise ObservationError(f"{where}: proprio: not all values are finite: {obs.proprio}")
    if not isinstance(obs.text, str) or not obs.text.strip():
        raise ObservationError(f"{where}: text: expected an instruction, got {obs.text!r}")


def check_points(obs: Observation, spec: Spec, where: str) -> None:
    """Raises ObservationError unless `obs` has the scene points that a model of this `spec` needs, if it needs any."""
    if not spec.point_grid:
        return
    shape = (spec.point_grid**2, 4)
    if obs.point_cloud is None:
        raise ObservationError(
            f"{where}: points are missing: this model needs the {shape[0]} scene points of a depth camera, "
            f"float32 {shape} (of MetaWorld: make_env('metaworld', point_grid={spec.point_grid}, ...))"
        )
    if obs.point_cloud.dtype != np.float32 or obs.point_cloud.shape != shape or not np.isfinite(obs.point_cloud).all():
        raise ObservationError(
            f"{where}: points: expected finite float32 {shape} as in training, "
            f"got {obs.point_cloud.dtype} {obs.point_cloud.shape}"
        )


def _check_row(row: Observation, spec: Spec, where: str) -> None:
    """Checks one observation with its points and its past."""
    check_observation(row, spec, where)
    check_points(row, spec, where)
    if len(row.past) != len(spec.past_offsets):
        raise ObservationError(
            f"{where}: past: the model looks back at the steps {spec.past_offsets}, so expected "
            f"{len(spec.past_offsets)} observations (None before the episode began), got {len(row.past)}"
        )
    for offset, earlier in zip(spec.past_offsets, row.past, strict=True):
        if earlier is not None and not isinstance(earlier, KVMemory):
            check_observation(earlier, spec, f"{where}, {-offset} steps ago")


def _given(
    name: str, value: np.ndarray | None, wanted: bool, shape: tuple[int, ...], kind: type, query: Query
) -> np.ndarray:
    """An optional input as an array of `shape`: zeros where the query does not take it."""
    if not wanted:
        if value is not None:
            raise ObservationError(f"the query '{query}' takes no {name}")
        return np.zeros(shape, kind if kind is np.uint8 else np.float32)
    if value is None:
        raise ObservationError(f"the query '{query}' needs {name} of shape {shape[1:]} or {shape}")
    value = np.asarray(value)
    if np.issubdtype(value.dtype, np.floating):
        with np.errstate(over="ignore"):  # values that float32 cannot hold are refused below
            value = value.astype(np.float32)
    value = value[None] if value.ndim == len(shape) - 1 else value
    if value.shape != shape or not np.issubdtype(value.dtype, kind):
        raise ObservationError(f"{name}: expected {kind.__name__} {shape}, got {value.dtype} {value.shape}")
    if kind is np.floating and not np.isfinite(value).all():
        raise ObservationError(f"{name}: not all values are finite")
    return value
