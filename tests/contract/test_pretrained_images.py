"""Families on a frozen encoder of images: its features are context and target, and an instruction is really read."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import random_batch
from tiny_video_models import save_texts
from wamkit.data.loading.windows import observations
from wamkit.families.base import FAMILIES, Family
from wamkit.inference.model import Model
from wamkit.nn.encoders import PretrainedImage
from wamkit.nn.options import ImageConfig, TextConfig
from wamkit.runs.meta_model import meta_model
from wamkit.runs.recipes import RECIPES

transformers = pytest.importorskip("transformers", reason="the extra `pretrained` is not installed")

OPTIONS = {"jepa": {}, "align": {"teachers": ("pretrained",)}}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A tiny DINOv3, with its class and register tokens, and a text encoder."""
    home = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    config = transformers.DINOv3ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        num_register_tokens=2,
    )
    transformers.DINOv3ViTModel(config).save_pretrained(home / "vision")
    transformers.BitImageProcessor(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.2, 0.3]).save_pretrained(
        home / "vision"
    )
    save_texts(home, "T5")
    transformers.AutoTokenizer.from_pretrained(home / "tokenizer").save_pretrained(home / "text_encoder")
    return home


def make(home: Path, name: str, spec, normalizer) -> Family:
    cls = FAMILIES.get(name)
    image = ImageConfig("pretrained", str(home / "vision"))
    text = TextConfig("pretrained", model=str(home / "text_encoder"))
    torch.manual_seed(1)
    return cls(cls.Config(width=32, depth=2, heads=2, image=image, text=text, **OPTIONS[name]), spec, normalizer)


def test_views_are_encoded_each_by_itself_and_cells_keep_their_place(home):
    torch.manual_seed(0)
    image = PretrainedImage(str(home / "vision"), (2, 4), 2, 20)
    frames = torch.rand(3, 3, 32, 64) * 2 - 1
    found = image.features(frames)
    assert image(frames).shape == (3, 8, 20) and found.shape == (3, 8, 16) and not found.requires_grad
    assert [n for n, _ in image.named_parameters()] == ["project.weight", "project.bias"]
    left = image.features(torch.cat([frames[..., :32], frames[..., :32]], -1))
    assert torch.allclose(left[:, [0, 1, 4, 5]], found[:, [0, 1, 4, 5]], atol=1e-5)  # the left view, as it was
    assert torch.allclose(left[:, [2, 3, 6, 7]], found[:, [0, 1, 4, 5]], atol=1e-5)
    moved = frames.clone()
    moved[:, :, 16:, 32:48] *= -1  # the third cell of the second row
    assert (image.features(moved) - found).abs().mean((0, 2)).argmax() == 6
    assert copy.deepcopy(image).vision.encoder is image.vision.encoder


@pytest.mark.parametrize("name", OPTIONS)
def test_frozen_features_are_context_and_target(home, name, spec, normalizer):
    model, batch = make(home, name, spec, normalizer), random_batch(spec, 4)
    stage = model.stages()[-1]
    for seed in range(3):
        sum(v.sum() for v in model(batch, torch.Generator().manual_seed(seed), stage.name).values()).backward()
    for key, p in model.named_parameters():
        assert key.startswith(stage.prefixes) and p.grad is not None, key
    targets = model.targets(batch)
    before = copy.deepcopy(targets)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    optimizer.step()
    model.after_step()
    after = model.targets(batch)
    same = torch.equal(before, after) if name == "jepa" else torch.equal(before["pretrained"], after["pretrained"])
    assert same, "the target moved"
    assert not any("vision" in n or "encoder" in n for n in model.state_dict())


def test_an_instruction_is_really_read(home, spec, normalizer):
    """Two tasks in the same scene differ by their instruction alone: actions learned from them do too."""
    model = make(home, "align", spec, normalizer)
    batch = random_batch(spec, 2)
    way = torch.ones_like(batch.action[:1])
    actions = torch.cat([way, -way])
    same = {"obs": batch.obs[:1].expand(2, *batch.obs.shape[1:]), "proprio": batch.proprio[:1].expand(2, -1)}
    batch = dataclasses.replace(
        batch,
        **same,
        action=actions,
        action_expert=actions,
        action_valid=torch.ones_like(batch.action_valid),
        is_demonstration=torch.ones(2, dtype=torch.bool),
        has_action=torch.ones(2, dtype=torch.bool),
        text=["push the red button", "open the drawer"],
    )
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for k in range(150):
        optimizer.zero_grad()
        model(batch, torch.Generator().manual_seed(k))["policy"].mean().backward()
        optimizer.step()
    policy = lambda b: Model(model.eval()).sample(observations(b), "policy", seed=[0, 0], steps=4).actions  # noqa: E731
    first, second = policy(batch)
    assert first.mean() > 0.5 and second.mean() < -0.5
    swapped = policy(dataclasses.replace(batch, text=batch.text[::-1]))
    np.testing.assert_allclose(swapped, np.stack([second, first]), atol=1e-4)


def test_the_recipe_is_small():
    model = meta_model(RECIPES.get("dinov3-align")())
    learned = sum(p.numel() for p in model.parameters())
    assert learned < 4e7 and isinstance(model.context.image, PretrainedImage)
    assert sum(p.numel() for p in model.context.image.vision.encoder.parameters()) == pytest.approx(21.6e6, rel=0.02)


def test_siglip_has_no_class_token(tmp_path):
    """Patches alone: a view's cells keep their place in it, too."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.SiglipVisionConfig(**sizes, image_size=32, patch_size=8)
    transformers.SiglipVisionModel(config).save_pretrained(tmp_path)
    transformers.SiglipImageProcessor().save_pretrained(tmp_path)
    image = PretrainedImage(str(tmp_path), (2, 4), 2, 20)
    frames = torch.rand(2, 3, 32, 64) * 2 - 1
    moved = frames.clone()
    moved[:, :, :16, 48:] *= -1  # the last cell of the first row
    assert image(frames).shape == (2, 8, 20)
    assert (image.features(moved) - image.features(frames)).abs().mean((0, 2)).argmax() == 3


@pytest.mark.parametrize("name", OPTIONS)
def test_v_jepa_encodes_an_image_by_itself(name, home, tmp_path, spec, normalizer):
    """Context and targets of V-JEPA 2: cells in their place, and those that `transformers` has for a still clip."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "mlp_ratio": 2, "num_hidden_layers": 2, "num_attention_heads": 2, "frames_per_clip": 4}
    predictor = {"pred_hidden_size": 24, "pred_num_hidden_layers": 1, "pred_num_attention_heads": 2}
    encoder = transformers.VJEPA2Model(transformers.VJEPA2Config(crop_size=32, patch_size=8, **sizes, **predictor))
    encoder.eval().save_pretrained(tmp_path)
    image = PretrainedImage(str(tmp_path), (4, 8), 2, 20)
    frames = torch.rand(2, 3, 32, 64) * 2 - 1
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    clip = (((frames[..., :32] + 1) / 2 - mean) / std).unsqueeze(1).repeat(1, 2, 1, 1, 1)
    want = encoder(clip, skip_predictor=True).last_hidden_state.unflatten(1, (4, 4))
    found = image.features(frames)
    assert torch.allclose(found.unflatten(1, (4, 8))[:, :, :4], want, atol=1e-5)  # the left view
    cls, text = FAMILIES.get(name), TextConfig("pretrained", model=str(home / "text_encoder"))
    options = {"width": 32, "depth": 2, "heads": 2, "text": text} | OPTIONS[name]
    model = cls(cls.Config(image=ImageConfig("pretrained", str(tmp_path)), **options), spec, normalizer)
    stage, batch = model.stages()[-1], random_batch(spec, 4)
    sum(v.sum() for v in model(batch, torch.Generator().manual_seed(1), stage.name).values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not any("vision" in n for n in model.state_dict())
