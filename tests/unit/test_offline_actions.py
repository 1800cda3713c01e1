"""Actions on recordings: baselines with known answers, and policies whose faults the figures must name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lerobot_folders import Recordings, write_v3

from wamkit.cli.main import main
from wamkit.eval.metrics.action_baselines import (
    ZERO,
    coverage,
    holding,
    nearest,
    nominal,
    previous,
    spread_and_error,
    standing_still,
)
from wamkit.eval.recorded import evaluate_recorded
from wamkit.eval.report.symptoms import action_symptoms
from wamkit.eval.suites.open_loop import Imagination, coupling_table, fidelity_table
from wamkit.metadata import Field
from wamkit.runs.run import Run
from wamkit.types import Query, Sample

NAMES = ["x", "y", "grip"]
SMALL = ["--model.width", "16", "--model.depth", "1", "--model.heads", "2", "--train.batch-size", "4"]
SHORT = ["--train.steps", "4", "--train.threads", "1", "--window.chunk", "4", "--window.frame-offsets", "2", "4"]


def path_of(episode: int, steps: int) -> np.ndarray:
    """A smooth path of three joints, other in every episode."""
    rng = np.random.default_rng(episode)
    t = np.arange(steps)[:, None]
    return np.sin(rng.uniform(0, 6, 3) + t * rng.uniform(0.15, 0.25, 3)) * rng.uniform(0.5, 1, 3)


def test_what_holds_a_dimension_still_follows_from_metadata_names_or_values():
    state = path_of(0, 41).astype(np.float32)
    target, step = state[1:], np.diff(state, axis=0)
    both, state = np.concatenate([target[:, ::-1], step], 1), state[:-1]
    guessed = holding(both, state, [f"a{i}" for i in range(6)], [f"s{i}" for i in range(3)])
    assert guessed.tolist() == [2, 1, 0, ZERO, ZERO, ZERO]
    # A name says more than nearness, and metadata more than a name.
    named = holding(target[:, :1], np.stack([target[:, 0], target[:, 0] + 0.1], 1), ["joint"], ["other", "joint"])
    assert named.tolist() == [1]
    said = holding(target, state, NAMES, NAMES, [Field("arm", 0, 2, "joint", "delta"), Field("hand", 2, 3, "gripper")])
    assert said.tolist() == [ZERO, ZERO, 2]
    assert standing_still(state[:2], np.array([2, ZERO]), 3).tolist() == [
        [[pytest.approx(state[w, 2]), 0.0]] * 3 for w in range(2)
    ]
    assert holding(target, state[:, :0], NAMES, []).tolist() == [ZERO] * 3


def test_the_nearest_row_is_found_among_the_allowed_ones():
    reference = np.array([[0.0, 0], [1, 0], [0, 3]])
    query = np.array([[0.9, 0.1], [0, 2], [5, 5]])
    assert nearest(query, reference).tolist() == [1, 2, 2]
    allowed = np.array([[True, False, True], [True, True, False], [False, False, False]])
    assert nearest(query, reference, allowed, block=2).tolist() == [0, 0, -1]


def test_the_action_before_a_window_is_of_its_own_episode():
    action, episode = np.arange(6.0)[:, None], np.array([0, 0, 0, 1, 1, 1])
    found = previous(action, np.array([0, 2, 3, 4]), episode, np.full((4, 1), -9.0))
    assert found[:, 0].tolist() == [-9, 1, -9, 3]


def test_a_calibrated_policy_covers_what_it_should_and_its_spread_is_its_error():
    rng = np.random.default_rng(0)
    level = rng.normal(0, 3, (4000, 2, 3))  # what the observation tells; draws and executed values vary around it alike
    executed, draws = level + rng.normal(0, 1, level.shape), level + rng.normal(0, 1, (16, *level.shape))
    for share in (0.5, 0.9):
        assert coverage(draws, executed, share).mean() == pytest.approx(nominal(16, share), abs=0.01)
        sure = level + (draws - level) / 3
        assert coverage(sure, executed, share).mean() < nominal(16, share) - 0.2
    assert nominal(16, 0.5) == pytest.approx(9 / 17) and nominal(16, 0.9) == pytest.approx(15 / 17)
    variance, error = spread_and_error(draws, executed, np.ones(3))
    assert variance.mean() / error.mean() == pytest.approx(1, abs=0.03)


DRAWN = np.sort(np.random.default_rng(0).permutation(20)[:13])
"""The episodes that the run leaves out."""
LEARNED = np.setdiff1d(range(20), DRAWN)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Twenty episodes whose actions are targets of the state, one step ahead; the third joint is called grip."""

    def columns(episode: int, steps: int):
        path = path_of(episode, steps + 1).astype(np.float32)
        return {"observation.state": path[:-1], "action": path[1:]}

    return write_v3(tmp_path_factory.mktemp("offline") / "data", Recordings((40,) * 20, dims=3, columns=columns))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Run:
    out = tmp_path_factory.mktemp("offline") / "run"
    words = ["--data", str(data), "--out", str(out), "--episodes.held-out", "13", *SMALL, *SHORT]
    assert main(["train", "--recipe", "metaworld-bc", *words]) == 0
    return Run.open(out)


def mirrored(batch):
    """Moves as far as it should, the other way."""
    state = batch.proprio.numpy()[:, None]
    return 2 * state - batch.action.numpy()


def one_joint_mirrored(batch):
    out = batch.action.numpy().copy()
    out[..., 1] = mirrored(batch)[..., 1]
    return out


def shuffled(batch):
    """A likely chunk, of another moment."""
    return np.random.default_rng(0).permutation(batch.action.numpy())


def by_heart(batch):
    """Right where the path is one of the seven that training saw, else some likely chunk."""
    known = np.concatenate([path_of(e, 40) for e in LEARNED])
    near = np.abs(known[None] - batch.proprio.numpy()[:, None]).max(-1).min(1) < 1e-4
    return np.where(near[:, None, None], batch.action.numpy() + 0.01, shuffled(batch))


def last_again(batch):
    return np.repeat(batch.proprio.numpy()[:, None], 4, 1)  # the state is what the last action aimed at


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (lambda batch: batch.action.numpy(), ""),
        (mirrored, "of that of standing still: worse"),
        (one_joint_mirrored, "worse in action_1"),
        (shuffled, "it hardly depends on what it sees"),
        (last_again, "it repeats its last action"),
        (by_heart, "it knows its demonstrations by heart"),
    ],
)
def test_a_known_fault_is_named(data, run, monkeypatch, answer, fault):
    monkeypatch.setattr(
        "wamkit.eval.suites.offline_actions.query_windows",
        lambda model, batch, query, seeds, steps=None: Sample(query, answer(batch), None, None, ()),
    )
    summary = evaluate_recorded(run, data, stride=2)
    found = action_symptoms({row["key"]: row for row in summary["rows"]})
    said = [f"{s.verdict}: {s.finding}" for s in found]
    faults = [line for line in said if line.startswith("fault")]
    assert any(fault in line for line in faults) if fault else not faults, said
    figures = {row["key"]: row["value"] for row in summary["rows"]}
    if not fault:
        assert figures["recorded.over.still"] == figures["recorded_horizons.step.4"] == 0
    if answer is last_again:
        assert figures["recorded.over.still"] == pytest.approx(1)
        assert figures["recorded_habits.change"] == pytest.approx(0, abs=1e-9)


def test_a_ratio_to_an_error_of_nothing_is_left_out():
    """Actions that never move are answered rightly by every policy."""
    none = np.zeros(4)
    found = Imagination(np.arange(4), np.ones(4, bool), {}, None, {"policy": none, "inverse": none})
    assert found.inverse_over_policy() is None and not coupling_table(found).rows
    some = replace(found, action_error={"policy": none + 2, "inverse": none + 1})
    assert some.inverse_over_policy().value == 0.5 and len(coupling_table(some).rows) == 1
    assert not fidelity_table(None, replace(found, is_demonstration=np.zeros(4, bool))).rows


def test_what_cannot_be_told_is_left_out(data, run, tmp_path, monkeypatch):
    """The nearest demonstration of instructions that were never demonstrated, and the spread of a single answer."""
    lengths, texts = (40,) * 20, tuple(f"do {i}" for i in range(20))
    alone = write_v3(tmp_path / "alone", Recordings(lengths, texts, dims=3))
    tables = {row["key"].partition(".")[0] for row in evaluate_recorded(run, data)["rows"]}
    assert "recorded_spread" in tables and Query.POLICY not in run.family().deterministic
    monkeypatch.setattr("wamkit.families.bc.BC.deterministic", frozenset(Query))
    summary = evaluate_recorded(run, alone)
    keys = {row["key"] for row in summary["rows"]}
    assert "recorded.over.still" in keys and "recorded.over.nearest" not in keys
    assert not any(key.startswith("recorded_spread") for key in keys)
    dimensions = [row for row in summary["rows"] if row["key"].startswith("recorded_dimensions.")]
    assert len(dimensions) == 3 and not any("nearest" in row["note"] for row in dimensions)
    few = write_v3(tmp_path / "few", Recordings(lengths, ("do 0",) * 10 + texts[10:], dims=3))
    (row,) = (r for r in evaluate_recorded(run, few)["rows"] if r["key"] == "recorded.over.nearest")
    share = np.mean(DRAWN < 10)
    assert row["note"] == f"{share:.0%} of the moments have an instruction that was demonstrated" and row["value"] > 0


def test_the_page_says_its_verdict_and_diagnose_repeats_it(data, run, tmp_path, capsys):
    copy = Path(shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("eval")))
    assert main(["eval", str(copy), "--offline"]) == 0
    said = capsys.readouterr().out
    assert "error / the nearest demonstration" in said and "standing still" in said
    page = (copy / "eval/recorded/report.html").read_text()
    assert 'class="verdict"' in page and "Worst actions" in page
    summary = json.loads((copy / "eval/recorded/summary.json").read_text())
    assert summary["protocol"]["data"] == str(data) and summary["protocol"]["episodes"] == DRAWN.tolist()
    assert main(["diagnose", str(copy)]) == 0
    assert "actions:" in capsys.readouterr().out
