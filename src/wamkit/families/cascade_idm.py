"""`cascade_idm`: a flow planner imagines frames, an inverse dynamics model reads the actions off them.

Stands for the leaf cascaded / explicit / learned extraction (UniPi, arXiv:2302.00111; VLP; Vidar, arXiv:2507.12898).
The actions learn of the instruction through the planned pixels alone: the inverse dynamics model (IDM) sees two
consecutive frames (now and f8, f8 and f16, ...) and proprioception, and regresses the actions between them. Variant
`masked` (Vidar) looks through a learned mask only: a = R(round(U(x)) x), with a price on the mask's opening.

Departures from the reference code:
* UniPi's IDM never sees an imagined frame before it acts on one. Here a share of its rows (`on_decodes`) shows the true
  future after the frozen planner and codec: noised to a drawn level, denoised in `decode_steps`, decoded. A free plan
  would show another future than the executed actions led to. Events are decided above `decode_sigma`, so below it the
  frame has the planner's faults but still these actions' outcome, and costs two short passes.
* The plan is latents of an autoencoder, not pixels, and starts from the present frame by addition
  (`FutureLatents.tokens`).
* Convolutions keep positions, instead of UniPi's mean over the image: the camera stands still.
* No text drop-out and no classifier-free guidance, which would double the price of a plan.
* Vidar's mask has cells of 4x4 pixels, one mask an image, and starts open; |m| is the mean over the mask.

Off-expert rows train the IDM as much as demonstrations do, but no plan; rows without actions train the plan alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wamkit.families.base import FAMILIES, Family, Stage, Taxonomy, codec_stage
from wamkit.nn import Cache, Downsample, Normalizer, Tokens, canvas, flow, grid_of, masked_mean, uncanvas
from wamkit.nn.attention_mask import CONTEXT, FUTURE, Program, Segment, table
from wamkit.nn.family_options import CascadeIDMConfig
from wamkit.nn.tokens import without_absent
from wamkit.types import Batch, Query, Spec


class InverseDynamics(nn.Module):
    """Actions between consecutive frames, from pixels and proprioception: one network for all pairs, given the pair.

    Steps of the chunk after the last frame are read off the last pair.
    """

    stride = 16

    def __init__(self, spec: Spec, masked: bool, width: int = 48, hidden: int = 128):
        super().__init__()
        pairs, images = len(spec.frame_offsets), 2 + len(spec.past_offsets)
        starts = (0, *spec.frame_offsets[:-1])
        pair_A = [sum(t >= s for s in starts) - 1 for t in range(spec.chunk)]
        step_A = [t - starts[k] for t, k in enumerate(pair_A)]
        self.pairs, self.steps = pairs, max(step_A) + 1
        self.register_buffer("pair_A", torch.tensor(pair_A), persistent=False)
        self.register_buffer("step_A", torch.tensor(step_A), persistent=False)
        self.patch, self.mix = nn.Conv2d(3 * images, width, 4, stride=4), nn.Conv2d(width, width, 3, padding=1)
        self.down, self.last = Downsample(width, 2 * width), nn.Conv2d(2 * width, 32, 3, stride=2, padding=1)
        self.look = nn.Linear(32 * prod(grid_of(spec, self.stride)), hidden)
        self.feel = nn.Linear(spec.proprio_dim * (images - 1), hidden)
        self.pair = nn.Parameter(0.5 * torch.randn(pairs, hidden))
        self.hidden, self.out = nn.Linear(hidden, hidden), nn.Linear(hidden, self.steps * spec.action_dim)
        self.mask = None
        if masked:
            inner, out = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, images, 3, padding=1)
            self.mask = nn.Sequential(nn.Conv2d(3 * images, 32, 4, stride=4), nn.SiLU(), inner, nn.SiLU(), out)
            nn.init.constant_(out.bias, 2.0)
        self.to(memory_format=torch.channels_last)

    def forward(self, frames: Tensor, past: Tensor, proprio: Tensor) -> tuple[Tensor, Tensor | None]:
        """Normalised actions (B, A, a) and the mean opening of the mask (B, F), in float32.

        frames: (B, 1 + F, 3, H, W), the present one first.
        past: (B, P, 3, H, W).
        proprio: (B, (1 + P) s).
        """
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
    """A planner that imagines frames, and an inverse dynamics model that reads actions off them."""

    name = "cascade_idm"
    taxonomy = Taxonomy(
        "cascaded / explicit / learned extraction",
        "frame latents",
        "actions are read off the imagined frames",
        "inverse dynamics regression",
        "detached",
    )
    queries = frozenset({Query.POLICY, Query.VIDEO, Query.INVERSE, Query.JOINT})
    deterministic = frozenset({Query.INVERSE})
    Config = CascadeIDMConfig

    def __init__(self, config: CascadeIDMConfig, spec: Spec, normalizer: Normalizer):
        super().__init__(config, spec, normalizer)
        self.context = config.build_context(spec)
        self.future = config.build_future(spec, config.width)
        self.trunk = config.build_trunk()
        self.idm = InverseDynamics(spec, config.idm == "masked")
        self.declare(self.trunk, codec=self.future)

    def stages(self) -> tuple[Stage, ...]:
        planner, idm = ("context", "future.stream", "trunk"), self.config.idm_share
        codec = codec_stage(self)
        rest = 1 - sum(stage.share for stage in codec) - idm
        return (
            *codec,
            Stage("planner", rest, planner, teaches=frozenset({Query.VIDEO})),
            Stage("idm", idm, ("idm",), teaches=frozenset({Query.INVERSE})),
        )

    def diagnostics(self, batch: Batch, stage: str) -> dict[str, float]:
        """Opening of the mask, from 0 (blind) to 1."""
        if stage != "idm" or self.idm.mask is None:
            return {}
        return {"mask_open": self._extract(canvas(batch.future), batch)[1].mean().item()}

    def attention_layout(self) -> tuple[list[Segment], Tensor]:
        """The planner's; the inverse dynamics model sees the planned frames and nothing else of it."""
        segments = [Segment(CONTEXT, self.context.length), Segment(FUTURE, self.future.cells)]
        return segments, table(segments, Program.DECOUPLED)

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        if stage == "codec":
            return {"codec": self.future.loss(batch, generator)}
        if stage == "idm":
            return {"action": self._inverse_loss(batch, generator)}
        z = self.future.targets(batch)
        sigma = flow.shift_sigma(flow.uniform_sigma(len(batch), generator), self.config.future_shift).to(z.device)
        noisy, target = flow.corrupt(z, sigma, generator)
        context = self.context(batch, self.normalizer, generator)
        y, _ = self.trunk([*context, self.future.tokens(noisy, sigma, context)], self.attention_mask(z.device))
        error = (self.future.stream.velocity(y[-1]) - target).square()
        return {"future": masked_mean(error, self.future.valid(batch) & batch.is_demonstration.view(-1, 1, 1))}

    def _inverse_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        frames, device = canvas(batch.future), batch.obs.device
        rows = (torch.rand(len(batch), generator=generator) < self.config.on_decodes).nonzero().squeeze(1)
        # A pass in any case: processes that train together make as many, whatever their rows are.
        chosen, own = (rows, generator) if len(rows) else (rows.new_zeros(1), torch.Generator().manual_seed(0))
        imagined = self._imagined(batch.rows(chosen.to(device)), own)
        frames[rows.to(device)] = imagined[: len(rows)]
        action, opening = self._extract(frames, batch, generator)
        # A pair is evidence only where both its frames lie inside the episode.
        pair_BF = batch.frame_valid.long().cumprod(1).bool() & batch.has_action.unsqueeze(1)
        valid_BAa = batch.action_mask() & pair_BF[:, self.idm.pair_A].unsqueeze(2)
        target = self.normalizer.encode("action", batch.action).masked_fill(~valid_BAa, 0)
        loss = masked_mean(F.smooth_l1_loss(action, target, reduction="none"), valid_BAa)
        return loss if opening is None else loss + self.config.mask_weight * masked_mean(opening, pair_BF)

    @torch.no_grad()
    def _imagined(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Futures (B, F, 3, H, W) that look imagined and yet show the outcome of the executed actions."""
        z, steps = self.future.targets(batch), self.config.decode_steps
        sigma = self.config.decode_sigma * torch.rand(len(batch), generator=generator).to(z.device)
        x, _ = flow.corrupt(z, sigma, generator)
        context = self.context(batch, self.normalizer)
        _, cache = self.trunk(context)
        for k in range(steps):  # Euler's method, from each row's own level
            x = x - sigma.view(-1, 1, 1) / steps * self._velocity(x, sigma * (1 - k / steps), context, cache)
        return without_absent(self.future.frames_of(x, batch.obs).clamp(-1, 1), batch)

    def generate(
        self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int
    ) -> tuple[Tensor | None, Tensor | None]:
        if query is Query.INVERSE:
            frames = canvas(batch.future)
        else:
            context = self.context(batch, self.normalizer)
            _, cache = self.trunk(context)
            noise = self.future.noise(generators, batch.obs.device)
            path = flow.denoise(steps, self.config.future_shift)
            z = flow.integrate(lambda x, s: self._velocity(x, s, context, cache), noise, path)
            frames = without_absent(self.future.frames_of(z, batch.obs).clamp(-1, 1), batch)
        action = None if query is Query.VIDEO else self.normalizer.decode("action", self._extract(frames, batch)[0])
        return action, uncanvas(frames, self.spec.views) if query in (Query.VIDEO, Query.JOINT) else None

    def _velocity(self, z: Tensor, sigma: Tensor, context: list[Tokens], cache: Cache) -> Tensor:
        y, _ = self.trunk([self.future.tokens(z, sigma, context)], None, cache)
        return self.future.stream.velocity(y[0])

    def _extract(
        self, frames: Tensor, batch: Batch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The IDM's answer for future frames (B, F, 3, H, W); proprioception gets noise where a generator is given."""
        valid = F.pad(batch.past_valid, (1, 0), value=True)
        seen = torch.cat([batch.proprio.unsqueeze(1), batch.past_proprio], 1)
        proprio = self.normalizer.encode("proprio", seen)
        if generator is not None:
            noise = torch.randn(proprio.shape, generator=generator).to(proprio.device)
            proprio = proprio + self.config.proprio_noise * noise
        proprio = proprio.masked_fill(~valid.unsqueeze(2), 0).flatten(1)
        past = canvas(batch.past).masked_fill(~batch.past_valid[:, :, None, None, None], 0)
        return self.idm(torch.cat([canvas(batch.obs).unsqueeze(1), frames], 1), past, proprio)
