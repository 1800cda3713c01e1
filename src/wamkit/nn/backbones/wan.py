"""Wan2.1 and Wan2.2 (`diffusers.WanTransformer3DModel`) as `Parts` of the layer loop."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from wamkit.config import ConfigError
from wamkit.nn.backbones.video_dit import Beside, Parts, Rope, Times, attention
from wamkit.nn.backbones.video_model import VIDEO_MODELS, VideoModel
from wamkit.nn.options import BackboneConfig


class WanParts(Parts):
    """The pieces of a Wan transformer. Its time is 1000 times our noise level, its velocity ours.

    model: a `WanTransformer3DModel` for text to video, or TI2V-5B.
    acts: noise levels of actions, which are among its tokens, have an embedding of their own, which begins as a copy
        (LingBot-VA).
    numbers: positions of actions are numbers, and turn the whole head by one axis (DreamZero).
    images: features of an image that stand before those of a text, where the model has an image branch.
    """

    def __init__(self, model: Any, acts: bool = False, numbers: bool = False, images: int = 0):
        super().__init__()
        c = model.config
        self.model = model
        self.heads, head = c.num_attention_heads, c.attention_head_dim
        self.width, self.text_dim = self.heads * head, c.text_dim
        self.patch = tuple(c.patch_size)
        self.channels = c.in_channels * self.patch[0] * self.patch[1] * self.patch[2]
        self.axes, self.numbers, self.images = rope_axes(head), numbers, images
        self.acting: Any = None
        if acts:
            self.acting = copy.deepcopy(self.embedder)
            del self.acting.text_embedder
            self.acting.requires_grad_(True)

    @property
    def embedder(self) -> Any:
        return self.model.condition_embedder

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.blocks)

    def embed(self, patches_BLc: Tensor, given: bool = False) -> Float[Tensor, "B L D"]:
        weight = self.model.patch_embedding.weight.flatten(1)
        return F.linear(patches_BLc.to(weight.dtype), weight, self.model.patch_embedding.bias)

    def embed_levels(self, embedder: Any, sigma_BL: Float[Tensor, "B L"]) -> Times:
        t = embedder.timesteps_proj((1000 * sigma_BL).flatten()).unflatten(0, sigma_BL.shape)
        temb = embedder.time_embedder(t.to(embedder.time_embedder.linear_1.weight.dtype))
        return Times(temb, embedder.time_proj(embedder.act_fn(temb)).unflatten(2, (6, -1)))

    def rope(self, position_BL3: Float[Tensor, "B L 3"]) -> Rope:
        grid = wan_rope(position_BL3, self.axes)
        if not self.numbers:
            return grid
        alone = (position_BL3[..., 1:2] < 0).unsqueeze(-1)
        number = wan_rope(position_BL3, (sum(self.axes),))
        return torch.where(alone, number[0], grid[0]), torch.where(alone, number[1], grid[1])

    def text(self, features_BTc: Tensor) -> Float[Tensor, "B T D"]:
        embedder = self.embedder.text_embedder
        features = features_BTc.to(embedder.linear_1.weight.dtype)
        if not self.images:
            return embedder(features)
        image, words = features[:, : self.images], features[:, self.images :]
        size = self.model.config.image_dim
        return torch.cat([self.embedder.image_embedder(image[..., :size]), embedder(words[..., : self.text_dim])], 1)

    def text_keys(self, block: nn.Module, text_BTD: Tensor) -> tuple[Tensor, Tensor]:
        a: Any = block.attn2
        image, words = text_BTD[:, : self.images], text_BTD[:, self.images :]
        k, v = a.norm_k(a.to_k(words)), a.to_v(words)
        if self.images:
            k = torch.cat([a.norm_added_k(a.add_k_proj(image)), k], 1)
            v = torch.cat([a.add_v_proj(image), v], 1)
        return k.unflatten(2, (a.heads, -1)), v.unflatten(2, (a.heads, -1))

    def qkv(self, block: Any, x_BLD: Tensor, times: Times, rope: Rope) -> tuple[Tensor, Tensor, Tensor, Any]:
        a = block.attn1
        mod = [p.squeeze(2) for p in (block.scale_shift_table.unsqueeze(0) + times.block.float()).chunk(6, 2)]
        h = (block.norm1(x_BLD.float()) * (1 + mod[1]) + mod[0]).type_as(x_BLD)
        q, k, v = (t.unflatten(2, (a.heads, -1)) for t in (a.norm_q(a.to_q(h)), a.norm_k(a.to_k(h)), a.to_v(h)))
        return turned(q, rope), turned(k, rope), v, mod

    def rest(self, block: Any, x_BLD: Tensor, y_BLD: Tensor, kept: Any, text: tuple[Tensor, Tensor]) -> Tensor:
        x, mod, cross = x_BLD, kept, block.attn2
        x = (x.float() + block.attn1.to_out[0](y_BLD.type_as(x)) * mod[2]).type_as(x)
        h = block.norm2(x.float()).type_as(x)
        q = cross.norm_q(cross.to_q(h)).unflatten(2, (cross.heads, -1))
        read = attention(q, *(t[:, self.images :] for t in text))
        if self.images:
            read = read + attention(q, *(t[:, : self.images] for t in text))
        x = x + cross.to_out[0](read.type_as(x))
        h = (block.norm3(x.float()) * (1 + mod[4]) + mod[3]).type_as(x)
        return (x.float() + block.ffn(h).float() * mod[5]).type_as(x)

    def norm(self, x_BLD: Tensor, times: Times) -> Float[Tensor, "B L D"]:
        table = self.model.scale_shift_table.unsqueeze(0) + times.temb.unsqueeze(2)
        shift, scale = (p.squeeze(2) for p in table.chunk(2, 2))
        return (self.model.norm_out(x_BLD.float()) * (1 + scale) + shift).type_as(x_BLD)

    def head(self, x_BLD: Tensor) -> Float[Tensor, "B L c"]:
        # The head's order is (patch, channel), that of patches (channel, patch).
        return self.model.proj_out(x_BLD).unflatten(-1, (*self.patch, -1)).movedim(-1, -4).flatten(-4)


class WanExpert(Beside, WanParts):
    """A narrower expert beside a Wan transformer, whose attention it shares: its tokens are no video.

    Blocks are Wan's own, with projections to the shared attention; freshly initialised.
    width: D of its tokens.   ffn: width inside its blocks.
    index: positions are numbers, and turn the whole head by one axis (Fast-WAM).
    """

    def __init__(self, beside: WanParts, width: int, ffn: int, index: bool = False):
        from diffusers.models.transformers.transformer_wan import (
            WanAttention,
            WanTimeTextImageEmbedding,
            WanTransformerBlock,
        )

        nn.Module.__init__(self)
        c = beside.model.config
        self.heads, self.width, self.text_dim, self.acting = beside.heads, width, beside.text_dim, None
        self.axes, self.numbers, self.images = (c.attention_head_dim,) if index else beside.axes, False, 0
        shared: dict[str, Any] = {"heads": self.heads, "dim_head": c.attention_head_dim, "eps": c.eps}
        blocks = []
        for _ in range(c.num_layers):
            block = WanTransformerBlock(width, ffn, 1, c.qk_norm, c.cross_attn_norm, c.eps)
            block.attn1 = WanAttention(width, **shared)
            block.attn2 = WanAttention(width, cross_attention_dim_head=c.attention_head_dim, **shared)
            blocks.append(block)
        self.model = nn.ModuleDict(
            {
                "blocks": nn.ModuleList(blocks),
                "condition_embedder": WanTimeTextImageEmbedding(width, c.freq_dim, 6 * width, c.text_dim),
            }
        )

    @property
    def embedder(self) -> Any:
        return self.model["condition_embedder"]


@VIDEO_MODELS.register("wan")
class WanModel(VideoModel):
    """Wan2.1 text to video, and Wan2.2-TI2V-5B."""

    kind = "WanTransformer3DModel"

    def image_branch(self) -> dict[str, Any]:
        return {"image_dim": self.image_dim, "added_kv_proj_dim": self.width} if self.image_tokens else {}

    def describe(self, model: nn.Module, config: BackboneConfig, acts: bool = False) -> WanParts:
        own = acts and config.action_encoder == "linear"
        parts = WanParts(model, own, acts and config.action_rope == "index", self.image_tokens)
        parts.plain = acts and not own
        return parts

    def expert(self, beside: Parts, width: int, config: BackboneConfig) -> WanExpert:
        if config.image_encoder:
            raise ConfigError("an expert beside a video model has no image branch: leave out backbone.image_encoder")
        return WanExpert(cast(WanParts, beside), width, config.expert_mlp, config.action_rope == "index")

    def rope(self, position: Float[Tensor, "... L 3"]) -> Rope:
        return wan_rope(position, rope_axes(self.config["attention_head_dim"]))

    def turn(self, x: Tensor, rope: Rope) -> Tensor:
        return turned(x, rope)


def rope_axes(head: int) -> tuple[int, int, int]:
    """Sizes of the parts of a head that frames, rows and columns turn."""
    side = head // 6 * 2
    return head - 2 * side, side, side


def wan_rope(position: Float[Tensor, "... L 3"], axes: Sequence[int]) -> Rope:
    """Wan's rotary embedding at any real position. axes: sizes of the parts of a head, for the first positions."""
    angles = []
    for i, size in enumerate(axes):
        step = torch.arange(0, size, 2, dtype=torch.float64, device=position.device) / size
        angles.append(position[..., i : i + 1].double() / 10_000.0**step)
    angle = torch.cat(angles, -1).repeat_interleave(2, -1).unsqueeze(-2)
    return angle.cos().float(), angle.sin().float()


def turned(x: Tensor, rope: Rope) -> Tensor:
    """Queries or keys (..., L, heads, d), turned by pairs."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rope[0][..., 0::2], rope[1][..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).type_as(x)


def patches(z_BcFHW: Tensor, patch: tuple[int, int, int]) -> Float[Tensor, "B L c"]:
    """Latents of a video to patches, frame by frame and row by row; the values of a patch in the order (c, t, y, x)."""
    B, c, *size = z_BcFHW.shape
    (f, h, w), (a, b, d) = (n // p for n, p in zip(size, patch, strict=True)), patch
    return z_BcFHW.view(B, c, f, a, h, b, w, d).permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)


def unpatched(x_BLc: Tensor, grid: tuple[int, int, int], patch: tuple[int, int, int]) -> Tensor:
    """The inverse of `patches`. grid: frames, rows and columns of patches."""
    x = x_BLc.view(len(x_BLc), *grid, -1, *patch).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def grid_positions(frames: Tensor, rows: int, columns: int) -> Float[Tensor, "L 3"]:
    """Positions of the patches of latent frames at the times `frames`."""
    axes = (frames.float(), torch.arange(rows).float(), torch.arange(columns).float())
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)
