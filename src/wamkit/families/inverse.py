"""`inverse`: p(a | o, o') from images alone, the control that reads video and acts in none. Not a WAM.

A reader for `wamkit label`, which writes actions beside video (VPT, arXiv:2206.11795). It sees the present frame and
how later ones differ from it, neither state nor instruction, so that it reads video of other tasks too. Beside the
actions of the chunk it reads the robot's state off the present frame, which video does not have either. Both are
regressed: the answer is the mean of what the images leave open, and no seed is drawn from.

All rows with actions train it, whoever acted: demonstrations, a policy's own episodes, play. A step is evidence where
a later frame of its window lies inside the episode.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from wamkit.families.base import FAMILIES, Family, Taxonomy
from wamkit.nn import BACKBONES, ImageTokens, Normalizer, QueryStream, Tokens, canvas, grid_of, masked_mean
from wamkit.nn.attention_mask import CONTEXT, Segment
from wamkit.nn.family_options import InverseConfig
from wamkit.nn.tokens import IMAGE, image_positions, step_positions
from wamkit.types import Batch, Query, Spec


class Images(nn.Module):
    """The encoder of observations: the present image and those before it, and nothing else."""

    def __init__(self, width: int, spec: Spec):
        super().__init__()
        times, (rows, columns) = (0, *spec.past_offsets), grid_of(spec, ImageTokens.stride)
        self.image, self.cells = ImageTokens(width), rows * columns
        self.length = len(times) * self.cells
        self.grid = nn.Parameter(0.5 * torch.randn(len(times), self.cells, width))
        place = torch.stack([image_positions(spec, ImageTokens.stride, t) for t in times])
        self.register_buffer("place", place, persistent=False)

    def forward(self, batch: Batch, normalizer: Normalizer, generator: torch.Generator | None = None) -> list[Tokens]:
        """The context, `length` tokens: the present image first."""
        frames = canvas(torch.cat([batch.obs.unsqueeze(1), batch.past], 1))
        valid = F.pad(batch.past_valid, (1, 0), value=True)
        cells = self.image(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        cells = cells.masked_fill(~valid[..., None, None], 0) + self.grid
        return [Tokens(cells[:, i], IMAGE, place) for i, place in enumerate(self.place)]


@FAMILIES.register("inverse")
class Inverse(Family):
    """A reader of video: actions and state off images."""

    name = "inverse"
    taxonomy = Taxonomy("control", "none", "actions are read off real frames", "regression queries", "joint")
    queries = frozenset({Query.INVERSE})
    deterministic = queries
    images_alone = True
    Config = InverseConfig

    def __init__(self, config: InverseConfig, spec: Spec, normalizer: Normalizer):
        super().__init__(config, spec, normalizer)
        width, frames = config.width, len(spec.frame_offsets)
        self.context = Images(width, spec)
        self.change = ImageTokens(width, inputs=3 * (1 + frames))
        self.grid = nn.Parameter(0.5 * torch.randn(self.context.cells, width))
        self.action = config.build_action(spec, width, QueryStream)
        self.state = QueryStream("state", spec.proprio_dim, step_positions([0.0]), width) if spec.proprio_dim else None
        self.trunk = BACKBONES.get(config.backbone.name)(width, config.depth, config.heads)
        self.declare(self.trunk)
        shown_A = [min(sum(o <= t for o in spec.frame_offsets), frames - 1) for t in range(spec.chunk)]
        self.register_buffer("shown_A", torch.tensor(shown_A), persistent=False)

    def attention_layout(self) -> tuple[list[Segment], Tensor]:
        """Actions see the change, the state sees the present images alone; queries are keys to none."""
        segments = [Segment(CONTEXT, self.context.length), Segment("change", self.context.cells)]
        segments += [Segment("state query", 1), Segment("action query", self.action.length)]
        seen = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool, device="cpu")
        there = [0, 1, 2, 3] if self.state is not None else [0, 1, 3]
        return [segments[i] for i in there], seen[there][:, there]

    def forward(self, batch: Batch, generator: torch.Generator, stage: str = "main") -> dict[str, Tensor]:
        action, state = self._read(batch)
        # An action is evidence where the frame that shows it, and those before, lie inside the episode.
        shown_BA = batch.frame_valid.long().cumprod(1).bool()[:, self.shown_A]
        valid = self.action.valid(batch) & shown_BA.unsqueeze(2).expand_as(batch.action).reshape(action.shape)
        target = self.action.targets(batch.action, batch, self.normalizer)
        out = {"action": masked_mean((action - target).square(), valid)}
        if state is not None:
            error = (state - self.normalizer.encode("proprio", batch.proprio)).square()
            out["state"] = masked_mean(error, batch.has_action.unsqueeze(1))  # video alone has no state either
        return out

    def _read(self, batch: Batch) -> tuple[Float[Tensor, "B L c"], Float[Tensor, "B s"] | None]:
        """Normalised actions, one row a token, and the normalised state; None in data without one."""
        now, then = canvas(batch.obs), canvas(batch.future)
        change = (then - now.unsqueeze(1)).masked_fill(~batch.frame_valid[:, :, None, None, None], 0)
        change_BLD = self.change(torch.cat([now.unsqueeze(1), change], 1).flatten(1, 2)) + self.grid
        parts = [*self.context(batch, self.normalizer), Tokens(change_BLD, "change", self.context.place[0])]
        queries = [q for q in (self.state, self.action.stream) if q is not None]
        y, _ = self.trunk([*parts, *(q.tokens(len(batch)) for q in queries)], self.attention_mask(batch.obs.device))
        state = None if self.state is None else self.state.values(y[-2]).squeeze(1)
        return self.action.stream.values(y[-1]), state

    def generate(
        self, batch: Batch, query: Query, generators: Sequence[torch.Generator], steps: int
    ) -> tuple[Tensor | None, Tensor | None]:
        return self.action.unpack(self._read(batch)[0], self.normalizer), None

    def read_state(self, batch: Batch) -> Float[Tensor, "B s"]:
        state = self._read(batch)[1]
        return batch.proprio if state is None else self.normalizer.decode("proprio", state)
