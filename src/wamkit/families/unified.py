"""`unified`: one flow transformer over future-observation and action tokens with independent noise levels.

Stands for the leaf joint / diffusion / unified stream / explicit (UWM, arXiv:2504.02792; PAD; VideoVLA). All five
queries are schedules over the two streams: a stream that the query asks for is denoised, a given one is held at 0, and
one that would be held at 1 is absent: it carries no information, so nothing attends to it and sampling leaves it out.
The methods are switches:

* UWM, GJD: the defaults; `targets.modes` gives the share of each conditional in training.
* PAD: `conditioning` "channel" and `targets.shared_level`, one noise level for both.
* VideoVLA: `targets.shared_level`, trained on the joint alone (`targets.modes` 1 0 0 0) and acting by the query
  `joint`.
* DreamZero: `chunk_causal` over `window.past_offsets`, with `targets.shared_level`; keys are kept from query to query
  (`nn.history`). Its fast form, actions in one step from frames at high noise, is a large `targets.future_shift` and
  one step.

Departures from the reference code of UWM:
* A marginal is trained at exactly the level at which it is sampled (sigma = 1), not at the last DDIM step before it.
* Rows without actions contribute nothing to the action loss, instead of an identity task at full noise.
* Each row trains two problems that share one context, the policy alone and one conditional of the joint
  (`nn.objectives`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from wamkit.families.base import FAMILIES, Family, Stage, Taxonomy, codec_stages, replaced
from wamkit.nn import Conditioning, ContextFeatures, Normalizer, Tokens, flow
from wamkit.nn.attention_mask import ACTION, CONTEXT, FUTURE, Segment, table, visibility
from wamkit.nn.family_options import UnifiedConfig
from wamkit.nn.objectives import POLICY, JointStreams
from wamkit.types import Answer, Batch, Query, Spec


@FAMILIES.register("unified")
class Unified(Family):
    """One flow transformer over noisy future and action tokens."""

    name = "unified"
    taxonomy = Taxonomy(
        "joint / diffusion / unified / explicit",
        "frame latents",
        "one stream, joint attention",
        "trunk denoises",
        "joint",
    )
    queries = frozenset(Query)
    Config = UnifiedConfig

    def __init__(self, config: UnifiedConfig, spec: Spec, normalizer: Normalizer):
        super().__init__(config, spec, normalizer)
        c, D = config, config.width
        self.context, self.history, self.future, self.action = c.build_parts(spec, c, D)
        self.trunk = c.build_trunk()
        self.conditioning = Conditioning(c.conditioning, self.context.length, D, c.depth)
        self.streams = JointStreams(c, self.future, self.action, normalizer)
        self.ahead = self.history.segments if self.history else [Segment(CONTEXT, self.context.length)]
        self.queries, self.keeps_memory = self.streams.queries(), c.chunk_causal
        self.first, self.problems = self.streams.first, self.streams.problems
        self.declare(self.trunk, codec=self.future, denoised=self.action)

    def stages(self) -> tuple[Stage, ...]:
        return codec_stages(self, "context", "history", "future.stream", "action", "trunk", "conditioning")

    def attention_layout(self, joint: bool = True) -> tuple[list[Segment], Tensor]:
        lengths = {FUTURE: self.future.cells, ACTION: self.action.length}
        segments = [*self.ahead, Segment(ACTION, lengths[ACTION])]
        if joint:
            segments += [Segment(name, lengths[name], problem=1) for name in (FUTURE, ACTION)]
            if self.first:
                segments.append(Segment(self.first, lengths[self.first], clean=True, problem=1))
        segments += self.streams.more_segments()
        return segments, table(segments, self.config.program)

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        if stage == "codec":
            return {"codec": self.future.loss(batch, generator)}
        return self.streams.spare_joint(batch, generator, self._losses)

    def _losses(self, batch: Batch, generator: torch.Generator, joint: bool) -> dict[str, Tensor]:
        targets = self.streams.sample_targets(batch, generator, joint)
        if self.history:
            context, features, _ = self._read(batch, generator)
        else:
            context = self.context(batch, self.normalizer, generator)
        problems = {POLICY: ACTION} | ({FUTURE: FUTURE, ACTION: ACTION} if joint else {})
        parts = [
            self.streams.tokens(stream, targets.noisy[name], targets.sigma[name], context, batch, name)
            for name, stream in problems.items()
        ]
        if self.first and joint:
            level = torch.zeros(1, device=batch.obs.device)
            parts.append(self.streams.tokens(self.first, targets.clean[self.first], level, context, batch, ACTION))
        at = [*range(len(problems)), *range(len(parts), len(parts) + len(self.streams.more))]
        for name in self.streams.more:
            problems[name] = ACTION
            parts.append(self.streams.tokens(ACTION, targets.noisy[name], targets.sigma[name], context, batch, name))
        mask_LL = targets.visible(*self.attention_layout(joint))
        if self.history:
            rows = self.history.hide(mask_LL[..., -sum(map(len, parts)) :, :], batch)
            y = self.conditioning.denoised(self.trunk, parts, features, rows)
        else:
            y = self.conditioning(self.trunk, parts, context, mask_LL)
        predicted = {n: self.streams.velocity(s, y[i]) for i, (n, s) in zip(at, problems.items(), strict=True)}
        return targets.losses(predicted, batch, self.future, self.action)

    def _read(
        self, batch: Batch, generator: torch.Generator | None = None
    ) -> tuple[list[Tokens], ContextFeatures, Tensor | None]:
        """The present context, its image first; features of the whole context; and the memory of the present."""
        if self.history is None:
            context = self.context(batch, self.normalizer, generator)
            return context, self.conditioning.features(self.trunk, context), None
        moments = self.context.moments(batch, self.normalizer, generator)
        image, keys, memory = self.history(partial(self.conditioning.keys, self.trunk), moments, batch)
        return image, ContextFeatures(keys), memory

    def embed(self, batch: Batch) -> list[Tokens]:
        """As everywhere; the encoder's tokens where no block changes them (`conditioning` other than "prefix"), and the
        present moment alone where history is read moment by moment."""
        if self.history:
            context, mask = self.history.alone(lambda b: self.context.moments(b, self.normalizer), batch)
        else:
            context, mask = self.context(batch, self.normalizer), None
        if self.conditioning.kind != "prefix":
            return context
        return replaced(context, self.trunk.before_last(context, mask))

    def default_steps(self, query: Query) -> int:
        quick = {Query.POLICY: self.config.policy_steps, Query.INVERSE: self.config.inverse_steps}
        return quick.get(query, self.config.denoising_steps)

    def generate(self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int) -> Answer:
        state, schedules = self.streams.start(batch, query, generators, steps)
        if query is Query.JOINT and self.first:  # one stream after the other, each over all its steps
            order = (self.first, FUTURE if self.first == ACTION else ACTION)
            schedules = dict(zip(order, flow.one_after_the_other(*(schedules[n] for n in order)), strict=True))
        # The context sees no one but itself, so one pass serves every denoising step.
        context, features, memory = self._read(batch)
        guides = self.action.guides(batch, self.normalizer)
        state = flow.euler(lambda x, s: self._velocity(x, s, context, features, batch), state, schedules, guides)
        return self.streams.answer(state, query, batch, memory)

    def _velocity(
        self,
        state: dict[str, Tensor],
        sigma: dict[str, Tensor],
        context: list[Tokens],
        features: ContextFeatures,
        batch: Batch,
    ) -> dict[str, Tensor]:
        names = [n for n in (FUTURE, ACTION) if n in state]
        parts = [self.streams.tokens(n, state[n], sigma[n], context, batch) for n in names]
        noisy = [
            Segment(n, len(t), clean=n == self.first and bool(sigma[n] == 0)) for n, t in zip(names, parts, strict=True)
        ]
        mask_LK = visibility([*self.ahead, *noisy], self.config.program)[-sum(map(len, parts)) :].to(batch.obs.device)
        if self.history:
            mask_LK = self.history.hide(mask_LK, batch)
        y = self.conditioning.denoised(self.trunk, parts, features, mask_LK)
        return {n: self.streams.velocity(n, y[i]) for i, n in enumerate(names)}
