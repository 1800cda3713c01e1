"""What families must fulfil on pretrained video models: tiny ones of the classes of Wan2.2 and of Cosmos-Predict2."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import random_batch
from tiny_video_models import make_folder
from wamkit.config import ConfigError
from wamkit.data.loading.windows import observations
from wamkit.families.base import FAMILIES, Family
from wamkit.inference.model import Model
from wamkit.nn.options import BackboneConfig, LoraConfig, Program
from wamkit.types import Query, Spec, WamkitError

pytest.importorskip("diffusers", reason="the extra `pretrained` is not installed")
pytest.importorskip("transformers", reason="the extra `pretrained` is not installed")

KINDS = ("wan", "cosmos")
METHODS = {
    "unified": {},
    "unified, future first": {"program": Program.VIDEO_THEN_ACTION},
    "mot": {},
    "mot, future first": {"program": Program.VIDEO_THEN_ACTION, "imagine": True},
    "mot, decoupled": {"program": Program.DECOUPLED},
    "hidden_state": {},
    "hidden_state, detached": {"detach": True},
    "world_model": {},
    "cascade_idm": {},
    "bc": {},
}
SPEC = Spec(("a", "b"), 32, 32, 5, 4, chunk=8, frame_offsets=tuple(range(1, 9)), fps=10.0)
EVERY = [(kind, name) for kind in KINDS for name in METHODS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {kind: make_folder(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


def backbone(folders, kind: str, **options) -> BackboneConfig:
    return BackboneConfig(kind, str(folders[kind]), text_length=6, expert_mlp=24, **options)


def make(folders, kind: str, method: str, normalizer, spec: Spec = SPEC, options=None, **given) -> Family:
    """A model whose own parts are random too, so that nothing is hidden by zero initialisation."""
    cls = FAMILIES.get(method.split(",")[0])
    narrow = {"action_width": 16} if "action_width" in cls.Config.__dataclass_fields__ else {}
    config = cls.Config(backbone=backbone(folders, kind, **(options or {})), **narrow, **METHODS[method], **given)
    torch.manual_seed(1)
    model = cls(config, spec, normalizer)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name not in model.frozen:
                p.add_(0.05 * torch.randn(p.shape))
    return model


@pytest.fixture
def batch():
    return random_batch(SPEC, 4)


def losses(model: Family, batch, seed: int = 1) -> dict[str, torch.Tensor]:
    out = {}
    for stage in model.stages():
        out |= model(batch, torch.Generator().manual_seed(seed), stage.name)
    return out


def ask(model: Family, query: Query, batch, rows: slice = slice(None)):
    given = {
        Query.FORWARD: {"actions": batch.action.numpy()[rows]},
        Query.INVERSE: {"future": batch.future.numpy()[rows]},
    }.get(query, {})
    seeds = list(range(len(batch)))[rows]
    return Model(model).sample(observations(batch)[rows], query, seed=seeds, steps=2, **given)


@pytest.mark.parametrize(("kind", "method"), EVERY)
def test_every_query_is_answered_and_a_row_does_not_depend_on_its_neighbours(folders, kind, method, normalizer, batch):
    model = make(folders, kind, method, normalizer).eval()
    for query in sorted(model.queries):
        every, alone = ask(model, query, batch), ask(model, query, batch, slice(2, 3))
        for a, b in ((every.actions, alone.actions), (every.future, alone.future)):
            assert (a is None) == (b is None)
            if a is not None:
                assert np.abs(np.asarray(a[2], float) - np.asarray(b[0], float)).max() <= (
                    1 if a.dtype == np.uint8 else 1e-4
                )
        if query.wants_action:
            assert every.actions.shape == (4, 8, 4)
        if query.wants_future:
            assert every.future.shape == (4, 8, 2, 3, 32, 32)


@pytest.mark.parametrize(("kind", "method"), EVERY)
def test_every_parameter_gets_a_gradient(folders, kind, method, normalizer, batch):
    model = make(folders, kind, method, normalizer)
    assert "codec" not in [stage.name for stage in model.stages()]
    assert sum(stage.share for stage in model.stages()) == pytest.approx(1)
    trained = set()
    for stage in model.stages():
        model.zero_grad(set_to_none=True)
        for seed in range(4):
            sum(v.sum() for v in model(batch, torch.Generator().manual_seed(seed), stage.name).values()).backward()
        for key, p in model.named_parameters():
            if key.startswith(stage.prefixes):
                trained.add(key)
                if method == "bc" and ".model.proj_out" in key:
                    continue  # it imagines nothing
                assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0, (stage.name, key)
    assert trained == {name for name, _ in model.named_parameters()}


LEAKS = [("unified", "policy"), ("mot", "policy"), ("mot, decoupled", "action"), ("bc", "policy")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("method", "loss"), LEAKS)
def test_what_must_not_matter_does_not(folders, kind, method, loss, normalizer, batch):
    model = make(folders, kind, method, normalizer)
    other = random_batch(SPEC, 4, seed=5)
    base = losses(model, batch)
    future = losses(model, dataclasses.replace(batch, future=other.future))
    assert torch.equal(future[loss], base[loss])
    if "future" in base:
        assert not torch.allclose(future["future"], base["future"], atol=1e-5)
    words = losses(model, dataclasses.replace(batch, text=["push the red button", "reach the goal"] * 2))
    seen = losses(model, dataclasses.replace(batch, obs=other.obs))
    for name in base:
        assert (words[name] != base[name])[base[name] > 0].all(), name
        assert not torch.allclose(seen[name], base[name], atol=1e-5), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["unified", "mot", "hidden_state", "cascade_idm", "world_model"])
def test_features_made_ahead_change_nothing(folders, kind, method, normalizer, batch):
    model = make(folders, kind, method, normalizer)
    for stage in model.stages():
        features = model.features(batch, stage.name)
        assert set(features) == {"latents", "present"}
        ahead = dataclasses.replace(batch, features=features)
        for name, value in model(batch, torch.Generator().manual_seed(3), stage.name).items():
            again = model(ahead, torch.Generator().manual_seed(3), stage.name)[name]
            torch.testing.assert_close(again, value, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["unified", "mot"])
def test_history_that_is_remembered_is_as_good_as_read_again(folders, kind, method, normalizer, batch):
    spec = dataclasses.replace(SPEC, past_offsets=(-8, -4))
    model = make(folders, kind, method, normalizer, spec, chunk_causal=True).eval()
    batch = random_batch(spec, 4)
    batch = dataclasses.replace(batch, past_valid=torch.ones(4, 2, dtype=torch.bool))
    sum(v.sum() for v in losses(model, batch).values()).backward()
    whole, now = Model(model), observations(batch)[0]
    now = dataclasses.replace(now, past=tuple(dataclasses.replace(o, text=now.text) for o in now.past))
    policy = lambda past: whole.sample(dataclasses.replace(now, past=past), "policy", seed=0, steps=2).actions  # noqa: E731
    read, remembered = policy(now.past), policy(tuple(whole.encode_history(o) for o in now.past))
    np.testing.assert_allclose(remembered, read, atol=2e-5, rtol=1e-5)
    assert np.abs(policy((None, None)) - read).max() > 2e-4 < np.abs(policy(now.past[::-1]) - read).max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["unified", "mot", "hidden_state"])
def test_a_few_windows_are_learned_by_heart(folders, kind, method, normalizer, batch):
    model = make(folders, kind, method, normalizer)
    for stage in model.stages():
        held = lambda s=stage: {k: v.mean() for k, v in model(batch, torch.Generator().manual_seed(9), s.name).items()}  # noqa: E731
        before = held()
        optimizer = torch.optim.AdamW(model.parameters(), 6e-3)
        for k in range(40):
            optimizer.zero_grad()
            sum(v.mean() for v in model(batch, torch.Generator().manual_seed(k), stage.name).values()).backward()
            optimizer.step()
        for name, after in held().items():
            assert after < 0.8 * before[name] or not before[name], name


def test_adapters_alone_learn_and_nothing_is_changed_by_them_at_first(folders, normalizer, batch):
    unified = FAMILIES.get("unified")
    for kind in KINDS:
        answers = []
        for options in ({}, {"lora": LoraConfig(4)}):
            torch.manual_seed(1)
            model = unified(unified.Config(backbone=backbone(folders, kind, **options)), SPEC, normalizer).eval()
            answers.append(ask(model, Query.VIDEO, batch).future.astype(int))
        assert np.abs(answers[0] - answers[1]).max() <= 1
        plain = make(folders, kind, "unified", normalizer)
        lora = make(folders, kind, "unified", normalizer, options={"lora": LoraConfig(4)})
        learned = [n for n, p in lora.named_parameters() if n not in lora.frozen]
        own = {n for n in lora.state_dict() if not n.startswith("normalizer.")}
        assert any(".lora_A." in n for n in learned) and own == set(learned)
        assert lora.frozen and not any("lora_" in n for n in lora.frozen)
        assert not any(".blocks." in n and "lora_" not in n for n in learned)
        assert plain.state_dict().keys() > {n for n in learned if "lora_" not in n}


def test_folders_that_do_not_fit_are_refused_by_name(folders, normalizer, tmp_path):
    wan = folders["wan"]
    unified = FAMILIES.get("unified")

    def build(spec: Spec = SPEC, **options):
        return unified(
            unified.Config(backbone=BackboneConfig(**{"name": "wan", "path": str(wan)} | options)), spec, normalizer
        )

    with pytest.raises(
        Exception, match="its transformer is a CosmosTransformer3DModel: choose --model.backbone.name cosmos"
    ):
        build(path=str(folders["cosmos"]))
    with pytest.raises(WamkitError, match="it lacks transformer/config.json"):
        build(path=str(tmp_path))
    with pytest.raises(WamkitError, match="there is no folder"):
        build(path=str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="backbone.name is 'transformer': choose one of cosmos, wan"):
        build(name="transformer")
    with pytest.raises(ConfigError, match="has 6 frames, and a latent frame of .* holds 4: 4 or 8 would fit"):
        build(dataclasses.replace(SPEC, frame_offsets=(1, 2, 3, 4, 5, 6)))
    with pytest.raises(ConfigError, match="image height 48 is not a multiple of the stride, 32: 32 or 64 would fit"):
        build(dataclasses.replace(SPEC, height=48))
    with pytest.raises(ConfigError, match="add chunk_causal"):
        build(dataclasses.replace(SPEC, past_offsets=(-4,)))
    with pytest.raises(ConfigError, match="this family is not built on a pretrained video model"):
        FAMILIES.get("query_ar").Config(backbone=BackboneConfig("wan", str(wan)))
