"""`mot`: one expert a stream, one attention over both: a mixture of transformers that denoises future and actions.

Stands for the leaf joint / diffusion / multi-stream / cross-attention (LingBot-VA; Motus, arXiv:2512.13030; DUST, arXiv:2510.27607). The
video expert holds context and future, the action expert holds actions; each has its own norms, projections and MLP, and both
attend to all that the program shows them. Noise levels are independent, so all conditionals that the program lets through can be
asked (`nn.draws`). The methods are switches:

* Motus: program `joint`, the default.
* DUST: program `joint` and `slow` > 1, asynchronous denoising: actions move at every `slow`-th step only, since pictures need more.
* LingBot-VA: program `video_then_action`; with `imagine`, a policy query denoises the video down to `partial` and then decodes actions
  from it: what happens is decided at high noise. The clean future that training shows to actions is noised up to that level. With
  `chunk_causal`, over `window.past_offsets`, keys of what was really seen are kept from query to query (`nn.history`).

Where this differs from the reference code, on purpose: noise levels are drawn a row (LingBot shares one over a batch), training and
sampling use one attention code (LingBot's must be switched by hand), and its release, one shared backbone, is `unified` here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wamkit.families.base import FAMILIES, Family, Stage, Taxonomy
from wamkit.nn.attention_mask import ACTION, CONTEXT, FUTURE, TEACHER_FORCED, Program, Segment, table, visibility
from wamkit.nn.autoencoders.frame_codec import FutureLatents
from wamkit.nn.backbones.mixture_of_transformers import Mixture
from wamkit.nn.backbones.transformer import Cache
from wamkit.nn.encoders import build_text
from wamkit.nn.flow import denoise, euler, hold, interpolate, one_after_the_other, row_noise, slow
from wamkit.nn.heads import ActionChunk
from wamkit.nn.history import History, present
from wamkit.nn.normalizer import Normalizer
from wamkit.nn.objectives import POLICY, TargetConfig, sample_targets, supported_queries
from wamkit.nn.options import CodecConfig, TrunkConfig
from wamkit.nn.tokens import ContextTokens, context_length
from wamkit.types import Answer, Batch, Query, Spec


@dataclass(frozen=True)
class MoTConfig(CodecConfig, TrunkConfig):
    """Sizes and choices of the family `mot`."""

    width: int = 112
    """Of the video expert and of the attention that both share."""
    action_width: int = 56
    """Of the action expert."""
    program: Program = Program.JOINT
    imagine: bool = False
    """Whether a policy query imagines the future along with its actions, or leaves it out."""
    partial: float = 0.4
    """How far down a policy query that imagines denoises the video, where that goes first."""
    slow: int = 1
    """Where both denoise together: actions move at every so many steps."""
    chunk_causal: bool = False
    """Whether earlier moments are read apart, once, and remembered (`nn.history`), or all together with the present."""
    actions_per_token: int = 4
    targets: TargetConfig = field(default_factory=TargetConfig)
    """What the rows of a batch train: labels, how often each conditional, noise levels."""
    denoising_steps: int = 8
    policy_steps: int = 4
    inverse_steps: int = 1
    """One step from pure noise gives the mean of what the model believes was done."""


@FAMILIES.register("mot")
class MoT(Family):
    """See the module's docstring."""

    name = "mot"
    taxonomy = Taxonomy(
        "joint / diffusion / multi-stream / cross-attention",
        "frame latents",
        "one expert a stream, joint attention",
        "expert denoises",
        "joint",
    )
    queries = frozenset(Query)
    Config = MoTConfig

    def __init__(self, config: MoTConfig, spec: Spec, normalizer: Normalizer):
        super().__init__(config, spec, normalizer)
        c, D = config, config.width
        apart = present(spec) if c.chunk_causal else spec
        self.context = ContextTokens(D, apart, build_text(c.text, D), c.proprio_noise)
        self.history = History(spec, c.depth, c.heads, D) if c.chunk_causal else None
        self.keeps_memory = c.chunk_causal
        self.future = FutureLatents(spec, D, c.codec_channels)
        self.action = ActionChunk(spec, c.action_width, c.actions_per_token)
        self.experts = Mixture({FUTURE: D, ACTION: c.action_width}, c.depth, c.heads, D)
        self.queries = supported_queries(c.program, c.targets)
        self.first = TEACHER_FORCED.get(c.program)

    def stages(self) -> tuple[Stage, ...]:
        share = self.config.codec_share
        return (
            Stage("codec", share, ("future.codec",), self.config.codec_lr),
            Stage("main", 1 - share, ("context", "history", "future.stream", "action", "experts")),
        )

    # ---------------------------------------------------------------------------------------------------------- training

    def attention_layout(self) -> tuple[list[Segment], Tensor]:
        cells, chunk = self.future.cells, self.action.length
        known = self.history.segments if self.history else [Segment(CONTEXT, context_length(self.spec))]
        video = [*known, Segment(FUTURE, cells, problem=1)]
        action = [Segment(ACTION, chunk), Segment(ACTION, chunk, problem=1)]
        if self.first:
            known = Segment(self.first, {FUTURE: cells, ACTION: chunk}[self.first], clean=True, problem=1)
            (video if self.first == FUTURE else action).append(known)
        return video + action, table(video + action, self.config.program)

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        if stage == "codec":
            return {"codec": self.future.loss(batch, generator)}
        targets = sample_targets(
            batch, self.future, self.action, self.normalizer, self.config.targets, self.queries, generator
        )
        cache = None
        if self.history:
            context, cache, _ = self._known(batch, generator)
        else:
            context = self.context(batch, self.normalizer, generator)
        held = {FUTURE: [] if cache else [context], ACTION: []}
        for name, stream in ((FUTURE, FUTURE), (POLICY, ACTION), (ACTION, ACTION)):
            held[stream].append(self._tokens(stream, targets.noisy(name), targets.sigma[name], context, batch))
        if self.first:
            clean = {FUTURE: targets.x[FUTURE], ACTION: targets.executed}[self.first]
            level = torch.rand(len(batch), generator=generator).to(clean.device)
            level = level * (self.config.partial if self.first == FUTURE else 0)
            noise = torch.randn(clean.shape, generator=generator).to(clean.device)
            held[self.first].append(self._tokens(self.first, interpolate(clean, noise, level), level, context, batch))
        tokens = {s: torch.cat(parts, 1) for s, parts in held.items()}
        video, acting = tokens[FUTURE].shape[1], tokens[ACTION].shape[1]
        mask = targets.visible(*self.attention_layout())[..., -video - acting :, :]
        if self.history:
            mask = self.history.hide(mask, batch)
        y, _ = self.experts(tokens, {FUTURE: mask[..., :video, :], ACTION: mask[..., video:, :]}, cache)
        L, known = self.action.length, 0 if cache else context.shape[1]
        heads = {
            POLICY: self.action.stream.velocity(y[ACTION][:, :L]),
            ACTION: self.action.stream.velocity(y[ACTION][:, L : 2 * L]),
            FUTURE: self.future.stream.velocity(y[FUTURE][:, known:][:, : self.future.cells]),
        }
        return targets.losses(heads, batch, self.future, self.action)

    def _tokens(self, stream: str, x: Tensor, sigma: Tensor, context: Tensor, batch: Batch) -> Tensor:
        return self.future.tokens(x, sigma, context) if stream == FUTURE else self.action.tokens(x, sigma, batch)

    def _known(self, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, Cache, Tensor | None]:
        """The context's tokens now, keys and values of all that is known, and what to remember of it."""
        if self.history is None:
            context = self.context(batch, self.normalizer, generator)
            return context, self.experts({FUTURE: context}, {FUTURE: None})[1], None
        moments = self.context.moments(batch, self.normalizer, generator)
        cache, memory = self.history(lambda x, mask: self.experts({FUTURE: x}, {FUTURE: mask})[1], moments, batch)
        return moments[:, 0], cache, memory

    # ---------------------------------------------------------------------------------------------------------- sampling

    def default_steps(self, query: Query) -> int:
        c = self.config
        quick = {Query.POLICY: c.denoising_steps if c.imagine else c.policy_steps, Query.INVERSE: c.inverse_steps}
        return quick.get(query, c.denoising_steps)

    def generate(self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int) -> Answer:
        c, device = self.config, batch.obs.device
        eps_a = row_noise(generators, (self.action.length, self.action.channels), device)
        eps_z = row_noise(generators, (self.future.cells, self.future.channels), device)
        together = query is Query.JOINT or (query is Query.POLICY and c.imagine)
        start, paths = {}, {}
        if query.wants_future or together:
            start[FUTURE], paths[FUTURE] = eps_z, denoise(steps, c.targets.future_shift)
        if query.wants_action:
            path = denoise(steps, c.targets.action_shift(query))
            start[ACTION], paths[ACTION] = eps_a, slow(path, c.slow) if together and not self.first else path
        if query is Query.FORWARD:
            start[ACTION], paths[ACTION] = self.action.pack(batch.action, self.normalizer), hold(0, steps)
        if query is Query.INVERSE:
            start[FUTURE], paths[FUTURE] = self.future.encode(batch), hold(0, steps)
        if together and self.first == ACTION:
            paths[ACTION], paths[FUTURE] = one_after_the_other(paths[ACTION], paths[FUTURE])
        if together and self.first == FUTURE:
            until = c.partial if query is Query.POLICY else 0.0  # a picture that is shown is denoised to its end
            path = denoise(steps, c.targets.future_shift, until)
            paths[FUTURE], paths[ACTION] = one_after_the_other(path, denoise(c.policy_steps))
        context, cache, memory = self._known(batch)
        last = {n: path[-1] for n, path in paths.items()}
        final = euler(lambda x, s: self._velocity(x, s, last, context, cache, batch), start, paths)
        return Answer(
            self.action.unpack(final[ACTION], self.normalizer) if query.wants_action else None,
            self.future.decode(final[FUTURE], batch.obs) if query.wants_future else None,
            memory=memory,
        )

    def _velocity(
        self,
        state: dict[str, Tensor],
        sigma: dict[str, float],
        last: dict[str, float],
        context: Tensor,
        cache: Cache,
        batch: Batch,
    ) -> dict[str, Tensor]:
        level = {n: torch.full((1,), s, device=context.device) for n, s in sigma.items()}
        tokens = {n: self._tokens(n, state[n], level[n], context, batch) for n in (FUTURE, ACTION) if n in state}
        # The stream that goes first is shown to the other one once it has come to its end.
        order = [Segment(n, t.shape[1], clean=n == self.first and sigma[n] == last[n]) for n, t in tokens.items()]
        known = self.history.segments if self.history else [Segment(CONTEXT, context.shape[1])]
        mask_LK = visibility([*known, *order], self.config.program).to(context.device)
        mask_LK = mask_LK[-sum(s.length for s in order) :]
        if self.history:
            mask_LK = self.history.hide(mask_LK, batch)
        rows = dict(zip(tokens, mask_LK.split([s.length for s in order], -2), strict=True))
        y, _ = self.experts(tokens, rows, cache)
        heads = {FUTURE: self.future.stream, ACTION: self.action.stream}
        return {n: heads[n].velocity(part) for n, part in y.items()}
