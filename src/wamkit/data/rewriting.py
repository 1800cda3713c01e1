"""Episodes of one data set that go into another: their images as they are stored, without a loss where that can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from wamkit.data.format.checksums import digest_of
from wamkit.data.format.copied import VideoCopy, reason_to_encode
from wamkit.data.format.schema import Layout
from wamkit.data.format.stills import Encoded, encode_camera
from wamkit.data.format.store import Store


def files_of_one_episode(store: Store) -> frozenset[Path]:
    """The videos that hold one episode alone, which may be copied."""
    owners = Counter(path for _, _, path, _ in store.videos())
    return frozenset(path for path, episodes in owners.items() if episodes == 1)


def images_as_stored(store: Store, index: int, layout: Layout, alone: frozenset[Path]) -> dict[str, Encoded]:
    """The images of episode `index` by camera, for `Store.append` of a store with `layout`. Absent cameras have none.

    alone: videos to copy byte for byte (`files_of_one_episode`). Others are encoded again.
    """
    return dict(_images(store, index, layout, alone))


def _images(store: Store, index: int, layout: Layout, alone: frozenset[Path]) -> Iterator[tuple[str, Encoded]]:
    steps = store.episodes[index].length
    for camera in (c for c in store.cameras if store.shows(index, c)):
        path = store.video_path(index, camera)
        if camera not in layout.stills and path in alone:
            recorded = store.checksum(index, camera)
            copy = VideoCopy(path, recorded or digest_of(path))
            if recorded or not reason_to_encode(path, layout.fps, layout.size(camera), steps):
                yield camera, copy
                continue
        frames = (frame.transpose(1, 2, 0) for block in store.decode_blocks(index, camera) for frame in block)
        yield camera, encode_camera(frames, layout, camera, steps)
