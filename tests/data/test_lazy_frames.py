"""Frames decoded on access equal those of the cache, in any order, by several threads, and in bounded memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from recordings import CAMERAS, LAYOUT, SIZE, make_episode

from wamkit.data.format.store import Store, StoreError
from wamkit.data.format.video import RgbConverter, reformatted
from wamkit.data.loading import lazy_frames as reader
from wamkit.data.loading.dataset import open_frames, spec_of
from wamkit.data.loading.lazy_frames import VideoFrames, open_images
from wamkit.data.loading.windows import Prefetcher

LENGTHS = (7, 9, 8, 30)
FRAME = len(CAMERAS) * 3 * SIZE * SIZE  # bytes


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("reader") / "data"
    store = Store.create(root, **LAYOUT)
    for seed, length in enumerate(LENGTHS):
        store.append(make_episode(seed, length))
    return root


@pytest.fixture(scope="module")
def pictures(root) -> np.ndarray:
    store = Store.open(root)
    return np.concatenate([store.episode(e).images for e in range(len(store))])


@pytest.mark.parametrize("frames", [0, 6, 7, 16, 25, 53, 54, 1000])
def test_any_budget_gives_the_same_images(root, pictures, frames):
    """0: nothing is kept; 6: not even one episode fits; 16 and 25: the first two or three; 54: all."""
    found = open_images(Store.open(root), cache_gb=frames * FRAME / 1e9)
    assert isinstance(found, np.ndarray) == (frames >= sum(LENGTHS)) and found.shape == pictures.shape
    rng = np.random.default_rng(frames)
    for index in (rng.integers(0, 54, (5, 3)), np.arange(54)[::-1], np.array([15, 16, 16, 53]), np.zeros(0, np.int64)):
        assert np.array_equal(found[index], pictures[index])


def test_the_cache_stays_within_its_budget(root):
    for old in (root / ".cache").glob("*"):
        old.unlink()
    for frames, kept in ((25, 24), (6, 0), (16, 16)):
        open_images(Store.open(root), cache_gb=frames * FRAME / 1e9)
        files = list((root / ".cache").glob("*.frames"))
        size = max((f.stat().st_size for f in files), default=0)
        assert size <= kept * FRAME + 4100 or not kept, (frames, files)
    assert len(files) == 1, "an earlier budget's file gives way"


def test_few_videos_stay_open(root, pictures, monkeypatch):
    monkeypatch.setattr(reader, "_MOST_OPEN", 3)
    found, rng = VideoFrames(Store.open(root)), np.random.default_rng(0)
    opened = []
    open_video = Store.open_video
    monkeypatch.setattr(Store, "open_video", lambda *args: opened.append(args[1:]) or open_video(*args))
    for _ in range(20):
        index = rng.integers(0, 54, 4)
        assert np.array_equal(found[index], pictures[index])
        assert sum(map(len, found._open.values())) <= 3
    opened.clear()
    found[np.array([30, 31])], found[np.array([40, 26])]
    assert len(opened) <= 2, "the second time the last episode's two cameras were open"


def test_threads_do_not_share_a_decoder(root, pictures):
    found = VideoFrames(Store.open(root))
    index = np.random.default_rng(0).integers(0, 54, (40, 6))
    with ThreadPoolExecutor(4) as pool:
        for i, got in enumerate(pool.map(found.__getitem__, index)):
            assert np.array_equal(got, pictures[index[i]])


def test_images_can_be_resized(root):
    store = Store.open(root)
    expected = np.stack([store.decode(1, c, (16, 16)) for c in CAMERAS], 1)
    assert np.array_equal(VideoFrames(store, (16, 16))[np.arange(7, 16)], expected)


def test_damage_is_named_when_it_is_met(tmp_path, root):
    store = Store.create(tmp_path / "data", **LAYOUT)
    for seed in range(2):
        store.append(make_episode(seed, 6))
    found = open_images(Store.open(store.root), cache_gb=0)
    path = store.video_path(1, "wrist")
    path.write_bytes(path.read_bytes()[:-50])
    found[np.array([0, 5])]
    with pytest.raises(StoreError, match=r"episode 1, camera wrist.*has changed since it was recorded"):
        found[np.array([0, 6])]
    with pytest.raises(IndexError, match="rows 3 to 12 of 12"):
        found[np.array([3, 12])]


def test_batches_do_not_depend_on_the_budget(root):
    batches = []
    for budget, threads in ((1, 1), (16 * FRAME / 1e9, 3), (0, 2)):
        frames, store = open_frames(root, cache_gb=budget)
        windows = frames.windows(spec_of(store, 4, (2, 4)), seed=0, batch_size=6)
        assert windows.decodes == (budget < 1)
        made = Prefetcher(windows.batch, 0, 5, threads=threads)
        batches.append(list(made))
        made.close()
    for other in batches[1:]:
        assert len(other) == 5
        for a, b in zip(batches[0], other, strict=True):
            assert torch.equal(a.obs, b.obs) and torch.equal(a.future, b.future) and torch.equal(a.action, b.action)


def with_margin(picture):
    """A frame whose memory behind each row is defined: FFmpeg makes the last colour of an odd row of it."""
    height, width, _ = picture.shape
    frame = av.VideoFrame(width, height, "rgb24")
    rows = np.full((height, frame.planes[0].line_size), 160, np.uint8)
    rows[:, : 3 * width] = picture.reshape(height, -1)
    frame.planes[0].update(rows)
    return frame


@pytest.mark.parametrize(
    "pixels", ["yuv420p", "yuv422p", "yuv444p", "yuvj420p", "nv12", "yuv420p10le", "rgb24", "gray"]
)
def test_rows_of_any_length_are_read_to_their_end(pixels):
    """FFmpeg's short way to planes leaves up to eight pixels of them unwritten."""
    for width in range(16, 50):
        picture = np.random.default_rng(width).integers(120, 200, (16, width, 3), dtype=np.uint8)
        frame = reformatted(with_margin(picture), format=pixels)
        found, small = np.zeros((3, 16, width), np.uint8), np.zeros((3, 8, width), np.uint8)
        for _ in range(2):
            RgbConverter().write(frame, found)
            RgbConverter().write(frame, small)
        error = np.abs(found - frame.to_ndarray(format="rgb24").transpose(2, 0, 1).astype(int)).max()
        assert error < 20 and small.min() > 60, (
            f"{width} pixels: {error} from FFmpeg's own RGB, whose colours may be softer"
        )
