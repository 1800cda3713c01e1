"""`jepa`: the trunk says how the future will look in the space of a slowly following encoder; actions are flow-matched beside it.

Stands for the leaf joint / autoregressive / predictive-latent (VLA-JEPA). The trunk sees the present alone: context, a few latent
queries for each transition between frames, and action queries. A small predictor then rolls the embedding of the present forward,
frame by frame: from the frames so far and the latents of the transitions so far it says the next frame's embedding. A head
denoises the chunk of actions, looking at what the action queries found. Target encoder and predictor are not needed to act.

No picture comes out: a predicted embedding is `roll_out`. Where this differs from the reference code, on purpose:
* every frame is embedded by itself; a clip encoder that sees the whole clip (V-JEPA 2 as used there) puts the future into the
  predictor's *inputs*, despite the claim of no leakage;
* views are tiled into one picture, so that rows cannot be paired with other rows' views;
* all rows weigh the same, whether they have actions or not;
* a spread penalty on the learned encoder, and diagnostics of the target's spread, since a moving target may collapse.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wamkit.families.base import FAMILIES, Family, Stage, Taxonomy
from wamkit.nn.attention_mask import CONTEXT, Segment, expand
from wamkit.nn.backbones.transformer import Trunk
from wamkit.nn.encoders import build_text
from wamkit.nn.flow import denoise, euler, interpolate, row_noise, uniform_sigma
from wamkit.nn.heads import ActionChunk, masked_mean
from wamkit.nn.normalizer import Normalizer
from wamkit.nn.options import TrunkConfig
from wamkit.nn.tokens import ContextTokens, canvas, cells_of, context_length
from wamkit.types import Batch, Query, Spec


@dataclass(frozen=True)
class JepaConfig(TrunkConfig):
    """Sizes and choices of the family `jepa`."""

    latents: int = 4
    """Latent queries a transition from frame to frame."""
    predictor_depth: int = 2
    head_width: int = 64
    """Of the transformer that denoises actions."""
    head_depth: int = 2
    decay: float = 0.995
    """Of the moving average that is the target encoder."""
    spread: float = 1.0
    """Least standard deviation between a picture's cells that the learned encoder is held to."""
    actions_per_token: int = 4
    policy_label: Literal["expert", "executed"] = "expert"
    denoising_steps: int = 4


@FAMILIES.register("jepa")
class Jepa(Family):
    """See the module's docstring."""

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
        self.context = ContextTokens(D, spec, build_text(c.text, D), c.proprio_noise)
        self.target = copy.deepcopy(self.context.image).requires_grad_(False)
        self.action = ActionChunk(spec, c.head_width, c.actions_per_token)
        self.ask_z = nn.Parameter(0.5 * torch.randn(frames * c.latents, D))
        self.ask_a = nn.Parameter(0.5 * torch.randn(self.action.length, D))
        self.trunk = Trunk(D, c.depth, c.heads)
        self.step = nn.Parameter(0.5 * torch.randn(frames, 1, D))
        self.cell = nn.Parameter(0.5 * torch.randn(cells_of(spec), D))
        self.predictor, self.say = Trunk(D, c.predictor_depth, c.heads), nn.Linear(D, D)
        self.bridge, self.head = nn.Linear(D, c.head_width), Trunk(c.head_width, c.head_depth, c.heads)

    def stages(self) -> tuple[Stage, ...]:
        learned = ("context", "action", "ask", "trunk", "step", "cell", "predictor", "say", "bridge", "head")
        return (Stage("main", 1.0, learned),)

    @torch.no_grad()
    def after_step(self) -> None:
        for target, source in zip(self.target.parameters(), self.context.image.parameters(), strict=True):
            target.lerp_(source, 1 - self.config.decay)

    @torch.no_grad()
    def targets(self, batch: Batch) -> Tensor:
        """Embeddings of the present and of every future frame, each by itself, normalised a cell: (B, 1 + F, cells, D)."""
        frames = torch.cat([batch.obs.unsqueeze(1), batch.future], 1)
        s = self.target(canvas(frames).flatten(0, 1)).float()
        return F.layer_norm(s, s.shape[-1:]).unflatten(0, frames.shape[:2])

    def diagnostics(self, batch: Batch, stage: str) -> dict[str, float]:
        """How much the target's embedding of a cell differs between rows: 0 is collapse, 1 the most that it can."""
        return {"target_std": self.targets(batch).std(0).mean().item()}

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        B, device, c = len(batch), batch.obs.device, self.config
        label = batch.action_expert if c.policy_label == "expert" else batch.action
        x = self.action.known(label, batch, self.normalizer)
        sigma = uniform_sigma(B, generator).to(device)
        eps = torch.randn(x.shape, generator=generator).to(device)
        context = self.context(batch, self.normalizer, generator)
        z, found = self._found(context)
        velocity = self._velocity(interpolate(x, eps, sigma), sigma, found, batch)
        s = self.targets(batch)
        said = self._roll(s[:, :-1], z)
        is_demonstration = batch.is_demonstration.view(B, 1, 1)
        # What an expert would see next is learned from those who act like one, with or without their actions.
        seen = (batch.frame_valid & batch.is_demonstration.unsqueeze(1)).view(B, -1, 1, 1)
        cells = context[:, : s.shape[2]].float()
        return {
            "policy": masked_mean((velocity - (eps - x)).square(), self.action.valid(batch) & is_demonstration),
            "latent": masked_mean((said - s[:, 1:]).abs(), seen),
            "spread": F.relu(c.spread - (cells.var(1) + 1e-4).sqrt()).mean(1),
        }

    def attention_layout(self) -> tuple[list[Segment], Tensor]:
        """The context sees itself; latent and action queries see everything. No token holds anything of the future."""
        lengths = (
            (CONTEXT, context_length(self.spec)),
            ("latent query", len(self.ask_z)),
            ("action query", len(self.ask_a)),
        )
        seen = torch.ones(3, 3, dtype=torch.bool)
        seen[0, 1:] = False
        return [Segment(*s) for s in lengths], seen

    def _found(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """What the latent queries (B, F, latents, D) and the action queries (B, L, head_width) found in the present."""
        B, F_ = len(context), len(self.spec.frame_offsets)
        ask = torch.cat([self.ask_z, self.ask_a]).expand(B, -1, -1)
        segments, seen_SS = self.attention_layout()
        y, _ = self.trunk(torch.cat([context, ask], 1), expand(seen_SS, segments).to(context.device))
        z, a = y[:, context.shape[1] :].split([len(self.ask_z), len(self.ask_a)], 1)
        return z.unflatten(1, (F_, -1)), self.bridge(a)

    def _roll(self, s_BFLD: Tensor, z_BFKD: Tensor) -> Tensor:
        """The embedding after each transition (B, F, cells, D), given those before it and their latents.

        Causal in blocks: block i holds frame i and the latents of the transition from it, and sees no later block.
        """
        F_, cells = s_BFLD.shape[1:3]
        blocks = torch.cat([s_BFLD + self.cell, z_BFKD], 2) + self.step
        block_L = torch.arange(F_, device=blocks.device).repeat_interleave(blocks.shape[2])
        y, _ = self.predictor(blocks.flatten(1, 2), block_L.unsqueeze(1) >= block_L)
        return self.say(y.unflatten(1, (F_, -1))[:, :, :cells]).float()

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
        """The velocity of a noisy chunk, whose tokens see each other and what was found."""
        y, _ = self.head(torch.cat([found, self.action.tokens(x, sigma, batch)], 1))
        return self.action.stream.velocity(y[:, found.shape[1] :])

    def generate(
        self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int
    ) -> tuple[Tensor | None, Tensor | None]:
        _, found = self._found(self.context(batch, self.normalizer))
        level = lambda s: torch.full((1,), s, device=found.device)  # noqa: E731
        noise = row_noise(generators, (self.action.length, self.action.channels), found.device)
        flow = lambda x, s: {"action": self._velocity(x["action"], level(s["action"]), found, batch)}  # noqa: E731
        x = euler(flow, {"action": noise}, {"action": denoise(steps)})["action"]
        return self.action.unpack(x, self.normalizer), None
