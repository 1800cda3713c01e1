"""`mot`: one expert a stream, one attention over both: a mixture of transformers that denoises future and actions.

Stands for the leaf joint / diffusion / multi-stream / cross-attention (LingBot-VA; Motus, arXiv:2512.13030; DUST,
arXiv:2510.27607). The video expert holds context and future, the action expert holds actions. Each has its own norms,
projections and MLP, and both attend to all tokens that the program allows. Noise levels are independent, so the model
answers all conditionals that the program allows (`nn.objectives`). The methods are switches:

* Motus: program `joint`, the default.
* DUST: program `joint` and `slow` > 1, asynchronous denoising: actions move at every `slow`-th step only, since frames
  need more steps.
* LingBot-VA: program `video_then_action`. With `imagine`, a policy query denoises the video down to `partial` and then
  decodes actions from it: events are decided at high noise. The clean future that training shows to actions is noised
  up to that level. With `chunk_causal`, over `window.past_offsets`, keys of the observations are kept from query to
  query (`nn.history`).

Departures from the reference code: noise levels are drawn for each row (LingBot shares one over a batch), and training
and sampling use one attention code (LingBot's must be switched by hand). Its release, one shared backbone, is `unified`
here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wamkit.families.base import FAMILIES, Family, Stage, Taxonomy, codec_stages, replaced
from wamkit.nn import Cache, Normalizer, Tokens, flow
from wamkit.nn.attention_mask import ACTION, CONTEXT, FUTURE, Segment, table, visibility
from wamkit.nn.family_options import MoTConfig
from wamkit.nn.objectives import POLICY, JointStreams
from wamkit.types import Answer, Batch, Query, Spec


@FAMILIES.register("mot")
class MoT(Family):
    """A mixture of transformers: a video expert and an action expert under one attention."""

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
        c = config
        self.context, self.history, self.future, self.action = c.build_parts(spec, c, c.action_width)
        self.experts = c.build_experts(FUTURE, ACTION)
        self.streams = JointStreams(c, self.future, self.action, normalizer)
        self.ahead = self.history.segments if self.history else [Segment(CONTEXT, self.context.length)]
        self.queries, self.keeps_memory = self.streams.queries(), c.chunk_causal
        self.first, self.problems = self.streams.first, self.streams.problems
        self.declare(self.experts, codec=self.future, denoised=self.action)

    def stages(self) -> tuple[Stage, ...]:
        return codec_stages(self, "context", "history", "future.stream", "action", "experts")

    def attention_layout(self, joint: bool = True) -> tuple[list[Segment], Tensor]:
        lengths = {FUTURE: self.future.cells, ACTION: self.action.length}
        streams = {FUTURE: [*self.ahead], ACTION: [Segment(ACTION, lengths[ACTION])]}
        if joint:
            for name, segments in streams.items():
                segments.append(Segment(name, lengths[name], problem=1))
            if self.first:
                streams[self.first].append(Segment(self.first, lengths[self.first], clean=True, problem=1))
        streams[ACTION] += self.streams.more_segments()
        segments = streams[FUTURE] + streams[ACTION]
        return segments, table(segments, self.config.program)

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        if stage == "codec":
            return {"codec": self.future.loss(batch, generator)}
        return self.streams.spare_joint(batch, generator, self._losses)

    def _losses(self, batch: Batch, generator: torch.Generator, joint: bool) -> dict[str, Tensor]:
        targets = self.streams.sample_targets(batch, generator, joint)
        cache = None
        if self.history:
            context, cache, _ = self._read(batch, generator)
        else:
            context = self.context(batch, self.normalizer, generator)
        parts: dict[str, list[Tokens]] = {FUTURE: [] if cache else [*context], ACTION: []}
        known = len(parts[FUTURE])
        for name, stream in ((FUTURE, FUTURE), (POLICY, ACTION), (ACTION, ACTION)):
            if name not in targets.noisy:
                continue
            x, sigma = targets.noisy[name], targets.sigma[name]
            parts[stream].append(self.streams.tokens(stream, x, sigma, context, batch, name))
        if self.first and joint:  # the clean future is noised up to the level to which a policy query denoises it
            level = torch.rand(len(batch), generator=generator).to(batch.obs.device)
            level = level * (self.config.partial if self.first == FUTURE else 0)
            x, _ = flow.corrupt(targets.clean[self.first], level, generator)
            parts[self.first].append(self.streams.tokens(self.first, x, level, context, batch, ACTION))
        more = {name: len(parts[ACTION]) + k for k, name in enumerate(self.streams.more)}
        for name in more:
            x, sigma = targets.noisy[name], targets.sigma[name]
            parts[ACTION].append(self.streams.tokens(ACTION, x, sigma, context, batch, name))
        video, acting = (sum(map(len, parts[s])) for s in (FUTURE, ACTION))
        mask = targets.visible(*self.attention_layout(joint))[..., -video - acting :, :]
        if self.history:
            mask = self.history.hide(mask, batch)
        masks = {FUTURE: mask[..., :video, :], ACTION: mask[..., video:, :]}
        streams = [name for name in parts if parts[name]]  # remembered context leaves none to read beside the policy
        y, _ = self.experts({n: parts[n] for n in streams}, {n: masks[n] for n in streams}, cache)
        outputs = {POLICY: y[ACTION][0]} | ({ACTION: y[ACTION][1], FUTURE: y[FUTURE][known]} if joint else {})
        outputs |= {name: y[ACTION][at] for name, at in more.items()}
        predicted = {n: self.streams.velocity(n, t) for n, t in outputs.items()}
        return targets.losses(predicted, batch, self.future, self.action)

    def _read(
        self, batch: Batch, generator: torch.Generator | None = None
    ) -> tuple[list[Tokens], Cache, Tensor | None]:
        """The present context, its image first; keys and values of the whole context; and the memory of the present."""
        if self.history is None:
            context = self.context(batch, self.normalizer, generator)
            return context, self.experts({FUTURE: context}, {FUTURE: None})[1], None
        moments = self.context.moments(batch, self.normalizer, generator)
        return self.history(lambda x, mask: self.experts({FUTURE: x}, {FUTURE: mask})[1], moments, batch)

    def embed(self, batch: Batch) -> list[Tokens]:
        """As everywhere, in the video expert; the present moment alone where history is read moment by moment."""
        if self.history:
            context, mask = self.history.alone(lambda b: self.context.moments(b, self.normalizer), batch)
        else:
            context, mask = self.context(batch, self.normalizer), None
        return replaced(context, self.experts.before_last({FUTURE: context}, {FUTURE: mask})[FUTURE])

    def default_steps(self, query: Query) -> int:
        c = self.config
        quick = {Query.POLICY: c.denoising_steps if c.imagine else c.policy_steps, Query.INVERSE: c.inverse_steps}
        return quick.get(query, c.denoising_steps)

    def generate(self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int) -> Answer:
        c = self.config
        together = query is Query.JOINT or (query is Query.POLICY and c.imagine)
        state, paths = self.streams.start(batch, query, generators, steps, imagine=together)
        if together and not self.first:
            paths[ACTION] = flow.slow(paths[ACTION], c.slow)
        if together and self.first == ACTION:
            paths[ACTION], paths[FUTURE] = flow.one_after_the_other(paths[ACTION], paths[FUTURE])
        if together and self.first == FUTURE:
            until = c.partial if query is Query.POLICY else 0.0  # a frame that is shown is denoised to its end
            path = flow.denoise(steps, c.targets.future_shift, until)
            paths[FUTURE], paths[ACTION] = flow.one_after_the_other(path, flow.denoise(c.policy_steps))
        context, cache, memory = self._read(batch)
        last = {n: path[-1] for n, path in paths.items()}
        guides = self.action.guides(batch, self.normalizer)
        state = flow.euler(lambda x, s: self._velocity(x, s, last, context, cache, batch), state, paths, guides)
        return self.streams.answer(state, query, batch, memory)

    def _velocity(
        self,
        state: dict[str, Tensor],
        sigma: dict[str, Tensor],
        last: dict[str, float],
        context: list[Tokens],
        cache: Cache,
        batch: Batch,
    ) -> dict[str, Tensor]:
        names = [n for n in (FUTURE, ACTION) if n in state]
        tokens = {n: self.streams.tokens(n, state[n], sigma[n], context, batch) for n in names}
        # The stream that goes first is shown to the other one once it has come to its end.
        done = [n for n in names if n == self.first and bool(sigma[n] == last[n])]
        noisy = [Segment(n, len(t), clean=n in done) for n, t in tokens.items()]
        lengths = [len(t) for t in tokens.values()]
        mask_LK = visibility([*self.ahead, *noisy], self.config.program)[-sum(lengths) :].to(batch.obs.device)
        if self.history:
            mask_LK = self.history.hide(mask_LK, batch)
        rows = dict(zip(names, mask_LK.split(lengths, -2), strict=True))
        y, _ = self.experts({n: [t] for n, t in tokens.items()}, rows, cache)
        return {n: self.streams.velocity(n, y[n][0]) for n in names}
