"""Streams: how a sequence of values becomes tokens, and how a backbone's outputs become values or velocities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.config import check_multiple
from wamkit.nn.attention_mask import ACTION
from wamkit.nn.backbones.base import Tokens
from wamkit.nn.backbones.transformer import sigma_features
from wamkit.nn.flow import Guide, euler, row_noise
from wamkit.nn.normalizer import Normalizer
from wamkit.nn.tokens import step_positions
from wamkit.types import Batch, Spec


class Stream(nn.Module):
    """One run of tokens of a sequence: `channels` values each, at the places `place_L3` (see `Tokens.position`)."""

    def __init__(self, kind: str, channels: int, place_L3: Float[Tensor, "L 3"]):
        super().__init__()
        self.kind, self.channels, self.length = kind, channels, len(place_L3)
        self.register_buffer("place", place_L3, persistent=False)

    def run(self, values_BLD: Float[Tensor, "B L D"], sigma: Tensor | None = None) -> Tokens:
        """Embedded values as tokens of this stream."""
        return Tokens(values_BLD, self.kind, self.place, sigma)


class GivenStream(Stream):
    """A stream that is always given, never noisy."""

    def __init__(self, kind: str, channels: int, place_L3: Float[Tensor, "L 3"], width: int):
        super().__init__(kind, channels, place_L3)
        self.embed = nn.Linear(channels, width)
        self.position = nn.Parameter(0.5 * torch.randn(self.length, width))

    def tokens(self, x_BLc: Float[Tensor, "B L c"]) -> Tokens:
        """Values to tokens."""
        return self.run(self.embed(x_BLc) + self.position)


class QueryStream(Stream):
    """A stream of learned queries, each of which reads `channels` values out of the backbone. It is never an input."""

    def __init__(self, kind: str, channels: int, place_L3: Float[Tensor, "L 3"], width: int):
        super().__init__(kind, channels, place_L3)
        self.queries = nn.Parameter(0.5 * torch.randn(self.length, width))
        self.head = nn.Linear(width, channels)

    def tokens(self, rows: int) -> Tokens:
        """The queries, for each of so many rows."""
        return self.run(self.queries.expand(rows, -1, -1))

    def values(self, y_BLD: Float[Tensor, "B L D"]) -> Float[Tensor, "B L c"]:
        """Outputs of the backbone to values, in float32."""
        return self.head(y_BLD).float()


class NoisyStream(Stream):
    """A stream that is denoised: an embedding of values and noise level, and a head for the velocity."""

    def __init__(self, kind: str, channels: int, place_L3: Float[Tensor, "L 3"], width: int):
        super().__init__(kind, channels, place_L3)
        self.width = width
        self.embed = nn.Linear(channels, width)
        self.position = nn.Parameter(0.5 * torch.randn(self.length, width))
        self.level = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.head = nn.Linear(width, channels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def tokens(self, x_BLc: Float[Tensor, "B L c"], sigma: Float[Tensor, " b"] | Float[Tensor, "b L"]) -> Tokens:
        """Noisy values to tokens. sigma: their noise level in [0, 1], one a row or one for all, or one a token."""
        level = self.level(sigma_features(sigma.flatten(), self.width)).unflatten(0, sigma.shape)
        return self.run(self.embed(x_BLc) + self.position + (level if sigma.dim() == 2 else level.unsqueeze(1)), sigma)

    def velocity(self, y_BLD: Float[Tensor, "B L D"]) -> Float[Tensor, "B L c"]:
        """Outputs of the backbone to velocities eps - x, in float32 whatever the backbone's precision."""
        return self.head(y_BLD).float()


class ActionChunk(nn.Module):
    """A chunk of actions as a stream: `per_token` consecutive steps, normalised, are one token of p * a values.

    stream: the actions are denoised (NoisyStream), always given (GivenStream), or queried (QueryStream).

    Raises ConfigError where the chunk is not a multiple of `per_token`.
    """

    def __init__(self, spec: Spec, width: int, per_token: int, stream: Callable[..., Stream] = NoisyStream):
        super().__init__()
        check_multiple("window.chunk", spec.chunk, "actions_per_token", per_token)
        self.shape, self.per_token = (spec.chunk, spec.action_dim), per_token
        self.count, self.channels = spec.chunk // per_token, per_token * spec.action_dim
        self.length = self.count  # in a sequence, where more than the actions may stand
        place = step_positions([(i + 0.5) * per_token for i in range(self.count)])
        self.stream = stream(ACTION, self.channels, place, width)

    def pack(self, action_BAa: Float[Tensor, "B A a"], normalizer: Normalizer) -> Float[Tensor, "B L c"]:
        """Actions in robot units to normalised values, one row a token."""
        return normalizer.encode("action", action_BAa).reshape(len(action_BAa), self.count, self.channels)

    def targets(
        self, action_BAa: Float[Tensor, "B A a"], batch: Batch, normalizer: Normalizer
    ) -> Float[Tensor, "B L c"]:
        """`pack`, with zeros (the mean) where there is no evidence, so that padding has no influence."""
        return self.pack(action_BAa, normalizer).masked_fill(~self._evidence(batch), 0)

    def tokens(
        self,
        x_BLc: Float[Tensor, "B L c"],
        sigma_B: Float[Tensor, " b"],
        batch: Batch,
        normalizer: Normalizer,
        problem: int = 0,
    ) -> Tokens:
        """Noisy actions to tokens, for a denoised stream. Those of `batch.prefix` are the executed actions, without
        noise. Dimensions that a row's robot lacks are 0, neither noise nor data. problem: as in `decided`."""
        sigma = sigma_B
        if (decided_BL := self.decided(batch, problem)) is not None:
            x_BLc = torch.where(decided_BL.unsqueeze(2), self.targets(batch.action, batch, normalizer), x_BLc)
            sigma = sigma_B.unsqueeze(1).masked_fill(decided_BL, 0)
        if batch.action_dim_valid is not None:
            has = batch.action_dim_valid.repeat(1, self.channels // self.shape[1]).unsqueeze(1)
            x_BLc = x_BLc.masked_fill(~has, 0)
        return self.stream.tokens(x_BLc, sigma)

    def decided(self, batch: Batch, problem: int = 0) -> Bool[Tensor, "B L"] | None:
        """True for tokens that hold steps of `batch.prefix`, whole tokens each; None where there is no prefix.

        problem: which of `Family.problems` the chunk is, where these have prefixes of their own.
        """
        if batch.prefix is None:
            return None
        steps_B = batch.prefix if batch.prefix.dim() == 1 else batch.prefix[:, problem]
        first_L = self.per_token * torch.arange(self.count, device=steps_B.device)
        return first_L < steps_B.unsqueeze(1)

    def denoise(
        self,
        velocity: Callable[[Tensor, Tensor], Tensor],
        noise: Float[Tensor, "B L c"],
        schedule: tuple[float, ...],
        batch: Batch,
        normalizer: Normalizer,
    ) -> Float[Tensor, "B A a"]:
        """Actions in robot units from noise, by integrating `velocity(state, noise level)` along `schedule`."""

        def alone(x: Mapping[str, Tensor], sigma: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {ACTION: velocity(x[ACTION], sigma[ACTION])}

        state = euler(alone, {ACTION: noise}, {ACTION: schedule}, self.guides(batch, normalizer))
        return self.unpack(state[ACTION], normalizer)

    def guides(self, batch: Batch, normalizer: Normalizer) -> dict[str, Guide]:
        """The guidance of this stream by `batch.guide`, by name of the stream; none where the batch has none."""
        if batch.guide is None:
            return {}
        weight_BAa = batch.guide.unsqueeze(2) * batch.action_mask()
        return {ACTION: Guide(self.pack(batch.action, normalizer), weight_BAa.reshape(len(batch), self.count, -1))}

    def noise(self, generators: Sequence[torch.Generator], device: torch.device) -> Float[Tensor, "B L c"]:
        """The start of sampling."""
        return row_noise(generators, (self.count, self.channels), device)

    def unpack(self, x_BLc: Float[Tensor, "B L c"], normalizer: Normalizer) -> Float[Tensor, "B A a"]:
        """The inverse of `pack`."""
        return normalizer.decode("action", x_BLc.reshape(len(x_BLc), *self.shape))

    def valid(self, batch: Batch, problem: int = 0) -> Bool[Tensor, "B L c"]:
        """True for values of `pack` that are evidence: steps inside the episode, of rows with actions, in dimensions
        that the row's robot has, after `batch.prefix`. problem: as in `decided`."""
        decided_BL = self.decided(batch, problem)
        return self._evidence(batch) if decided_BL is None else self._evidence(batch) & ~decided_BL.unsqueeze(2)

    def _evidence(self, batch: Batch) -> Bool[Tensor, "B L c"]:
        return batch.action_mask().reshape(len(batch), self.count, self.channels)


def mean_over_draws(
    errors: Sequence[Float[Tensor, "B L c"]], valid: Sequence[Bool[Tensor, "B L c"]]
) -> tuple[Float[Tensor, "B L c"], Bool[Tensor, "B L c"]]:
    """The mean error of each value over the draws in which it is valid, and where it is in any.

    Examples:
        >>> first, second = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0, 4.0]]])
        >>> always, late = torch.tensor([[[True, True]]]), torch.tensor([[[False, True]]])
        >>> mean_over_draws([first, second], [always, late])[0].tolist()
        [[[1.0, 3.0]]]
    """
    count = sum(v.to(errors[0].dtype) for v in valid).clamp(min=1)  # type: ignore[union-attr]
    total = sum(e.masked_fill(~v, 0) for e, v in zip(errors, valid, strict=True))
    return total / count, torch.stack(list(valid)).any(0)  # type: ignore[return-value]


def masked_mean(error: Tensor, valid: Tensor) -> Float[Tensor, " B"]:
    """Mean over all but the first axis where `valid` (broadcast to `error`) is true; 0 for rows without a valid value.

    The divisor counts valid values only, so that rows with padding weigh as much as others.
    """
    valid = valid.to(error.dtype).expand_as(error)
    axes = tuple(range(1, error.dim()))
    return (error * valid).sum(axes) / valid.sum(axes).clamp(min=1)
