"""`wamkit rank` from run folders to its page, with models that learned nothing; and what it refuses."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import wamkit.eval.suites.dual_rollouts
from conftest import untrained_run
from wamkit.eval.report.ranking import (
    agreement_table,
    classifier_table,
    imagined_successes,
    policy_table,
    write_ranking,
)
from wamkit.eval.report.tables import text_table
from wamkit.eval.suites.dual_rollouts import PairedRollouts, PolicyOutcome, starts
from wamkit.eval.suites.policy_ranking import Rank, agreement_or_reason, rank, recorded_outcomes
from wamkit.inference.model import load
from wamkit.runs.run import Run
from wamkit.types import WamkitError

TASK = "drawer-open-v3"
OPTIONS = {"max_steps": 100, "height": 32, "width": 32, "supersample": 1}
QUICK = {"episodes": 2, "max_steps": 16, "recordings": 2, "classifier_steps": 20, "candidates": 2, "processes": 1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rank")
    world = untrained_run(folder / "world", [TASK], OPTIONS, "world_model")
    return world, tuple(untrained_run(folder / f"bc-{i}", [TASK], OPTIONS, seed=i) for i in range(4))


def test_policies_are_ranked_inside_a_world_model_and_beside_the_simulator(runs, capsys, monkeypatch):
    world, policies = runs
    found = write_ranking(rank(Rank(world, policies, **QUICK)))
    assert [p["run"] for p in found["policies"]] == [str(p) for p in policies]
    assert all(len(p["imagined"]) == len(p["real"]) == 2 for p in found["policies"])
    assert set(found["weights"]) == {str(p) for p in (world, *policies)} and len(set(found["weights"].values())) == 5
    kept = json.loads((world / "eval/rank.json").read_text())
    titles = [t["title"] for t in kept["tables"]]
    assert titles[:2] == ["What becomes of each policy?", "Can it stand in for the simulator?"]
    assert titles[2:] == ["Is the classifier to blame?", "Can it be exploited?"]
    assert not np.any([p["real"] for p in kept["policies"]]), "untrained policies open no drawer"
    assert kept["agreement"] is None, "equal policies have no order"
    page = (world / "eval/rank.html").read_text()
    assert all(
        text in page
        for text in ("bc-3", "nothing correlates", "Imagined and real success", "Classified and real success")
    )
    # Again: every imagined and every real episode is cached, so no policy is queried.
    monkeypatch.setattr(wamkit.eval.suites.dual_rollouts, "imagined_rollout", None)
    monkeypatch.setattr(wamkit.eval.suites.dual_rollouts, "_simulate", None)
    again = write_ranking(rank(Rank(world, policies, **QUICK)))
    assert again["policies"] == found["policies"]
    assert "Can it stand in for the simulator?" in capsys.readouterr().out


def test_the_tables_say_who_is_to_blame():
    """Imagined success that flatters by 20 points but keeps the order; a classifier that is right."""
    real = [np.arange(10) < n for n in (1, 3, 5, 7)]
    outcomes = [PolicyOutcome(Path(f"p{i}"), np.arange(10) < r.sum() + 2, r, r) for i, r in enumerate(real)]
    found, undefined = agreement_or_reason([s.imagined for s in outcomes], [s.real for s in outcomes])
    classifier = SimpleNamespace(accuracy=0.9)
    assert found is not None and not undefined
    tables = [policy_table(outcomes), agreement_table(found, undefined), classifier_table(classifier, outcomes, found)]
    said = text_table(tables)
    rows = {r.key: r for r in tables[1].rows}
    assert rows["spearman"].value == 1 and rows["mmrv"].value == 0
    assert rows["bias"].value == pytest.approx(0.2) and "+20%" in said
    none = text_table([agreement_table(*agreement_or_reason(real[:1] * 4, real))])
    assert "undefined" in none and "nan" not in none
    assert tables[2].rows[1].value == 1 and [r.name for r in tables[0].rows] == ["p3", "p2", "p1", "p0"]
    assert "real 10% (2% to 40%); the classifier reads 10% there" in tables[0].rows[-1].note


def test_what_succeeds_in_the_world_model_alone_is_shown(runs, tmp_path):
    world, (policy, *_) = runs
    opened, policy = Run.open(world), Run.open(policy)
    model, env = load(opened), opened.provenance.env
    blind = SimpleNamespace(threshold=0.5, read=lambda x: (np.zeros(len(x)), np.zeros((len(x), 4), np.float32)))
    rollouts = PairedRollouts(tmp_path, ("key",), model, blind, env, starts(env, 2, 1), 8, 16, 1)
    real, judged = rollouts.simulated(policy)
    assert not real.any() and not judged.any()
    (case,) = imagined_successes([PolicyOutcome(policy, np.array([False, True]), real, judged)], rollouts)
    assert (
        case.title == f"bc-0, {TASK}: succeeds in the world model alone"
        and f"seed {rollouts.starts[1][1]};" in case.note
    )
    assert {k: v.shape for k, v in case.columns.items()} == dict.fromkeys(
        ("simulator", "imagined", "difference"), (3, 3, 32, 32)
    )
    assert np.array_equal(case.columns["simulator"][0], case.columns["imagined"][0]), "both begin with the same image"
    assert not list(imagined_successes([PolicyOutcome(policy, real, real, judged)], rollouts))


def test_failure_policies_fail_for_the_classifier_to_learn(runs, tmp_path):
    world, policies = runs
    failure_policy = untrained_run(tmp_path / "failure_policy", [TASK], OPTIONS, seed=7)
    args = Rank(world, policies, **QUICK | {"failure_policies": (failure_policy,)})
    frames, success = recorded_outcomes(args, Run.open(world).provenance.env, [Run.open(failure_policy)], 1, seed=3)
    assert frames.is_demonstration.tolist().count(True) == 1 and len(frames.is_demonstration) == 4, (
        "a demonstration, a perturbed expert, two of the failure policy's"
    )
    lengths = np.bincount(frames.episode)
    assert (lengths[~frames.is_demonstration] == OPTIONS["max_steps"]).sum() >= 2
    assert success.any() and len(success) == len(frames)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policies": 3}, "a ranking needs 4 policies or more, each named once; got 3"),
        ({"policies": "twice"}, "each named once"),
        ({"options": {"replan_every": 5}}, r"imagines \(8, 16\) steps ahead, and not 5"),
        ({"options": {"recordings": 1}}, "recordings = 1: must be at least 2"),
        ({"world": "bc"}, "'bc' does not model the query 'forward'"),
        ({"options": {"failure_policies": "one of them"}}, "bc-0 cannot both train the classifier and be ranked by it"),
        ({"policies": "elsewhere"}, "were made for different environments: tasks is"),
    ],
)
def test_what_cannot_be_ranked_is_refused_before_any_work(runs, tmp_path, change, message):
    world, policies = runs
    if change.get("policies") == 3:
        policies = policies[:3]
    elif change.get("policies") == "twice":
        policies = (*policies, policies[0])
    elif change.get("policies") == "elsewhere":
        policies = (*policies[:3], untrained_run(tmp_path / "other", ["door-open-v3"], OPTIONS))
    if change.get("world") == "bc":
        world, policies = policies[0], (*policies[1:], untrained_run(tmp_path / "more", [TASK], OPTIONS))
    options = QUICK | change.get("options", {})
    if "failure_policies" in options:
        options["failure_policies"] = policies[:1]
    before = sorted(world.rglob("*"))
    with pytest.raises(WamkitError, match=message):
        rank(Rank(world, policies, **options))
    assert sorted(world.rglob("*")) == before
