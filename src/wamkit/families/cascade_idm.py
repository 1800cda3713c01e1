"""`cascade_idm`: a flow planner imagines the pictures, an inverse dynamics model reads the actions off them.

Stands for the leaf cascaded / explicit / learned extraction (UniPi, arXiv:2302.00111; VLP; Vidar, arXiv:2507.12898).
The plan's pixels are all that the action ever learns of the instruction: the inverse dynamics model (IDM) sees two
consecutive frames (now and f8, f8 and f16, ...) and proprioception, and regresses the actions between them. Variant
`masked` (Vidar) looks through a learned mask only: a = R(round(U(x)) x), with a price on what the mask lets through.

Where this differs from the reference code, on purpose:
* UniPi's IDM never sees an imagined frame before it acts on one. Here a share of its rows (`on_decodes`) shows what the
  frozen planner and codec make of the true future: noised to a drawn level, denoised in `decode_steps`, decoded. A free
  plan would show another future than the executed actions led to; what happens is decided above `decode_sigma`, so
  below it the picture has the planner's faults but still these actions' outcome, and costs two short passes.
* The plan is latents of the frame codec, not pixels, and starts from the present frame by addition
  (FutureLatents.tokens).
* Convolutions keep where things are, instead of UniPi's mean over the picture: the camera stands still.
* No text drop-out and no classifier-free guidance, which would double the price of a plan.
* Vidar's mask has cells of 4x4 pixels, one mask a picture, and starts out open; |m| is the mean over the mask.

Off-expert rows train the IDM as much as demonstrations do, but no plan; rows without actions train the plan alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wamkit.config import check_bounds
from wamkit.families.base import FAMILIES, Family, Stage, Taxonomy
from wamkit.nn.attention_mask import CONTEXT, FUTURE, Program, Segment, expand, table
from wamkit.nn.autoencoders.frame_codec import FutureLatents
from wamkit.nn.backbones.transformer import Cache, Trunk
from wamkit.nn.encoders import build_text
from wamkit.nn.flow import denoise, euler, interpolate, row_noise, shift_sigma, uniform_sigma
from wamkit.nn.heads import masked_mean
from wamkit.nn.normalizer import Normalizer
from wamkit.nn.options import CodecConfig, TrunkConfig
from wamkit.nn.tokens import ContextTokens, Downsample, canvas, cells_of, context_length, uncanvas
from wamkit.types import Batch, Query, Spec


@dataclass(frozen=True)
class CascadeIDMConfig(CodecConfig, TrunkConfig):
    """Sizes and choices of the family `cascade_idm`."""

    codec_share: float = 0.3
    idm_share: float = 0.25
    """Share of all steps that train the inverse dynamics model, last; what is left trains the planner."""
    idm: Literal["plain", "masked"] = "plain"
    mask_weight: float = 3e-3
    """Price of an open mask (Vidar: 0.1 shuts it and the actions are lost)."""
    on_decodes: float = 0.5
    """Share of the IDM's training rows that see imagined frames instead of recorded ones."""
    decode_sigma: float = 0.75
    """The highest level from which those frames are denoised."""
    decode_steps: int = 2
    future_shift: float = 3.0
    denoising_steps: int = 8

    def __post_init__(self) -> None:
        check_bounds(self, codec_share=(0.01, 0.99), on_decodes=(0, 1), decode_sigma=(0, 1), decode_steps=(1, inf))
        check_bounds(self, idm_share=(0.005, 0.995 - self.codec_share), mask_weight=(0, inf))


class InverseDynamics(nn.Module):
    """Actions between consecutive frames, from pixels and proprioception; one network for all pairs, told which.

    Steps of the chunk after the last frame are read off the last pair.
    """

    def __init__(self, spec: Spec, masked: bool, width: int = 48, hidden: int = 128):
        super().__init__()
        pairs, pictures = len(spec.frame_offsets), 2 + len(spec.past_offsets)
        starts = (0, *spec.frame_offsets[:-1])
        pair_A = [sum(t >= s for s in starts) - 1 for t in range(spec.chunk)]
        step_A = [t - starts[k] for t, k in enumerate(pair_A)]
        self.pairs, self.steps = pairs, max(step_A) + 1
        self.register_buffer("pair_A", torch.tensor(pair_A), persistent=False)
        self.register_buffer("step_A", torch.tensor(step_A), persistent=False)
        self.patch, self.mix = nn.Conv2d(3 * pictures, width, 4, stride=4), nn.Conv2d(width, width, 3, padding=1)
        self.down, self.last = Downsample(width, 2 * width), nn.Conv2d(2 * width, 32, 3, stride=2, padding=1)
        self.look = nn.Linear(32 * cells_of(spec), hidden)
        self.feel = nn.Linear(spec.proprio_dim * (pictures - 1), hidden)
        self.pair = nn.Parameter(0.5 * torch.randn(pairs, hidden))
        self.hidden, self.out = nn.Linear(hidden, hidden), nn.Linear(hidden, self.steps * spec.action_dim)
        self.mask = None
        if masked:
            inner, out = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, pictures, 3, padding=1)
            self.mask = nn.Sequential(nn.Conv2d(3 * pictures, 32, 4, stride=4), nn.SiLU(), inner, nn.SiLU(), out)
            nn.init.constant_(out.bias, 2.0)
        self.to(memory_format=torch.channels_last)

    def forward(self, frames: Tensor, past: Tensor, proprio: Tensor) -> tuple[Tensor, Tensor | None]:
        """Frames (B, 1 + F, 3, H, W), the present one first, earlier ones (B, P, 3, H, W), proprioception (B, (1 + P)s)
        -> normalised actions (B, A, a) and how open the mask is (B, F), in float32."""
        B, F_ = len(frames), self.pairs
        seen = torch.cat([frames[:, :-1], frames[:, 1:], past.flatten(1, 2).unsqueeze(1).expand(-1, F_, -1, -1, -1)], 2)
        x = seen.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        opening = None
        if self.mask is not None:
            m = torch.sigmoid(self.mask(x).float())
            opening = m.mean((1, 2, 3)).view(B, F_)
            hard = F.interpolate(m + (m.round() - m).detach(), scale_factor=4)  # straight through
            x = x * hard.repeat_interleave(3, 1)
        x = F.silu(self.patch(x))
        x = self.last(self.down(x + F.silu(self.mix(x))))
        h = self.look(x.flatten(1)).view(B, F_, -1) + self.feel(proprio).unsqueeze(1) + self.pair
        y = self.out(F.silu(self.hidden(F.silu(h)))).float().view(B, F_, self.steps, -1)
        return y[:, self.pair_A, self.step_A], opening


@FAMILIES.register("cascade_idm")
class CascadeIDM(Family):
    """See the module's docstring."""

    name = "cascade_idm"
    taxonomy = Taxonomy(
        "cascaded / explicit / learned extraction",
        "frame latents",
        "actions are read off the imagined pictures",
        "inverse dynamics regression",
        "detached",
    )
    queries = frozenset({Query.POLICY, Query.VIDEO, Query.INVERSE, Query.JOINT})
    deterministic = frozenset({Query.INVERSE})
    Config = CascadeIDMConfig

    def __init__(self, config: CascadeIDMConfig, spec: Spec, normalizer: Normalizer):
        super().__init__(config, spec, normalizer)
        c, D = config, config.width
        self.context = ContextTokens(D, spec, build_text(c.text, D), c.proprio_noise)
        self.future = FutureLatents(spec, D, c.codec_channels)
        self.trunk = Trunk(D, c.depth, c.heads)
        self.idm = InverseDynamics(spec, c.idm == "masked")

    def stages(self) -> tuple[Stage, ...]:
        c = self.config
        return (
            Stage("codec", c.codec_share, ("future.codec",), c.codec_lr),
            Stage("planner", 1 - c.codec_share - c.idm_share, ("context", "future.stream", "trunk")),
            Stage("idm", c.idm_share, ("idm",)),
        )

    # --------------------------------------------------------------------------------------------------------- training

    def diagnostics(self, batch: Batch, stage: str) -> dict[str, float]:
        """How open the mask is, from 0 (blind) to 1."""
        if stage != "idm" or self.idm.mask is None:
            return {}
        return {"mask_open": self._read(canvas(batch.future), batch)[1].mean().item()}

    def attention_layout(self) -> tuple[list[Segment], Tensor]:
        """Of the planner; the inverse dynamics model sees the planned pictures and nothing else of this."""
        segments = [Segment(CONTEXT, context_length(self.spec)), Segment(FUTURE, self.future.cells)]
        return segments, table(segments, Program.DECOUPLED)

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        if stage == "codec":
            return {"codec": self.future.loss(batch, generator)}
        if stage == "idm":
            return {"action": self._inverse_loss(batch, generator)}
        z = self.future.known(batch)
        sigma = shift_sigma(uniform_sigma(len(batch), generator), self.config.future_shift).to(z.device)
        eps = torch.randn(z.shape, generator=generator).to(z.device)
        context = self.context(batch, self.normalizer, generator)
        future = self.future.tokens(interpolate(z, eps, sigma), sigma, context)
        segments, seen_SS = self.attention_layout()
        y, _ = self.trunk(torch.cat([context, future], 1), expand(seen_SS, segments).to(z.device))
        error = (self.future.stream.velocity(y[:, -future.shape[1] :]) - (eps - z)).square()
        return {"future": masked_mean(error, self.future.valid(batch) & batch.is_demonstration.view(-1, 1, 1))}

    def _inverse_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        frames, device = canvas(batch.future), batch.obs.device
        rows = (torch.rand(len(batch), generator=generator) < self.config.on_decodes).nonzero().squeeze(1)
        if len(rows):
            frames[rows.to(device)] = self._imagined(batch.rows(rows.to(device)), generator)
        action, opening = self._read(frames, batch, generator)
        # A pair is evidence only where both its frames lie inside the episode.
        pair_BF = batch.frame_valid.long().cumprod(1).bool() & batch.has_action.unsqueeze(1)
        valid_BAa = batch.action_mask() & pair_BF[:, self.idm.pair_A].unsqueeze(2)
        target = self.normalizer.encode("action", batch.action).masked_fill(~valid_BAa, 0)
        loss = masked_mean(F.smooth_l1_loss(action, target, reduction="none"), valid_BAa)
        return loss if opening is None else loss + self.config.mask_weight * masked_mean(opening, pair_BF)

    @torch.no_grad()
    def _imagined(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Futures (B, F, 3, H, W) that look imagined and yet show what the executed actions led to."""
        z, steps = self.future.known(batch), self.config.decode_steps
        sigma = self.config.decode_sigma * torch.rand(len(batch), generator=generator).to(z.device)
        x = interpolate(z, torch.randn(z.shape, generator=generator).to(z.device), sigma)
        context = self.context(batch, self.normalizer)
        _, cache = self.trunk(context)
        for k in range(steps):  # Euler's method, from each row's own level
            x = x - sigma.view(-1, 1, 1) / steps * self._velocity(x, sigma * (1 - k / steps), context, cache)
        return self._pictures(x, batch)

    # --------------------------------------------------------------------------------------------------------- sampling

    def generate(
        self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int
    ) -> tuple[Tensor | None, Tensor | None]:
        if query is Query.INVERSE:
            frames = canvas(batch.future)
        else:
            context = self.context(batch, self.normalizer)
            _, cache = self.trunk(context)
            noise = row_noise(generators, (self.future.cells, self.future.channels), context.device)

            def velocity(state: dict[str, Tensor], sigma: dict[str, float]) -> dict[str, Tensor]:
                level = torch.full((1,), sigma[FUTURE], device=context.device)
                return {FUTURE: self._velocity(state[FUTURE], level, context, cache)}

            path = denoise(steps, self.config.future_shift)
            frames = self._pictures(euler(velocity, {FUTURE: noise}, {FUTURE: path})[FUTURE], batch)
        action = None if query is Query.VIDEO else self.normalizer.decode("action", self._read(frames, batch)[0])
        return action, uncanvas(frames, self.spec.views) if query in (Query.VIDEO, Query.JOINT) else None

    def _velocity(self, z: Tensor, sigma: Tensor, context: Tensor, cache: Cache) -> Tensor:
        y, _ = self.trunk(self.future.tokens(z, sigma, context), None, cache)
        return self.future.stream.velocity(y)

    def _pictures(self, z: Tensor, batch: Batch) -> Tensor:
        """Latents to pictures (B, F, 3, H, W) in [-1, 1], not rounded: what the IDM reads."""
        z = z.unflatten(2, (self.future.frames, -1)).transpose(1, 2).flatten(0, 1)
        now = canvas(batch.obs).repeat_interleave(self.future.frames, 0)
        return self.future.codec.decode(z, now).clamp(-1, 1).unflatten(0, (len(batch), self.future.frames))

    def _read(
        self, frames: Tensor, batch: Batch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The IDM's answer for future frames (B, F, 3, H, W); proprioception gets noise where a generator is given."""
        known = F.pad(batch.past_valid, (1, 0), value=True)
        seen = torch.cat([batch.proprio.unsqueeze(1), batch.past_proprio], 1)
        proprio = self.normalizer.encode("proprio", seen)
        if generator is not None:
            noise = torch.randn(proprio.shape, generator=generator).to(proprio.device)
            proprio = proprio + self.config.proprio_noise * noise
        proprio = proprio.masked_fill(~known.unsqueeze(2), 0).flatten(1)
        past = canvas(batch.past).masked_fill(~batch.past_valid[:, :, None, None, None], 0)
        return self.idm(torch.cat([canvas(batch.obs).unsqueeze(1), frames], 1), past, proprio)
