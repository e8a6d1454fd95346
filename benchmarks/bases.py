"""The bases of the benchmark: the bundled one, and one of Stable Diffusion 1.5's geometry with random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

import codi_hub

NANO = Path(codi_hub.__file__).with_name("nano")
BUILT = Path(__file__).parents[1] / "build" / "benchmarks"
BASES = ("nano", "sd15")
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
WIDTHS = (320, 640, 1280, 1280)
UNET: dict[str, Any] = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": WIDTHS,
}
TOKENS = 77
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}


def folder_of(name: str) -> Path:
    """Return a diffusers folder: `nano`, or `sd15`, which is created the first time (2.1 GB, bfloat16)."""
    if name == "nano":
        return NANO / "base"
    folder = BUILT / name
    if not (folder / "model_index.json").exists():
        _make_sd15(folder)
    return folder


def _make_sd15(folder: Path) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    shutil.rmtree(folder, ignore_errors=True)
    _random(UNet2DConditionModel, **UNET).save_pretrained(folder / "unet")
    _random(AutoencoderKL, **VAE).save_pretrained(folder / "vae")
    shutil.copytree(NANO / "base" / "tokenizer", folder / "tokenizer")
    settings = folder / "tokenizer" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_max_length": TOKENS}))
    words = json.loads((NANO / "base" / "text_encoder" / "config.json").read_text())
    ends = {name: words[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _random(CLIPTextModel, config=CLIPTextConfig(**TEXT, **ends)).save_pretrained(folder / "text_encoder")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    index = json.loads((NANO / "base" / "model_index.json").read_text())
    index |= {"vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", "DDIMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))


def _random(kind: Any, **config: Any) -> nn.Module:
    """Return a network with random weights in bfloat16, scaled so that a layer keeps its input's deviation."""
    with torch.device("meta"):
        net = kind(config["config"]) if "config" in config else kind(**config)
    net = net.to_empty(device="cpu").to(torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    for name, value in net.named_parameters():
        if value.ndim > 1:
            deviation = value[0].numel() ** -0.5
            value.data.copy_(torch.randn(value.shape, generator=generator).mul_(deviation))
        else:
            value.data.fill_(0.0 if name.endswith("bias") else 1.0)
    for name, value in net.named_buffers():
        if name.endswith("position_ids"):
            value.copy_(torch.arange(value.shape[-1]).expand(value.shape))
    return net
