"""The alternative: diffusers' ControlNet and its pipeline, with the weights of an adapter of kind `control`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, DDIMScheduler, LCMScheduler
from diffusers import StableDiffusionControlNetPipeline as Pipe
from diffusers.utils import logging
from torch import Tensor

from codi_hub import adapters
from codi_hub.adapters.adapter import Adapter
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.unet import UNetBackbone

logging.set_verbosity_error()
logging.disable_progress_bar()

ROUNDING = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest relative difference between two implementations: the norm of the difference over the deviation."""


def lively(kind: str, base: Backbone, seed: int) -> Adapter:
    """Return an adapter at initialisation, but without zero matrices or kernels, so that it has an effect."""
    torch.manual_seed(seed)
    adapter = adapters.build(kind, base)
    for value in adapter.parameters():
        if value.ndim > 1 and not value.any():
            torch.nn.init.normal_(value, std=0.3 * value[0].numel() ** -0.5)
    return adapter


def documented(folder: Path, controlnet: Path, dtype: torch.dtype, device: torch.device) -> Pipe:
    """Return the pipeline as its documentation loads it, with the scheduler recommended for four steps."""
    net = ControlNetModel.from_pretrained(controlnet, dtype=dtype, use_safetensors=True)
    pipe = Pipe.from_pretrained(folder, controlnet=net, dtype=dtype, use_safetensors=True, safety_checker=None).to(
        device
    )
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tuned(folder: Path, base: UNetBackbone, controlnet: ControlNetModel) -> Pipe:
    """Return the pipeline around a loaded base of that folder: channels-last layout and fused attention."""
    pipe = Pipe(
        vae=base.vae,
        text_encoder=base.text_encoders[0],
        tokenizer=base.tokenizers[0],
        unet=base.unet,
        controlnet=controlnet,
        scheduler=LCMScheduler.from_pretrained(folder, subfolder="scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def walking_like_us(folder: Path) -> DDIMScheduler:
    """Return diffusers' equivalent of the default sampler: DDIM on trailing timesteps, ending at the clean image."""
    settings = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}
    return DDIMScheduler.from_pretrained(folder, subfolder="scheduler", **settings)


def step(controlnet: Any, unet: Any, z_t: Tensor, t: Tensor, prompt: Tensor, condition: Tensor) -> Tensor:
    """Evaluate the networks of one step as diffusers' pipeline does."""
    down, middle = controlnet(
        z_t, t, encoder_hidden_states=prompt, controlnet_cond=condition, conditioning_scale=1.0, return_dict=False
    )
    return unet(
        z_t,
        t,
        encoder_hidden_states=prompt,
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
        return_dict=False,
    )[0]


def agree(ours: Tensor, theirs: Tensor, dtype: torch.dtype, what: str) -> None:
    """Exit unless the two are equal up to the rounding of `dtype`."""
    ours, theirs = ours.detach().float().cpu(), theirs.detach().float().cpu()
    apart = float((ours - theirs).norm() / (theirs - theirs.mean()).norm())
    if not apart <= ROUNDING[dtype]:  # not a number is too far apart as well
        raise SystemExit(
            f"{what}: the results of CoDi Hub and diffusers differ by {apart:.2g}, over {ROUNDING[dtype]:g} in {dtype}"
        )
