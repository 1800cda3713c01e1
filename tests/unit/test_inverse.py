"""Reading actions off pictures: a square that moves as it is told, models that show it rightly, deafly and not at all."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wamkit.data.loader import Frames
from wamkit.eval import EvaluationError
from wamkit.eval.inverse import readable, train_inverse
from wamkit.types import Query, Spec

SPEC = Spec(("c",), 32, 32, 2, 2, chunk=4, frame_offsets=(2, 4))


def recordings(episodes: int, seed: int, length: int = 24) -> Frames:
    """A square goes where its actions say, two pixels a unit, held for four steps."""
    rng = np.random.default_rng(seed)
    images, actions = [], []
    for _ in range(episodes):
        action = np.repeat(rng.choice([-1.0, 0.0, 1.0], (length // 4, 2)), 4, 0)
        place = np.array([12.0, 12.0])
        for a in action:
            picture = np.full((1, 3, 32, 32), 40, np.uint8)
            y, x = np.round(place).astype(int)
            picture[..., y : y + 8, x : x + 8] = 220
            images.append(picture)
            place = np.clip(place + a, 0, 24)
        actions.append(action)
    action = np.concatenate(actions).astype(np.float32)
    return Frames(
        images=np.stack(images), proprio=np.zeros_like(action), action=action, action_expert=action,
        episode=np.repeat(np.arange(episodes), length), text=("go",) * episodes,
        imitate=np.ones(episodes, bool), has_action=np.ones(episodes, bool),
    )  # fmt: skip


@pytest.fixture(scope="module")
def inverse():
    torch.set_num_threads(1)
    return train_inverse(recordings(24, 0), SPEC, steps=150, batch=32, progress=False)


class Model:
    """Answers from the recordings: `shows` is given the true windows and picks what is imagined."""

    spec, queries = SPEC, frozenset({Query.FORWARD, Query.JOINT})

    def __init__(self, frames, shows):
        self.shows, self.windows = shows, frames.windows(SPEC, seed=0, batch_size=1)

    def sample(self, obs, query, seed, steps=None, actions=None):
        starts = np.array([(s // 7919) for s in seed])
        batch = self.windows.gather(starts)
        return SimpleNamespace(future=self.shows(batch).numpy(), actions=batch.action.numpy())


def test_actions_are_read_off_real_pictures_and_off_right_ones(inverse):
    held_out = recordings(8, 1)
    found = readable(Model(held_out, lambda b: b.future), inverse, held_out, stride=3)
    assert (found.r2 > 0.5).all() and found.over("real", "shuffled").high < 0.6
    assert np.array_equal(found.forward, found.real) and np.array_equal(found.joint, found.real)
    deaf = readable(Model(held_out, lambda b: b.future.roll(5, 0)), inverse, held_out, stride=3)
    still = readable(Model(held_out, lambda b: b.obs[:, None].expand_as(b.future)), inverse, held_out, stride=3)
    assert deaf.over("forward", "real").low > 1.5 and still.over("forward", "real").low > 1.2


def test_more_noise_is_read_worse(inverse):
    held_out = recordings(6, 2)
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (1, 2, 1, 3, 32, 32))).float()
    errors = []
    for sigma in (0, 30, 100):
        shows = lambda b, s=sigma: (b.future.float() + s * noise).clamp(0, 255).to(torch.uint8)  # noqa: E731
        errors.append(readable(Model(held_out, shows), inverse, held_out, stride=3).forward.mean())
    assert errors == sorted(errors) and errors[0] < errors[2] / 1.5


def test_the_same_seed_gives_the_same_weights(inverse):
    again = train_inverse(recordings(24, 0), SPEC, steps=150, batch=32, progress=False)
    assert all(
        torch.equal(a, b) for a, b in zip(inverse.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_too_short_recordings_are_an_error(inverse):
    short = recordings(2, 0, length=4)
    with pytest.raises(EvaluationError, match="no recording is longer than 4 steps"):
        readable(Model(short, lambda b: b.future), inverse, short)
