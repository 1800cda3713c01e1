"""From raw inputs to tokens: pictures, proprioception, instructions, and the normalisation of numbers."""

from __future__ import annotations

import re
import zlib
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from wamkit.nn.normalizer import Normalizer
from wamkit.types import Batch, Spec


def canvas(images: UInt8[Tensor, "... V 3 H W"]) -> Float[Tensor, "... 3 H VW"]:
    """Tiles the views side by side and maps uint8 to [-1, 1], so that no family needs view logic."""
    *lead, V, C, H, W = images.shape
    tiled = images.movedim(-4, -2).reshape(*lead, C, H, V * W)
    return tiled.float().mul_(1 / 127.5).sub_(1)


def uncanvas(picture: Float[Tensor, "... 3 H VW"], views: int) -> UInt8[Tensor, "... V 3 H W"]:
    """The inverse of `canvas`, rounding to the nearest of 256 levels and clipping."""
    *lead, C, H, VW = picture.shape
    levels = picture.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.reshape(*lead, C, H, views, VW // views).movedim(-2, -4)


def cells_of(spec: Spec) -> int:
    """How many 16x16-pixel cells the canvas of `spec` has: the picture tokens of one frame."""
    return (spec.height // 16) * (spec.width * spec.views // 16)


def context_length(spec: Spec) -> int:
    """How many tokens `ContextTokens` makes of one observation and its past."""
    return (1 + len(spec.past_offsets)) * (cells_of(spec) + 1) + 1


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2, group norm and SiLU: (B, c_in, H, W) -> (B, c_out, H/2, W/2)."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(8, c_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.conv(x)))


class ImageTokens(nn.Module):
    """The current frame as a grid of tokens, one for each 16x16 pixels: (B, 3, H, W) -> (B, H/16 * W/16, D)."""

    def __init__(self, width: int, channels: tuple[int, int] = (48, 96)):
        super().__init__()
        self.patch = nn.Conv2d(3, channels[0], 4, stride=4)
        self.down = Downsample(*channels)
        self.last = nn.Conv2d(channels[1], width, 3, stride=2, padding=1)
        self.to(memory_format=torch.channels_last)

    def forward(self, picture_BCHW: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B L D"]:
        x = F.silu(self.patch(picture_BCHW.contiguous(memory_format=torch.channels_last)))
        return self.last(self.down(x)).flatten(2).transpose(1, 2)


@lru_cache(maxsize=65536)
def ngram_ids(text: str, buckets: int) -> tuple[int, ...]:
    """Bucket ids of an instruction's words and word pairs: lower-cased, hashed with CRC-32, so any text has ids.

    Pairs keep word order: "red on blue" and "blue on red" differ. The text has no ids only if it has no letter or digit.
    """
    words = re.findall(r"[^\W_]+", text.lower())
    grams = [*words, *(f"{a} {b}" for a, b in zip(words, words[1:], strict=False))]
    return tuple(zlib.crc32(g.encode()) % buckets for g in grams)


class TextTable(nn.Module):
    """Instructions as one token each: the mean of learned n-gram embeddings (fastText, arXiv:1607.01759) -> (B, 1, D)."""

    def __init__(self, width: int, buckets: int = 4096):
        super().__init__()
        self.buckets = buckets
        self.table = nn.EmbeddingBag(buckets, width, mode="mean")
        self.project = nn.Linear(width, width)

    def forward(self, texts: list[str]) -> Float[Tensor, "B 1 D"]:
        ids = [ngram_ids(t, self.buckets) for t in texts]
        offsets = torch.tensor([0, *(len(i) for i in ids[:-1])]).cumsum(0)
        flat = torch.tensor([j for i in ids for j in i], dtype=torch.int64)
        device = self.table.weight.device
        return self.project(self.table(flat.to(device), offsets.to(device))).unsqueeze(1)


class ContextTokens(nn.Module):
    """What is known, as tokens: picture grid, proprioception and instruction now, then pictures and proprioception of the
    past, if the spec has one -> (B, (1 + P) (cells + 1) + 1, D), the cells of the present picture first.

    `proprio_noise` is the deviation, in normalised units, of the noise that training adds to proprioception: without it
    a policy reads its own trajectory off the joints and stops looking.
    """

    def __init__(self, width: int, spec: Spec, text: nn.Module, proprio_noise: float = 0.0):
        super().__init__()
        self.image, self.text = ImageTokens(width), text
        self.proprio = nn.Linear(spec.proprio_dim, width)
        self.grid = nn.Parameter(0.5 * torch.randn(cells_of(spec), width))
        self.spec, self.proprio_noise = spec, proprio_noise
        if spec.past_offsets:
            self.age = nn.Parameter(0.5 * torch.randn(len(spec.past_offsets), 1, width))
            self.before = nn.Parameter(torch.zeros(width))  # in place of what was seen, where nothing was yet

    def forward(
        self, batch: Batch, normalizer: Normalizer, generator: torch.Generator | None = None
    ) -> Float[Tensor, "B L D"]:
        """Noise is added to proprioception only where a generator is given, as training does."""
        now = torch.cat([self._seen(batch.obs, normalizer, batch.proprio, generator), self.text(batch.text)], 1)
        if not self.spec.past_offsets:
            return now
        past = self._seen(batch.past, normalizer, batch.past_proprio, generator)
        past = torch.where(batch.past_valid[..., None, None], past, self.before) + self.age
        return torch.cat([now, past.flatten(1, 2)], 1)

    def moments(
        self, batch: Batch, normalizer: Normalizer, generator: torch.Generator | None = None
    ) -> Float[Tensor, "B M L D"]:
        """Each moment by itself, the present first, then those of the past unless they are remembered: picture grid,
        proprioception and, for every one, the present instruction."""
        images, proprio = batch.obs.unsqueeze(1), batch.proprio.unsqueeze(1)
        if batch.memory is None:
            images, proprio = torch.cat([images, batch.past], 1), torch.cat([proprio, batch.past_proprio], 1)
        seen = self._seen(images, normalizer, proprio, generator)
        text = self.text(batch.text).unsqueeze(1)
        return torch.cat([seen, text.expand(-1, seen.shape[1], -1, -1)], 2)

    def _seen(
        self, images: Tensor, normalizer: Normalizer, proprio: Tensor, generator: torch.Generator | None
    ) -> Float[Tensor, "... L D"]:
        """Pictures (..., V, 3, H, W) and proprioception (..., s) as tokens (..., cells + 1, D)."""
        proprio = normalizer.encode("proprio", proprio)
        if generator is not None and self.proprio_noise > 0:
            eps = torch.randn(proprio.shape, generator=generator).to(proprio.device)
            proprio = proprio + self.proprio_noise * eps
        lead = proprio.shape[:-1]
        pictures = canvas(images)
        cells = self.image(pictures.reshape(-1, *pictures.shape[-3:])).unflatten(0, lead) + self.grid
        return torch.cat([cells, self.proprio(proprio).unsqueeze(-2)], -2)
