"""`align`: the backbone that denoises actions also predicts, at a middle layer, a teacher's embedding of the future.

Stands for the leaf joint / diffusion / unified stream / implicit (FLARE, arXiv:2505.15659; FRAPPE). One query token an
image cell stands beside the noisy actions. Three quarters up it is projected to the embedding that each teacher gives
that cell of the last future frame. No frame is imagined, and none of this is needed to act: a policy query runs over
context, actions and queries.

Teachers, one or several, each with its own projection and loss:
* `ema`: the moving average of this model's own image encoder, which the action loss trains (FLARE's target);
* `pixels`: the cell's mean colours at 4x4 points, which cannot collapse and carry no semantics: a floor for the gain
  from alignment;
* `pretrained`: a frozen vision encoder by local path or hub id (DINOv2 and the like), as in FRAPPE.

Departures from papers and code: the loss is 1 - cos (FRAPPE prints cos without its sign, FLARE its flow target with the
reverse one). Queries see noisy actions, as in FLARE, so where the action is nearly clean they learn forward dynamics:
off-expert rows (action clean, no policy loss) and rows without actions (action pure noise) teach nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wamkit.families.base import FAMILIES, Family, Stage, Taxonomy
from wamkit.nn import ImageTokens, Normalizer, Tokens, VisionTeacher, canvas, flow, masked_mean
from wamkit.nn.attention_mask import ACTION, CONTEXT, Segment
from wamkit.nn.encoders import PretrainedImage
from wamkit.nn.family_options import AlignConfig
from wamkit.nn.tokens import view_cells
from wamkit.types import Batch, Query, Spec

POINTS = 4
"""Points a side of a cell, of the teacher `pixels`."""


@FAMILIES.register("align")
class Align(Family):
    """A flow-matched policy whose middle layer predicts teachers' embeddings of the future."""

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
        c, D = config, config.width
        self.context = c.build_context(spec)
        self.action = c.build_action(spec, D)
        self.trunk = c.build_trunk()
        self.ask = nn.Parameter(0.5 * torch.randn(self.context.cells, D))
        sizes = {"pixels": 3 * POINTS**2}
        if "ema" in c.teachers:
            self.teacher = copy.deepcopy(self.context.image).requires_grad_(False)
            sizes["ema"] = D
        if "pretrained" in c.teachers:
            image = self.context.image
            self.one_encoder = isinstance(image, PretrainedImage) and c.pretrained in ("", c.image.model)
            if not self.one_encoder:
                self.vision = VisionTeacher(c.pretrained, self.context.rows_columns)
            sizes["pretrained"] = (image.vision if self.one_encoder else self.vision).channels
        self.say = nn.ModuleDict(
            {t: nn.Sequential(nn.Linear(D, 2 * D), nn.SiLU(), nn.Linear(2 * D, sizes[t])) for t in c.teachers}
        )
        self.declare(self.trunk, denoised=self.action)

    def stages(self) -> tuple[Stage, ...]:
        return (Stage("main", 1.0, ("context", ACTION, "trunk", "ask", "say")),)

    @torch.no_grad()
    def after_step(self) -> None:
        if "ema" in self.config.teachers:
            for target, source in zip(self.teacher.parameters(), self.context.image.parameters(), strict=True):
                target.lerp_(source, 1 - self.config.decay)

    @torch.no_grad()
    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Each teacher's embedding of the last future frame, (B, cells, channels): a frame by itself, never a clip, so
        that it holds nothing but that moment."""
        frame = canvas(batch.future[:, -1])
        teachers = {
            "ema": lambda: self.teacher(frame),
            "pixels": lambda: F.unfold(F.avg_pool2d(frame, ImageTokens.stride // POINTS), POINTS, stride=POINTS).mT,
            "pretrained": lambda: self.context.image.features(frame) if self.one_encoder else self.vision(frame),
        }
        return {name: teachers[name]().float() for name in self.config.teachers}

    def diagnostics(self, batch: Batch, stage: str) -> dict[str, float]:
        """Spread of each teacher's (normalised) embedding between rows: 0 is a collapsed target."""
        return {f"spread_{k}": F.normalize(v, dim=-1).std(0).mean().item() for k, v in self.targets(batch).items()}

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        B, device, c = len(batch), batch.obs.device, self.config
        is_demonstration = batch.is_demonstration.view(B, 1, 1)
        x = self.action.targets(torch.where(is_demonstration, c.label(batch), batch.action), batch, self.normalizer)
        sigma = flow.uniform_sigma(B, generator).to(device)
        sigma = sigma.masked_fill(~batch.is_demonstration, 0).masked_fill(~batch.has_action, 1)
        noisy, target = flow.corrupt(x, sigma, generator)
        context = self.context(batch, self.normalizer, generator)
        parts = [*context, *self._tokens(noisy, sigma, context, batch)]
        y, hidden, _ = self.trunk.run(parts, self.attention_mask(device))
        asked = hidden[max(1, round(c.at * c.depth)) - 1][:, -len(self.ask) :]
        error, valid = (self.action.stream.velocity(y[-2]) - target).square(), self.action.valid(batch)
        losses = {"policy": masked_mean(error, valid & is_demonstration)}
        for name, embedding in self.targets(batch).items():
            cosine = F.cosine_similarity(self.say[name](asked).float(), embedding, dim=-1)
            seen = batch.frame_valid[:, -1:] & view_cells(batch, self.context.rows_columns)
            losses[f"align_{name}"] = masked_mean(1 - cosine, seen)
        return losses

    def _tokens(self, x: Tensor, sigma: Tensor, context: list[Tokens], batch: Batch) -> list[Tokens]:
        """Noisy actions, then one query a cell, which starts from the present image's token of that cell."""
        image = context[0]
        actions = self.action.tokens(x, sigma, batch, self.normalizer)
        return [actions, Tokens(self.ask + image.values, "query", image.position)]

    def attention_layout(self) -> tuple[list[Segment], Tensor]:
        """The context sees itself; actions and queries see everything."""
        lengths = {CONTEXT: self.context.length, ACTION: self.action.length, "query": len(self.ask)}
        seen = torch.ones(3, 3, dtype=torch.bool)
        seen[0, 1:] = False
        return [Segment(*s) for s in lengths.items()], seen

    def generate(
        self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int
    ) -> tuple[Tensor | None, Tensor | None]:
        context = self.context(batch, self.normalizer)
        _, cache = self.trunk(context)

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            y, _ = self.trunk(self._tokens(x, sigma, context, batch), None, cache)
            return self.action.stream.velocity(y[0])

        noise = self.action.noise(generators, batch.obs.device)
        return self.action.denoise(velocity, noise, flow.denoise(steps), batch, self.normalizer), None
