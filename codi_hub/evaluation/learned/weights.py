"""Weight files of metrics: where installed packages keep them, and how they are read."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from codi_hub.errors import InvalidInput, NotFound, describe


def packaged(package: str, file: str) -> Path:
    """Return a file of an installed package, whose code is not imported.

    Raises:
        NotFound: the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    folder = Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None
    if folder is None or not (folder / file).is_file():
        raise NotFound(f"the package {package.replace('_', '-')} is not installed: pip install 'codi-hub[eval]'")
    return folder / file


def read_state(file: Path) -> dict[str, Tensor]:
    """Read a state dict, .safetensors or what torch.save wrote of tensors alone, as float32 on the CPU.

    Raises:
        NotFound, InvalidInput: no such file, or not a state dict.
    """
    if not file.is_file():
        raise NotFound(f"{file}: no such file")
    try:
        if file.suffix == ".safetensors":
            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)  # runs no code of the file
        return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    except Exception as error:  # damaged and hostile pickles raise almost anything
        raise InvalidInput(f"{file}: not a state dict of tensors ({describe(error)})") from error


def load_into(network: nn.Module, state: dict[str, Tensor], file: Path, device: torch.device | str) -> nn.Module:
    """Load a state dict, every tensor of the network and no other. Raises InvalidInput."""
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InvalidInput(f"{file}: the weights of another network ({describe(error)})") from error
    return network.requires_grad_(False).eval().to(device)


def identified(file: Path) -> str:
    """Return a file's name and the start of its hash, as reports name weights."""
    with file.open("rb") as stream:
        return f"{file.name}, sha256 {hashlib.file_digest(stream, 'sha256').hexdigest()[:12]}"
