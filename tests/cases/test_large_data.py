"""Large data: memory is bounded by a budget, whatever the length of episodes and the number of cores."""

from __future__ import annotations

import os
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
from lerobot_folders import Recordings, write_v3

from wamkit.data.format import frame_cache
from wamkit.data.format.frame_cache import FrameCache
from wamkit.data.format.store import Store
from wamkit.data.validate import validate

MB = 1_000_000
STEPS, HEIGHT, WIDTH = 200, 240, 320
EPISODE = STEPS * 3 * HEIGHT * WIDTH  # 46 MB


@dataclass(frozen=True)
class Still(Recordings):
    """Frames that cost little to encode. Each has its step's grey in one corner."""

    def images(self, episode: int) -> np.ndarray:
        out = np.zeros((self.lengths[episode], self.height, self.width, 3), np.uint8)
        out[:, :16, :16] = np.arange(len(out), dtype=np.uint8)[:, None, None, None]
        return out


@pytest.fixture(scope="module")
def long_episodes(tmp_path_factory):
    encoder = {"g": "2", "bf": "0", "preset": "ultrafast", "crf": "20"}
    root = tmp_path_factory.mktemp("long") / "data"
    return write_v3(root, Still(lengths=(STEPS,) * 3, height=HEIGHT, width=WIDTH, encoder=encoder))


def peak(work) -> int:
    """Bytes of arrays and objects that `work` allocated at most."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("cores", [1, 64])
def test_building_the_frame_cache_holds_neither_episodes_nor_one_a_core(long_episodes, monkeypatch, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    store = Store.open(long_episodes)
    for old in (long_episodes / ".cache").glob("*"):
        old.unlink()
    assert peak(lambda: FrameCache.build_or_open(store)) < 32 * MB < EPISODE
    frames = FrameCache.build_or_open(store).frames
    for episode in range(3):
        corner = frames[episode * STEPS : (episode + 1) * STEPS, 0, :, 4:12, 4:12].mean((1, 2, 3))
        assert np.abs(corner - np.arange(STEPS)).max() < 4


def test_the_budget_limits_the_decoders_at_work(long_episodes, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(frame_cache, "BUILD_BYTES", 12 * MB)
    store = Store.open(long_episodes)
    for old in (long_episodes / ".cache").glob("*"):
        old.unlink()
    assert peak(lambda: FrameCache.build_or_open(store)) < 12 * MB


def test_checking_every_frame_and_the_statistics_of_images_hold_a_few_frames(long_episodes):
    assert peak(lambda: validate(long_episodes, every_frame=True, progress=False)) < 24 * MB
    store = Store.open(long_episodes)
    frames = []
    assert peak(lambda: frames.extend(image.mean() for image in store._sample("top"))) < 8 * MB
    assert len(frames) == 256
