"""Latents of autoencoders with their own statistics, precisions and sizes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import sdxl
from tiny import kl_autoencoder, parts_of, save_base, scheduler_config, unet

from codi_hub import backbones
from codi_hub.backbones import autoencoder
from codi_hub.backbones.unet import UNetBackbone, native_cells

MEAN, STD = [0.5, -1.0, 2.0, 0.0], [2.0, 0.5, 1.0, 4.0]


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_the_mean_and_deviation_of_latents_are_taken_out_and_put_back() -> None:
    vae = kl_autoencoder(scaling_factor=0.5, latents_mean=MEAN, latents_std=STD)
    plain = kl_autoencoder(scaling_factor=0.5)
    mean, std = (torch.tensor(value).view(1, 4, 1, 1) for value in (MEAN, STD))
    with torch.no_grad():
        latents = autoencoder.encode(vae, images(2, 3, 16, 12))
        encoded = plain.encode(2 * images(2, 3, 16, 12) - 1).latent_dist.mean
        assert torch.allclose(latents, (encoded - mean) * 0.5 / std, atol=1e-6)  # as StableDiffusionXLImg2ImgPipeline
        decoded = plain.decode(latents * std / 0.5 + mean).sample  # as StableDiffusionXLPipeline
        assert torch.allclose(autoencoder.decode(vae, latents), (decoded / 2 + 0.5).clamp(0, 1), atol=1e-5)
    assert autoencoder.digest(vae) != autoencoder.digest(plain)


def test_a_shift_is_taken_out_and_put_back() -> None:
    vae = kl_autoencoder(scaling_factor=0.5, shift_factor=0.25)
    with torch.no_grad():
        encoded = vae.encode(2 * images(1, 3, 8, 8) - 1).latent_dist.mean
        assert torch.allclose(autoencoder.encode(vae, images(1, 3, 8, 8)), (encoded - 0.25) * 0.5, atol=1e-6)
        assert torch.allclose(
            autoencoder.decode(vae, encoded),
            (vae.decode(encoded / 0.5 + 0.25).sample / 2 + 0.5).clamp(0, 1),
            atol=1e-6,
        )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_an_autoencoder_that_overflows_in_half_precision_is_kept_in_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = sdxl(tmp_path)  # force_upcast
    base: Any = backbones.load(str(folder), dtype=dtype)
    assert base.dtype == dtype
    assert base.vae.dtype == (torch.float32 if dtype == torch.float16 else dtype)
    with torch.no_grad():
        base.vae.encoder.conv_in.weight.mul_(1e5)  # activations of about 1e5
        latents = base.encode(images(1, 3, 16, 16))
        assert latents.dtype == torch.float32
        assert latents.isfinite().all()
        assert base.decode(latents.to(dtype)).isfinite().all()


@pytest.mark.parametrize(("size", "side"), [(None, 128), (8, 16), ([8, 12], 24), ((12, 8), 24)], ids=str)
def test_every_form_of_sample_size_works(eps_base: UNetBackbone, size: Any, side: int) -> None:
    net = unet(addition_embed_type=None, sample_size=size)
    base = UNetBackbone(parts_of(eps_base, scheduler_config("epsilon"), unet=net))
    assert base.latents.native_size == side
    assert native_cells(size, 64) * 2 == side


@pytest.mark.slow
def test_a_folder_without_a_sample_size_is_loaded(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", scheduler_config("epsilon"), sample_size=None)
    assert backbones.load(str(folder)).latents.native_size == 128
