"""Copies of the frozen base's modules that hold its very tensors, with low-rank deltas of their own (LoRA).

LoRA: Hu et al., 2022. PEFT makes the deltas. Nobody trains, moves, counts or writes a shared tensor.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

Tensors = dict[str, Tensor]


class SharedTensors:
    """The tensors of a frozen network, or some of them, to be held by other modules too."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.own = {id(value): value for value in tensors}

    def copy(self, module: nn.Module, instead: Mapping[int, Tensor] | None = None) -> Any:
        """Return a module of the same form with the same tensors, some of them replaced, by id."""
        return copy.deepcopy(module, {**self.own, **(instead or {})})

    def release(self, module: nn.Module) -> None:
        """Make shared tensors plain attributes of a module: no longer its parameters and buffers."""
        for part in module.modules():
            for kept in (part._parameters, part._buffers):
                for name in [name for name, value in kept.items() if id(value) in self.own]:
                    if name not in part._non_persistent_buffers_set:
                        part.__dict__[name] = kept.pop(name)
        module.register_state_dict_post_hook(_own_alone)


def _own_alone(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Take out of a state what bitsandbytes' layers add to it: how a weight is packed that is the base's."""
    tensors = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    own = {f"{prefix}{name}" for name, _ in tensors}
    for name in [name for name in state if name.startswith(prefix) and name not in own]:
        del state[name]


def add_deltas(module: nn.Module, layers: Sequence[str], rank: int, exclude: str | None = None) -> None:
    """Add low-rank deltas, zero at initialisation, to layers of a module.

    Args:
        module: changed in place.
        layers: their names; PEFT takes names by their ends.
        rank: of every delta.
        exclude: pattern of names that end like others but get none.
    """
    deltas = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(layers), exclude_modules=exclude)
    inject_adapter_in_model(deltas, module)


def copied(adapter: nn.Module, memo: dict[int, Any]) -> Any:
    """Copy an adapter as `deepcopy` does; the copy shares the base's tensors as well."""
    memo |= {id(value): value for module in adapter.modules() for value in _plain_tensors(vars(module).values())}
    twin = type(adapter).__new__(type(adapter))
    memo[id(adapter)] = twin
    twin.__dict__.update({name: copy.deepcopy(value, memo) for name, value in adapter.__dict__.items()})
    return twin


def merged(module: nn.Module) -> Tensors:
    """Return all tensors of a module under the names of the base's, the deltas added in float32."""
    parts = {path: part for path, part in module.named_modules() if "lora_" not in path}
    tensors: Tensors = {}
    for path, part in parts.items():
        kept = {name: value for name, value in part._buffers.items() if name not in part._non_persistent_buffers_set}
        own = part._parameters | kept | vars(part)  # the base's tensors are attributes, not parameters
        tensors |= {f"{path}.{name}".lstrip("."): value for name, value in own.items() if isinstance(value, Tensor)}
    tensors = {name.replace(".base_layer.", "."): value for name, value in tensors.items()}
    for path, part in parts.items():
        if isinstance(part, BaseTunerLayer):
            tensors[f"{path}.weight"] = tensors[f"{path}.weight"].float() + part.get_delta_weight("default").float()
    return tensors


def _plain_tensors(values: Iterable[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, torch.Tensor)]
