"""Tiny random models of every base family, built from configs, as model folders that diffusers loads."""

from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from tiny import kl_autoencoder, text_encoder, tokenizer

WIDTHS = (16, 24)  # of SDXL's two text encoders


def sdxl(folder: Path) -> Path:
    """Write a tiny SDXL model and return its folder."""
    tokenizers = [tokenizer(folder / "parts" / name) for name in ("one", "two")]
    encoders = [
        text_encoder(len(tokenizers[0]), width=WIDTHS[0], layers=2),
        text_encoder(len(tokenizers[1]), width=WIDTHS[1], layers=2, projection=True, seed=3),
    ]
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=sum(WIDTHS),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=WIDTHS[1] + 6 * 4,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )
    pipeline = StableDiffusionXLPipeline(
        kl_autoencoder(scaling_factor=0.13025, force_upcast=True),
        encoders[0],
        encoders[1],
        tokenizers[0],
        tokenizers[1],
        unet,
        scheduler,
    )
    pipeline.save_pretrained(folder / "model", safe_serialization=True)
    return folder / "model"
