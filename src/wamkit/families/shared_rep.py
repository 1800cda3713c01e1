"""`shared_rep`: one representation without noise, from which light heads denoise frames and actions.

Stands for the leaf joint / diffusion / multi-stream / shared representation (UVA, arXiv:2503.00200; PhysGen). The
backbone sees one slot a future frame and cell: the sum of the future's latents there (or a mask token), of the present
image there, and of the actions that lead up to that frame (or a token in place of unknown ones). It holds no noise, so
it runs once a query, or a few times where the future is unmasked in rounds (MAR, arXiv:2406.11838), and only the heads
denoise: an MLP a slot for its latents, a small transformer for the chunk of actions. The masks alone say which
conditional a query asks for.

Departures from the reference code: the action chunk is denoised *as a chunk* (UVA gives each action its own noise and
level, which tears multimodal chunks apart). Inverse dynamics keeps the present image (UVA blanks it). A row's
conditional is drawn from the seed (UVA draws one a batch and rank from Python's global generator). The mask ratio is
the share that is masked (its `rand > ratio` masks the rest).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wamkit.families.base import FAMILIES, Family, Stage, Taxonomy, codec_stages
from wamkit.nn import Normalizer, Tokens, Trunk, flow, image_positions, masked_mean, sigma_features
from wamkit.nn.attention_mask import CONTEXT, Segment
from wamkit.nn.family_options import SharedRepConfig
from wamkit.nn.tokens import view_cells
from wamkit.types import Batch, Query, Spec


class SlotHead(nn.Module):
    """A head that denoises a slot's latents given its representation: a residual MLP a token, blind to neighbours."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.embed, self.given = nn.Linear(channels, width), nn.Linear(width, width)
        self.level = nn.Linear(width, width)
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
    """A masked representation of the future, and light heads that denoise from it."""

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
        self.context = c.build_context(spec)
        self.future = c.build_future(spec, D, None)
        self.action = c.build_action(spec, c.head_width)
        frames, channels = self.future.frames, self.future.codec.channels
        # A frame's slots are given the actions up to it; the last frame's are given the whole chunk.
        self.reach = [round(spec.chunk * (f + 1) / frames) for f in range(frames)]
        self.known_z, self.known_a = nn.Linear(channels, D), nn.Linear(spec.chunk * spec.action_dim, D)
        self.masked_z, self.masked_a = (nn.Parameter(0.5 * torch.randn(D)) for _ in range(2))
        self.place = nn.Parameter(0.5 * torch.randn(frames, 1, D))
        self.trunk = c.build_trunk()
        self.slot_head = SlotHead(channels, D)
        self.bridge = nn.Linear(D, c.head_width)
        self.chunk_head = Trunk(c.head_width, c.head_depth, c.heads)
        position = [image_positions(spec, self.future.codec.stride, t) for t in spec.frame_offsets]
        self.register_buffer("position", torch.cat(position), persistent=False)
        self.declare(self.trunk, self.chunk_head, codec=self.future, denoised=self.action)

    def stages(self) -> tuple[Stage, ...]:
        rest = ("context", "action", "known", "masked", "place", "trunk", "slot_head", "bridge", "chunk_head")
        return codec_stages(self, *rest)

    def blocks(self) -> list[nn.Module]:
        return [*super().blocks(), *self.slot_head.blocks]

    def _slots(self, z_BLc: Tensor) -> Tensor:
        """Latents a cell (B, cells, F * c) -> latents a frame and cell (B, F * cells, c)."""
        return z_BLc.unflatten(2, (self.future.frames, -1)).transpose(1, 2).flatten(1, 2)

    def _cells(self, slots: Tensor) -> Tensor:
        """The inverse of `_slots`."""
        return slots.unflatten(1, (self.future.frames, -1)).transpose(1, 2).flatten(2)

    def _represent(
        self, context: list[Tokens], slots: Tensor, visible: Tensor, action: Tensor, given: Tensor
    ) -> Tensor:
        """The shared representation (B, F * cells, D).

        visible: bool (B, F * cells), the slots that are not masked.
        given: bool (B,), the rows whose actions are given.
        """
        frames, cells = self.future.frames, self.future.cells
        z = torch.where(visible.unsqueeze(-1), self.known_z(slots), self.masked_z).unflatten(1, (frames, cells))
        steps = action.reshape(len(action), self.spec.chunk, -1)
        led = torch.stack([F.pad(steps[:, :n], (0, 0, 0, self.spec.chunk - n)) for n in self.reach], 1).flatten(2)
        a = torch.where(given.view(-1, 1, 1), self.known_a(led), self.masked_a)
        x = z + a.unsqueeze(2) + self.place + self.future.present(context).unsqueeze(1)
        y, _ = self.trunk([*context, Tokens(x.flatten(1, 2), "slots", self.position)])
        return y[-1]

    def embed(self, batch: Batch) -> list[Tokens]:
        """The shared representation of a future of which nothing is given, one token a frame and cell: what a policy
        query reads actions off."""
        slots = batch.proprio.new_zeros(len(batch), len(self.position), self.future.codec.channels)
        hidden = torch.zeros_like(slots[..., 0], dtype=torch.bool)
        action = self.action.pack(torch.zeros_like(batch.action), self.normalizer)
        z = self._represent(self.context(batch, self.normalizer), slots, hidden, action, hidden[:, 0])
        return [Tokens(z, "slots", self.position)]

    def attention_layout(self) -> tuple[list[Segment], Tensor]:
        """Everyone sees everyone: a hidden value is masked before it becomes a token."""
        segments = [Segment(CONTEXT, self.context.length), Segment("slots", self.future.frames * self.future.cells)]
        return segments, torch.ones(2, 2, dtype=torch.bool)

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        if stage == "codec":
            return {"codec": self.future.loss(batch, generator)}
        B, device, c = len(batch), batch.obs.device, self.config
        slots = self._slots(self.future.targets(batch))
        weights = torch.tensor(c.modes).repeat(B, 1)
        weights[~batch.is_demonstration.cpu()] *= torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0])
        weights[~batch.has_action.cpu()] = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0])
        mode = torch.multinomial(weights, 1, generator=generator).squeeze(1).to(device)
        policy, joint, forward, inverse, _ = (mode == i for i in range(5))
        share = 1 - (0.25 * torch.randn(B, 1, generator=generator)).abs().remainder(1 - c.least_masked)
        share = share.to(device).masked_fill(policy.unsqueeze(1), 1).masked_fill(inverse.unsqueeze(1), 0)
        order = torch.rand(B, self.future.cells, generator=generator).argsort(1).to(device)
        hidden = (order < (share * self.future.cells).round()).repeat(1, self.future.frames)

        label = torch.where(policy.view(B, 1, 1), c.label(batch), batch.action)
        x = self.action.targets(label, batch, self.normalizer)
        sigma_z, sigma_a = (flow.uniform_sigma(B, generator).to(device) for _ in range(2))
        sigma_a = torch.where(inverse, flow.shift_sigma(sigma_a, c.inverse_shift), sigma_a)
        (noisy_z, target_z), (noisy_a, target_a) = (
            flow.corrupt(t, s, generator) for t, s in ((slots, sigma_z), (x, sigma_a))
        )
        context = self.context(batch, self.normalizer, generator)
        z = self._represent(context, slots, ~hidden, x, forward)
        error_z = (self.slot_head(noisy_z, sigma_z, z) - target_z).square()
        error_a = (self._chunk(noisy_a, sigma_a, self.bridge(z), batch) - target_a).square()
        valid = self.action.valid(batch)
        seen = batch.frame_valid.repeat_interleave(self.future.cells, 1) & hidden & ~(policy | inverse).unsqueeze(1)
        shown = view_cells(batch, self.future.grid).expand(-1, self.future.cells)
        seen = seen & shown.repeat(1, self.future.frames)
        return {
            "policy": masked_mean(error_a, valid & policy.view(B, 1, 1)),
            "action": masked_mean(error_a, valid & (joint | inverse).view(B, 1, 1)),
            "future": masked_mean(error_z, seen.unsqueeze(-1)),
        }

    def _chunk(self, x: Tensor, sigma: Tensor, z: Tensor, batch: Batch) -> Tensor:
        """The velocity of a whole noisy chunk, whose tokens see each other and the representation."""
        actions = self.action.tokens(x, sigma, batch, self.normalizer)
        y, _ = self.chunk_head([Tokens(z, "slots", self.position), actions])
        return self.action.stream.velocity(y[1])

    def default_steps(self, query: Query) -> int:
        return self.config.inverse_steps if query is Query.INVERSE else self.config.denoising_steps

    def generate(
        self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int
    ) -> tuple[Tensor | None, Tensor | None]:
        device = batch.obs.device
        noise_a, noise_z = self.action.noise(generators, device), self._slots(self.future.noise(generators, device))
        order = flow.row_noise(generators, (self.future.cells,), device).argsort(1).argsort(1)
        context = self.context(batch, self.normalizer)
        given = torch.full((len(batch),), query is Query.FORWARD, device=device)
        action = self.action.pack(batch.action, self.normalizer)
        slots, visible = torch.zeros_like(noise_z), torch.zeros(noise_z.shape[:2], dtype=torch.bool, device=device)
        if query is Query.INVERSE:
            slots, visible = self._slots(self.future.encode(batch)), ~visible
        for k in range(self.config.rounds if query.wants_future else 0):
            z = self._represent(context, slots, visible, action, given)
            new = flow.integrate(lambda x, s, z=z: self.slot_head(x, s, z), noise_z, flow.denoise(steps))
            slots = torch.where(visible.unsqueeze(-1), slots, new)
            # Few cells first: the fewer are visible, the less certain are the rest (MAR's cosine rule).
            done = 1 - torch.cos(torch.tensor((k + 1) / self.config.rounds * torch.pi / 2))
            visible = (order < (done * self.future.cells).round()).repeat(1, self.future.frames)
        future = self.future.decode(self._cells(slots), batch.obs) if query.wants_future else None
        if not query.wants_action:
            return None, future
        z = self.bridge(self._represent(context, slots, visible, action, given))
        path = flow.denoise(steps, self.config.inverse_shift if query is Query.INVERSE else 1.0)
        velocity = lambda x, s: self._chunk(x, s, z, batch)  # noqa: E731
        return self.action.denoise(velocity, noise_a, path, batch, self.normalizer), future
