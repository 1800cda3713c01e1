"""Windows: their content, their order, and the threads that make them ahead."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from small_runs import SPEC, frames

from wamkit.data.loading.augment import Augment
from wamkit.data.loading.windows import Prefetcher, Windows, observations
from wamkit.types import WamkitError


def test_windows_hold_what_they_say():
    f = frames(episodes=2, length=6)
    batch = Windows(f, SPEC, seed=0, batch_size=1).gather(np.array([0, 4, 5, 7]))
    assert torch.equal(batch.obs, torch.from_numpy(f.images[[0, 4, 5, 7]]))
    assert batch.frame_valid.tolist() == [[True, True], [False, False], [False, False], [True, True]]
    assert batch.action_valid.tolist() == [
        [True] * 4,
        [True, True, False, False],
        [True, False, False, False],
        [True] * 4,
    ]
    assert torch.equal(batch.future[0], torch.from_numpy(f.images[[2, 4]]))
    assert torch.equal(batch.action[1], torch.from_numpy(f.action[[4, 5, 5, 5]]))  # never from the next episode
    assert batch.is_demonstration.tolist() == [True, True, True, False] and batch.text[0] == "close it"


def test_the_past_ends_where_the_episode_began():
    f, spec = frames(episodes=2, length=6), dataclasses.replace(SPEC, past_offsets=(-3, -1))
    batch = Windows(f, spec, seed=0, batch_size=1).gather(np.array([6, 7, 10]))
    assert batch.past_valid.tolist() == [[False, False], [False, True], [True, True]]
    assert torch.equal(batch.past, torch.from_numpy(f.images[[[6, 6], [6, 6], [7, 9]]]))
    assert torch.equal(batch.past_proprio, torch.from_numpy(f.proprio[[[6, 6], [6, 6], [7, 9]]]))
    assert torch.equal(batch.obs, torch.from_numpy(f.images[[6, 7, 10]]))
    first, second, _ = observations(batch)
    assert first.past == (None, None) and np.array_equal(second.past[1].images, f.images[6])


def test_batches_are_a_function_of_seed_and_step():
    f = frames()
    a, b, c = (Windows(f, SPEC, seed=s, batch_size=5, augment=Augment(2, 0.3)) for s in (0, 0, 1))
    for k in (7, 0, 3):
        assert torch.equal(a.batch(k).obs, b.batch(k).obs)
    assert not np.array_equal(a.indices(3), c.indices(3))
    seen = np.concatenate([Windows(f, SPEC, seed=0, batch_size=9).indices(k) for k in range(4)])
    assert np.array_equal(np.sort(seen), np.arange(36))  # every frame once an epoch


def test_prefetcher_keeps_order_and_passes_errors_on():
    made = Prefetcher(lambda k: k * 10, 3, 6)
    assert [next(made) for _ in range(3)] == [30, 40, 50]
    made.close()

    def broken(k):
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        next(Prefetcher(broken, 0, 1))


def test_no_frames_is_an_error():
    empty = frames(episodes=1, length=1)
    empty = dataclasses.replace(empty, episode=empty.episode[:0])
    with pytest.raises(WamkitError, match="no frames"):
        Windows(empty, SPEC, seed=0, batch_size=1)
