"""`bc`: behaviour cloning, the control that a World Action Model is compared with. Not a WAM: it models p(a | o, l) alone.

The same context, trunk and action head as `unified`, trained on actions only; it supports one query, the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wamkit.families.base import FAMILIES, Family, Taxonomy
from wamkit.nn.attention_mask import ACTION, CONTEXT, Program, Segment, expand, table
from wamkit.nn.backbones.transformer import Trunk
from wamkit.nn.encoders import build_text
from wamkit.nn.flow import denoise, euler, interpolate, row_noise, uniform_sigma
from wamkit.nn.heads import ActionChunk, masked_mean
from wamkit.nn.normalizer import Normalizer
from wamkit.nn.options import TrunkConfig
from wamkit.nn.tokens import ContextTokens, context_length
from wamkit.types import Batch, Query, Spec


@dataclass(frozen=True)
class BCConfig(TrunkConfig):
    """Sizes and choices of the control `bc`; the same names and defaults as in `unified`."""

    actions_per_token: int = 4
    policy_label: Literal["expert", "executed"] = "expert"
    denoising_steps: int = 4


@FAMILIES.register("bc")
class BC(Family):
    """See the module's docstring."""

    name = "bc"
    taxonomy = Taxonomy("control", "none", "none", "trunk denoises", "joint")
    queries = frozenset({Query.POLICY})
    Config = BCConfig

    def __init__(self, config: BCConfig, spec: Spec, normalizer: Normalizer):
        super().__init__(config, spec, normalizer)
        c, D = config, config.width
        self.context = ContextTokens(D, spec, build_text(c.text, D), c.proprio_noise)
        self.action = ActionChunk(spec, D, c.actions_per_token)
        self.trunk = Trunk(D, c.depth, c.heads)

    def attention_layout(self) -> tuple[list[Segment], Tensor]:
        segments = [Segment(CONTEXT, context_length(self.spec)), Segment(ACTION, self.action.length)]
        return segments, table(segments, Program.DECOUPLED)

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        label = batch.action_expert if self.config.policy_label == "expert" else batch.action
        x = self.action.known(label, batch, self.normalizer)
        sigma = uniform_sigma(len(batch), generator).to(x.device)
        eps = torch.randn(x.shape, generator=generator).to(x.device)
        context = self.context(batch, self.normalizer, generator)
        tokens = torch.cat([context, self.action.tokens(interpolate(x, eps, sigma), sigma, batch)], 1)
        segments, seen_SS = self.attention_layout()
        y, _ = self.trunk(tokens, expand(seen_SS, segments).to(x.device))
        error = (self.action.stream.velocity(y[:, context.shape[1] :]) - (eps - x)).square()
        return {"policy": masked_mean(error, self.action.valid(batch) & batch.is_demonstration.view(-1, 1, 1))}

    def generate(
        self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int
    ) -> tuple[Tensor | None, Tensor | None]:
        context = self.context(batch, self.normalizer)
        _, cache = self.trunk(context)

        def velocity(state: dict[str, Tensor], sigma: dict[str, float]) -> dict[str, Tensor]:
            level = torch.full((1,), sigma[ACTION], device=context.device)
            y, _ = self.trunk(self.action.tokens(state[ACTION], level, batch), None, cache)
            return {ACTION: self.action.stream.velocity(y)}

        noise = row_noise(generators, (self.action.length, self.action.channels), context.device)
        x = euler(velocity, {ACTION: noise}, {ACTION: denoise(steps)})[ACTION]
        return self.action.unpack(x, self.normalizer), None
