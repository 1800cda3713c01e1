"""A frame codec that writes down only what changes: latents of a future frame given the current one.

In a manipulation scene the background stands still. A decoder that is shown the current frame need not redraw it, and one
that knows where in the picture it is (a learned map) can fill in what the arm uncovers, so a few numbers a cell suffice
for the rest and what is copied stays sharp. encode(future, current) -> latents of unit scale, one token for each 16x16
pixels; decode(latents, current) -> picture. With `levels`, latents are bounded and rounded (finite scalar quantisation,
arXiv:2309.15505), so that a few of them together are one of finitely many codes: an image token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import inf

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from wamkit.config import ConfigError, check_bounds
from wamkit.nn.autoencoders.base import FutureCodec
from wamkit.nn.heads import NoisyStream, masked_mean
from wamkit.nn.tokens import Downsample, canvas, cells_of, uncanvas
from wamkit.nn.vocabulary import from_digits, join_digits, split_digits, to_digits
from wamkit.types import Batch, Spec


class FrameCodec(nn.Module):
    """See the module's docstring.

    grid: (rows, columns) of 16x16-pixel cells.   channels: latent numbers an 8x8-pixel cell; a token holds four of these.
    noise: deviation of the noise that training adds to latents, which makes the decoder tolerant of the errors that a
    generative model will make in them.   levels: 0, or how many values, evenly spaced over [-1, 1], a number can take.
    """

    def __init__(self, grid: tuple[int, int], channels: int = 8, width: int = 64, noise: float = 0.1, levels: int = 0):
        super().__init__()
        self.grid, self.channels, self.noise, self.levels = grid, 4 * channels, 0.0 if levels else noise, levels
        self.patch = nn.Conv2d(6, 48, 4, stride=4)
        self.encoder = nn.Sequential(
            Downsample(48, 64), nn.Conv2d(64, 64, 3, padding=1), nn.SiLU(), nn.Conv2d(64, channels, 1)
        )
        self.now16, self.now8 = nn.Conv2d(3, width, 4, stride=4), Downsample(width, 64)
        self.place16 = nn.Parameter(torch.zeros(1, width, 4 * grid[0], 4 * grid[1]))
        self.place8 = nn.Parameter(torch.zeros(1, 64, 2 * grid[0], 2 * grid[1]))
        self.up8, self.mix8 = nn.Conv2d(channels + 64, 96, 3, padding=1), nn.Conv2d(96, 96, 3, padding=1)
        self.squeeze = nn.Conv2d(96, width // 2, 1)
        self.up16, self.mix16 = (
            nn.Conv2d(width // 2 + width, width, 3, padding=1),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.norm8, self.norm16 = nn.GroupNorm(8, 96), nn.GroupNorm(8, width)
        self.out = nn.Conv2d(width, 4 * 16, 3, padding=1)
        self.to(memory_format=torch.channels_last)

    def encode(self, future: Float[Tensor, "B 3 H W"], current: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B L c"]:
        """Pictures in [-1, 1] -> latents (B, tokens, channels), each token normalised to mean 0 and deviation 1, or rounded
        to `levels` values in [-1, 1], with the gradient of what is rounded (straight through)."""
        pair = torch.cat([future, current], 1).contiguous(memory_format=torch.channels_last)
        z = F.pixel_unshuffle(self.encoder(F.silu(self.patch(pair))).float(), 2)
        z = z.flatten(2).transpose(1, 2)
        if not self.levels:
            return F.layer_norm(z, (self.channels,))
        z = torch.tanh(z)
        return z + (from_digits(to_digits(z, self.levels), self.levels) - z).detach()

    def decode(self, z_BLc: Float[Tensor, "B L c"], current: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Latents and the current picture in [-1, 1] -> the future picture, in about [-1, 1]."""
        now16 = F.silu(self.now16(current.contiguous(memory_format=torch.channels_last)) + self.place16)
        now8 = self.now8(now16) + self.place8
        z = F.pixel_shuffle(z_BLc.transpose(1, 2).unflatten(2, self.grid), 2)
        x = F.silu(self.norm8(self.up8(torch.cat([z, now8], 1))))
        x = self.squeeze(x + F.silu(self.mix8(x)))
        x = F.silu(self.norm16(self.up16(torch.cat([F.interpolate(x, scale_factor=2), now16], 1))))
        x = x + F.silu(self.mix16(x))
        picture, keep = F.pixel_shuffle(self.out(x).float(), 4).split([3, 1], 1)
        # Starts out as a copy of the current frame, which is already right for most pixels.
        return torch.lerp(picture, current, torch.sigmoid(keep + 2))

    def forward(self, future: Tensor, current: Tensor, eps: Tensor) -> Tensor:
        """The reconstruction through noisy latents; `eps` is standard normal noise (B, L, c)."""
        return self.decode(self.encode(future, current) + self.noise * eps, current)


class FutureLatents(FutureCodec):
    """Future frames as a stream of codec latents: one token a cell holds all its frames' numbers (F * c).

    `codec` is trained first, by `loss`; then it is frozen and `stream` (denoised or queried; None for families with heads
    of their own) learns to imagine what it writes down.
    """

    def __init__(
        self, spec: Spec, width: int, channels: int, stream: type[nn.Module] | None = NoisyStream, levels: int = 0
    ):
        super().__init__()
        self.spec, self.frames, self.cells = spec, len(spec.frame_offsets), cells_of(spec)
        self.codec = FrameCodec((spec.height // 16, spec.width * spec.views // 16), channels, levels=levels)
        self.channels = self.frames * self.codec.channels
        self.stream = stream(self.channels, self.cells, width) if stream else None

    def loss(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, " B"]:
        """The codec's mean squared error, in squared units of [-1, 1] pixels times 100, of one future frame a row."""
        now = canvas(batch.obs)
        B, pick = len(batch), torch.randint(self.frames, (len(batch),), generator=generator).to(now.device)
        rows = torch.arange(B, device=now.device)
        future = canvas(batch.future[rows, pick])
        eps = torch.randn(B, self.cells, self.codec.channels, generator=generator).to(now.device)
        error = (self.codec(future, now, eps) - future).square()
        if batch.view_valid is not None:
            shown = batch.view_valid.repeat_interleave(self.spec.width, 1)[:, None, None]
            return 100 * masked_mean(error, shown) * batch.frame_valid[rows, pick]
        return 100 * error.flatten(1).mean(1) * batch.frame_valid[rows, pick]

    def encode(self, batch: Batch) -> Float[Tensor, "B L c"]:
        """The latents of `batch.future`."""
        B, F_ = batch.future.shape[:2]
        now = canvas(batch.obs).repeat_interleave(F_, 0)
        z = self.codec.encode(canvas(batch.future).flatten(0, 1), now)
        return z.unflatten(0, (B, F_)).transpose(1, 2).flatten(2)

    def features(self, batch: Batch) -> dict[str, Tensor]:
        return {"latents": self.encode(batch)}

    @torch.no_grad()
    def known(self, batch: Batch) -> Float[Tensor, "B L c"]:
        """The latents, from `batch.features` if they were made ahead, with zeros for frames beyond the episode."""
        z = batch.features["latents"] if batch.features else self.encode(batch)
        return z.masked_fill(~self.valid(batch), 0)

    def decode(self, z_BLc: Float[Tensor, "B L c"], obs: UInt8[Tensor, "B V 3 H W"]) -> UInt8[Tensor, "B F V 3 H W"]:
        """Latents to pictures, given the current ones."""
        z = z_BLc.unflatten(2, (self.frames, -1)).transpose(1, 2).flatten(0, 1)
        picture = self.codec.decode(z, canvas(obs).repeat_interleave(self.frames, 0))
        return uncanvas(picture.unflatten(0, (len(obs), self.frames)), self.spec.views)

    def tokens(self, z_BLc: Tensor, sigma_B: Tensor, context_BLD: Float[Tensor, "B K D"]) -> Float[Tensor, "B L D"]:
        """Noisy latents to tokens. Each starts from the present picture's token of its cell (the first of the context),
        so that the trunk works out what changes: the field's channel concatenation (UniPi, PAD), by addition."""
        return self.stream.tokens(z_BLc, sigma_B) + context_BLD[:, : self.cells]

    def valid(self, batch: Batch) -> Bool[Tensor, "B l c"]:
        """Which numbers of `encode` are evidence: frames inside the episode, in cells of views that the row's robot has (one l
        for all where every robot has all views)."""
        valid = batch.frame_valid.repeat_interleave(self.codec.channels, 1).unsqueeze(1)
        if batch.view_valid is None:
            return valid
        cells = batch.view_valid.repeat_interleave(self.spec.width // 16, 1).repeat(1, self.spec.height // 16)
        return valid & cells.unsqueeze(2)


@dataclass(frozen=True)
class CodeConfig:
    """How a future frame is written in codes: `cell` of them for each 16x16 pixels, each one of levels ** numbers."""

    cell: int = 1
    """Codes a 16x16-pixel cell and frame."""
    numbers: int = 4
    """Latent numbers that a code names together."""
    levels: int = 6
    """Values that each of them can take."""

    def __post_init__(self) -> None:
        check_bounds(self, cell=(1, inf), numbers=(1, inf), levels=(2, inf))
        if (count := self.cell * self.numbers) % 4:
            near = 4 * math.ceil(count / 4)
            raise ConfigError(
                f"cell * numbers = {count}: must be a multiple of 4 (the codec's cells), {near} for example"
            )
        if self.size > 2**16:
            raise ConfigError(
                f"levels ** numbers = {self.levels} ** {self.numbers} codes: must be at most {2**16}; take fewer levels, or "
                "more codes of fewer numbers"
            )

    @property
    def size(self) -> int:
        """How many codes there are."""
        return self.levels**self.numbers


class FutureCodes(FutureCodec):
    """Future frames as codes, `length` a frame: the rounded latents of a cell, a few at a time (finite scalar quantisation)."""

    def __init__(self, spec: Spec, config: CodeConfig):
        super().__init__()
        self.latents = FutureLatents(spec, 0, config.cell * config.numbers // 4, None, config.levels)
        self.config, self.cells, self.length = config, self.latents.cells, self.latents.cells * config.cell

    def loss(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, " B"]:
        """As `FutureLatents.loss`."""
        return self.latents.loss(batch, generator)

    @torch.no_grad()
    def encode(self, batch: Batch) -> Int[Tensor, "B F n"]:
        """The codes of `batch.future`, cell by cell in rows."""
        c = self.config
        with torch.autocast(batch.obs.device.type, enabled=False):  # no code may depend on the precision of training
            z = self.latents.encode(batch).unflatten(2, (-1, c.cell, c.numbers))
        return join_digits(to_digits(z, c.levels), c.levels).transpose(1, 2).flatten(2)

    def features(self, batch: Batch) -> dict[str, Tensor]:
        return {"codes": self.encode(batch)}

    def decode(self, codes_BFn: Int[Tensor, "B F n"], obs: UInt8[Tensor, "B V 3 H W"]) -> UInt8[Tensor, "B F V 3 H W"]:
        """Codes to pictures, given the current ones."""
        c = self.config
        digits = split_digits(codes_BFn.unflatten(2, (-1, c.cell)).transpose(1, 2), c.levels, c.numbers)
        return self.latents.decode(from_digits(digits, c.levels).flatten(2), obs)
