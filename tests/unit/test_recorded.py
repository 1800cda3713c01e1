"""Evaluation on recorded episodes: which of them a run has not seen, and figures with known answers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot_folders import Recordings, write_v3

from wamkit.cli.main import main
from wamkit.config import from_dict, to_dict
from wamkit.data.format.store import Store
from wamkit.data.loading.dataset import open_frames
from wamkit.data.loading.mixture_config import MixtureConfig
from wamkit.eval.recorded import _held_out, evaluate_recorded, unseen
from wamkit.inference.model import opened
from wamkit.runs.learned import seen_by
from wamkit.runs.provenance import Provenance
from wamkit.runs.run import Run
from wamkit.training.launch import make_trainer, train_run
from wamkit.training.metrics import read_metrics
from wamkit.types import EvaluationError, Sample

SMALL = ["--model.width", "16", "--model.depth", "1", "--model.heads", "2", "--train.batch-size", "4"]
SHORT = ["--train.steps", "4", "--train.threads", "1", "--window.chunk", "4", "--window.frame-offsets", "2", "4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Six episodes; the fourth dimension never moves."""

    def columns(episode: int, steps: int):
        action = np.random.default_rng(episode).normal(0, 1, (steps, 4)).astype(np.float32)
        action[:, 3] = 0.5
        return {"action": action}

    return write_v3(tmp_path_factory.mktemp("recorded") / "data", Recordings(lengths=(20,) * 6, columns=columns))


def train(data: Path, out: Path, *options: str, recipe: str = "metaworld-bc") -> Run:
    command = ["train", "--recipe", recipe, "--data", str(data), "--out", str(out), *SMALL, *SHORT, *options]
    assert main(command) == 0
    return Run.open(out)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Run:
    return train(data, tmp_path_factory.mktemp("recorded") / "run", "--episodes.held-out", "2")


def left_out(run: Run) -> list[int]:
    return json.loads((run.path / "config.json").read_text())["held_out"]


def learned(data: Path, run: Run) -> np.ndarray:
    """Actions of the episodes that the run learned from."""
    chosen = np.setdiff1d(range(6), left_out(run))
    return np.concatenate([Store.open(data).numeric()["action"][20 * e : 20 * e + 20] for e in chosen])


def test_the_episodes_drawn_are_not_learned_from(data, run, tmp_path, capsys):
    store, left = Store.open(data), left_out(run)
    assert np.flatnonzero(unseen(run, store)).tolist() == left and len(left) == 2
    assert run.statistics["action"]["mean"] == pytest.approx(learned(data, run).mean(0).tolist(), abs=1e-5)
    others = [
        left_out(train(data, tmp_path / f"seed-{k}", "--episodes.held-out", "2", "--episodes.held-out-seed", str(k)))
        for k in (0, 1)
    ]
    assert others[0] == left and others[1] != left
    other = Store.open(write_v3(tmp_path / "other", Recordings(lengths=(19, 20, 20, 20, 20, 20))))
    assert unseen(run, other).all()
    grown = Store.open(write_v3(tmp_path / "grown", Recordings(lengths=(20,) * 9)))
    assert np.flatnonzero(unseen(run, grown)).tolist() == [*left, 6, 7, 8]
    few = train(data, tmp_path / "few", "--episodes.held-out", "1", "--episodes.labelled", "3")
    kept = [e for e in range(6) if e not in left_out(few)]
    assert np.flatnonzero(~unseen(few, store)).tolist() == kept[:3]
    capsys.readouterr()
    every = train(data, tmp_path / "all")
    assert "next: wamkit eval " + str(tmp_path / "all --data DATA, of episodes") in capsys.readouterr().out
    assert main(["eval", str(every.path), "--data", str(data)]) == 1
    assert "was trained on all 6 episodes" in capsys.readouterr().err
    command = ["train", "--recipe", "metaworld-bc", "--data", str(data), "--out", str(tmp_path / "none"), *SMALL]
    assert main([*command, "--episodes.held-out", "6"]) == 1
    assert "held_out = 6: there are 6 episodes, so none is left" in capsys.readouterr().err


def test_what_the_start_of_a_run_learned_from_is_not_unseen(data, run, tmp_path, capsys):
    """Nor is it left out of another training, which could not make weights forget it."""
    store, left = Store.open(data), left_out(run)
    words = ["train", "--data", str(data), "--train.threads", "1", "--train.steps", "2", "--train.batch-size", "4"]
    every = train(data, tmp_path / "every")
    again = [*words, "--from", str(every.path), "--episodes.held-out", "2"]
    assert main([*again, "--out", str(tmp_path / "leak")]) == 1
    said = capsys.readouterr().err
    assert "0 of 6 episodes can be held out" in said and "of which the run to start from learned nothing" in said
    assert main([*again, "--out", str(tmp_path / "b"), "--episodes.held-out", "0"]) == 0
    assert not unseen(Run.open(tmp_path / "b"), store).any()
    part = [*words, "--from", str(run.path), "--episodes.held-out", "1"]
    assert main([*part, "--out", str(tmp_path / "c")]) == 0
    third = Run.open(tmp_path / "c")
    assert left_out(third)[0] in left and np.flatnonzero(unseen(third, store)).tolist() == left_out(third)
    # From there on to other data: the first ones stay known, through two starts.
    other = write_v3(tmp_path / "other", Recordings(lengths=(30,) * 3))
    on = ["train", "--data", str(other), "--from", str(third.path), "--out", str(tmp_path / "d"), *words[3:]]
    assert main(on) == 0
    last = Run.open(tmp_path / "d")
    assert np.flatnonzero(unseen(last, store)).tolist() == left_out(third)
    assert len(last.described["start"]["learned_from"]) == 2 and len(last.learned_from) == 2
    assert main(on) == 0  # a finished run is known again


def test_episodes_that_cannot_be_evaluated_are_not_held_out(tmp_path, capsys):
    short = write_v3(tmp_path / "short", Recordings(lengths=(4, 20, 3, 20, 4, 20)))
    assert set(left_out(train(short, tmp_path / "run", "--episodes.held-out", "3"))) == {1, 3, 5}
    words = ["train", "--recipe", "metaworld-bc", "--data", str(short), "--out", str(tmp_path / "none"), *SMALL, *SHORT]
    assert main([*words, "--episodes.held-out", "4"]) == 1
    assert "3 of 6 episodes can be held out: demonstrations of more than 4 steps" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_held_out_episode_without_a_view_that_is_needed_is_left_out_with_a_note(data, run, capsys):
    store, model = Store.open(data), opened(run, "")
    frames = open_frames(store, run.image_size)[0]
    left, has = unseen(run, store), np.ones((6, 1), bool)
    has[left_out(run)[0]] = False
    kept = _held_out(run, model, store, left, replace(frames, has_view=has))
    assert kept.chosen().tolist() == left_out(run)[1:]
    assert "1 of 2 held-out episodes lack views" in capsys.readouterr().out
    with pytest.raises(EvaluationError, match="none of its held-out episodes shows the views that .* needs, top"):
        _held_out(run, model, store, left, replace(frames, has_view=np.zeros((6, 1), bool)))


def test_every_source_of_a_mixture_that_is_this_data_set_was_seen(data):
    """Two demonstrations with actions, and three more as video."""
    source = {"data": "data", "weight": 0.5, "actions": True}
    sources = [source | {"demonstrations": [0, 2]}, source | {"demonstrations": [2, 5], "actions": False}]
    store = Store.open(data)
    origin = to_dict(Provenance.of(store))
    mixture = to_dict(from_dict(MixtureConfig, {"sources": sources, "size": [48, 64]}))
    described = {"provenance": origin, "origins": {"data": origin, "data-video": origin}, "mixture": mixture}
    assert seen_by(described, store).tolist() == [True] * 5 + [False]
    assert seen_by(described, store, actions=True).tolist() == [True] * 2 + [False] * 4
    few = {"provenance": origin, "episodes": {"labelled": 1, "action_free": 2}, "held_out": [0]}
    assert seen_by(few, store).tolist() == [False, True, True, True, False, False]
    assert seen_by(few, store, actions=True).tolist() == [False, True, *[False] * 4]


def test_a_run_of_before_episodes_were_drawn_left_out_the_last(data, run, tmp_path):
    """Also where it goes on, and so does a run whose config lists other episodes than its seed draws now."""
    described = {k: v for k, v in run.described.items() if k != "held_out"}
    assert unseen(replace(run, described=described), Store.open(data)).tolist() == [False] * 4 + [True] * 2
    begun = train(data, tmp_path / "run", "--episodes.held-out", "2").path
    config = json.loads((begun / "config.json").read_text())
    for listed, expected in ((None, [4, 5]), ([0, 3], [0, 3])):
        changed = {k: v for k, v in config.items() if k != "held_out"} | ({"held_out": listed} if listed else {})
        (begun / "config.json").write_text(json.dumps(changed))
        trainer = make_trainer(run.config, data, begun)
        assert trainer.held_out.chosen().tolist() == expected
        assert trainer.windows.frames.chosen().tolist() == [e for e in range(6) if e not in expected]


def test_learning_curves_hold_the_losses_on_what_is_left_out_and_no_weight_depends_on_them(data, run, tmp_path):
    rows = [row for _, row in read_metrics(run.path / "metrics.jsonl")]
    assert [row["step"] for row in rows if "held_out/policy" in row] == [4]
    config = run.config
    without = train_run(config, data, tmp_path / "without")
    validated = opened(run, "").family.state_dict()
    assert all(torch.equal(x, validated[name]) for name, x in without.state_dict().items())
    assert not any("held_out/policy" in row for _, row in read_metrics(tmp_path / "without/metrics.jsonl"))


def test_recordings_alone_are_sampled_and_diagnosed(data, tmp_path, capsys):
    """Without an environment: along the first episode that training left out, of the data that the run knows."""
    run = train(data, tmp_path / "run", "--episodes.held-out", "2", recipe="metaworld-unified")
    assert f"next: wamkit eval {run.path} --offline" in capsys.readouterr().out
    first, trained = left_out(run)[0], next(e for e in range(6) if e not in left_out(run))
    assert main(["sample", str(run.path)]) == 0
    saved = np.load(run.path / f"samples/joint-{first:03d}.npz")
    frames = open_frames(Store.open(data), run.image_size)[0]
    row = np.flatnonzero(frames.episode == first)[0]
    assert np.array_equal(saved["now"][0], frames.images[row]) and "note" not in capsys.readouterr().out
    assert main(["sample", str(run.path), "--data", str(data), "--episode", str(trained), "--query", "inverse"]) == 0
    assert f"was trained on episode {trained} of {data}" in capsys.readouterr().out
    assert (run.path / f"samples/inverse-{trained:03d}-of-data.npz").exists()
    assert main(["diagnose", str(run.path)]) == 0
    said = capsys.readouterr().out
    assert f"it was not evaluated; wamkit eval {run.path} --offline" in said
    assert f"episode {first} of {data}, per camera: what happened, imagined for the recorded actions, " in said
    assert (run.path / f"diagnose/episode-{first}.mp4").stat().st_size > 500
    acting = train(data, tmp_path / "acting", "--episodes.held-out", "2")
    assert main(["diagnose", str(acting.path)]) == 0 and "it imagines no frames" in capsys.readouterr().out
    assert main(["sample", str(run.path), "--episode", "9"]) == 1
    assert "episode 9 of 6, counted from 0, is missing" in capsys.readouterr().err
    shutil.move(data, tmp_path / "elsewhere")
    try:
        assert main(["diagnose", str(run.path)]) == 0
        assert f"no episode is shown: {run.path}: its data were {data}, where there is no" in capsys.readouterr().out
        assert main(["sample", str(run.path)]) == 1
        assert "name recordings, --data DATA" in capsys.readouterr().err
    finally:
        shutil.move(tmp_path / "elsewhere", data)


def test_an_answer_is_compared_with_what_was_done_and_with_the_mean(data, run, monkeypatch):
    """The executed chunk has the error 0, the mean of what training saw 1; a dimension that never moves is left out."""
    mean = learned(data, run).mean(0, np.float64)
    truth = lambda batch: batch.action.numpy()  # noqa: E731
    for answer, expected in ((truth, 0.0), (lambda batch: np.broadcast_to(mean, batch.action.shape), 1.0)):
        monkeypatch.setattr(
            "wamkit.eval.suites.offline_actions.query_windows",
            lambda model, batch, query, seeds, steps=None, answer=answer: Sample(query, answer(batch), None, None, ()),
        )
        summary = evaluate_recorded(run, data)
        figures = {row["key"]: row["value"] for row in summary["rows"]}
        assert figures["recorded.over.mean"] == pytest.approx(expected, abs=1e-5)
        dimensions = [k for k in figures if k.startswith("recorded_dimensions.")]
        assert dimensions == [f"recorded_dimensions.dimension.{i}" for i in range(3)]
        if not expected:
            assert not any(v for k, v in figures.items() if k.startswith(("recorded.", "recorded_dim", "recorded_hor")))
        assert summary["protocol"]["episodes"] == left_out(run)


def test_the_command_writes_a_page_and_a_summary(data, tmp_path, capsys):
    run = train(data, tmp_path / "run", "--episodes.held-out", "2", recipe="metaworld-unified")
    capsys.readouterr()
    assert main(["eval", str(run.path), "--data", str(data), "--steps", "2"]) == 0
    said = capsys.readouterr().out
    assert "Does it act as in the recordings?" in said and "skill over copying" in said
    folder = run.path / "eval/recorded"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["command"] == f"wamkit eval {run.path} --data {data} --steps 2"
    assert "Never moving, and left out: action_3." in (folder / "report.html").read_text()
    file = tmp_path / "model.safetensors"
    assert main(["export", str(run.path), "--out", str(file)]) == 0
    assert main(["eval", str(file), "--data", str(data), "--steps", "2"]) == 0
    exported = json.loads((tmp_path / "model/eval/recorded/summary.json").read_text())
    assert [row["value"] for row in exported["rows"]] == [row["value"] for row in summary["rows"]]
    capsys.readouterr()
    for options, message in ((["--env", "metaworld"], "leave out --env"), (["--held-out", "3"], "--held-out")):
        assert main(["eval", str(run.path), "--data", str(data), *options]) == 1
        assert message in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    other = write_v3(tmp_path / "other/data", replace(Recordings(), camera="observation.images.wrist"))
    assert main(["eval", str(run.path), "--data", str(other)]) == 1
    assert "its cameras are ('wrist',), those that" in capsys.readouterr().err
