"""Decoded frames of a store in one memory-mapped array, so that training never waits for a video decoder."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from wamkit.data.format.checksums import digest_of
from wamkit.data.format.store import BLOCK_BYTES, Store
from wamkit.data.format.video import decoder_bytes
from wamkit.files import (
    StoreError,
    WriteError,
    cache_folder,
    exclusive,
    file_size,
    fsync_folder,
    inside,
    make_folder,
    remove_leftovers,
    temporary,
    write_error,
)

BUILD_BYTES = 1 << 29
"""Approximate bytes of the frames and decoders that building a cache holds, however many cores there are."""

_HEADER = 4096  # bytes of padded JSON before the pixels: one page, so that the array is aligned
_FORMAT = 3
_BLOCK = 1 << 20  # bytes read at a time
_TRAILER = 4  # bytes after the pixels: their CRC-32


class FrameCache:
    """The N frames of a store or of its first episodes. `cache[index]` copies those at `index`, int64 of any shape.

    path: the cache file.
    frames: uint8 (N, V, 3, H, W), read-only and memory-mapped.
    """

    def __init__(self, path: Path, frames: UInt8[np.ndarray, "N V 3 H W"]):
        self.path, self.frames = path, frames

    @classmethod
    def build_or_open(
        cls, store: Store, size: tuple[int, int] | None = None, episodes: int | None = None
    ) -> FrameCache:
        """Opens the cache of `store` in `files.cache_folder`. If there is none, decodes all videos first, with a bar.

        size: (H, W) to resize to; None for the recorded size.
        episodes: only the first so many; None for all.

        The file's name is a checksum of all videos, so changed recordings get a new file, and files of other recordings
        at this size are removed. It appears whole or not at all, even if two processes build it at once. A damaged file
        is built again: opening reads it once to compare its CRC-32 (0.2 s for 20,000 frames of 64x64).
        Raises StoreError for a damaged video and for a full disk.
        """
        if not store.frames or not store.cameras:
            raise StoreError(f"{store.root} has no images; record episodes with cameras first (wamkit collect)")
        height, width = size or store.layout.image_shape[1:]
        count = len(store) if episodes is None else episodes
        header = {
            "format": _FORMAT,
            "videos": videos_checksum(store, count),
            "shape": [int(store.rows.lengths()[:count].sum()), len(store.cameras), 3, height, width],
        }
        key = hashlib.sha256(json.dumps(header).encode()).hexdigest()[:32]
        name = f"{key}-{height}x{width}.frames"
        path = inside(store.root, f".cache/{name}")
        if not _intact(path, header):
            path = cache_folder(store.root) / name
            try:
                make_folder(path.parent)
                with exclusive(path.parent, wait=True):
                    if not _intact(path, header):  # another process may have built it meanwhile
                        _build(store, count, path, header)
            except WriteError as error:
                raise WriteError(
                    f"{error}; or name another place by --cache-dir, or decode frames at each use by --cache-gb 0"
                ) from error
        return cls(path, np.memmap(path, np.uint8, "r", _HEADER, tuple(header["shape"])).view(np.ndarray))

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: Any) -> UInt8[np.ndarray, "... V 3 H W"]:
        return self.frames[index]


def videos_checksum(store: Store, episodes: int) -> str:
    """The SHA-256 of the first episodes' videos: the content of all files and the place of each clip in them."""
    digests: dict[Path, str] = {}
    total = hashlib.sha256()
    lengths, clips = store.rows.lengths(), itertools.takewhile(lambda clip: clip[0] < episodes, store.videos())
    for episode, camera, path, start in clips:
        if path not in digests:
            digests[path] = digest_of(path)
        total.update(f"{camera} {digests[path]} {start} {lengths[episode]}\n".encode())
    for meta in (row.meta for row in itertools.islice(store.rows, episodes) if row.meta.absent):
        total.update(f"{meta.index} {meta.length} without {sorted(meta.absent)}\n".encode())
    return total.hexdigest()


def _intact(path: Path, header: dict[str, Any]) -> bool:
    """True if the file at `path` has this header and its pixels are as they were written."""
    left = math.prod(header["shape"])
    try:
        if file_size(path) != _HEADER + left + _TRAILER:
            return False
        with open(path, "rb") as file:
            if file.read(_HEADER) != _header_bytes(header):
                return False
            return _checksum(file, left).to_bytes(_TRAILER, "big") == file.read()
    except (OSError, StoreError):
        return False


def _checksum(file: IO[bytes], size: int, checksum: int = 0) -> int:
    """The CRC-32 of the next `size` bytes of a file, or of what there is, continued from `checksum`."""
    while block := file.read(min(size, _BLOCK)):
        size, checksum = size - len(block), zlib.crc32(block, checksum)
    return checksum


def _write_at(file: IO[bytes], data: np.ndarray | bytes, offset: int) -> None:
    left = memoryview(data).cast("B")
    while left:
        written = os.pwrite(file.fileno(), left, offset)
        left, offset = left[written:], offset + written


def _header_bytes(header: dict[str, Any]) -> bytes:
    return json.dumps(header).encode().ljust(_HEADER)


def _build(store: Store, episodes: int, path: Path, header: dict[str, Any]) -> None:
    """Decodes the first episodes into `path`, by write(): on a full disk it raises, a memory map would be killed.

    Threads decode clips, each a few frames at a time, so that neither long episodes nor many cores fill the memory.
    """
    frames, views, *image = header["shape"]
    size, step, metas = tuple(image[-2:]), math.prod(image), store.episodes
    held = 2 * BLOCK_BYTES + max(decoder_bytes(store.layout.size(camera)) for camera in store.cameras)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    remove_leftovers(path)
    try:
        with (
            open(temporary(path), "w+b", buffering=0) as file,
            ThreadPoolExecutor(max(1, min(cores, BUILD_BYTES // held))) as pool,
            tqdm(total=frames * views, unit="image", desc="decoding videos", leave=False) as bar,
        ):

            def decode(clip: tuple[int, int]) -> int:
                episode, view = clip
                row = metas[episode].from_index
                for block in store.decode_blocks(episode, store.cameras[view], size):
                    for part in [block] if views == 1 else block:
                        _write_at(file, part, _HEADER + (row * views + view) * step)
                        row += len(block) if views == 1 else 1
                return episode

            file.write(_header_bytes(header))
            checksum = 0  # of what was written, read again behind the threads, from memory
            clips = [(episode, view) for episode in range(episodes) for view in range(views)]
            with contextlib.closing(pool.map(decode, clips)) as done:  # after an error, what is left is not begun
                for (_, view), episode in zip(clips, done, strict=True):
                    bar.update(metas[episode].length)
                    if view == views - 1:
                        checksum = _checksum(file, metas[episode].length * views * step, checksum)
            file.write(checksum.to_bytes(_TRAILER, "big"))
            os.fsync(file.fileno())
        os.replace(temporary(path), path)
        fsync_folder(path.parent)
    except (OSError, StoreError) as error:
        with contextlib.suppress(OSError):
            temporary(path).unlink(missing_ok=True)
        raise write_error(path, error) if isinstance(error, OSError) else error from error
    for old in path.parent.glob(f"*{path.name.partition('-')[2]}"):
        if old != path and not old.name.startswith("."):
            with contextlib.suppress(OSError):
                old.unlink()
