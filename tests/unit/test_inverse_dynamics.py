"""Reading actions off images: a square that moves as it is told, models that show it rightly, deafly and not at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from wamkit.eval.metatest.reference_actions import SQUARE, EditedFutures, another, moving_square, noisy, right, still
from wamkit.eval.probes.inverse_dynamics import action_recoverability, train_inverse
from wamkit.types import EvaluationError


@pytest.fixture(scope="module")
def inverse():
    torch.set_num_threads(1)
    return train_inverse(moving_square(24, 0), SQUARE, steps=150, batch=32, progress=False)


def test_actions_are_read_off_real_images_and_off_right_ones(inverse):
    held_out = moving_square(8, 1)
    found = action_recoverability(EditedFutures(held_out, right), inverse, held_out, stride=3)
    assert (found.r2 > 0.5).all() and found.over("real", "shuffled").high < 0.6
    assert np.array_equal(found.forward, found.real) and np.array_equal(found.joint, found.real)
    deaf = action_recoverability(EditedFutures(held_out, another), inverse, held_out, stride=3)
    frozen = action_recoverability(EditedFutures(held_out, still), inverse, held_out, stride=3)
    assert deaf.over("forward", "real").low > 1.5 and frozen.over("forward", "real").low > 1.2


def test_more_noise_is_read_worse(inverse):
    held_out = moving_square(6, 2)
    shown = [EditedFutures(held_out, noisy(sigma)) for sigma in (0, 30, 100)]
    errors = [action_recoverability(model, inverse, held_out, stride=3).forward.mean() for model in shown]
    assert errors == sorted(errors) and errors[0] < errors[2] / 1.5


def test_the_same_seed_gives_the_same_weights():
    train = lambda **seed: train_inverse(moving_square(24, 0), SQUARE, steps=20, batch=32, progress=False, **seed)  # noqa: E731
    one, again, other = (list(x.state_dict().values()) for x in (train(), train(), train(seed=1)))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_too_short_recordings_are_an_error(inverse):
    short = moving_square(2, 0, length=4)
    with pytest.raises(EvaluationError, match="no episode is longer than 4 steps"):
        action_recoverability(EditedFutures(short, right), inverse, short)


def test_an_action_that_never_moves_weighs_nothing():
    """Whatever a model says about it: no square of a difference over a deviation of 0."""
    locked = lambda frames: replace(frames, action=np.c_[frames.action, np.full(len(frames), 0.3, np.float32)])  # noqa: E731
    spec = replace(SQUARE, action_dim=SQUARE.action_dim + 1)
    train, held_out = locked(moving_square(12, 0)), locked(moving_square(6, 1))
    reader = train_inverse(train, spec, steps=40, batch=32, progress=False)
    model = EditedFutures(held_out, right)
    model.spec = spec
    found = action_recoverability(model, reader, held_out, stride=3)
    assert np.isnan(found.r2[-1]) and not np.isnan(found.r2[:-1]).any()
    assert found.real.max() < 100 and np.isfinite(found.shuffled).all()
    now = torch.zeros(1, 1, 3, SQUARE.height, SQUARE.width, dtype=torch.uint8)
    read = reader.read(now, now.unsqueeze(1).expand(-1, len(SQUARE.frame_offsets), -1, -1, -1, -1))
    assert (read[..., -1] - 0.3).abs().max() < 1e-6
    assert (reader.distance(read + 1, read)[..., -1] == 0).all()
