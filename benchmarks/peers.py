"""What a user would otherwise run: diffusers' ControlNet and its pipeline, with the very weights of our adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, DDIMScheduler, LCMScheduler
from diffusers import StableDiffusionControlNetPipeline as Pipe
from diffusers.utils import logging
from torch import Tensor

from codi_hub import adapters
from codi_hub.adapters import ControlAdapter
from codi_hub.backbones.unet import FrozenBase

logging.set_verbosity_error()
logging.disable_progress_bar()

ROUNDING = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far two ways through the same networks may be apart: the norm of the difference over the deviation."""


def lively(kind: str, base: FrozenBase, seed: int) -> ControlAdapter:
    """An adapter as training begins it, but that no matrix or kernel is zero: it changes what the base predicts."""
    torch.manual_seed(seed)
    adapter = adapters.build(kind, base)
    for value in adapter.parameters():
        if value.ndim > 1 and not value.any():
            torch.nn.init.normal_(value, std=0.3 * value[0].numel() ** -0.5)
    return adapter


def documented(folder: Path, controlnet: Path, dtype: torch.dtype, device: torch.device) -> Pipe:
    """The pipeline as its documentation loads it, with the scheduler that it names for four steps."""
    net = ControlNetModel.from_pretrained(controlnet, dtype=dtype, use_safetensors=True)
    pipe = Pipe.from_pretrained(folder, controlnet=net, dtype=dtype, use_safetensors=True, safety_checker=None).to(
        device
    )
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tuned(folder: Path, base: FrozenBase, controlnet: ControlNetModel) -> Pipe:
    """The pipeline around our own base, which is of that folder: channels_last and fused attention, as ours."""
    pipe = Pipe(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
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
    """Our sampler as diffusers has it: DDIM on the trailing timesteps, the step after the last one clean."""
    settings = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}
    return DDIMScheduler.from_pretrained(folder, subfolder="scheduler", **settings)


def step(controlnet: Any, unet: Any, z_t: Tensor, t: Tensor, prompt: Tensor, condition: Tensor) -> Tensor:
    """One step's network calls as diffusers' pipeline makes them."""
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
    """Exits unless the two are the same up to the rounding of `dtype`: nothing else is worth a comparison."""
    ours, theirs = ours.detach().float().cpu(), theirs.detach().float().cpu()
    apart = float((ours - theirs).norm() / (theirs - theirs.mean()).norm())
    if not apart <= ROUNDING[dtype]:  # not a number is too far apart as well
        raise SystemExit(f"{what}: ours and diffusers' are {apart:.2g} apart, over {ROUNDING[dtype]:g} in {dtype}")
