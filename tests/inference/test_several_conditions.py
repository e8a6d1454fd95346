"""Several conditions on one image: what their adapters add is summed, as diffusers does with several ControlNets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionControlNetPipeline
from families import MODELS
from kinds import trained
from tiny import SD_SCHEDULE, record_of

from codi_hub.adapters import format
from codi_hub.adapters.adapter import Adapter
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.errors import UsageError
from codi_hub.inference.engine import Engine, Request, Sampling, gaussian
from codi_hub.interop import diffusers

PROMPTS, SEEDS, SIZE = ["a red ball", "two trees"], [3, 4], (16, 24)


def condition(seed: int, channels: int) -> np.ndarray:
    return np.random.default_rng(seed).random((*SIZE, channels), np.float32)


def exported(base: UNetBackbone, adapter: Adapter, folder: Path) -> ControlNetModel:
    adapter.load_state_dict({name: value.half().float() for name, value in adapter.state_dict().items()})  # as stored
    (folder / "record").mkdir(parents=True)
    format.write(folder / "record", adapter, record_of(base, adapter), "")
    diffusers.write(folder / "net", adapter, base, folder / "record" / format.RECORD, "")
    return ControlNetModel.from_pretrained(folder / "net")


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_two_conditions_give_the_image_of_two_controlnets(any_base: UNetBackbone, tmp_path: Path, scale: float) -> None:
    pair = [trained(any_base, "control"), trained(any_base, "lora")]
    pixels = [[condition(10 * k + row, 3) for row in range(2)] for k in range(2)]
    pipe = StableDiffusionControlNetPipeline(
        vae=any_base.vae, unet=any_base.unet, text_encoder=any_base.text_encoders[0],
        tokenizer=any_base.tokenizers[0], safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        controlnet=[exported(any_base, adapter, tmp_path / adapter.kind) for adapter in pair],
        scheduler=DDIMScheduler(
            **SD_SCHEDULE, prediction_type=any_base.schedule.prediction_type, timestep_spacing="trailing",
            rescale_betas_zero_snr=any_base.schedule.prediction_type == "v_prediction", clip_sample=False,
            steps_offset=1,
        ),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    with torch.inference_mode():
        theirs = pipe(
            PROMPTS, image=[torch.from_numpy(np.stack(one)).permute(0, 3, 1, 2) for one in pixels],
            controlnet_conditioning_scale=[1.0, 0.5], num_inference_steps=4, guidance_scale=scale, output_type="np",
            latents=torch.stack([gaussian((4, 8, 12), seed) for seed in SEEDS]),
        ).images  # fmt: skip
    requests = [
        Request(np.concatenate([one[row] for one in pixels], axis=2), pair[0], PROMPTS[row], SEEDS[row], also=also)
        for row, also in enumerate([((pair[1], 0.5),)] * 2)
    ]
    ours = Engine(any_base).generate(requests, Sampling(4, guidance_scale=scale))
    assert ours.batches == [2]
    assert np.abs(np.stack(ours.images) - theirs).max() <= 1e-5
    alone = Engine(any_base).generate([Request(pixels[0][0], pair[0], PROMPTS[0], SEEDS[0])], Sampling(4))
    assert np.abs(ours.images[0] - alone.images[0]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("any_base", MODELS, indirect=True)
def test_images_with_one_two_and_twice_the_same_condition_share_a_batch(any_base: Any) -> None:
    """In every family; a condition of strength 0 changes nothing."""
    one, other = trained(any_base, "control"), trained(any_base, "control", condition_channels=1)
    first, second = condition(1, 3), condition(2, 1)
    both = np.concatenate([first, second], axis=2)
    requests = [
        Request(first, one, "a", 1),
        Request(both, one, "b", 2, 1.0, also=((other, 0.5),)),
        Request(np.concatenate([first, first], axis=2), one, "c", 3, 0.5, also=((one, 0.5),)),
        Request(both, one, "d", 4, 1.0, also=((other, 0.0),)),
    ]
    together = Engine(any_base).generate(requests, Sampling(2))
    assert together.batches == [4]
    alone = [*requests[:2], Request(first, one, "c", 3), Request(first, one, "d", 4)]
    for image, request in zip(together.images, alone, strict=True):
        assert np.abs(image - Engine(any_base).generate([request], Sampling(2)).images[0]).max() < 1e-4
    (without,) = Engine(any_base).generate([Request(first, one, "b", 2)], Sampling(2)).images
    assert np.abs(together.images[1] - without).max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("concat", {}, "an adapter of kind concat brings its own network and takes no second condition: use adapters"),
        ("full", {}, "an adapter of kind full brings its own network"),
        ("static", {"start": 0.5}, r"an adapter with start 0\.5 begins from its condition and takes no second one"),
    ],
)
def test_what_takes_no_second_condition_is_refused(
    base: Backbone, kind: str, settings: dict[str, Any], message: str
) -> None:
    pair: Any = [trained(base, "control"), trained(base, kind, **settings)]  # type: ignore[arg-type]
    for one, other in (pair, pair[::-1]):
        with pytest.raises(UsageError, match=message):
            Engine(base).generate([Request(condition(0, 6), one, also=((other, 1.0),))])
