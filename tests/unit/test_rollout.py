"""The rollout loop: what is recorded, when it stops, when images are rendered, in an environment with known answers."""

from dataclasses import dataclass

import numpy as np
import pytest
from gymnasium.spaces import Box

from wamkit.envs.base import Environment, observation_spaces
from wamkit.rollout.loop import Action, Actor, rollout
from wamkit.rollout.replay import ActionSequence, expert_episode, observed, replay, rollout_from
from wamkit.types import Snapshot, WamkitError


@dataclass(frozen=True)
class LineConfig:
    goal: float = 3.0
    max_steps: int = 20


class Line(Environment):
    """A point on a line: the position is the seed at reset and grows by the action; all pixels show it."""

    Config = LineConfig
    cameras, fps, task, text, robot_type = ("eye",), 10.0, "line", "go to the goal", "point"
    proprio_names, action_names = ("x",), ("dx",)

    def __init__(self, config):
        self.config, self.rendered = config, []
        self.action_space = Box(-1.0, 1.0, (1,), np.float32)
        self.observation_space = observation_spaces(1, 2, 2, np.array([-100.0]), np.array([100.0]))

    @classmethod
    def tasks(cls):
        return ("line",)

    def _observe(self, render):
        raw = {"proprio": np.array([self.x], np.float32), "text": self.text}
        if render:
            self.rendered.append(self.t)
            raw["images"] = np.full((1, 3, 2, 2), self.x, np.uint8)
        return raw

    def reset(self, *, seed=None, options=None, render=True):
        self.x, self.t, self.rendered = float(seed), 0, []
        return self._observe(render), {"success": False}

    def step(self, action, render=True):
        self.x, self.t = self.x + float(action[0]), self.t + 1
        return (
            self._observe(render),
            self.x,
            False,
            self.t >= self.config.max_steps,
            {"success": self.x >= self.config.goal},
        )

    def expert(self):
        return lambda rng: np.ones(1, np.float32)

    def snapshot(self):
        return Snapshot(np.array([self.x]), {}, {"t": self.t})

    def restore(self, snapshot, render=True):
        self.x, self.t = float(snapshot.physics[0]), snapshot.attributes["t"]
        return self._observe(render)


class Forward(Actor):
    """Plans `chunk` steps at a time; its session counts calls. Remembers what it was shown."""

    def __init__(self, chunk=1, size=1.0):
        self.chunk, self.size, self.saw = chunk, size, []

    def needs_images(self, session):
        return (session or 0) % self.chunk == 0

    def act(self, observation, session):
        session = session or 0
        self.saw.append(observation.images is not None)
        if self.needs_images(session):
            assert observation.images[0, 0, 0, 0] == int(observation.proprio[0])
        return np.array([self.size], np.float32), session + 1


def test_rows_show_what_was_seen_before_the_action():
    episode = rollout(Line(LineConfig()), Forward(), seed=0)
    assert episode.proprio[:, 0].tolist() == [0, 1, 2]
    assert episode.images[:, 0, 0, 0, 0].tolist() == [0, 1, 2]
    assert episode.reward.tolist() == [1, 2, 3] and episode.success.tolist() == [False, False, True]
    assert episode.seed == 0 and episode.text == "go to the goal" and episode.fps == 10.0 and episode.succeeded
    assert len(episode.latency_s) == 3 and min(episode.latency_s) >= 0
    assert episode.images.dtype == np.uint8 and episode.action.dtype == episode.reward.dtype == np.float32


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 3),
        ({"steps_after_success": 4}, 7),
        ({"steps_after_success": None}, 20),
        ({"steps_after_success": None, "max_steps": 9}, 9),
        ({"max_steps": 2}, 2),
        ({"skip": 1}, 2),
    ],
)
def test_it_stops_when_it_should(options, steps):
    assert len(rollout(Line(LineConfig()), Forward(), seed=0, **options)) == steps


def test_skipped_steps_are_executed_but_not_recorded_and_not_drawn_for_nobody():
    env, actor = Line(LineConfig(goal=50)), Forward(chunk=100)
    episode = rollout(env, actor, seed=0, session=1, skip=4, max_steps=3, snapshot=env.snapshot)
    assert episode.proprio[:, 0].tolist() == [4, 5, 6] and episode.images[:, 0, 0, 0, 0].tolist() == [4, 5, 6]
    assert env.rendered[0] == 4 and [s.attributes["t"] for s in episode.snapshots] == [4, 5, 6]
    with pytest.raises(WamkitError, match="ended within its 20 skipped steps"):
        rollout(env, actor, seed=0, session=1, skip=20)


def test_pictures_are_drawn_only_when_somebody_looks():
    env, actor = Line(LineConfig(goal=10)), Forward(chunk=4)
    episode = rollout(env, actor, seed=0, record_images=False)
    assert env.rendered == [0, 4, 8] and episode.images is None and len(episode.latency_s) == 3
    assert actor.saw == [t % 4 == 0 for t in range(10)]
    recorded = rollout(env, Forward(chunk=4), seed=0)
    assert recorded.images.shape == (10, 1, 3, 2, 2) and np.array_equal(recorded.action, episode.action)


def test_executed_action_and_label_are_kept_apart_and_clipped():
    class Teacher(Actor):
        def act(self, observation, session):
            return Action(executed=np.array([7.0]), expert=np.array([-0.25], np.float32)), session

    episode = rollout(Line(LineConfig()), Teacher(), seed=0, is_demonstration=False, noise=0.3)
    assert episode.action.tolist() == [[1.0]] * 3 and episode.action_expert.tolist() == [[-0.25]] * 3
    assert episode.proprio[-1, 0] == 2.0 and not episode.is_demonstration and episode.noise == 0.3
    plain = rollout(Line(LineConfig()), Forward(size=0.5), seed=0)
    assert np.array_equal(plain.action, plain.action_expert)


@pytest.mark.parametrize("bad", [np.zeros(2), np.array([np.nan])])
def test_a_bad_action_names_the_actor_and_the_step(bad):
    class Broken(Actor):
        def act(self, observation, session):
            return (bad if session else np.zeros(1)), 1

    env = Line(LineConfig())
    with pytest.raises(WamkitError, match="Broken, step 1 of line: action must be"):
        rollout(env, Broken(), seed=0)


def test_observers_are_called_with_every_recorded_step_and_what_came_of_it():
    env, seen = Line(LineConfig(goal=50)), []
    episode = rollout(env, Forward(chunk=2), seed=0, skip=2, max_steps=4, record_images=False, observers=[seen.append])
    assert [t.step for t in seen] == [0, 1, 2, 3] and [t.session for t in seen] == [2, 3, 4, 5]
    assert [t.queried for t in seen] == [True, False, True, False] and len(episode.latency_s) == 2
    assert [t.observation.images is not None for t in seen] == [True, False, True, False]
    assert [(t.observation.proprio[0], t.next_observation.proprio[0]) for t in seen] == [(2, 3), (3, 4), (4, 5), (5, 6)]
    assert [t.reward for t in seen] == episode.reward.tolist() and not any(t.success for t in seen)


def test_an_instruction_replaces_the_environments_own():
    class Reads(Forward):
        def act(self, observation, session):
            assert observation.text == "stay"
            return super().act(observation, session)

    episode = rollout(Line(LineConfig()), Reads(), seed=0, text="stay")
    assert episode.text == "stay" and Line.text == "go to the goal"


def test_a_replay_goes_on_past_success_and_the_time_limit_and_renders_only_where_asked():
    env = Line(LineConfig(goal=2, max_steps=3))
    env.reset(seed=1)
    start = env.snapshot()
    env.rendered = []
    images, reward = replay(env, start, np.ones((6, 1), np.float32), (2, 6))
    assert images[:, 0, 0, 0, 0].tolist() == [3, 7] and reward == sum(range(2, 8)) and env.rendered == [2, 6]
    chunks = np.array([[[1.0]] * 2, [[-0.5]] * 2], np.float32)
    futures, rewards = rollout_from(env, start, chunks, (2,))
    assert futures.shape == (2, 1, 1, 3, 2, 2) and rewards.tolist() == [5.0, 0.5] and env.x == 1


def test_an_experts_episode_holds_the_state_and_the_observation_of_every_step():
    env = Line(LineConfig(goal=4))
    episode = expert_episode(env, 0)
    assert len(episode) == 4 and episode.succeeded and [s.attributes["t"] for s in episode.snapshots] == [0, 1, 2, 3]
    obs = observed(episode, 2, (-3, -1))
    assert obs.proprio[0] == 2 and obs.images[0, 0, 0, 0] == 2 and obs.text == env.text
    assert obs.past[0] is None and obs.past[1].proprio[0] == 1
    again = rollout(env, ActionSequence(episode.action), seed=0, session=0, max_steps=len(episode))
    assert np.array_equal(again.proprio, episode.proprio) and again.latency_s == ()
    env.expert = lambda: None
    with pytest.raises(WamkitError, match="point, line: .* it has none"):
        expert_episode(env, 0)
