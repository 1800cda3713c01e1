"""Named protocols: what each plays, what the command adds, and how an episode went."""

import dataclasses
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from conftest import untrained_run
from wamkit.cli.main import main
from wamkit.config import from_dict
from wamkit.envs import make_env
from wamkit.envs.libero import MAX_STEPS
from wamkit.envs.spec import EnvSpec
from wamkit.eval.held_out import evaluation_env
from wamkit.eval.protocols import MT10, PROTOCOLS, Protocol, named_protocol, targets_under
from wamkit.eval.report.card import arguments
from wamkit.eval.results import Row, Table, aimed
from wamkit.eval.suites.closed_loop import (
    OUTCOMES,
    Record,
    _Job,
    _read_part,
    outcome,
    outcomes,
    records_file,
    success_table,
)
from wamkit.eval.suites.latency import Load, load_note, machine_load
from wamkit.rollout.loop import Actor, rollout
from wamkit.runs.recipes import RECIPES
from wamkit.runs.run import Run
from wamkit.runs.targets import Targets
from wamkit.types import Episode, Target, WamkitError


def episode(success, proprio=None, ended="truncated", **told):
    T = len(success)
    proprio = np.arange(T)[:, None] if proprio is None else np.array(proprio)
    nothing, success = np.zeros((T, 1), np.float32), np.array(success)
    one = ("t", "do it", 0, 10.0, ("eye",), None, proprio.astype(np.float32), nothing, nothing, nothing[:, 0], success)
    return Episode(*one, ended=ended, **{k: np.array(v) for k, v in told.items()})


@pytest.mark.parametrize(
    ("played", "kind"),
    [
        (episode([False, True]), "solved"),
        (episode([False, True, True], ended=""), "solved"),
        (episode([False, True, False]), "lost it again"),
        (episode([False, False]), "ran out of time"),
        (episode([False, False], ended="terminated"), "terminated"),
        (episode([False, False], ended=""), "stopped"),
        (episode([False, False, False], [[1.0], [1.004], [0.996]]), "did not move"),
        (episode([False, False, False], [[1.0], [1.0], [1.006]]), "ran out of time"),
        (episode([False, False], [[1.0, 0.0], [1.0, 0.1]], "terminated"), "terminated"),
        (episode([False, True], [[1.0], [1.0]]), "solved"),  # a goal may need no moving
        (episode([False]), "ran out of time"),  # one row: nobody saw whether it moved
        (episode([False, False], np.zeros((2, 0))), "ran out of time"),  # no proprioception: likewise
    ],
)
def test_how_an_episode_went(played, kind):
    assert outcome(played) == kind and kind in OUTCOMES


@pytest.mark.parametrize(
    ("touched", "remaining", "ended", "kind"),
    [
        ([0, 0, 0], [3.0, 3.0, 3.0], "truncated", "never touched"),
        ([0, 0, 0], [3.0, 3.0, 3.0], "terminated", "terminated"),
        ([0, 1, 0], [3.0, 2.0, 2.0], "truncated", "touched and lost"),
        ([0, 1, 1], [3.0, 2.0, 2.0], "truncated", "ran out of time"),
        ([0, 1, 1], [3.0, 2.0, 2.0], "", "stopped"),
        ([0, 1, 0], [3.0, 2.0, 1.0], "truncated", "nearly"),
        ([0, 1, 0], [3.0, 1.0, 2.0], "truncated", "touched and lost"),  # it was near, and is not at the end
        (None, [3.0, 2.0, 1.0], "truncated", "nearly"),
        (None, [0.0, 0.0, 0.0], "truncated", "ran out of time"),  # nothing to do from the start tells nothing
        ([0, 0, 0], None, "", "never touched"),
        ([1, 0, 0], None, "truncated", "touched and lost"),
    ],
)
def test_contact_and_progress_tell_failures_apart(touched, remaining, ended, kind):
    told = {} if touched is None else {"touched": np.array(touched, bool)}
    told |= {} if remaining is None else {"remaining": remaining}
    assert outcome(episode([False] * 3, ended=ended, **told)) == kind and kind in OUTCOMES


class Acts(Actor):
    """Takes the actions of a function of the environment's expert; sees nothing."""

    def __init__(self, action):
        self.action = action

    def needs_images(self, session):
        return False

    def act(self, observation, session):
        return self.action(session or 0), (session or 0) + 1


def played(env, action, steps, seed=0):
    return rollout(env, Acts(action), seed=seed, max_steps=steps, steps_after_success=None, record_images=False)


def test_metaworld_tells_of_contact_and_distance():
    env, rng = make_env("metaworld", task="drawer-open-v3", max_steps=120), np.random.default_rng(0)
    away = played(env, lambda t: np.array([1, -1, 1, 0], np.float32), 60)
    assert outcome(away) == "never touched" and away.remaining == pytest.approx(away.remaining[0], abs=1e-3)
    expert = env.expert()
    opens = played(env, lambda t: expert(rng), 110)
    assert opens.succeeded and not opens.touched[:20].any() and opens.touched.any()
    done = int(opens.success.argmax())
    assert opens.remaining[done] < opens.remaining[0] / 3
    failed = {"success": opens.success & False, "remaining": opens.remaining * 0 + 1, "ended": "truncated"}
    early = dataclasses.replace(opens, **failed)
    assert outcome(early) in ("touched and lost", "ran out of time")


@pytest.mark.parametrize(("task", "told"), [("reach-v3", {"remaining"}), ("door-open-v3", {"touched"})])
def test_metaworld_leaves_out_what_a_task_does_not_have(task, told):
    env = make_env("metaworld", task=task)
    env.reset(seed=0, render=False)
    *_, info = env.step(np.zeros(4, np.float32), render=False)
    assert set(info) == {"success"} | told


def test_a_pusher_that_stays_away_and_one_that_pushes_are_told_apart():
    rng = np.random.default_rng(0)
    env = make_env("physics", task="push")
    expert = env.expert()
    assert outcome(played(env, lambda t: -expert(rng), 25)) == "never touched"
    pushes = played(env, lambda t: expert(rng), 80)
    assert pushes.succeeded and pushes.touched.any() and pushes.remaining[pushes.success].max() == 0
    env.reset(seed=0, render=False)
    assert make_env("physics", task="drop").reset(seed=0, render=False)[1] == {"success": False}


def test_pusht_and_reacher_tell_what_they_know():
    pytest.importorskip("gym_pusht.envs", exc_type=ImportError)
    env, rng = make_env("pusht"), np.random.default_rng(0)
    env.reset(seed=3, render=False)
    corner = np.array([20.0, 20.0], np.float32)
    assert outcome(played(env, lambda t: corner + t % 2 * 9, 20, seed=3)) == "never touched"
    expert = env.expert()
    pushes = played(env, lambda t: expert(rng), 40, seed=3)
    assert pushes.touched.any() and not pushes.touched[0] and pushes.remaining.min() < pushes.remaining[0]
    arm = make_env("reacher")
    expert_of_arm = arm.expert()
    reaches = played(arm, lambda t: expert_of_arm(rng), 60)
    assert reaches.touched is None and reaches.remaining[-1] == 0 and reaches.success[-1]


def test_an_environment_that_tells_nothing_runs_out_of_time():
    env = make_env("reacher", max_steps=4)
    step = env.step
    env.step = lambda *a, **k: (*(out := step(*a, **k))[:4], {"success": out[4]["success"]})
    silent = played(env, lambda t: np.ones(2, np.float32), 4)
    assert (silent.touched, silent.remaining) == (None, None) and outcome(silent) == "ran out of time"


def test_what_went_wrong_is_counted_beside_success():
    how = ["solved", "ran out of time", "ran out of time", "did not move", ""]
    records = [Record("t", k, "go", h == "solved", 5, (1.0,), h) for k, h in enumerate(how)]
    assert outcomes(records) == "1 did not move, 2 ran out of time"
    assert outcomes(records[:1]) == ""
    table = success_table(records, "Protocol x.")
    assert table.rows[0].note == "1 did not move, 2 ran out of time" and table.rows[1].note.startswith("1 did not move")
    assert table.how.endswith("Protocol x.")


def test_pieces_of_older_evaluations_are_read(tmp_path):
    old = {"task": "t", "seed": 1, "text": "go", "success": True, "steps": 3, "latency_ms": [1.0]}
    job, path = _Job(None, Protocol(EnvSpec("metaworld", ("t",))), "t", (1,)), tmp_path / "a.json"
    path.write_text(json.dumps([old]))
    assert _read_part(path, job) == [Record("t", 1, "go", True, 3, (1.0,), "")]
    path.write_text(json.dumps([old | {"outcome": "exploded"}]))
    assert _read_part(path, job) is None  # so it is played again


def test_metaworlds_protocols_are_its_own_benchmarks():
    env_dict = pytest.importorskip("metaworld.env_dict")
    ten, fifty = PROTOCOLS.get("metaworld-mt10")(), PROTOCOLS.get("metaworld-mt50")()
    assert ten.env.tasks == MT10 == tuple(env_dict.MT10_V3) and set(fifty.env.tasks) == set(env_dict.MT50_V3)
    assert ten.env.options["max_steps"] == 500 and (ten.episodes, fifty.episodes) == (50, 10)
    groups = dict(fifty.groups)
    assert {k: len(v) for k, v in groups.items()} == {"easy": 28, "medium": 11, "hard": 6, "very hard": 5}
    assert sorted(t for tasks in groups.values() for t in tasks) == sorted(fifty.env.tasks)
    assert "groups" not in fifty.to_dict()  # a way of reporting, so no cache depends on it


def test_groups_of_tasks_weigh_the_same_whatever_their_size():
    solved = {"a": (1, 1), "b": (1, 1), "c": (1, 0), "d": (0, 0)}
    records = [Record(t, k, "go", bool(s), 5, (1.0,)) for t, own in solved.items() for k, s in enumerate(own)]
    rows = {r.key: r for r in success_table(records, groups=[("easy", ("a", "b", "c")), ("hard", ("d",))]).rows}
    assert rows["success"].value == 5 / 8 and rows["group_success.easy"].value == 5 / 6
    mean = rows["group_success"]
    assert mean.value == pytest.approx(5 / 12) and mean.interval.low < 5 / 12 < mean.interval.high
    part = {r.key for r in success_table(records, groups=[("easy", ("a", "b")), ("hard", ("d", "e"))]).rows}
    assert "group_success.easy" in part and not part & {"group_success.hard", "group_success"}  # `e` was not played


DEMO = EnvSpec("metaworld", ("button-press-topdown-v3", "drawer-open-v3", "window-close-v3", "door-open-v3"))


def asked(requested: Protocol, config=None, env: EnvSpec = DEMO) -> int:
    """How many figures have a target when a run of `config` is evaluated."""
    run = SimpleNamespace(config=config or RECIPES.get("metaworld-unified")())
    return len(targets_under(run, requested, env).figures)


def test_targets_are_those_of_the_recipe_in_its_own_tasks_or_of_the_protocol(monkeypatch):
    unified, plain = RECIPES.get("metaworld-unified")(), Protocol(episodes=3)
    assert asked(plain) == asked(plain, env=replace(DEMO, tasks=("door-open-v3",))) > 5
    assert asked(plain, replace(unified, train=replace(unified.train, seed=7, threads=1))) > 5
    # Another robot, other tasks, another budget, another family, another way of acting: figures without verdicts.
    for env in (EnvSpec("pusht", ("push-t",)), EnvSpec("metaworld", ("reach-v3",)), EnvSpec("metaworld", MT10)):
        assert asked(plain, env=env) == 0
    for config in (RECIPES.get("metaworld-bc")(), replace(unified, train=replace(unified.train, steps=100))):
        assert asked(plain, config) == 0
    for other in (replace(plain, query="joint"), replace(plain, steps=2), replace(plain, env=EnvSpec("pusht"))):
        assert asked(other) == 0
    own = {"closed_loop.success": Target(above=0.5)}
    monkeypatch.setitem(PROTOCOLS._items, "mine", lambda: Protocol(DEMO, targets=Targets(figures=own)))
    named = named_protocol("mine")
    assert asked(named) == asked(replace(named, episodes=4)) == asked(Protocol(DEMO, targets=named.targets)) == 1
    assert asked(named_protocol("mine", options={"max_steps": 9})) == asked(replace(named, replan_every=1)) == 0
    assert all(asked(named_protocol(name)) == 0 for name in ("metaworld-mt10", "pusht"))
    assert "targets" not in named.to_dict()  # figures do not depend on them, so neither do caches


def test_the_first_fitting_pattern_gives_the_target():
    targets = Targets(figures={"a.x.1": Target(above=1), "a.x.*": Target(above=2)})
    rows = tuple(Row(key, key, 1.0) for key in ("x.1", "x.2", "y"))
    (table,) = aimed([Table("a", "A", "", rows)], targets)
    assert [r.target and r.target.above for r in table.rows] == [1, 2, None]


def test_no_suite_judges_what_it_measures():
    """Targets in the code of a suite would judge every robot."""
    suites = Path(__file__).parents[2] / "src/wamkit/eval"
    judges = re.compile(r"\bTarget\(|passed=")
    assert not [p.name for p in suites.rglob("*.py") if judges.search(p.read_text())]


def test_latency_carries_the_load_that_it_was_taken_under(tmp_path):
    idle, busy = Load(0.4, 2, 1, "Some CPU"), Load(3.0, 2, 1, "Some CPU")
    assert not idle.busy and busy.busy and machine_load().cores >= 1 and machine_load().cpu
    records = [Record("t", k, "go", True, 5, (10.0, 20.0, 30.0), "solved", load) for k, load in enumerate([idle, busy])]
    row = success_table(records).rows[-1]
    assert row.key == "latency.median" and row.interval.low <= row.value == 20 <= row.interval.high
    assert "load average 1.7 on Some CPU, 2 cores, 1 thread; the machine was BUSY" in row.note
    assert "BUSY" not in load_note([idle]) and "was not recorded" in load_note([])
    (tmp_path / "a.parquet").write_bytes(records_file([*records, Record("t", 9, "go", True, 5, (1.0,))]))
    back = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert [from_dict(Record, r) for r in back] == [*records, Record("t", 9, "go", True, 5, (1.0,))]


def test_every_protocol_names_what_exists():
    assert {f"libero-{s.removeprefix('libero_')}" for s in MAX_STEPS} < set(PROTOCOLS.names())
    for name in PROTOCOLS.names():
        try:
            protocol = PROTOCOLS.get(name)()
        except WamkitError as error:
            assert "hf-libero" in str(error) and name.startswith("libero-")
            continue
        from wamkit.envs import ENVIRONMENTS

        assert set(protocol.env.tasks) <= set(ENVIRONMENTS.get(protocol.env.env).tasks())
        fields = {f.name for f in dataclasses.fields(ENVIRONMENTS.get(protocol.env.env).Config)}
        assert set(protocol.env.options) <= fields
        assert (
            protocol.note.startswith("compares with ") and ". Note: " in protocol.note and "with ." not in protocol.note
        )


def test_a_protocol_says_where_it_was_departed_from():
    protocol = named_protocol("metaworld-mt10", ("reach-v3",), {"goal_markers": False, "max_steps": 500})
    assert "but for 1 of its 10 tasks, goal_markers=False: compares" in protocol.note
    assert protocol.env.tasks == ("reach-v3",) and protocol.env.options == {"max_steps": 500, "goal_markers": False}
    assert (
        arguments(protocol) == "--protocol metaworld-mt10 --tasks reach-v3 --options max_steps=500 goal_markers=false"
    )
    assert "but for" not in named_protocol("metaworld-mt10").note


def test_images_are_rendered_as_in_the_data_and_nothing_else_is(tmp_path):
    options = {"height": 32, "max_steps": 7, "reset_low": [0, 0, 0]}
    run = Run.open(untrained_run(tmp_path / "run", [], options))
    given = named_protocol("metaworld-mt10").env
    assert evaluation_env(run, given, True).options == {"max_steps": 500, "goal_markers": True, "height": 32}
    other = Run.open(untrained_run(tmp_path / "other", [], options, env="reacher"))
    assert evaluation_env(other, given, True).options == {"max_steps": 500, "goal_markers": True}
    assert evaluation_env(run, EnvSpec("metaworld", ("reach-v3",))).options == {}  # an environment named by hand


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--protocol", "metaworld-mt11"], "did you mean 'metaworld-mt10'"),
        (["--protocol", "pusht", "--env", "pusht"], "leave out --env"),
        (["--protocol", "pusht", "--paired"], "leave out --env and --suite, --protocol and --encoder"),
        (["--tasks", "reach-v3"], "name it"),
    ],
)
def test_the_command_refuses_what_does_not_go_together(tmp_path, capsys, words, message):
    assert main(["eval", str(tmp_path / "run"), *words]) == 1
    assert message in capsys.readouterr().err
