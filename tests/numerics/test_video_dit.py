"""The layer loop over pretrained video transformers, against diffusers' own models with random weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tiny_video_models import cosmos_transformer
from wamkit.nn.attention_mask import ACTION, FUTURE, TEXT
from wamkit.nn.backbones.base import Tokens
from wamkit.nn.backbones.cosmos import CosmosParts
from wamkit.nn.backbones.video_dit import VideoMixture, VideoTrunk, attention
from wamkit.nn.backbones.wan import WanExpert, WanParts, grid_positions, patches, unpatched
from wamkit.types import WamkitError

diffusers = pytest.importorskip("diffusers", reason="the extra `pretrained` is not installed")

B, F, H, W, Z, T = 2, 3, 4, 6, 4, 5
"""Rows; latent frames, rows and columns; channels of a latent; tokens of the text."""


@pytest.fixture(scope="module")
def wan():
    """A tiny Wan2.2-TI2V-5B: the class, the options and the layout of the real one."""
    torch.manual_seed(0)
    model = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=Z,
        out_channels=Z,
        text_dim=32,
        freq_dim=32,
        ffn_dim=48,
        num_layers=3,
        cross_attn_norm=True,
        rope_max_seq_len=64,
    ).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return model


@pytest.fixture(scope="module", params=[False, True], ids=["", "padding"])
def cosmos(request):
    """A tiny Cosmos-Predict2."""
    torch.manual_seed(0)
    model = diffusers.CosmosTransformer3DModel(
        in_channels=Z + request.param,
        out_channels=Z,
        num_attention_heads=2,
        attention_head_dim=24,
        num_layers=3,
        mlp_ratio=2,
        text_embed_dim=32,
        adaln_lora_dim=4,
        max_size=(8, 32, 32),
        patch_size=(1, 2, 2),
        rope_scale=(2.0, 1.0, 1.0),
        concat_padding_mask=False,
        extra_pos_embed_type=None,
    ).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return model


def clip(seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    z, text = torch.randn(B, Z, F, H, W, generator=g), torch.randn(B, T, 32, generator=g)
    return z, text, torch.rand(B, F, generator=g)


def video(z, sigma_BF, frames=range(F)):
    """The tokens of some latent frames."""
    per = H // 2 * (W // 2)
    values = patches(z[:, :, list(frames)], (1, 2, 2))
    sigma = sigma_BF[:, list(frames)].repeat_interleave(per, 1)
    return Tokens(values, FUTURE, grid_positions(torch.tensor(list(frames)), H // 2, W // 2), sigma)


def test_patches_and_back():
    z, _, _ = clip()
    x = patches(z, (1, 2, 2))
    assert x.shape == (B, F * H * W // 4, 4 * Z) and torch.equal(unpatched(x, (F, H // 2, W // 2), (1, 2, 2)), z)
    assert x[0, 1, :4].tolist() == z[0, 0, 0, :2, 2:4].flatten().tolist()  # the second patch of the first row


@torch.no_grad()
def test_a_video_alone_is_what_diffusers_makes_of_it(wan):
    z, text, sigma = clip()
    per = H // 2 * (W // 2)
    expected = wan(z, 1000 * sigma.repeat_interleave(per, 1), text, return_dict=False)[0]
    (found, words), _ = VideoTrunk(WanParts(wan))([video(z, sigma), Tokens(text, TEXT)])
    assert words.shape == (B, T, 24) and not words.any()
    assert (unpatched(found, (F, H // 2, W // 2), (1, 2, 2)) - expected).abs().max() < 1e-5 < expected.std()


@torch.no_grad()
def test_a_second_model_fits_the_same_loop(cosmos):
    """Cosmos-Predict2 with a noise level a frame; with a mask of padding, as its released weights take it, or not."""
    z, text, sigma = clip()
    padded = cosmos.config.in_channels > Z
    given = torch.cat([z, torch.zeros(B, 1, F, H, W)], 1) if padded else z
    expected = cosmos(given, sigma.view(B, 1, F, 1, 1), text, fps=16, return_dict=False)[0]
    parts = CosmosParts(cosmos)
    parts.padding, parts.told = 4 if padded else 0, 0  # diffusers adds it itself, with a package that we do without
    (found, _), _ = VideoTrunk(parts)([video(z, sigma), Tokens(text, TEXT)])
    assert (unpatched(found, (F, H // 2, W // 2), (1, 2, 2)) - expected).abs().max() < 1e-5 < expected.std()
    place, per = torch.tensor([[0.5, -1, -1]]), H // 2 * (W // 2)
    acts = Tokens(torch.randn(B, 1, parts.width), ACTION, place, torch.tensor([0.3]))
    whole, _ = VideoTrunk(parts)([video(z, sigma), Tokens(text, TEXT), acts], mask_of(F * per + T, 1))
    _, cache = VideoTrunk(parts)([video(z, sigma), Tokens(text, TEXT)])
    (kept,), _ = VideoTrunk(parts)([acts], None, cache)
    torch.testing.assert_close(kept, whole[2], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_cosmos_video2world_is_told_which_frames_are_given():
    """Its released weights read one channel more: 1 where a frame is an observation."""
    torch.manual_seed(0)
    model = cosmos_transformer(in_channels=Z + 1, padding=False).eval()
    z, text, sigma = clip()
    sigma = torch.cat([torch.zeros(B, 1), sigma[:, 1:]], 1)
    told = torch.zeros(B, 1, F, H, W)
    told[:, :, 0] = 1
    expected = model(z, sigma.view(B, 1, F, 1, 1), text, fps=16, condition_mask=told, return_dict=False)[0]
    now = dataclasses.replace(video(z, sigma, [0]), kind="image", sigma=None)
    (first, _, rest), _ = VideoTrunk(CosmosParts(model))([now, Tokens(text, TEXT), video(z, sigma, [1, 2])])
    found = unpatched(torch.cat([first, rest], 1), (F, H // 2, W // 2), (1, 2, 2))
    assert (found - expected).abs().max() < 1e-5 < expected.std()


def mask_of(context: int, rest: int) -> torch.Tensor:
    """All see all, but for the context, which sees itself alone."""
    mask = torch.ones(context + rest, context + rest, dtype=torch.bool)
    mask[:context, context:] = False
    return mask


@torch.no_grad()
def test_a_block_is_diffusers_block_to_the_bit(wan):
    z, text, sigma = clip()
    parts = WanParts(wan)
    tokens = video(z, sigma)
    x, times, rope = (
        parts.embed(tokens.values),
        parts.times(tokens.sigma, torch.zeros(len(tokens), dtype=torch.bool)),
        parts.rope(tokens.position.expand(B, -1, 3)),
    )
    words = parts.text(text)
    for block in wan.blocks:
        expected = block(x, words, times.block, wan.rope(z))
        q, k, v, kept = parts.qkv(block, x, times, rope)
        x = parts.rest(block, x, attention(q, k, v), kept, parts.text_keys(block, words))
        assert torch.equal(x, expected)


@torch.no_grad()
def test_a_block_of_cosmos_is_diffusers_block_to_the_bit(cosmos):
    """At the same positions and noise levels, as its own rotary embedding has them."""
    z, text, sigma = clip()
    parts = CosmosParts(cosmos)
    parts.padding, parts.told = 4 * (cosmos.config.in_channels > Z), 0
    tokens = video(z, sigma)
    x, times, rope = (
        parts.embed(tokens.values),
        parts.times(tokens.sigma, torch.zeros(len(tokens), dtype=torch.bool)),
        parts.rope(tokens.position.expand(B, -1, 3)),
    )
    words = parts.text(text)
    for block in cosmos.transformer_blocks:
        expected = block(x, words, times.block, times.temb, tuple(r[0, :, 0] for r in rope))
        q, k, v, kept = parts.qkv(block, x, times, rope)
        x = parts.rest(block, x, attention(q, k, v), kept, parts.text_keys(block, words))
        assert torch.equal(x, expected)


@torch.no_grad()
def test_a_kept_context_is_as_good_as_one_pass_and_masks_hold(wan):
    """A clean first frame, which sees itself alone, and noisy actions and frames that see it and one another."""
    z, text, sigma = clip()
    sigma = torch.cat([torch.zeros(B, 1), sigma[:, 1:]], 1)
    trunk, per = VideoTrunk(WanParts(wan)), H // 2 * (W // 2)
    now, then = video(z, sigma, [0]), video(z, sigma, [1, 2])
    place = torch.tensor([[0.5, -1, -1], [1.5, -1, -1]])
    noise = torch.randn(B, 2, 24, generator=torch.Generator().manual_seed(4))
    acts = Tokens(noise, ACTION, place, torch.tensor([0.3, 0.8]))
    length = per + T
    mask = mask_of(length, 2 + 2 * per)
    whole, _ = trunk([now, Tokens(text, TEXT), acts, then], mask)
    _, cache = trunk([now, Tokens(text, TEXT)])
    kept, _ = trunk([acts, then], None, cache)
    for a, b in zip(whole[2:], kept, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
    changed = [now, Tokens(text, TEXT), acts.plus(noise.flip(2)), then]
    assert torch.equal(trunk(changed, mask)[0][0], whole[0])  # the context does not see them
    assert not torch.allclose(trunk(changed, mask)[0][3], whole[3], atol=1e-4)  # the frames do
    other = [now, Tokens(text + 1, TEXT), acts, then]
    assert not torch.allclose(trunk(other, mask)[0][2], whole[2], atol=1e-4)  # and all read the text


def mixture(wan):
    torch.manual_seed(2)
    expert = WanExpert(WanParts(wan), 16, 32)
    with torch.no_grad():
        for p in expert.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return VideoMixture({FUTURE: WanParts(wan), ACTION: expert}).eval()


@torch.no_grad()
def test_an_expert_shares_the_attention_of_the_video(wan):
    """Actions of another width see a clean first frame and noisy later ones, which see the first frame alone."""
    z, text, sigma = clip()
    sigma = torch.cat([torch.zeros(B, 1), sigma[:, 1:]], 1)
    both, per = mixture(wan), H // 2 * (W // 2)
    known, then = [video(z, sigma, [0]), Tokens(text, TEXT)], video(z, sigma, [1, 2])
    g = torch.Generator().manual_seed(3)
    acts = Tokens(torch.randn(B, 2, 16, generator=g), ACTION, torch.tensor([[0.5, -1, -1], [1.5, -1, -1]]), sigma[:, 1])
    video_mask = mask_of(per + T, 2 * per)
    masks = {
        FUTURE: torch.cat([video_mask, torch.zeros(len(video_mask), 2, dtype=torch.bool)], 1),
        ACTION: torch.ones(2, len(video_mask) + 2, dtype=torch.bool),
    }
    whole, _ = both({FUTURE: [*known, then], ACTION: [acts]}, masks)
    assert whole[ACTION][0].shape == (B, 2, 16)
    alone, _ = VideoTrunk(WanParts(wan))([*known, then], video_mask)
    for a, b in zip(whole[FUTURE], alone, strict=True):  # the video is as without the expert
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
    _, cache = both({FUTURE: known}, {FUTURE: None})
    kept, _ = both({FUTURE: [then], ACTION: [acts]}, {FUTURE: masks[FUTURE][per + T :], ACTION: None}, cache)
    torch.testing.assert_close(kept[ACTION][0], whole[ACTION][0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(kept[FUTURE][0], whole[FUTURE][2], atol=2e-5, rtol=1e-4)
    other = video(z.flip(1), sigma, [1, 2])
    moved, _ = both({FUTURE: [*known, other], ACTION: [acts]}, masks)
    assert not torch.allclose(moved[ACTION][0], whole[ACTION][0], atol=1e-4)


def test_a_detached_stream_sends_no_gradients(wan):
    z, text, sigma = clip()
    both = mixture(wan)
    acts = Tokens(torch.randn(B, 2, 16), ACTION, torch.zeros(2, 3), torch.tensor([0.5]))
    given = {FUTURE: [video(z, sigma), Tokens(text, TEXT)], ACTION: [acts]}
    for detach in (set(), {(ACTION, FUTURE)}):
        outputs, _ = both(given, {}, None, detach)
        outputs[ACTION][0].square().sum().backward()
        prefix = both.prefixes(FUTURE)[0]
        sent = [p.grad for n, p in both.named_parameters() if n.startswith(prefix) and p.grad is not None]
        assert bool(sent) != bool(detach)
        own = [n for n, p in both.named_parameters() if n.startswith(both.prefixes(ACTION)[0]) and p.grad is None]
        assert own == []
        both.zero_grad(set_to_none=True)


def test_what_it_cannot_do_it_says(wan):
    z, text, sigma = clip()
    trunk = VideoTrunk(WanParts(wan))
    with pytest.raises(WamkitError, match="reads one instruction, with the context"):
        trunk([video(z, sigma)])
    with pytest.raises(WamkitError, match="it has no conditioning 'adaln'"):
        trunk([video(z, sigma), Tokens(text, TEXT)], modulation=torch.zeros(B, 3, 4, 24))


def test_gradients_reach_every_weight(wan):
    z, text, sigma = clip()
    trunk = VideoTrunk(WanParts(wan))
    acts = Tokens(torch.randn(B, 2, 24), ACTION, torch.zeros(2, 3), torch.tensor([0.5]))
    outputs, _ = trunk([video(z, sigma), Tokens(text, TEXT), acts])
    sum(y.square().sum() for y in outputs).backward()
    lost = [n for n, p in wan.named_parameters() if p.grad is None]
    assert lost == [] and {id(p) for p in trunk.parameters()} == {id(p) for p in wan.parameters()}
    wan.zero_grad()
