"""Sampling with a base alone or with an adapter, to be compared with diffusers' pipelines."""

import torch
from torch import Tensor

from codi_hub.adapters.adapter import Adapter
from codi_hub.backbones.backbone import Backbone
from codi_hub.diffusion.samplers import ddim


def walk(
    base: Backbone, texts: list[str], noise: Tensor, steps: int, *, adapter: Adapter | None = None,
    condition: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the latents, (B, C, h, w), that so many steps lead to from noise."""
    schedule = base.schedule_for(*(side * base.latents.factor for side in noise.shape[2:]))
    prompt = base.embed(texts)
    with torch.inference_mode():
        if adapter is None:
            denoise = schedule.denoiser(lambda z_t, t: base.predict(z_t, t, prompt))
        else:
            assert condition is not None
            prepared = adapter.prepare(base, condition, prompt)
            denoise = schedule.denoiser(lambda z_t, t: adapter.predict(base, z_t, t, prompt, prepared))
        return ddim(denoise, noise, schedule.grid(steps), schedule)


def unshifted(steps: int) -> list[float]:
    """Return the sigmas that diffusers' pipelines of flow models are given, and shift themselves."""
    return [k / steps for k in range(steps, 0, -1)]


def distance(one: Tensor, other: Tensor) -> float:
    """Return the largest difference, relative to the largest value where that is above 1."""
    return float((one - other).abs().max() / other.abs().max().clamp(min=1))
