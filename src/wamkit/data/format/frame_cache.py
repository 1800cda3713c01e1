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
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from wamkit.data.format.store import Store
from wamkit.files import (
    StoreError,
    exclusive,
    file_size,
    fsync_folder,
    inside,
    make_folder,
    remove_leftovers,
    temporary,
    write_error,
)

_HEADER = 4096  # bytes of padded JSON before the pixels: one page, so that the array is aligned
_FORMAT = 3
_BLOCK = 1 << 22  # bytes read at a time
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
        """Opens the cache of `store` in `<root>/.cache`. If there is none, decodes all videos first, with a bar.

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
            "shape": [sum(m.length for m in store.episodes[:count]), len(store.cameras), 3, height, width],
        }
        key = hashlib.sha256(json.dumps(header).encode()).hexdigest()[:32]
        path = inside(store.root, f".cache/{key}-{height}x{width}.frames")
        if not _intact(path, header):
            make_folder(path.parent)
            with exclusive(path.parent, wait=True):
                if not _intact(path, header):  # another process may have built it meanwhile
                    _build(store, count, path, header)
        return cls(path, np.memmap(path, np.uint8, "r", _HEADER, tuple(header["shape"])).view(np.ndarray))

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: Any) -> UInt8[np.ndarray, "... V 3 H W"]:
        return self.frames[index]


def videos_checksum(store: Store, episodes: int) -> str:
    """The SHA-256 of the first episodes' videos: the content of all files and the place of each clip in them."""
    digests: dict[Path, str] = {}
    total = hashlib.sha256()
    clips = itertools.takewhile(lambda clip: clip[0] < episodes, store.videos())
    for meta, (episode, camera, path, start) in ((store.episodes[clip[0]], clip) for clip in clips):
        if path not in digests:
            try:
                with open(path, "rb") as file:
                    digests[path] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise StoreError(
                    f"{path} (episode {episode}, camera {camera}) cannot be read ({error.strerror})"
                ) from error
        total.update(f"{camera} {digests[path]} {start} {meta.length}\n".encode())
    return total.hexdigest()


def _intact(path: Path, header: dict[str, Any]) -> bool:
    """True if the file at `path` has this header and its pixels are as they were written."""
    left, checksum = math.prod(header["shape"]), 0
    try:
        if file_size(path) != _HEADER + left + _TRAILER:
            return False
        with open(path, "rb") as file:
            if file.read(_HEADER) != _header_bytes(header):
                return False
            while block := file.read(min(left, _BLOCK)):
                left, checksum = left - len(block), zlib.crc32(block, checksum)
            return file.read() == checksum.to_bytes(_TRAILER, "big")
    except (OSError, StoreError):
        return False


def _header_bytes(header: dict[str, Any]) -> bytes:
    return json.dumps(header).encode().ljust(_HEADER)


def _build(store: Store, episodes: int, path: Path, header: dict[str, Any]) -> None:
    """Decodes the first episodes into `path`, by write(): on a full disk it raises, a memory map would be killed."""
    size = tuple(header["shape"][-2:])
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def images(episode: int) -> np.ndarray:
        return np.stack([store.decode(episode, camera, size) for camera in store.cameras], axis=1)

    remove_leftovers(path)
    try:
        with (
            open(temporary(path), "wb") as file,
            ThreadPoolExecutor(threads) as pool,
            tqdm(total=header["shape"][0], unit="frame", desc="decoding videos", leave=False) as bar,
        ):
            file.write(_header_bytes(header))
            checksum = 0
            for first in range(0, episodes, threads):  # a few episodes at a time, to bound memory
                for block in pool.map(images, range(first, min(first + threads, episodes))):
                    file.write(block.data)
                    checksum = zlib.crc32(block.data, checksum)
                    bar.update(len(block))
            file.write(checksum.to_bytes(_TRAILER, "big"))
            file.flush()
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
