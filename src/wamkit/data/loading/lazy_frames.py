"""All images of a store as one array, cached or not: frames beyond the cache's budget are decoded when they are needed.

Opening a video costs as much as decoding several frames of it (benchmarks/loading.py, figures in docs/LOG.md). Videos
therefore stay open, as many as fit into a fixed amount of memory.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from wamkit.data.format.frame_cache import FrameCache
from wamkit.data.format.stills import StillImages
from wamkit.data.format.store import Store
from wamkit.data.format.video import Video, decoder_bytes
from wamkit.data.loading.windows import ImageArray

CACHE_GB = 16.0
"""Default budget of a data set's frame cache, in units of 1e9 bytes."""

_OPEN_BYTES = 1 << 28  # approximate memory of all open videos
_MOST_OPEN = 256  # open videos; a process may commonly have 1,024 files open


def open_images(store: Store, size: tuple[int, int] | None = None, cache_gb: float = CACHE_GB) -> ImageArray:
    """All N frames of `store`, uint8 (N, V, 3, H, W).

    size: (H, W) to resize to, by area averaging; None for the recorded size.
    cache_gb: budget of the frame cache, in units of 1e9 bytes. The first episodes are cached as far as it reaches. The
        others are decoded on access, with the same result.

    Raises StoreError as `FrameCache.build_or_open` does, and for a damaged video when it is read.
    """
    height, width = size or store.layout.image_shape[1:]
    room = int(cache_gb * 1e9) // max(1, len(store.cameras) * 3 * height * width)
    ends = np.cumsum(store.rows.lengths())
    cached = int(np.searchsorted(ends, room, side="right"))
    if cached == len(store):
        return FrameCache.build_or_open(store, size).frames
    return _PartlyCached(
        FrameCache.build_or_open(store, size, cached).frames if cached else None, VideoFrames(store, size)
    )


class VideoFrames:
    """All N frames of a store, decoded on access by `frames[index]`, with an int64 array of any shape.

    Several threads may read at once; each uses videos of its own.
    """

    def __init__(self, store: Store, size: tuple[int, int] | None = None):
        height, width = size or store.layout.image_shape[1:]
        self._store, self._size = store, (height, width)
        self.shape = (store.frames, len(store.cameras), 3, height, width)
        self._starts = store.rows.starts()
        self._open: OrderedDict[tuple[Path, str], list[Video | StillImages]] = OrderedDict()
        self._lock = threading.Lock()
        largest = max((decoder_bytes(store.layout.size(c)) for c in store.cameras), default=1)
        self._most = int(np.clip(_OPEN_BYTES // largest, 2, _MOST_OPEN))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> UInt8[np.ndarray, "... V 3 H W"]:
        rows, where = np.unique(np.asarray(index, np.int64), return_inverse=True)
        if len(rows) and not 0 <= rows[0] <= rows[-1] < len(self):
            raise IndexError(f"rows {rows[0]} to {rows[-1]} of {len(self)}")
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        for episode in np.unique(owner).tolist():
            here = np.flatnonzero(owner == episode)
            steps = (rows[here] - self._starts[episode]).tolist()
            for view, camera in enumerate(self._store.cameras):
                out[here, view] = self._decode(episode, camera, steps)
        return out[where.reshape(np.shape(index))]

    def _decode(self, episode: int, camera: str, steps: list[int]) -> np.ndarray:
        """Frames as from `Store.decode_steps`, by an open video that no other thread uses, if there is one."""
        if not self._store.shows(episode, camera):
            return np.zeros((len(steps), 3, *self._size), np.uint8)
        clip = self._store.video_path(episode, camera), camera
        with self._lock:
            waiting = self._open.pop(clip, [])
            video = waiting.pop() if waiting else None
            if waiting:
                self._open[clip] = waiting
        video = video or self._store.open_video(episode, camera)
        images = self._store.decode_from(video, episode, camera, steps, self._size)
        with self._lock:
            self._open[clip] = [*self._open.pop(clip, []), video]  # in the order of their last use
            while sum(map(len, self._open.values())) > self._most:
                for old in self._open.popitem(last=False)[1]:
                    old.close()
        return images


class _PartlyCached:
    """Frames of which the first are cached and the others decoded on access."""

    def __init__(self, cached: np.ndarray | None, videos: VideoFrames):
        self._cached, self._videos, self.shape = cached, videos, videos.shape
        self._split = 0 if cached is None else len(cached)

    def __getitem__(self, index: Any) -> UInt8[np.ndarray, "... V 3 H W"]:
        rows = np.asarray(index, np.int64)
        flat = rows.reshape(-1)
        out = np.empty((len(flat), *self.shape[1:]), np.uint8)
        near = flat < self._split
        if self._cached is not None:
            out[near] = self._cached[flat[near]]
        if not near.all():
            out[~near] = self._videos[flat[~near]]
        return out.reshape(*rows.shape, *self.shape[1:])
