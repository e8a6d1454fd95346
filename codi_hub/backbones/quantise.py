"""A base's network in 8 or 4 bits: the arguments with which diffusers loads it so, by name.

The network stays frozen; what is trained beside it, its input layer and what it is not safe to quantise keep their
precision. torchao, bitsandbytes and gguf are extras (`pip install codi-hub[quantize]`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from codi_hub.backbones.weight_sketch import dequantised
from codi_hub.errors import UsageError

GPU_ONLY = ("nf4",)  # diffusers has bitsandbytes pack the weights on a GPU


def quantised(name: str, device: torch.device, dtype: torch.dtype, keep: Sequence[str] = ()) -> dict[str, Any]:
    """Return further arguments of a network's `from_pretrained`, or for gguf of its `from_single_file`.

    Args:
        name: `int8` (torchao), `nf4` (bitsandbytes; QLoRA, Dettmers et al., 2023) or `gguf`.
        device: where the network will compute.
        dtype: what it computes in.
        keep: names of modules that stay in `dtype`, such as `Backbone.input_layer`.

    Raises:
        UsageError: an unknown name, or a package that is absent or cannot run on this device.
    """
    if name not in QUANTISED:
        raise UsageError(f"quantize {name}: one of {', '.join(QUANTISED)}")
    package, config = QUANTISED[name]
    if find_spec(package) is None:
        raise UsageError(f"quantize {name}: {package} is not installed; pip install 'codi-hub[quantize]'")
    if name in GPU_ONLY and device.type != "cuda":
        raise UsageError(f"quantize nf4: bitsandbytes needs a GPU, and this is {device.type}; use int8")
    return {"quantization_config": config(dtype, list(keep)), "torch_dtype": dtype}


def trial_device(name: str) -> str:
    """Return where a base quantised so is tried before it is registered."""
    return "cuda" if name in GPU_ONLY and torch.cuda.is_available() else "cpu"


def unpack_gguf(network: nn.Module, keep: Sequence[str], dtype: torch.dtype) -> None:
    """Dequantise the GGUF tensors that are not weights of diffusers' linear layers for GGUF, and those to keep.

    Args:
        network: loaded from a GGUF file; changed in place.
        keep: names of modules, as in `quantised`.
        dtype: of the dequantised tensors.
    """
    for path, module in network.named_modules():
        linear = type(module).__name__ == "GGUFLinear" and path not in keep
        for name, weight in module._parameters.items():
            packed = type(weight).__name__ == "GGUFParameter" and not (linear and name == "weight")
            if packed and (whole := dequantised(weight)) is not None:
                module._parameters[name] = nn.Parameter(whole.to(dtype), requires_grad=False)


def _int8(dtype: torch.dtype, keep: list[str]) -> Any:
    from diffusers import TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=keep)


def _nf4(dtype: torch.dtype, keep: list[str]) -> Any:
    from diffusers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=keep,
    )


def _gguf(dtype: torch.dtype, keep: list[str]) -> Any:
    from diffusers import GGUFQuantizationConfig

    return GGUFQuantizationConfig(compute_dtype=dtype)


QUANTISED: dict[str, tuple[str, Callable[[torch.dtype, list[str]], Any]]] = {
    "int8": ("torchao", _int8),
    "nf4": ("bitsandbytes", _nf4),
    "gguf": ("gguf", _gguf),
}
"""Package and configuration of each name."""
