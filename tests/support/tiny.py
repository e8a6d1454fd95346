"""A real Stable-Diffusion-style model folder, small enough that a forward pass takes a few milliseconds."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from codi_hub.adapters.adapter import Adapter
from codi_hub.adapters.format import AdapterRecord, BaseRecord
from codi_hub.backbones.parts import Parts
from codi_hub.backbones.unet import UNetBackbone

TOKENS = 16
WIDTH = 16
SD_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def scheduler_config(prediction_type: str, *, zero_snr: bool = False) -> dict[str, Any]:
    """Stable Diffusion's schedule, as a diffusers folder keeps it."""
    return {
        "_class_name": "DDIMScheduler",
        "prediction_type": prediction_type,
        "rescale_betas_zero_snr": zero_snr,
        "num_train_timesteps": 1000,
        **SD_SCHEDULE,
    }


def unet(**changes: Any) -> UNet2DConditionModel:
    """A U-Net of two levels, 8 and 16 channels wide, random but for its seed."""
    config: dict[str, Any] = {
        "sample_size": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": WIDTH,
        "addition_embed_type": "text",  # as nano has it
        "addition_embed_type_num_heads": 4,
    }
    torch.manual_seed(changes.pop("seed", 0))
    return UNet2DConditionModel(**(config | changes))


def autoencoder(kind: str) -> Any:
    """An autoencoder that halves both sides: `tiny` or `kl`."""
    torch.manual_seed(1)
    if kind == "tiny":
        widths = {f"{half}_block_out_channels": (8, 8) for half in ("encoder", "decoder")}
        vae = AutoencoderTiny(**widths, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
        return _lively(vae, vae.decoder.layers[-1], 0.5)
    vae = kl_autoencoder(scaling_factor=0.5)
    return _lively(vae, vae.decoder.conv_out, 0.0)


def kl_autoencoder(*, levels: int = 2, **config: Any) -> AutoencoderKL:
    """An AutoencoderKL that halves both sides, once less than it has levels."""
    torch.manual_seed(1)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        latent_channels=4,
        norm_num_groups=4,
        **config,
    )


def _lively(vae: Any, last: Any, middle: float) -> Any:
    """Raise the contrast of what it decodes, mid-gray on average, so that few pixels are clipped."""
    with torch.no_grad():
        last.weight.mul_(2)
        last.bias.fill_(middle)
    return vae


def tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer that spells every word."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({piece: k for k, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TOKENS)


def text_encoder(
    vocabulary: int, *, width: int = WIDTH, layers: int = 1, projection: bool = False, seed: int = 2
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A CLIP text encoder, with a projection of its pooled output on request."""
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def save_base(folder: Path, scheduler: dict[str, Any], *, vae: str = "tiny", **unet_changes: Any) -> Path:
    """Writes the folder of a base and returns it."""
    words = tokenizer(folder / "tokenizer")
    words.save_pretrained(folder / "tokenizer")
    text_encoder(len(words)).save_pretrained(folder / "text_encoder")
    unet(**unet_changes).save_pretrained(folder / "unet")
    autoencoder(vae).save_pretrained(folder / "vae")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


def with_unet(base: UNetBackbone, net: UNet2DConditionModel, scheduler: dict[str, Any] | None = None) -> UNetBackbone:
    """`base` with another U-Net, and with another schedule if one is given."""
    scheduler = scheduler or scheduler_config(base.schedule.prediction_type, zero_snr=True)
    return UNetBackbone(parts_of(base, scheduler, unet=net))


def parts_of(base: UNetBackbone, scheduler: dict[str, Any], **changes: Any) -> Parts:
    """The components of a base with one text encoder, some of them replaced."""
    names = {"unet": base.unet, "vae": base.vae, "text_encoder": base.text_encoders[0], "tokenizer": base.tokenizers[0]}
    return Parts(names | changes, scheduler)


def stir(module: torch.nn.Module, scale: float = 0.1, seed: int = 3) -> torch.nn.Module:
    """Adds noise to every parameter, so that an adapter that starts as its base has an effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=scale)
    return module


def record_of(base: UNetBackbone, adapter: Adapter) -> AdapterRecord:
    """What a folder says of an adapter beside its weights."""
    prediction_type: Any = base.schedule.prediction_type
    return AdapterRecord(
        task="depth",
        kind=adapter.kind,
        base=BaseRecord(name="tiny", family=base.fingerprint.family, sketch=base.fingerprint.sketch),
        prediction_type=prediction_type,
        steps=4,
        config=adapter.config,
    )
