"""`query_ar`: learned queries read the action chunk and the future off a step-causal trunk, in one pass.

Stands for the leaf joint / autoregressive / explicit-decoupled (GR-1, arXiv:2312.13139; GR-2; GR-MG). The sequence is the history,
step by step (`window.past_offsets`), each step seeing itself and what came before. [ACT] and [OBS] queries of the present
step look at it and are looked at by nobody, not even by each other: given what was seen, action and future are
conditionally independent, so neither forward nor inverse dynamics can be asked. One pass answers policy, video and joint at once,
with one best guess instead of a sample: there is nothing to denoise and no seed to draw from.

Where this differs from the reference code, on purpose: the action head has a non-linearity (the trunk's last block; GR-1's own MLP has
none); a chunk is predicted instead of one step, since regression to single actions averages over modes at every step; the
future is read as latents of the frame codec, whose normalised tokens take the place of patch-normalised pixels; all action
dimensions share the smooth-L1 loss, because the gripper of a simulator need not be binary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wamkit.families.base import FAMILIES, Family, Stage, Taxonomy
from wamkit.nn.attention_mask import Segment, expand
from wamkit.nn.autoencoders.frame_codec import FutureLatents
from wamkit.nn.backbones.transformer import Trunk
from wamkit.nn.encoders import build_text
from wamkit.nn.heads import ActionChunk, QueryStream, masked_mean
from wamkit.nn.normalizer import Normalizer
from wamkit.nn.options import CodecConfig, TrunkConfig
from wamkit.nn.tokens import ContextTokens
from wamkit.types import Batch, Query, Spec


@dataclass(frozen=True)
class QueryARConfig(CodecConfig, TrunkConfig):
    """Sizes and choices of the family `query_ar`."""

    actions_per_token: int = 4
    policy_label: Literal["expert", "executed"] = "expert"
    denoising_steps: int = 1
    """Always one pass."""


@FAMILIES.register("query_ar")
class QueryAR(Family):
    """See the module's docstring."""

    name = "query_ar"
    taxonomy = Taxonomy(
        "joint / autoregressive / explicit-decoupled", "frame latents", "shared history, separate queries", "regression queries", "joint"
    )  # fmt: skip
    queries = frozenset({Query.POLICY, Query.VIDEO, Query.JOINT})
    deterministic = queries
    Config = QueryARConfig

    def __init__(self, config: QueryARConfig, spec: Spec, normalizer: Normalizer):
        super().__init__(config, spec, normalizer)
        c, D = config, config.width
        self.context = ContextTokens(D, spec, build_text(c.text, D), c.proprio_noise)
        self.future = FutureLatents(spec, D, c.codec_channels, QueryStream)
        self.action = ActionChunk(spec, D, c.actions_per_token, QueryStream)
        self.trunk = Trunk(D, c.depth, c.heads)

    def stages(self) -> tuple[Stage, ...]:
        share = self.config.codec_share
        return (
            Stage("codec", share, ("future.codec",), self.config.codec_lr),
            Stage("main", 1 - share, ("context", "future.stream", "action", "trunk")),
        )

    def attention_layout(self) -> tuple[list[Segment], Tensor]:
        """Step-causal: the present comes last, the instruction before all; queries see all steps and are keys to none."""
        step, past = self.future.cells + 1, len(self.spec.past_offsets)
        segments = [Segment("now", step), Segment("text", 1)]
        segments += [Segment(f"{offset}", step) for offset in self.spec.past_offsets]
        order = torch.tensor([past, -1, *range(past)])
        seen = F.pad(order.unsqueeze(1) >= order, (0, 2, 0, 2), value=False)
        seen[-2:, :-2] = True
        return [
            *segments,
            Segment("action query", self.action.length),
            Segment("future query", self.future.cells),
        ], seen

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        if stage == "codec":
            return {"codec": self.future.loss(batch, generator)}
        z = self.future.known(batch)
        label = batch.action_expert if self.config.policy_label == "expert" else batch.action
        x = self.action.known(label, batch, self.normalizer)
        action, future = self._read(batch, generator)
        # Off-expert rows show what an expert would not do: they are evidence for neither query.
        is_demonstration = batch.is_demonstration.view(-1, 1, 1)
        return {
            "policy": masked_mean(
                F.smooth_l1_loss(action, x, reduction="none"), self.action.valid(batch) & is_demonstration
            ),
            "future": masked_mean((future - z).square(), self.future.valid(batch) & is_demonstration),
        }

    def _read(self, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The action chunk and the future's latents, as tokens."""
        B = len(batch)
        context = self.context(batch, self.normalizer, generator)
        actions = self.action.stream.tokens(B)
        # As everywhere, a future token starts from the present picture's token of its cell.
        futures = self.future.stream.tokens(B) + context[:, : self.future.cells]
        segments, seen_SS = self.attention_layout()
        mask_LK = expand(seen_SS, segments).to(context.device)
        y, _ = self.trunk(torch.cat([context, actions, futures], 1), mask_LK)
        _, y_a, y_z = y.split([context.shape[1], actions.shape[1], futures.shape[1]], 1)
        return self.action.stream.values(y_a), self.future.stream.values(y_z)

    def generate(
        self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int
    ) -> tuple[Tensor | None, Tensor | None]:
        action, future = self._read(batch)
        actions = self.action.unpack(action, self.normalizer) if query is not Query.VIDEO else None
        return actions, self.future.decode(future, batch.obs) if query is not Query.POLICY else None
