"""Futures as latents or codes of an autoencoder: what families predict in place of pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from wamkit.nn.attention_mask import FUTURE
from wamkit.nn.autoencoders.base import Autoencoder, FutureCodec
from wamkit.nn.autoencoders.frame_codec import FrameCodec
from wamkit.nn.backbones.base import Tokens
from wamkit.nn.flow import row_noise
from wamkit.nn.heads import NoisyStream, Stream, masked_mean
from wamkit.nn.options import CodeConfig
from wamkit.nn.tokens import canvas, grid_of, image_positions, uncanvas, view_cells
from wamkit.nn.vocabulary import from_digits, join_digits, split_digits, to_digits
from wamkit.types import Batch, Spec


class FutureLatents(FutureCodec):
    """Future frames as a stream of latents: one token a cell holds the values of all frames there (F * c).

    codec: the autoencoder. A first stage trains it by `loss`; then it is frozen, and `stream` learns to predict.
    stream: the latents are denoised or queried; None for families with heads of their own.
    """

    def __init__(self, spec: Spec, codec: Autoencoder, width: int, stream: type[Stream] | None = NoisyStream):
        super().__init__()
        self.spec, self.codec, self.frames = spec, codec, len(spec.frame_offsets)
        self.grid = grid_of(spec, codec.stride)
        self.cells, self.channels = math.prod(self.grid), self.frames * codec.channels
        place = image_positions(spec, codec.stride, spec.frame_offsets[-1])
        self.stream = stream(FUTURE, self.channels, place, width) if stream else None

    def loss(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, " B"]:
        """Mean squared error, in squared units of [-1, 1] pixels times 100, of one future frame a row."""
        now = canvas(batch.obs)
        B, pick = len(batch), torch.randint(self.frames, (len(batch),), generator=generator).to(now.device)
        rows = torch.arange(B, device=now.device)
        future = canvas(batch.future[rows, pick])
        eps = torch.randn(B, self.cells, self.codec.channels, generator=generator).to(now.device)
        error = (self.codec(future.unsqueeze(1), now, eps.unsqueeze(1)).squeeze(1) - future).square()
        if batch.view_valid is not None:
            shown = view_cells(batch, (1, now.shape[-1]))[:, None, None]
            return 100 * masked_mean(error, shown) * batch.frame_valid[rows, pick]
        return 100 * error.flatten(1).mean(1) * batch.frame_valid[rows, pick]

    def encode(self, batch: Batch) -> Float[Tensor, "B L c"]:
        return self.codec.encode(canvas(batch.future), canvas(batch.obs)).transpose(1, 2).flatten(2)

    def features(self, batch: Batch) -> dict[str, Tensor]:
        return {"latents": self.encode(batch)}

    @torch.no_grad()
    def targets(self, batch: Batch) -> Float[Tensor, "B L c"]:
        """The latents, from `batch.features` if they were computed ahead, with zeros for frames beyond the episode."""
        z = batch.features["latents"] if batch.features else self.encode(batch)
        return z.masked_fill(~self.valid(batch), 0)

    def frames_of(self, z_BLc: Float[Tensor, "B L c"], obs: UInt8[Tensor, "B V 3 H W"]) -> Float[Tensor, "B F 3 H W"]:
        """Latents to frames on the canvas in about [-1, 1], with gradients, given the current ones."""
        return self.codec.decode(z_BLc.unflatten(2, (self.frames, -1)).transpose(1, 2), canvas(obs))

    def decode(self, z_BLc: Float[Tensor, "B L c"], obs: UInt8[Tensor, "B V 3 H W"]) -> UInt8[Tensor, "B F V 3 H W"]:
        return uncanvas(self.frames_of(z_BLc, obs), self.spec.views)

    def noise(self, generators: Sequence[torch.Generator], device: torch.device) -> Float[Tensor, "B L c"]:
        """The start of sampling."""
        return row_noise(generators, (self.cells, self.channels), device)

    def tokens(self, z_BLc: Tensor, sigma_B: Tensor, context: Sequence[Tokens]) -> Tokens:
        """Noisy latents to tokens. Each starts from the present image's token of its cell, so that the backbone
        predicts the change: the field's channel concatenation (UniPi, PAD), by addition."""
        return self.stream.tokens(z_BLc, sigma_B).plus(self.present(context))

    def present(self, context: Sequence[Tokens]) -> Float[Tensor, "B L D"]:
        """The present image's token (the first part of the context) at every cell of the latents."""
        x = context[0].values
        if x.shape[1] == self.cells:
            return x
        stride = math.isqrt(self.spec.height * self.spec.width * self.spec.views // x.shape[1])
        x = F.interpolate(x.transpose(1, 2).unflatten(2, grid_of(self.spec, stride)), self.grid)
        return x.flatten(2).transpose(1, 2)

    def valid(self, batch: Batch) -> Bool[Tensor, "B l c"]:
        """True for values of `encode` that are evidence: frames inside the episode, in views that the row has.

        l is 1, one for all cells, where every row has all views.
        """
        valid = batch.frame_valid.repeat_interleave(self.codec.channels, 1).unsqueeze(1)
        return valid & view_cells(batch, self.grid).unsqueeze(2)


class FutureCodes(FutureCodec):
    """Future frames as codes, `length` a frame: the rounded latents of a cell, a few at a time."""

    def __init__(self, spec: Spec, config: CodeConfig):
        super().__init__()
        size = config.cell * config.numbers // 4
        codec = FrameCodec(grid_of(spec, FrameCodec.stride), size, levels=config.levels)
        self.latents = FutureLatents(spec, codec, 0, None)
        self.config, self.cells, self.length = config, self.latents.cells, self.latents.cells * config.cell

    def loss(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, " B"]:
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
        c = self.config
        digits = split_digits(codes_BFn.unflatten(2, (-1, c.cell)).transpose(1, 2), c.levels, c.numbers)
        return self.latents.decode(from_digits(digits, c.levels).flatten(2), obs)
