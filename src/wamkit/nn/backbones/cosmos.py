"""Cosmos-Predict2 (`diffusers.CosmosTransformer3DModel`) as `Parts` of the layer loop."""

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


class CosmosParts(Parts):
    """The pieces of a Cosmos transformer.

    Its input, scaled as its sampler does, is our x_sigma, its time sigma, and its output our velocity: with EDM's
    sigma_e and t = sigma_e / (1 + sigma_e) it is given (1 - t) (x + sigma_e eps), from which t times its output leads
    to x.

    model: a `CosmosTransformer3DModel`, of Predict2's kind: text read as it is, no learned positions.
    acts: as in `WanParts`.
    """

    def __init__(self, model: Any, acts: bool = False):
        super().__init__()
        c = model.config
        self.model = model
        self.heads, self.width = c.num_attention_heads, c.num_attention_heads * c.attention_head_dim
        self.patch, self.text_dim = tuple(c.patch_size), c.text_embed_dim
        cell = self.patch[0] * self.patch[1] * self.patch[2]
        # Released weights also take a mask of padding, of which there is none.
        self.channels, self.padding = c.out_channels * cell, cell if c.concat_padding_mask else 0
        self.told = (c.in_channels - c.out_channels) * cell
        self.rotary = model.rope
        self.acting = copy.deepcopy(model.time_embed).requires_grad_(True) if acts else None

    @property
    def embedder(self) -> Any:
        return self.model.time_embed

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.transformer_blocks)

    def embed(self, patches_BLc: Tensor, given: bool = False) -> Float[Tensor, "B L D"]:
        x = patches_BLc.to(self.model.patch_embed.proj.weight.dtype)
        x = F.pad(x, (0, self.told), value=float(given))
        return self.model.patch_embed.proj(F.pad(x, (0, self.padding)))

    def embed_levels(self, embedder: Any, sigma_BL: Float[Tensor, "B L"]) -> Times:
        weight = embedder.t_embedder.linear_1.weight
        temb, embedded = embedder(weight.new_zeros(1), sigma_BL.flatten())
        return Times(*(x.unflatten(0, sigma_BL.shape) for x in (temb, embedded)))

    def rope(self, position_BL3: Float[Tensor, "B L 3"]) -> Rope:
        return cosmos_rope(position_BL3, self.rotary)

    def text(self, features_BTc: Tensor) -> Tensor:
        return features_BTc.to(self.embedder.t_embedder.linear_1.weight.dtype)

    def text_keys(self, block: Any, text_BTD: Tensor) -> tuple[Tensor, Tensor]:
        a = block.attn2
        k, v = (t.unflatten(2, (a.heads, -1)) for t in (a.to_k(text_BTD), a.to_v(text_BTD)))
        return a.norm_k(k), v

    def qkv(self, block: Any, x_BLD: Tensor, times: Times, rope: Rope) -> tuple[Tensor, Tensor, Tensor, Any]:
        a = block.attn1
        h, gate = block.norm1(x_BLD, times.block, times.temb)
        q, k, v = (t.unflatten(2, (a.heads, -1)) for t in (a.to_q(h), a.to_k(h), a.to_v(h)))
        return turned(a.norm_q(q), rope), turned(a.norm_k(k), rope), v, (gate, times)

    def rest(self, block: Any, x_BLD: Tensor, y_BLD: Tensor, kept: Any, text: tuple[Tensor, Tensor]) -> Tensor:
        (gate, times), cross = kept, block.attn2
        x = x_BLD + gate * block.attn1.to_out[0](y_BLD)
        h, gate = block.norm2(x, times.block, times.temb)
        q = cross.norm_q(cross.to_q(h).unflatten(2, (cross.heads, -1)))
        x = x + gate * cross.to_out[0](attention(q, *text))
        h, gate = block.norm3(x, times.block, times.temb)
        return x + gate * block.ff(h)

    def norm(self, x_BLD: Tensor, times: Times) -> Float[Tensor, "B L D"]:
        return self.model.norm_out(x_BLD, times.block, times.temb)

    def head(self, x_BLD: Tensor) -> Float[Tensor, "B L c"]:
        # The head's order is (row, column, time, channel), that of patches (channel, time, row, column).
        y = self.model.proj_out(x_BLD).unflatten(-1, (*self.patch[1:], self.patch[0], -1))
        return y.movedim((-1, -2), (-4, -3)).flatten(-4)


class CosmosExpert(Beside, CosmosParts):
    """A narrower expert beside a Cosmos transformer, whose attention it shares: its tokens are no video.

    Blocks are Cosmos' own, with projections to the shared attention; freshly initialised.
    width: D of its tokens.   mlp: width inside its blocks.
    """

    def __init__(self, beside: CosmosParts, width: int, mlp: int):
        from diffusers.models.attention_processor import Attention
        from diffusers.models.transformers.transformer_cosmos import CosmosEmbedding, CosmosTransformerBlock

        nn.Module.__init__(self)
        c = beside.model.config
        self.heads, self.width, self.text_dim, self.rotary = beside.heads, width, beside.text_dim, beside.rotary
        self.acting = None
        shared: dict[str, Any] = {
            "heads": self.heads,
            "dim_head": c.attention_head_dim,
            "qk_norm": "rms_norm",
            "elementwise_affine": True,
            "out_bias": False,
        }
        blocks = []
        for _ in range(c.num_layers):
            block = CosmosTransformerBlock(1, width, c.text_embed_dim, mlp / width, c.adaln_lora_dim)
            block.attn1 = Attention(width, **shared)
            block.attn2 = Attention(width, cross_attention_dim=c.text_embed_dim, **shared)
            blocks.append(block)
        self.model = nn.ModuleDict({"blocks": nn.ModuleList(blocks), "time_embed": CosmosEmbedding(width, width)})

    @property
    def embedder(self) -> Any:
        return self.model["time_embed"]


@VIDEO_MODELS.register("cosmos")
class CosmosModel(VideoModel):
    """Cosmos-Predict2, with the autoencoder of Wan2.1 and T5."""

    kind = "CosmosTransformer3DModel"
    more_channels = (0, 1)  # Video2World is told which frames are given

    def describe(self, model: nn.Module, config: BackboneConfig, acts: bool = False) -> CosmosParts:
        if acts and config.action_rope == "index":
            raise ConfigError("action_rope index is Wan's: choose grid or frame on Cosmos")
        parts = CosmosParts(model, acts and config.action_encoder == "linear")
        parts.plain = acts and config.action_encoder == "groot"
        return parts

    def expert(self, beside: Parts, width: int, config: BackboneConfig) -> CosmosExpert:
        if config.action_rope == "index":
            raise ConfigError("action_rope index is Fast-WAM's, beside Wan: choose grid beside Cosmos")
        return CosmosExpert(cast(CosmosParts, beside), width, config.expert_mlp)

    def rope(self, position: Float[Tensor, "... L 3"]) -> Rope:
        from diffusers.models.transformers.transformer_cosmos import CosmosRotaryPosEmbed

        scale = tuple(self.config["rope_scale"])
        return cosmos_rope(position, CosmosRotaryPosEmbed(self.config["attention_head_dim"], rope_scale=scale))

    def turn(self, x: Tensor, rope: Rope) -> Tensor:
        return turned(x, rope)


FPS = 16.0
"""Frames a second by which positions in time are scaled: those that its sampler takes by default."""


def cosmos_rope(position: Float[Tensor, "... L 3"], table: Any) -> Rope:
    """The rotary embedding of Cosmos at any real position. table: a `CosmosRotaryPosEmbed`."""
    axes = ((table.dim_t, table.t_ntk_factor), (table.dim_h, table.h_ntk_factor), (table.dim_w, table.w_ntk_factor))
    angles = []
    for i, (size, factor) in enumerate(axes):
        step = torch.arange(0, size, 2, dtype=torch.float32, device=position.device) / size
        at = position[..., i : i + 1]
        angles.append((at / FPS * table.base_fps if i == 0 else at) * (1.0 / (10_000.0 * factor) ** step))
    angle = torch.cat(angles * 2, -1).unsqueeze(-2)
    return angle.cos(), angle.sin()


def turned(x: Tensor, rope: Rope) -> Tensor:
    """Queries or keys (..., L, heads, d), turned by halves."""
    a, b = x.chunk(2, -1)
    return (x.float() * rope[0] + torch.cat([-b, a], -1).float() * rope[1]).to(x.dtype)
