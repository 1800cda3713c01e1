"""From a store on disk to what a family trains on: frames, shapes and clocks, statistics of the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from wamkit.data.cache import FrameCache
from wamkit.data.loader import Frames
from wamkit.data.store import Store, StoreError
from wamkit.types import Spec


def open_frames(root: str | Path) -> tuple[Frames, Store]:
    """The frames of the store in `root`, pictures memory-mapped from its decoded cache (built at the first call)."""
    store = Store.open(root)
    if not len(store):
        raise StoreError(f"{root} holds no episodes: collect some with `wamkit collect --out {root} ...`")
    numbers = store.numeric()
    metas = store.episodes
    return (
        Frames(
            images=FrameCache.build_or_open(store).frames,
            proprio=numbers["observation.state"],
            action=numbers["action"],
            action_expert=numbers["action.expert"],
            episode=numbers["episode_index"],
            text=tuple(m.text for m in metas),
            imitate=np.array([m.imitate for m in metas]),
            has_action=np.ones(len(metas), bool),
        ),
        store,
    )


def spec_of(store: Store, chunk: int, frame_offsets: tuple[int, ...], past_offsets: tuple[int, ...] = ()) -> Spec:
    """Shapes and clocks of windows over `store`. Raises StoreError when pictures cannot be cut into 16x16 cells."""
    _, height, width = store.layout.image_shape
    if height % 16 or width % 16:
        raise StoreError(f"{store.root}: pictures are {height}x{width}; height and width must be multiples of 16")
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
    )


def statistics(frames: Frames) -> dict[str, Any]:
    """Mean and deviation of proprioception and executed actions over all frames that are used, JSON-able; of actions, over
    those that have any."""
    rows = frames.rows()
    columns = {"proprio": frames.proprio[rows], "action": frames.action[rows[frames.has_action[frames.episode[rows]]]]}
    return {
        k: {"mean": x.mean(0, np.float64).tolist(), "std": x.std(0, dtype=np.float64).tolist()}
        for k, x in columns.items()
    }
