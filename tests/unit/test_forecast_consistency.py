"""Forecast consistency: which frames are compared, ranks within tasks, and defined answers to odd input."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.spaces import Box

from wamkit.envs.base import observation_spaces
from wamkit.eval.suites.forecast_consistency import ForecastEpisode, ForecastErrors, auc, success_prediction
from wamkit.inference.policy import Session
from wamkit.rollout.loop import Actor, rollout
from wamkit.types import EvaluationError


class Fake(Actor):
    """Imagines a given image four and eight steps ahead at every fourth step; its actions do nothing."""

    def __init__(self, images):
        self.images = images

    def needs_images(self, session):
        return session.step % 4 == 0

    def queried(self, before, after):
        return after.queries > before.queries

    def act(self, obs, session):
        asked = session.step % 4 == 0
        future = np.stack([self.images[session.step + k] for k in (4, 8)]) if asked else session.future
        return np.zeros(2), Session(0, session.step + 1, session.queries + asked, None, 0, (), future)


class Recording:
    """An environment that shows one given image after the other."""

    task = text = "recording"
    fps, cameras, point_grid = 10.0, ("c",), 0
    action_space = Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, images):
        self.images = images
        self.observation_space = observation_spaces(*images.shape[1:2], *images.shape[3:], -np.ones(2), np.ones(2))

    def _observe(self, render):
        raw = {"proprio": np.zeros(2, np.float32), "text": self.text}
        return raw | ({"images": self.images[self.t]} if render else {})

    def reset(self, *, seed, render=True):
        self.t = 0
        return self._observe(render), {"success": False}

    def step(self, action, render=True):
        self.t += 1
        return self._observe(render), 0.0, False, False, {"success": False}


def shown(imagined, images):
    errors = ForecastErrors(frame=0, offset=4)
    rollout(Recording(images), Fake(imagined), seed=0, session=Session(), max_steps=13, observers=[errors])
    return np.array(errors.pairs)


def test_what_was_imagined_is_held_against_what_came_just_then():
    """A square that moves a pixel a step, imagined rightly, not at all, and a step late."""
    images = np.zeros((24, 1, 3, 32, 32), np.uint8)
    for t in range(24):
        images[t, :, :, 8:14, t : t + 6] = 200
    right = shown(images, images)
    assert right.shape == (3, 2) and (right[:, 0] == 0).all() and (right[:, 1] > 0).all()
    late = shown(np.roll(images, 1, 0), images)
    assert (0 < late[:, 0]).all() and (late[:, 0] < late[:, 1]).all() and np.allclose(late[:, 1], right[:, 1], rtol=0.3)
    standing = shown(np.repeat(images[:1], 24, 0), np.repeat(images[:1], 24, 0))
    assert (standing == 0).all()


def episode(task, seed, success, error, motion):
    return ForecastEpisode(task, seed, success, np.array([error]), np.array([motion]))


def test_ranks_are_within_tasks():
    """An easy task with bad forecasts and a hard one with good ones: pooled, good forecasts would predict failure."""
    easy = [episode("easy", i, i > 1, 0.5 - 0.01 * (i > 1), 1.0) for i in range(10)]
    hard = [episode("hard", i, i > 7, 0.1 - 0.01 * (i > 7), 1.0) for i in range(10)]
    found = success_prediction(easy + hard)
    assert found.skill.value == 1 and found.motion.value == 0.5 and found.failures == 10
    x = np.array([e.skill for e in easy + hard])
    success = np.array([e.success for e in easy + hard])
    assert auc(x, success, np.zeros(20)) < 0.5


def test_odd_input_has_a_defined_answer():
    with pytest.raises(EvaluationError, match="no episodes"):
        success_prediction([])
    found = success_prediction([episode("t", i, True, 0.1, 1.0) for i in range(4)])
    assert found.skill.undefined and found.motion.undefined and found.failures == 0
    assert np.isnan(episode("t", 0, True, 0.0, 0.0).skill)
    mixed = [episode("t", i, i > 4, 0.1 * (i > 4), float(i > 4)) for i in range(10)]
    assert success_prediction(mixed).skill.value == 1, "an episode in which nothing moves predicts failure"
    assert success_prediction(mixed[1:]).skill.undefined, "four failures are too few"


def test_noise_predicts_nothing():
    rng = np.random.default_rng(0)
    episodes = [episode("t", i, bool(rng.integers(2)), rng.uniform(), 1.0) for i in range(200)]
    found = success_prediction(episodes)
    assert found.skill.low < 0.5 < found.skill.high
