"""LoRA files of every form are merged into the base, and those of other models are refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import families
import pytest
import single_files
import torch
from tiny import save_base, scheduler_config
from torch import Tensor

from codi_hub import backbones
from codi_hub.backbones.backbone import Backbone
from codi_hub.config.base import BaseOptions
from codi_hub.errors import InvalidInput, NotFound

UNET = "down_blocks.1.attentions.0.transformer_blocks.0.attn1."
UNET_LAYERS = [UNET + "to_q", UNET + "to_out.0", "down_blocks.1.attentions.0.proj_in", "mid_block.resnets.0.conv1"]
TEXT_LAYERS = ["encoder.layers.0.self_attn.q_proj", "encoder.layers.0.self_attn.out_proj", "encoder.layers.0.mlp.fc1"]
TRANSFORMER_LAYERS = {
    "sd3": ["transformer_blocks.0.attn.to_q", "transformer_blocks.1.ff.net.2"],
    "flux": ["transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_out"],
    "z-image": ["layers.0.attention.to_q", "layers.0.feed_forward.w1"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    builders = {"sdxl": families.sdxl, "sd3": families.sd3, "flux": families.flux, "z-image": families.z_image}
    found = {name: build(tmp_path_factory.mktemp(name)) for name, build in builders.items()}
    folder = tmp_path_factory.mktemp("sd") / "model"
    found["sd"] = save_base(folder, scheduler_config("epsilon"), vae="kl", addition_embed_type=None)
    return found


def text_layers(encoder: Any) -> list[str]:
    return [("text_model." if hasattr(encoder, "text_model") else "") + name for name in TEXT_LAYERS]


def kohya(base: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a LoRA of the network and all text encoders, and the tensor of the base that each key is for."""
    tensors = single_files.kohya_lora(base.unet, "lora_unet", UNET_LAYERS)
    targets = {f"lora_unet_{name.replace('.', '_')}": f"unet.{name}.weight" for name in UNET_LAYERS}
    prefixes = ["lora_te"] if len(base.text_encoders) == 1 else ["lora_te1", "lora_te2"]
    for k, (prefix, encoder) in enumerate(zip(prefixes, base.text_encoders, strict=True)):
        layers = text_layers(encoder)
        for key, value in single_files.kohya_lora(encoder, prefix, layers).items():
            tensors[key.replace("_text_model_", "_").replace(f"{prefix}_", f"{prefix}_text_model_")] = value
        for bare, name in zip(TEXT_LAYERS, layers, strict=True):
            targets[f"{prefix}_text_model_{bare.replace('.', '_')}"] = f"text_encoders.{k}.{name}.weight"
    return tensors, targets


def check_merged(merged: Backbone, base: Backbone, changes: Mapping[str, Tensor]) -> None:
    """Check that exactly some tensors differ, by what they should."""
    after = merged.state_dict()
    for name, before in base.state_dict().items():
        if name in changes:
            assert torch.allclose(after[name], before + changes[name].view_as(before), atol=1e-5), name
            assert not torch.equal(after[name], before)
        else:
            assert torch.equal(after[name], before), name


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_kohyas_files_change_network_and_text_encoders(folders, family: str, tmp_path: Path) -> None:
    base = backbones.load(str(folders[family]))
    tensors, targets = kohya(base)
    file = single_files.write(tmp_path / "lora.safetensors", tensors)
    merged = backbones.load(BaseOptions(source=str(folders[family]), loras=[f"{file}:0.5"]))
    changes = {
        name: 0.5 / 2 * tensors[f"{key}.lora_up.weight"].flatten(1) @ tensors[f"{key}.lora_down.weight"].flatten(1)
        for key, name in targets.items()
    }
    check_merged(merged, base, changes)


@pytest.mark.parametrize(
    ("family", "prefix"),
    [
        ("sd", "unet."),
        ("sd", "base_model.model."),
        ("sd3", "transformer."),
        ("flux", "transformer."),
        ("flux", "base_model.model."),
        ("z-image", "transformer."),
        ("z-image", "diffusion_model."),
    ],
)
def test_diffusers_and_pefts_files_change_the_network(folders, family: str, prefix: str, tmp_path: Path) -> None:
    base = backbones.load(str(folders[family]))
    layers = TRANSFORMER_LAYERS.get(family, UNET_LAYERS[:2])
    tensors = single_files.peft_lora(base.network, prefix, layers)
    file = single_files.write(tmp_path / "lora.safetensors", tensors)
    merged = backbones.load(BaseOptions(source=str(folders[family]), loras=[str(file)]))
    changes = {
        f"{base.network_name}.{name}.weight": tensors[f"{prefix}{name}.lora_B.weight"]
        @ tensors[f"{prefix}{name}.lora_A.weight"]
        for name in layers
    }
    check_merged(merged, base, changes)


def test_the_alpha_that_peft_states_scales_the_change(folders, tmp_path: Path) -> None:
    base = backbones.load(str(folders["sd"]))
    tensors = single_files.peft_lora(base.network, "unet.", UNET_LAYERS[:1])
    product = tensors[f"unet.{UNET_LAYERS[0]}.lora_B.weight"] @ tensors[f"unet.{UNET_LAYERS[0]}.lora_A.weight"]
    told = json.dumps({"unet.r": 2, "unet.lora_alpha": 6})
    inside = single_files.write(tmp_path / "inside.safetensors", tensors, lora_adapter_metadata=told)
    (tmp_path / "beside").mkdir()
    beside = single_files.write(tmp_path / "beside" / "adapter_model.safetensors", tensors)
    (tmp_path / "beside" / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 6}))
    for file in (inside, beside):
        merged = backbones.load(BaseOptions(source=str(folders["sd"]), loras=[str(file)]))
        check_merged(merged, base, {f"unet.{UNET_LAYERS[0]}.weight": 3 * product})
    (tmp_path / "beside" / "adapter_config.json").write_text(json.dumps({"use_dora": True}))
    with pytest.raises(InvalidInput, match="its setting use_dora is not supported"):
        backbones.load(BaseOptions(source=str(folders["sd"]), loras=[str(beside)]))


def test_loras_add_up_in_their_order(folders, tmp_path: Path) -> None:
    base = backbones.load(str(folders["sd"]))
    files = [
        single_files.write(
            tmp_path / f"{k}.safetensors", single_files.peft_lora(base.network, "unet.", UNET_LAYERS[:1], seed=k)
        )
        for k in range(2)
    ]
    merged = backbones.load(BaseOptions(source=str(folders["sd"]), loras=[str(files[0]), f"{files[1]}:-1"]))
    name = f"unet.{UNET_LAYERS[0]}.weight"
    one, two = [single_files.peft_lora(base.network, "", UNET_LAYERS[:1], seed=k) for k in range(2)]
    a, b = [lora[f"{UNET_LAYERS[0]}.lora_B.weight"] @ lora[f"{UNET_LAYERS[0]}.lora_A.weight"] for lora in (one, two)]
    check_merged(merged, base, {name: a - b})


@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_a_file_for_another_model_is_refused_by_its_tensors(folders, form: str, tmp_path: Path) -> None:
    base = backbones.load(str(folders["sd"]))
    if form == "kohya":
        tensors = single_files.kohya_lora(base.network, "lora_unet", UNET_LAYERS[:1])
        tensors |= {key.replace("down_blocks_1", "down_blocks_7"): value for key, value in tensors.items()}
        count = "2 of 4"
    else:
        tensors = single_files.peft_lora(base.network, "unet.", UNET_LAYERS[:1])
        tensors |= {
            "unet.absent.to_q.lora_A.weight": torch.zeros(2, 8),
            "unet.absent.to_q.lora_B.weight": torch.zeros(8, 2),
        }
        count = "2 of 4"
    file = single_files.write(tmp_path / "lora.safetensors", tensors)
    with pytest.raises(InvalidInput, match=rf"LoRA .*lora\.safetensors: {count} tensors belong to no layer") as caught:
        backbones.load(BaseOptions(source=str(folders["sd"]), loras=[str(file)]))
    assert "\n" not in str(caught.value)


def test_layers_of_another_width_are_refused(folders, tmp_path: Path) -> None:
    tensors = {
        f"unet.{UNET_LAYERS[0]}.lora_A.weight": torch.zeros(2, 640),
        f"unet.{UNET_LAYERS[0]}.lora_B.weight": torch.zeros(640, 2),
    }
    file = single_files.write(tmp_path / "lora.safetensors", tensors)
    with pytest.raises(InvalidInput, match=r"LoRA .* does not fit this base: .*"):
        backbones.load(BaseOptions(source=str(folders["sd"]), loras=[str(file)]))


def test_a_whole_model_is_no_lora_and_a_file_has_to_be_there(folders, tmp_path: Path) -> None:
    base = backbones.load(str(folders["sd"]))
    file = single_files.write(tmp_path / "whole.safetensors", base.unet.state_dict())
    with pytest.raises(InvalidInput, match=r"tensors belong to no layer|does not fit"):
        backbones.load(BaseOptions(source=str(folders["sd"]), loras=[str(file)]))
    with pytest.raises(NotFound, match=r"no LoRA file .*gone\.safetensors"):
        backbones.load(BaseOptions(source=str(folders["sd"]), loras=[str(tmp_path / "gone.safetensors:0.5")]))
