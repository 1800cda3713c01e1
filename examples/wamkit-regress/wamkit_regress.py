"""`regress`: the smallest World Action Model that keeps the contract. One pass regresses the chunk and a coarse future.

The future is the present picture plus a correction, one colour for each 4x4 pixels: far too coarse to be good, and
enough to show where everything goes. Regression averages over what might happen, so there is no seed to draw from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from wamkit.families.base import FAMILIES, Family, Taxonomy
from wamkit.nn.attention_mask import Segment, expand
from wamkit.nn.backbones.transformer import Trunk
from wamkit.nn.encoders import TextConfig, build_text
from wamkit.nn.heads import ActionChunk, QueryStream, masked_mean
from wamkit.nn.normalizer import Normalizer
from wamkit.nn.tokens import ContextTokens, canvas, cells_of, context_length, uncanvas
from wamkit.runs.config import RunConfig
from wamkit.runs.recipes import RECIPES
from wamkit.types import Batch, Query, Spec


@dataclass(frozen=True)
class RegressConfig:
    """Sizes of the family `regress`. Fields of these names are checked by wamkit itself."""

    width: int = 128
    depth: int = 4
    heads: int = 4
    actions_per_token: int = 4
    denoising_steps: int = 1
    text: TextConfig = field(default_factory=TextConfig)


@FAMILIES.register("regress")
class Regress(Family):
    """See the module's docstring."""

    name = "regress"
    taxonomy = Taxonomy("an example", "coarse pixels", "shared trunk", "regression queries", "joint")
    queries = frozenset({Query.POLICY, Query.VIDEO, Query.JOINT})
    deterministic = queries
    Config = RegressConfig

    def __init__(self, config: RegressConfig, spec: Spec, normalizer: Normalizer):
        super().__init__(config, spec, normalizer)
        D, self.frames = config.width, len(spec.frame_offsets)
        self.context = ContextTokens(D, spec, build_text(config.text, D))
        self.action = ActionChunk(spec, D, config.actions_per_token, QueryStream)
        self.future = QueryStream(self.frames * 48, cells_of(spec), D)  # 4x4 colours a cell and frame
        self.trunk = Trunk(D, config.depth, config.heads)

    def attention_layout(self) -> tuple[list[Segment], Tensor]:
        lengths = (context_length(self.spec), self.action.length, cells_of(self.spec))
        segments = [Segment(n, length) for n, length in zip(("context", "chunk", "picture"), lengths, strict=True)]
        return segments, torch.tensor([[1, 0, 0], [1, 1, 1], [1, 1, 1]], dtype=torch.bool)

    def read(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The chunk as tokens, and the future as pictures (B, F, 3, H, VW) in about [-1, 1]."""
        context = self.context(batch, self.normalizer)
        future = self.future.tokens(len(batch)) + context[:, : self.future.queries.shape[0]]
        segments, seen_SS = self.attention_layout()
        tokens = torch.cat([context, self.action.stream.tokens(len(batch)), future], 1)
        y, _ = self.trunk(tokens, expand(seen_SS, segments).to(tokens.device))
        _, y_a, y_z = y.split([s.length for s in segments], 1)
        now = canvas(batch.obs)
        rows, columns = (n // 16 for n in now.shape[-2:])
        change = self.future.values(y_z).transpose(1, 2).unflatten(2, (rows, columns))
        change = F.interpolate(F.pixel_shuffle(change, 4), scale_factor=4.0).unflatten(1, (self.frames, 3))
        return self.action.stream.values(y_a), now.unsqueeze(1) + change

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        chunk, future = self.read(batch)
        is_demonstration = batch.is_demonstration.view(-1, 1, 1)
        x = self.action.known(batch.action_expert, batch, self.normalizer)
        seen = (batch.frame_valid & batch.is_demonstration.view(-1, 1))[..., None, None, None]
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
