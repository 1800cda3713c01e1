"""`jepa`: the backbone predicts the future in the space of a slowly following encoder, beside flow-matched actions.

Stands for the leaf joint / autoregressive / predictive-latent (VLA-JEPA). The backbone sees the present alone: context,
a few latent queries for each transition between frames, and action queries. A small predictor then rolls the embedding
of the present forward, frame by frame: from the frames so far and the latents of the transitions so far it predicts the
next frame's embedding. A head denoises the chunk of actions, attending to the outputs of the action queries. Target
encoder and predictor are not needed to act.

It imagines no frames; `roll_out` gives the predicted embeddings. Departures from the reference code:
* every frame is embedded by itself; a clip encoder that sees the whole clip (V-JEPA 2 as used there) puts the future
  into the predictor's *inputs*, despite the claim of no leakage;
* views are tiled into one image, so that rows cannot be paired with other rows' views;
* all rows weigh the same, whether they have actions or not;
* a spread penalty on the learned encoder, and diagnostics of the target's spread, since a moving target may collapse.

With a pretrained encoder of images (`model.image`) its frozen features are context and target, and nothing moves.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wamkit.families.base import FAMILIES, Family, Stage, Taxonomy
from wamkit.nn import Normalizer, Tokens, Trunk, canvas, flow, masked_mean, step_positions
from wamkit.nn.attention_mask import CONTEXT, Segment
from wamkit.nn.encoders import PretrainedImage
from wamkit.nn.family_options import JepaConfig
from wamkit.nn.tokens import view_cells
from wamkit.types import Batch, Query, Spec


@FAMILIES.register("jepa")
class Jepa(Family):
    """A predictor of future embeddings, and a flow-matched policy beside it."""

    name = "jepa"
    taxonomy = Taxonomy(
        "joint / autoregressive / predictive-latent",
        "feature embeddings",
        "latent and action queries of one trunk",
        "small head denoises",
        "joint, EMA target",
    )
    queries = frozenset({Query.POLICY})
    Config = JepaConfig

    def __init__(self, config: JepaConfig, spec: Spec, normalizer: Normalizer):
        super().__init__(config, spec, normalizer)
        c, D, frames = config, config.width, len(spec.frame_offsets)
        self.context = c.build_context(spec)
        image, size = self.context.image, D
        self.frozen_target = isinstance(image, PretrainedImage)
        if isinstance(image, PretrainedImage):
            size = image.vision.channels
            self.enter = nn.Linear(size, D)
        else:
            self.target = copy.deepcopy(image).requires_grad_(False)
        self.action = c.build_action(spec, c.head_width)
        self.ask_z = nn.Parameter(0.5 * torch.randn(frames * c.latents, D))
        self.ask_a = nn.Parameter(0.5 * torch.randn(self.action.length, D))
        self.trunk = c.build_trunk()
        self.step = nn.Parameter(0.5 * torch.randn(frames, 1, D))
        self.cell = nn.Parameter(0.5 * torch.randn(self.context.cells, D))
        self.predictor, self.say = Trunk(D, c.predictor_depth, c.heads), nn.Linear(D, size)
        self.bridge, self.head = nn.Linear(D, c.head_width), Trunk(c.head_width, c.head_depth, c.heads)
        place = step_positions([t for t in spec.frame_offsets for _ in range(c.latents)])
        self.register_buffer("place_z", place, persistent=False)
        self.declare(self.trunk, self.predictor, self.head, denoised=self.action)

    def stages(self) -> tuple[Stage, ...]:
        learned = ("context", "action", "ask", "trunk", "step", "cell", "predictor", "say", "bridge", "head", "enter")
        return (Stage("main", 1.0, learned),)

    @torch.no_grad()
    def after_step(self) -> None:
        if self.frozen_target:
            return
        for target, source in zip(self.target.parameters(), self.context.image.parameters(), strict=True):
            target.lerp_(source, 1 - self.config.decay)

    @torch.no_grad()
    def targets(self, batch: Batch) -> Tensor:
        """Embeddings of the present and every future frame, each by itself, normalised a cell: (B, 1 + F, cells, c)."""
        frames = torch.cat([batch.obs.unsqueeze(1), batch.future], 1)
        encode = self.context.image.features if self.frozen_target else self.target
        s = encode(canvas(frames).flatten(0, 1)).float()
        return F.layer_norm(s, s.shape[-1:]).unflatten(0, frames.shape[:2])

    def diagnostics(self, batch: Batch, stage: str) -> dict[str, float]:
        """Spread of the target's embedding of a cell between rows: 0 is collapse, 1 the most that is possible."""
        return {"target_std": self.targets(batch).std(0).mean().item()}

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        B, c = len(batch), self.config
        x = self.action.targets(c.label(batch), batch, self.normalizer)
        sigma = flow.uniform_sigma(B, generator).to(x.device)
        noisy, target = flow.corrupt(x, sigma, generator)
        context = self.context(batch, self.normalizer, generator)
        z, found = self._found(context)
        velocity = self._velocity(noisy, sigma, found, batch)
        s = self.targets(batch)
        predicted = self._roll(s[:, :-1], z)
        is_demonstration = batch.is_demonstration.view(B, 1, 1)
        # An expert's future is learned from rows that act like one, with or without their actions.
        seen = (batch.frame_valid & batch.is_demonstration.unsqueeze(1)).view(B, -1, 1, 1)
        seen = seen & view_cells(batch, self.context.rows_columns)[:, None, :, None]
        cells = context[0].values.float()
        return {
            "policy": masked_mean((velocity - target).square(), self.action.valid(batch) & is_demonstration),
            "latent": masked_mean((predicted - s[:, 1:]).abs(), seen),
            "spread": F.relu(c.spread - (cells.var(1) + 1e-4).sqrt()).mean(1),
        }

    def attention_layout(self) -> tuple[list[Segment], Tensor]:
        """The context sees itself; latent and action queries see everything. No token holds anything of the future."""
        lengths = {CONTEXT: self.context.length, "latent query": len(self.ask_z), "action query": len(self.ask_a)}
        seen = torch.ones(3, 3, dtype=torch.bool)
        seen[0, 1:] = False
        return [Segment(*s) for s in lengths.items()], seen

    def _found(self, context: list[Tokens]) -> tuple[Tensor, Tensor]:
        """Outputs of the latent queries (B, F, latents, D) and of the action queries (B, L, head_width)."""
        B = len(context[0].values)
        asks = {"latent query": (self.ask_z, self.place_z), "action query": (self.ask_a, self.action.stream.place)}
        queries = [Tokens(ask.expand(B, -1, -1), kind, place) for kind, (ask, place) in asks.items()]
        y, _ = self.trunk([*context, *queries], self.attention_mask(self.ask_z.device))
        return y[-2].unflatten(1, (len(self.spec.frame_offsets), -1)), self.bridge(y[-1])

    def _roll(self, s_BFLD: Tensor, z_BFKD: Tensor) -> Tensor:
        """The embedding after each transition (B, F, cells, c), given those before it and their latents.

        Causal in blocks: block i holds frame i and the latents of the transition from it, and sees no later block.
        """
        F_, cells = s_BFLD.shape[1:3]
        seen = self.enter(s_BFLD) if self.frozen_target else s_BFLD
        blocks = torch.cat([seen + self.cell, z_BFKD], 2) + self.step
        block_L = torch.arange(F_, device=blocks.device).repeat_interleave(blocks.shape[2])
        y, _ = self.predictor([Tokens(blocks.flatten(1, 2), "embedding")], block_L.unsqueeze(1) >= block_L)
        return self.say(y[0].unflatten(1, (F_, -1))[:, :, :cells]).float()

    @torch.inference_mode()
    def roll_out(self, batch: Batch) -> Tensor:
        """Embeddings of the futures (B, F, cells, D), each from the model's own embedding of the one before."""
        z, _ = self._found(self.context(batch, self.normalizer))
        s = self.targets(batch)[:, :1]
        for k in range(z.shape[1]):
            s = torch.cat([s, self._roll_prefix(s, z[:, : k + 1])], 1)
        return s[:, 1:]

    def _roll_prefix(self, s: Tensor, z: Tensor) -> Tensor:
        pad = self.step.shape[0] - z.shape[1]
        full = self._roll(F.pad(s, (0, 0, 0, 0, 0, pad)), F.pad(z, (0, 0, 0, 0, 0, pad)))
        return F.layer_norm(full[:, z.shape[1] - 1 : z.shape[1]], full.shape[-1:])

    def _velocity(self, x: Tensor, sigma: Tensor, found: Tensor, batch: Batch) -> Tensor:
        """The velocity of a noisy chunk, whose tokens see each other and the outputs of the action queries."""
        actions = self.action.tokens(x, sigma, batch, self.normalizer)
        y, _ = self.head([Tokens(found, "action query"), actions])
        return self.action.stream.velocity(y[1])

    def generate(
        self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int
    ) -> tuple[Tensor | None, Tensor | None]:
        _, found = self._found(self.context(batch, self.normalizer))
        noise = self.action.noise(generators, batch.obs.device)
        velocity = lambda x, s: self._velocity(x, s, found, batch)  # noqa: E731
        return self.action.denoise(velocity, noise, flow.denoise(steps), batch, self.normalizer), None
