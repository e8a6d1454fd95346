"""What cannot be imported: one line that says why, and nothing registered."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import foreign
import pytest
import torch
from families import MODELS
from tiny import save_base, scheduler_config

from codi_hub import backbones
from codi_hub.backbones.backbone import Backbone
from codi_hub.errors import CodiError
from codi_hub.hub import Hub
from codi_hub.interop import controlnet, ldm_keys


class Place(NamedTuple):
    """A base, its folder, and the folder of a ControlNet that fits it."""

    base: Any
    base_folder: Path
    net: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("import")
    changes: dict[str, Any] = {"vae": "kl", "addition_embed_type": None}
    folder = save_base(root / "base", scheduler_config("epsilon"), **changes)
    base = backbones.load(str(folder))
    return Place(base, folder, foreign.save(foreign.unet_controlnet(base), root / "net"))


def reason(path: Path, base: Backbone, **options: Any) -> str:
    """The line that refuses a file on a base."""
    with pytest.raises(CodiError) as refused:
        controlnet.fitted(controlnet.read(path), base, **options)
    text = str(refused.value)
    assert "\n" not in text
    assert len(text) < 400
    return text.replace(str(path), "FILE")


def changed(place: Place, path: Path, **tensors: torch.Tensor | None) -> Path:
    """Write the ControlNet as one file with some tensors replaced, or without them."""
    whole = foreign.tensors(place.net) | tensors
    return foreign.write(path, {name: value for name, value in whole.items() if value is not None})


CONV = "conv_in.weight"
SHAPES: list[tuple[dict[str, torch.Tensor | None], str]] = [
    ({CONV: None}, "lacks 1 tensors (conv_in.weight, ...)"),
    ({"up_blocks.0.weight": torch.zeros(2)}, "has, beside a ControlNet's, 1 tensors (up_blocks.0.weight, ...)"),
    ({CONV: torch.zeros(8, 9, 3, 3)}, "conv_in.weight is [8, 9, 3, 3], not [8, 4, 3, 3]"),
    ({CONV: torch.full((8, 4, 3, 3), torch.nan)}, "tensor conv_in.weight has values that are not finite"),
    ({CONV: torch.full((8, 4, 3, 3), -torch.inf)}, "tensor conv_in.weight has values that are not finite"),
    ({CONV: torch.zeros(8, 4, 3, 3, dtype=torch.int64)}, "is of torch.int64, and weights are one of F16, BF16, F32"),
    ({CONV: torch.zeros(8, 4, 3, 3).to(torch.float8_e4m3fn)}, "is of torch.float8_e4m3fn"),
]


@pytest.mark.parametrize(("tensors", "text"), SHAPES)
def test_tensors_that_do_not_fit(
    place: Place, tmp_path: Path, tensors: dict[str, torch.Tensor | None], text: str
) -> None:
    assert text in reason(changed(place, tmp_path / "net.safetensors", **tensors), place.base)


FAMILIES: list[tuple[dict[str, torch.Tensor], str]] = [
    ({"adapter.body.0.in_conv.weight": torch.zeros(1)}, "is a T2I-Adapter: it adds inside the base's encoder"),
    ({"body.0.block1.weight": torch.zeros(1), "conv_in.weight": torch.zeros(1)}, "is a T2I-Adapter"),
    ({"lllite_unet_input.down.0.weight": torch.zeros(1)}, "is a ControlNet-LLLite"),
    ({"controlnet_cond_embedding.a": torch.zeros(1), "task_embedding": torch.zeros(1)}, "is a union ControlNet"),
    ({"controlnet_mode_embedder.weight": torch.zeros(1)}, "is a union ControlNet: it is told its kind of condition"),
    ({"input_hint_block.0.weight": torch.zeros(1), "controlnet_blocks.0.weight": torch.zeros(1)}, "is an XLabs"),
    ({"difference": torch.zeros(1), "control_model.a": torch.zeros(1)}, "is a ControlNet stored as a difference"),
    ({"lora_unet_down.weight": torch.zeros(1)}, "is no ControlNet that is known: it has 1 tensors (lora_unet_down.w"),
]


@pytest.mark.parametrize(("tensors", "text"), FAMILIES)
def test_other_kinds_of_files_are_called_by_their_names(
    place: Place, tmp_path: Path, tensors: dict[str, torch.Tensor], text: str
) -> None:
    assert text in reason(foreign.write(tmp_path / "net.safetensors", tensors), place.base)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"cross_attention_dim": 2048}, "its cross_attention_dim is 2048"),
        ({"block_out_channels": [8, 16, 16]}, "its block_out_channels is [8, 16, 16], and this base's is [8, 16]"),
        ({"global_pool_conditions": True}, "has global_pool_conditions True, which averages"),
        ({"class_embed_type": "timestep"}, "has class_embed_type timestep, a class embedding"),
        ({"conditioning_embedding_out_channels": [16, 32, 96, 256]}, "stem has 4 resolutions"),
        ({"controlnet_conditioning_channel_order": "grb"}, "is neither rgb nor bgr"),
        ({"layers_per_block": 10**9}, "its layers_per_block is 1000000000"),
        ({"transformer_layers_per_block": 10**9}, "has transformer_layers_per_block 1000000000: at most 16"),
        ({"norm_num_groups": 10**12}, "configuration cannot be used: norm_num_groups 1000000000000"),
        ({"norm_num_groups": 7}, "configuration cannot be used: "),
        ({"down_block_types": ["os.system", "x"]}, "configuration cannot be used: "),
        ({"norm_eps": {"a": 1}}, "configuration cannot be used: norm_eps"),
        ({"_class_name": "FluxControlNetModel"}, "is a FluxControlNetModel, and bases of family sd take a Control"),
        ({"_class_name": 3}, "is not the configuration of a ControlNet: it names no class"),
    ],
)
def test_configurations_that_do_not_fit(place: Place, tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / foreign.WEIGHTS).symlink_to(place.net / foreign.WEIGHTS)  # as in the hub's cache
    config = json.loads((place.net / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    assert text in reason(folder, place.base)


def test_damaged_files(place: Place, tmp_path: Path) -> None:
    whole = (place.net / foreign.WEIGHTS).read_bytes()
    file = tmp_path / "net.safetensors"
    for content in (b"", whole[:4], whole[:200], whole[:-1], b"\xff" * 64, (1 << 40).to_bytes(8, "little") + b"{}"):
        file.write_bytes(content)
        assert reason(file, place.base).startswith("FILE is not a safetensors file, or damaged: ")
    header = json.dumps({"conv_in.weight": {"dtype": "F32", "shape": [1 << 50], "data_offsets": [0, 4]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    assert "damaged" in reason(file, place.base)


def test_what_is_no_regular_file(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    file.symlink_to(file)
    assert "no file or folder FILE" in reason(file, place.base) or "cannot" in reason(file, place.base)
    file.unlink()
    os.mkfifo(file)
    assert reason(file, place.base).startswith("FILE is not a file")
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / foreign.WEIGHTS).symlink_to(place.net / foreign.WEIGHTS)
    assert "has no config.json" in reason(folder, place.base)
    (folder / "config.json").symlink_to("/dev/zero")
    assert "has no config.json" in reason(folder, place.base)


@pytest.mark.parametrize("name", ["net.pth", "net.bin", "net.ckpt"])
def test_a_pickle_is_refused_unread(place: Place, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps({"a": 1}))
    assert "is a pickle, which can run code when it is read" in reason(tmp_path / name, place.base)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"")
    (folder / "config.json").write_text(json.dumps({"_class_name": "ControlNetModel"}))
    assert "is a pickle" in reason(folder, place.base)


def test_original_files_with_tensors_of_other_models(place: Place, tmp_path: Path) -> None:
    file = foreign.original(place.net, tmp_path / "net.safetensors")
    whole = dict(controlnet.load_file(file)) | {"model.diffusion_model.out.0.weight": torch.zeros(1)}
    assert "tensor model.diffusion_model.out.0.weight is not one of a ControlNet" in reason(
        foreign.write(file, whole), place.base
    )
    names = {f"{ldm_keys.PREFIX}input_blocks.99999999.0.weight": torch.zeros(1)}
    assert "is not one of a ControlNet" in reason(foreign.write(file, names), place.base)


def test_factors_of_another_base(place: Place, tmp_path: Path) -> None:
    net = foreign.lively(foreign.unet_controlnet(place.base))
    file, _ = foreign.control_lora(net, place.base, tmp_path / "lora.safetensors")
    whole = dict(controlnet.load_file(file))
    name = next(name for name in whole if name.endswith(".up"))
    assert "do not fit this base" in reason(foreign.write(file, whole | {name: whole[name][1:].clone()}), place.base)
    del whole[name]
    assert "has, beside a ControlNet's, 1 tensors" in reason(foreign.write(file, whole), place.base)


@pytest.mark.slow
def test_controlnets_of_other_families(tmp_path: Path) -> None:
    flux, sd3, z_image = (backbones.load(str(MODELS[name](tmp_path / name))) for name in ("flux", "sd3", "z-image"))
    file = foreign.write(tmp_path / "net.safetensors", dict(foreign.flux_controlnet(flux).state_dict()))
    assert reason(file, flux, bgr=True).startswith("bgr: ControlNets of family flux see latents")
    assert "tensors" in reason(file, sd3)
    assert "bases of family z-image take no ControlNet of another tool" in reason(file, z_image)


@pytest.mark.slow
def test_a_refusal_registers_nothing(codi: Callable[..., Any], place: Place, tmp_path: Path) -> None:
    assert codi("base", "add", "tiny", place.base_folder).code == 0
    assert codi("base", "use", "tiny").code == 0
    bad = changed(place, tmp_path / "bad.safetensors", **{CONV: None})
    cases = [
        (bad, ("--task", "pose"), "bad.safetensors lacks 1 tensors"),
        (tmp_path / "none", ("--task", "pose"), "no file or folder"),
        (place.net, ("--task", "Pose!"), "cannot name a task"),
        (place.net, ("--task", "pose", "--name", "3"), "cannot name a tag"),
        (place.net, ("--task", "pose", "--base", "none"), "no base"),
        (place.net, ("--task", "inpaint"), "task inpaint makes conditions of 4 channels, and this ControlNet takes 3"),
    ]
    for path, told, text in cases:
        answer = codi("import", path, *told, "--json")
        assert answer.code in (1, 2)
        assert text in answer.err
        assert answer.err.count("\n") == 1
        assert json.loads(answer.out)["error"]["message"] in answer.err
    with Hub.open() as hub:
        assert hub.catalog.list(base="tiny") == []
        assert "pose" not in {entry["name"] for entry in hub.catalog.task_list()}
        assert not [path for path in hub.catalog.registry.home.iterdir() if path.name.startswith(".codi-")]
