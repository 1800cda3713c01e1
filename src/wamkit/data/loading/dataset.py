"""From a store on disk to training data: frames, the spec, normalisation statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from wamkit.data.format.store import Store, StoreError
from wamkit.data.image_transform import nearest_size, sane_size
from wamkit.data.importers.run import require_whole
from wamkit.data.loading.lazy_frames import CACHE_GB, open_images
from wamkit.data.loading.windows import COLLECT_POINTS, Frames, Windows
from wamkit.data.sanity import require_sane
from wamkit.nn.scaling import LIMIT, Normalisation, measured
from wamkit.nn.tokens import ImageTokens
from wamkit.types import Spec


def open_frames(
    data: str | Path | Store,
    size: tuple[int, int] | None = None,
    cache_gb: float = CACHE_GB,
    clipped: bool = False,
) -> tuple[Frames, Store]:
    """The frames of a store, with images memory-mapped from its frame cache, which the first call builds.

    data: a store, or its folder.
    size: (H, W) to resize images to, by area averaging; None for the recorded size.
    cache_gb: budget of the frame cache. Frames beyond it are decoded for each batch (`lazy_frames`).
    clipped: True for training with normalisation by quantiles, which prints a note of values that cannot be meant.

    Raises StoreError for an import that was cut off, for a store without episodes, and otherwise for values that
    cannot be meant (`data.sanity`).
    """
    store = data if isinstance(data, Store) else Store.open(data)
    require_whole(store.root)
    if not len(store):
        raise StoreError(f"{store.root} holds no episodes: collect some with `wamkit collect --out {store.root} ...`")
    for note in require_sane(store, clipped):
        print(f"note: {note}", flush=True)
    columns = store.numeric()
    return (
        Frames(
            images=open_images(store, size, cache_gb),
            proprio=columns["observation.state"],
            action=columns["action"],
            action_expert=columns["action.expert"],
            episode=columns["episode_index"],
            text=tuple(store.rows.instructions()),
            is_demonstration=store.rows.demonstrations(),
            has_action=np.full(len(store), bool(store.layout.action_names)),
            scene_flow=store.scene_flow(),
            text_index=columns["task_index"],
            texts=store.texts,
            has_view=_views(store),
        ),
        store,
    )


def _views(store: Store) -> np.ndarray | None:
    """The views that each episode has, bool (E, V); None where all have all."""
    seen = [store.rows.seen(camera) for camera in store.cameras]
    return None if all(x.all() for x in seen) else np.stack(seen, 1)


def spec_of(
    store: Store,
    chunk: int,
    frame_offsets: tuple[int, ...],
    past_offsets: tuple[int, ...] = (),
    points: bool = False,
    size: tuple[int, int] | None = None,
) -> Spec:
    """Shapes and clocks of windows over `store`, with its scene points if `points`, and with images resized to `size`.

    Raises StoreError when images are not a whole number of image tokens, or when there are no points.
    """
    height, width = size or store.layout.image_shape[1:]
    check_size(height, width, f"{store.root}: images are {height}x{width}" if size is None else "--size")
    if points and not store.layout.point_grid:
        raise StoreError(
            f"{store.root} has no scene points, which this family needs: {COLLECT_POINTS.format(32)} into a new folder"
        )
    return Spec(
        cameras=store.cameras,
        height=height,
        width=width,
        proprio_dim=len(store.layout.proprio_names),
        action_dim=len(store.layout.action_names),
        chunk=chunk,
        frame_offsets=frame_offsets,
        past_offsets=past_offsets,
        fps=store.layout.fps,
        point_grid=store.layout.point_grid if points else 0,
    )


def check_size(height: int, width: int, where: str) -> None:
    """Raises StoreError, with sizes that would do, unless images of this size are a whole number of image tokens."""
    if height % ImageTokens.stride or width % ImageTokens.stride:
        sizes = dict.fromkeys((nearest_size(height, width), sane_size(height, width)))
        fits = " or ".join(f"--size {h} {w}" for h, w in sizes)
        raise StoreError(
            f"{where}: height {height} and width {width} must be multiples of {ImageTokens.stride}: train with {fits}"
        )


def statistics(frames: Frames, spec: Spec, how: Normalisation = "mean_std") -> dict[str, Any]:
    """Shift and scale of the state and the executed actions, measured over all frames in use, JSON-able.

    Name -> "mean" and "std", lists: mean and deviation, or whatever else `how` takes for the middle and the scale; and
    with quantiles "limit", beyond which values are clipped. Actions are those of the episodes that have any.

    If the spec has points, there is also "point_flow". Its mean is 0, so that points at rest stay 0. Its deviation is
    the root mean square over the moving points of the demonstrations, one for all axes, which preserves directions; 0,
    so that all points stay at rest, where nothing moves.
    """
    rows = frames.rows()
    columns = {"proprio": frames.proprio[rows], "action": frames.action[rows[frames.has_action[frames.episode[rows]]]]}
    out: dict[str, Any] = {}
    for name, x in columns.items():
        shift, scale = measured(x, how)
        limit = {"limit": LIMIT} if how == "quantiles" else {}
        out[name] = {"mean": shift.tolist(), "std": scale.tolist()} | limit
    if spec.point_grid:
        shown = rows[frames.is_demonstration[frames.episode[rows]]]
        shown = shown[:: max(1, len(shown) // _FLOW_SAMPLE)]
        batch = Windows(frames, spec, seed=0, batch_size=1).gather(shown)
        flow = batch.point_flow[batch.frame_valid].numpy()
        flow = flow[np.linalg.norm(flow, axis=-1) > _STILL]
        deviation = float(np.sqrt(np.square(flow, dtype=np.float64).mean())) if len(flow) else 0.0
        out["point_flow"] = {"mean": [0.0] * 3, "std": [deviation] * 3}
    return out


_FLOW_SAMPLE = 500
"""Windows from which the statistics of flow are computed."""

_STILL = 1e-3
"""Displacement in metres below which a point counts as at rest."""
