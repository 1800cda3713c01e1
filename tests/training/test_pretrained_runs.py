"""Runs on a pretrained video model, from the command line on: adapters, resuming, and the files that they stand on."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from recordings import fill
from safetensors.torch import load_file, save_file

from tiny_video_models import make_folder, wan_transformer
from wamkit.cli.main import main
from wamkit.data.loading.dataset import open_frames
from wamkit.data.loading.windows import Windows, observations
from wamkit.inference.model import load
from wamkit.nn.backbones.video_model import video_model
from wamkit.nn.encoders import PromptEncoder
from wamkit.nn.options import BackboneConfig
from wamkit.runs.checkpoint import load_checkpoint
from wamkit.runs.config import RunConfig, family_class
from wamkit.runs.run import Run, build, layout
from wamkit.training.launch import LoadingOptions, make_trainer
from wamkit.types import Spec, WamkitError

pytest.importorskip("diffusers", reason="the extra `pretrained` is not installed")
pytest.importorskip("peft", reason="the extra `pretrained` is not installed")

WINDOW = ["--window.chunk", "4", "--window.frame-offsets", "1", "2", "3", "4"]
SHORT = ["--train.batch-size", "2", "--train.threads", "1", "--train.save-every", "2", "--train.optimizer", "adamw"]
ADAPTED = ["--model.backbone.lora.rank", "4"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("pretrained")
    make_folder("wan", home / "wan")
    fill(home / "data", 3)
    return home


def train(home: Path, out: str, *words: str, family: str = "unified", steps: int = 4, path: str = "wan") -> int:
    backbone = ["--model.backbone.name", "wan", "--model.backbone.path", str(home / path)]
    more = ["--model.action-width", "16", "--model.backbone.expert-mlp", "24"] if family == "mot" else []
    size = ["--model.backbone.text-length", "6", "--train.steps", str(steps)]
    recipe = ["--recipe", f"metaworld-{family}", "--data", str(home / "data"), "--out", str(home / out)]
    return main(["train", *recipe, *backbone, *size, *more, *WINDOW, *SHORT, *words])


@pytest.fixture(scope="module")
def adapted(home) -> Path:
    assert train(home, "adapted", *ADAPTED) == 0
    return home / "adapted"


def asked(run: Path, home: Path):
    model = load(run)
    frames, _ = open_frames(home / "data", (32, 32))
    batch = Windows(frames, model.spec, seed=0, batch_size=2).batch(0)
    return model.sample(observations(batch), "joint", seed=0, steps=2)


def test_a_checkpoint_holds_what_was_learned_alone_and_the_released_weights_stay(home, adapted):
    run = Run.open(adapted)
    saved, base = run.weights(), run.described["base"]
    assert set(base) == {"transformer", "vae", "text_encoder", "tokenizer"} and all(len(x) == 64 for x in base.values())
    assert any("lora_B" in n and x.abs().sum() > 0 for n, x in saved.items())
    assert not any("base_layer" in n or "norm_out" in n for n in saved)
    family = run.family()
    released = make_parts(home)
    for name, p in family.named_parameters():
        if name in family.frozen:
            own = name.removeprefix("trunk._all.parts.future.model.").replace(".base_layer", "")
            assert torch.equal(p, released[own]), name
    assert len(family.frozen) == len(released)
    state = load_checkpoint(adapted, training=True)
    assert set(state.model_state) == set(saved)


def make_parts(home: Path) -> dict[str, torch.Tensor]:
    from diffusers import WanTransformer3DModel

    return dict(WanTransformer3DModel.from_pretrained(home / "wan" / "transformer").named_parameters())


def test_a_run_that_stopped_goes_on_to_the_same_bits(home, adapted):
    whole = Run.open(adapted).weights()
    assert train(home, "twice", *ADAPTED) == 0
    again = Run.open(home / "twice").weights()
    assert whole.keys() == again.keys() and all(torch.equal(whole[k], again[k]) for k in whole)
    config = Run.open(adapted).config
    trainer = make_trainer(config, home / "data", home / "cut")
    for progress in trainer.steps():
        if progress.step == 2:
            break
    assert train(home, "cut", *ADAPTED) == 0
    cut = Run.open(home / "cut").weights()
    assert all(torch.equal(whole[k], cut[k]) for k in whole)


def test_another_model_under_the_adapters_is_refused(home, adapted, tmp_path, capsys):
    shutil.move(home / "wan", home / "kept")
    try:
        with pytest.raises(WamkitError, match="there is no folder"):
            fresh(adapted)
        make_folder("wan", home / "wan", seed=3)
        with pytest.raises(WamkitError, match="its transformer has SHA-256 .*, the run notes"):
            fresh(adapted)
        shutil.rmtree(home / "wan" / "transformer")
        shutil.copytree(home / "kept" / "transformer", home / "wan" / "transformer")
        with pytest.raises(WamkitError, match="its vae has SHA-256"):
            fresh(adapted)
    finally:
        shutil.rmtree(home / "wan", ignore_errors=True)
        shutil.move(home / "kept", home / "wan")
    fresh(adapted)


def fresh(run: Path):
    """The family of a run as another process opens it."""
    from wamkit.nn.backbones import video_model

    video_model._opened.cache_clear()
    return Run.open(run).family()


def test_a_frozen_backbone_trains_what_stands_beside_it_and_opens_again(home):
    assert train(home, "frozen", "--model.backbone.freeze", family="mot") == 0
    family, released = fresh(home / "frozen"), make_parts(home)
    assert len(family.frozen) == len(released) and asked(home / "frozen", home).actions.shape == (2, 4, 2)
    assert not any(".future.model." in n for n in Run.open(home / "frozen").weights())


def test_a_deep_backbone_that_is_frozen_opens_again(home):
    """Its tensors are many times those of the run."""
    make_folder("wan", home / "deep", layers=24)
    backbone = BackboneConfig("wan", str(home / "deep"), text_length=6, freeze=True)
    model = family_class("bc").Config(backbone=backbone)
    spec = Spec(("front", "wrist"), 32, 32, 3, 2, chunk=4, frame_offsets=(1, 2, 3, 4), fps=20.0)
    numbers = {key: {"mean": [0.0] * n, "std": [1.0] * n} for key, n in (("proprio", 3), ("action", 2))}
    run = RunConfig("bc", model)
    saved = build(run, spec, numbers).state_dict()
    assert len(layout(run, spec, numbers, most=len(saved))) == len(saved) < 40


def test_threads_that_share_the_autoencoder_get_what_one_alone_gets(home):
    from wamkit.nn.autoencoders.wan import WanAutoencoder

    coder = WanAutoencoder(home / "wan" / "vae")
    clips = [torch.rand(2, 3, 9, 32, 32, generator=torch.Generator().manual_seed(k)) * 2 - 1 for k in range(8)]
    alone = [coder.encode(clip) for clip in clips]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(coder.encode, clips))
        frames = list(pool.map(coder.decode, together))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert all(torch.equal(coder.decode(z), x) for z, x in zip(alone, frames, strict=True))


def test_a_stage_without_anything_to_learn_is_refused_by_name(home, capsys):
    words = ["--model.backbone.freeze", "--model.backbone.state", "none"]
    assert train(home, "nothing", *words, family="cascade_idm") == 1
    assert "nothing learns in the stage 'planner' of 'cascade_idm'" in capsys.readouterr().err


def test_a_run_that_starts_from_another_loses_no_weights_of_the_backbone(home, adapted, tmp_path, capsys):
    words = ["train", "--from", str(adapted), "--data", str(home / "data"), "--train.steps", "2"]
    assert main([*words, "--out", str(tmp_path / "same"), "--train.threads", "2"]) == 0
    run = Run.open(tmp_path / "same")
    assert run.config.window == Run.open(adapted).config.window and run.config.train.optimizer == "adamw"
    assert main([*words, "--out", str(tmp_path / "whole"), "--model.backbone.lora.rank", "0"]) == 1
    assert "weights of their pretrained backbone would be lost" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["unified", "mot"])
def test_a_whole_model_learns_and_answers_after_it_is_opened_again(home, family, tmp_path):
    assert train(home, f"whole-{family}", family=family) == 0
    first, second = asked(home / f"whole-{family}", home), asked(home / f"whole-{family}", home)
    assert np.array_equal(first.actions, second.actions) and first.future.shape == (2, 4, 2, 3, 32, 32)
    assert main(["export", str(home / f"whole-{family}"), "--out", str(tmp_path / "one.safetensors")]) == 0
    assert np.array_equal(asked(tmp_path / "one.safetensors", home).actions, first.actions)


def test_merged_adapters_answer_as_they_did(home, adapted, tmp_path, capsys):
    out = tmp_path / "merged.safetensors"
    assert main(["export", str(adapted), "--out", str(out), "--merge"]) == 0
    before, after = asked(adapted, home), asked(out, home)
    assert np.abs(before.actions - after.actions).max() < 1e-5 * np.abs(before.actions).max() + 1e-5
    assert np.abs(before.future.astype(int) - after.future).max() <= 1
    merged = Run.open(out)
    assert not merged.family().frozen and merged.config.model.backbone.lora.rank == 0
    assert any(
        x.ndim == 2 and not torch.equal(x, make_parts(home)[n.partition("future.model.")[2]])
        for n, x in merged.weights().items()
        if "attn1.to_q.weight" in n
    )
    assert main(["export", str(out), "--out", str(tmp_path / "again.safetensors"), "--merge"]) == 1
    assert "has no adapters to merge" in capsys.readouterr().err


def test_latents_that_are_kept_are_those_of_these_files(home, adapted, tmp_path):
    """The autoencoder is in no state dict: it counts by its files."""
    config, data = Run.open(adapted).config, home / "data"

    def key(out: str) -> str:
        from wamkit.nn.backbones import video_model

        video_model._opened.cache_clear()
        trainer = make_trainer(config, data, tmp_path / out, loading=LoadingOptions(feature_cache_gb=0.1))
        return trainer.precompute._key(trainer.model.stages()[0], "data")

    before = key("a")
    assert key("b") == before
    file = home / "wan" / "vae" / "diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    changed = bytearray(content)
    changed[-3] ^= 1
    try:
        file.write_bytes(changed)
        assert key("c") != before
    finally:
        file.write_bytes(content)
    assert key("d") == before


def test_a_missing_or_damaged_shard_is_named(home, tmp_path):
    folder = make_folder("wan", tmp_path / "wan")
    shutil.rmtree(folder / "transformer")
    wan_transformer().save_pretrained(folder / "transformer", max_shard_size="40KB")
    _, second, *_ = sorted((folder / "transformer").glob("*.safetensors"))
    model, config = video_model(BackboneConfig("wan", str(folder))), BackboneConfig("wan", str(folder))
    model.parts(config)
    content = second.read_bytes()
    for damage in (lambda: second.unlink(), lambda: second.write_bytes(content[: len(content) // 2])):
        damage()
        with pytest.raises(WamkitError, match=f"the weights in transformer/ do not load: .*{second.name}"):
            model.parts(config)


def test_what_a_run_lacks_is_said_in_a_line(home, capsys):
    shutil.copytree(home / "wan", home / "lame")
    (home / "lame/transformer/diffusion_pytorch_model.safetensors").unlink()
    assert train(home, "none", path="lame") == 1
    *bars, message = capsys.readouterr().err.strip().splitlines()
    assert "the weights in transformer/ do not load" in message and all("decoding" in bar for bar in bars if bar)
    config = json.loads((home / "lame/transformer/config.json").read_text())
    (home / "lame/transformer/config.json").write_text(json.dumps({**config, "ffn_dim": 64}))
    shutil.copy(home / "wan/transformer/diffusion_pytorch_model.safetensors", home / "lame/transformer")
    assert train(home, "none", path="lame") == 1
    message = capsys.readouterr().err
    assert "do not load" in message and "48" in message and "64" in message, message
    file = home / "lame/transformer/diffusion_pytorch_model.safetensors"
    (home / "lame/transformer/config.json").write_text(json.dumps(config))
    tensors = load_file(file)
    del tensors["blocks.1.ffn.net.2.bias"]
    save_file(tensors, file, metadata={"format": "pt"})
    assert train(home, "none", path="lame") == 1
    assert "lack blocks.1.ffn.net.2.bias, one of 1 tensors" in capsys.readouterr().err
    assert train(home, "none", path="data") == 1
    assert "it lacks transformer/config.json" in capsys.readouterr().err
    assert not (home / "none").exists()


def test_features_of_texts_are_kept_and_need_no_encoder_then(home, tmp_path, monkeypatch):
    texts, cpu = ["open the drawer", "push the red button"], torch.device("cpu")
    first = PromptEncoder(home / "wan", 6, "A video: {} {x}")
    first.keep_in(tmp_path, "files")
    found = first(texts, cpu)
    assert found.shape == (2, 6, 32) and len(list(tmp_path.glob("*/*.npy"))) == 2
    second = PromptEncoder(home / "nowhere", 6, "A video: {} {x}")
    second.keep_in(tmp_path, "files")
    assert torch.equal(second(texts[::-1], cpu), found.flip(0))
    file = next(tmp_path.glob("*/*.npy"))
    file.write_bytes(file.read_bytes()[:-9] + b"damage___")
    again = PromptEncoder(home / "wan", 6, "A video: {} {x}")
    again.keep_in(tmp_path, "files")
    assert torch.equal(again(texts, cpu), found)
    other = PromptEncoder(home / "nowhere", 6, "A video: {} {x}")
    other.keep_in(tmp_path, "other files")
    with pytest.raises(WamkitError, match="cannot be loaded"):
        other(texts, cpu)


def test_training_keeps_latents_and_texts_beside_the_data(home):
    assert train(home, "kept", *ADAPTED, "--feature-cache-gb", "0.1", steps=20) == 0
    kept = {p.name for p in (home / "data/.cache").iterdir()} if (home / "data/.cache").exists() else set()
    assert {"latents", "texts"} <= kept, kept
