"""Tiny random video models of the real classes, in folders of the real layout."""

from __future__ import annotations

from pathlib import Path

import torch

HEADS, LAYERS, Z, TEXT = 2, 2, 4, 32
"""Attention heads, blocks, channels of a latent, size of a text feature."""


def wan_transformer(layers: int = LAYERS, z: int = Z):
    """Of the kind of Wan2.2-TI2V-5B."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=HEADS,
        attention_head_dim=12,
        in_channels=z,
        out_channels=z,
        text_dim=TEXT,
        freq_dim=32,
        ffn_dim=48,
        num_layers=layers,
        cross_attn_norm=True,
        rope_max_seq_len=64,
    )


def cosmos_transformer(layers: int = LAYERS, in_channels: int = Z, **options: bool):
    """Of the kind of Cosmos-Predict2; its released weights also take a mask of padding."""
    from diffusers import CosmosTransformer3DModel

    return CosmosTransformer3DModel(
        in_channels=in_channels,
        out_channels=Z,
        num_attention_heads=HEADS,
        attention_head_dim=24,
        num_layers=layers,
        mlp_ratio=2,
        text_embed_dim=TEXT,
        adaln_lora_dim=4,
        max_size=(8, 32, 32),
        patch_size=(1, 2, 2),
        rope_scale=(2.0, 1.0, 1.0),
        concat_padding_mask=options.get("padding", True),
        extra_pos_embed_type=None,
    )


def autoencoder(residual: bool, z: int = Z):
    """That of Wan2.2-TI2V-5B, 16x16x4, or that of Wan2.1, 8x8x4."""
    from diffusers import AutoencoderKLWan

    more = {"is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2, "decoder_base_dim": 4}
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=z,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        scale_factor_temporal=4,
        scale_factor_spatial=16 if residual else 8,
        latents_mean=[0.1] * z,
        latents_std=[1.5] * z,
        **(more if residual else {}),
    )


def save_texts(root: Path, name: str) -> None:
    """A text encoder, "UMT5" or "T5", and its tokenizer."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    config = getattr(transformers, f"{name}Config")(
        vocab_size=300, d_model=TEXT, d_kv=8, d_ff=64, num_layers=2, num_heads=4
    )
    getattr(transformers, f"{name}EncoderModel")(config).save_pretrained(root / "text_encoder")
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = {"special_tokens": ["<pad>", "</s>", "<unk>"], "unk_token": "<unk>", "show_progress": False}
    texts = ["push the red button", "open the drawer", "close the door and reach the goal", "task 0 1 2 3 4 5"] * 20
    tokenizer.train_from_iterator(texts, trainers.UnigramTrainer(vocab_size=70, **special))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(root / "tokenizer")


def make_folder(kind: str, root: Path, seed: int = 0, z: int = Z, layers: int = LAYERS) -> Path:
    """A folder with a tiny model, "wan" or "cosmos", as the Hub has the real ones. z: channels of Wan's latents."""
    torch.manual_seed(seed)
    wan = kind == "wan"
    transformer = wan_transformer(layers, z) if wan else cosmos_transformer()
    with torch.no_grad():
        for p in transformer.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    transformer.save_pretrained(root / "transformer")
    autoencoder(residual=wan, z=z).save_pretrained(root / "vae")
    save_texts(root, "UMT5" if wan else "T5")
    return root
