"""Counterfactuals: branches of a real simulator, models of known rank, and defined answers to odd input."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from wamkit.envs import make_env
from wamkit.envs.spec import EnvSpec
from wamkit.eval.metatest.reference_branches import MODELS, noisy
from wamkit.eval.suites.counterfactuals import Counterfactuals, counterfactuals, imagined_by, score
from wamkit.eval.suites.forecast_vs_execution import Execution, diagnosis, execution_score
from wamkit.families.base import FAMILIES
from wamkit.inference.model import Model
from wamkit.nn.normalizer import Normalizer
from wamkit.rollout.replay import STILL, off_expert_chunks, rollout_from
from wamkit.types import EvaluationError, Observation, Spec, UnsupportedQuery

OPTIONS = (("height", 32), ("width", 32))
CHUNK, OFFSETS = 16, (8, 16)
ENV = EnvSpec("metaworld", ("drawer-open-v3",), dict(OPTIONS))
SPEC = Spec(("corner2",), 32, 32, proprio_dim=4, action_dim=4, chunk=CHUNK, frame_offsets=OFFSETS)


@pytest.fixture(scope="module")
def states():
    return counterfactuals(ENV, SPEC, episodes=2, moments=2, processes=1)


def test_branches_do_not_touch_each_other():
    env = make_env("metaworld", task="drawer-open-v3", **dict(OPTIONS))
    env.reset(seed=3)
    expert = env.expert()
    for _ in range(40):
        env.step(expert(np.random.default_rng(0)))
    start = env.snapshot()
    chunks = np.stack(list(off_expert_chunks(env, CHUNK, np.random.default_rng(0)).values()))
    there, reward = rollout_from(env, start, chunks, OFFSETS)
    back, again = rollout_from(env, start, chunks[::-1], OFFSETS)
    assert np.array_equal(there, back[::-1]) and np.array_equal(reward, again[::-1])
    assert np.array_equal(env.snapshot().physics, start.physics)
    for name, value in start.model.items():
        assert np.array_equal(env.snapshot().model[name], value)


def test_the_same_states_on_any_number_of_processes(states):
    two = counterfactuals(ENV, SPEC, episodes=2, moments=2, processes=2)
    assert len(two) == len(states) == 4
    for a, b in zip(states, two, strict=True):
        assert a.names == b.names and np.array_equal(a.future, b.future) and np.array_equal(a.actions, b.actions)
    assert states[0].names[0] == "taken" and states[0].expert.sum() == 4 and STILL in states[0].names
    assert states[0].future.shape == (len(states[0].names), 2, 1, 3, 32, 32)


@pytest.mark.parametrize("expert", [False, True])
def test_known_models_come_out_in_their_order(states, expert):
    states = [s.only(expert) for s in states]
    scores = {name: score(states, model) for name, model in MODELS.items() if name != "still" or not expert}
    best = scores["oracle"]
    assert best.identified.value == 1 and best.skill.value == 1 and best.regret.value == 0
    for name in ("copy", "action-blind"):
        assert scores[name].identified.value == pytest.approx(best.chance)
    for name in ("opposite", "shuffled"):
        assert scores[name].identified.value == 0
    assert best.chance < scores["noisy oracle"].identified.value
    assert scores["copy"].skill.value == 0 and scores["copy"].regret.value == pytest.approx(1)
    if not expert:
        assert (
            best.direction.value == pytest.approx(1) and best.gain.value == pytest.approx(1) and best.drift.value == 0
        )
        for name in ("copy", "action-blind", "still"):
            assert scores[name].direction.value == 0 and scores[name].gain.value == 0
        assert scores["opposite"].direction.value < 0 and scores["opposite"].gain.value < 0
        assert scores["still"].drift.value == 0 < scores["opposite"].drift.value


def test_more_noise_is_never_better(states):
    rows = [score(states, noisy(sigma)) for sigma in (0.0, 10.0, 40.0, 120.0)]
    for name, better in (("identified", -1), ("skill", -1), ("direction", -1), ("drift", 1)):
        values = [getattr(r, name).value for r in rows]
        assert all(better * (b - a) >= -1e-9 for a, b in zip(values, values[1:], strict=False)), (name, values)


def test_odd_input_has_a_defined_answer(states):
    with pytest.raises(EvaluationError, match="no states"):
        score([], MODELS["copy"])
    with pytest.raises(EvaluationError, match="but the branches are"):
        score(states, lambda s: s.future[:, :1])
    frozen = [
        dataclasses.replace(
            s, future=np.broadcast_to(s.obs.images, s.future.shape).copy(), reward=np.zeros(len(s.names))
        )
        for s in states
    ]
    nothing = score(frozen, MODELS["oracle"])
    assert nothing.skill.undefined and nothing.direction.undefined and nothing.regret.undefined
    assert nothing.identified.value == pytest.approx(nothing.chance)


def test_a_model_is_asked_with_one_noise_for_all_branches():
    spec = Spec(("c",), 16, 16, 2, 2, chunk=4, frame_offsets=(2, 4))
    cls = FAMILIES.get("bc")
    numbers = Normalizer({k: (torch.zeros(2), torch.ones(2)) for k in ("proprio", "action")})
    with pytest.raises(UnsupportedQuery, match="'bc' does not model the query 'forward'"):
        imagined_by(Model(cls(cls.Config(width=32, depth=1, heads=2), spec, numbers)))
    cls = FAMILIES.get("unified")
    torch.manual_seed(0)
    model = Model(cls(cls.Config(width=32, depth=1, heads=2), spec, numbers).eval())
    obs = Observation(np.zeros((1, 3, 16, 16), np.uint8), np.zeros(2, np.float32), "go")
    same = np.repeat(np.random.default_rng(0).normal(size=(1, 4, 2)).astype(np.float32), 3, 0)
    state = Counterfactuals(
        "t", 0, 0, obs, ("a", "b", "c"), same, np.zeros((3, 2, 1, 3, 16, 16), np.uint8), np.zeros(3), np.ones(3, bool)
    )
    out = imagined_by(model)(state)
    assert out.shape == state.future.shape and np.array_equal(out[0], out[1]) and np.array_equal(out[0], out[2])


def executions_of(states, demonstrated, executed, imagined):
    """Executions put together from branches: which branch each of the three shows; None imagines nothing."""

    def pick(s, i):
        return None if i is None else s.future[i if isinstance(i, int) else s.names.index(i)]

    return [
        Execution(s.task, s.seed, s.step, s.obs.images, *(pick(s, i) for i in (demonstrated, executed, imagined)))
        for s in states
    ]


@pytest.mark.parametrize(
    ("executed", "imagined", "words", "best"),
    [
        (0, 0, "no fault found", ("forecast", "policy", "consistency")),
        ("-dy", 0, "the video is right, the arm is wrong", ("forecast",)),
        (0, "-dy", "forecast error: the arm is right", ("policy",)),
        ("-dy", "-dy", "policy error: it does what it predicts", ("consistency",)),
        ("-dy", "+dz", "both are wrong", ()),
        (0, None, "it predicts no frames; its actions do what the expert's did", ("policy",)),
    ],
)
def test_three_comparisons_tell_faults_apart(states, executed, imagined, words, best):
    scored = execution_score(executions_of(states, 0, executed, imagined))
    assert words in diagnosis(scored)  # of two episodes the intervals may decide, or not
    one = execution_score(executions_of(states[:2], 0, executed, imagined))
    assert diagnosis(one).startswith("one episode: no interval; the figures alone would say: " + words)
    for name in ("forecast", "policy", "consistency"):
        value = getattr(scored, name)
        assert value.undefined if imagined is None and name != "policy" else (value.value == 1) == (name in best)


def test_enough_episodes_decide():
    """Twelve episodes: the video is right but for a little noise, the arm stays where it is in all but the noise."""
    rng, shape = np.random.default_rng(0), (2, 1, 3, 16, 16)
    rows = []
    for seed in range(12):
        now = np.full(shape[1:], 100, np.uint8)
        demonstrated = np.broadcast_to(now, shape).copy()
        demonstrated[..., 4:10, 4:10] = 200
        imagined = demonstrated - rng.integers(0, 20, shape).astype(np.uint8)
        executed = np.broadcast_to(now, shape) - rng.integers(0, 90, shape).astype(np.uint8)
        rows.append(Execution("t", seed, 0, now, demonstrated, executed, imagined))
    scored = execution_score(rows)
    assert scored.episodes == 12 and scored.forecast.low > 0 > scored.policy.high
    assert diagnosis(scored).startswith("the video is right, the arm is wrong")
    assert diagnosis(execution_score(rows[:1])).startswith("one episode: no interval; ")


def test_where_nothing_moves_there_is_nothing_to_tell(states):
    still = [dataclasses.replace(x, demonstrated=x.now[None], executed=x.now[None], imagined=None)
             for x in executions_of(states, 0, 0, None)]  # fmt: skip
    assert diagnosis(execution_score(still)).startswith("nothing moved")
    with pytest.raises(EvaluationError, match="no states"):
        execution_score([])
