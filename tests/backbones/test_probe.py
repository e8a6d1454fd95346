"""What is refused before it is registered, by the name of what it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import sdxl
from tiny import WIDTH, parts_of, save_base, scheduler_config, text_encoder, unet

from codi_hub import backbones
from codi_hub.backbones.probe import probe
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.backbones.values import Prompt
from codi_hub.catalog import Catalog
from codi_hub.errors import CodiError, Mismatch

PLAIN: dict[str, Any] = {"addition_embed_type": None}
GATED = {"attention_type": "gated", "cross_attention_dim": WIDTH}

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "inpainting": ({"in_channels": 9}, "takes 9 channels and its autoencoder makes 4, as in an inpainting model"),
    "edit": ({"in_channels": 8}, "takes 8 channels .* as in an InstructPix2Pix model"),
    "depth2img": ({"in_channels": 5}, "takes 5 channels .* as in a depth-to-image model"),
    "upscaler": ({"in_channels": 7, "num_class_embeds": 10}, "num_class_embeds=10, class labels, as upscalers have"),
    "classes": ({"class_embed_type": "timestep"}, "class_embed_type='timestep', a class embedding"),
    "guidance embedding": ({"time_cond_proj_dim": 8}, "time_cond_proj_dim=8, a guidance embedding"),
    "centred": ({"center_input_sample": True}, "center_input_sample=True"),
    "no middle": ({"mid_block_type": None}, "mid_block_type=None, no middle block"),
    "projected text": ({"encoder_hid_dim": 24}, "encoder_hid_dim=24, a projection of its text"),
    "grounded": (GATED, "attention_type='gated', layers for grounded generation"),
    "other text": ({"cross_attention_dim": 24}, "reads texts of width 24 and its text encoder makes 16"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_unet_is_refused_by_name(eps_base: UNetBackbone, name: str) -> None:
    changes, message = WRONG[name]
    with pytest.raises(Mismatch, match=message) as caught:
        probe(UNetBackbone(parts_of(eps_base, scheduler_config("epsilon"), unet=unet(**(PLAIN | changes)))))
    assert "\n" not in str(caught.value)


def test_a_wrong_folder_is_refused_from_its_configs_and_not_registered(base_folder: Path, tmp_path: Path) -> None:
    folder = save_base(tmp_path / "inpainting", scheduler_config("epsilon"), in_channels=9)
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()  # the refusal needs no weights
    with Catalog.open(tmp_path / "home") as catalog:
        before = catalog.bases()
        with pytest.raises(Mismatch, match="inpainting model"):
            catalog.add_base("mine", folder)
        assert catalog.bases() == before
        assert catalog.add_base("mine", base_folder).name == "mine"


def test_the_refiner_is_refused(tmp_path: Path) -> None:
    folder = sdxl(tmp_path)
    config = json.loads((folder / "unet/config.json").read_text())
    config["projection_class_embeddings_input_dim"] -= config["addition_time_embed_dim"]
    (folder / "unet/config.json").write_text(json.dumps(config))
    with pytest.raises(Mismatch, match="the refiner is not supported, use the base model"):
        backbones.load(str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_family_passes(tmp_path: Path, base_folder: Path, dtype: torch.dtype) -> None:
    for folder in (base_folder, sdxl(tmp_path)):
        probe(backbones.load(str(folder), dtype=dtype))


class Unknown(UNetBackbone):
    """A network with a part that `predict` passes over."""

    def own_prediction(self, z_t: torch.Tensor, t: torch.Tensor, prompt: Prompt) -> torch.Tensor:
        return super().own_prediction(z_t, t, prompt) + 0.1


def parts(base: UNetBackbone, **changes: Any) -> Any:
    return parts_of(base, scheduler_config("epsilon"), **changes)


def with_output(base: UNetBackbone, value: float) -> Any:
    net = unet(**PLAIN)
    net.conv_out.bias.data.fill_(value)
    return parts(base, unet=net)


def missing_text(base: UNetBackbone) -> UNetBackbone:
    """A text encoder with fewer words than its tokenizer."""
    return UNetBackbone(parts(base, text_encoder=text_encoder(20), unet=unet(**PLAIN)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda base: Unknown(parts(base, unet=unet(**PLAIN))), "differs from diffusers' own by .* does not know"),
        (lambda base: UNetBackbone(with_output(base, float("nan"))), "its network predicts is not finite"),
        (missing_text, "the text encoder fails in a trial evaluation .*IndexError"),
    ],
    ids=["difference", "not a number", "vocabulary"],
)
def test_what_nobody_named_is_refused_by_the_trial(eps_base: UNetBackbone, wrong: Any, message: str) -> None:
    with pytest.raises(CodiError, match=message) as caught:
        probe(wrong(eps_base))
    assert "\n" not in str(caught.value)
