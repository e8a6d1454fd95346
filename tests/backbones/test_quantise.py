"""A base in fewer bits: what it is loaded with, and what is refused."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny import unet

from codi_hub.backbones import quantise
from codi_hub.backbones.fingerprint import PART_TOLERANCE, QUANTISED_TOLERANCE
from codi_hub.backbones.quantise import QUANTISED, quantised
from codi_hub.backbones.weight_sketch import distances, shapes_of, sketch_module
from codi_hub.errors import UsageError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("name", QUANTISED)
def test_an_absent_package_is_named_with_its_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise, "find_spec", lambda package: None)
    package, _ = QUANTISED[name]
    with pytest.raises(UsageError) as caught:
        quantised(name, CUDA, torch.bfloat16)
    assert str(caught.value) == f"quantize {name}: {package} is not installed; pip install 'codi-hub[quantize]'"


def test_unknown_names_and_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"^quantize int2: one of int8, nf4, gguf$"):
        quantised("int2", CPU, torch.float32)
    monkeypatch.setattr(quantise, "find_spec", lambda package: object())
    with pytest.raises(UsageError, match=r"^quantize nf4: bitsandbytes needs a GPU, and this is cpu; use int8$"):
        quantised("nf4", CPU, torch.float32)


def test_an_int8_network_predicts_and_passes_gradients_as_its_original(tmp_path: Path) -> None:
    plain = unet().requires_grad_(False)
    plain.save_pretrained(tmp_path)
    net = UNet2DConditionModel.from_pretrained(tmp_path, **quantised("int8", CPU, torch.float32, ["time_embedding"]))
    attention = net.down_blocks[1].attentions[0].transformer_blocks[0].attn1.to_q
    assert type(attention.weight).__name__ == "Int8Tensor"
    assert type(net.time_embedding.linear_1.weight) is torch.nn.Parameter
    outputs = []
    for network in (plain, net.requires_grad_(False)):
        z = torch.linspace(-1, 1, 256).reshape(1, 4, 8, 8).requires_grad_()
        out = network(z, torch.tensor(500), torch.ones(1, 3, 16)).sample
        out.square().sum().backward()
        outputs.append((out.detach(), z.grad))
    for one, other in zip(*outputs, strict=True):
        assert 0 < (one - other).norm() < 0.03 * one.norm()


def test_four_bits_of_bitsandbytes_have_the_plain_networks_shapes_and_sketch() -> None:
    from bitsandbytes.nn import Linear4bit

    net, plain = unet(block_out_channels=(64, 64)), unet(block_out_channels=(64, 64))
    linear = {name: layer for name, layer in net.named_modules() if type(layer) is torch.nn.Linear}
    for name, layer in linear.items():
        packed = Linear4bit(layer.in_features, layer.out_features, layer.bias is not None, quant_type="nf4")
        packed.load_state_dict(layer.state_dict())
        net.set_submodule(name, packed.to("cpu"))  # which packs its weight
    assert {tuple(weight.shape) for name, weight in net.named_parameters() if name.endswith("to_q.weight")} == {
        (2048, 1)
    }
    assert shapes_of(net) == [(name, tuple(value.shape)) for name, value in plain.state_dict().items()]
    distance = distances(sketch_module("network", net), sketch_module("network", plain))["network"]
    assert PART_TOLERANCE < distance < QUANTISED_TOLERANCE
