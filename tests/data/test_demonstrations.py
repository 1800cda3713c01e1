"""Windows over the episodes that are used, and demonstrations whose actions are withheld."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from wamkit.config import ConfigError
from wamkit.data.loading.dataset import statistics
from wamkit.data.loading.mixture import divided
from wamkit.data.loading.windows import Frames, Windows
from wamkit.runs.config import EpisodesConfig
from wamkit.types import Spec, WamkitError

LENGTHS = (5, 7, 6, 9, 4)
SPEC = Spec(cameras=("c",), height=16, width=16, proprio_dim=2, action_dim=3, chunk=2, frame_offsets=(2,))


@pytest.fixture
def frames() -> Frames:
    """Five episodes, the second off-expert; actions of episode e are all e."""
    episode = np.repeat(np.arange(5), LENGTHS)
    rng, n = np.random.default_rng(0), sum(LENGTHS)
    action = np.repeat(episode[:, None], 3, 1).astype(np.float32)
    return Frames(
        images=rng.integers(0, 256, (n, 1, 3, 16, 16), np.uint8),
        proprio=rng.normal(size=(n, 2)).astype(np.float32),
        action=action,
        action_expert=action,
        episode=episode,
        text=("open it",) * 5,
        is_demonstration=np.array([True, False, True, True, True]),
        has_action=np.ones(5, bool),
    )


def test_windows_come_from_the_first_demonstrations_alone(frames):
    chosen = frames.labelled(2, 1)
    drawn = Windows(chosen, SPEC, seed=0, batch_size=10)
    rows = np.concatenate([drawn.indices(k) for k in range(2)])
    assert sorted(rows) == sorted(np.flatnonzero(np.isin(frames.episode, (0, 2, 3)))), "each once an epoch, no others"
    batch = drawn.gather(np.array([0, 12, 18]))  # the first frames of episodes 0, 2, 3
    assert batch.has_action.tolist() == [True, True, False] and batch.is_demonstration.all()


def test_what_all_episodes_say_is_unchanged(frames):
    """Without a selection the order of windows is that of a plain permutation."""
    drawn = Windows(frames, SPEC, seed=3, batch_size=31)
    assert np.array_equal(drawn.indices(0), np.random.default_rng((3, 0, 0)).permutation(31))


def test_statistics_of_actions_know_labelled_episodes_only(frames):
    numbers = statistics(frames.labelled(1, 2), SPEC)
    assert numbers["action"]["mean"] == [0, 0, 0], "episode 0 alone has actions"
    seen = np.isin(frames.episode, (0, 2, 3))
    assert np.allclose(numbers["proprio"]["mean"], frames.proprio[seen].mean(0))
    assert statistics(frames, SPEC)["action"]["mean"] == pytest.approx([frames.action.mean()] * 3)


def test_labelled_episodes_can_be_given_a_share_of_the_samples(frames):
    drawn = divided(frames.labelled(1, 3), 0.5, 10.0).windows(SPEC, seed=0, batch_size=8)
    batches = [drawn.batch(k) for k in range(30)]
    counts = np.cumsum([b.has_action.sum().item() for b in batches])
    assert np.abs(counts - 4 * np.arange(1, 31)).max() <= 1, (
        "half of all rows at every moment, though one episode in four has actions"
    )
    assert all(torch.equal(b.has_action, b.source == 0) for b in batches) and drawn.names == ("labelled", "action_free")
    rows = np.concatenate([drawn.indices(k) for k in range(30)]) % len(frames)
    assert set(frames.episode[rows]) == {0, 2, 3, 4}, "and no others"


def test_too_many_demonstrations_are_refused(frames):
    with pytest.raises(WamkitError, match="3 labelled and 2 action-free demonstrations were requested.*there are 4"):
        frames.labelled(3, 2)
    with pytest.raises(ConfigError, match="action_free needs `labelled`"):
        EpisodesConfig(action_free=3)
    with pytest.raises(ConfigError, match="labelled_share needs `action_free`"):
        EpisodesConfig(labelled=3, labelled_share=0.5)
    with pytest.raises(WamkitError, match="no frames to train on"):
        Windows(dataclasses.replace(frames, used=np.zeros(5, bool)), SPEC, seed=0, batch_size=2)
