"""Ends of the trunk: how a noisy stream gets in, and how its velocity comes out."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.nn.backbones.transformer import sigma_features
from wamkit.nn.normalizer import Normalizer
from wamkit.types import Batch, Spec


class GivenStream(nn.Module):
    """A stream that is never noisy and never wanted: `length` tokens with `channels` numbers each, embedded."""

    def __init__(self, channels: int, length: int, width: int):
        super().__init__()
        self.embed = nn.Linear(channels, width)
        self.position = nn.Parameter(0.5 * torch.randn(length, width))

    def tokens(self, x_BLc: Float[Tensor, "B L c"]) -> Float[Tensor, "B L D"]:
        """Values to tokens that know their position."""
        return self.embed(x_BLc) + self.position


class QueryStream(nn.Module):
    """A stream that is never shown: `length` learned queries, each of which reads `channels` numbers out of the trunk."""

    def __init__(self, channels: int, length: int, width: int):
        super().__init__()
        self.queries = nn.Parameter(0.5 * torch.randn(length, width))
        self.head = nn.Linear(width, channels)

    def tokens(self, rows: int) -> Float[Tensor, "B L D"]:
        """The queries, for each of so many rows."""
        return self.queries.expand(rows, -1, -1)

    def values(self, y_BLD: Float[Tensor, "B L D"]) -> Float[Tensor, "B L c"]:
        """Trunk outputs to the numbers asked for, in float32."""
        return self.head(y_BLD).float()


class NoisyStream(nn.Module):
    """One diffused stream of `length` tokens with `channels` numbers each: embedding and velocity head."""

    def __init__(self, channels: int, length: int, width: int):
        super().__init__()
        self.length, self.width = length, width
        self.embed = nn.Linear(channels, width)
        self.position = nn.Parameter(0.5 * torch.randn(length, width))
        self.level = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.head = nn.Linear(width, channels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def tokens(self, x_BLc: Float[Tensor, "B L c"], sigma_B: Float[Tensor, " b"]) -> Float[Tensor, "B L D"]:
        """Noisy values to tokens that know their position and their noise level in [0, 1] (one a row, or one for all)."""
        return self.embed(x_BLc) + self.position + self.level(sigma_features(sigma_B, self.width)).unsqueeze(1)

    def velocity(self, y_BLD: Float[Tensor, "B L D"]) -> Float[Tensor, "B L c"]:
        """Trunk outputs to velocities eps - x, in float32 whatever precision the trunk computes in."""
        return self.head(y_BLD).float()


class ActionChunk(nn.Module):
    """A chunk of actions as a stream: `per_token` consecutive steps, normalised, are one token of p * a numbers.

    stream: how they get in and out: denoised (NoisyStream), only ever given (GivenStream), or queried (QueryStream).
    """

    def __init__(self, spec: Spec, width: int, per_token: int, stream: type[nn.Module] = NoisyStream):
        super().__init__()
        self.shape = (spec.chunk, spec.action_dim)
        self.length, self.channels = spec.chunk // per_token, per_token * spec.action_dim
        self.stream = stream(self.channels, self.length, width)

    def pack(self, action_BAa: Float[Tensor, "B A a"], normalizer: Normalizer) -> Float[Tensor, "B L c"]:
        """Actions in robot units to normalised tokens."""
        return normalizer.encode("action", action_BAa).reshape(len(action_BAa), self.length, self.channels)

    def known(self, action_BAa: Float[Tensor, "B A a"], batch: Batch, normalizer: Normalizer) -> Float[Tensor, "B L c"]:
        """`pack`, with zeros (the mean) where `valid` says that nothing is known: padding must not speak."""
        return self.pack(action_BAa, normalizer).masked_fill(~self.valid(batch), 0)

    def tokens(
        self, x_BLc: Float[Tensor, "B L c"], sigma_B: Float[Tensor, " b"], batch: Batch
    ) -> Float[Tensor, "B L D"]:
        """Noisy actions to tokens, of a denoised stream. What a row's robot does not have is shown as 0, neither noise nor data."""
        if batch.action_dim_valid is not None:
            x_BLc = x_BLc.masked_fill(~self._had(batch), 0)
        return self.stream.tokens(x_BLc, sigma_B)

    def _had(self, batch: Batch) -> Tensor:
        """Which numbers of `pack` are of dimensions that the row's robot has: bool (B, 1, c)."""
        return batch.action_dim_valid.repeat(1, self.channels // self.shape[1]).unsqueeze(1)

    def unpack(self, x_BLc: Float[Tensor, "B L c"], normalizer: Normalizer) -> Float[Tensor, "B A a"]:
        """The inverse of `pack`."""
        return normalizer.decode("action", x_BLc.reshape(len(x_BLc), *self.shape))

    def valid(self, batch: Batch) -> Bool[Tensor, "B L c"]:
        """Which numbers of `pack` are evidence: steps inside the episode, of rows that have actions, in dimensions that the
        row's robot has."""
        return batch.action_mask().reshape(len(batch), self.length, self.channels)


def masked_mean(error: Tensor, valid: Tensor) -> Float[Tensor, " B"]:
    """Mean over all but the first axis where `valid` (broadcast to `error`) is true; 0 for rows with nothing valid.

    Divides by what is valid, never by what is padded, so that short rows weigh as much as long ones.
    """
    valid = valid.to(error.dtype).expand_as(error)
    axes = tuple(range(1, error.dim()))
    return (error * valid).sum(axes) / valid.sum(axes).clamp(min=1)
