"""`world_model`: p(o' | o, l, a), the control that imagines what an action does and emits none. Not a WAM.

The same context, trunk and frame latents as `unified`, with the clean actions beside the noisy future; it supports one
query, forward dynamics. Off-expert rows teach it as much as demonstrations do; rows without actions teach it nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wamkit.families.base import FAMILIES, Family, Stage, Taxonomy
from wamkit.nn.attention_mask import ACTION, CONTEXT, FUTURE, Program, Segment, expand, table
from wamkit.nn.autoencoders.frame_codec import FutureLatents
from wamkit.nn.backbones.transformer import Trunk
from wamkit.nn.encoders import build_text
from wamkit.nn.flow import denoise, euler, interpolate, row_noise, shift_sigma, uniform_sigma
from wamkit.nn.heads import ActionChunk, GivenStream, masked_mean
from wamkit.nn.normalizer import Normalizer
from wamkit.nn.options import CodecConfig, TrunkConfig
from wamkit.nn.tokens import ContextTokens, context_length
from wamkit.types import Batch, Query, Spec


@dataclass(frozen=True)
class WorldModelConfig(CodecConfig, TrunkConfig):
    """Sizes and choices of the family `world_model`."""

    actions_per_token: int = 4
    future_shift: float = 3.0
    denoising_steps: int = 8


@FAMILIES.register("world_model")
class WorldModel(Family):
    """See the module's docstring."""

    name = "world_model"
    taxonomy = Taxonomy("control", "frame latents", "clean actions beside the future", "none", "joint")
    queries = frozenset({Query.FORWARD})
    Config = WorldModelConfig

    def __init__(self, config: WorldModelConfig, spec: Spec, normalizer: Normalizer):
        super().__init__(config, spec, normalizer)
        c, D = config, config.width
        self.context = ContextTokens(D, spec, build_text(c.text, D), c.proprio_noise)
        self.future = FutureLatents(spec, D, c.codec_channels)
        self.action = ActionChunk(spec, D, c.actions_per_token, GivenStream)
        self.trunk = Trunk(D, c.depth, c.heads)

    def stages(self) -> tuple[Stage, ...]:
        share = self.config.codec_share
        return (
            Stage("codec", share, ("future.codec",), self.config.codec_lr),
            Stage("main", 1 - share, ("context", "future.stream", "action", "trunk")),
        )

    def attention_layout(self) -> tuple[list[Segment], Tensor]:
        context, chunk = context_length(self.spec), self.action.length
        segments = [Segment(CONTEXT, context), Segment(ACTION, chunk, clean=True), Segment(FUTURE, self.future.cells)]
        return segments, table(segments, Program.ACTION_THEN_VIDEO)

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        if stage == "codec":
            return {"codec": self.future.loss(batch, generator)}
        z = self.future.known(batch)
        sigma = shift_sigma(uniform_sigma(len(batch), generator), self.config.future_shift).to(z.device)
        eps = torch.randn(z.shape, generator=generator).to(z.device)
        context = self.context(batch, self.normalizer, generator)
        action = self.action.stream.tokens(self.action.known(batch.action, batch, self.normalizer))
        future = self.future.tokens(interpolate(z, eps, sigma), sigma, context)
        segments, seen_SS = self.attention_layout()
        y, _ = self.trunk(torch.cat([context, action, future], 1), expand(seen_SS, segments).to(z.device))
        error = (self.future.stream.velocity(y[:, -future.shape[1] :]) - (eps - z)).square()
        return {"future": masked_mean(error, self.future.valid(batch) & batch.has_action.view(-1, 1, 1))}

    def generate(
        self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int
    ) -> tuple[Tensor | None, Tensor | None]:
        context = self.context(batch, self.normalizer)
        _, cache = self.trunk(context)
        # Actions see the context alone, so they too are computed once.
        _, cache = self.trunk(self.action.stream.tokens(self.action.pack(batch.action, self.normalizer)), None, cache)

        def velocity(state: dict[str, Tensor], sigma: dict[str, float]) -> dict[str, Tensor]:
            level = torch.full((1,), sigma[FUTURE], device=context.device)
            y, _ = self.trunk(self.future.tokens(state[FUTURE], level, context), None, cache)
            return {FUTURE: self.future.stream.velocity(y)}

        noise = row_noise(generators, (self.future.cells, self.future.channels), context.device)
        z = euler(velocity, {FUTURE: noise}, {FUTURE: denoise(steps, self.config.future_shift)})[FUTURE]
        return None, self.future.decode(z, batch.obs)
