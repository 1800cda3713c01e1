"""`align`: the trunk that denoises actions must also say, at a middle layer, how the future will look to a teacher.

Stands for the leaf joint / diffusion / unified stream / implicit (FLARE, arXiv:2505.15659; FRAPPE). One query token a picture cell
stands beside the noisy actions; three quarters up it is projected to the embedding that each teacher gives that cell of the
last future frame. No picture is imagined and nothing of this is needed to act: a policy query runs over context, actions and queries.

Teachers, one or several, each with its own projection and loss:
* `ema`: the moving average of this model's own image encoder, which the action loss trains (FLARE's target);
* `pixels`: the cell's mean colours at 4x4 points, which cannot collapse and know nothing: a floor for what alignment can give;
* `pretrained`: a frozen vision encoder by local path or hub id (DINOv2 and the like), as in FRAPPE.

Where this differs from papers and code, on purpose: the loss is 1 - cos (FRAPPE prints cos without its sign, FLARE its flow target
with the reverse one); queries see noisy actions, as in FLARE, so where the action is nearly clean they learn forward dynamics:
that is all that off-expert rows (action clean, no policy loss) and all that rows without actions (action pure noise) teach.
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
from wamkit.nn.attention_mask import ACTION, CONTEXT, Segment, expand
from wamkit.nn.backbones.transformer import Trunk
from wamkit.nn.encoders import VisionTeacher, build_text
from wamkit.nn.flow import denoise, euler, interpolate, row_noise, uniform_sigma
from wamkit.nn.heads import ActionChunk, masked_mean
from wamkit.nn.normalizer import Normalizer
from wamkit.nn.options import TrunkConfig
from wamkit.nn.tokens import ContextTokens, canvas, cells_of, context_length
from wamkit.types import Batch, Query, Spec

Teacher = Literal["ema", "pixels", "pretrained"]


@dataclass(frozen=True)
class AlignConfig(TrunkConfig):
    """Sizes and choices of the family `align`."""

    at: float = 0.75
    """How deep in the trunk the queries are read, as a share of its blocks."""
    teachers: tuple[Teacher, ...] = ("ema",)
    pretrained: str = ""
    """For the teacher `pretrained`: a local path or a hub id of any vision encoder that `transformers.AutoModel` loads."""
    decay: float = 0.995
    """Of the moving average that is the teacher `ema`."""
    actions_per_token: int = 4
    policy_label: Literal["expert", "executed"] = "expert"
    denoising_steps: int = 4


@FAMILIES.register("align")
class Align(Family):
    """See the module's docstring."""

    name = "align"
    taxonomy = Taxonomy(
        "joint / diffusion / unified / implicit",
        "feature embeddings",
        "one stream, alignment at a middle layer",
        "trunk denoises",
        "joint, frozen or EMA target",
    )
    queries = frozenset({Query.POLICY})
    Config = AlignConfig

    def __init__(self, config: AlignConfig, spec: Spec, normalizer: Normalizer):
        super().__init__(config, spec, normalizer)
        c, D, cells = config, config.width, cells_of(spec)
        self.context = ContextTokens(D, spec, build_text(c.text, D), c.proprio_noise)
        self.action = ActionChunk(spec, D, c.actions_per_token)
        self.trunk = Trunk(D, c.depth, c.heads)
        self.ask = nn.Parameter(0.5 * torch.randn(cells, D))
        sizes = {"pixels": 48}
        if "ema" in c.teachers:
            self.teacher = copy.deepcopy(self.context.image).requires_grad_(False)
            sizes["ema"] = D
        if "pretrained" in c.teachers:
            self.vision = VisionTeacher(c.pretrained, (spec.height // 16, spec.width * spec.views // 16))
            sizes["pretrained"] = self.vision.channels
        self.say = nn.ModuleDict(
            {t: nn.Sequential(nn.Linear(D, 2 * D), nn.SiLU(), nn.Linear(2 * D, sizes[t])) for t in c.teachers}
        )

    def stages(self) -> tuple[Stage, ...]:
        return (Stage("main", 1.0, ("context", ACTION, "trunk", "ask", "say")),)

    @torch.no_grad()
    def after_step(self) -> None:
        if "ema" in self.config.teachers:
            for target, source in zip(self.teacher.parameters(), self.context.image.parameters(), strict=True):
                target.lerp_(source, 1 - self.config.decay)

    @torch.no_grad()
    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Each teacher's embedding of the last future frame, (B, cells, channels): a picture of its own, never a clip, so
        that nothing but that moment is in it."""
        picture = canvas(batch.future[:, -1])
        out: dict[str, Tensor] = {}
        for name in self.config.teachers:
            if name == "ema":
                out[name] = self.teacher(picture)
            elif name == "pixels":
                out[name] = F.unfold(F.avg_pool2d(picture, 4), 4, stride=4).transpose(1, 2)
            else:
                out[name] = self.vision(picture)
        return {k: v.float() for k, v in out.items()}

    def diagnostics(self, batch: Batch, stage: str) -> dict[str, float]:
        """How much each teacher's (normalised) embedding differs between rows: 0 is a collapsed target."""
        return {f"spread_{k}": F.normalize(v, dim=-1).std(0).mean().item() for k, v in self.targets(batch).items()}

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        B, device = len(batch), batch.obs.device
        expert = batch.is_demonstration.view(B, 1, 1) & (self.config.policy_label == "expert")
        x = self.action.known(torch.where(expert, batch.action_expert, batch.action), batch, self.normalizer)
        sigma = uniform_sigma(B, generator).to(device)
        sigma = sigma.masked_fill(~batch.is_demonstration, 0).masked_fill(~batch.has_action, 1)
        eps = torch.randn(x.shape, generator=generator).to(device)
        context = self.context(batch, self.normalizer, generator)
        tokens = torch.cat([context, self._tokens(interpolate(x, eps, sigma), sigma, context, batch)], 1)
        segments, seen_SS = self.attention_layout()
        hidden, _ = self.trunk.run(tokens, expand(seen_SS, segments).to(device))
        L = self.action.length
        velocity = self.action.stream.velocity(self.trunk.norm(hidden[-1])[:, context.shape[1] :][:, :L])
        said = hidden[max(1, round(self.config.at * self.config.depth)) - 1][:, context.shape[1] + L :]
        valid = self.action.valid(batch) & batch.is_demonstration.view(B, 1, 1)
        losses = {"policy": masked_mean((velocity - (eps - x)).square(), valid)}
        seen = batch.frame_valid[:, -1:]
        for name, target in self.targets(batch).items():
            cosine = F.cosine_similarity(self.say[name](said).float(), target, dim=-1)
            losses[f"align_{name}"] = masked_mean(1 - cosine, seen)
        return losses

    def _tokens(self, x: Tensor, sigma: Tensor, context: Tensor, batch: Batch) -> Tensor:
        """Noisy actions, then one query a cell, which starts from the present picture's token of that cell."""
        ask = self.ask + context[:, : len(self.ask)]
        return torch.cat([self.action.tokens(x, sigma, batch), ask], 1)

    def attention_layout(self) -> tuple[list[Segment], Tensor]:
        """The context sees itself; actions and queries see everything."""
        lengths = ((CONTEXT, context_length(self.spec)), (ACTION, self.action.length), ("query", len(self.ask)))
        seen = torch.ones(3, 3, dtype=torch.bool)
        seen[0, 1:] = False
        return [Segment(*s) for s in lengths], seen

    def generate(
        self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int
    ) -> tuple[Tensor | None, Tensor | None]:
        context = self.context(batch, self.normalizer)
        _, cache = self.trunk(context)

        def velocity(state: dict[str, Tensor], sigma: dict[str, float]) -> dict[str, Tensor]:
            level = torch.full((1,), sigma[ACTION], device=context.device)
            y, _ = self.trunk(self._tokens(state[ACTION], level, context, batch), None, cache)
            return {ACTION: self.action.stream.velocity(y[:, : self.action.length])}

        noise = row_noise(generators, (self.action.length, self.action.channels), context.device)
        x = euler(velocity, {ACTION: noise}, {ACTION: denoise(steps)})[ACTION]
        return self.action.unpack(x, self.normalizer), None
