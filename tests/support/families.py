"""Tiny random models of every base family, built from configs, as model folders that diffusers loads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tiny import kl_autoencoder, text_encoder, tokenizer
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model, T5Config, T5EncoderModel, T5Tokenizer

WIDTHS = (16, 24)  # of SDXL's two text encoders
LETTERS = [chr(code) for code in range(33, 127)]
LONGEST = 48  # tokens of a prompt, of T5 and Qwen
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }} {{ message.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)


def sdxl(folder: Path, *, widths: tuple[int, int] = (8, 16), **scheduler_changes: Any) -> Path:
    """Write a tiny SDXL model and return its folder.

    Args:
        folder: a new folder.
        widths: channels of the U-Net's two levels.
        scheduler_changes: fields of its scheduler's config.
    """
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
        block_out_channels=widths,
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
    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    scheduler = EulerDiscreteScheduler(**noise, timestep_spacing="leading", **scheduler_changes)
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


def sd3(folder: Path, *, medium: bool = True, t5_encoder: bool = True) -> Path:
    """Write a tiny Stable Diffusion 3 model and return its folder.

    Args:
        folder: a new folder.
        medium: as SD3.5-medium, with two attentions in some blocks and normalised queries and keys; else as SD3.
        t5_encoder: with T5.
    """
    tokenizers = [tokenizer(folder / "parts" / name) for name in ("one", "two")]
    encoders = [
        text_encoder(len(words), width=width, layers=2, projection=True, seed=seed)
        for words, width, seed in zip(tokenizers, WIDTHS, (2, 3), strict=True)
    ]
    pieces, width = t5_tokenizer(), 48
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        num_layers=5,
        attention_head_dim=16,
        num_attention_heads=4,  # as wide as a token's 64 channels, or noise could not be predicted
        joint_attention_dim=width,
        caption_projection_dim=64,
        pooled_projection_dim=sum(WIDTHS),
        pos_embed_max_size=12,
        dual_attention_layers=(0, 1, 2) if medium else (),
        qk_norm="rms_norm" if medium else None,
    )
    pipeline = StableDiffusion3Pipeline(
        transformer,
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        flux_autoencoder(),
        encoders[0],
        tokenizers[0],
        encoders[1],
        tokenizers[1],
        t5(len(pieces), width) if t5_encoder else None,
        pieces if t5_encoder else None,
    )
    pipeline.save_pretrained(folder / "model", safe_serialization=True)
    return folder / "model"


def flux(folder: Path, *, dev: bool = True, layers: tuple[int, int] = (5, 2)) -> Path:
    """Write a tiny FLUX.1 model and return its folder.

    Args:
        folder: a new folder.
        dev: with a guidance embedding and a shift by the image's size; else as FLUX.1-schnell.
        layers: double-stream and single-stream blocks.
    """
    words, pieces = tokenizer(folder / "parts" / "clip"), t5_tokenizer()
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=layers[0],
        num_single_layers=layers[1],
        attention_head_dim=16,
        num_attention_heads=4,  # as wide as a token's 64 channels, or noise could not be predicted
        joint_attention_dim=12,
        pooled_projection_dim=16,
        guidance_embeds=dev,
        axes_dims_rope=(4, 6, 6),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0 if dev else 1.0, use_dynamic_shifting=dev)
    pipeline = FluxPipeline(
        scheduler, flux_autoencoder(), text_encoder(len(words)), words, t5(len(pieces), 12), pieces, transformer
    )
    pipeline.save_pretrained(folder / "model", safe_serialization=True)
    return folder / "model"


def z_image(folder: Path, *, layers: int = 3) -> Path:
    """Write a tiny Z-Image model and return its folder."""
    words = qwen_tokenizer()
    torch.manual_seed(4)
    qwen = Qwen3Model(
        Qwen3Config(
            vocab_size=len(words),
            hidden_size=12,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    )
    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        dim=64,  # as wide as a token's 64 channels, or noise could not be predicted
        n_layers=layers,
        n_refiner_layers=1,
        n_heads=4,
        n_kv_heads=4,
        cap_feat_dim=12,
        axes_dims=[4, 6, 6],
        axes_lens=[256, 64, 64],
    )
    with torch.no_grad():
        for token in (transformer.x_pad_token, transformer.cap_pad_token):
            token.normal_()
    pipeline = ZImagePipeline(FlowMatchEulerDiscreteScheduler(shift=3.0), flux_autoencoder(), qwen, words, transformer)
    pipeline.save_pretrained(folder / "model", safe_serialization=True)
    return folder / "model"


def flux_autoencoder() -> AutoencoderKL:
    """Return an autoencoder of 16 channels, whose distributions are so narrow that a sample is the mean."""
    torch.manual_seed(1)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=16,
        norm_num_groups=4,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    with torch.no_grad():
        vae.encoder.conv_out.weight[16:] = 0
        vae.encoder.conv_out.bias[16:] = -60
    return vae


def t5_tokenizer() -> T5Tokenizer:
    """Return a T5 tokenizer that spells every word."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=LONGEST)


def t5(vocabulary: int, width: int) -> T5EncoderModel:
    """Return a T5 text encoder."""
    torch.manual_seed(5)
    return T5EncoderModel(
        T5Config(vocab_size=vocabulary, d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0)
    )


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Return a Qwen tokenizer that spells every word, with a chat template."""
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {piece: k for k, piece in enumerate([*marks, "Ġ", *LETTERS])}
    words = Qwen2Tokenizer(vocab=vocabulary, merges=[], model_max_length=LONGEST)
    words.add_special_tokens({"additional_special_tokens": marks[1:]})
    words.chat_template = CHAT
    return words


MODELS: dict[str, Callable[[Path], Path]] = {"sdxl": sdxl, "sd3": sd3, "flux": flux, "z-image": z_image}
"""Family -> what writes a tiny model of it."""
