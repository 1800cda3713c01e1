"""`shared_rep`: one representation without noise, from which light heads denoise pictures and actions.

Stands for the leaf joint / diffusion / multi-stream / shared representation (UVA, arXiv:2503.00200; PhysGen). The trunk sees one slot a
future frame and cell: the sum of what is known of the future there (or a mask token), of the present picture there, and of the
actions that lead up to that frame (or a token that says that they are unknown). It holds no noise, so it runs once a query, or a
few times where the future is unmasked in rounds (MAR, arXiv:2406.11838), and only the heads denoise: an MLP a slot for its latents, a
small transformer for the chunk of actions. Which conditional is asked follows from what is masked.

Where this differs from the reference code, on purpose: the action chunk is denoised *as a chunk* (UVA gives each action its own noise and
level, which tears multimodal chunks apart); inverse dynamics keeps the present picture (UVA blanks it); what a row trains is drawn a
row from the seed (UVA draws one a batch and rank from Python's global generator); the mask ratio is the share that is masked (its
`rand > ratio` masks the rest).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wamkit.families.base import FAMILIES, Family, Stage, Taxonomy
from wamkit.nn.attention_mask import CONTEXT, Segment
from wamkit.nn.autoencoders.frame_codec import FutureLatents
from wamkit.nn.backbones.transformer import Trunk, sigma_features
from wamkit.nn.encoders import build_text
from wamkit.nn.flow import denoise, euler, interpolate, row_noise, shift_sigma, uniform_sigma
from wamkit.nn.heads import ActionChunk, masked_mean
from wamkit.nn.normalizer import Normalizer
from wamkit.nn.options import CodecConfig, TrunkConfig
from wamkit.nn.tokens import ContextTokens, context_length
from wamkit.types import Batch, Query, Spec

MODES = (Query.POLICY, Query.JOINT, Query.FORWARD, Query.INVERSE, Query.VIDEO)


@dataclass(frozen=True)
class SharedRepConfig(CodecConfig, TrunkConfig):
    """Sizes and choices of the family `shared_rep`."""

    modes: tuple[float, float, float, float, float] = (0.3, 0.2, 0.2, 0.2, 0.1)
    """How often a row trains policy, joint, forward, inverse, video."""
    least_masked: float = 0.7
    """Smallest share of cells that is masked where the future is wanted; shares follow a normal law around 1, cut off there."""
    rounds: int = 4
    """Rounds in which a query unmasks the future."""
    head_width: int = 64
    """Of the transformer that denoises actions."""
    head_depth: int = 2
    actions_per_token: int = 4
    policy_label: Literal["expert", "executed"] = "expert"
    denoising_steps: int = 8
    """Of the heads; the trunk runs once a round."""
    inverse_shift: float = 9.0
    """Moves the action's noise levels of inverse rows towards noise, where they are sampled."""
    inverse_steps: int = 1
    """Of inverse queries: one step from pure noise gives the mean of what the model believes was done."""


class SlotHead(nn.Module):
    """Denoises a slot's latents given its representation: a residual MLP a token, which knows no neighbour."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.embed, self.given, self.level = (
            nn.Linear(channels, width),
            nn.Linear(width, width),
            nn.Linear(width, width),
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(2)
        )
        self.out = nn.Linear(width, channels)

    def forward(self, x_BLc: Tensor, sigma_B: Tensor, z_BLD: Tensor) -> Tensor:
        """Velocities (B, L, c), in float32."""
        y = self.embed(x_BLc) + self.given(z_BLD)
        y = y + self.level(sigma_features(sigma_B, y.shape[-1])).unsqueeze(1)
        for block in self.blocks:
            y = y + block(y)
        return self.out(y).float()


@FAMILIES.register("shared_rep")
class SharedRep(Family):
    """See the module's docstring."""

    name = "shared_rep"
    taxonomy = Taxonomy(
        "joint / diffusion / multi-stream / shared representation",
        "frame latents",
        "channel sum in one masked trunk",
        "small head denoises the chunk",
        "joint",
    )
    queries = frozenset(Query)
    Config = SharedRepConfig

    def __init__(self, config: SharedRepConfig, spec: Spec, normalizer: Normalizer):
        super().__init__(config, spec, normalizer)
        c, D = config, config.width
        self.context = ContextTokens(D, spec, build_text(c.text, D), c.proprio_noise)
        self.future = FutureLatents(spec, D, c.codec_channels, None)
        self.action = ActionChunk(spec, c.head_width, c.actions_per_token)
        frames, channels = self.future.frames, self.future.codec.channels
        # A frame's slots are told the actions up to it; those of the whole chunk are the last frame's.
        self.reach = [round(spec.chunk * (f + 1) / frames) for f in range(frames)]
        self.known_z, self.known_a = nn.Linear(channels, D), nn.Linear(spec.chunk * spec.action_dim, D)
        self.masked_z, self.masked_a = (nn.Parameter(0.5 * torch.randn(D)) for _ in range(2))
        self.place = nn.Parameter(0.5 * torch.randn(frames, 1, D))
        self.trunk = Trunk(D, c.depth, c.heads)
        self.slot_head = SlotHead(channels, D)
        self.bridge = nn.Linear(D, c.head_width)
        self.chunk_head = Trunk(c.head_width, c.head_depth, c.heads)

    def stages(self) -> tuple[Stage, ...]:
        share = self.config.codec_share
        rest = ("context", "action", "known", "masked", "place", "trunk", "slot_head", "bridge", "chunk_head")
        return Stage("codec", share, ("future.codec",), self.config.codec_lr), Stage("main", 1 - share, rest)

    def blocks(self) -> list[nn.Module]:
        return [*super().blocks(), *self.slot_head.blocks]

    def _slots(self, z_BLc: Tensor) -> Tensor:
        """Latents a cell (B, cells, F * c) -> latents a frame and cell (B, F * cells, c)."""
        return z_BLc.unflatten(2, (self.future.frames, -1)).transpose(1, 2).flatten(1, 2)

    def _cells(self, slots: Tensor) -> Tensor:
        """The inverse of `_slots`."""
        return slots.unflatten(1, (self.future.frames, -1)).transpose(1, 2).flatten(2)

    def _represent(self, context: Tensor, slots: Tensor, known: Tensor, action: Tensor, given: Tensor) -> Tensor:
        """The shared representation (B, F * cells, D). `known`: bool (B, F * cells); `given`: bool (B,), of the actions."""
        frames, cells = self.future.frames, self.future.cells
        z = torch.where(known.unsqueeze(-1), self.known_z(slots), self.masked_z).unflatten(1, (frames, cells))
        steps = action.reshape(len(action), self.spec.chunk, -1)
        led = torch.stack([F.pad(steps[:, :n], (0, 0, 0, self.spec.chunk - n)) for n in self.reach], 1).flatten(2)
        a = torch.where(given.view(-1, 1, 1), self.known_a(led), self.masked_a)
        x = z + a.unsqueeze(2) + self.place + context[:, None, :cells]
        y, _ = self.trunk(torch.cat([context, x.flatten(1, 2)], 1))
        return y[:, context.shape[1] :]

    def attention_layout(self) -> tuple[list[Segment], Tensor]:
        """Everyone sees everyone: what must not be known is masked before it becomes a token."""
        slots = self.future.frames * self.future.cells
        return [Segment(CONTEXT, context_length(self.spec)), Segment("slots", slots)], torch.ones(
            2, 2, dtype=torch.bool
        )

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        if stage == "codec":
            return {"codec": self.future.loss(batch, generator)}
        B, device, c = len(batch), batch.obs.device, self.config
        slots = self._slots(self.future.known(batch))
        weights = torch.tensor(c.modes).repeat(B, 1)
        weights[~batch.is_demonstration.cpu()] *= torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0])
        weights[~batch.has_action.cpu()] = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0])
        mode = torch.multinomial(weights, 1, generator=generator).squeeze(1).to(device)
        policy, joint, forward, inverse, _ = (mode == i for i in range(5))
        share = 1 - (0.25 * torch.randn(B, 1, generator=generator)).abs().remainder(1 - c.least_masked)
        share = share.to(device).masked_fill(policy.unsqueeze(1), 1).masked_fill(inverse.unsqueeze(1), 0)
        order = torch.rand(B, self.future.cells, generator=generator).argsort(1).to(device)
        hidden = (order < (share * self.future.cells).round()).repeat(1, self.future.frames)

        expert = policy.view(B, 1, 1) & (c.policy_label == "expert")
        x = self.action.known(torch.where(expert, batch.action_expert, batch.action), batch, self.normalizer)
        sigma_z, sigma_a = (uniform_sigma(B, generator).to(device) for _ in range(2))
        sigma_a = torch.where(inverse, shift_sigma(sigma_a, c.inverse_shift), sigma_a)
        eps_z, eps_a = (torch.randn(t.shape, generator=generator).to(device) for t in (slots, x))
        context = self.context(batch, self.normalizer, generator)
        z = self._represent(context, slots, ~hidden, x, forward)
        error_z = (self.slot_head(interpolate(slots, eps_z, sigma_z), sigma_z, z) - (eps_z - slots)).square()
        velocity = self._chunk(interpolate(x, eps_a, sigma_a), sigma_a, self.bridge(z), batch)
        error_a, valid = (velocity - (eps_a - x)).square(), self.action.valid(batch)
        seen = batch.frame_valid.repeat_interleave(self.future.cells, 1) & hidden & ~(policy | inverse).unsqueeze(1)
        return {
            "policy": masked_mean(error_a, valid & policy.view(B, 1, 1)),
            "action": masked_mean(error_a, valid & (joint | inverse).view(B, 1, 1)),
            "future": masked_mean(error_z, seen.unsqueeze(-1)),
        }

    def _chunk(self, x: Tensor, sigma: Tensor, z: Tensor, batch: Batch) -> Tensor:
        """The velocity of a whole noisy chunk, whose tokens see each other and the representation."""
        tokens = torch.cat([z, self.action.tokens(x, sigma, batch)], 1)
        y, _ = self.chunk_head(tokens)
        return self.action.stream.velocity(y[:, z.shape[1] :])

    # ---------------------------------------------------------------------------------------------------------- sampling

    def default_steps(self, query: Query) -> int:
        return self.config.inverse_steps if query is Query.INVERSE else self.config.denoising_steps

    def generate(
        self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int
    ) -> tuple[Tensor | None, Tensor | None]:
        B, device = len(batch), batch.obs.device
        noise_a = row_noise(generators, (self.action.length, self.action.channels), device)
        noise_z = self._slots(row_noise(generators, (self.future.cells, self.future.channels), device))
        order = row_noise(generators, (self.future.cells,), device).argsort(1).argsort(1)
        context = self.context(batch, self.normalizer)
        given = torch.full((B,), query is Query.FORWARD, device=device)
        action = self.action.pack(batch.action, self.normalizer)
        slots, known = torch.zeros_like(noise_z), torch.zeros(noise_z.shape[:2], dtype=torch.bool, device=device)
        if query is Query.INVERSE:
            slots, known = self._slots(self.future.encode(batch)), ~known
        for k in range(self.config.rounds if query.wants_future else 0):
            z = self._represent(context, slots, known, action, given)
            head = lambda x, s, z=z: {"z": self.slot_head(x["z"], torch.full((1,), s["z"], device=device), z)}  # noqa: E731
            new = euler(head, {"z": noise_z}, {"z": denoise(steps)})["z"]
            slots = torch.where(known.unsqueeze(-1), slots, new)
            # Few cells first: the fewer are known, the less is known about the rest (MAR's cosine rule).
            done = 1 - torch.cos(torch.tensor((k + 1) / self.config.rounds * torch.pi / 2))
            known = (order < (done * self.future.cells).round()).repeat(1, self.future.frames)
        future = self.future.decode(self._cells(slots), batch.obs) if query.wants_future else None
        if not query.wants_action:
            return None, future
        z = self.bridge(self._represent(context, slots, known, action, given))
        head = lambda x, s: {"a": self._chunk(x["a"], torch.full((1,), s["a"], device=device), z, batch)}  # noqa: E731
        path = denoise(steps, self.config.inverse_shift if query is Query.INVERSE else 1.0)
        return self.action.unpack(euler(head, {"a": noise_a}, {"a": path})["a"], self.normalizer), future
