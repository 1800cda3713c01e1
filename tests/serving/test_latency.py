"""The times of a query by part: they add up, belong to the right part, and reach the run's report."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from conftest import untrained_run
from wamkit.cli.main import main
from wamkit.eval.report.latency import tables
from wamkit.inference.model import load
from wamkit.runs.run import Run
from wamkit.serving.inputs import Inputs
from wamkit.serving.latency import PARTS, Times, query_parts, request, transport
from wamkit.types import Query


def observations(run, image=(48, 64)):
    inputs = Inputs.of(Run.open(run))
    return inputs, [inputs.read(request(inputs, load(run), image, seed)) for seed in range(2)]


@pytest.mark.parametrize("query", [Query.POLICY, Query.JOINT, Query.FORWARD, Query.INVERSE])
def test_parts_add_up_and_the_model_is_left_as_it_was(run, query):
    model, (_, obs) = load(run), observations(run)
    obs = [replace(o, images=model.image(o.images)) for o in obs] if query is Query.INVERSE else obs
    found = query_parts(model, obs, query, repeats=10)
    parts = found["parts"]
    assert set(parts) == {*PARTS, "step", "total"} and found["denoising_steps"] == model.default_steps(query)
    assert all(0 <= t["p50"] <= t["p95"] <= t["p99"] for t in parts.values())
    assert min(parts[n]["p50"] for n in ("preprocess", "text", "encode", "denoise", "decode")) > 0
    assert sum(parts[n]["p50"] for n in PARTS) <= parts["total"]["p99"]
    assert not {"forward", "_batch", "_sample", "unpack", "decode"} & {
        name for part in (model, *model.family.modules()) for name in vars(part)
    }


def test_a_part_that_takes_long_is_the_one_that_is_said_to(run, monkeypatch):
    model, (_, obs) = load(run), observations(run)
    plain = query_parts(model, obs, Query.POLICY, repeats=10)["parts"]
    text, sleep = type(model.family.context.text), 0.03
    forward = text.forward

    def slow(self, *args):
        time.sleep(sleep)
        return forward(self, *args)

    monkeypatch.setattr(text, "forward", slow)
    found = query_parts(model, obs, Query.POLICY, repeats=10)["parts"]
    assert found["text"]["p50"] >= 30 > found["encode"]["p50"] - plain["encode"]["p50"]


@pytest.mark.parametrize("family", ["jepa", "shared_rep", "unified"])
def test_denoising_steps_are_no_part_of_the_prefill(family, tmp_path):
    """In families whose steps run a backbone without a cache, too."""
    more = {"conditioning": "adaln"} if family == "unified" else {}
    run = untrained_run(tmp_path / "run", ["drawer-open-v3"], {}, family, **more)
    model, (_, obs) = load(run), observations(run)
    few, many = (query_parts(model, obs, Query.POLICY, steps=n, repeats=10)["parts"] for n in (2, 60))
    assert many["prefill"]["p50"] < 4 * few["prefill"]["p50"] + 1 < many["denoise"]["p50"]


def test_percentiles_are_those_of_the_queries():
    assert Times.of(list(range(101))) == Times(50, 95, 99)


def test_transport_is_what_the_client_waits_beside_the_model(run, model):
    inputs, _ = observations(run)
    found = transport(model, inputs, Query.POLICY, (48, 64), repeats=10)
    assert 0 < found.p50 <= found.p99 < 2000


def test_the_command_writes_a_table_that_the_report_shows(run, tmp_path, capsys):
    run = untrained_run(tmp_path / "run", ["drawer-open-v3"], {}, "unified")
    command = ["latency", str(run), "--queries", "policy", "joint", "--repeats", "10", "--image", "48", "64"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "policy: 4 denoising steps, 1 camera of 48x64, cpu, float32" in said and "one denoising step" in said
    opened = Run.open(run)
    policy, joint = tables(opened.home, opened.digest)
    rows = {r.key: r for r in policy.rows}
    assert policy.key == "latency_policy" and joint.title == "Latency of a joint query"
    assert list(rows)[:3] == ["preprocess", "text", "encode"] and "transport" in rows
    told = json.loads((run / "latency/summary.json").read_text())["queries"][0]["parts"]["total"]
    assert rows["total"].value == told["p50"] and policy.axis == "Closed loop"
    assert rows["total"].note == f"p95 {told['p95']:.2f}, p99 {told['p99']:.2f}"
    assert tables(opened.home, "other weights") == [] == tables(tmp_path, opened.digest)
    (run / "latency/summary.json").write_text("{")
    assert tables(opened.home, opened.digest) == []


def test_what_cannot_be_timed_is_refused(tmp_path, capsys):
    run = untrained_run(tmp_path / "run", ["drawer-open-v3"], {}, "bc")
    assert main(["latency", str(run), "--queries", "joint"]) == 1
    assert "this 'bc' does not answer 'joint'; it answers" in capsys.readouterr().err
    assert main(["latency", str(run), "--queries"]) == 1
    assert "name at least one query" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["latency", str(run), "--repeats", "3"])
    assert not (run / "latency").exists()
