"""The evaluation of a run: arguments and side files are checked before any work, damaged parts are played again."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.unit.test_perceptual import ALEX, saved, weights

from conftest import untrained_run
from wamkit.cli import sample
from wamkit.cli.eval import Eval, _options, _protocol
from wamkit.cli.main import main
from wamkit.cli.parse import parse
from wamkit.config import to_dict
from wamkit.data.format.store import Store
from wamkit.envs.spec import EnvSpec
from wamkit.eval import cache
from wamkit.eval.evaluate import evaluate
from wamkit.eval.held_out import validation_store
from wamkit.eval.protocols import Protocol, named_protocol
from wamkit.eval.registry import EVALUATIONS, EvalOptions, Evaluation, evaluations
from wamkit.eval.report.card import command
from wamkit.eval.results import EvalResult, Row, Table
from wamkit.eval.suites.closed_loop import OUTCOMES, closed_loop
from wamkit.runs.run import Run
from wamkit.runs.targets import Targets
from wamkit.types import Query, Target, UnsupportedQuery, WamkitError
from wamkit.workers import kept_workers

TASK = "drawer-open-v3"
OPTIONS = {"max_steps": 3, "height": 32, "width": 32, "supersample": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Iterator[Path]:
    with kept_workers():
        yield untrained_run(tmp_path_factory.mktemp("evaluate") / "run", [TASK], OPTIONS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"episodes": 0}, "episodes = 0: must be at least 1"),
        ({"held_out": -1}, "held_out = -1: must be at least 0"),
        ({"held_out": 0, "suite": "full"}, "held_out = 0 leaves closed loop alone: the full suite"),
        ({"processes": 0}, "processes = 0: must be at least 1"),
        ({"steps": 0}, "steps = 0: must be at least 1"),
        ({"replan_every": 0}, "replan_every = 0: must be at least 1"),
        ({"replan_every": 17}, r"replan_every must lie in 1 .. 16"),
        ({"query": "joint"}, "'bc' does not model the query 'joint'; families that do:.* unified"),
        ({"query": "polcy"}, "did you mean 'policy'"),
        ({"encoders": ("dinov3=x",)}, "an encoder is named by its kind and weights: .*, not 'dinov3=x'"),
        ({"encoders": ("dinov2",)}, "not 'dinov2'"),
        ({"encoders": ("lpips-alex=trunk.pth",)}, "LPIPS is two files: lpips-alex=TRUNK,HEADS"),
        ({"encoders": ("i3d=none.pt",)}, "no TorchScript file at none.pt"),
    ],
)
def test_evaluation_refuses_arguments_before_any_work(run, arguments, message):
    played = {k: v for k, v in arguments.items() if k in {f.name for f in fields(Protocol)}}
    others = {k: v for k, v in arguments.items() if k not in played}
    with pytest.raises(WamkitError, match=message):
        evaluate(Run.open(run), Protocol(**played), EvalOptions(**others))
    assert not (run / "eval").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeat": 4}, "steps a second = 80.0, found 20.0; its data are of --options max_steps=3 height=32"),
        ({"cameras": ["topview"]}, r"cameras = \('corner2',\), found \('topview',\)"),
        ({"cameras": ["corner2", "gripperPOV"]}, "cameras"),
    ],
)
def test_an_environment_that_does_not_fit_is_refused_before_any_work(run, options, message):
    elsewhere = Protocol(EnvSpec("metaworld", (TASK,), OPTIONS | options), episodes=1)
    with pytest.raises(WamkitError, match=f"cannot act in metaworld: it was trained with {message}"):
        evaluate(Run.open(run), elsewhere, EvalOptions(1, processes=1))
    assert not (run / "eval/metaworld").exists()


def test_recordings_of_other_options_are_kept_apart(run, tmp_path):
    stores = []
    for size in (32, 48, 32):
        env = EnvSpec("reacher", ("reach",), {"height": size, "width": size, "supersample": 1})
        stores.append(validation_store(run, {}, env, tmp_path, 1, processes=1).root)
    assert stores[0] == stores[2] == tmp_path / "held-out-1" and stores[1].parent == tmp_path
    assert stores[1] != stores[0] and Store.open(stores[1]).layout.image_shape == (3, 48, 48)


def test_a_task_counts_once():
    with pytest.raises(WamkitError, match="the task 'reach' is named twice, and would count twice"):
        EnvSpec("reacher", ("reach", "reach")).check()
    words = ["eval", "nowhere", "--env", "reacher", "--tasks", "reach", "reach"]
    assert main(words) == 1


def test_encoders_need_images_to_look_at(run, tmp_path):
    trunk, heads = saved(tmp_path, *weights(ALEX))
    with pytest.raises(WamkitError, match="encoders compare imagined frames, and bc imagines none"):
        evaluate(Run.open(run), None, EvalOptions(encoders=(f"lpips-alex={trunk},{heads}",)))
    assert not (run / "eval").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stride": 0}, "stride = 0: must be at least 1"),
        ({"seed": -1}, "seed = -1: must be between 0"),
        ({"seed": 2**63}, "must be between 0"),
        ({"episode": -1}, "episode = -1: must be at least 0"),
        ({"query": "video"}, "'bc' does not model the query 'video'"),
        ({"out": "a file"}, "a file.*in the way"),
    ],
)
def test_sampling_refuses_arguments_before_any_work(run, tmp_path, arguments, message):
    (tmp_path / "a file").touch()
    given = {"query": Query.POLICY, "episode": 0, "out": "out"} | arguments
    with pytest.raises(WamkitError, match=message):
        sample.run(sample.Sample(run, **given | {"out": tmp_path / given["out"]}))
    assert not (run / "eval").exists()


def test_an_unsupported_query_is_that(run):
    with pytest.raises(UnsupportedQuery):
        sample.run(sample.Sample(run, query="joint"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", None, "metrics.jsonl cannot be read.*an empty file"),
        ("metrics.jsonl", '{"step": \n{"step": 2}\n', "metrics.jsonl, line 1"),
        ("config.json", None, "config.json cannot be read.*{} in it"),
        ("config.json", "[]", "config.json cannot be read"),
    ],
)
def test_a_damaged_side_file_is_named_before_any_work(run, name, content, message):
    before = (run / name).read_text()
    try:
        (run / name).write_text(content) if content else (run / name).unlink()
        with pytest.raises(WamkitError, match=message):
            evaluate(Run.open(run), Protocol(episodes=1), EvalOptions(held_out=1))
    finally:
        (run / name).write_text(before)
    assert not (run / "eval").exists()


def test_a_damaged_part_is_played_again(run):
    protocol, opened = Protocol(EnvSpec("metaworld", (TASK,), OPTIONS), episodes=2), Run.open(run)
    records = closed_loop(opened, protocol, processes=1)
    (part,) = (run / "eval/parts").iterdir()
    good = part.read_bytes()
    row = to_dict(records[0])
    assert json.loads(good)["records"][0] == row
    flipped = good.replace(b'"steps": 3', b'"steps": 2')
    for damaged in (b"[]", json.dumps([row | {"steps": "3"}] * 2).encode(), flipped, b"[" * 200_000):
        part.write_bytes(damaged)
        again = closed_loop(opened, protocol, processes=1)
        assert [(r.seed, r.success, r.steps) for r in again] == [(r.seed, r.success, r.steps) for r in records]
        assert json.loads(part.read_bytes())["records"] == [json.loads(json.dumps(to_dict(r))) for r in again]
    assert closed_loop(opened, protocol, processes=1) == again


def test_a_named_protocol_is_closed_loop_alone_and_reported_apart(run):
    name = "metaworld-mt10"
    protocol = replace(named_protocol(name, (TASK,), {"max_steps": 3}), episodes=1)
    summary = evaluate(Run.open(run), protocol, EvalOptions(held_out=0, processes=1, report=False))
    keys = {r["key"] for r in summary["rows"]}
    assert keys == {f"closed_loop.success.{TASK}", "closed_loop.success", "closed_loop.latency.median"}
    assert summary["protocol"]["name"] == name
    options = OPTIONS | {"goal_markers": True}
    assert summary["protocol"]["options"] == options
    assert summary["rows"][0]["note"] in [f"1 {kind}" for kind in OUTCOMES]
    assert set(pq.read_table(run / "eval" / name / "episodes.parquet")["outcome"].to_pylist()) <= set(OUTCOMES)


def test_another_world_is_played_and_reported_apart(run):
    """As for imported data: the run does not know its world, the user names one."""
    opened = Run.open(run)
    there = Protocol(EnvSpec("metaworld", (TASK,), OPTIONS | {"max_steps": 120}), episodes=1)
    summary = evaluate(opened, there, EvalOptions(held_out=1, report=False))
    assert any(r["key"] == "closed_loop.success" for r in summary["rows"])
    assert (run / "eval/metaworld/summary.json").exists() and not (run / "eval/summary.json").exists()
    with pytest.raises(WamkitError, match="unknown task 'drawer-opne-v3' of metaworld.*did you mean 'drawer-open-v3'"):
        evaluate(opened, Protocol(EnvSpec("metaworld", ("drawer-opne-v3",))))
    with pytest.raises(WamkitError, match="needs no name"):
        evaluate(opened, Protocol(EnvSpec("metaworld", (TASK,), embodiment="arm")))


ORDER = (
    "closed_loop", "open_loop", "clip_distribution", "pretrained_features", "physics", "counterfactuals",
    "forecast_vs_execution", "action_recoverability", "forecast_consistency",
)  # fmt: skip


def test_every_evaluation_is_found_in_its_order_and_says_what_it_is():
    found = evaluations()
    assert tuple(found) == ORDER
    assert all(type(e).__doc__ for e in found.values())
    assert [n for n, e in found.items() if e.suite == "main"] == ["closed_loop", "open_loop", "pretrained_features"]


class Counted(Evaluation):
    """How often it was run."""

    needs_episodes, runs = False, 0

    def settings(self, context):
        return {"unit": "runs"}

    def run(self, context):
        Counted.runs += 1
        assert context.shared("x", lambda: Counted.runs) == context.shared("x", lambda: None)
        return EvalResult((Table("counted", "How often was it run?", "", (Row("runs", "runs", Counted.runs),)),))


def test_a_registered_evaluation_runs_last_and_its_result_is_kept(run, monkeypatch):
    monkeypatch.setitem(EVALUATIONS._items, "counted", Counted)
    monkeypatch.setattr(cache, "made_by", lambda: {"wamkit": "1", "commit": "abc"})
    protocol = Protocol(EnvSpec("metaworld", (TASK,), OPTIONS), episodes=1, name="counted")
    for _ in range(2):
        summary = evaluate(Run.open(run), protocol, EvalOptions(held_out=0, processes=1))
        assert summary["rows"][-1]["key"] == "counted.runs" and summary["rows"][-1]["value"] == Counted.runs == 1
        assert summary["protocol"]["unit"] == "runs" and summary["protocol"]["encoders"] == []
    page = (run / "eval/counted/report.html").read_text()
    assert (
        "How often was it run?" in page and "targets met" not in page and not any(r["verdict"] for r in summary["rows"])
    )
    own = Targets(figures={"closed_loop.success": Target(above=0.5), "counted.*": Target(above=0)})
    judged = evaluate(Run.open(run), replace(protocol, targets=own), EvalOptions(held_out=0, processes=1))["rows"]
    verdicts = {r["key"]: r["verdict"] for r in judged if r["verdict"]}
    assert verdicts == {"closed_loop.success": "not shown", "counted.runs": "not shown"} and Counted.runs == 1
    assert "0 of 2 targets met, 2 not shown" in (run / "eval/counted/report.html").read_text()
    again = evaluate(Run.open(run), replace(protocol, episodes=2), EvalOptions(held_out=0, processes=1, report=False))
    assert again["rows"][-1]["value"] == 2, "another protocol is another question"


def test_another_evaluation_keeps_its_files(run):
    """One folder a protocol: other options never replace a report, and the same ones do."""
    base, opened = run / "eval/metaworld-mt50", Run.open(run)
    named = lambda **k: replace(named_protocol("metaworld-mt50", (TASK,), {"max_steps": 3}), **{"episodes": 1, **k})  # noqa: E731
    options = EvalOptions(held_out=0, processes=1)
    evaluate(opened, named(), options)
    kept = {p: p.read_bytes() for p in base.iterdir() if p.is_file()}
    assert {p.name for p in kept} == {"summary.json", "episodes.parquet", "report.html"}
    evaluate(opened, named(replan_every=4), options)
    assert {p: p.read_bytes() for p in base.iterdir() if p.is_file()} == kept
    (other,) = [p for p in base.iterdir() if p.is_dir() and p.name != "parts"]
    assert other.name.startswith("episodes-1-replan-every-4-tasks-1-")
    assert {p.name for p in other.iterdir()} == {"summary.json", "episodes.parquet", "report.html"}
    evaluate(opened, named(), options)
    assert len([p for p in base.iterdir() if p.is_dir() and p.name != "parts"]) == 1


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--episodes", "7", "--replan-every", "4", "--query", "joint", "--steps", "3", "--held-out", "2"],
        ["--suite", "full", "--processes", "5", "--encoder", "dinov2=a 'b'", "lpips-alex=x,y"],
        ["--env", "pusht", "--tasks", "push-t", "--options", "max_steps=3", "--embodiment", "arm 1"],
        ["--protocol", "metaworld-mt10", "--tasks", TASK, "--options", "goal_markers=false", "--episodes", "3"],
        ["--protocol", "pusht", "--held-out", "4"],
    ],
)
def test_the_command_on_the_page_repeats_the_evaluation(words):
    """What it parses to is what was asked, whatever was asked."""
    args = parse(Eval, "eval", ["runs/my run", *words])
    asked = _protocol(args), _options(args)
    program, name, *printed = shlex.split(command(args.runs[0], *asked))
    again = parse(Eval, name, printed)
    assert (program, again.runs) == ("wamkit", args.runs) and (_protocol(again), _options(again)) == asked


def test_no_command_is_printed_where_none_repeats_it():
    options = EvalOptions()
    assert command(Path("run"), Protocol(text=(("a", "b"),)), options) == ""
    assert command(Path("run"), Protocol(name="of a script"), options) == ""
