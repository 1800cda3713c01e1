"""Options that families share. Every number declares its bounds on its type; options build the parts they describe.

Nothing here imports torch until a part is built, so that wrong options are refused at once.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from wamkit.config import AtMost, Between, Checked, ConfigError, Count, check_declared, check_multiple
from wamkit.config import NotNegative as NotNegative  # families declare their options with it, and with the next two
from wamkit.config import Positive as Positive
from wamkit.config import Share as Share
from wamkit.types import Batch, Query, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from wamkit.nn.autoencoders.future import FutureLatents
    from wamkit.nn.backbones.base import SequenceBackbone
    from wamkit.nn.backbones.mixture_of_transformers import Mixture
    from wamkit.nn.backbones.video_dit import VideoMixture
    from wamkit.nn.heads import ActionChunk, Stream
    from wamkit.nn.history import History
    from wamkit.nn.tokens import ContextTokens
    from wamkit.nn.video_tokens import VideoContext, VideoHistory, VideoLatents

Depth = Annotated[int, Between(1, inf), AtMost(512)]
Width = Annotated[int, Between(1, inf, multiple=2), AtMost(2**15)]  # sines and cosines of noise levels
Buckets = Annotated[int, Between(1, inf), AtMost(2**24)]
StageShare = Annotated[float, Between(0.01, 0.99)]

Kind = Literal["prefix", "channel", "cross", "adaln"]
"""Kinds of conditioning; see `nn.conditioning`."""


class Program(enum.StrEnum):
    """Visibility between the noisy streams (OpenWAM's ablation grammar)."""

    JOINT = "joint"  # action and future see each other
    ACTION_NOISY_TO_VIDEO = "action_noisy_to_video"  # the future sees the noisy action
    VIDEO_NOISY_TO_ACTION = "video_noisy_to_action"  # the action sees the noisy future
    DECOUPLED = "decoupled"  # neither sees the other
    VIDEO_THEN_ACTION = "video_then_action"  # the action sees the clean future
    ACTION_THEN_VIDEO = "action_then_video"  # the future sees the clean action


Options = Checked
"""The base of family configurations: raises ConfigError for numbers out of bounds, before anything is built."""


@dataclass(frozen=True)
class TextConfig(Checked):
    """Encoder of instructions."""

    kind: Literal["table", "pretrained"] = "table"
    """A table of hashed words, learned with the rest, or the frozen encoder `model`."""
    buckets: Buckets = 4096
    """Rows of the table, shared by hashed words and word pairs."""
    model: str = ""
    """For `pretrained`: a local path or hub id of an encoder that `transformers.AutoModel` loads."""


@dataclass(frozen=True)
class ImageConfig(Checked):
    """Encoder of images."""

    kind: Literal["cells", "pretrained"] = "cells"
    """Convolutions over cells, learned with the rest, or the frozen encoder `model`, view by view, and a projection."""
    model: str = ""
    """For `pretrained`: a local path or hub id of a vision encoder that `transformers.AutoModel` loads: DINO."""


@dataclass(frozen=True)
class LoraConfig(Checked):
    """Low-rank adapters (arXiv:2106.09685) on the attention and the MLPs of a pretrained backbone."""

    rank: Annotated[int, Between(0, inf), AtMost(4096)] = 0
    """Rank; 0 for none. With adapters all other weights of the backbone stay as they were released."""
    alpha: NotNegative = 0.0
    """Scale: what an adapter adds counts alpha / rank times; 0 stands for `rank`."""


@dataclass(frozen=True)
class BackboneConfig(Checked):
    """The backbone: a transformer from scratch, or a pretrained video model with its autoencoder and text encoder."""

    name: str = "transformer"
    """Registered name: of `wamkit.nn.BACKBONES`, or of `wamkit.nn.VIDEO_MODELS` for a pretrained one."""
    path: str = ""
    """Folder of a pretrained one in the layout of `diffusers`, or its hub id."""
    freeze: bool = False
    """True: the released weights stay as they are, and what stands beside them learns alone."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters on a pretrained one."""
    text_length: Count = 128
    """Tokens of an instruction that a pretrained one reads: shorter ones are padded, longer ones cut."""
    prompt: str = "{}"
    """Text that a pretrained one reads, with the instruction in place of the braces."""
    image_encoder: str = ""
    """Folder or hub id with image_encoder/, a CLIP: its features of the present image are read by cross-attention
    beside the text. For imported weights that have such a branch (DreamZero-5B)."""
    state: Literal["token", "text", "action", "none"] = "token"
    """Place of the robot's state: a token beside the image, one after those of the text (Fast-WAM), one after those of
    the actions and at their noise level (DreamZero), or none at all (LingBot-VA)."""
    action_rope: Literal["grid", "frame", "index"] = "grid"
    """Positions of actions: their time among the latent frames; their place within a latent frame, without its ends
    (LingBot-VA); or their number, which turns the whole head (Fast-WAM, DreamZero)."""
    action_encoder: Literal["linear", "groot"] = "linear"
    """Embedding of actions: a linear map, and noise levels that the backbone embeds by itself; or that of GR00T N1
    (arXiv:2503.14734), which reads noise levels with the actions. Among the tokens of a video, the video's embedding of
    levels then serves both, and the head reads tokens that are not normed (DreamZero)."""
    expert_mlp: Width = 4096
    """Width inside the blocks of an expert for actions beside a pretrained one."""
    projector: Annotated[int, Between(0, inf), AtMost(2**15)] = 0
    """Width of a hidden layer in the embeddings of actions and state and in the head of actions (EasyWAM); 0 for
    none. Under action_encoder groot it is that of state and head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if "{}" not in self.prompt:
            raise ConfigError(f"prompt = {self.prompt!r}: must hold {{}}, where the instruction stands")
        if self.lora.rank and self.freeze:
            raise ConfigError("freeze leaves a backbone as it is, lora.rank adds adapters to it: use one of them")
        if self.action_encoder == "groot" and not self.projector:
            raise ConfigError("action_encoder groot has a hidden layer in its head: choose projector, such as 1024")


@dataclass(frozen=True)
class BackboneOption(Options):
    """Options of families that have a backbone."""

    takes_video_models: ClassVar[bool] = False
    """True for families that may be built on a pretrained video model."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The backbone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone.path and not self.takes_video_models:
            raise ConfigError(
                f"backbone.path = {self.backbone.path!r}: this family is not built on a pretrained video model; "
                "unified, mot, hidden_state, world_model, cascade_idm and bc are"
            )
        acts = self.backbone.state == "action" or self.backbone.action_encoder == "groot"
        if acts and not (self.backbone.path and isinstance(self, ActionConfig)):
            raise ConfigError(
                "backbone.state action and backbone.action_encoder groot are for actions beside a pretrained video "
                "model, which this family does not have here"
            )


@dataclass(frozen=True)
class SizeConfig(Options):
    """Sizes of a transformer."""

    width: Width = 128
    """Width of tokens."""
    depth: Depth = 4
    """Blocks."""
    heads: Count = 4
    """Attention heads, among which the width is divided."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_multiple("width", self.width, "heads", self.heads)


@dataclass(frozen=True)
class ProprioConfig(SizeConfig):
    """Options of transformers that are given the robot's state."""

    proprio_noise: NotNegative = 0.05
    """Deviation, in normalised units, of the noise that training adds to proprioception."""


@dataclass(frozen=True)
class ContextConfig(ProprioConfig, BackboneOption):
    """Options of families that encode observations as `ContextTokens`."""

    text: TextConfig = field(default_factory=TextConfig)
    """Encoder of instructions."""
    text_dropout: Annotated[float, Between(0, 0.9)] = 0.0
    """Probability that training leaves out each word and word pair of an instruction, for a table of words. A table
    learned so ignores words that it never learned, and so understands an instruction in partly other words."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """Encoder of images."""
    image_stride: Literal[16, 32] = 16
    """Pixels a side of the cell of an image that one token stands for."""

    def build_context(self, spec: Spec) -> ContextTokens | VideoContext:
        """The encoder of observations."""
        if self.backbone.path:
            from wamkit.nn.backbones.video_model import video_model
            from wamkit.nn.video_tokens import VideoContext

            if self.backbone.state == "action" and self.proprio_noise:
                raise ConfigError("backbone.state action adds no noise to the state: choose proprio_noise 0")
            return VideoContext(spec, self.backbone, video_model(self.backbone).width, self.proprio_noise)
        from wamkit.nn.encoders import build_image, build_text
        from wamkit.nn.tokens import ContextTokens

        text = build_text(self.text, self.width, self.text_dropout)
        image = build_image(self.image, spec, self.width, self.image_stride)
        return ContextTokens(self.width, spec, text, self.proprio_noise, self.image_stride, image)


@dataclass(frozen=True)
class TrunkConfig(ContextConfig):
    """Options of families with one backbone over one sequence."""

    def build_trunk(self) -> SequenceBackbone:
        """The backbone, freshly initialised unless it is a pretrained one."""
        if self.backbone.path:
            from wamkit.nn.backbones.video_dit import VideoTrunk
            from wamkit.nn.backbones.video_model import video_model

            acts = isinstance(self, ActionConfig)  # actions are tokens of the video model itself
            return VideoTrunk(video_model(self.backbone).parts(self.backbone, acts))
        from wamkit.nn.backbones.base import BACKBONES

        return BACKBONES.get(self.backbone.name)(self.width, self.depth, self.heads)


@dataclass(frozen=True)
class ExpertsConfig(ContextConfig):
    """Options of families with one expert a stream."""

    width: Width = 112
    """Width of the video expert, and of the attention that both share."""
    action_width: Width = 56
    """Width of the action expert."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone.name != "transformer" and not self.backbone.path:
            raise ConfigError(
                f"backbone.name = {self.backbone.name!r}: this family has one expert a stream, its own or "
                "those of a pretrained video model: add backbone.path"
            )

    def build_experts(self, video: str, action: str) -> Mixture | VideoMixture:
        """The experts of the two streams, freshly initialised, but for a video expert that is pretrained."""
        if self.backbone.path:
            from wamkit.nn.backbones.video_dit import VideoMixture
            from wamkit.nn.backbones.video_model import video_model

            model = video_model(self.backbone)
            parts = model.parts(self.backbone)
            expert = model.expert(parts, self.action_width, self.backbone)
            return VideoMixture({video: parts, action: expert})
        from wamkit.nn.backbones.mixture_of_transformers import Mixture

        return Mixture({video: self.width, action: self.action_width}, self.depth, self.heads, self.width)


@dataclass(frozen=True)
class CodecConfig(BackboneOption):
    """Options of families whose future is latents of an autoencoder, trained in a stage of its own before all else.

    A pretrained video model has an autoencoder, and there is no such stage.
    """

    codec: str = "frame_codec"
    """Registered name of the autoencoder (`wamkit.nn.AUTOENCODERS`)."""
    codec_channels: Count = 8
    """Size of a latent. Of the frame codec: values a quarter of a cell, 8x8 pixels."""
    codec_lr: Positive = 1.2
    """The codec's learning rate, as a multiple of train.lr."""
    codec_share: StageShare = 0.4
    """Share of all steps that train the codec."""

    def build_future(self, spec: Spec, width: int, *stream: type[Stream] | None) -> FutureLatents | VideoLatents:
        """The future's latents, and how they become tokens of `width`. stream: as in `FutureLatents`."""
        if self.backbone.path:
            from wamkit.nn.video_tokens import VideoLatents

            return VideoLatents(spec, self.backbone)
        from wamkit.nn.autoencoders.base import AUTOENCODERS
        from wamkit.nn.autoencoders.future import FutureLatents
        from wamkit.nn.tokens import grid_of

        kind = AUTOENCODERS.get(self.codec)
        return FutureLatents(spec, kind(grid_of(spec, kind.stride), self.codec_channels), width, *stream)


@dataclass(frozen=True)
class ActionConfig(BackboneOption):
    """Options of families that have a chunk of actions as tokens."""

    actions_per_token: Count = 4
    """Consecutive actions that one token holds."""
    denoising_steps: Count = 4
    """Denoising steps of a query, unless the caller names a number."""

    def build_action(self, spec: Spec, width: int, *stream: type[Stream]) -> ActionChunk:
        """The chunk, as tokens of `width`. stream: as in `ActionChunk`."""
        if self.backbone.path:
            from wamkit.nn.backbones.video_model import video_model
            from wamkit.nn.heads import GivenStream
            from wamkit.nn.video_tokens import video_actions

            if not isinstance(self, ExpertsConfig):  # actions are tokens of the video model itself
                width = video_model(self.backbone).width
            return video_actions(spec, self.backbone, width, self.actions_per_token, GivenStream in stream)
        from wamkit.nn.heads import ActionChunk

        return ActionChunk(spec, width, self.actions_per_token, *stream)


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
    head_depth: Depth = 2
    """Its blocks."""


@dataclass(frozen=True)
class CodeConfig:
    """Codes of a future frame: `cell` of them for each cell of the frame codec, one of levels ** numbers each."""

    cell: Count = 1
    """Codes a cell and frame."""
    numbers: Annotated[int, Between(1, inf), AtMost(16)] = 4
    """Latents that one code stands for."""
    levels: Annotated[int, Between(2, inf), AtMost(2**16)] = 6
    """Values that each of them can take."""

    def __post_init__(self) -> None:
        check_declared(self)
        if (count := self.cell * self.numbers) % 4:
            near = 4 * math.ceil(count / 4)
            raise ConfigError(
                f"cell * numbers = {count}: must be a multiple of 4 (the codec's cells), {near} for example"
            )
        if self.size > 2**16:
            raise ConfigError(
                f"levels ** numbers = {self.levels} ** {self.numbers} codes: must be at most {2**16}; "
                "take fewer levels, or more codes of fewer numbers"
            )

    @property
    def size(self) -> int:
        """The number of codes."""
        return self.levels**self.numbers


@dataclass(frozen=True)
class TargetConfig:
    """Labels, conditionals and noise levels of the rows of a batch."""

    policy_label: Literal["expert", "executed"] = "expert"
    """Label of the policy: the clean expert action, or the executed one, noise included."""
    joint_label: Literal["expert", "executed"] = "executed"
    """The same for the actions of joint rows, whose futures followed from the executed ones."""
    modes: tuple[float, float, float, float] = (0.25, 0.25, 0.35, 0.15)
    """Shares of rows that train joint, forward, inverse, video."""
    future_shift: Positive = 3.0
    """Shift of the future's noise levels towards noise, in training and sampling. Its many values are redundant, so
    that events are decided at high noise, and below it only appearance."""
    inverse_shift: Positive = 9.0
    """The same for the actions of inverse rows: trained where they are sampled, with one step from pure noise."""
    policy_shift: Positive = 1.0
    """The same for the actions of a policy query."""
    shared_level: bool = False
    """One noise level for future and action of joint rows, in training and sampling (PAD, VideoVLA, DreamZero)."""

    def __post_init__(self) -> None:
        check_declared(self)
        check_modes(self.modes)

    def action_shift(self, query: Query) -> float:
        """Shift of the levels of actions towards noise when `query` is sampled."""
        if query is Query.INVERSE:
            return self.inverse_shift
        if query is Query.POLICY:
            return self.policy_shift
        return self.future_shift if query is Query.JOINT and self.shared_level else 1.0


@dataclass(frozen=True)
class JointConfig(ActionConfig, CodecConfig):
    """Options of families that denoise future and action together."""

    program: Program = Program.JOINT
    """Visibility between the two streams (`nn.attention_mask`)."""
    chunk_causal: bool = False
    """True: earlier moments are read apart, once, and remembered (`nn.history`). False: together with the present."""
    targets: TargetConfig = field(default_factory=TargetConfig)
    """Labels, conditionals and noise levels of the rows of a batch."""
    policy_draws: Count = 1
    """Noise levels at which a row trains its policy. They share the context, whose encoding costs most."""
    joint_share: Annotated[float, Between(0.01, 1)] = 1.0
    """Share of the rows of a batch that train a conditional of the joint, beside the policy that all train."""
    denoising_steps: Count = 8
    """Steps of queries that imagine frames."""
    policy_steps: Count = 4
    """Steps of policy queries."""
    inverse_steps: Count = 1
    """Steps of inverse queries. One Euler step from pure noise gives the mean of the model's belief, since there
    v = eps - E[x]. It is the best estimate of the executed actions. More steps draw a sample, with twice the squared
    error."""

    def build_parts(
        self, spec: Spec, sizes: ContextConfig, action_width: int
    ) -> tuple[ContextTokens | VideoContext, History | VideoHistory | None, FutureLatents | VideoLatents, ActionChunk]:
        """The encoder of observations, the reader of earlier moments (None where they are read with the present), and
        the streams of future and action."""
        from wamkit.nn.history import History, present

        context, history = sizes.build_context(present(spec) if self.chunk_causal else spec), None
        if self.chunk_causal and self.backbone.path:
            from wamkit.nn.video_tokens import VideoHistory

            history = VideoHistory(spec, context)
        elif self.chunk_causal:
            history = History(spec, context.cells + 1, sizes.depth, sizes.heads, sizes.width)
        return context, history, self.build_future(spec, sizes.width), self.build_action(spec, action_width)


def check_modes(modes: tuple[float, ...]) -> None:
    """Raises ConfigError unless these can be shares: finite, none negative, not all zero."""
    if not all(0 <= m < inf for m in modes) or not sum(modes):
        raise ConfigError(f"modes = {modes}: shares must be at least 0, and not all 0")
