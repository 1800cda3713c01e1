"""Chunk-causal history: every moment is read once, by itself, and later ones attend to its keys and values.

Generated tokens attend to the clean moments before them and never the other way round (DreamZero; LingBot-VA), and an
imagined moment is replaced by the observed one. Departures from these methods:

* Moments do not attend to each other. If they did, a window's content would depend on moments that have left it, and
  reading the window again would give something else. So a memory never goes stale: keeping it equals reading it again.
* Nor do they attend to the instruction, which may change while the observations stay.
* The past holds observations, images and proprioception, and no actions: a policy that sees its own last actions copies
  them.
* Age is relative, so that keys can be kept: it is added to keys and values when they are used (Shaw et al.,
  arXiv:1803.02155, eq. 3 and 4), here one vector a block, head and age.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.config import ConfigError
from wamkit.nn.attention_mask import CONTEXT, TEXT, Segment, visibility
from wamkit.nn.backbones.base import Cache, Tokens
from wamkit.types import Batch, Spec


def present(spec: Spec) -> Spec:
    """`spec` without its past: the shapes of one moment."""
    return replace(spec, past_offsets=())


class Moments(nn.Module):
    """Moments that are read one by one: their places in a sequence, for the histories of all backbones.

    length, texts: tokens of a moment without its instruction, and of the instruction.
    """

    def __init__(self, spec: Spec, length: int, texts: int):
        super().__init__()
        if not spec.past_offsets:
            raise ConfigError("chunk_causal looks back at window.past_offsets, which are empty: -16 -8 for example")
        self.length, self.texts, self.moments = length, texts, len(spec.past_offsets)
        self.segments = [Segment(CONTEXT, length), Segment(TEXT, texts)]
        self.segments += [Segment(CONTEXT, length, moment=offset) for offset in spec.past_offsets]

    def alone(self, moments: Callable[[Batch], list[Tokens]], batch: Batch) -> tuple[list[Tokens], Bool[Tensor, "l l"]]:
        """The present moment by itself, as a list of tokens, and the mask inside it. moments: as above, of a batch."""
        now = replace(batch, past=batch.past[:, :0], past_proprio=batch.past_proprio[:, :0], memory=None)
        return moments(now), visibility(self.segments[:2]).to(batch.obs.device)

    def hide(self, mask_LK: Bool[Tensor, "... L K"], batch: Batch) -> Bool[Tensor, "B 1 L K"]:
        """A mask of noisy tokens over context and themselves, without moments from before the episode began."""
        valid = batch.past_valid.repeat_interleave(self.length, 1)
        ahead = self.length + self.texts
        rest = mask_LK.shape[-1] - ahead - valid.shape[1]
        ones = lambda n: valid.new_ones(len(valid), n)  # noqa: E731
        return mask_LK & torch.cat([ones(ahead), valid, ones(rest)], 1)[:, None, None]


class History(Moments):
    """Reads moments and serves their keys and values to generated tokens.

    length: tokens of a moment, without its instruction.
    depth, heads, width: of the backbone whose keys and values these are.
    """

    def __init__(self, spec: Spec, length: int, depth: int, heads: int, width: int):
        super().__init__(spec, length, 1)
        self.age = nn.Parameter(torch.zeros(self.moments, depth, 2, heads, 1, width // heads))

    def forward(
        self, read: Callable[[Sequence[Tokens], Tensor], Cache], moments: Sequence[Tokens], batch: Batch
    ) -> tuple[list[Tokens], Cache, Float[Tensor, "B N 2 h l d"]]:
        """The present image; keys and values of the whole context, in the order of `segments`; and the present moment's
        of them, to be remembered.

        read: a backbone's pass over moments, given the mask inside each.
        moments: from `ContextTokens.moments`. The past is taken from `batch.memory` where it is remembered.
        """
        alone_LL = visibility(self.segments[:2]).to(batch.obs.device)
        keys = torch.stack([torch.stack(kv, 1) for kv in read(moments, alone_LL)], 1).unflatten(0, (len(batch), -1))
        seen = keys[..., : self.length, :]
        past = (seen[:, 1:] if batch.memory is None else batch.memory) + self.age
        known = torch.cat([keys[:, 0], past.permute(0, 2, 3, 4, 1, 5, 6).flatten(4, 5)], -2)
        image = replace(moments[0], values=moments[0].values.unflatten(0, (len(batch), -1))[:, 0])
        return [image], [tuple(kv.unbind(1)) for kv in known.unbind(1)], seen[:, 0]
