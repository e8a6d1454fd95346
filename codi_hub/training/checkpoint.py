"""Checkpoints that survive kill -9: one safetensors file, written beside the old one and renamed over it; no pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from codi_hub.errors import InvalidInput, one_line
from codi_hub.partial import temporary

NAME = "checkpoint.safetensors"


def save(path: Path, modules: dict[str, nn.Module], optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Write the modules, the optimiser's moments and a `state` of plain values.

    Args:
        path: the file; it is replaced at once when the new one is complete.
        modules: by their names in the file.
        optimiser: whose moments are kept.
        state: as JSON.
    """
    from safetensors.torch import save_file

    tensors = {f"{kind}/{name}": v for kind, module in modules.items() for name, v in module.state_dict().items()}
    for index, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{index}/{name}": torch.as_tensor(v) for name, v in _flat(moments).items()}
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with temporary(path.parent) as part:
        save_file(plain, part, metadata={"state": json.dumps(state)})
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)


def state_of(path: Path) -> dict[str, Any] | None:
    """Return the `state` of a checkpoint; None where there is none that can be read."""
    try:
        with safe_open(path, "pt") as file:
            return dict(json.loads(file.metadata()["state"]))
    except Exception:  # noqa: BLE001 - whatever is wrong with it, `load` says so
        return None


def load(path: Path, modules: dict[str, nn.Module], optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Load a checkpoint into modules and optimiser; return its `state`.

    Raises:
        InvalidInput: damaged, or of a run with another adapter.
    """
    try:
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        for kind, module in modules.items():
            module.load_state_dict(_under(tensors, f"{kind}/"))
    except Exception as error:  # safetensors raises its own kinds, torch RuntimeError, json ValueError
        raise InvalidInput(f"{path}: not a checkpoint of this run: {one_line(error, 160)}; start a new run") from error
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Any]] = {}
    for name, value in _under(tensors, "optimiser/").items():
        index, key = name.split("/")
        # in the memory layout of the parameter, which a fused optimiser on the CPU assumes
        like = parameters[int(index)]
        if value.ndim and value.shape == like.shape:
            value = torch.empty_like(like, dtype=value.dtype).copy_(value)
        moments.setdefault(int(index), {})[key] = value if value.ndim or value.is_floating_point() else value.item()
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    return state


def _flat(moments: Mapping[str, Any]) -> dict[str, Any]:
    """Return an optimiser's state of one parameter, of which bitsandbytes nests the quantised part."""
    flat: dict[str, Any] = {}
    for name, value in moments.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
