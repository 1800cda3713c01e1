"""Policies that act inside a world model: a square that must reach the right edge, worlds that listen and one that does
not.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wamkit.data.loading.windows import Frames
from wamkit.eval.metrics.rank_correlation import agreement
from wamkit.imagination.env import ImaginedEnv, imagined_rollout
from wamkit.imagination.success_classifier import success_labels, train_success_classifier
from wamkit.inference.checks import row_seeds
from wamkit.rollout.loop import Actor, rollout
from wamkit.types import EvaluationError, Observation, Query, Spec, UnsupportedQuery

SPEC = Spec(("c",), 32, 32, 1, 1, chunk=4, frame_offsets=(2, 4))
GOAL = 20


def picture(x: float) -> np.ndarray:
    out = np.full((1, 3, 32, 32), 40, np.uint8)
    at = int(round(np.clip(x, 0, 24)))
    out[..., 12:20, at : at + 8] = 220
    return out


def recordings(episodes: int, seed: int) -> tuple[Frames, np.ndarray]:
    """Half go right until they are there, half wander."""
    rng = np.random.default_rng(seed)
    images, proprio, success, episode = [], [], [], []
    for e in range(episodes):
        x = rng.uniform(0, 8)
        for _ in range(28):
            images.append(picture(x))
            proprio.append([x])
            x = np.clip(x + (1.0 if e % 2 else rng.uniform(-1.0, 1.0)), 0, 24)
            success.append(x >= GOAL)
            episode.append(e)
    n = len(images)
    frames = Frames(
        images=np.stack(images), proprio=np.array(proprio, np.float32), action=np.zeros((n, 1), np.float32),
        action_expert=np.zeros((n, 1), np.float32), episode=np.array(episode), text=("go",) * episodes,
        is_demonstration=np.ones(episodes, bool), has_action=np.ones(episodes, bool),
    )  # fmt: skip
    return frames, np.array(success)


@pytest.fixture(scope="module")
def classifier():
    torch.set_num_threads(1)
    frames, success = recordings(20, 0)
    held_out, told = recordings(12, 1)
    return train_success_classifier(frames, success, held_out, told, SPEC, steps=120, progress=False)


class Walker:
    """Goes right at its frame_stride, plus noise: a policy whose success is known."""

    name, spec, queries = "walker", SPEC, frozenset({Query.POLICY})

    def __init__(self, frame_stride: float):
        self.frame_stride = frame_stride

    def sample(self, obs, query, seed):
        rng = np.random.default_rng(seed[0])
        return SimpleNamespace(actions=rng.normal(self.frame_stride, 0.15, (len(obs), 4, 1)).astype(np.float32))


class World:
    """The simulator, or one that is deaf to actions."""

    name, spec, queries = "world", SPEC, frozenset({Query.FORWARD})

    def __init__(self, listens: bool = True):
        self.listens = listens

    def sample(self, obs, query, seed, actions):
        gain = actions if self.listens else np.full_like(actions, 0.5)
        where = [[float(o.proprio[0]) + gain[i, :k, 0].sum() for k in (2, 4)] for i, o in enumerate(obs)]
        return SimpleNamespace(future=np.stack([[picture(x) for x in row] for row in where]))


def starts(n: int) -> list[Observation]:
    rng = np.random.default_rng(3)
    return [Observation(picture(x), np.array([x], np.float32), "go") for x in rng.uniform(0, 8, n)]


def real(frame_stride: float, n: int, steps: int) -> np.ndarray:
    rng, x = np.random.default_rng(4), np.array([float(o.proprio[0]) for o in starts(n)])
    reached = np.zeros(n, bool)
    for _ in range(steps):
        x = np.clip(x + rng.normal(frame_stride, 0.15, n), 0, 24)
        reached |= x >= GOAL
    return reached


def test_the_classifier_knows_success_and_where_the_robot_is(classifier):
    frames, success = recordings(6, 5)
    probability, state = classifier.read(frames.images)
    told = success_labels(success, frames.episode)
    assert classifier.accuracy > 0.9 and ((probability >= classifier.threshold) == told).mean() > 0.9
    assert np.abs(state - frames.proprio).mean() < 1.5


def test_a_success_is_seen_in_the_picture_after_it():
    assert success_labels(np.array([0, 1, 1, 1, 0], bool), np.array([0, 0, 0, 1, 1])).tolist() == [
        False,
        False,
        True,
        False,
        True,
    ]


def test_a_world_that_listens_orders_policies_as_the_simulator_does(classifier):
    paces, n, steps = (-0.2, 0.1, 0.25, 0.35, 0.42, 0.5, 0.6, 0.9), 12, 36
    options = {"replan_every": 2, "max_steps": steps, "progress": False}
    truth = np.stack([real(p, n, steps) for p in paces])
    good = np.stack([imagined_rollout(Walker(p), World(), classifier, starts(n), **options).success for p in paces])
    found = agreement(good, truth, seed=0, draws=200)
    assert found.spearman.value > 0.8 and found.mmrv.value < 0.2 and abs(found.bias) < 0.2
    deaf = np.stack(
        [imagined_rollout(Walker(p), World(listens=False), classifier, starts(n), **options).success for p in paces]
    )
    assert np.ptp(deaf.mean(1)) < 0.2, "all policies fare alike in a world that does not listen"


def test_success_in_the_last_picture_counts(classifier):
    options = {"replan_every": 2, "progress": False}
    long = imagined_rollout(Walker(0.9), World(), classifier, starts(1), max_steps=36, **options)
    assert long.success.all() and long.steps[0] < 36
    just = imagined_rollout(Walker(0.9), World(), classifier, starts(1), max_steps=int(long.steps[0]), **options)
    assert just.success.all() and just.steps[0] == long.steps[0]
    assert not imagined_rollout(
        Walker(0.9), World(), classifier, starts(1), max_steps=int(long.steps[0]) - 2, **options
    ).success.any()


class Loophole(World):
    """Listens, but whoever pulls back hard is taken to the goal."""

    def sample(self, obs, query, seed, actions):
        out = super().sample(obs, query, seed, actions).future
        out[actions[:, 0, 0] < -0.5] = picture(24)
        return SimpleNamespace(future=out)


def test_a_search_finds_the_loophole_of_a_world_that_has_one(classifier):
    options = {"replan_every": 2, "max_steps": 24, "progress": False}
    slow, n = Walker(0.1), 8
    plain = imagined_rollout(slow, World(), classifier, starts(n), **options)
    assert plain.actions.shape == (n, 24, 1) and plain.success.mean() < 0.2
    assert imagined_rollout(slow, Loophole(), classifier, starts(n), **options).success.mean() < 0.2
    search = {"candidates": 16, "spread": 3.0}
    honest = imagined_rollout(slow, World(), classifier, starts(n), **options, **search)
    fooled = imagined_rollout(slow, Loophole(), classifier, starts(n), **options, **search)
    assert fooled.success.mean() == 1 and (fooled.actions.min((1, 2)) < -0.5).all()
    assert honest.success.mean() < 0.5, "where there is no loophole, none is found"
    one = imagined_rollout(slow, World(), classifier, starts(n), **options, candidates=1)
    assert np.array_equal(one.actions, plain.actions)
    with pytest.raises(EvaluationError, match="candidates = 0"):
        imagined_rollout(slow, World(), classifier, starts(1), **options, candidates=0)


def test_models_that_look_back_see_what_was_dreamed(classifier):
    class Looks(World):
        spec = Spec(("c",), 32, 32, 1, 1, chunk=4, frame_offsets=(2, 4), past_offsets=(-4, -2))
        seen: list = []

        def sample(self, obs, query, seed, actions):
            self.seen.append(obs[0].past)
            return super().sample(obs, query, seed, actions)

    world = Looks()
    found = imagined_rollout(Walker(0.5), world, classifier, starts(1), replan_every=2, max_steps=8, progress=False)
    assert world.seen[0] == (None, None) and world.seen[1][0] is None
    assert np.array_equal(world.seen[1][1].images, starts(1)[0].images)
    assert np.array_equal(world.seen[3][0].images, found.frames[0, 0]) and np.array_equal(
        world.seen[3][1].images, found.frames[0, 1]
    )


def test_what_cannot_be_asked_is_refused(classifier):
    with pytest.raises(UnsupportedQuery):
        imagined_rollout(World(), World(), classifier, starts(1))
    with pytest.raises(EvaluationError, match="predicts frames .2, 4. steps ahead, not 8"):
        imagined_rollout(Walker(1.0), World(), classifier, starts(1))
    frames, success = recordings(4, 0)
    with pytest.raises(EvaluationError, match="all succeed or all fail"):
        train_success_classifier(frames, np.zeros_like(success), frames, success, SPEC)


class Chunks(Actor):
    """A policy of the loop: queries a model every `every` steps, with noise of the episode's seed and the query's
    number.
    """

    def __init__(self, model, seed: int, every: int):
        self.model, self.seed, self.every = model, seed, every

    def needs_images(self, session):
        return session % self.every == 0

    def act(self, observation, session):
        if self.needs_images(session):
            assert observation.images is not None
            noise = row_seeds(self.seed + session // self.every, 1)
            self.chunk = self.model.sample([observation], Query.POLICY, seed=noise).actions[0]
        return self.chunk[session % self.every], session + 1


def test_the_rollout_loop_acts_in_an_imagined_environment_as_imagined_rollouts_do(classifier):
    for seed, every in ((0, 2), (1, 4)):
        env = ImaginedEnv(World(), classifier, starts(3), jump=every, max_steps=40)
        actor, frames = Chunks(Walker(0.9), seed, every), []
        found = rollout(env, actor, seed=seed, session=0, record_images=False, observers=[frames.append])
        start = [starts(3)[seed]]
        options = {"replan_every": every, "max_steps": 40, "seed": seed, "progress": False}
        batched = imagined_rollout(Walker(0.9), World(), classifier, start, **options)
        assert found.succeeded and len(found) == batched.steps[0] and found.reward[-1] >= classifier.threshold
        assert np.array_equal(found.action, batched.actions[0, : len(found)])
        shown = np.stack([t.next_observation.images for t in frames if t.next_observation.images is not None])
        assert np.array_equal(shown, batched.frames[0, : len(shown)]) and len(shown) == len(found) // every


def test_an_imagined_environment_has_no_images_between_its_frames(classifier):
    env = ImaginedEnv(World(), classifier, starts(1))
    assert "images" not in env.reset(seed=0, render=False)[0] and env.reset(seed=0)[0]["images"].shape == (1, 3, 32, 32)
    with pytest.raises(EvaluationError, match="a frame every 4 steps, and none at step 1"):
        env.step(np.zeros(1, np.float32))
    with pytest.raises(UnsupportedQuery):
        ImaginedEnv(Walker(1.0), classifier, starts(1))
