"""`world_model`: p(o' | o, l, a), the control that imagines the effect of actions and emits none. Not a WAM.

It has the same context, backbone and frame latents as `unified`, with the clean actions beside the noisy future, and
answers one query, forward dynamics. Off-expert rows train it as much as demonstrations do; rows without actions train
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wamkit.families.base import FAMILIES, Family, Stage, Taxonomy, codec_stages
from wamkit.nn import GivenStream, Normalizer, flow, masked_mean
from wamkit.nn.attention_mask import ACTION, CONTEXT, FUTURE, Program, Segment, table
from wamkit.nn.family_options import WorldModelConfig
from wamkit.types import Batch, Query, Spec


@FAMILIES.register("world_model")
class WorldModel(Family):
    """A world model: the future given actions, which stand clean beside it."""

    name = "world_model"
    taxonomy = Taxonomy("control", "frame latents", "clean actions beside the future", "none", "joint")
    queries = frozenset({Query.FORWARD})
    Config = WorldModelConfig

    def __init__(self, config: WorldModelConfig, spec: Spec, normalizer: Normalizer):
        super().__init__(config, spec, normalizer)
        self.context = config.build_context(spec)
        self.future = config.build_future(spec, config.width)
        self.action = config.build_action(spec, config.width, GivenStream)
        self.trunk = config.build_trunk()
        self.declare(self.trunk, codec=self.future)

    def stages(self) -> tuple[Stage, ...]:
        return codec_stages(self, "context", "future.stream", "action", "trunk")

    def attention_layout(self) -> tuple[list[Segment], Tensor]:
        segments = [Segment(CONTEXT, self.context.length), Segment(ACTION, self.action.length, clean=True)]
        segments.append(Segment(FUTURE, self.future.cells))
        return segments, table(segments, Program.ACTION_THEN_VIDEO)

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        if stage == "codec":
            return {"codec": self.future.loss(batch, generator)}
        z = self.future.targets(batch)
        sigma = flow.shift_sigma(flow.uniform_sigma(len(batch), generator), self.config.future_shift).to(z.device)
        noisy, target = flow.corrupt(z, sigma, generator)
        context = self.context(batch, self.normalizer, generator)
        action = self.action.stream.tokens(self.action.targets(batch.action, batch, self.normalizer))
        future = self.future.tokens(noisy, sigma, context)
        y, _ = self.trunk([*context, action, future], self.attention_mask(z.device))
        error = (self.future.stream.velocity(y[-1]) - target).square()
        return {"future": masked_mean(error, self.future.valid(batch) & batch.has_action.view(-1, 1, 1))}

    def generate(
        self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int
    ) -> tuple[Tensor | None, Tensor | None]:
        context = self.context(batch, self.normalizer)
        _, cache = self.trunk(context)
        # Actions see the context alone, so they too are computed once.
        _, cache = self.trunk([self.action.stream.tokens(self.action.pack(batch.action, self.normalizer))], None, cache)

        def velocity(z: Tensor, sigma: Tensor) -> Tensor:
            y, _ = self.trunk([self.future.tokens(z, sigma, context)], None, cache)
            return self.future.stream.velocity(y[0])

        noise = self.future.noise(generators, batch.obs.device)
        z = flow.integrate(velocity, noise, flow.denoise(steps, self.config.future_shift))
        return None, self.future.decode(z, batch.obs)
