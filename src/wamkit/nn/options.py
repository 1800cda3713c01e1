"""Options that families share. Every number declares its bounds on its type; options build the parts they describe."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Annotated, Literal

from torch import Tensor

from wamkit.config import Between, check_declared, check_multiple
from wamkit.nn.autoencoders.base import AUTOENCODERS
from wamkit.nn.autoencoders.future import FutureLatents
from wamkit.nn.backbones.base import BACKBONES, SequenceBackbone
from wamkit.nn.backbones.mixture_of_transformers import Mixture
from wamkit.nn.encoders import TextConfig, build_text
from wamkit.nn.heads import ActionChunk, NoisyStream, Stream
from wamkit.nn.tokens import ContextTokens, grid_of
from wamkit.types import Batch, Spec

Count = Annotated[int, Between(1, inf)]
Width = Annotated[int, Between(1, inf, multiple=2)]  # sines and cosines of noise levels
Share = Annotated[float, Between(0, 1)]
StageShare = Annotated[float, Between(0.01, 0.99)]
Positive = Annotated[float, Between(1e-6, inf)]
NotNegative = Annotated[float, Between(0, inf)]


@dataclass(frozen=True)
class Options:
    """The base of family configurations: raises ConfigError for numbers out of bounds, before anything is built."""

    def __post_init__(self) -> None:
        check_declared(self)


@dataclass(frozen=True)
class SizeConfig(Options):
    """Sizes of a transformer, and the noise of its proprioception."""

    width: Width = 128
    """Width of tokens."""
    depth: Count = 4
    """Blocks."""
    heads: Count = 4
    proprio_noise: NotNegative = 0.05
    """Deviation, in normalised units, of the noise that training adds to proprioception."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_multiple("width", self.width, "heads", self.heads)


@dataclass(frozen=True)
class ContextConfig(SizeConfig):
    """Options of families that encode observations as `ContextTokens`."""

    text: TextConfig = field(default_factory=TextConfig)

    def build_context(self, spec: Spec) -> ContextTokens:
        """The encoder of observations."""
        return ContextTokens(self.width, spec, build_text(self.text, self.width), self.proprio_noise)


@dataclass(frozen=True)
class TrunkConfig(ContextConfig):
    """Options of families with one backbone over one sequence."""

    backbone: str = "transformer"
    """Registered name of the backbone (`wamkit.nn.BACKBONES`)."""

    def build_trunk(self) -> SequenceBackbone:
        """The backbone, freshly initialised."""
        return BACKBONES.get(self.backbone)(self.width, self.depth, self.heads)


@dataclass(frozen=True)
class ExpertsConfig(ContextConfig):
    """Options of families with one expert a stream."""

    width: Width = 112
    """Width of the video expert, and of the attention that both share."""
    action_width: Width = 56
    """Width of the action expert."""

    def build_experts(self, video: str, action: str) -> Mixture:
        """The experts of the two streams, freshly initialised."""
        return Mixture({video: self.width, action: self.action_width}, self.depth, self.heads, self.width)


@dataclass(frozen=True)
class CodecConfig(Options):
    """Options of families whose future is latents of an autoencoder, trained in a stage of its own before all else."""

    codec: str = "frame_codec"
    """Registered name of the autoencoder (`wamkit.nn.AUTOENCODERS`)."""
    codec_channels: Count = 8
    """Size of a latent. Of the frame codec: values a quarter of a cell, 8x8 pixels."""
    codec_lr: Positive = 1.2
    """The codec's learning rate, as a multiple of train.lr."""
    codec_share: StageShare = 0.4
    """Share of all steps that train the codec."""

    def build_future(self, spec: Spec, width: int, stream: type[Stream] | None = NoisyStream) -> FutureLatents:
        """The future's latents, and how they become tokens of `width`."""
        kind = AUTOENCODERS.get(self.codec)
        return FutureLatents(spec, kind(grid_of(spec, kind.stride), self.codec_channels), width, stream)


@dataclass(frozen=True)
class ActionConfig(Options):
    """Options of families that have a chunk of actions as tokens."""

    actions_per_token: Count = 4
    denoising_steps: Count = 4
    """Denoising steps of a query, unless the caller names a number."""

    def build_action(self, spec: Spec, width: int, stream: type[Stream] = NoisyStream) -> ActionChunk:
        """The chunk, as tokens of `width`."""
        return ActionChunk(spec, width, self.actions_per_token, stream)


@dataclass(frozen=True)
class PolicyConfig(ActionConfig):
    """Options of families that learn a policy from one of two labels."""

    policy_label: Literal["expert", "executed"] = "expert"
    """Label of the policy: the clean expert action, or the executed one, noise included."""

    def label(self, batch: Batch) -> Tensor:
        """The labels of a batch, (B, A, a)."""
        return batch.action_expert if self.policy_label == "expert" else batch.action


@dataclass(frozen=True)
class ActionHeadConfig(Options):
    """Options of a small transformer that denoises actions beside the backbone."""

    head_width: Width = 64
    """Its width."""
    head_depth: Count = 2
    """Its blocks."""
