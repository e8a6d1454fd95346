"""Images to latents and back with diffusers' image autoencoders, and a digest of what decides the latents."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

# Pixels decoded in one pass. Four times as many take Stable Diffusion's decoder 0.45 GB, and a CPU a tenth longer:
# blocks over 32 MB are given back to the system, and all their pages fetched from it, at every layer.
DECODED_TOGETHER = 1 << 16


def factor(vae: Any) -> int:
    """Return the pixels per latent cell along a side."""
    return 2 ** (len(vae.config.get("block_out_channels") or vae.config.encoder_block_out_channels) - 1)


def scale_and_shift(vae: Any) -> tuple[float, float]:
    """Return what brings its latents to about unit variance: latents = (encoded - shift) * scale."""
    return float(vae.config.scaling_factor), float(vae.config.get("shift_factor") or 0.0)


def normalisation(vae: Any) -> tuple[Tensor, Tensor]:
    """Return (scale, shift), float32 (C, 1, 1) where it has `latents_mean` and `latents_std`, else of one number each.

    latents = (encoded - shift) * scale, as diffusers' SDXL pipelines compute them.
    """
    scale, shift = map(torch.tensor, scale_and_shift(vae))
    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is None or std is None:
        return scale, shift
    return scale / torch.tensor(std).view(-1, 1, 1), torch.tensor(mean).view(-1, 1, 1)


def encode(vae: Any, images: Tensor) -> Tensor:
    """Encode images in [0, 1], (B, 3, H, W), to float32 latents (B, C, h, w): the mean of their distribution.

    Args:
        vae: a KL or tiny autoencoder of diffusers.
        images: any device and dtype.
    """
    scale, shift = (value.to(vae.device) for value in normalisation(vae))
    encoded = vae.encode((2 * images - 1).to(vae.device, vae.dtype))
    latents = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
    return (latents.float() - shift) * scale


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Decode latents of about unit variance to float32 images in [0, 1], `DECODED_TOGETHER` pixels at a time."""
    scale, shift = (value.to(latents.device) for value in normalisation(vae))
    z = (latents / scale + shift).to(vae.dtype)
    together = max(1, DECODED_TOGETHER // (factor(vae) ** 2 * z[0, 0].numel()))
    images = [vae.decode(part).sample for part in z.split(together)]
    return (torch.cat(images).float() / 2 + 0.5).clamp(0, 1)


def digest(vae: Any) -> str:
    """Return a hash of what decides the latents: the encoding half and the latents' scale."""
    scale, shift = scale_and_shift(vae)
    statistics = [name for name in ("latents_mean", "latents_std") if vae.config.get(name) is not None]
    result = hashlib.sha256(" ".join(map(str, [scale, shift, *(vae.config[name] for name in statistics)])).encode())
    for name, value in vae.state_dict().items():
        if not name.startswith(("decoder.", "post_quant_conv.")):
            result.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return result.hexdigest()
