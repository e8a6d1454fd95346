"""FLUX.1 beside diffusers' own pipelines."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxControlNetModel, FluxControlNetPipeline, FluxPipeline
from families import LONGEST, flux
from tiny import stir
from torch import Tensor
from walks import distance, unshifted, walk

from codi_hub import adapters, backbones
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.flux import FluxBackbone, pack, unpack
from codi_hub.diffusion.schedule import RectifiedFlow
from codi_hub.errors import Mismatch
from codi_hub.inference.engine import gaussian

TEXTS = ["a red ball", "two trees at the sea"]
SIZES = [(12, 20), (24, 16)]


@pytest.fixture(scope="module", params=["dev", "schnell"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flux(tmp_path_factory.mktemp("flux"), dev=request.param == "dev")


@pytest.fixture(scope="module")
def base(folder: Path) -> Backbone:
    return backbones.load(str(folder))


def noises(height: int, width: int) -> Tensor:
    return torch.stack([gaussian((16, height // 2, width // 2), seed) for seed in (3, 4)])


def call(pipe: Any, noise: Tensor, steps: int, **more: Any) -> Tensor:
    """The latents that a pipeline ends with, unpacked."""
    height, width = (2 * side for side in noise.shape[2:])
    tokens = pipe(
        TEXTS, height=height, width=width, sigmas=unshifted(steps), num_inference_steps=steps, guidance_scale=3.5,
        latents=pack(noise), max_sequence_length=LONGEST, output_type="latent", **more,
    ).images  # fmt: skip
    return unpack(tokens, *noise.shape[2:])


def test_the_family_is_recognised(base: FluxBackbone) -> None:
    assert (base.family, base.latents.channels, base.latents.factor, base.latents.multiple) == ("flux", 16, 2, 4)
    assert base.latents.native_size == 256
    assert base.guidance == (3.5 if base.transformer.config.guidance_embeds else None)


def test_the_shift_is_the_pipelines(base: FluxBackbone) -> None:
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    for height, width in ((12, 20), (64, 128)):
        expected = torch.tensor(calculate_shift(height * width // 16)).exp().item()
        shift = base.schedule_for(height, width).shift
        assert shift == (pytest.approx(expected) if base.guidance else 1.0)


def test_prompts_are_embedded_as_the_pipeline_does(base: FluxBackbone, folder: Path) -> None:
    pipe = FluxPipeline.from_pretrained(folder)
    for text in [*TEXTS, "", "long " * 30]:
        with torch.no_grad():
            context, pooled, _ = pipe.encode_prompt(text, max_sequence_length=LONGEST)
        prompt = base.embed([text])
        assert torch.equal(prompt["context"], context)
        assert torch.equal(prompt["pooled"], pooled)


def test_schnell_takes_prompts_of_256_tokens_and_dev_of_512(base: FluxBackbone, monkeypatch: Any) -> None:
    monkeypatch.setattr(base.text_parts["tokenizer_2"], "model_max_length", 10**30)
    assert base.embed_texts(["a"])["context"].shape[1] == (512 if base.guidance else 256)


def test_one_evaluation_is_the_networks(base: FluxBackbone, folder: Path) -> None:
    pipe, noise, t = FluxPipeline.from_pretrained(folder), noises(12, 20), torch.tensor([1.0, 0.3])
    with torch.no_grad():
        context, pooled, text_ids = pipe.encode_prompt(TEXTS, max_sequence_length=LONGEST)
        (theirs,) = pipe.transformer(
            pipe._pack_latents(noise, 2, 16, 6, 10), context, pooled, t,
            pipe._prepare_latent_image_ids(2, 3, 5, "cpu", torch.float32), text_ids,
            torch.full((2,), 3.5) if base.guidance else None, return_dict=False,
        )  # fmt: skip
        ours = base.predict(noise, t, base.embed(TEXTS))
    assert torch.equal(ours, pipe._unpack_latents(theirs, 12, 20, 2))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("steps", [1, 4])
def test_the_base_alone_walks_as_the_pipeline_does(
    base: FluxBackbone, folder: Path, steps: int, size: tuple[int, int]
) -> None:
    noise = noises(*size)
    theirs = call(FluxPipeline.from_pretrained(folder), noise, steps)
    assert distance(walk(base, TEXTS, noise, steps), theirs) < 1e-5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("steps", [1, 4])
def test_control_is_the_controlnet_of_the_pipeline(
    base: FluxBackbone, folder: Path, tmp_path: Path, steps: int, size: tuple[int, int]
) -> None:
    adapter = stir(adapters.build("control", base)).requires_grad_(False)
    adapter.encoder.save_pretrained(tmp_path)
    pipe = FluxControlNetPipeline.from_pretrained(folder, controlnet=FluxControlNetModel.from_pretrained(tmp_path))
    noise, condition = noises(*size), torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    theirs = call(pipe, noise, steps, control_image=2 * condition - 1)
    ours = walk(base, TEXTS, noise, steps, adapter=adapter, condition=condition)
    assert distance(ours, theirs) < 1e-5
    assert distance(walk(base, TEXTS, noise, steps), theirs) > 1e-2


def test_a_branch_has_no_block_that_is_not_used_and_leaves_the_base_as_it_is(base: FluxBackbone) -> None:
    before = dict(base.transformer.config)
    net = base.controlnet(3)
    assert (net.config.num_layers, net.config.num_single_layers) == (3, 0)  # of 5: a fourth would have no place
    assert dict(base.transformer.config) == before
    assert torch.equal(
        net.transformer_blocks[2].attn.to_q.weight, base.transformer.transformer_blocks[2].attn.to_q.weight
    )
    assert base.controlnet(4).controlnet_x_embedder.in_features == 64 + 4 * 4  # a mask: one channel per pixel of a cell


def test_images_make_a_round_trip_through_the_pipelines_latents(base: FluxBackbone, folder: Path) -> None:
    pipe, images = FluxPipeline.from_pretrained(folder), torch.rand(2, 3, 12, 20)
    with torch.no_grad():
        z = pipe.vae.encode(2 * images - 1).latent_dist.mean
        latents = (z - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
        assert distance(base.encode(images), latents) < 1e-6
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor).sample
        assert distance(base.decode(latents), (decoded / 2 + 0.5).clamp(0, 1)) < 1e-6
    assert torch.equal(unpack(pack(latents), 6, 10), latents)


def test_a_network_with_further_input_channels_is_refused_by_name(base: FluxBackbone) -> None:
    from codi_hub.backbones.parts import Parts

    parts = base.text_parts | {"vae": base.vae, "transformer": type(base.transformer)(in_channels=128, num_layers=1,
        num_single_layers=0, attention_head_dim=8, num_attention_heads=2, axes_dims_rope=(2, 2, 4),
        joint_attention_dim=12, pooled_projection_dim=16)}  # fmt: skip
    with pytest.raises(Mismatch, match=r"takes 128 channels and not 64: FLUX\.1-Fill"):
        FluxBackbone(Parts(parts, {}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "EulerDiscreteScheduler"}, "scheduler EulerDiscreteScheduler is not a flow's"),
        ({"shift_terminal": 0.1}, r"shift_terminal=0\.1"),
        ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, "time_shift_type='linear'"),
    ],
)
def test_a_scheduler_that_is_not_understood_is_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(Mismatch, match=message):
        RectifiedFlow.from_config(config)
