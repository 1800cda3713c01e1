"""`query_ar`: learned queries read the action chunk and the future off a step-causal backbone, in one pass.

Stands for the leaf joint / autoregressive / explicit-decoupled (GR-1, arXiv:2312.13139; GR-2; GR-MG). The sequence is
the history, step by step (`window.past_offsets`), each step seeing itself and earlier ones. [ACT] and [OBS] queries of
the present step attend to it, and no token attends to them, not even they to each other: given the history, action and
future are conditionally independent, so the family answers neither forward nor inverse dynamics. One pass answers
policy, video and joint at once, with one best guess instead of a sample: nothing is denoised, and no seed is drawn
from.

Departures from the reference code: the action head has a non-linearity (the backbone's last block; GR-1's own MLP has
none). A chunk is predicted instead of one step, since regression to single actions averages over modes at every step.
The future is read as latents of an autoencoder, whose normalised tokens take the place of patch-normalised pixels. All
action dimensions share the smooth-L1 loss, because the gripper of a simulator need not be binary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wamkit.families.base import FAMILIES, Family, Stage, Taxonomy, codec_stages
from wamkit.nn import Normalizer, QueryStream, masked_mean
from wamkit.nn.attention_mask import Segment
from wamkit.nn.family_options import QueryARConfig
from wamkit.types import Batch, Query, Spec


@FAMILIES.register("query_ar")
class QueryAR(Family):
    """Regression of actions and future by learned queries to a step-causal history."""

    name = "query_ar"
    taxonomy = Taxonomy(
        "joint / autoregressive / explicit-decoupled",
        "frame latents",
        "shared history, separate queries",
        "regression queries",
        "joint",
    )
    queries = frozenset({Query.POLICY, Query.VIDEO, Query.JOINT})
    deterministic = queries
    Config = QueryARConfig

    def __init__(self, config: QueryARConfig, spec: Spec, normalizer: Normalizer):
        super().__init__(config, spec, normalizer)
        self.context = config.build_context(spec)
        self.future = config.build_future(spec, config.width, QueryStream)
        self.action = config.build_action(spec, config.width, QueryStream)
        self.trunk = config.build_trunk()
        self.declare(self.trunk, codec=self.future)

    def stages(self) -> tuple[Stage, ...]:
        return codec_stages(self, "context", "future.stream", "action", "trunk")

    def attention_layout(self) -> tuple[list[Segment], Tensor]:
        """Step-causal: instruction first, present last; queries see all steps and are keys to none."""
        step, past = self.context.cells + 1, self.spec.past_offsets
        segments = [Segment("now", step), Segment("text", 1), *(Segment(f"{offset}", step) for offset in past)]
        segments += [Segment("action query", self.action.length), Segment("future query", self.future.cells)]
        order = torch.tensor([len(past), -1, *range(len(past))])
        seen = F.pad(order.unsqueeze(1) >= order, (0, 2, 0, 2), value=False)
        seen[-2:, :-2] = True
        return segments, seen

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        if stage == "codec":
            return {"codec": self.future.loss(batch, generator)}
        z = self.future.targets(batch)
        x = self.action.targets(self.config.label(batch), batch, self.normalizer)
        action, future = self._read(batch, generator)
        error = F.smooth_l1_loss(action, x, reduction="none")
        # Off-expert rows do not show what an expert would do: they are evidence for neither query.
        is_demonstration = batch.is_demonstration.view(-1, 1, 1)
        return {
            "policy": masked_mean(error, self.action.valid(batch) & is_demonstration),
            "future": masked_mean((future - z).square(), self.future.valid(batch) & is_demonstration),
        }

    def _read(self, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The action chunk and the future's latents, one row a token."""
        context = self.context(batch, self.normalizer, generator)
        actions = self.action.stream.tokens(len(batch))
        # As everywhere, a future token starts from the present image's token of its cell.
        futures = self.future.stream.tokens(len(batch)).plus(self.future.present(context))
        y, _ = self.trunk([*context, actions, futures], self.attention_mask(batch.obs.device))
        return self.action.stream.values(y[-2]), self.future.stream.values(y[-1])

    def generate(
        self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int
    ) -> tuple[Tensor | None, Tensor | None]:
        action, future = self._read(batch)
        actions = self.action.unpack(action, self.normalizer) if query is not Query.VIDEO else None
        return actions, self.future.decode(future, batch.obs) if query is not Query.POLICY else None
