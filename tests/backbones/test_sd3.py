"""Stable Diffusion 3 and 3.5 beside diffusers' own pipelines."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3ControlNetModel, StableDiffusion3ControlNetPipeline, StableDiffusion3Pipeline
from families import LONGEST, sd3
from safetensors.torch import save_file
from tiny import stir
from torch import Tensor
from walks import distance, unshifted, walk

from codi_hub import adapters, backbones
from codi_hub.adapters.adapter import Adapter
from codi_hub.adapters.sharing import merged
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.sd3 import SD3Backbone
from codi_hub.inference.engine import gaussian

TEXTS = ["a red ball", "two trees"]
SIZES = [(16, 24), (24, 16)]
FORMS: dict[str, dict[str, Any]] = {"3.5": {}, "3": {"medium": False}, "without T5": {"t5_encoder": False}}


@pytest.fixture(scope="module", params=FORMS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sd3(tmp_path_factory.mktemp("sd3"), **FORMS[request.param])


@pytest.fixture(scope="module")
def base(folder: Path) -> Backbone:
    return backbones.load(str(folder))


def pipeline(form: Any, folder: Path, **parts: Any) -> Any:
    if not (folder / "text_encoder_3").exists():
        parts |= {"text_encoder_3": None, "tokenizer_3": None}
    return form.from_pretrained(folder, **parts)


def tokens(pipe: Any) -> int:
    return 256 if pipe.text_encoder_3 is None else LONGEST


def noises(height: int, width: int) -> Tensor:
    return torch.stack([gaussian((16, height // 2, width // 2), seed) for seed in (3, 4)])


def call(pipe: Any, noise: Tensor, steps: int, **more: Any) -> Tensor:
    """The latents that a pipeline ends with."""
    height, width = (2 * side for side in noise.shape[2:])
    return pipe(
        TEXTS, height=height, width=width, sigmas=unshifted(steps), num_inference_steps=steps, guidance_scale=1.0,
        latents=noise, max_sequence_length=tokens(pipe), output_type="latent", **more,
    ).images  # fmt: skip


def exported(adapter: Adapter, folder: Path) -> SD3ControlNetModel:
    """The branch of an adapter as diffusers reads it."""
    adapter.encoder.save_config(folder)
    tensors = {name: value.contiguous() for name, value in merged(adapter.encoder).items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    return SD3ControlNetModel.from_pretrained(folder)


def test_the_family_is_recognised(base: SD3Backbone) -> None:
    assert (base.family, base.latents.channels, base.latents.factor, base.latents.multiple) == ("sd3", 16, 2, 4)
    assert base.latents.native_size == 16
    assert base.schedule.shift == 3.0
    assert base.schedule.grid(4) == pytest.approx([1, 0.9, 0.75, 0.5])


def test_prompts_are_embedded_as_the_pipeline_does(base: SD3Backbone, folder: Path) -> None:
    pipe = pipeline(StableDiffusion3Pipeline, folder)
    for text in [*TEXTS, "", "long " * 30]:
        with torch.no_grad():
            context, _, pooled, _ = pipe.encode_prompt(
                text, None, None, do_classifier_free_guidance=False, max_sequence_length=tokens(pipe)
            )
        prompt = base.embed([text])
        assert torch.equal(prompt["context"], context)
        assert torch.equal(prompt["pooled"], pooled)
    assert ("text_encoder_3" in base.text_parts) == (pipe.text_encoder_3 is not None)


def test_one_evaluation_is_the_networks(base: SD3Backbone, folder: Path) -> None:
    pipe, noise, t = pipeline(StableDiffusion3Pipeline, folder), noises(16, 24), torch.tensor([1.0, 0.3])
    with torch.no_grad():
        context, _, pooled, _ = pipe.encode_prompt(
            TEXTS, None, None, do_classifier_free_guidance=False, max_sequence_length=tokens(pipe)
        )
        theirs = pipe.transformer(noise, context, pooled, 1000 * t).sample
        ours = base.predict(noise, t, base.embed(TEXTS))
    assert distance(ours, theirs) < 1e-5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("steps", [1, 4])
def test_the_base_alone_walks_as_the_pipeline_does(
    base: SD3Backbone, folder: Path, steps: int, size: tuple[int, int]
) -> None:
    noise = noises(*size)
    theirs = call(pipeline(StableDiffusion3Pipeline, folder), noise, steps)
    assert distance(walk(base, TEXTS, noise, steps), theirs) < 1e-5


@pytest.mark.parametrize(("forced", "size"), zip([True, False], SIZES, strict=True), ids=["pooled zero", "pooled text"])
@pytest.mark.parametrize("steps", [1, 4])
def test_control_is_the_controlnet_of_the_pipeline(
    base: SD3Backbone, folder: Path, tmp_path: Path, steps: int, forced: bool, size: tuple[int, int]
) -> None:
    adapter = stir(adapters.build("control", base)).requires_grad_(False)
    adapter.encoder.register_to_config(force_zeros_for_pooled_projection=forced)
    pipe = pipeline(StableDiffusion3ControlNetPipeline, folder, controlnet=exported(adapter, tmp_path))
    noise, condition = noises(*size), torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    theirs = call(pipe, noise, steps, control_image=2 * condition - 1)
    ours = walk(base, TEXTS, noise, steps, adapter=adapter, condition=condition)
    assert distance(ours, theirs) < 1e-5
    assert distance(walk(base, TEXTS, noise, steps), theirs) > 1e-2


def test_a_branch_leaves_the_base_as_it_is(base: SD3Backbone) -> None:
    """`SD3ControlNetModel.from_transformer` writes the branch's number of blocks into the base's config."""
    before = dict(base.transformer.config)
    net = base.controlnet(4)
    assert dict(base.transformer.config) == before
    assert net.config.num_layers == 2
    assert net.config.extra_conditioning_channels == 4  # one per pixel of a cell
    assert net.pos_embed.pos_embed is base.transformer.pos_embed.pos_embed
    assert not any("pos_embed.pos_embed" in name for name in net.state_dict())
