"""Training that starts from another run: what is kept, what starts anew, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from lerobot_folders import Recordings, write_v3

from wamkit.cli.main import main
from wamkit.config import save_json
from wamkit.data.loading.mixture_config import MixtureConfig, SourceConfig
from wamkit.eval.held_out import acting_model
from wamkit.eval.report.symptoms import symptoms
from wamkit.runs.run import Run
from wamkit.runs.transfer import _fitted, transfer
from wamkit.training.launch import Start, make_trainer
from wamkit.types import Spec, WamkitError

SMALL = ["--model.width", "16", "--model.depth", "1", "--model.heads", "2", "--train.batch-size", "4"]
SHORT = ["--train.steps", "4", "--train.threads", "1", "--window.chunk", "4", "--window.frame-offsets", "2", "4"]


def train(data: Path, out: Path, *words: str, recipe: str = "metaworld-unified", sizes=(*SMALL, *SHORT)) -> Run:
    assert main(["train", "--recipe", recipe, "--data", str(data), "--out", str(out), *sizes, *words]) == 0
    return Run.open(out)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Data of one robot and of another one, with more joints, larger images and a second camera; and a run on each."""
    home = tmp_path_factory.mktemp("transfer")
    write_v3(home / "data", Recordings())
    write_v3(home / "other", Recordings(dims=7, height=64, width=80, second_camera="observation.images.wrist"))
    train(home / "data", home / "run")
    return home


def fresh(home: Path, data: str, out: Path, source: Run | None):
    """The model of a run on `data` that starts from `source`, before its first step, and what became of its weights."""
    config = Run.open(home / "run").config
    start = None if source is None else Start.of(source.path, out)
    return make_trainer(config, home / data, out, start=start).model


def test_on_the_same_shapes_every_weight_is_kept_and_statistics_are_those_of_the_new_data(home, tmp_path):
    source = Run.open(home / "run")
    write_v3(tmp_path / "moved", Recordings(lengths=(25, 25)))
    model = make_trainer(
        source.config, tmp_path / "moved", tmp_path / "run", start=Start.of(source.path, tmp_path)
    ).model
    for name, value in source.weights().items():
        if not name.startswith("normalizer."):
            assert torch.equal(model.state_dict()[name], value), name
    assert not torch.equal(model.normalizer.mean_action, source.family().normalizer.mean_action)


def test_on_another_robot_the_trunk_is_kept_places_are_resized_and_its_vectors_start_anew(home, tmp_path, capsys):
    source = Run.open(home / "run")
    untouched = fresh(home, "other", tmp_path / "a", None).state_dict()
    model = fresh(home, "other", tmp_path / "b", source)
    weights, own = source.weights(), model.state_dict()
    assert "resized" in (said := capsys.readouterr().out) and "context.proprio.weight (16x4 -> 16x7)" in said
    for name in weights:
        if name.startswith(("trunk.", "context.image.", "context.text.")):
            assert torch.equal(own[name], weights[name]), name
    assert torch.equal(own["context.proprio.weight"], untouched["context.proprio.weight"])
    # 48x64 are 3x4 cells; two views of 64x80, side by side, are 4x10.
    assert weights["context.grid"].shape == (12, 16) and own["context.grid"].shape == (40, 16)
    corner = weights["context.grid"][0]
    assert torch.allclose(own["context.grid"][0], corner) and not torch.equal(
        own["context.grid"], untouched["context.grid"]
    )


def test_a_mixture_gains_a_robot_and_keeps_what_it_knew_of_the_first(home, tmp_path):
    sources = SourceConfig(str(home / "data"), name="arm"), SourceConfig(str(home / "other"), name="new")
    alone, both = (MixtureConfig(sources[:n], size=(48, 64)) for n in (1, 2))
    save_json(tmp_path / "alone.json", alone)
    save_json(tmp_path / "both.json", both)
    source = train(tmp_path / "alone.json", tmp_path / "run", recipe="unified-mixture")
    start = Start.of(source.path, tmp_path / "more")
    model = make_trainer(source.config, tmp_path / "both.json", tmp_path / "more", start=start).model
    old, new = source.weights(), model.state_dict()
    with pytest.raises(WamkitError, match=r"as which of its embodiments it acts: --embodiment arm, with --env NAME"):
        acting_model(source)
    assert symptoms(source)[-1].remedy == f"wamkit eval {source.label} --data DATA --embodiment arm"
    a, b = source.spec.action_dim, model.spec.action_dim
    assert b > a
    before, after = (w["action.stream.embed.weight"].unflatten(1, (-1, n)) for w, n in ((old, a), (new, b)))
    assert torch.equal(before, after[..., :a])
    before, after = (w["action.stream.head.bias"].unflatten(0, (-1, n)) for w, n in ((old, a), (new, b)))
    assert torch.equal(before, after[..., :a])
    assert torch.equal(old["context.proprio.weight"], new["context.proprio.weight"][:, : source.spec.proprio_dim])


def shapes(cameras=("a",), height=64, width=64, proprio=5, action=4) -> Spec:
    return Spec(cameras, height, width, proprio, action, chunk=16)


def test_a_place_in_the_image_is_told_by_its_name_and_taken_view_by_view():
    """Layers of actions that happen to have as many rows as an image has cells are none."""
    was, now = shapes(), shapes(("a", "b"), 96, 128, 7, 6)
    for name in ("action.stream.head.weight", "action.stream.position"):
        assert _fitted(name, torch.ones(16, 8), torch.zeros(24, 8), was, now, False) == (None, "new")
    table = torch.arange(16.0)[:, None].expand(16, 8)
    taken, how = _fitted("context.grid", table, torch.zeros(96, 8), was, now, False)
    left, right = taken[:, 0].reshape(6, 2, 8).unbind(1)
    assert how == "resized" and torch.equal(left, right) and left[0, 0] == 0 and left[-1, -1] == 15
    # Cameras keep their own places in another order, and a new one takes those of its number, or the first's.
    two, turned = shapes(("a", "b")), shapes(("b", "a", "c"))
    table = torch.tensor([1.0] * 4 + [2.0] * 4).repeat(4)[:, None].expand(32, 8)
    taken, how = _fitted("future.stream.position", table, torch.zeros(48, 8), two, turned, False)
    assert taken[:, 0].reshape(4, 3, 4)[:, :, 0].tolist() == [[2, 1, 1]] * 4
    image = table[:, :1].T.reshape(1, 1, 4, 8)
    taken, how = _fitted("codec.place16", image, torch.zeros(1, 1, 4, 12), two, turned, False)
    assert taken[0, 0, :, ::4].tolist() == [[2, 1, 1]] * 4
    assert _fitted("context.grid", table, torch.zeros(32, 8), two, two, False)[1] == "kept"


@pytest.mark.parametrize(
    ("was", "now"), [((14, 7), (20, 10)), ((8, 4), (12, 6)), ((4, 1), (8, 2)), ((10, 7), (14, 11))]
)
def test_states_and_actions_of_a_mixture_keep_their_columns(was, now):
    old, new = (shapes(proprio=s, action=a) for s, a in (was, now))
    columns = torch.arange(float(was[0])).repeat(2, 1)
    taken, how = _fitted("context.proprio.weight", columns, -torch.ones(2, now[0]), old, new, True)
    assert how == "widened" and taken[0].tolist() == [*range(was[0]), *[-1] * (now[0] - was[0])]
    steps = torch.arange(4.0 * was[1]).repeat(2, 1)  # an action token holds four
    taken, how = _fitted("action.stream.embed.weight", steps, -torch.ones(2, 4 * now[1]), old, new, True)
    assert taken[0].reshape(4, -1)[:, : was[1]].flatten().tolist() == list(range(4 * was[1]))
    assert (taken[0].reshape(4, -1)[:, was[1] :] == -1).all()


def test_the_command_keeps_the_models_sizes_and_resumes_without_the_other_run(home, tmp_path, capsys):
    source = shutil.copytree(home / "run", tmp_path / "source")
    words = ["train", "--from", str(source), "--data", str(home / "other"), "--out", str(tmp_path / "run")]
    words += ["--train.threads", "1", "--train.batch-size", "4", "--size", "48", "64", "--train.save-every", "2"]
    assert main([*words, "--train.steps", "4"]) == 0
    said = capsys.readouterr().out
    assert "starts from" in said and "kept" in said and "fitted to 3 demonstrations" in said
    assert "--model.width" not in said
    run = Run.open(tmp_path / "run")
    assert run.config.model.width == 16 and run.described["start"]["digest"] == Run.open(source).digest
    shutil.rmtree(source)
    assert main([*words, "--train.steps", "6"]) == 0
    assert Run.open(tmp_path / "run").step == 6
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["start"]["run"] == str(source)


def test_another_family_and_no_run_are_refused_in_one_line(home, tmp_path, capsys):
    words = ["--data", str(home / "other"), "--out", str(tmp_path / "run")]
    assert main(["train", "--from", str(home / "run"), "--recipe", "bc", *words]) == 1
    assert "is a 'unified', whose weights do not fit a 'bc'" in capsys.readouterr().err
    assert main(["train", "--from", str(tmp_path / "nothing"), *words]) == 1
    assert str(tmp_path / "nothing") in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    bc = train(home / "data", tmp_path / "bc", recipe="metaworld-bc")
    with pytest.raises(Exception, match="leave --recipe out"):
        transfer(Run.open(home / "run").family(), bc)
