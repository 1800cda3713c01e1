"""`unified`: one flow transformer over future-observation and action tokens with independent noise levels.

Stands for the leaf joint / diffusion / unified stream / explicit (UWM, arXiv:2504.02792; PAD; VideoVLA). All five
queries are schedules over the two streams: denoise what is wanted, hold at 0 what is given, and what is held at 1 is
absent: it carries no information, so nobody looks at it and sampling leaves it out. The methods are switches:

* UWM, GJD: the defaults; `targets.modes` says how often each conditional is trained.
* PAD: `conditioning` "channel" and `targets.shared_level`, one noise level for both.
* VideoVLA: `targets.shared_level`, trained on the joint alone (`targets.modes` 1 0 0 0) and acting on the query `joint`.
* DreamZero: `chunk_causal` over `window.past_offsets`, with `targets.shared_level`; its keys are kept from query to query (`nn.history`).
  Its quick form, actions in one step from pictures at high noise, is a large `targets.future_shift` and 1 step.

Where this differs from the reference code of UWM, on purpose:
* A marginal is trained at exactly the level at which it is sampled (sigma = 1), not at the last DDIM step before it.
* Rows without actions contribute nothing to the action loss, instead of an identity task at full noise.
* Each row trains two problems that share one context, the policy alone and one conditional of the joint (`nn.draws`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from wamkit.config import ConfigError
from wamkit.families.base import FAMILIES, Family, Stage, Taxonomy
from wamkit.nn.attention_mask import ACTION, CONTEXT, FUTURE, TEACHER_FORCED, Program, Segment, table, visibility
from wamkit.nn.autoencoders.frame_codec import FutureLatents
from wamkit.nn.backbones.transformer import Trunk
from wamkit.nn.conditioning import Conditioning, ContextFeatures, Kind
from wamkit.nn.encoders import build_text
from wamkit.nn.flow import denoise, euler, hold, one_after_the_other, row_noise
from wamkit.nn.heads import ActionChunk
from wamkit.nn.history import History, present
from wamkit.nn.normalizer import Normalizer
from wamkit.nn.objectives import POLICY, TargetConfig, sample_targets, supported_queries
from wamkit.nn.options import CodecConfig, TrunkConfig
from wamkit.nn.tokens import ContextTokens, context_length
from wamkit.types import Answer, Batch, Query, Spec


@dataclass(frozen=True)
class UnifiedConfig(CodecConfig, TrunkConfig):
    """Sizes and choices of the family `unified`."""

    actions_per_token: int = 4
    program: Program = Program.JOINT
    conditioning: Kind = "prefix"
    """How the tokens that are denoised hear of what is known."""
    chunk_causal: bool = False
    """Whether earlier moments are read apart, once, and remembered (`nn.history`), or all together with the present."""
    targets: TargetConfig = field(default_factory=TargetConfig)
    """What the rows of a batch train: labels, how often each conditional, noise levels."""
    denoising_steps: int = 8
    """Of queries that imagine pictures."""
    policy_steps: int = 4
    """Of policy queries."""
    inverse_steps: int = 1
    """Of inverse queries. One Euler step from pure noise gives exactly the mean of what the model believes, since there
    v = eps - E[x]: the best estimate of what was done. More steps draw a sample of it, with twice the squared error."""

    def __post_init__(self) -> None:
        if self.chunk_causal and self.conditioning not in ("prefix", "cross"):
            raise ConfigError(
                f"chunk_causal keeps the keys of what was seen; conditioning {self.conditioning} has none: prefix or cross would fit"
            )


@FAMILIES.register("unified")
class Unified(Family):
    """See the module's docstring."""

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
        apart = present(spec) if c.chunk_causal else spec
        self.context = ContextTokens(D, apart, build_text(c.text, D), c.proprio_noise)
        self.history = History(spec, c.depth, c.heads, D) if c.chunk_causal else None
        self.keeps_memory = c.chunk_causal
        self.future = FutureLatents(spec, D, c.codec_channels)
        self.action = ActionChunk(spec, D, c.actions_per_token)
        self.trunk = Trunk(D, c.depth, c.heads)
        self.conditioning = Conditioning(c.conditioning, context_length(apart), D, c.depth)
        self.queries = supported_queries(c.program, c.targets)
        self.first = TEACHER_FORCED.get(c.program)

    def stages(self) -> tuple[Stage, ...]:
        share = self.config.codec_share
        return (
            Stage("codec", share, ("future.codec",), self.config.codec_lr),
            Stage("main", 1 - share, ("context", "history", "future.stream", "action", "trunk", "conditioning")),
        )

    # ---------------------------------------------------------------------------------------------------------- training

    def attention_layout(self) -> tuple[list[Segment], Tensor]:
        lengths = {FUTURE: self.future.cells, ACTION: self.action.length}
        known = self.history.segments if self.history else [Segment(CONTEXT, context_length(self.spec))]
        segments = [*known, Segment(ACTION, lengths[ACTION])]
        segments += [Segment(FUTURE, lengths[FUTURE], problem=1), Segment(ACTION, lengths[ACTION], problem=1)]
        if self.first:
            segments.append(Segment(self.first, lengths[self.first], clean=True, problem=1))
        return segments, table(segments, self.config.program)

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        if stage == "codec":
            return {"codec": self.future.loss(batch, generator)}
        targets = sample_targets(
            batch, self.future, self.action, self.normalizer, self.config.targets, self.queries, generator
        )
        known = None if self.history is None else self._known(batch, generator)
        context = known[0] if known else self.context(batch, self.normalizer, generator)
        tokens = []
        for name, stream in ((POLICY, ACTION), (FUTURE, FUTURE), (ACTION, ACTION)):
            tokens.append(self._tokens(stream, targets.noisy(name), targets.sigma[name], context, batch))
        if self.first:
            clean = {FUTURE: targets.x[FUTURE], ACTION: targets.executed}[self.first]
            tokens.append(self._tokens(self.first, clean, torch.zeros(1, device=clean.device), context, batch))
        noisy, mask_LL = torch.cat(tokens, 1), targets.visible(*self.attention_layout())
        if known:
            rows = self.history.hide(mask_LL[..., -noisy.shape[1] :, :], batch)
            y = self.conditioning.denoised(self.trunk, noisy, known[1], rows)
        else:
            y = self.conditioning(self.trunk, noisy, context, mask_LL)
        y_p, y_z, y_a, *_ = y.split([t.shape[1] for t in tokens], 1)
        heads = {
            POLICY: self.action.stream.velocity(y_p),
            ACTION: self.action.stream.velocity(y_a),
            FUTURE: self.future.stream.velocity(y_z),
        }
        return targets.losses(heads, batch, self.future, self.action)

    def _known(
        self, batch: Batch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, ContextFeatures, Tensor | None]:
        """The context's tokens now, how noisy tokens hear of all that is known, and what to remember of it."""
        if self.history is None:
            context = self.context(batch, self.normalizer, generator)
            return context, self.conditioning.known(self.trunk, context), None
        moments = self.context.moments(batch, self.normalizer, generator)
        keys, memory = self.history(partial(self.conditioning.keys, self.trunk), moments, batch)
        return moments[:, 0], ContextFeatures(keys), memory

    # ---------------------------------------------------------------------------------------------------------- sampling

    def default_steps(self, query: Query) -> int:
        return {Query.POLICY: self.config.policy_steps, Query.INVERSE: self.config.inverse_steps}.get(
            query, self.config.denoising_steps
        )

    def generate(self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int) -> Answer:
        device = batch.obs.device
        start: dict[str, Tensor] = {}
        schedules: dict[str, tuple[float, ...]] = {}
        # Noise is drawn in one order for every query, so that queries with one seed share it.
        eps_a = row_noise(generators, (self.action.length, self.action.channels), device)
        eps_z = row_noise(generators, (self.future.cells, self.future.channels), device)
        if query.wants_action:
            start[ACTION], schedules[ACTION] = eps_a, denoise(steps, self.config.targets.action_shift(query))
        if query.wants_future:
            start[FUTURE], schedules[FUTURE] = eps_z, denoise(steps, self.config.targets.future_shift)
        if query is Query.FORWARD:
            start[ACTION], schedules[ACTION] = self.action.pack(batch.action, self.normalizer), hold(0, steps)
        if query is Query.INVERSE:
            start[FUTURE], schedules[FUTURE] = self.future.encode(batch), hold(0, steps)
        if query is Query.JOINT and self.first:  # one stream after the other, each over all its steps
            second = FUTURE if self.first == ACTION else ACTION
            order = (self.first, second)
            schedules = dict(zip(order, one_after_the_other(*(schedules[n] for n in order)), strict=True))
        # The context sees no one but itself, so one pass serves every denoising step.
        context, known, memory = self._known(batch)
        final = euler(lambda x, s: self._velocity(x, s, context, known, batch), start, schedules)
        return Answer(
            self.action.unpack(final[ACTION], self.normalizer) if query.wants_action else None,
            self.future.decode(final[FUTURE], batch.obs) if query.wants_future else None,
            memory=memory,
        )

    def _tokens(self, name: str, x: Tensor, sigma: Tensor, context: Tensor, batch: Batch) -> Tensor:
        return self.future.tokens(x, sigma, context) if name == FUTURE else self.action.tokens(x, sigma, batch)

    def _velocity(
        self, state: dict[str, Tensor], sigma: dict[str, float], context: Tensor, known: ContextFeatures, batch: Batch
    ) -> dict[str, Tensor]:
        level = {n: torch.full((1,), s, device=context.device) for n, s in sigma.items()}
        tokens = {n: self._tokens(n, state[n], level[n], context, batch) for n in (FUTURE, ACTION) if n in state}
        ahead = self.history.segments if self.history else [Segment(CONTEXT, context.shape[1])]
        noisy = [Segment(n, t.shape[1], clean=n == self.first and sigma[n] == 0) for n, t in tokens.items()]
        K = sum(s.length for s in ahead)
        mask_LK = visibility([*ahead, *noisy], self.config.program)[K:].to(context.device)
        if self.history:
            mask_LK = self.history.hide(mask_LK, batch)
        y = self.conditioning.denoised(self.trunk, torch.cat(list(tokens.values()), 1), known, mask_LK)
        parts = y.split([t.shape[1] for t in tokens.values()], 1)
        heads = {FUTURE: self.future.stream, ACTION: self.action.stream}
        return {n: heads[n].velocity(part) for n, part in zip(tokens, parts, strict=True)}
