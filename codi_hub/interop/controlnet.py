"""A ControlNet of another tool: which it is, its tensors under diffusers' names, and whether it fits a base.

Nothing is run or unpickled: a folder's `config.json`, and safetensors files whose headers are checked first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from codi_hub.adapters.format import FLOATS
from codi_hub.backbones import foreign
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.weights import Header, read_header, refuse_pickle, weights_in
from codi_hub.errors import InvalidInput, Mismatch, NotFound, one_line
from codi_hub.interop import ldm_keys
from codi_hub.registry.store import sha256

CONFIG = "config.json"
MAX_CONFIG = 1 << 20  # bytes
UP, DOWN = ".up", ".down"  # a Control-LoRA's two factors of a weight
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Foreign:
    """A ControlNet as it was read.

    Attributes:
        tensors: under diffusers' names; of a Control-LoRA, factors among them.
        config: what came with it, None for a file alone.
        network_class: the class of diffusers that its configuration names, "" where none came.
        format: what it was, in words.
        file: its name.
        sha256: of its weights file; of several, of their hashes one after the other.
    """

    tensors: Tensors
    config: Mapping[str, Any] | None
    network_class: str
    format: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Layout:
    """A kind of file, told by the names of its tensors.

    Attributes:
        name: in messages and records.
        found: whether a file is of this kind.
        names: brings its tensors under diffusers' names.
        refusal: why it cannot be imported, "" where it can.
    """

    name: str
    found: Callable[[Header], bool]
    names: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    refusal: str = ""


def _original(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return ldm_keys.to_diffusers({name.removeprefix(ldm_keys.PREFIX): value for name, value in tensors.items()})


def _control_lora(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return ldm_keys.to_diffusers({name: value for name, value in tensors.items() if name != "lora_controlnet"})


# The first that fits: files of special kinds have the names of the plain ones too.
LAYOUTS = (
    Layout(
        "a T2I-Adapter",
        lambda h: h.any("adapter.body.", "adapter.conv_in.", "body.0.", "conv_in.weight") and not h.any("down_blocks."),
        refusal="it adds inside the base's encoder, whose later layers change with it, and no adapter kind has that "
        "form: import a ControlNet",
    ),
    Layout("a ControlNet-LLLite", lambda h: h.any("lllite_"), refusal="it changes attentions inside the base"),
    Layout(
        "a union ControlNet",
        lambda h: h.any("task_embedding", "control_add_embedding.", "controlnet_mode_embedder.", "transformer_layes."),
        refusal="it is told its kind of condition at every call; import one that is for a single kind",
    ),
    Layout(
        "an XLabs ControlNet for FLUX.1",
        lambda h: h.any("input_hint_block.") and h.any("controlnet_blocks.", "double_blocks."),
        refusal="it sees pixels and not latents; import one in the form of InstantX's",
    ),
    Layout(
        "a ControlNet stored as a difference from its base",
        lambda h: "difference" in h,
        refusal="import the whole ControlNet",
    ),
    Layout(
        "Control-LoRA",
        lambda h: "lora_controlnet" in h or any(name.endswith(DOWN) for name in h.shapes),
        _control_lora,
    ),
    Layout("original file", lambda h: h.any(ldm_keys.PREFIX, "input_hint_block."), _original),
    Layout(
        "diffusers file", lambda h: h.any("controlnet_cond_embedding.", "controlnet_x_embedder.", "pos_embed_input.")
    ),
)  # fmt: skip
CONTROL_LORA = "Control-LoRA"


def read(path: Path) -> Foreign:
    """Read a diffusers folder or one safetensors file.

    Raises:
        NotFound: nothing there. InvalidInput: a pickle, damaged, or of no kind that can be imported.
    """
    refuse_pickle(path)
    if not path.exists():
        raise NotFound(f"no file or folder {path}: name a diffusers ControlNet folder or a .safetensors file")
    if path.is_dir():
        return _read_folder(path)
    tensors = _read_tensors(path)
    header = read_header(path)
    layout = next((one for one in LAYOUTS if one.found(header)), None)
    if layout is None:
        some = ", ".join(one_line(name, 60) for name in sorted(header.shapes)[:2])
        raise InvalidInput(f"{path} is no ControlNet that is known: it has {len(header.shapes)} tensors ({some}, ...)")
    if layout.refusal:
        raise InvalidInput(f"{path} is {layout.name}: {layout.refusal}")
    with _named(path):
        return Foreign(layout.names(tensors), None, "", layout.name, path.name, sha256(path))


def _read_folder(folder: Path) -> Foreign:
    config = _read_config(folder / CONFIG)
    files = [folder / name for name in weights_in(folder).files]
    tensors: Tensors = {}
    for file in files:
        tensors |= _read_tensors(file)
    digests = [sha256(file) for file in files]
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    name = folder.resolve().name
    return Foreign(tensors, config, str(config["_class_name"]), "diffusers folder", name, digest)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise InvalidInput(f"{path.parent} has no {CONFIG}: name a diffusers ControlNet folder or a single file")
        if path.stat().st_size > MAX_CONFIG:
            raise ValueError(f"larger than {MAX_CONFIG} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict) or not isinstance(config.get("_class_name"), str):
            raise ValueError("it names no class")
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} is not the configuration of a ControlNet: {one_line(error, 80)}") from error
    return config


def _read_tensors(path: Path) -> Tensors:
    """Return the tensors of a file, mapped and not copied.

    Raises:
        InvalidInput: not a regular file, damaged, or tensors that are not finite numbers of 16 or 32 bits.
    """
    if not path.is_file():
        raise InvalidInput(f"{path} is not a file: name a diffusers ControlNet folder or a .safetensors file")
    read_header(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InvalidInput(f"{path} is not a safetensors file, or damaged: {one_line(error, 80)}") from error
    for name, value in tensors.items():
        if value.dtype not in FLOAT_TYPES:
            raise InvalidInput(
                f"{path}: tensor {one_line(name, 80)} is of {value.dtype}, and weights are one of {', '.join(FLOATS)}: "
                "convert it"
            )
        if not torch.isfinite(value).all():
            raise InvalidInput(f"{path}: tensor {one_line(name, 80)} has values that are not finite: download it again")
    return tensors


FLOAT_TYPES = (torch.float16, torch.bfloat16, torch.float32)


def fitted(source: Foreign, base: Backbone, *, bgr: bool = False) -> tuple[dict[str, Any], Tensors]:
    """Return the configuration of a ControlNet on a base, every entry there, and its tensors.

    Args:
        source: what was read.
        base: the base that it is for; a Control-LoRA is merged into its encoder, in float32.
        bgr: whether it takes its condition's channels as blue, green, red. Its configuration says so then, and the
            condition is flipped: the tensors stay as they are.

    Raises:
        Mismatch: it is for another base or family.
        InvalidInput: tensors that are missing, too many, or of other shapes.
    """
    cls = base.controlnet_class()
    if source.network_class not in ("", cls.__name__):
        raise Mismatch(
            f"{source.file} is a {one_line(source.network_class, 60)}, and bases of family {base.family} take a "
            f"{cls.__name__}: name the base that it was trained on"
        )
    tensors = source.tensors
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    config = foreign.complete(cls, base.controlnet_config(shapes) if source.config is None else source.config)
    if bgr and foreign.CHANNEL_ORDER not in config:
        raise Mismatch(
            f"bgr: ControlNets of family {base.family} see latents, and none is trained on BGR: leave it out"
        )
    config |= {foreign.CHANNEL_ORDER: "bgr"} if bgr else {}
    expected = base.controlnet_from(config, device=torch.device("meta")).state_dict()
    if source.format == CONTROL_LORA:
        tensors = merged(tensors, base.network.state_dict(), expected, source.file)
    _check(source.file, tensors, expected)
    return config, {name: tensors[name] for name in expected}


def merged(tensors: Tensors, base: Mapping[str, Tensor], expected: Mapping[str, Tensor], file: str) -> Tensors:
    """Return a Control-LoRA as a whole ControlNet: W + up down, or the base's weight where it has none of its own.

    The product is computed in float32, convolutions as matrices (Stability AI, 2023).

    Args:
        tensors: of the Control-LoRA, under diffusers' names.
        base: the base's network.
        expected: tensors of the ControlNet.
        file: its name, for messages.

    Raises:
        InvalidInput: factors that do not fit. Mismatch: a base whose weights are quantised.
    """
    factors = {name: value for name, value in tensors.items() if name.endswith((UP, DOWN))}
    whole = {name: value for name, value in tensors.items() if name not in factors}
    for name in [name for name in expected if name in base and name not in whole]:
        if not base[name].is_floating_point():
            raise Mismatch(
                "a Control-LoRA is merged into the base's own weights, and these are quantised: name the plain base"
            )
        whole[name] = base[name].float()
        module = name.removesuffix(".weight")
        if module + UP in factors and module + DOWN in factors:
            up, down = (factors.pop(module + end).float().flatten(1) for end in (UP, DOWN))
            try:
                whole[name] = whole[name] + (up @ down).view_as(whole[name])
            except RuntimeError as error:
                raise InvalidInput(
                    f"{file}: the factors of {one_line(name, 80)} do not fit this base: name the base that it is for"
                ) from error
    return whole | factors  # what is left of these is too many


def _check(file: str, tensors: Tensors, expected: Mapping[str, Tensor]) -> None:
    """Raise InvalidInput where tensors are missing, too many, or of other shapes."""
    wrong = [name for name in expected if name in tensors and tensors[name].shape != expected[name].shape]
    if wrong:
        name = wrong[0]
        raise InvalidInput(
            f"{file}: {len(wrong)} tensors have other shapes than on this base ({name} is {[*tensors[name].shape]}, "
            f"not {[*expected[name].shape]}): name the base that it was trained on"
        )
    for what, names in (
        ("lacks", expected.keys() - tensors),
        ("has, beside a ControlNet's,", tensors.keys() - expected),
    ):
        if names:
            raise InvalidInput(f"{file} {what} {len(names)} tensors ({one_line(min(names), 80)}, ...)")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in what is wrong with it."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from error
