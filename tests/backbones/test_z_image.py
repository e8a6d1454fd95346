"""Z-Image beside diffusers' own pipelines."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImageControlNetModel, ZImageControlNetPipeline, ZImagePipeline
from families import LONGEST, z_image
from tiny import stir
from torch import Tensor
from walks import distance, unshifted, walk

from codi_hub import adapters, backbones
from codi_hub.backbones.z_image import ZImageBackbone
from codi_hub.inference.engine import gaussian

TEXTS = ["a red ball", "two trees at the sea"]  # 27 and 37 tokens: of 32 and 64 when padded
SIZES = [(12, 20), (24, 16)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return z_image(tmp_path_factory.mktemp("z-image"))


@pytest.fixture(scope="module")
def base(folder: Path) -> ZImageBackbone:
    loaded = backbones.load(str(folder))
    assert isinstance(loaded, ZImageBackbone)
    return loaded


def noises(height: int, width: int) -> Tensor:
    return torch.stack([gaussian((16, height // 2, width // 2), seed) for seed in (3, 4)])


def call(pipe: Any, noise: Tensor, steps: int, **more: Any) -> Tensor:
    """The latents that a pipeline ends with."""
    height, width = (2 * side for side in noise.shape[2:])
    return pipe(
        list(TEXTS), height=height, width=width, sigmas=unshifted(steps), num_inference_steps=steps, guidance_scale=0.0,
        latents=noise.clone(), max_sequence_length=LONGEST, output_type="latent", **more,
    ).images  # fmt: skip


def test_the_family_is_recognised(base: ZImageBackbone) -> None:
    assert (base.family, base.latents.channels, base.latents.factor, base.latents.multiple) == ("z-image", 16, 2, 4)
    assert (base.schedule.shift, base.schedule.negated, base.schedule.time_scale) == (3.0, True, 1.0)


def test_prompts_are_embedded_as_the_pipeline_does(base: ZImageBackbone, folder: Path) -> None:
    pipe, lengths = ZImagePipeline.from_pretrained(folder), []
    for text in [*TEXTS, "", "long " * 30]:
        with torch.no_grad():
            (context,), _ = pipe.encode_prompt([text], do_classifier_free_guidance=False, max_sequence_length=LONGEST)
        prompt = base.embed([text])
        assert torch.equal(prompt["context"][0][prompt["mask"][0]], context)
        lengths.append(len(context))
    assert lengths == [27, 37, 17, 48]


def test_one_evaluation_is_the_networks(base: ZImageBackbone, folder: Path) -> None:
    pipe, noise, t = ZImagePipeline.from_pretrained(folder), noises(12, 20), torch.tensor([1.0, 0.3])
    with torch.no_grad():
        contexts, _ = pipe.encode_prompt(list(TEXTS), do_classifier_free_guidance=False, max_sequence_length=LONGEST)
        (theirs,) = pipe.transformer(list(noise.unsqueeze(2)), 1 - t, contexts, return_dict=False)
        prompt = base.embed(TEXTS)
        assert distance(base.predict(noise, t, prompt), torch.stack(theirs).squeeze(2)) < 1e-5
        for k in range(2):  # in a batch of different lengths as alone
            row = slice(k, k + 1)
            alone = base.predict(noise[row], t[row], prompt.rows(row))
            assert distance(alone, torch.stack(theirs).squeeze(2)[row]) < 1e-5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("steps", [1, 4])
def test_the_base_alone_walks_as_the_pipeline_does(
    base: ZImageBackbone, folder: Path, steps: int, size: tuple[int, int]
) -> None:
    noise = noises(*size)
    theirs = call(ZImagePipeline.from_pretrained(folder), noise, steps)
    assert distance(walk(base, TEXTS, noise, steps), theirs) < 1e-5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("steps", [1, 4])
def test_control_is_the_controlnet_of_the_pipeline(
    base: ZImageBackbone, folder: Path, tmp_path: Path, steps: int, size: tuple[int, int]
) -> None:
    adapter = stir(adapters.build("control", base)).requires_grad_(False)
    adapter.encoder.save_pretrained(tmp_path)
    pipe = ZImageControlNetPipeline.from_pretrained(folder, controlnet=ZImageControlNetModel.from_pretrained(tmp_path))
    noise, condition = noises(*size), torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    theirs = call(pipe, noise, steps, control_image=2 * condition - 1, controlnet_conditioning_scale=1.0)
    ours = walk(base, TEXTS, noise, steps, adapter=adapter, condition=condition)
    assert distance(ours, theirs) < 1e-5
    assert distance(walk(base, TEXTS, noise, steps), theirs) > 1e-2


def test_an_adapter_holds_its_own_tensors_alone(base: ZImageBackbone) -> None:
    adapter = adapters.build("control", base)
    inputs = noises(12, 20), torch.tensor([1.0, 0.3]), base.embed(TEXTS), torch.rand(2, 3, 12, 20)
    names = {name.split(".")[1] for name in adapter.state_dict()}
    with torch.no_grad():
        before = adapter(base, *inputs)
        assert {name.split(".")[1] for name in adapter.state_dict()} == names == {
            "control_layers", "control_all_x_embedder", "control_noise_refiner"
        }  # fmt: skip
        assert adapter.encoder.t_embedder is None  # nothing of the base is left in it
        assert torch.equal(copy.deepcopy(adapter)(base, *inputs), before)
    frozen = {value.data_ptr() for value in base.parameters()}
    assert not frozen & {value.data_ptr() for value in adapter.parameters()}


def test_a_branch_starts_as_layers_of_the_base(base: ZImageBackbone) -> None:
    net, wide = base.controlnet(3), base.controlnet(4)
    assert net.config.control_layers_places == [0, 1, 2]
    for own, theirs in zip(net.control_layers, base.transformer.layers, strict=True):
        assert torch.equal(own.attention.to_q.weight, theirs.attention.to_q.weight)
    embedder = base.transformer.all_x_embedder["2-1"]
    latents = torch.randn(1, 16, 1, 4, 4)
    image, _, _ = base.transformer._patchify_image(latents[0], 2, 1)
    wider, _, _ = base.transformer._patchify_image(torch.cat([latents, torch.zeros(1, 4, 1, 4, 4)], dim=1)[0], 2, 1)
    for embedded in (net.control_all_x_embedder["2-1"](image), wide.control_all_x_embedder["2-1"](wider)):
        assert distance(embedded, embedder(image)) < 1e-6


def test_images_make_a_round_trip_through_the_pipelines_latents(base: ZImageBackbone, folder: Path) -> None:
    pipe, images = ZImagePipeline.from_pretrained(folder), torch.rand(2, 3, 12, 20)
    with torch.no_grad():
        z = pipe.vae.encode(2 * images - 1).latent_dist.mean
        latents = (z - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
        assert distance(base.encode(images), latents) < 1e-6
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor).sample
        assert distance(base.decode(latents), (decoded / 2 + 0.5).clamp(0, 1)) < 1e-6
