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
from wamkit.nn.codec import FrameCodec
from wamkit.nn.flow import denoise, euler, hold, interpolate, shift_sigma, uniform_sigma
from wamkit.nn.heads import NoisyStream, masked_mean
from wamkit.nn.pretrained import TextConfig, build_text
from wamkit.nn.streams import ACTION, CONTEXT, FUTURE, Program, Segment, visibility
from wamkit.nn.tokens import ContextTokens, Normalizer, canvas, cells_of, uncanvas
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
    codec_share: float = 0.3
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
        grid = (spec.height // 16, spec.width * spec.views // 16)
        self.cells = cells_of(spec)
        self.frames = len(spec.frame_offsets)
        self.context = ContextTokens(D, spec, build_text(c.text, D), c.proprio_noise)
        self.codec = FrameCodec(grid, c.codec_channels)
        self.future = NoisyStream(self.frames * self.codec.channels, self.cells, D)
        self.action = NoisyStream(c.actions_per_token * spec.action_dim, spec.chunk // c.actions_per_token, D)
        self.trunk = Trunk(D, c.depth, c.heads)

    def stages(self) -> tuple[Stage, ...]:
        share = self.config.codec_share
        return (
            Stage("codec", share, ("codec",), self.config.codec_lr),
            Stage("main", 1 - share, ("context", "future", "action", "trunk")),
        )

    # ---------------------------------------------------------------------------------------------------------- training

    @torch.no_grad()
    def features(self, batch: Batch, stage: str) -> dict[str, Tensor]:
        """Latents of the future: the main stage does not change the codec."""
        return {"latents": self._encode(batch.future, canvas(batch.obs))} if stage == "main" else {}

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        now = canvas(batch.obs)
        return self._codec_loss(batch, now, generator) if stage == "codec" else self._main_losses(batch, now, generator)

    def _codec_loss(self, batch: Batch, now: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Mean squared error, in squared units of [-1, 1] pixels times 100, of one imagined frame a row."""
        B, pick = len(batch), torch.randint(self.frames, (len(batch),), generator=generator).to(now.device)
        rows = torch.arange(B, device=now.device)
        future = canvas(batch.future[rows, pick])
        eps = torch.randn(B, self.cells, self.codec.channels, generator=generator).to(now.device)
        error = (self.codec(future, now, eps) - future).square().flatten(1).mean(1)
        return {"codec": 100 * error * batch.frame_valid[rows, pick]}

    def _main_losses(self, batch: Batch, now: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        B, device = len(batch), now.device
        z = (batch.features or self.features(batch, "main"))["latents"]
        executed = self._pack(batch.action)
        expert = self._pack(batch.action_expert)
        mode = self._draw_modes(batch, generator).to(device)
        joint, forward, inverse, video = (mode == i for i in range(4))

        sigma_p, sigma_a, sigma_z = (uniform_sigma(B, generator).to(device) for _ in range(3))
        sigma_z = shift_sigma(sigma_z, self.config.future_shift)
        sigma_a = sigma_a.masked_fill(forward, 0).masked_fill(video, 1)
        sigma_z = sigma_z.masked_fill(inverse, 0)
        policy_x = expert if self.config.policy_label == "expert" else executed
        action_x = (
            torch.where(joint.view(B, 1, 1), expert, executed) if self.config.joint_label == "expert" else executed
        )
        eps_p, eps_a, eps_z = (torch.randn(x.shape, generator=generator).to(device) for x in (policy_x, action_x, z))
        streams = [
            (self.action, interpolate(policy_x, eps_p, sigma_p), sigma_p),
            (self.future, interpolate(z, eps_z, sigma_z), sigma_z),
            (self.action, interpolate(action_x, eps_a, sigma_a), sigma_a),
        ]
        context = self.context(batch, self.normalizer, generator)
        tokens = [context] + [self._tokens(s, x, sigma, context) for s, x, sigma in streams]
        segments = [Segment(CONTEXT, context.shape[1])]
        segments += [
            Segment(n, s.length, draw=d)
            for n, s, d in ((ACTION, self.action, 0), (FUTURE, self.future, 1), (ACTION, self.action, 1))
        ]
        lengths = [s.length for s in segments]
        mask_LK = visibility(segments, self.config.program).to(device)
        # A stream at sigma = 1 is absent: the future of a `video` row must not see the action tokens beside it.
        absent_BK = torch.zeros(B, sum(lengths), dtype=torch.bool, device=device)
        absent_BK[:, -self.action.length :] = video.unsqueeze(1)
        own_LK = torch.zeros_like(mask_LK)
        own_LK[-self.action.length :, -self.action.length :] = True
        mask_BLK = mask_LK & (own_LK | ~absent_BK.unsqueeze(1))
        y, _ = self.trunk(torch.cat(tokens, 1), mask_BLK.unsqueeze(1))
        _, y_p, y_z, y_a = y.split(lengths, 1)

        action_valid = self._pack(
            batch.action_valid.unsqueeze(-1).expand_as(batch.action), raw=True
        ) & batch.has_action.view(B, 1, 1)
        frame_valid = batch.frame_valid.repeat_interleave(self.codec.channels, 1).unsqueeze(1)
        error_p = (self.action.velocity(y_p) - (eps_p - policy_x)).square()
        error_a = (self.action.velocity(y_a) - (eps_a - action_x)).square()
        error_z = (self.future.velocity(y_z) - (eps_z - z)).square()
        return {
            "policy": masked_mean(error_p, action_valid & batch.imitate.view(B, 1, 1)),
            "action": masked_mean(error_a, action_valid & (joint | inverse).view(B, 1, 1)),
            "future": masked_mean(error_z, frame_valid & ~inverse.view(B, 1, 1)),
        }

    def _draw_modes(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """One of WORLD for each row (int64 (B,)), among those that the row is evidence for."""
        weights = torch.tensor(self.config.modes).repeat(len(batch), 1)
        off_expert, no_action = ~batch.imitate.cpu(), ~batch.has_action.cpu()
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
        now = canvas(batch.obs)
        device = now.device
        start: dict[str, Tensor] = {}
        schedules: dict[str, tuple[float, ...]] = {}
        # Noise is drawn in one order for every query, so that queries with one seed share it.
        eps_a = row_noise(
            generators, (self.action.length, self.config.actions_per_token * self.spec.action_dim), device
        )
        eps_z = row_noise(generators, (self.cells, self.frames * self.codec.channels), device)
        if query in (Query.POLICY, Query.JOINT, Query.INVERSE):
            start[ACTION], schedules[ACTION] = eps_a, denoise(steps)
        if query in (Query.VIDEO, Query.JOINT, Query.FORWARD):
            start[FUTURE], schedules[FUTURE] = eps_z, denoise(steps, self.config.future_shift)
        if query is Query.FORWARD:
            start[ACTION], schedules[ACTION] = self._pack(batch.action), hold(0, steps)
        if query is Query.INVERSE:
            start[FUTURE], schedules[FUTURE] = self._encode(batch.future, now), hold(0, steps)
        # The context sees no one but itself, so one pass serves every denoising step.
        context = self.context(batch, self.normalizer)
        _, cache = self.trunk(context)
        final = euler(lambda x, s: self._velocity(x, s, context, cache), start, schedules)
        actions = self._unpack(final[ACTION]) if query in (Query.POLICY, Query.JOINT, Query.INVERSE) else None
        future = self._decode(final[FUTURE], now) if query in (Query.VIDEO, Query.JOINT, Query.FORWARD) else None
        return actions, future

    @torch.inference_mode()
    def reconstruct(self, batch: Batch) -> Tensor:
        now = canvas(batch.obs)
        return self._decode(self._encode(batch.future, now), now)

    def _tokens(self, stream: NoisyStream, x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        """A future token starts from the present picture's token of its cell, so that the trunk works out what changes."""
        tokens = stream.tokens(x, sigma)
        return tokens + context[:, : self.cells] if stream is self.future else tokens

    def _velocity(
        self, state: dict[str, Tensor], sigma: dict[str, float], context: Tensor, cache: Cache
    ) -> dict[str, Tensor]:
        modules = {ACTION: self.action, FUTURE: self.future}
        names = [n for n in (FUTURE, ACTION) if n in state]
        levels = {n: torch.full((1,), sigma[n], device=context.device) for n in names}
        tokens = [self._tokens(modules[n], state[n], levels[n], context) for n in names]
        segments = [Segment(CONTEXT, context.shape[1])] + [Segment(n, modules[n].length) for n in names]
        mask_LK = visibility(segments, self.config.program)[context.shape[1] :].to(context.device)
        y, _ = self.trunk(torch.cat(tokens, 1), None if mask_LK.all() else mask_LK, cache)
        parts = y.split([modules[n].length for n in names], 1)
        return {n: modules[n].velocity(part) for n, part in zip(names, parts, strict=True)}

    # ---------------------------------------------------------------------------------------------------------- packing

    def _pack(self, action_BAa: Tensor, raw: bool = False) -> Tensor:
        """(B, A, a) in robot units -> normalised tokens (B, A / p, p * a); `raw` leaves the values as they are."""
        x = action_BAa if raw else self.normalizer.encode("action", action_BAa)
        return x.reshape(len(x), self.action.length, -1)

    def _unpack(self, x: Tensor) -> Tensor:
        return self.normalizer.decode("action", x.reshape(len(x), self.spec.chunk, self.spec.action_dim))

    def _encode(self, future_BFVCHW: Tensor, now_BCHW: Tensor) -> Tensor:
        """Future frames (uint8) -> latents (B, cells, F * c): a cell's token holds all its frames."""
        B, F = future_BFVCHW.shape[:2]
        z = self.codec.encode(canvas(future_BFVCHW).flatten(0, 1), now_BCHW.repeat_interleave(F, 0))
        return z.unflatten(0, (B, F)).transpose(1, 2).flatten(2)

    def _decode(self, z_BLc: Tensor, now_BCHW: Tensor) -> Tensor:
        B, F = len(z_BLc), self.frames
        z = z_BLc.unflatten(2, (F, -1)).transpose(1, 2).flatten(0, 1)
        picture = self.codec.decode(z, now_BCHW.repeat_interleave(F, 0))
        return uncanvas(picture.unflatten(0, (B, F)), self.spec.views)
