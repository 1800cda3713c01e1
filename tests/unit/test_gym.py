"""Any Gymnasium environment by options, and the scripted experts in `examples/`."""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import toy_gym
from conftest import untrained_run
from wamkit.cli.main import main
from wamkit.data.format.store import Store
from wamkit.envs import make_env, wrap_gym
from wamkit.envs.check import check_env
from wamkit.envs.spec import EnvSpec
from wamkit.eval.evaluate import evaluate
from wamkit.eval.protocols import Protocol
from wamkit.eval.registry import EvalOptions
from wamkit.registry import RegistryError, named_object
from wamkit.runs.run import Run
from wamkit.types import WamkitError

ROOT = Path(__file__).parents[2]
TOY = {"id": "toy_gym:toys/Toy-v0", "state": "agent.pos,agent.all[2:]", "height": 24, "width": 32}
FETCH = {
    "id": "gymnasium_robotics:FetchPickAndPlace-v4",
    "state": "observation[0:3],observation[9:11]",
    "image": "examples.fetch:VIEWS",
}
ALOHA = {
    "id": "examples.aloha:AlohaTransferCube-v0",
    "state": "agent_pos",
    "image": "examples.aloha:VIEWS",
    "width": 96,
}
PANDA = {
    "id": "examples.panda:PandaRedGoal-v0",
    "state": "observation[0:3],observation[6:7]",
    "image": "examples.panda:VIEWS",
}


def toy(**options):
    return make_env("gym", **{**TOY, **options})


def words(**options):
    return [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in {**TOY, **options}.items()]


def test_an_environment_of_wamkit_stays_what_it_is():
    """Through Gymnasium and back: the same images, states, rewards, success and end."""
    size = {"height": 32, "width": 32, "max_steps": 6}
    own = make_env("reacher", **size)
    env = make_env(
        "gym", id="wamkit:wamkit/Reacher-reach", state="proprio", kwargs=size, max_steps=6, height=32, width=32
    )
    assert (env.task, env.fps, env.cameras, env.text) == ("Reacher-reach", 50.0, ("render",), "Reacher-reach")
    (a, told_a), (b, told_b) = own.reset(seed=5), env.reset(seed=5)
    for k in range(6):
        assert np.array_equal(a["images"], b["images"]) and np.array_equal(a["proprio"], b["proprio"])
        assert told_a["success"] is told_b["success"]
        action = np.array([0.3, -1.0], np.float32) * (-1) ** k
        (a, *ends_a, told_a), (b, *ends_b, told_b) = own.step(action), env.step(action)
        assert ends_a == ends_b
    assert ends_b[-1] is True
    own.close(), env.close()


def test_cameras_state_and_text_are_what_the_options_name():
    env = toy(image="pixels.top,pixels.wrist,render", text="move to the {side}", kwargs={"colour": 200})
    assert env.cameras == ("top", "wrist", "render") and env.fps == 20.0
    assert env.proprio_names == ("agent.pos_0", "agent.pos_1", "agent.all_2", "agent.all_3")
    raw, told = env.reset(seed=3)
    inner = env.gym.unwrapped
    assert told == {"success": False} and raw["proprio"].tolist() == np.float32([*inner.dot, *inner.mark]).tolist()
    assert raw["text"] == env.text == f"move to the {'left' if inner.mark[0] < 0.5 else 'right'}"
    top, wrist, render = raw["images"]
    full = inner._image().transpose(2, 0, 1).astype(float)
    means = full.reshape(3, 24, 2, 32, 2).mean((2, 4))
    assert np.abs(top - means).max() <= 0.5 and np.array_equal(top, render)
    assert (wrist == int(255 * inner.dot[0])).all() and raw["images"].shape == (3, 3, 24, 32)
    assert "images" not in env.step(np.zeros(4, np.float32), render=False)[0]
    drawn = toy(image="toy_gym:drawn", kwargs={"colour": 200})
    assert drawn.cameras == ("drawn",) and np.array_equal(drawn.reset(seed=3)[0]["images"], raw["images"][[0]])
    wrapped = wrap_gym(
        gymnasium.make("toys/Toy-v0", colour=200, disable_env_checker=True),
        image={"a": toy_gym.drawn},
        state="agent.pos",
        height=24,
        width=32,
    )
    assert np.array_equal(wrapped.reset(seed=3)[0]["images"], raw["images"][[0]])
    named = toy(image={"a": "pixels.wrist", "b": "render"}, kwargs={"colour": 200})
    assert named.cameras == ("a", "b") and np.array_equal(named.reset(seed=3)[0]["images"], raw["images"][[1, 2]])


@pytest.mark.parametrize(
    "rule", ["", "info.is_success", "info.task.done", "terminated", "reward>=-0.1", "toy_gym:on_mark"]
)
def test_success_is_read_from_info_termination_reward_or_a_function(rule):
    env = toy(success=rule)
    for seed in range(3):
        _, told = env.reset(seed=seed)
        assert not told["success"] or rule == "toy_gym:on_mark"
        expert = toy_gym.Straight(env.gym)
        for _ in range(20):
            _, _, terminated, _, told = env.step(expert(None).astype(np.float32))
            assert told["success"] is terminated is bool(toy_gym.on_mark(env.gym))
            if terminated:
                break
        assert told["success"]


def test_an_expert_begins_anew_with_every_episode():
    env = toy(expert="toy_gym:Straight")
    expert, rng = env.expert(), np.random.default_rng(0)
    for seed in (1, 2):
        env.reset(seed=seed)
        assert [round(float(expert(rng)[2]), 2) for _ in range(3)] == [0.01, 0.02, 0.03]
    assert toy().expert() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id": ""}, "no Gymnasium environment is named: --options id=MODULE:ID"),
        ({"id": "CartPol-v1"}, r"no environment 'CartPol-v1' \(did you mean 'CartPole-v1'\?\)"),
        ({"id": "no_such_module:X-v0"}, "option id: the module 'no_such_module' cannot be imported"),
        ({"id": "CartPole-v1", "state": ""}, r"actions must be a Box of one axis, found Discrete\(2\)"),
        ({"id": "toy_gym:toys/Endless-v0"}, "its episodes have no end: --options max_steps=NUMBER"),
        ({"state": ""}, r"name its state: .* the observation holds pixels.top \(uint8 \(48, 64, 3\)\), pixels.wrist"),
        ({"state": "agent.poss"}, r"no 'agent.poss' \(did you mean 'agent.pos'\?\); there is pixels.top"),
        ({"state": "side"}, "state 'side' holds no numbers"),
        ({"state": "agent.pos[5:]"}, r"state 'agent.pos\[5:\]' is empty; agent.pos has 2 values"),
        ({"state": "agent.pos[0]"}, "neither KEY nor KEY"),
        ({"image": "pixels.topp"}, r"image: there is no 'pixels.topp' \(did you mean 'pixels.top'\?\)"),
        ({"image": "agent.pos"}, r"image 'agent.pos' must be uint8 \(H, W, 3\) or \(3, H, W\), found float64 \(2,\)"),
        ({"image": "toy_gym:on_mark"}, r"image 'on_mark' must be uint8 \(H, W, 3\) or \(3, H, W\), found bool"),
        ({"image": ""}, "it needs images: --options image=render"),
        ({"image": "camera:top"}, "it has no MuJoCo `model` and `data`"),
        ({"image": {"top": {"lookat": [0, 0, 0], "distanc": 1}}}, r"'distanc' \(did you mean 'distance'\?\)"),
        ({"image": {"top": {"lookat": [0, 0], "distance": 1, "azimuth": 0, "elevation": 0}}}, "lookat must be three"),
        ({"success": "info.is_succes"}, r"there is no 'is_succes' \(did you mean 'is_success'\?\)"),
        ({"success": "won"}, "success 'won' is none of info.KEY, terminated, reward>=NUMBER, MODULE:FUNCTION"),
        ({"expert": "toy_gym:Strait"}, r"option expert: toy_gym has no 'Strait' \(did you mean 'Straight'\?\)"),
        ({"success": "toy_gym:on_marc"}, r"toy_gym has no 'on_marc' \(did you mean 'on_mark'\?\)"),
        ({"text": "to the {sid}"}, r"text: there is no 'sid' \(did you mean 'side'\?\)"),
        ({"kwargs": {"color": 1}}, "it cannot be made .*unexpected keyword argument 'color'"),
        ({"imag": "render"}, r"unknown key \(did you mean 'image'\?\)"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(options, message):
    with pytest.raises(WamkitError, match=message):
        toy(**options)


def test_a_wrapped_environment_takes_functions():
    env = gymnasium.make("toys/Toy-v0", render_mode="rgb_array", disable_env_checker=True)
    wrapped = wrap_gym(env, state="agent.pos", expert=toy_gym.Straight, success=toy_gym.on_mark, height=24, width=24)
    assert wrapped.gym is env and wrapped.task == "Toy-v0" and len(wrapped.proprio_names) == 2
    wrapped.reset(seed=0)
    expert = wrapped.expert()
    assert any(wrapped.step(expert(np.random.default_rng(0)))[-1]["success"] for _ in range(20))
    with pytest.raises(WamkitError, match="must be uint8 .* found NoneType .*made with render_mode='rgb_array'"):
        wrap_gym(gymnasium.make("toys/Toy-v0", disable_env_checker=True), state="agent.pos")


class Strict(gymnasium.Env):
    """Refuses actions outside of its own bounds, and says at the end of an episode alone whether it was a success."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    render_mode = "rgb_array"

    def __init__(self, low, high, dtype):
        self.action_space = gymnasium.spaces.Box(low, high, (2,), dtype)
        self.observation_space = gymnasium.spaces.Box(-9, 9, (3,))
        self.acted = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(3), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.acted.append(action.tolist())
        self.time += 1
        over = self.time == 5
        return np.full(3, 1.0 * self.time), 0.0, over, False, {"solved": True} if over else {}

    def render(self):
        return np.zeros((40, 40, 3), np.uint8)


@pytest.mark.parametrize(
    ("low", "high", "dtype", "given", "acted"),
    [(-0.1, 0.1, np.float64, 1.0, 0.1), (0.7, 0.9, np.float64, -5.0, 0.7), (0, 3, np.int64, 1.8, 2)],
)
def test_actions_are_within_the_bounds_of_an_environment_in_its_own_type(low, high, dtype, given, acted):
    env = wrap_gym(Strict(low, high, dtype), max_steps=20, success="info.solved")
    env.reset(seed=1)
    env.step(np.full(2, given, np.float32))
    assert env.gym.acted[-1] == [acted] * 2
    if dtype == np.float64:  # an action in float32 of the bound itself is beyond it
        env.step(env.action_space.high)
        assert env.gym.acted[-1] == [min(high, float(np.float32(high)))] * 2


def test_success_that_info_tells_at_the_end_alone():
    env = wrap_gym(Strict(-1, 1, np.float32), max_steps=20, success="info.solved")
    env.reset(seed=1)
    assert [env.step(np.zeros(2, np.float32))[-1]["success"] for _ in range(5)] == [False] * 4 + [True]
    with pytest.raises(WamkitError, match="there is no 'info.solve'|solve.*solved"):
        wrap_gym(Strict(-1, 1, np.float32), max_steps=20, success="info.solve")


def test_the_checks_name_what_an_environment_lacks():
    every = ["contract", "determinism", "variety", "render switch", "two at once", "new process"]
    restless = {"id": "toy_gym:toys/Restless-v0", "success": "toy_gym:on_mark", "height": 48, "width": 64}
    with pytest.raises(WamkitError, match="'render switch' failed: .*or take render=always"):
        check_env(partial(toy, **restless), steps=6)
    assert check_env(partial(toy, **restless, render="always"), steps=6) == every
    careless = {"id": "toy_gym:toys/Careless-v0", "image": "pixels.top", "height": 48, "width": 64}
    with pytest.raises(WamkitError, match="'determinism' failed"):
        check_env(partial(toy, **careless), steps=6)
    assert check_env(partial(toy, **careless, seeded=False), steps=6) == ["contract", "variety"]


def test_it_is_collected_and_evaluated_by_commands(tmp_path, capsys):
    options = words(image={"corner2": "pixels.top"}, height=32, width=32, expert="toy_gym:Straight", seeded=False)
    assert main(["check-env", "gym", "--options", *options]) == 0
    notes = capsys.readouterr().out
    assert "gym, Toy-v0: all checks passed (contract, variety)" in notes
    assert "its resets do not follow their seed, so these checks are left out: determinism, render switch" in notes
    collect = ["collect", "--env", "gym", "--episodes", "2", "--off-expert", "2", "--off-expert-steps", "5"]
    collect += ["--off-expert-skip", "500", "--processes", "1", "--out", str(tmp_path / "data"), "--options", *options]
    assert main(collect) == 0
    store = Store.open(tmp_path / "data")
    assert {m.task for m in store.episodes} == {"Toy-v0"} and store.layout.fps == 20
    assert sum(m.is_demonstration for m in store.episodes) == 2
    given = json.loads((tmp_path / "data/collect.json").read_text())["options"]
    assert EnvSpec("gym", (), given).known_tasks() == ("Toy-v0",) and not EnvSpec("gym", (), given).seeded
    run = Run.open(untrained_run(tmp_path / "run", ["Toy-v0"], given, env="gym", fps=20.0))
    summary = evaluate(run, Protocol(episodes=1), EvalOptions(held_out=0, processes=1, report=False))
    assert "other starts, perhaps trained ones" in summary["protocol"]["note"]
    assert "note: Its resets do not follow their seed" in capsys.readouterr().out
    assert [r["key"] for r in summary["rows"]][:2] == [f"closed_loop.success{x}" for x in (".Toy-v0", "")]


def test_of_several_tasks_one_must_be_named(capsys):
    for env, message in (("metaworld", "tasks must be distinct, and at least one"), ("gym", "--options id=MODULE:ID")):
        with pytest.raises(SystemExit):
            main(["collect", "--env", env, "--out", "x"])
        assert message in capsys.readouterr().err


def test_objects_by_name():
    assert named_object("json:dumps", "option x") is json.dumps
    wrong = {"json": "is not MODULE:OBJECT", ":x": "'' is no name", "..a:x": "'..a' is no name", "a.b:x": "cannot be"}
    for name, message in wrong.items():
        with pytest.raises(RegistryError, match=f"option x: .*{message}"):
            named_object(name, "option x")


def test_no_code_is_taken_from_data_or_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("data/theirs/meta", "runs/theirs/checkpoints"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place).with_name("code.py").write_text("raise SystemExit('it ran')")
    (tmp_path / "data/theirs/meta/info.json").write_text("{}")
    for name in ("data.theirs.code:f", "runs.theirs.code:f"):
        with pytest.raises(RegistryError, match="a data set or a run: no code is taken from there"):
            named_object(name, "option success")


def test_a_free_camera_looks_at_a_simulation_of_gymnasium():
    view = {"lookat": [0, 0, 0], "distance": 0.6, "azimuth": 90, "elevation": -89}
    options = {"id": "Reacher-v5", "state": "observation[0:4]", "success": "reward>=-0.05", "height": 32, "width": 32}
    env = make_env("gym", **options, image={"top": view, "near": {**view, "distance": 0.3}})
    images = env.reset(seed=0)[0]["images"]
    assert images.shape == (2, 3, 32, 32) and (images.std((1, 2, 3)) > 5).all() and not np.array_equal(*images)
    with pytest.raises(WamkitError, match="unknown camera 'top'"):
        make_env("gym", **options, image="camera:top")
    env.close()


def needs(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs the package {package}")


def solved(env, seeds):
    """The share of seeds that the expert solves, without noise."""
    expert, rng, count = env.expert(), np.random.default_rng(0), 0
    for seed in seeds:
        env.reset(seed=seed, render=False)
        ended = success = False
        while not (ended or success):
            *_, terminated, truncated, told = env.step(expert(rng), render=False)
            ended, success = terminated or truncated, told["success"]
        count += success
    return count / len(seeds)


@needs("gymnasium_robotics")
def test_fetch_lifts_and_places(monkeypatch):
    monkeypatch.chdir(ROOT)
    lift = make_env("gym", **FETCH, success="examples.fetch:lifted", expert="examples.fetch:Lift", name="lift")
    assert lift.task == "lift" and solved(lift, range(5)) == 1
    place = {**FETCH, "expert": "examples.fetch:PickPlace"}
    assert solved(make_env("gym", **place), range(5)) == 1
    assert len(check_env(partial(make_env, "gym", **place), steps=4)) == 6
    raw = lift.reset(seed=3)[0]["images"].astype(int)
    red = (raw[:, 0] > 150) & (raw[:, 1:].max(1) < 60)  # the goal marker
    assert (red.sum((1, 2)) > 0).all()


@needs("gym_aloha")
def test_aloha_hands_the_cube_over(monkeypatch):
    monkeypatch.chdir(ROOT)
    env = make_env("gym", **ALOHA, expert="examples.aloha:Transfer")
    assert env.action_space.high[2] > 1.16  # the elbow's first angle, outside the bounds of gym-aloha
    assert env.fps == 50 and solved(env, range(2)) == 1


@needs("panda_gym")
def test_panda_places_the_block(monkeypatch):
    monkeypatch.chdir(ROOT)
    panda = {**PANDA, "expert": "examples.panda:PickPlace"}
    env = make_env("gym", **panda)
    assert env.cameras == ("left", "right") and env.fps == 25 and solved(env, range(5)) == 1
    assert len(check_env(partial(make_env, "gym", **panda), steps=4)) == 6
    images = env.reset(seed=3)[0]["images"].astype(int)
    for bright, dark in ((0, 1), (1, 0)):  # the red goal and the green block, each seen by both cameras
        assert ((images[:, bright] > 100) & (images[:, dark] < 60)).any((1, 2)).all()
