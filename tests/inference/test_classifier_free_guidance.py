"""Classifier-free guidance: diffusers' pipelines compute the same, alone and under a condition."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    FluxPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    ZImagePipeline,
)
from families import LONGEST, MODELS, sdxl
from kinds import trained
from tiny import SD_SCHEDULE, record_of
from torch import Tensor
from walks import unshifted

from codi_hub import backbones
from codi_hub.adapters import format
from codi_hub.adapters.base_only import BaseOnly
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.diffusion.guidance import guided
from codi_hub.inference.engine import Engine, Request, Sampling, gaussian
from codi_hub.interop import diffusers

PROMPTS, NEGATIVES, SEEDS = ["a red ball", "two trees"], ["blurry", "gray"], [3, 4]
rng = np.random.default_rng(0)
CONDITIONS = [rng.random((16, 24, 3), np.float32) for _ in PROMPTS]


def parts_of(base: UNetBackbone) -> dict[str, Any]:
    """The arguments of a diffusers pipeline."""
    v = base.schedule.prediction_type == "v_prediction"
    scheduler = DDIMScheduler(
        **SD_SCHEDULE,
        prediction_type=base.schedule.prediction_type,
        rescale_betas_zero_snr=v,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    )
    nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    text = {"text_encoder": base.text_encoders[0], "tokenizer": base.tokenizers[0]}
    return {"vae": base.vae, "unet": base.unet, "scheduler": scheduler, **text, **nothing}


def theirs(pipe: Any, **arguments: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    latents = torch.stack([gaussian((4, 8, 12), seed) for seed in SEEDS])
    with torch.inference_mode():
        return np.asarray(
            pipe(PROMPTS, num_inference_steps=4, latents=latents, output_type="np", height=16, width=24, **arguments)[0]
        )


def ours(base: Any, adapter: Any, negatives: list[str] | None, scale: float, **sampling: Any) -> np.ndarray:
    words = negatives or [None] * len(PROMPTS)
    rows = zip(CONDITIONS, PROMPTS, SEEDS, words, strict=True)
    requests = [Request(c, adapter, prompt, seed, negative_prompt=no) for c, prompt, seed, no in rows]
    return np.stack(Engine(base).generate(requests, Sampling(4, guidance_scale=scale, **sampling)).images)


@pytest.mark.parametrize("negatives", [None, NEGATIVES], ids=["no prompt", "negative prompt"])
def test_the_base_alone_is_what_diffusers_generates(any_base: UNetBackbone, negatives: list[str] | None) -> None:
    expected = theirs(StableDiffusionPipeline(**parts_of(any_base)), guidance_scale=5.0, negative_prompt=negatives)
    images = ours(any_base, BaseOnly(any_base), negatives, 5.0)
    assert np.abs(images - expected).max() <= 1e-5
    assert np.abs(images - ours(any_base, BaseOnly(any_base), negatives, 1.0)).max() > 1e-3


@pytest.mark.parametrize("negatives", [None, NEGATIVES], ids=["no prompt", "negative prompt"])
def test_an_adapter_is_what_diffusers_generates(
    any_base: UNetBackbone, tmp_path: Path, negatives: list[str] | None
) -> None:
    adapter = trained(any_base, "control")
    adapter.load_state_dict({name: value.half().float() for name, value in adapter.state_dict().items()})  # as stored
    (tmp_path / "record").mkdir()
    format.write(tmp_path / "record", adapter, record_of(any_base, adapter), "")
    diffusers.write(tmp_path / "net", adapter, any_base, tmp_path / "record" / format.RECORD, "")
    net = ControlNetModel.from_pretrained(tmp_path / "net")
    image = torch.from_numpy(np.stack(CONDITIONS)).permute(0, 3, 1, 2)
    pipe = StableDiffusionControlNetPipeline(**parts_of(any_base), controlnet=net)
    expected = theirs(pipe, image=image, guidance_scale=5.0, negative_prompt=negatives)
    images = ours(any_base, adapter, negatives, 5.0)
    assert np.abs(images - expected).max() <= 1e-5
    assert np.abs(images - ours(any_base, adapter, negatives, 1.0)).max() > 1e-3


def test_without_guidance_a_step_is_one_row_per_image(base: UNetBackbone) -> None:
    rows: list[int] = []
    hook = base.unet.conv_out.register_forward_hook(lambda _module, inputs, _output: rows.append(len(inputs[0])))
    ours(base, trained(base, "control"), None, 1.0)
    ours(base, trained(base, "control"), None, 2.0)
    hook.remove()
    assert rows == [2] * 4 + [4] * 4


@pytest.mark.parametrize("sampler", ["renoise", "dpmpp"])
def test_adapters_of_several_tasks_share_a_guided_batch(base: UNetBackbone, sampler: str) -> None:
    one, other = trained(base, "control"), trained(base, "static", start=0.5)
    pair = [trained(base, "control", start=0.5), other]
    for adapters in ([one, trained(base, "static")], pair):
        requests = [
            Request(c, adapter, prompt, seed, negative_prompt="blurry")
            for c, adapter, prompt, seed in zip(CONDITIONS, adapters, PROMPTS, SEEDS, strict=True)
        ]
        sampling = Sampling(3, sampler, guidance_scale=3.0)
        together = Engine(base).generate(requests, sampling)
        alone = [Engine(base).generate([request], sampling).images[0] for request in requests]
        assert together.batches == [2]
        assert max(np.abs(a - b).max() for a, b in zip(together.images, alone, strict=True)) < 1e-4


def test_a_guided_batch_holds_half_as_many_images(base: UNetBackbone) -> None:
    engine = Engine(base)
    assert engine.auto_batch(64, 64, guided=True) * 2 == engine.auto_batch(64, 64)


@pytest.mark.slow
@pytest.mark.parametrize("negatives", [None, NEGATIVES], ids=["no prompt", "negative prompt"])
def test_sdxl_takes_zeros_for_no_prompt_as_diffusers_does(tmp_path: Path, negatives: list[str] | None) -> None:
    folder = sdxl(tmp_path)
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipe.scheduler = DDIMScheduler(**SD_SCHEDULE, timestep_spacing="trailing", clip_sample=False, steps_offset=1)
    base: Any = backbones.load(str(folder))
    expected = theirs(pipe, guidance_scale=5.0, negative_prompt=negatives)
    assert np.abs(ours(base, BaseOnly(base), negatives, 5.0) - expected).max() <= 1e-5


FLOWS: dict[str, tuple[Any, dict[str, float]]] = {  # pipeline, and its name and value for our guidance scale of 5
    "sd3": (StableDiffusion3Pipeline, {"guidance_scale": 5.0}),
    "flux": (FluxPipeline, {"true_cfg_scale": 5.0}),
    "z-image": (ZImagePipeline, {"guidance_scale": 4.0}),  # pos + w (pos - neg)
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FLOWS)
def test_flow_families_are_guided_as_their_pipelines_do(tmp_path: Path, family: str) -> None:
    form, guidance = FLOWS[family]
    folder = MODELS[family](tmp_path)
    pipe, base = form.from_pretrained(folder), backbones.load(str(folder))
    pipe.set_progress_bar_config(disable=True)
    latents = torch.stack([gaussian((16, 8, 12), seed) for seed in SEEDS])
    if family == "flux":
        guidance["guidance_scale"] = base.guidance
        latents = pipe._pack_latents(latents, 2, 16, 8, 12)
    with torch.inference_mode():
        expected = pipe(
            list(PROMPTS), negative_prompt=list(NEGATIVES), latents=latents, num_inference_steps=4,
            sigmas=unshifted(4), height=16, width=24, max_sequence_length=LONGEST, output_type="np", **guidance,
        ).images  # fmt: skip
    images = ours(base, BaseOnly(base), NEGATIVES, 5.0)
    assert np.abs(images - expected).max() <= 1e-5
    assert np.abs(images - ours(base, BaseOnly(base), NEGATIVES, 1.0)).max() > 1e-4


def test_the_formula() -> None:
    def network(z_t: Tensor, t: Tensor) -> Tensor:
        return z_t * torch.arange(1.0, 5.0)[:, None] + t[:, None]

    z_t, t = torch.ones(2, 1), torch.tensor([10.0, 20.0])
    # rows 1 and 2 are without the prompt (11, 22), rows 3 and 4 with it (13, 24)
    assert guided(network, 2.0)(z_t, t).flatten().tolist() == [15.0, 26.0]
    assert guided(network, 1.0)(z_t, t).flatten().tolist() == [13.0, 24.0]
