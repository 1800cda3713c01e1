"""Cosmos-Predict2 (`diffusers.CosmosTransformer3DModel`) as `Parts` of the layer loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from wamkit.nn.backbones.video_dit import Parts, Rope, Times, attention


class CosmosParts(Parts):
    """The pieces of a Cosmos transformer.

    Its input, scaled as its sampler does, is our x_sigma, its time sigma, and its output our velocity: with EDM's
    sigma_e and t = sigma_e / (1 + sigma_e) it is given (1 - t) (x + sigma_e eps), from which t times its output leads
    to x.

    model: a `CosmosTransformer3DModel`, of Predict2's kind: text read as it is, no learned positions.
    fps: latent frames a second, by which its positions in time are scaled.
    """

    def __init__(self, model: Any, fps: float = 16.0):
        super().__init__()
        c = model.config
        self.model, self.fps = model, fps
        self.heads, self.width = c.num_attention_heads, c.num_attention_heads * c.attention_head_dim
        self.patch, self.text_dim = tuple(c.patch_size), c.text_embed_dim
        cell = self.patch[0] * self.patch[1] * self.patch[2]
        # Released weights also take a mask of padding, of which there is none.
        self.channels, self.padding = c.out_channels * cell, cell if c.concat_padding_mask else 0

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.transformer_blocks)

    def embed(self, patches_BLc: Tensor) -> Float[Tensor, "B L D"]:
        weight = self.model.patch_embed.proj.weight
        return self.model.patch_embed.proj(F.pad(patches_BLc.to(weight.dtype), (0, self.padding)))

    def times(self, sigma_BL: Float[Tensor, "B L"]) -> Times:
        weight = self.model.time_embed.t_embedder.linear_1.weight
        temb, embedded = self.model.time_embed(weight.new_zeros(1), sigma_BL.flatten())
        return Times(*(x.unflatten(0, sigma_BL.shape) for x in (temb, embedded)))

    def rope(self, position_BL3: Float[Tensor, "B L 3"]) -> Rope:
        table = self.model.rope
        axes = ((table.dim_t, table.t_ntk_factor), (table.dim_h, table.h_ntk_factor), (table.dim_w, table.w_ntk_factor))
        angles = []
        for i, (size, factor) in enumerate(axes):
            step = torch.arange(0, size, 2, dtype=torch.float32, device=position_BL3.device) / size
            at = position_BL3[..., i : i + 1]
            angles.append((at / self.fps * table.base_fps if i == 0 else at) * (1.0 / (10_000.0 * factor) ** step))
        angle = torch.cat(angles * 2, -1).unsqueeze(2)
        return angle.cos(), angle.sin()

    def text(self, features_BTc: Tensor) -> Tensor:
        return features_BTc.to(self.model.proj_out.weight.dtype)

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


def turned(x: Tensor, rope: Rope) -> Tensor:
    """Queries or keys (B, L, heads, d), turned by halves."""
    a, b = x.chunk(2, -1)
    return (x.float() * rope[0] + torch.cat([-b, a], -1).float() * rope[1]).to(x.dtype)
