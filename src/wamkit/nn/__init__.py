"""Shared parts of which every family is built.

Families import parts from here, names of streams and masks from `nn.attention_mask`, and options from `nn.options`.
"""

from wamkit.nn import flow
from wamkit.nn.autoencoders.base import AUTOENCODERS, Autoencoder, FutureCodec
from wamkit.nn.autoencoders.frame_codec import FrameCodec
from wamkit.nn.autoencoders.future import CodeConfig, FutureCodes, FutureLatents
from wamkit.nn.backbones.base import BACKBONES, Backbone, Cache, SequenceBackbone, Tokens, joined, split
from wamkit.nn.backbones.mixture_of_transformers import Mixture
from wamkit.nn.backbones.transformer import Read, Trunk, sigma_features
from wamkit.nn.conditioning import Conditioning, ContextFeatures
from wamkit.nn.encoders import VisionTeacher
from wamkit.nn.heads import ActionChunk, GivenStream, NoisyStream, QueryStream, Stream, masked_mean
from wamkit.nn.history import History, present
from wamkit.nn.normalizer import Normalizer
from wamkit.nn.tokens import (
    ContextTokens,
    Downsample,
    ImageTokens,
    canvas,
    grid_of,
    image_positions,
    step_positions,
    uncanvas,
)
from wamkit.nn.vocabulary import Vocabulary, from_digits, to_digits

__all__ = [
    "AUTOENCODERS",
    "ActionChunk",
    "Autoencoder",
    "BACKBONES",
    "Backbone",
    "Cache",
    "CodeConfig",
    "Conditioning",
    "ContextFeatures",
    "ContextTokens",
    "Downsample",
    "FrameCodec",
    "FutureCodec",
    "FutureCodes",
    "FutureLatents",
    "GivenStream",
    "History",
    "ImageTokens",
    "Mixture",
    "NoisyStream",
    "Normalizer",
    "QueryStream",
    "Read",
    "SequenceBackbone",
    "Stream",
    "Tokens",
    "Trunk",
    "VisionTeacher",
    "Vocabulary",
    "canvas",
    "flow",
    "from_digits",
    "grid_of",
    "image_positions",
    "joined",
    "masked_mean",
    "present",
    "sigma_features",
    "split",
    "step_positions",
    "to_digits",
    "uncanvas",
]
