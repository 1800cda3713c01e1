"""Sizes of released models, so that a model can be planned before anything is downloaded.

They are the entries of the config.json of each part that sizes follow from, as `diffusers` has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WAN = {
    "_class_name": "WanTransformer3DModel",
    "patch_size": [1, 2, 2],
    "attention_head_dim": 128,
    "text_dim": 4096,
    "freq_dim": 256,
    "num_layers": 30,
    "cross_attn_norm": True,
}
_WAN21_AUTOENCODER = {"z_dim": 16, "base_dim": 96, "latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}
_UMT5 = {"d_model": 4096}

RELEASED: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": {
        "transformer": {
            **_WAN,
            "num_attention_heads": 24,
            "in_channels": 48,
            "out_channels": 48,
            "ffn_dim": 14336,
        },
        "vae": {
            "z_dim": 48,
            "base_dim": 160,
            "decoder_base_dim": 256,
            "is_residual": True,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
            "scale_factor_temporal": 4,
            "scale_factor_spatial": 16,
            "latents_mean": [0.0] * 48,
            "latents_std": [1.0] * 48,
        },
        "text_encoder": _UMT5,
    },
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": {
        "transformer": {
            **_WAN,
            "num_attention_heads": 12,
            "in_channels": 16,
            "out_channels": 16,
            "ffn_dim": 8960,
        },
        "vae": _WAN21_AUTOENCODER,
        "text_encoder": _UMT5,
    },
    "nvidia/Cosmos-Predict2-2B-Video2World": {
        "transformer": {
            "_class_name": "CosmosTransformer3DModel",
            "in_channels": 17,
            "out_channels": 16,
            "num_attention_heads": 16,
            "attention_head_dim": 128,
            "num_layers": 28,
            "mlp_ratio": 4.0,
            "text_embed_dim": 1024,
            "adaln_lora_dim": 256,
            "max_size": [128, 240, 240],
            "patch_size": [1, 2, 2],
            "rope_scale": [1.0, 3.0, 3.0],
            "concat_padding_mask": True,
            "extra_pos_embed_type": None,
        },
        "vae": _WAN21_AUTOENCODER,
        "text_encoder": {"d_model": 1024},
    },
}
"""By hub id, the config.json of each part. Means and deviations of latents are left out: no size follows from them."""

ENCODERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "facebook/dinov3-vits16-pretrain-lvd1689m": ("dinov3_vit", {}),
    "sentence-transformers/all-MiniLM-L6-v2": (
        "bert",
        {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    ),
}
"""Encoders of images and texts by hub id: the kind of model in `transformers`, and what differs from its defaults."""
