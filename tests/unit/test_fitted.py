"""Recipes that are fitted to data: what follows from which facts, and that every family trains with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from lerobot_folders import Recordings, write_v3

from conftest import POINTS, random_batch
from wamkit.cli.main import main
from wamkit.cli.parse import parse
from wamkit.cli.train import Train, configured
from wamkit.config import save_json
from wamkit.data.format.store import Store, StoreError
from wamkit.data.loading.mixture_config import MixtureConfig, SourceConfig
from wamkit.nn.normalizer import Normalizer
from wamkit.runs.config import EpisodesConfig, changed, config_from_dict, config_to_dict, family_class
from wamkit.runs.fitted import DataFacts, facts_of, fit
from wamkit.runs.recipes import RECIPES, FittedRecipe
from wamkit.types import Spec

DEMO = DataFacts(demonstrations=120, frames=13_000, steps=92, texts=4, fps=80, views=1, height=64, width=64)
FITTED = [n for n in RECIPES.names() if isinstance(RECIPES.get(n), FittedRecipe)]


def given(facts: DataFacts, recipe: str = "unified") -> dict:
    return {k: v for rule in fit(RECIPES.get(recipe)(), facts)[1] for k, v in rule.options.items()}


@pytest.mark.parametrize(
    ("steps", "chunk"), [(3, 4), (8, 4), (9, 8), (22, 8), (59, 8), (76, 16), (92, 16), (185, 32), (400, 64), (5000, 64)]
)
def test_a_chunk_is_a_share_of_a_demonstration_and_futures_lie_in_it(steps, chunk):
    found = given(dataclasses.replace(DEMO, steps=steps))
    assert found["window.chunk"] == chunk and found["window.frame_offsets"] == (chunk // 2, chunk)
    earlier = given(dataclasses.replace(DEMO, steps=steps), "unified-chunk_causal")["window.past_offsets"]
    assert earlier == tuple(-chunk // 2 * k for k in (4, 3, 2, 1))


def test_images_become_whole_tokens_of_a_size_that_two_cores_train_on():
    assert not {k for k in given(DEMO) if "size" in k.split(".") or "stride" in k}
    camera = given(dataclasses.replace(DEMO, views=2, height=480, width=640))
    assert camera["window.size"] == (96, 128) and camera["model.image_stride"] == 32
    assert camera["model.codec"] == "frame_codec_32"
    odd = given(dataclasses.replace(DEMO, views=2, height=90, width=120))
    assert odd["window.size"] == (96, 112) and "model.image_stride" not in odd  # 112 is no multiple of 32


def test_samples_grow_with_the_frames_and_steps_stay_moderate():
    few, many = given(DEMO), given(dataclasses.replace(DEMO, frames=240_000))
    assert few["train.steps"] * few["train.batch_size"] == pytest.approx(240_000, rel=0.02)
    assert many["train.steps"] * many["train.batch_size"] == pytest.approx(3.2 * 240_000, rel=0.02)
    for frames in (1, 500, 20_000, 300_000, 3_000_000):
        found = given(dataclasses.replace(DEMO, frames=frames))
        assert found["train.batch_size"] in (64, 128) and found["train.steps"] >= 3_700
    assert few["model.codec_share"] == 0.08 and many["model.codec_share"] == 0.05
    assert "model.width" not in few and many["model.width"] == 192 and many["model.depth"] == 6


def test_the_joint_is_for_a_share_of_the_rows_where_a_family_trains_one():
    assert given(DEMO)["model.joint_share"] == given(DEMO, "mot")["model.joint_share"] == 0.5
    assert "model.joint_share" not in given(DEMO, "bc") and given(DEMO, "bc")["model.policy_draws"] == 4


def test_what_comes_often_is_shifted_further_and_at_fewer_noise_levels_each_time():
    for frames, shift, draws in ((2_400, 5, 4), (13_000, 5, 4), (29_000, 5, 4), (31_000, 3, 8), (240_000, 3, 8)):
        found = given(dataclasses.replace(DEMO, frames=frames))
        assert (found["train.shift"], found["model.policy_draws"]) == (shift, draws), frames
        assert found["model.joint_share"] == (0.5 if draws == 4 else 1.0), frames


def test_words_are_left_out_where_instructions_differ():
    assert given(DEMO)["model.text_dropout"] == 0.2
    assert "model.text_dropout" not in given(dataclasses.replace(DEMO, texts=1))


@pytest.mark.parametrize("name", FITTED)
def test_every_family_trains_as_fitted_and_comes_back_from_json(name):
    facts = dataclasses.replace(DEMO, frames=240_000, steps=185, views=2, height=64, width=96)
    run, rules = fit(RECIPES.get(name)(), facts)
    assert rules and config_from_dict(config_to_dict(run)) == run
    window, hands = run.window, {"proprio_dim": 4, "action_dim": 4}
    spec = Spec(("a", "b"), 64, 96, chunk=window.chunk, frame_offsets=window.frame_offsets, **hands)
    spec = dataclasses.replace(spec, past_offsets=window.past_offsets)
    cls = family_class(run.family)
    if cls.needs_point_cloud:
        spec = dataclasses.replace(spec, point_grid=POINTS)
    small = {
        k: v for k, v in {"width": 32, "action_width": 16, "depth": 2, "heads": 2}.items() if hasattr(run.model, k)
    }
    torch.manual_seed(0)
    numbers = {k: (torch.zeros(n), torch.ones(n)) for k, n in {"proprio": 4, "action": 4, "point_flow": 3}.items()}
    model = cls(dataclasses.replace(run.model, **small), spec, Normalizer(numbers))
    for stage in model.stages():
        losses = model(random_batch(spec, 2), torch.Generator().manual_seed(0), stage.name)
        assert all(torch.isfinite(loss).all() for loss in losses.values())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fitted")
    words = ["--env", "reacher", "--episodes", "3", "--off-expert", "1", "--options", "max_steps=20"]
    assert main(["collect", *words, "--out", str(root / "data")]) == 0
    return root / "data"


def test_facts_are_those_of_the_data_set_or_of_all_sources_of_a_mixture(data, tmp_path):
    facts = facts_of(data)
    assert (facts.demonstrations, facts.views, facts.texts) == (3, 1, 1)
    mixture = MixtureConfig((SourceConfig(str(data)), SourceConfig(str(data), name="again")), size=(32, 48))
    save_json(tmp_path / "mixture.json", mixture)
    both = facts_of(tmp_path / "mixture.json")
    assert (both.demonstrations, both.frames, both.height, both.width) == (6, 2 * facts.frames, 32, 48)


def test_facts_are_those_of_what_is_learned_from(data, tmp_path):
    """Chosen demonstrations, at the rate of those with actions; video gives frames alone."""
    lengths = [m.length for m in Store.open(data).episodes if m.is_demonstration]
    write_v3(tmp_path / "robot", Recordings(lengths=(20, 30, 40), fps=10))
    write_v3(tmp_path / "video", Recordings(lengths=(100,) * 5, fps=50))
    sources = SourceConfig("video", actions=False), SourceConfig("robot", demonstrations=(1, 3))
    save_json(tmp_path / "mixture.json", MixtureConfig(sources, size=(32, 48)))
    facts = facts_of(tmp_path / "mixture.json")
    assert (facts.demonstrations, facts.fps, facts.steps, facts.frames) == (2, 10, 35, 30 + 40 + 500 // 5)
    few = facts_of(data, EpisodesConfig(labelled=1, action_free=1))
    assert (few.demonstrations, few.frames) == (2, sum(lengths[:2]))


def test_a_model_that_is_kept_keeps_its_cells_and_words():
    wide = dataclasses.replace(DEMO, views=2, height=720, width=1280)
    base = changed(RECIPES.get("unified")(), {"model.image_stride": 32, "model.text_dropout": 0.0})
    found = {k: v for rule in fit(base, wide, keep_model=True)[1] for k, v in rule.options.items()}
    assert all(side % 32 == 0 for side in found["window.size"]) and given(wide)["window.size"] == (80, 144)
    assert "model.text_dropout" not in found and "model.image_stride" not in found
    knows = changed(base, {"model.text_dropout": 0.1})
    assert any("model.text_dropout" in rule.options for rule in fit(knows, wide, keep_model=True)[1])


def test_options_replace_what_is_fitted_even_by_the_usual_value(data, tmp_path, capsys):
    words = ["--data", str(data), "--out", str(tmp_path / "run")]
    usual = RECIPES.get("metaworld-unified")().train
    assert given(facts_of(data))["train.steps"] != usual.steps
    args = parse(Train, "train", [*words, "--train.steps", str(usual.steps), "--size", "32", "32"])
    config, _ = configured(args, data)
    assert config.train.steps == usual.steps and config.window.size == (32, 32)
    assert config.window.chunk == given(facts_of(data))["window.chunk"]
    said = capsys.readouterr().out
    assert "fitted to 3 demonstrations" in said and "--window.chunk" in said


def test_a_run_that_was_begun_goes_on_as_it_was_begun(data, tmp_path):
    words = ["--data", str(data), "--out", str(tmp_path / "run"), "--recipe", "bc", "--trackers", "csv"]
    small = ["--model.width", "32", "--model.depth", "1", "--model.heads", "2", "--train.batch-size", "2"]
    assert (
        main(["train", *words, *small, "--train.steps", "2", "--window.chunk", "4", "--window.frame-offsets", "4"]) == 0
    )
    args = parse(Train, "train", [*words, "--train.steps", "3"])
    config, _ = configured(args, data)
    assert (config.window.chunk, config.model.width, config.train.steps) == (4, 32, 3)
    other = parse(Train, "train", [*words[:4], "--recipe", "unified"])
    assert configured(other, data)[0].window.chunk == given(facts_of(data))["window.chunk"]  # refused later


def test_no_episodes_are_refused_in_one_line(tmp_path):
    from wamkit.data.format.store import Store

    Store.create(
        tmp_path / "empty",
        cameras=["a"],
        image_shape=(3, 32, 32),
        proprio_names=["x"],
        action_names=["x"],
        fps=10,
        robot_type="none",
    )
    with pytest.raises(StoreError, match="holds no episodes: collect some"):
        facts_of(tmp_path / "empty")


def test_only_options_that_a_family_has_are_given():
    inverse = given(dataclasses.replace(DEMO, views=2, height=96, width=96), "inverse")
    assert "model.image_stride" not in inverse and "model.codec" not in inverse and inverse["window.chunk"] == 16
    assert changed(RECIPES.get("inverse")(), inverse)
