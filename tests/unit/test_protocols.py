"""Named protocols: what each plays, what the command adds, and how an episode went."""

import dataclasses
import json

import numpy as np
import pytest

from conftest import untrained_run
from wamkit.cli.main import main
from wamkit.envs.libero import MAX_STEPS
from wamkit.envs.spec import EnvSpec
from wamkit.eval.held_out import evaluation_env
from wamkit.eval.protocols import MT10, PROTOCOLS, Protocol, named_protocol
from wamkit.eval.report.card import arguments
from wamkit.eval.suites.closed_loop import OUTCOMES, Record, _Job, _read_part, outcome, outcomes, success_table
from wamkit.runs.run import Run
from wamkit.types import Episode, WamkitError


def episode(success, proprio=None, ended="truncated"):
    T = len(success)
    proprio = np.arange(T)[:, None] if proprio is None else np.array(proprio)
    nothing, success = np.zeros((T, 1), np.float32), np.array(success)
    one = ("t", "do it", 0, 10.0, ("eye",), None, proprio.astype(np.float32), nothing, nothing, nothing[:, 0], success)
    return Episode(*one, ended=ended)


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
