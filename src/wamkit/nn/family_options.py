"""Options of the families that come with the library, by the family's name.

They stand here, apart from the networks, so that `wamkit train` refuses wrong ones before torch is loaded. A family of
another package may keep its options beside its networks: they are then found in `Family.Config`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Annotated, Literal

from wamkit.config import AtMost, Between, ConfigError, check_bounds
from wamkit.nn.options import (
    ActionConfig,
    ActionHeadConfig,
    BackboneOption,
    CodecConfig,
    CodeConfig,
    Count,
    Depth,
    ExpertsConfig,
    JointConfig,
    Kind,
    NotNegative,
    Options,
    PolicyConfig,
    Positive,
    ProprioConfig,
    Share,
    SizeConfig,
    StageShare,
    TrunkConfig,
    check_modes,
)
from wamkit.registry import Registry

CONFIGS: Registry[type[Options]] = Registry("family")
"""Classes of options by the family's name."""

Teacher = Literal["ema", "pixels", "pretrained"]


@CONFIGS.register("unified")
@dataclass(frozen=True)
class UnifiedConfig(JointConfig, TrunkConfig):
    """Options of the family `unified`."""

    takes_video_models = True
    conditioning: Kind = "prefix"
    """Conditioning of the noisy tokens on the context (`nn.conditioning`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk_causal and self.conditioning not in ("prefix", "cross"):
            raise ConfigError(
                f"chunk_causal keeps the keys of earlier moments; conditioning {self.conditioning} has none: "
                "prefix or cross would fit"
            )
        if self.backbone.path and self.conditioning != "prefix":
            raise ConfigError(f"conditioning {self.conditioning}: a pretrained video model reads its context as prefix")


@CONFIGS.register("mot")
@dataclass(frozen=True)
class MoTConfig(JointConfig, ExpertsConfig):
    """Options of the family `mot`."""

    takes_video_models = True
    imagine: bool = False
    """True: a policy query imagines the future along with its actions. False: it leaves the future out."""
    partial: Share = 0.4
    """Level to which a policy query that imagines denoises the video, where that goes first."""
    slow: Count = 1
    """Denoising steps of the future for each one of the actions, where both denoise together."""


@CONFIGS.register("hidden_state")
@dataclass(frozen=True)
class HiddenStateConfig(PolicyConfig, CodecConfig, ExpertsConfig):
    """Options of the family `hidden_state`."""

    takes_video_models = True
    detach: bool = False
    """True: the action head only reads the video expert, which is trained first, in a stage of its own."""
    imagine: bool = False
    """True: a policy query denoises the future first. False: it reads the features of a single pass over noise."""
    inverse: Share = 0.3
    """Share of rows that train inverse dynamics: the future is given, clean."""
    blind: Share = 0.4
    """Share of rows whose future is pure noise, as it is in a policy query that imagines nothing."""
    future_shift: Positive = 3.0
    """Shift of the future's noise levels towards noise."""
    inverse_shift: Positive = 9.0
    """Shift of the action's noise levels of inverse rows towards noise, where they are sampled."""
    denoising_steps: Count = 8
    """Steps of the future, where it is imagined; the actions that follow then take `policy_steps`."""
    policy_steps: Count = 4
    """Denoising steps of the actions in a policy query, and after the future where it is imagined."""
    inverse_steps: Count = 1
    """One step from pure noise gives the mean of the model's belief about the executed actions."""


@CONFIGS.register("shared_rep")
@dataclass(frozen=True)
class SharedRepConfig(PolicyConfig, ActionHeadConfig, CodecConfig, TrunkConfig):
    """Options of the family `shared_rep`."""

    modes: tuple[float, float, float, float, float] = (0.3, 0.2, 0.2, 0.2, 0.1)
    """Shares of rows that train policy, joint, forward, inverse, video."""
    least_masked: float = 0.7
    """Smallest share of cells that is masked where the future is predicted; shares follow a normal law around 1, cut
    off there."""
    rounds: Count = 4
    """Rounds in which a query unmasks the future."""
    denoising_steps: Count = 8
    """Steps of the heads; the backbone runs once a round."""
    inverse_shift: Positive = 9.0
    """Shift of the action's noise levels of inverse rows towards noise, where they are sampled."""
    inverse_steps: Count = 1
    """One step from pure noise gives the mean of the model's belief about the executed actions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_modes(self.modes)


@CONFIGS.register("query_ar")
@dataclass(frozen=True)
class QueryARConfig(PolicyConfig, CodecConfig, TrunkConfig):
    """Options of the family `query_ar`."""

    denoising_steps: Count = 1
    """Always one pass."""


@CONFIGS.register("align")
@dataclass(frozen=True)
class AlignConfig(PolicyConfig, TrunkConfig):
    """Options of the family `align`."""

    at: Share = 0.75
    """Depth in the backbone at which the queries are read, as a share of its blocks."""
    teachers: tuple[Teacher, ...] = ("ema",)
    """Encoders of the future frames that the backbone learns to foresee; one loss each."""
    pretrained: str = ""
    """For the teacher `pretrained`: a local path or hub id of a vision encoder that `transformers.AutoModel` loads.
    That of `image` if not given."""
    decay: Share = 0.995
    """Decay of the moving average that is the teacher `ema`."""


@CONFIGS.register("jepa")
@dataclass(frozen=True)
class JepaConfig(PolicyConfig, ActionHeadConfig, TrunkConfig):
    """Options of the family `jepa`."""

    latents: Count = 4
    """Latent queries a transition from frame to frame."""
    predictor_depth: Depth = 2
    """Blocks of the predictor."""
    decay: Share = 0.995
    """Decay of the moving average that is the target encoder."""
    spread: NotNegative = 1.0
    """Least standard deviation between an image's cells, below which the learned encoder is penalised."""


@CONFIGS.register("cascade_idm")
@dataclass(frozen=True)
class CascadeIDMConfig(CodecConfig, TrunkConfig):
    """Options of the family `cascade_idm`."""

    takes_video_models = True
    codec_share: StageShare = 0.3
    """Share of all steps that train the codec, first."""
    idm_share: float = 0.25
    """Share of all steps that train the inverse dynamics model, last; the rest trains the planner."""
    idm: Literal["plain", "masked"] = "plain"
    """Inverse dynamics model: of whole frames, or of the part of them that a learned mask leaves open (Vidar)."""
    mask_weight: NotNegative = 3e-3
    """Price of an open mask (Vidar: 0.1 shuts it and the actions are lost)."""
    on_decodes: Share = 0.5
    """Share of the IDM's training rows that see imagined frames instead of recorded ones."""
    decode_sigma: Share = 0.75
    """The highest level from which those frames are denoised."""
    decode_steps: Count = 2
    """Steps in which they are."""
    future_shift: Positive = 3.0
    """Shift of the noise levels towards noise, in training and sampling."""
    denoising_steps: Count = 8
    """Denoising steps of the future, unless the caller names a number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self, idm_share=(0.005, 0.995 - self.codec_share))


@CONFIGS.register("cascade_geom")
@dataclass(frozen=True)
class CascadeGeomConfig(TrunkConfig):
    """Options of the family `cascade_geom`."""

    patch: Count = 8
    """Points a side of the square that one token holds."""
    moving: NotNegative = 0.003
    """Metres from which a point counts as moving: it then weighs `moving_weight` in the loss, and moves an object."""
    moving_weight: NotNegative = 10.0
    """Weight of a moving point in the loss, where a resting one weighs 1."""
    reach: Annotated[float, Between(1e-3, inf), AtMost(1e6)] = 0.08
    """Metres: deviation of the Gaussian by which a robot's point weighs less with its distance to the hand."""
    carry: Share = 0.5
    """Weight of the object's motion in the hand's, in contact."""
    unit: Positive = 0.01
    """Metres by which an action of 1 displaces the hand's target: calibration of the robot."""
    lag: NotNegative = 2.0
    """Steps by which the hand follows its target: calibration of the robot."""
    future_shift: Positive = 3.0
    """Shift of the noise levels towards noise, in training and sampling."""
    denoising_steps: Count = 4
    """Denoising steps of the motion, unless the caller names a number."""


@CONFIGS.register("latent_action")
@dataclass(frozen=True)
class LatentActionConfig(PolicyConfig, TrunkConfig):
    """Options of the family `latent_action`."""

    codes: Count = 4
    """Code words for each transition between consecutive frames."""
    levels: Annotated[tuple[int, ...], Between(2, inf), AtMost(2**16)] = (2, 2, 2)
    """Levels of each digit of a code word; their product is the number of entries, LAPA's 8."""
    latent_share: Annotated[float, Between(0.01, 0.98)] = 0.3
    """Share of all steps that train the latent action model."""
    codes_share: float = 0.3
    """Share of all steps that train the backbone on codes alone; the rest trains actions."""
    inverse: Share = 0.3
    """Share of rows that train inverse dynamics: codes of the real future are given."""
    inverse_shift: Positive = 9.0
    """Shift of the action's noise levels of those rows towards noise: trained where they are sampled, in one step."""
    inverse_steps: Count = 1
    """One step from pure noise gives the mean of the model's belief about the executed actions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self, codes_share=(0.005, 0.995 - self.latent_share))


@CONFIGS.register("discrete")
@dataclass(frozen=True)
class DiscreteConfig(ProprioConfig, BackboneOption):
    """Options of the family `discrete`."""

    codes: CodeConfig = field(default_factory=CodeConfig)
    """Image tokens."""
    bins: Annotated[int, Between(2, inf), AtMost(2**16)] = 256
    """Action tokens: evenly spaced values of one dimension."""
    reach: Positive = 4.0
    """Standard deviations from the mean to the outermost bins."""
    smooth: NotNegative = 3.0
    """Standard deviation, in bins, of an action's target; 0: one bin."""
    words: Count = 1024
    """Text tokens: number of ids that words and word pairs are hashed to."""
    codec_lr: Positive = 1.2
    """The codec's learning rate, as a multiple of train.lr."""
    codec_share: StageShare = 0.4
    """Share of all steps that train the codec."""
    decode: Literal["ar", "parallel"] = "ar"
    """One token after the other, or masked slots in rounds."""
    action_mask: bool = True
    """True: an action step ignores the actions of other steps (of "ar"; "parallel" slots see each other)."""
    joint: Literal["cot", "world"] = "cot"
    """First modality of the joint query: frames (chain of thought), or actions."""
    frames_first: Share = 0.5
    """Share of training rows that are written in that order."""
    clean: Share = 0.5
    """Share of training rows whose first modality has no blanks. "parallel" only."""
    temperature: NotNegative = 0.3
    """Temperature of image tokens; 0 takes the likeliest, which imagines no better."""
    action_temperature: NotNegative = 0.0
    """Temperature of action tokens; 0 takes the mean."""
    denoising_steps: Count = 4
    """Rounds in which a future is filled in; 8 imagined no better. "parallel" only."""
    policy_steps: Count = 1
    """Rounds in which actions are filled in. "parallel" only."""


@CONFIGS.register("bc")
@dataclass(frozen=True)
class BCConfig(PolicyConfig, TrunkConfig):
    """Options of the control `bc`; the same names and defaults as in `unified`."""

    takes_video_models = True
    policy_draws: Count = 1
    """Noise levels at which a row trains its actions. They share the context, whose encoding costs most."""


@CONFIGS.register("world_model")
@dataclass(frozen=True)
class WorldModelConfig(ActionConfig, CodecConfig, TrunkConfig):
    """Options of the control `world_model`."""

    takes_video_models = True
    future_shift: Positive = 3.0
    """Shift of the noise levels towards noise, in training and sampling."""
    denoising_steps: Count = 8
    """Denoising steps of the future, unless the caller names a number."""


@CONFIGS.register("inverse")
@dataclass(frozen=True)
class InverseConfig(ActionConfig, SizeConfig):
    """Options of the control `inverse`."""

    denoising_steps: Count = 1
    """Always one pass."""
