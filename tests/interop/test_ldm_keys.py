"""Names of a ControlNet's tensors in diffusers and in original files."""

from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

from codi_hub.errors import InvalidInput
from codi_hub.interop import ldm_keys

SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SMALL = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "conditioning_embedding_out_channels": (16, 32),
}
GEOMETRIES: dict[str, dict[str, Any]] = {"sd15": {}, "sdxl": SDXL, "small": SMALL, "one level": SMALL | {
    "block_out_channels": (32,), "down_block_types": ("DownBlock2D",)}}  # fmt: skip


def tensors(geometry: str) -> tuple[ControlNetModel, dict[str, torch.Tensor]]:
    with torch.device("meta"):
        net = ControlNetModel(**GEOMETRIES[geometry])
    return net, net.state_dict()


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_names_are_the_same_there_and_back(geometry):
    _, own = tensors(geometry)
    original = ldm_keys.to_original(own)
    assert len(original) == len(own)
    back = ldm_keys.to_diffusers(original)
    assert list(back) == list(own)
    assert all(back[name] is own[name] for name in own)


def test_original_names_are_those_that_diffusers_reads():
    net, own = tensors("sd15")
    original = {f"{ldm_keys.PREFIX}{name}": value for name, value in ldm_keys.to_original(own).items()}
    read = convert_controlnet_checkpoint(original, dict(net.config))
    assert {name: value is own[name] for name, value in read.items()} == dict.fromkeys(own, True)


def test_sdxl_embeds_its_sizes_under_the_original_name():
    assert "label_emb.0.2.weight" in ldm_keys.to_original(tensors("sdxl")[1])


@pytest.mark.parametrize("rename", [ldm_keys.to_original, ldm_keys.to_diffusers])
def test_a_tensor_of_another_model_is_refused_by_name(rename):
    with pytest.raises(InvalidInput, match=r"^tensor up_blocks\.0\.weight is not one of a ControlNet for SD or SDXL"):
        rename({"up_blocks.0.weight": torch.zeros(1)})
