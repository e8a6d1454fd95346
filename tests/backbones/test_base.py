"""The `sd` family: its split forward pass, its fingerprint, and what it refuses."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import autoencoder, parts_of, save_base, scheduler_config, stir, unet, with_unet

import codi_hub.backbones.autoencoder
from codi_hub import backbones
from codi_hub.backbones.fingerprint import Fingerprint, sketch_distance
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.backbones.values import Residuals
from codi_hub.errors import InvalidInput, Mismatch

LIKE_NANO = {
    "mid_block_type": "UNetMidBlock2D",
    "only_cross_attention": True,
    "use_linear_projection": True,
}
LIKE_SD = {
    "layers_per_block": 2,
    "addition_embed_type": None,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


@pytest.mark.parametrize("size", [(8, 8), (7, 10)], ids=str)
@pytest.mark.parametrize("changes", [{}, LIKE_NANO, LIKE_SD], ids=["default", "nano", "sd"])
def test_the_split_forward_pass_is_diffusers_own_bit_for_bit(
    base: UNetBackbone, changes: dict[str, Any], size: tuple[int, int]
) -> None:
    split = with_unet(base, unet(**changes))
    generator = torch.Generator().manual_seed(0)
    z_t = torch.randn(3, 4, *size, generator=generator)
    t = torch.tensor([1.0, 0.501, 0.002])
    prompt = split.embed(["a red ball", "", "two trees"])
    state = split.state(z_t, t, prompt)
    with torch.no_grad():
        expected = split.unet(z_t, torch.tensor([999, 500, 1]), prompt["context"]).sample
        assert torch.equal(split.predict(z_t, t, prompt), expected)
        assert torch.equal(split.predict(z_t, t, prompt, state=state), expected)
        zeros = Residuals({str(k): torch.zeros_like(feature) for k, feature in enumerate(state.features)})
        assert torch.equal(split.predict(z_t, t, prompt, residuals=zeros, state=state), expected)
    assert not any(feature.requires_grad for feature in state.features)
    assert expected.std() > 0.01


@pytest.mark.parametrize("size", [(8, 8), (7, 10)], ids=str)
def test_residuals_are_added_as_diffusers_adds_a_controlnets(base: UNetBackbone, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    z_t, t, prompt = torch.randn(2, 4, *size), torch.tensor([1.0, 0.25]), base.embed(["a red ball", ""])
    state = base.state(z_t, t, prompt)
    *down, middle = [0.1 * torch.randn_like(feature) for feature in state.features]
    with torch.no_grad():
        expected = base.unet(
            z_t,
            torch.tensor([999, 249]),
            prompt["context"],
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample
        residuals = Residuals({str(k): value for k, value in enumerate([*down, middle])})
        found = base.predict(z_t, t, prompt, residuals=residuals, state=state)
        output = Residuals(residuals.tensors | {"output": torch.ones_like(z_t)})
        assert torch.equal(base.predict(z_t, t, prompt, residuals=output), found + 1)
    assert torch.allclose(found, expected, atol=1e-6)
    assert not torch.allclose(found, base.predict(z_t, t, prompt), atol=1e-3)


def test_rows_of_a_state_are_the_state_of_those_rows(base: UNetBackbone) -> None:
    z_t = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t, prompt = torch.tensor([1.0, 0.5, 0.25]), base.embed(["a red ball", "", "two trees"])
    rows = torch.tensor([2, 0])
    part = base.state(z_t, t, prompt).rows(rows)
    found = base.predict(z_t[rows], t[rows], prompt.rows(rows), state=part)
    assert torch.allclose(found, base.predict(z_t, t, prompt)[rows], atol=1e-6)


def test_gradient_flows_through_the_decoder_half_into_the_residuals(base: UNetBackbone) -> None:
    prompt, t = base.embed(["a red ball"]), torch.tensor([0.5])
    z_t = torch.randn(1, 4, 8, 8)
    state = base.state(z_t, t, prompt)
    residuals = Residuals({str(k): torch.zeros_like(h, requires_grad=True) for k, h in enumerate(state.features)})
    base.predict(z_t, t, prompt, residuals=residuals, state=state).square().sum().backward()
    gradients = [value.grad for value in residuals.tensors.values()]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)
    assert all(parameter.grad is None for parameter in base.parameters())


def test_loaded_base_is_frozen_and_knows_its_sizes(base: UNetBackbone, eps_base: UNetBackbone) -> None:
    assert not any(parameter.requires_grad for parameter in base.parameters())
    assert not base.training
    for each in (base, eps_base):
        spec = each.latents
        assert (spec.channels, spec.factor, spec.multiple, spec.native_size) == (4, 2, 4, 16)
    assert base.latents.size(16, 13) == (8, 8)  # sides are rounded up to the multiple
    assert eps_base.scaling_factor == 0.5
    images = torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    for each in (base, eps_base):
        latents = each.encode(images)
        assert latents.shape == (2, 4, 8, 6)
        decoded = each.decode(latents)
        assert decoded.shape == images.shape
        assert 0 <= decoded.min() <= decoded.max() <= 1


def test_autoencoder_is_asked_in_its_own_range_and_scale(eps_base: UNetBackbone) -> None:
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean = eps_base.vae.encode(2 * images - 1).latent_dist.mean
        latents = eps_base.encode(images)
        assert torch.allclose(latents, mean * 0.5)
        decoded = eps_base.vae.decode(mean).sample
        assert torch.allclose(eps_base.decode(latents), (decoded / 2 + 0.5).clamp(0, 1), atol=1e-6)


def test_large_images_are_decoded_one_by_one(
    base: UNetBackbone, eps_base: UNetBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = torch.randn(3, 4, 8, 6, generator=torch.Generator().manual_seed(0))
    for each in (base, eps_base):
        seen: list[int] = []
        watched = each.vae.decoder.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(len(given[0])))
        made = []
        for pixels in (1 << 18, 2 * 16 * 12, 1):
            monkeypatch.setattr(codi_hub.backbones.autoencoder, "DECODED_TOGETHER", pixels)
            made.append(each.decode(latents))
        watched.remove()
        assert seen == [3, 2, 1, 1, 1, 1]
        assert all(torch.allclose(made[0], other, atol=1e-5) for other in made[1:])


def test_prompts_are_encoded_once_each_and_come_back_in_order(base_folder: Path) -> None:
    base = backbones.load(str(base_folder))
    calls: list[int] = []
    base.text_encoders[0].register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    embedded = base.embed(["a", "b", "a"])
    context = embedded["context"]
    assert len(embedded) == 3
    assert context.shape == (3, 16, 16)
    assert torch.equal(context[0], context[2])
    assert not torch.equal(context[0], context[1])
    assert calls == [2]
    many = [f"word {k}" for k in range(600)]
    everything = base.embed(many)
    assert torch.equal(base.embed(["word 599"])["context"][0], everything["context"][599])
    assert sum(calls) == 602  # the last ones are still known


def test_prompt_cache_filled_at_inference_serves_training(base_folder: Path) -> None:
    base = backbones.load(str(base_folder))
    with torch.inference_mode():
        base.embed(["a red ball"])
    prompt = base.embed(["a red ball"])
    weight = torch.ones(1, requires_grad=True)
    (weight * prompt["context"]).sum().backward()
    assert weight.grad is not None


# ---- fingerprint


def check(mine: Fingerprint, theirs: Fingerprint, **options: bool) -> None:
    mine.check(theirs.family, theirs.sketch, **options)


def test_a_fine_tune_is_refused_unless_allowed(base: UNetBackbone) -> None:
    tuned = with_unet(base, stir(unet(), 0.002)).fingerprint  # weights lie about 0.1 from zero
    assert 0.02 < sketch_distance(base.fingerprint.first_edition(), tuned.first_edition()) < 0.06
    assert tuned.family == base.fingerprint.family
    with pytest.raises(Mismatch, match=r"other weights of the same family .* with allow_base_mismatch") as caught:
        check(base.fingerprint, tuned)
    assert "\n" not in str(caught.value)
    check(base.fingerprint, tuned, allow_fine_tune=True)


@pytest.mark.parametrize("what", ["shapes", "prediction type", "noise", "scale"])
def test_another_family_is_refused_by_both_names_even_if_fine_tunes_are_allowed(base: UNetBackbone, what: str) -> None:
    net = unet(block_out_channels=(8, 24)) if what == "shapes" else unet()
    config = scheduler_config("sample" if what == "prediction type" else "v_prediction", zero_snr=what != "noise")
    vae = base.vae
    if what == "scale":
        vae = autoencoder("tiny")
        vae.register_to_config(scaling_factor=0.18215)
    other = UNetBackbone(parts_of(base, config, unet=net, vae=vae)).fingerprint
    assert other.family != base.fingerprint.family
    with pytest.raises(Mismatch, match=f"{other.family}.*{base.fingerprint.family}") as caught:
        check(base.fingerprint, other, allow_fine_tune=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["shorter", "not a number"])
def test_a_sketch_that_cannot_be_compared_does_not_pass(base: UNetBackbone, damage: str) -> None:
    mine = base.fingerprint
    spoilt = {name: v[:-1] if damage == "shorter" else [float("nan")] * len(v) for name, v in mine.sketch.items()}
    with pytest.raises(Mismatch, match="other weights"):
        mine.check(mine.family, spoilt)


# ---- refusals


@pytest.mark.slow
def test_eps_prediction_with_zero_terminal_snr_is_refused(tmp_path: Path) -> None:
    folder = save_base(tmp_path / "base", scheduler_config("epsilon", zero_snr=True))
    with pytest.raises(Mismatch, match="zero terminal SNR"):
        backbones.load(str(folder))


@pytest.mark.parametrize("changes", [{"time_cond_proj_dim": 8}, {"center_input_sample": True}], ids=str)
def test_a_unet_with_other_inputs_is_refused(base: UNetBackbone, changes: dict[str, Any]) -> None:
    with pytest.raises(Mismatch, match="use a plain text-to-image model"):
        with_unet(base, unet(**changes))


LIKE_SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 32,
}


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"class_embed_type": "timestep"}, "class_embed_type='timestep'"), (LIKE_SDXL, "addition_embed_type='text_time'")],
    ids=["classes", "sdxl"],
)
def test_a_unet_with_other_embeddings_is_refused_by_the_name_of_its_setting(
    base: UNetBackbone, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(Mismatch, match=named):
        with_unet(base, unet(**changes))


def test_a_folder_of_no_known_family_is_refused_with_the_families(tmp_path: Path) -> None:
    known = ", ".join(backbones.FAMILIES.names())
    with pytest.raises(InvalidInput, match=rf"known family \({known}\): no model_index\.json, no unet/config\.json"):
        backbones.load(str(tmp_path))


def test_a_base_is_loaded_by_its_family(base_folder: Path, base: UNetBackbone) -> None:
    assert "sd" in backbones.FAMILIES
    found = backbones.load(str(base_folder), dtype=torch.bfloat16)
    assert isinstance(found, UNetBackbone)
    assert (found.family, found.dtype, found.device.type) == ("sd", torch.bfloat16, "cpu")
    assert found.fingerprint.family == base.fingerprint.family
    assert found.latents == base.latents


def test_further_input_channels_are_refused(base: UNetBackbone) -> None:
    z_t = torch.zeros(1, 4, 8, 8)
    with pytest.raises(Mismatch, match="family sd have no further input channels"):
        base.predict(z_t, torch.ones(1), base.embed([""]), concat=z_t)


@pytest.mark.parametrize(
    "part",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "scheduler/scheduler_config.json",
        "unet/config.json",
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(base_folder: Path, tmp_path: Path, part: str) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base_folder, folder)
    (folder / part).write_bytes((folder / part).read_bytes()[:100])
    with pytest.raises(InvalidInput, match="cannot be loaded") as caught:
        backbones.load(str(folder))
    assert "\n" not in str(caught.value)
