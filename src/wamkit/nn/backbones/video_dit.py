"""Pretrained video transformers as backbones: one layer loop over the blocks of a model of `diffusers`.

The blocks keep their classes, names and weights, so that released weights load as they are; the loop over them is ours,
because theirs has no mask between streams, no key-value cache, and no tokens but a video's. Against the model itself it
is equal to the bit (`tests/numerics/test_video_dit.py`).

A model is described by `Parts`, about eighty lines each (`wan`). What its tokens are:

* video (kinds "image" and "future"): latents in patches, as they are. The model embeds them, and its head gives
  velocities of the same size. The present is at noise level 0.
* all others (actions, state): embedded to the model's width by streams of their own, which also read the outputs.
* text: features of the text encoder. They are no tokens of the sequence: every block reads them by cross-attention, and
  their keys are kept with those of the context.

Noise levels and positions are those of `Tokens`; a position may lie between frames, where actions do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.nn.attention_mask import ACTION, FUTURE, TEXT
from wamkit.nn.backbones.base import Backbone, Cache, SequenceBackbone, Tokens
from wamkit.nn.backbones.lora import ADAPTER
from wamkit.nn.backbones.transformer import attention_bias
from wamkit.types import WamkitError

IMAGE = "image"
VIDEO = (IMAGE, FUTURE)
"""Kinds of tokens that hold latents."""

Rope = tuple[Tensor, Tensor]
"""Cosines and sines (B, L, 1, d) that keys and queries are turned by."""


class Keys(NamedTuple):
    """State of one block that later tokens read.

    k, v: keys and values of self-attention, (B, K, heads, d).
    text: keys and values of cross-attention, by stream.
    shown: bool (K',), over all tokens read so far, text included: those that are keys of self-attention.
    """

    k: Tensor
    v: Tensor
    text: Mapping[str, tuple[Tensor, Tensor]]
    shown: Tensor


@dataclass(frozen=True)
class Times:
    """Noise levels of tokens, embedded: `temb` (B, L, D) for the head, `block` as the blocks of the model take it."""

    temb: Tensor
    block: Tensor


class Unread(NamedTuple):
    """Released weights that a model begins with, and that were not read yet.

    files: safetensors.   names: of tensors in them, by the names of `Parts`' parameters.
    """

    files: Sequence[Path]
    names: Mapping[str, str]


class Parts(nn.Module, ABC):
    """The pieces of one pretrained model that the loop calls, in the order of a forward pass.

    width: D, of tokens.   heads: of attention.   channels: values of a latent patch.   text_dim: of the text's
        features.
    acting: an embedding of the noise levels of actions, where these are among the tokens of a video (LingBot-VA).
    plain: outputs of tokens beside a video's are those of the last block, not normed (DreamZero).
    model: the network of `diffusers`.   unread: its weights, where it was built without.
    """

    model: Any
    unread: Unread | None = None
    width: int
    heads: int
    channels: int
    text_dim: int
    acting: nn.Module | None
    plain: bool = False

    def released_names(self) -> dict[str, str]:
        """Names of tensors in released files, by those of the parameters here that begin as they are."""
        modules, names = dict(self.named_modules()), [name for name, _ in self.named_parameters()]
        found = {name: name for name in names if name.startswith("model.") and ADAPTER not in name}
        if self.acting is not None:
            begins = next(name for name, module in modules.items() if module is self.embedder)
            found |= {n: n.replace("acting", begins, 1) for n in names if n.startswith("acting.")}
        return {n: of.removeprefix("model.").replace(".base_layer.", ".") for n, of in found.items()}

    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The model's blocks."""

    @abstractmethod
    def embed(self, patches_BLc: Tensor, given: bool = False) -> Float[Tensor, "B L D"]:
        """Latent patches to tokens. given: they are an observation, not a prediction."""

    @property
    @abstractmethod
    def embedder(self) -> nn.Module:
        """The embedding of noise levels."""

    @abstractmethod
    def embed_levels(self, embedder: nn.Module, sigma_BL: Float[Tensor, "B L"]) -> Times:
        """Noise levels in [0, 1], one a token, as `embedder` has them."""

    def times(self, sigma_BL: Float[Tensor, "B L"], acting_L: Bool[Tensor, " L"]) -> Times:
        """Noise levels in [0, 1], one a token. acting: true for tokens of actions."""
        if self.acting is None or not acting_L.any():
            return self.embed_levels(self.embedder, sigma_BL)
        acts = self.embed_levels(self.acting, sigma_BL)
        if acting_L.all():
            return acts
        video = self.embed_levels(self.embedder, sigma_BL)
        return Times(*(_chosen(acting_L, a, b) for a, b in ((acts.temb, video.temb), (acts.block, video.block))))

    @abstractmethod
    def rope(self, position_BL3: Float[Tensor, "B L 3"]) -> Rope:
        """Positions: latent frames, and rows and columns of patches; -1 for tokens outside of the image."""

    @abstractmethod
    def text(self, features_BTc: Tensor) -> Float[Tensor, "B T D"]:
        """Features of the text encoder, as the blocks read them."""

    @abstractmethod
    def text_keys(self, block: nn.Module, text_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, T, heads, d) of a block's cross-attention."""

    @abstractmethod
    def qkv(self, block: nn.Module, x_BLD: Tensor, times: Times, rope: Rope) -> tuple[Tensor, Tensor, Tensor, Any]:
        """Queries, keys and values (B, L, heads, d) of a block, turned, and what `rest` needs besides."""

    @abstractmethod
    def rest(
        self, block: nn.Module, x_BLD: Tensor, y_BLD: Tensor, kept: Any, text: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "B L D"]:
        """The block after its attention, whose heads gave `y`."""

    @abstractmethod
    def norm(self, x_BLD: Tensor, times: Times) -> Float[Tensor, "B L D"]:
        """Tokens after the last block, normed: what heads read."""

    @abstractmethod
    def head(self, x_BLD: Tensor) -> Float[Tensor, "B L c"]:
        """Normed tokens of a video to velocities of their patches."""


class Beside:
    """Pieces that experts beside a video transformer share: their tokens are no video.

    model: its blocks under "blocks", freshly initialised.
    """

    model: Any

    def blocks(self) -> Sequence[nn.Module]:
        """The blocks."""
        return list(self.model["blocks"])

    def embed(self, patches_BLc: Tensor, given: bool = False) -> Tensor:
        """None to embed. Raises WamkitError."""
        raise WamkitError("an expert beside a video transformer has no tokens of a video")

    def norm(self, x_BLD: Tensor, times: Times) -> Float[Tensor, "B L D"]:
        """The tokens themselves: their own head reads them, as Fast-WAM's does."""
        return x_BLD


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Float[Tensor, "B L D"]:
    """Attention of (B, L, heads, d); the heads side by side."""
    y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), attn_mask=bias)
    return y.transpose(1, 2).flatten(2)


class Layer(nn.Module):
    """One block a stream, and one attention over all of them: the unit of sharding and activation checkpointing.

    It shares the blocks and owns none.
    """

    def __init__(self, parts: Mapping[str, Parts], blocks: Mapping[str, nn.Module]):
        super().__init__()
        self._parts, self.of = dict(parts), nn.ModuleDict(blocks)

    def forward(
        self,
        x: Mapping[str, Tensor],
        times: Mapping[str, Times],
        rope: Mapping[str, Rope],
        text: Mapping[str, Tensor],
        bias: Mapping[str, Tensor | None],
        past: Keys | None,
        detach: Collection[tuple[str, str]] = (),
    ) -> tuple[dict[str, Tensor], Tensor, Tensor, Mapping[str, tuple[Tensor, Tensor]]]:
        """Tokens of every stream after the block; keys and values, those of `past` first; and the text's.

        text: empty where `past` holds its keys.   bias, detach: as in `Mixture`.
        """
        parts, block = self._parts, self.of
        qkv = {s: parts[s].qkv(block[s], t, times[s], rope[s]) for s, t in x.items()}
        keys = {s: parts[s].text_keys(block[s], t) for s, t in text.items()} if text else past.text  # type: ignore[union-attr]
        ahead, out = [] if past is None else [(past.k, past.v)], {}

        def joined(reader: str | None) -> tuple[Tensor, Tensor]:
            seen = [(k.detach(), v.detach()) if (reader, o) in detach else (k, v) for o, (_, k, v, _) in qkv.items()]
            k, v = (torch.cat(p, 1) for p in zip(*ahead, *seen, strict=True))
            return k, v

        whole, apart = joined(None), {reader for reader, _ in detach}
        for s, t in x.items():
            y = attention(qkv[s][0], *(joined(s) if s in apart else whole), bias.get(s))
            out[s] = parts[s].rest(block[s], t, y, qkv[s][3], keys[s])
        return out, *whole, keys


class VideoMixture(Backbone):
    """Streams over a pretrained video transformer: its own, and experts beside it, with one attention over all of them.

    In place of `Mixture`: the stream of `FUTURE` holds the context, its text among it, and the video.

    parts: of every stream; the pretrained model's first.
    """

    def __init__(self, parts: Mapping[str, Parts]):
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        # In a list, where a module does not register them: the blocks, and their names in files, are the parts'.
        self._layers = [
            Layer(parts, dict(zip(parts, blocks, strict=True)))
            for blocks in zip(*(p.blocks() for p in parts.values()), strict=True)
        ]
        self._frozen = [name for name, p in self.named_parameters() if not p.requires_grad]

    def layers(self) -> list[nn.Module]:
        return list(self._layers)

    def frozen(self) -> Sequence[nn.Parameter]:
        own = dict(self.named_parameters()) if self._frozen else {}
        return [own[name] for name in self._frozen]

    def prefixes(self, stream: str) -> tuple[str, ...]:
        """Prefixes of the parameters of one stream, inside of this module."""
        return (f"parts.{stream}",)

    def forward(
        self,
        parts: Mapping[str, Sequence[Tokens]],
        mask: Mapping[str, Bool[Tensor, "... L K"] | None],
        past: Cache | None = None,
        detach: Collection[tuple[str, str]] = (),
    ) -> tuple[dict[str, list[Tensor]], Cache]:
        """Outputs of every stream, one a part, and the cache; for the arguments see `Mixture`.

        A part of kind "text" is read by cross-attention: its rows and columns of a mask are left out, and its output is
        zeros. Outputs of a video are velocities of patches, those of other parts the normed tokens. Raises WamkitError
        unless the text comes once, with the first tokens.
        """
        outputs, _, cache = self.run(parts, mask, past, detach)
        return outputs, cache

    def before_last(
        self, parts: Mapping[str, Sequence[Tokens]], mask: Mapping[str, Bool[Tensor, "... L K"] | None]
    ) -> dict[str, list[Float[Tensor, "B L D"]]]:
        """Hidden states before the last block, by stream, one tensor a part, zeros for the text; see `forward`."""
        _, hidden, _ = self.run(parts, mask)
        return {s: _divided(every, hidden[-2][s]) for s, every in parts.items()}

    def run(
        self,
        parts: Mapping[str, Sequence[Tokens]],
        mask: Mapping[str, Bool[Tensor, "... L K"] | None],
        past: Cache | None = None,
        detach: Collection[tuple[str, str]] = (),
    ) -> tuple[dict[str, list[Tensor]], list[dict[str, Tensor]], Cache]:
        """`forward`, and the hidden states of every stream after each block, without the text."""
        own = {s: [p for p in every if p.kind != TEXT] for s, every in parts.items()}
        text = [p for every in parts.values() for p in every if p.kind == TEXT]
        if len(text) != (past is None):
            raise WamkitError("a pretrained backbone reads one instruction, with the context and before all else")
        of = {s: cast(Parts, p) for s, p in self.parts.items()}
        x = {s: torch.cat([_embedded(of[s], p) for p in own[s]], 1) for s in own}
        times = {s: of[s].times(levels(own[s]), of_kind(own[s], ACTION)) for s in own}
        rope = {s: of[s].rope(positions(own[s])) for s in own}
        # Streams that come later read the same text, so its keys are kept for all.
        words = {s: part.text(text[0].values) for s, part in of.items()} if text else {}
        kept = cast("list[Keys] | None", past)
        new = {s: shown_keys(every, every[0].values.device) for s, every in parts.items()}
        shown = torch.cat([*([kept[0].shown] if kept else []), *new.values()])
        bias = {s: _bias(mask.get(s), new[s], shown) for s in own}
        hidden, cache = list[dict[str, Tensor]](), list[Keys]()
        for i, layer in enumerate(self._layers):
            x, k, v, keys = layer(x, times, rope, words, bias, kept[i] if kept else None, detach)
            hidden.append(x)
            cache.append(Keys(k, v, keys, shown))
        outputs = {s: _outputs(of[s], every, x[s], times[s]) for s, every in parts.items()}
        return outputs, hidden, cast(Cache, cache)


class VideoTrunk(SequenceBackbone):
    """A pretrained video transformer for one sequence, whose tokens share its weights: a mixture of one stream."""

    def __init__(self, parts: Parts):
        super().__init__()
        self._all = VideoMixture({FUTURE: parts})

    def layers(self) -> list[nn.Module]:
        return self._all.layers()

    def frozen(self) -> Sequence[nn.Parameter]:
        return self._all.frozen()

    def before_last(
        self, parts: Sequence[Tokens], mask_LK: Bool[Tensor, "... L K"] | None = None
    ) -> list[Float[Tensor, "B L D"]]:
        """As `SequenceBackbone.before_last`; zeros for the text."""
        return self._all.before_last({FUTURE: parts}, {FUTURE: mask_LK})[FUTURE]

    def run(
        self,
        parts: Sequence[Tokens],
        mask_LK: Bool[Tensor, "... L K"] | None = None,
        past: Cache | None = None,
        modulation: Float[Tensor, "B N 4 D"] | None = None,
    ) -> tuple[list[Tensor], list[Tensor], Cache]:
        """See `SequenceBackbone.run` and `VideoMixture`. Raises WamkitError for a modulation too."""
        if modulation is not None:
            raise WamkitError("a pretrained backbone is modulated by noise levels: it has no conditioning 'adaln'")
        outputs, hidden, cache = self._all.run({FUTURE: parts}, {FUTURE: mask_LK}, past)
        return outputs[FUTURE], [x[FUTURE] for x in hidden], cache

    def read(self, parts: Sequence[Tokens]) -> Cache:
        raise WamkitError("a pretrained backbone's blocks attend to one sequence: it has no conditioning 'cross'")


def _embedded(part: Parts, run: Tokens) -> Float[Tensor, "B L D"]:
    """A run of tokens, of the model's width."""
    return part.embed(run.values, run.kind == IMAGE) if run.kind in VIDEO else run.values


def _outputs(part: Parts, every: Sequence[Tokens], x: Tensor, times: Times) -> list[Tensor]:
    """Outputs of a stream, one a part."""
    normed = _divided(every, part.norm(x, times))
    others = _divided(every, x) if part.plain else normed
    return [part.head(y) if p.kind in VIDEO else z for p, y, z in zip(every, normed, others, strict=True)]


def _divided(every: Sequence[Tokens], x: Float[Tensor, "B L D"]) -> list[Tensor]:
    """Tokens of a stream without its text, one tensor a part; zeros for the text."""
    own = iter(x.split([len(p) for p in every if p.kind != TEXT], 1))
    return [x.new_zeros(len(x), len(p), x.shape[-1]) if p.kind == TEXT else next(own) for p in every]


def _bias(mask_LK: Tensor | None, new_L: Tensor, shown_K: Tensor) -> Tensor | None:
    """A mask without its rows and columns of text, as a bias; None where everything is visible."""
    if mask_LK is None:
        return None
    mask_LK = mask_LK[..., new_L, :][..., shown_K]
    return None if bool(mask_LK.all()) else attention_bias(mask_LK)


def shown_keys(parts: Sequence[Tokens], device: torch.device) -> Bool[Tensor, " L"]:
    """True for tokens of a sequence that are keys of self-attention: all but the text."""
    return torch.cat([torch.full((len(p),), p.kind != TEXT, device=device) for p in parts])


def _chosen(acting_L: Tensor, acts: Tensor, video: Tensor) -> Tensor:
    """Values (B, L, ...) of actions and of all other tokens."""
    return torch.where(acting_L.to(video.device).view(1, -1, *[1] * (video.dim() - 2)), acts, video)


def of_kind(parts: Sequence[Tokens], kind: str) -> Bool[Tensor, " L"]:
    """True for tokens of one kind; on the CPU, where it is asked about before a step."""
    return torch.cat([torch.full((len(p),), p.kind == kind, device="cpu") for p in parts])


def levels(parts: Sequence[Tokens]) -> Float[Tensor, "B L"]:
    """Noise levels of a sequence, one a token; 0 for clean ones."""
    found = []
    for p in parts:
        B, L, _ = p.values.shape
        sigma = p.values.new_zeros(1, dtype=torch.float32) if p.sigma is None else p.sigma.float()
        found.append(sigma.view(len(sigma), -1).expand(B, L))
    return torch.cat(found, 1)


def positions(parts: Sequence[Tokens]) -> Float[Tensor, "B L 3"]:
    """Positions of a sequence; zeros for tokens without."""
    found = [p.values.new_zeros(len(p), 3, dtype=torch.float32) if p.position is None else p.position for p in parts]
    return torch.cat(found).expand(len(parts[0].values), -1, -1)
