"""Models in one file at their real size, by shapes alone, and the configs and the vocabulary that are built in."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import single_files
import torch
import transformers
from torch import Tensor

from codi_hub.backbones.clip_vocabulary import MERGES, clip_tokenizer
from codi_hub.backbones.parts import describe, read_json
from codi_hub.backbones.single_file import _converted, recognise, text_encoder_tensors
from codi_hub.backbones.sources import CONFIGS

BUILT_IN = ("sd15", "sd21", "sd21-base", "sdxl")
PARAMETERS = {  # of the published models
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd21": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sd21-base": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
}
ORIGINAL: Mapping[str, Callable[..., dict[str, Tensor]]] = {
    "sd15": single_files.sd1_tensors,
    "sd21": single_files.sd2_tensors,
    "sd21-base": single_files.sd2_tensors,
    "sdxl": single_files.sdxl_tensors,
}


def networks(name: str) -> dict[str, Any]:
    """The networks of built-in configs, without memory."""
    files, found = describe(CONFIGS / name), {}
    with torch.device("meta"):
        for part in PARAMETERS[name]:
            if part.startswith("text_encoder"):
                network = getattr(transformers, files.classes[part])
                found[part] = network(network.config_class.from_pretrained(CONFIGS / name / part))
            else:
                found[part] = getattr(diffusers, files.classes[part]).from_config(dict(files.configs[part]))
    return found


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_configs_are_those_of_the_published_models(name: str) -> None:
    found = networks(name)
    assert {part: sum(p.numel() for p in net.parameters()) for part, net in found.items()} == PARAMETERS[name]
    tensors = ORIGINAL[name](*found.values())
    for part, prefix in (("unet", "model.diffusion_model."), ("vae", "first_stage_model.")):
        own = {key: value for key, value in tensors.items() if key.startswith(prefix)}
        check(_converted(type(found[part]), own, found[part].config)[0], found[part])
    for part in list(found)[2:]:
        own = {
            key.removeprefix("text_model."): v
            for key, v in text_encoder_tensors(tensors, part, found[part].config).items()
        }
        expected = {key.removeprefix("text_model.") for key in found[part].state_dict()}
        assert set(own) - expected <= {"embeddings.position_ids", "text_projection.weight"}
        assert expected <= set(own)


def check(converted: Mapping[str, Tensor], network: Any) -> None:
    expected = {name: value.shape for name, value in network.state_dict().items()}
    assert {name: value.shape for name, value in converted.items()} == expected


def test_flux_as_its_authors_publish_it_is_recognised_and_converted(tmp_path: Path) -> None:
    width, text, head = 3072, 4096, 128
    linear = {"img_in": (64, width), "txt_in": (text, width), "final_layer.linear": (width, 64)}
    linear |= {
        "final_layer.adaLN_modulation.1": (width, 2 * width),
        "single_blocks.0.modulation.lin": (width, 3 * width),
    }
    linear |= {"single_blocks.0.linear1": (width, 7 * width), "single_blocks.0.linear2": (5 * width, width)}
    for name, inputs in (("time_in", 256), ("vector_in", 768), ("guidance_in", 256)):
        linear |= {f"{name}.in_layer": (inputs, width), f"{name}.out_layer": (width, width)}
    shapes = {f"single_blocks.0.norm.{one}_norm.scale": (head,) for one in ("query", "key")}
    for one in ("img", "txt"):
        block = f"double_blocks.0.{one}_"
        linear |= {f"{block}mod.lin": (width, 6 * width), f"{block}attn.qkv": (width, 3 * width)}
        linear |= {f"{block}attn.proj": (width, width), f"{block}mlp.0": (width, 4 * width)}
        linear |= {f"{block}mlp.2": (4 * width, width)}
        shapes |= {f"{block}attn.norm.{each}_norm.scale": (head,) for each in ("query", "key")}
    shapes |= {f"{name}.weight": (rows, columns) for name, (columns, rows) in linear.items()}
    shapes |= {f"{name}.bias": (rows,) for name, (_, rows) in linear.items()}
    with torch.device("meta"):
        network = diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
        tensors = {f"model.diffusion_model.{name}": torch.empty(shape) for name, shape in shapes.items()}
    check(_converted(type(network), tensors, network.config)[0], network)
    names = {name: torch.zeros([min(side, 2) for side in shape]) for name, shape in shapes.items()}
    form = recognise(single_files.write(tmp_path / "flux.safetensors", names))
    assert (form.name, form.network, form.config) == ("FLUX.1", "transformer", None)


def test_the_bundled_vocabulary_is_clips() -> None:
    tokenizer = clip_tokenizer(read_json(CONFIGS / "sd15" / "tokenizer" / "tokenizer_config.json"))
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("A diagram, 512x512!").input_ids == [
        49406,
        320,
        22697,
        267,
        276,
        272,
        273,
        343,
        276,
        272,
        273,
        256,
        49407,
    ]
    assert (len(tokenizer), tokenizer.model_max_length, tokenizer.pad_token_id) == (49408, 77, 49407)
    padded = clip_tokenizer(read_json(CONFIGS / "sdxl" / "tokenizer_2" / "tokenizer_config.json"))
    assert padded("cat", padding="max_length").input_ids[:4] == [49406, 2368, 49407, 0]
    assert "MIT" in (MERGES.parent / "LICENSE").read_text()
