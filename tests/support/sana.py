"""A tiny random Sana model, for the example of a base family in the documentation."""

from pathlib import Path

import torch
from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel
from families import LETTERS
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

WIDTH = 16


def sana(folder: Path) -> Path:
    """Write a tiny Sana model and return its folder."""
    marks = ["<pad>", "<eos>", "<bos>", "<unk>", "▁"]
    words = GemmaTokenizer(vocab={piece: k for k, piece in enumerate([*marks, *LETTERS])}, merges=[])
    torch.manual_seed(5)
    gemma = Gemma2Config(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=4096,
    )
    torch.manual_seed(1)
    halves = {
        f"{half}_{name}": value
        for half in ("encoder", "decoder")
        for name, value in {
            "block_types": ("ResBlock", "EfficientViTBlock"),
            "block_out_channels": (8, 8),
            "layers_per_block": (1, 1),
            "qkv_multiscales": ((), (5,)),
        }.items()
    }
    vae = AutoencoderDC(latent_channels=4, attention_head_dim=2, scaling_factor=0.41407, **halves)
    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=WIDTH,
        caption_channels=WIDTH,
        sample_size=16,
        mlp_ratio=2.0,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = SanaPipeline(words, Gemma2Model(gemma), vae, transformer, scheduler)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
