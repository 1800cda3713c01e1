"""`bc`: behaviour cloning, the control that World Action Models are compared with. Not a WAM: it models p(a | o, l).

It has the same context, backbone and action head as `unified`, trained on actions alone, and answers one query, the
policy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wamkit.families.base import FAMILIES, Family, Taxonomy
from wamkit.nn import Normalizer, flow, masked_mean, mean_over_draws
from wamkit.nn.attention_mask import ACTION, CONTEXT, Program, Segment, table
from wamkit.nn.family_options import BCConfig
from wamkit.types import Batch, Query, Spec


@FAMILIES.register("bc")
class BC(Family):
    """Behaviour cloning: the policy alone, flow-matched over a chunk of actions."""

    name = "bc"
    taxonomy = Taxonomy("control", "none", "none", "trunk denoises", "joint")
    queries = frozenset({Query.POLICY})
    Config = BCConfig

    def __init__(self, config: BCConfig, spec: Spec, normalizer: Normalizer):
        super().__init__(config, spec, normalizer)
        self.context = config.build_context(spec)
        self.action = config.build_action(spec, config.width)
        self.trunk = config.build_trunk()
        self.problems = config.policy_draws
        self.declare(self.trunk, denoised=self.action)

    def attention_layout(self) -> tuple[list[Segment], Tensor]:
        segments = [Segment(CONTEXT, self.context.length)]
        segments += [Segment(ACTION, self.action.length, problem=k) for k in range(self.config.policy_draws)]
        return segments, table(segments, Program.DECOUPLED)

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        x = self.action.targets(self.config.label(batch), batch, self.normalizer)
        parts, velocity = [], []
        for k in range(self.problems):
            sigma = flow.uniform_sigma(len(batch), generator).to(x.device)
            noisy, target = flow.corrupt(x, sigma, generator)
            parts.append(self.action.tokens(noisy, sigma, batch, self.normalizer, k))
            velocity.append(target)
        context = self.context(batch, self.normalizer, generator)
        y, _ = self.trunk([*context, *parts], self.attention_mask(x.device))
        predicted = map(self.action.stream.velocity, y[len(context) :])
        errors = [(v - target).square() for v, target in zip(predicted, velocity, strict=True)]
        error, valid = mean_over_draws(errors, [self.action.valid(batch, k) for k in range(self.problems)])
        return {"policy": masked_mean(error, valid & batch.is_demonstration.view(-1, 1, 1))}

    def generate(
        self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int
    ) -> tuple[Tensor | None, Tensor | None]:
        _, cache = self.trunk(self.context(batch, self.normalizer))

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            y, _ = self.trunk([self.action.tokens(x, sigma, batch, self.normalizer)], None, cache)
            return self.action.stream.velocity(y[0])

        noise = self.action.noise(generators, batch.obs.device)
        return self.action.denoise(velocity, noise, flow.denoise(steps), batch, self.normalizer), None
