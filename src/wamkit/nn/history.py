"""Chunk-causal history: every moment is read once, by itself, and later ones look at what was read: its keys and values.

What is generated now sees the clean moments before it and never the other way round (DreamZero; LingBot-VA), and what was imagined is
replaced by what was then really seen. Where we depart from them:

* Moments do not look at each other. If they did, what a window of them holds would depend on moments that have left it, and
  reading the window again would give something else. So a memory never goes stale, and keeping it equals reading it again.
* Nor do they look at the instruction, which may change while what was seen stays.
* The past is what was seen, pictures and proprioception, not what was done: a policy that is shown its own last actions
  copies them.
* Age is relative, so that keys can be kept: it is added to keys and values when they are looked at (Shaw et al.,
  arXiv:1803.02155, eq. 3 and 4), here one vector a block, head and age.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.config import ConfigError
from wamkit.nn.attention_mask import CONTEXT, TEXT, Segment, visibility
from wamkit.nn.backbones.transformer import Cache
from wamkit.nn.tokens import cells_of
from wamkit.types import Batch, Spec


def present(spec: Spec) -> Spec:
    """`spec` without its past: the shapes of one moment."""
    return replace(spec, past_offsets=())


class History(nn.Module):
    """Reads moments and shows them to what is generated. heads, width: of the attention of `depth` blocks."""

    def __init__(self, spec: Spec, depth: int, heads: int, width: int):
        super().__init__()
        if not spec.past_offsets:
            raise ConfigError("chunk_causal looks back at window.past_offsets, which are empty: -16 -8 for example")
        self.length, self.moments = cells_of(spec) + 1, len(spec.past_offsets)
        self.segments = [Segment(CONTEXT, self.length), Segment(TEXT, 1)]
        self.segments += [Segment(CONTEXT, self.length, moment=offset) for offset in spec.past_offsets]
        self.age = nn.Parameter(torch.zeros(self.moments, depth, 2, heads, 1, width // heads))

    def forward(
        self, read: Callable[[Tensor, Tensor], Cache], moments_BMLD: Float[Tensor, "B M L D"], batch: Batch
    ) -> tuple[Cache, Float[Tensor, "B N 2 h l d"]]:
        """Keys and values of all that is known, in the order of `segments`, and of the present moment, to be remembered.

        read: a trunk's pass over moments, given who sees whom in each.   moments_BMLD: of `ContextTokens.moments`; the past is
        taken from `batch.memory` where it is remembered.
        """
        alone_LL = visibility(self.segments[:2]).to(moments_BMLD.device)
        read_BM = torch.stack([torch.stack(kv, 1) for kv in read(moments_BMLD.flatten(0, 1), alone_LL)], 1)
        keys = read_BM.unflatten(0, moments_BMLD.shape[:2])
        seen = keys[..., : self.length, :]
        past = (seen[:, 1:] if batch.memory is None else batch.memory) + self.age
        known = torch.cat([keys[:, 0], past.permute(0, 2, 3, 4, 1, 5, 6).flatten(4, 5)], -2)
        return [tuple(kv.unbind(1)) for kv in known.unbind(1)], seen[:, 0]

    def hide(self, mask_LK: Bool[Tensor, "... L K"], batch: Batch) -> Bool[Tensor, "B 1 L K"]:
        """`mask_LK`, of noisy tokens over what is known and themselves, without moments from before the episode began."""
        valid = batch.past_valid.repeat_interleave(self.length, 1)
        ahead, rest = self.length + 1, mask_LK.shape[-1] - self.length - 1 - valid.shape[1]
        ones = lambda n: valid.new_ones(len(valid), n)  # noqa: E731
        return mask_LK & torch.cat([ones(ahead), valid, ones(rest)], 1)[:, None, None]
