"""`regress`: the smallest World Action Model that keeps the contract. One pass regresses the chunk and a coarse future.

The future is the present picture plus a correction, one colour for each 4x4 pixels: far too coarse to be good, and
enough to show where everything goes. Regression averages over what might happen, so there is no seed to draw from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wamkit.families.base import FAMILIES, Family, Taxonomy
from wamkit.nn import ImageTokens, Normalizer, QueryStream, canvas, image_positions, masked_mean, uncanvas, view_cells
from wamkit.nn.attention_mask import Segment
from wamkit.nn.options import ActionConfig, Count, TrunkConfig
from wamkit.runs.config import RunConfig
from wamkit.runs.recipes import RECIPES
from wamkit.types import Batch, Query, Spec


@dataclass(frozen=True)
class RegressConfig(ActionConfig, TrunkConfig):
    """Options of the family `regress`."""

    denoising_steps: Count = 1
    """Always one pass."""


@FAMILIES.register("regress")
class Regress(Family):
    """One pass that regresses a chunk of actions and a coarse future."""

    name = "regress"
    taxonomy = Taxonomy("an example", "coarse pixels", "shared trunk", "regression queries", "joint")
    queries = frozenset({Query.POLICY, Query.VIDEO, Query.JOINT})
    deterministic = queries
    Config = RegressConfig

    def __init__(self, config: RegressConfig, spec: Spec, normalizer: Normalizer):
        super().__init__(config, spec, normalizer)
        self.frames = len(spec.frame_offsets)
        self.context = config.build_context(spec)
        self.action = config.build_action(spec, config.width, QueryStream)
        place = image_positions(spec, ImageTokens.stride, spec.frame_offsets[-1])
        self.future = QueryStream("future", self.frames * 48, place, config.width)  # 4x4 colours a cell and frame
        self.trunk = config.build_trunk()
        self.declare(self.trunk)

    def attention_layout(self) -> tuple[list[Segment], Tensor]:
        lengths = {"context": self.context.length, "chunk": self.action.length, "image": self.future.length}
        table = torch.tensor([[1, 0, 0], [1, 1, 1], [1, 1, 1]], dtype=torch.bool)
        return [Segment(*s) for s in lengths.items()], table

    def read(self, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The chunk as tokens, and the future as frames (B, F, 3, H, VW) in about [-1, 1]."""
        context = self.context(batch, self.normalizer, generator)
        future = self.future.tokens(len(batch)).plus(context[0].values)
        parts = [*context, self.action.stream.tokens(len(batch)), future]
        y, _ = self.trunk(parts, self.attention_mask(batch.obs.device))
        now = canvas(batch.obs)
        change = self.future.values(y[-1]).transpose(1, 2).unflatten(2, self.context.rows_columns)
        change = F.interpolate(F.pixel_shuffle(change, 4), now.shape[-2:]).unflatten(1, (self.frames, 3))
        return self.action.stream.values(y[-2]), now.unsqueeze(1) + change

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        chunk, future = self.read(batch, generator)
        is_demonstration = batch.is_demonstration.view(-1, 1, 1)
        x = self.action.targets(batch.action_expert, batch, self.normalizer)
        seen = (batch.frame_valid & batch.is_demonstration.view(-1, 1))[..., None, None, None]
        seen = seen & view_cells(batch, (1, self.spec.width * self.spec.views))[:, None, None, None]
        return {
            "policy": masked_mean((chunk - x).square(), self.action.valid(batch) & is_demonstration),
            "future": masked_mean((future - canvas(batch.future)).square(), seen),
        }

    def generate(
        self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int
    ) -> tuple[Tensor | None, Tensor | None]:
        chunk, future = self.read(batch)
        actions = self.action.unpack(chunk, self.normalizer) if query.wants_action else None
        return actions, uncanvas(future, self.spec.views) if query.wants_future else None


@RECIPES.register("regress")
def regress() -> RunConfig:
    """An example from outside: one pass regresses actions and a coarse future."""
    return RunConfig("regress", RegressConfig())
