"""SDXL beside diffusers' own pipelines."""

from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionXLControlNetPipeline, StableDiffusionXLPipeline
from families import sdxl
from tiny import stir

from codi_hub import adapters, backbones
from codi_hub.backbones.backbone import Backbone
from codi_hub.inference.engine import Engine, Request, Sampling, gaussian

TRAILING = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def xl(folder: Path) -> Backbone:
    return backbones.load(str(folder))


def test_the_family_is_recognised(xl: Backbone) -> None:
    assert (xl.family, xl.latents.channels, xl.latents.factor, xl.latents.native_size) == ("sdxl", 4, 2, 16)


def test_prompts_are_embedded_as_the_pipeline_does(xl: Backbone, folder: Path) -> None:
    pipe = StableDiffusionXLPipeline.from_pretrained(folder)
    context, _, pooled, _ = pipe.encode_prompt("a red ball", do_classifier_free_guidance=False)
    prompt = xl.embed(["a red ball"])
    assert torch.equal(prompt["context"], context)
    assert torch.equal(prompt["pooled"], pooled)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_base_alone_walks_as_the_pipeline_does(xl: Backbone, folder: Path, steps: int) -> None:
    pipe = StableDiffusionXLPipeline.from_pretrained(folder)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **TRAILING)
    noise = gaussian((4, 8, 12), 3)[None]
    theirs = pipe(
        "a red ball", height=16, width=24, num_inference_steps=steps, guidance_scale=1.0, latents=noise,
        output_type="latent",
    ).images  # fmt: skip
    denoise = xl.schedule.denoiser(lambda z_t, t: xl.predict(z_t, t, xl.embed(["a red ball"])))
    from codi_hub.diffusion.samplers import ddim

    with torch.inference_mode():
        ours = ddim(denoise, noise, xl.schedule.grid(steps), xl.schedule)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max().clamp(min=1)


@pytest.mark.parametrize("kind", ["control", "lora", "static", "full"])
def test_an_adapter_is_the_base_at_initialisation(xl: Backbone, kind: str) -> None:
    adapter = adapters.build(kind, xl)
    z_t, t, prompt = torch.randn(2, 4, 8, 8), torch.tensor([0.5, 0.5]), xl.embed(["a", "b"])
    with torch.no_grad():
        assert torch.equal(
            adapter.predict(xl, z_t, t, prompt, adapter.prepare(xl, torch.rand(2, 3, 16, 16), prompt)),
            xl.predict(z_t, t, prompt),
        )


def test_control_is_the_controlnet_of_the_pipeline(xl: Backbone, folder: Path, tmp_path: Path) -> None:
    adapter = stir(adapters.build("control", xl)).requires_grad_(False)
    adapter.encoder.save_pretrained(tmp_path / "controlnet")
    pipe = StableDiffusionXLControlNetPipeline.from_pretrained(
        folder, controlnet=ControlNetModel.from_pretrained(tmp_path / "controlnet")
    )
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **TRAILING)
    condition = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    theirs = pipe(
        "a red ball", image=condition, num_inference_steps=4, guidance_scale=1.0, latents=gaussian((4, 8, 12), 3)[None],
        output_type="np",
    ).images[0]  # fmt: skip
    request = Request(condition[0].permute(1, 2, 0).numpy(), adapter, "a red ball", 3)
    (ours,) = Engine(xl).generate([request], Sampling(steps=4)).images
    assert abs(ours - theirs).max() < 1e-5
