"""Augmentation: one for all frames of a sample, known answers, and nothing where nothing was asked for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from conftest import random_batch
from wamkit.config import ConfigError
from wamkit.data.loading.augment import Augment, augmented, coloured, translated


@pytest.fixture
def batch(spec):
    return random_batch(dataclasses.replace(spec, past_offsets=(-2,)), 6)


def test_translation_moves_and_repeats_edges():
    x = torch.arange(2 * 4 * 4, dtype=torch.uint8).reshape(2, 1, 4, 4)
    out = translated(x, torch.tensor([[1, -2], [0, 0]]))
    padded = np.pad(x[0, 0].numpy(), 2, mode="edge")
    assert np.array_equal(out[0, 0], padded[1:5, 4:8]) and torch.equal(out[1], x[1])


def test_colour_known_answers():
    picture = torch.tensor([100, 50, 200], dtype=torch.uint8).view(1, 1, 1, 3, 1, 1).expand(1, 1, 1, 3, 2, 2).clone()
    one = torch.ones(1)
    grey = 0.299 * 100 + 0.587 * 50 + 0.114 * 200
    assert torch.equal(coloured(picture, one, one, one), picture)
    assert coloured(picture, 1.5 * one, one, one)[0, 0, 0, :, 0, 0].tolist() == [150, 75, 255]
    assert coloured(picture, one, one, 0 * one)[0, 0, 0, :, 0, 0].tolist() == [round(grey)] * 3
    two = picture.clone()
    two[..., 1] = 0  # mean grey is half of the bright column's
    assert coloured(two, one, 0 * one, one).unique().tolist() == [round(grey / 2)]


@pytest.mark.parametrize("config", [Augment(3), Augment(colour=0.4), Augment(2, 0.2, 0.5)])
def test_all_frames_of_a_sample_change_alike(config, batch):
    """A sample whose past, present and future are one image still is one afterwards; and the batch is as it was."""
    still = dataclasses.replace(
        batch, past=batch.obs.unsqueeze(1).clone(), future=batch.obs.unsqueeze(1).repeat(1, 2, 1, 1, 1, 1)
    )
    before = still.obs.clone()
    out = augmented(still, config, np.random.default_rng(0))
    for frames in (out.past, out.future):
        assert torch.equal(frames, out.obs.unsqueeze(1).expand_as(frames))
    assert not torch.equal(out.obs, before) and torch.equal(still.obs, before)
    again = augmented(still, config, np.random.default_rng(0))
    assert torch.equal(again.obs, out.obs) and torch.equal(out.action, still.action)


def test_one_view_always_stays(batch):
    black = 0
    for seed in range(20):
        out = augmented(batch, Augment(drop_view=0.9), np.random.default_rng(seed))
        gone = (out.obs == 0).flatten(2).all(2)
        assert not gone.all(1).any()
        assert torch.equal(gone, (out.future == 0).transpose(1, 2).flatten(2).all(2))
        black += int(gone.sum())
    assert black > 60
    alone = dataclasses.replace(batch, obs=batch.obs[:, :1], past=batch.past[:, :, :1], future=batch.future[:, :, :1])
    assert torch.equal(augmented(alone, Augment(drop_view=0.9), np.random.default_rng(0)).obs, alone.obs)


def test_out_of_range_is_refused():
    assert not Augment() and Augment(1)
    with pytest.raises(ConfigError, match="colour = 1.5: must be between 0 and 0.9"):
        Augment(colour=1.5)
