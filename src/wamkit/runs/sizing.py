"""Sizes of a model on a pretrained backbone, before anything is downloaded: parameters, arithmetic, memory, what fits.

Everything is counted on torch's meta device, by running the backbone on tokens without values. Attention is counted as
if every token saw every other one, which is what a masked product computes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from wamkit.families.base import Family
from wamkit.nn import Cache, SequenceBackbone, Tokens
from wamkit.nn.attention_mask import ACTION, CONTEXT, FUTURE, TEXT, Segment
from wamkit.nn.backbones.lora import TARGETS
from wamkit.nn.backbones.video_dit import IMAGE, Parts, VideoMixture
from wamkit.nn.backbones.video_model import VideoModel
from wamkit.nn.tokens import PROPRIO
from wamkit.nn.video_tokens import VideoContext, VideoLatents
from wamkit.types import Query

CARDS = {"24 GB": 24, "48 GB": 48, "80 GB": 80, "141 GB (H200)": 141}
"""Memory of common cards, in GB."""
FREE = 0.92
"""Share of a card's memory that is left to weights and activations."""
PEAK, SHARE = 989.0, 0.25
"""Dense bfloat16 TFLOP/s of one H100 or H200, and the share of it that rates are stated at."""
RANK = 128
"""Rank of the adapters that memory is stated for."""
BYTES = {"weights": 4, "gradient": 4, "AdamW": 8, "average": 4}
"""Bytes of a parameter that learns, in float32."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of one model.

    parameters: by part.   learned: of them.   frozen: those of the backbone that stay as they were released.
    forward, query: TFLOP of a training sample's forward pass, and of a policy query (None for a family without one).
    encode, encode_one, decode: TFLOP of the autoencoder for a window, for one image, and back.
    kept: bytes of activations that a training sample keeps for its backward pass, in bfloat16.
    tokens: of a training sample.
    adapters: parameters of adapters of rank `RANK` on the backbone, where it has none.
    """

    parameters: Mapping[str, int]
    learned: int
    frozen: int
    forward: float
    query: float | None
    encode: float
    encode_one: float
    decode: float
    kept: int
    tokens: int
    adapters: int = 0

    def fixed(self, adapted: bool = False) -> int:
        """Bytes of training whatever the batch. adapted: with `adapters`, and the backbone as it was released."""
        learned, frozen = self.learned, self.frozen
        if adapted:
            learned, frozen = learned - self.parameters["backbone"] + self.adapters, self.parameters["backbone"]
        return learned * sum(BYTES.values()) + frozen * BYTES["weights"]

    def fits(self, gigabytes: float, adapted: bool = False) -> int:
        """Rows of a batch that fit on a card; 0 where not even one does."""
        return max(0, int((FREE * gigabytes * 1e9 - self.fixed(adapted)) // self.kept))

    @property
    def rate(self) -> float:
        """Samples a second on one card at `SHARE` of `PEAK`, with latents that are kept."""
        return SHARE * PEAK / (3 * self.forward)


def sizes_of(model: Family) -> Sizes:
    """The sizes of a family on a pretrained video model, which is on torch's meta device."""
    context, future = model.context, model.codec
    assert isinstance(context, VideoContext)
    video = context.model
    parts: dict[str, int] = {}
    for name, p in model.named_parameters():
        part = _part(name)
        parts[part] = parts.get(part, 0) + p.numel()
    frozen = sum(p.numel() for n, p in model.named_parameters() if n in model.frozen)
    with torch.device("meta"):
        autoencoder = video.autoencoder_shapes()
        parts["autoencoder, frozen"] = sum(p.numel() for p in autoencoder.parameters())
        run = _Passes(model, context)
        encode, encode_one, decode = _autoencoder(autoencoder, video, model, future)
        forward = _tflop(run.train)
        kept = _kept(run)
        query = _tflop(run.policy) if Query.POLICY in model.queries and run.acts else None
    return Sizes(
        parameters=parts,
        learned=sum(p.numel() for p in model.parameters()) - frozen,
        frozen=frozen,
        forward=forward,
        query=None if query is None else query + encode_one,
        encode=encode,
        encode_one=encode_one,
        decode=decode,
        kept=kept,
        tokens=sum(s.length for s in model.attention_layout()[0]),
        adapters=0 if frozen else adapter_parameters(model.backbones[0], RANK),
    )


def lines(sizes: Sizes) -> Iterator[str]:
    """The sizes in words, a line each, for `wamkit show`."""
    parts = ", ".join(f"{name} {n / 1e6:,.0f} M" for name, n in sizes.parameters.items())
    yield f"  parameters        {parts}"
    yield f"  learned           {sizes.learned / 1e6:,.0f} M; {sizes.frozen / 1e6:,.0f} M stay as they were released"
    yield (
        f"  arithmetic        {sizes.forward:.2f} TFLOP forward for a training sample of {sizes.tokens} tokens, "
        f"{3 * sizes.forward:.2f} with its gradients"
    )
    yield (
        f"  autoencoder       {sizes.encode:.2f} TFLOP to encode a window, {sizes.encode_one:.2f} one image, "
        f"{sizes.decode:.2f} to decode; kept latents save the first"
    )
    if sizes.query is not None:
        yield f"  policy query      {sizes.query:.2f} TFLOP, one image encoded"
    yield (
        f"  memory            {sizes.fixed() / 1e9:.1f} GB for weights, gradients, AdamW and the average in float32, "
        f"about {sizes.kept / 1e9:.1f} GB of activations a sample in bfloat16; latents and texts are kept on disk"
    )
    yield f"  rows that fit     {_fits(sizes)}"
    if sizes.adapters:
        yield (
            f"  with adapters     {sizes.adapters / 1e6:,.0f} M of rank {RANK}: {sizes.fixed(True) / 1e9:.1f} GB; rows "
            f"that fit {_fits(sizes, True)}"
        )
    yield f"  samples a second  {sizes.rate:.1f} at {SHARE:.0%} of {PEAK:.0f} TFLOP/s (one H100 or H200), estimated"


def _fits(sizes: Sizes, adapted: bool = False) -> str:
    return ", ".join(f"{card}: {sizes.fits(gb, adapted) or 'none'}" for card, gb in CARDS.items())


def adapter_parameters(backbone: nn.Module, rank: int) -> int:
    """Parameters of adapters on a video model without any."""
    linear = {n: m for n, m in backbone.named_modules() if isinstance(m, nn.Linear) and f".{FUTURE}.model." in n}
    return sum(rank * (m.in_features + m.out_features) for n, m in linear.items() if re.fullmatch(TARGETS, n))


def _part(name: str) -> str:
    if ".lora_" in name:
        return "adapters"
    if ".parts.action." in name:
        return "action expert"
    if ".parts.future.model." in name:
        return "backbone"
    return "others"


class _Passes:
    """Passes of a family's backbone over tokens of the right number and kind, without values."""

    def __init__(self, model: Family, context: VideoContext):
        self.model, self.backbone, self.context = model, model.backbones[0], context
        segments, self.seen_SS = model.attention_layout()
        self.segments = list(segments)
        self.mixture = isinstance(self.backbone, VideoMixture)
        self.action_width = context.model.width
        if isinstance(self.backbone, VideoMixture):
            self.action_width = cast(Parts, self.backbone.parts[ACTION]).width

    @property
    def acts(self) -> bool:
        return any(s.stream == ACTION for s in self.segments)

    def train(self) -> Tensor:
        """One training sample."""
        own = [s for s in self.segments if s.stream not in (CONTEXT, TEXT)]
        outputs, _ = self._pass([*self._context(), *(self._tokens(s) for s in own)], None)
        return sum((y.float().sum() for y in outputs), torch.zeros(()))

    def policy(self) -> None:
        """One policy query, after its image was encoded: the context, the future where actions see it, then the
        actions in all steps."""
        with torch.no_grad():
            _, cache = self._pass(self._context(), None)
            row, action = next((i, s) for i, s in enumerate(self.segments) if s.stream == ACTION)
            for future, seen in zip(self.segments, self.seen_SS[row], strict=True):
                if future.stream == FUTURE and seen:
                    _, cache = self._pass([self._tokens(future)], cache)
            for _ in range(self.model.default_steps(Query.POLICY)):
                self._pass([self._tokens(action)], cache)

    def _context(self) -> list[Tokens]:
        c, video = self.context, self.context.model
        runs = [Tokens(torch.empty(1, c.cells, video.patch_channels), IMAGE, torch.empty(c.cells, 3))]
        if c.config.state == "token":
            runs.append(Tokens(torch.empty(1, 1, video.width), PROPRIO, torch.empty(1, 3)))
        return [*runs, Tokens(torch.empty(1, c.texts, video.text_dim), TEXT)]

    def _tokens(self, segment: Segment) -> Tokens:
        channels = self.context.model.patch_channels if segment.stream == FUTURE else self.action_width
        values = torch.empty(1, segment.length, channels)
        return Tokens(values, segment.stream, torch.empty(segment.length, 3), torch.empty(1))

    def _pass(self, runs: Sequence[Tokens], past: Cache | None) -> tuple[list[Tensor], Cache]:
        if not self.mixture:
            assert isinstance(self.backbone, SequenceBackbone)
            return self.backbone(runs, None, past)
        parts: dict[str, list[Tokens]] = {}
        for run in runs:
            parts.setdefault(ACTION if run.kind == ACTION else FUTURE, []).append(run)
        outputs, cache = self.backbone(parts, dict.fromkeys(parts), past)
        return [y for every in outputs.values() for y in every], cache


def _autoencoder(network: nn.Module, video: VideoModel, model: Family, future: Any) -> tuple[float, float, float]:
    spec, coder = model.spec, cast(Any, network.requires_grad_(False))
    height, width = spec.height, spec.width * spec.views
    frames = 1 + len(spec.frame_offsets)
    side = video.stride // video.patch[1]
    z = torch.empty(1, video.patch_channels // (video.patch[1] * video.patch[2]), 0, height // side, width // side)
    count = (frames - 1) // video.frames_a_latent + 1

    def encode(frames: int) -> float:
        return _tflop(lambda: coder.encode(torch.empty(1, 3, frames, height, width)))

    decode = _tflop(lambda: coder.decode(z.new_empty(1, z.shape[1], count, *z.shape[3:])))
    has_future = isinstance(future, VideoLatents)
    return encode(frames if has_future else 1), encode(1), decode if has_future else 0.0


def _tflop(work: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return counter.get_total_flops() / 1e12


class _Fused(torch.autograd.Function):
    """Attention of the shapes of its arguments, which keeps them and its output alone."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # type: ignore[override]
        y = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, None, None  # sizes are counted forwards


class _FusedAttention(TorchFunctionMode):
    """Attention as fused kernels have it: no matrix of weights is kept, as it is on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _Fused.apply(*args[:3])
        return func(*args, **(kwargs or {}))


def _kept(run: _Passes) -> int:
    """Bytes that the backward pass of one training sample keeps, weights apart, in bfloat16."""
    run.backbone.to(torch.bfloat16)
    weights = {p.untyped_storage()._cdata for p in run.backbone.parameters()}
    seen: dict[int, int] = {}
    alive = []  # else a storage's address might be given to another

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in weights:
            seen[storage._cdata] = storage.nbytes()
            alive.append(storage)
        return x

    was = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        with saved_tensors_hooks(pack, lambda x: x), _FusedAttention():
            run.train()
    finally:
        torch.set_default_dtype(was)
        run.backbone.to(torch.float32)
    return sum(seen.values())
