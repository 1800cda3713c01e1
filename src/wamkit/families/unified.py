"""`unified`: one flow transformer over future-observation and action tokens with independent noise levels.

Stands for the leaf joint / diffusion / unified stream / explicit (UWM, arXiv:2504.02792; PAD; VideoVLA). All five
queries are schedules over the two streams: denoise what is wanted, hold at 0 what is given, and what is held at 1 is
absent: it carries no information, so nobody looks at it and sampling leaves it out.

Where this differs from the reference code of UWM, on purpose:
* A marginal is trained at exactly the level at which it is sampled (sigma = 1), not at the last DDIM step before it.
* Rows without actions contribute nothing to the action loss, instead of an identity task at full noise.
* Each row trains two problems that share one context: the policy alone (action tokens only, so a policy query is
  short), and one conditional of the joint, drawn a row. Off-expert rows train only what they are evidence for: forward
  and inverse dynamics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from wamkit.family import FAMILIES, Family, Stage, Taxonomy, row_noise
from wamkit.nn.codec import FutureLatents
from wamkit.nn.flow import denoise, euler, hold, interpolate, shift_sigma, uniform_sigma
from wamkit.nn.heads import ActionChunk, masked_mean
from wamkit.nn.pretrained import TextConfig, build_text
from wamkit.nn.streams import ACTION, CONTEXT, FUTURE, TEACHER_FORCED, Program, Segment, sees_other, visibility
from wamkit.nn.tokens import ContextTokens, Normalizer
from wamkit.nn.trunk import Cache, Trunk
from wamkit.types import Batch, Query, Spec

WORLD = (Query.JOINT, Query.FORWARD, Query.INVERSE, Query.VIDEO)


@dataclass(frozen=True)
class UnifiedConfig:
    """Sizes and choices of the family `unified`."""

    width: int = 128
    depth: int = 4
    heads: int = 4
    codec_channels: int = 8
    """Latent numbers an 8x8-pixel cell of a future frame."""
    codec_lr: float = 0.8
    """The codec's learning rate, as a multiple of train.lr."""
    codec_share: float = 0.35
    """Share of all steps that train the frame codec, before the trunk starts."""
    actions_per_token: int = 4
    program: Program = Program.JOINT
    policy_label: Literal["expert", "executed"] = "expert"
    """What the policy learns to do: the clean expert action, or what was executed, noise included."""
    joint_label: Literal["expert", "executed"] = "executed"
    """The same for the actions of joint rows, whose futures came from what was executed."""
    modes: tuple[float, float, float, float] = (0.25, 0.25, 0.35, 0.15)
    """How often a row trains joint, forward, inverse, video."""
    future_shift: float = 3.0
    """Moves the future's noise levels towards noise, in training and sampling: its many numbers are redundant, so that
    what happens is decided at high noise, and below it only how that looks."""
    proprio_noise: float = 0.05
    denoising_steps: int = 8
    """Of queries that imagine pictures."""
    policy_steps: int = 4
    """Of policy queries."""
    inverse_shift: float = 9.0
    """The same for the actions of inverse rows: trained where they are sampled, with one step from pure noise."""
    inverse_steps: int = 1
    """Of inverse queries. One Euler step from pure noise gives exactly the mean of what the model believes, since there
    v = eps - E[x]: the best estimate of what was done. More steps draw a sample of it, with twice the squared error."""
    text: TextConfig = field(default_factory=TextConfig)


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
        self.context = ContextTokens(D, spec, build_text(c.text, D), c.proprio_noise)
        self.future = FutureLatents(spec, D, c.codec_channels)
        self.action = ActionChunk(spec, D, c.actions_per_token)
        self.trunk = Trunk(D, c.depth, c.heads)
        # What a program keeps apart cannot be asked for.
        dynamics = {Query.FORWARD: (FUTURE, ACTION), Query.INVERSE: (ACTION, FUTURE)}
        self.queries = frozenset(q for q in Query if q not in dynamics or sees_other(c.program, *dynamics[q]))
        self.first = TEACHER_FORCED.get(c.program)

    def stages(self) -> tuple[Stage, ...]:
        share = self.config.codec_share
        return (
            Stage("codec", share, ("future.codec",), self.config.codec_lr),
            Stage("main", 1 - share, ("context", "future.stream", "action", "trunk")),
        )

    # ---------------------------------------------------------------------------------------------------------- training

    @torch.no_grad()
    def features(self, batch: Batch, stage: str) -> dict[str, Tensor]:
        """Latents of the future: the main stage does not change the codec."""
        return {"latents": self.future.encode(batch)} if stage == "main" else {}

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        if stage == "codec":
            return {"codec": self.future.loss(batch, generator)}
        B, device = len(batch), batch.obs.device
        with torch.no_grad():
            z = self.future.known(batch)
        executed = self.action.known(batch.action, batch, self.normalizer)
        expert = self.action.known(batch.action_expert, batch, self.normalizer)
        mode = self._draw_modes(batch, generator).to(device)
        joint, forward, inverse, video = (mode == i for i in range(4))

        sigma_p, sigma_a, sigma_z = (uniform_sigma(B, generator).to(device) for _ in range(3))
        sigma_z = shift_sigma(sigma_z, self.config.future_shift)
        sigma_a = torch.where(inverse, shift_sigma(sigma_a, self.config.inverse_shift), sigma_a)
        sigma_a = sigma_a.masked_fill(forward, 0).masked_fill(video, 1)
        sigma_z = sigma_z.masked_fill(inverse, 0)
        policy_x = expert if self.config.policy_label == "expert" else executed
        joint_x = expert if self.config.joint_label == "expert" else executed
        action_x = torch.where(joint.view(B, 1, 1), joint_x, executed)
        eps_p, eps_a, eps_z = (torch.randn(x.shape, generator=generator).to(device) for x in (policy_x, action_x, z))
        context = self.context(batch, self.normalizer, generator)
        tokens = [
            context,
            self._tokens(ACTION, interpolate(policy_x, eps_p, sigma_p), sigma_p, context),
            self._tokens(FUTURE, interpolate(z, eps_z, sigma_z), sigma_z, context),
            self._tokens(ACTION, interpolate(action_x, eps_a, sigma_a), sigma_a, context),
        ]
        streams = [(CONTEXT, 0, False), (ACTION, 0, False), (FUTURE, 1, False), (ACTION, 1, False)]
        if self.first:
            clean = torch.zeros(1, device=device)
            tokens.append(self._tokens(self.first, {FUTURE: z, ACTION: executed}[self.first], clean, context))
            streams.append((self.first, 1, True))
        segments = [Segment(n, t.shape[1], clean, d) for (n, d, clean), t in zip(streams, tokens, strict=True)]
        mask_LK = visibility(segments, self.config.program).to(device)
        # A stream at sigma = 1 is absent: the future of a `video` row must not see the action tokens beside it.
        action_L = torch.cat([torch.full((s.length,), s.stream == ACTION and s.draw == 1) for s in segments]).to(device)
        mask_BLK = mask_LK & ~(video.view(B, 1, 1) & action_L & ~action_L.unsqueeze(1))
        y, _ = self.trunk(torch.cat(tokens, 1), mask_BLK.unsqueeze(1))
        _, y_p, y_z, y_a, *_ = y.split([s.length for s in segments], 1)

        action_valid, rows = self.action.valid(batch), lambda x: x.view(B, 1, 1)
        error_p = (self.action.stream.velocity(y_p) - (eps_p - policy_x)).square()
        error_a = (self.action.stream.velocity(y_a) - (eps_a - action_x)).square()
        error_z = (self.future.stream.velocity(y_z) - (eps_z - z)).square()
        return {
            "policy": masked_mean(error_p, action_valid & rows(batch.imitate)),
            "action": masked_mean(error_a, action_valid & rows(joint & batch.imitate | inverse)),
            "future": masked_mean(error_z, self.future.valid(batch) & rows(~inverse & batch.imitate | forward)),
        }

    def _draw_modes(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """One of WORLD for each row (int64 (B,)), among those that the row is evidence for."""
        possible = torch.tensor([q in self.queries for q in WORLD])
        weights = (torch.tensor(self.config.modes) * possible).repeat(len(batch), 1)
        off_expert, no_action = ~batch.imitate.cpu(), ~batch.has_action.cpu()
        if possible[1] or possible[2]:
            weights[off_expert] *= torch.tensor([0.0, 1.0, 1.0, 0.0])
        weights[no_action] = torch.tensor([0.0, 0.0, 0.0, 1.0])
        return torch.multinomial(weights, 1, generator=generator).squeeze(1)

    # ---------------------------------------------------------------------------------------------------------- sampling

    def default_steps(self, query: Query) -> int:
        return {Query.POLICY: self.config.policy_steps, Query.INVERSE: self.config.inverse_steps}.get(
            query, self.config.denoising_steps
        )

    def generate(
        self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int
    ) -> tuple[Tensor | None, Tensor | None]:
        device = batch.obs.device
        start: dict[str, Tensor] = {}
        schedules: dict[str, tuple[float, ...]] = {}
        # Noise is drawn in one order for every query, so that queries with one seed share it.
        eps_a = row_noise(generators, (self.action.length, self.action.channels), device)
        eps_z = row_noise(generators, (self.future.cells, self.future.channels), device)
        if query in (Query.POLICY, Query.JOINT, Query.INVERSE):
            shift = self.config.inverse_shift if query is Query.INVERSE else 1.0
            start[ACTION], schedules[ACTION] = eps_a, denoise(steps, shift)
        if query in (Query.VIDEO, Query.JOINT, Query.FORWARD):
            start[FUTURE], schedules[FUTURE] = eps_z, denoise(steps, self.config.future_shift)
        if query is Query.FORWARD:
            start[ACTION], schedules[ACTION] = self.action.pack(batch.action, self.normalizer), hold(0, steps)
        if query is Query.INVERSE:
            start[FUTURE], schedules[FUTURE] = self.future.encode(batch), hold(0, steps)
        if query is Query.JOINT and self.first:  # one stream after the other, each over all its steps
            second = FUTURE if self.first == ACTION else ACTION
            schedules[self.first] += hold(0, steps - 1)
            schedules[second] = (*hold(1, steps - 1), *schedules[second])
        # The context sees no one but itself, so one pass serves every denoising step.
        context = self.context(batch, self.normalizer)
        _, cache = self.trunk(context)
        final = euler(lambda x, s: self._velocity(x, s, context, cache), start, schedules)
        wants_action = query in (Query.POLICY, Query.JOINT, Query.INVERSE)
        wants_future = query in (Query.VIDEO, Query.JOINT, Query.FORWARD)
        return (
            self.action.unpack(final[ACTION], self.normalizer) if wants_action else None,
            self.future.decode(final[FUTURE], batch.obs) if wants_future else None,
        )

    @torch.inference_mode()
    def reconstruct(self, batch: Batch) -> Tensor:
        return self.future.decode(self.future.encode(batch), batch.obs)

    def _tokens(self, name: str, x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        return self.future.tokens(x, sigma, context) if name == FUTURE else self.action.stream.tokens(x, sigma)

    def _velocity(
        self, state: dict[str, Tensor], sigma: dict[str, float], context: Tensor, cache: Cache
    ) -> dict[str, Tensor]:
        level = {n: torch.full((1,), s, device=context.device) for n, s in sigma.items()}
        tokens = {n: self._tokens(n, state[n], level[n], context) for n in (FUTURE, ACTION) if n in state}
        segments = [Segment(CONTEXT, context.shape[1])]
        segments += [Segment(n, t.shape[1], clean=n == self.first and sigma[n] == 0) for n, t in tokens.items()]
        mask_LK = visibility(segments, self.config.program)[context.shape[1] :].to(context.device)
        y, _ = self.trunk(torch.cat(list(tokens.values()), 1), None if mask_LK.all() else mask_LK, cache)
        parts = y.split([t.shape[1] for t in tokens.values()], 1)
        heads = {FUTURE: self.future.stream, ACTION: self.action.stream}
        return {n: heads[n].velocity(part) for n, part in zip(tokens, parts, strict=True)}
