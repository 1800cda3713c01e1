"""Shared parts of which every family is built.

Families import parts from here, names of streams and masks from `nn.attention_mask`, and options from `nn.options`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wamkit.nn import flow
    from wamkit.nn.autoencoders.base import AUTOENCODERS, Autoencoder, FutureCodec
    from wamkit.nn.autoencoders.frame_codec import FrameCodec
    from wamkit.nn.autoencoders.future import CodeConfig, FutureCodes, FutureLatents
    from wamkit.nn.backbones.base import BACKBONES, Backbone, Cache, SequenceBackbone, Tokens, joined, split
    from wamkit.nn.backbones.mixture_of_transformers import Mixture
    from wamkit.nn.backbones.transformer import Read, Trunk, sigma_features
    from wamkit.nn.conditioning import Conditioning, ContextFeatures
    from wamkit.nn.encoders import VisionTeacher
    from wamkit.nn.heads import ActionChunk, GivenStream, NoisyStream, QueryStream, Stream, masked_mean, mean_over_draws
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
        view_cells,
    )
    from wamkit.nn.vocabulary import Vocabulary, from_digits, to_digits

# Imported at first use, so that `nn.options` can be read, and wrong options refused, before torch is loaded.
_HOMES = {
    "wamkit.nn.autoencoders.base": ("AUTOENCODERS", "Autoencoder", "FutureCodec"),
    "wamkit.nn.autoencoders.frame_codec": ("FrameCodec",),
    "wamkit.nn.autoencoders.future": ("CodeConfig", "FutureCodes", "FutureLatents"),
    "wamkit.nn.backbones.base": ("BACKBONES", "Backbone", "Cache", "SequenceBackbone", "Tokens", "joined", "split"),
    "wamkit.nn.backbones.mixture_of_transformers": ("Mixture",),
    "wamkit.nn.backbones.transformer": ("Read", "Trunk", "sigma_features"),
    "wamkit.nn.conditioning": ("Conditioning", "ContextFeatures"),
    "wamkit.nn.encoders": ("VisionTeacher",),
    "wamkit.nn.heads": (
        "ActionChunk",
        "GivenStream",
        "NoisyStream",
        "QueryStream",
        "Stream",
        "masked_mean",
        "mean_over_draws",
    ),
    "wamkit.nn.history": ("History", "present"),
    "wamkit.nn.normalizer": ("Normalizer",),
    "wamkit.nn.tokens": (
        "ContextTokens",
        "Downsample",
        "ImageTokens",
        "canvas",
        "grid_of",
        "image_positions",
        "step_positions",
        "uncanvas",
        "view_cells",
    ),
    "wamkit.nn.vocabulary": ("Vocabulary", "from_digits", "to_digits"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
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
    "mean_over_draws",
    "present",
    "sigma_features",
    "split",
    "step_positions",
    "to_digits",
    "uncanvas",
    "view_cells",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'wamkit.nn' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)
