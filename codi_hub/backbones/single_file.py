"""One safetensors file: which model its tensors' names say it is, and its components in diffusers' form."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from codi_hub.backbones.weights import GGUF, Header, read_header
from codi_hub.errors import InvalidInput, describe

NETWORK = "model.diffusion_model."
VAE_PREFIXES = ("first_stage_model.", "vae.")
TEXT_PREFIXES = ("cond_stage_model.", "conditioner.", "text_encoders.")
UNET_INPUT = "input_blocks.0.0.weight"
CROSS_ATTENTION = "input_blocks.{}.1.transformer_blocks.0.attn2.to_k.weight"
SD2_WIDTH, REFINER_WIDTH = 1024, 2560  # of the text in SD 2.x, of the refiner's pooled text and sizes
# In text encoders' files: a buffer, and what compares texts with images.
HARMLESS = ("position_ids", "logit_scale", "text_projection.weight")
TRAINING = ("loss.", "model_ema.")  # in autoencoders' files


@dataclass(frozen=True)
class Form:
    """A model in one file that can be loaded.

    Attributes:
        name: as it is called in messages.
        config: name of the built-in configs that fit, None where there are none.
        network: the component that the file's network becomes.
        scheduler: changes to the scheduler's config that the file states.
    """

    name: str
    config: str | None
    network: str
    scheduler: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Signature:
    """A kind of file by the names of its tensors; `refusal` says what else to do with one that is no base."""

    name: str
    found: Callable[[Header], bool]
    refusal: str = ""
    config: str | None = None
    network: str = "transformer"


def _tensor(header: Header, name: str) -> tuple[int, ...]:
    """Return the shape of a network's tensor, with or without the usual prefix; () where it is not there."""
    return header.shapes.get(NETWORK + name) or header.shapes.get(name) or ()


def _input_channels(header: Header) -> int:
    shape = _tensor(header, UNET_INPUT) or header.shapes.get("conv_in.weight", ())
    return shape[1] if len(shape) > 1 else 0


def _refiner(header: Header) -> bool:
    pooled = _tensor(header, "label_emb.0.0.weight")
    second = "conditioner.embedders.1.model.ln_final.weight" in header
    return bool(pooled) and not second and (header.any("conditioner.embedders.0.model.") or pooled[1] == REFINER_WIDTH)


def _sd2(header: Header) -> bool:
    widths = {shape[1] for k in range(12) if (shape := _tensor(header, CROSS_ATTENTION.format(k)))}
    return bool(_tensor(header, UNET_INPUT)) and (header.any("cond_stage_model.model.") or widths == {SD2_WIDTH})


# The first that fits. What is no base comes before what is: an inpainting model has all of SD's tensors.
SIGNATURES = (
    Signature(
        "a LoRA",
        lambda h: any(".lora_" in name or "lora_unet" in name or ".lora." in name for name in h.shapes),
        "it is merged into a base: name the base as source, and this file as its LoRA",
    ),
    Signature(
        "a ControlNet",
        lambda h: h.any("control_model.", "controlnet_", "control_", "input_hint_block.", "pos_embed_input."),
        "a base is the model that it controls",
    ),
    Signature(
        "a textual-inversion embedding",
        lambda h: len(h.shapes) <= 2 and ("emb_params" in h or "clip_l" in h),
        "a base is a whole model",
    ),
    Signature(
        "an SDXL refiner",
        _refiner,
        "it takes an aesthetic score and one text encoder; use the SDXL base",
    ),
    Signature(
        "an inpainting model, whose network has 9 input channels",
        lambda h: _input_channels(h) == 9,
        "use the base that it was made from, and distil the task inpaint on it",
    ),
    Signature(
        "an editing or upscaling model, whose network has further input channels",
        lambda h: _input_channels(h) in (5, 7, 8),
        "use the base that it was made from",
    ),
    Signature("a Playground 2.5 model", lambda h: "edm_mean" in h, "its EDM schedule is not supported"),
    Signature("SDXL", lambda h: bool(_tensor(h, "label_emb.0.0.weight")), config="sdxl", network="unet"),
    Signature("SD 2.x", _sd2, network="unet"),
    Signature("SD 1.x", lambda h: bool(_tensor(h, UNET_INPUT)), config="sd15", network="unet"),
    Signature("SD3", lambda h: bool(_tensor(h, "joint_blocks.0.x_block.attn.qkv.weight"))),
    Signature(
        "FLUX.2", lambda h: bool(_tensor(h, "single_stream_modulation.lin.weight")), "only FLUX.1 is supported of FLUX"
    ),
    Signature(
        "Chroma", lambda h: bool(_tensor(h, "distilled_guidance_layer.in_proj.weight")), "this family is not supported"
    ),
    Signature("FLUX.1", lambda h: bool(_tensor(h, "double_blocks.0.img_attn.qkv.weight"))),
    Signature("Z-Image", lambda h: bool(_tensor(h, "cap_embedder.1.weight")) and bool(_tensor(h, "x_pad_token"))),
    Signature("a U-Net in diffusers' form", lambda h: "conv_in.weight" in h and "conv_norm_out.weight" in h and
              h.any("time_embedding."), network="unet"),
    Signature("a transformer in diffusers' form", lambda h: h.any("transformer_blocks.", "layers.") and
              h.any("x_embedder.", "pos_embed.", "all_x_embedder.")),
    Signature(
        "an autoencoder",
        lambda h: h.any("encoder.conv_in.", "first_stage_model."),
        "name it beside a network, in place of its own autoencoder",
    ),
    Signature(
        "a text encoder",
        lambda h: h.any("text_model.", "encoder.block.", "model.embed_tokens.", "shared."),
        "name it beside a network, in place of its own text encoder",
    ),
)  # fmt: skip


def recognise(path: Path) -> Form:
    """Return which model a file is, by the names and shapes of its tensors.

    SD 2.x comes as a noise predictor (512 px) and as a v predictor (768 px) with the same tensors. The file's metadata
    decides (`modelspec.prediction_type`); where it says nothing, `config` has to.

    Raises:
        InvalidInput: damaged, of no known kind, or of one that is no base; with what to do instead.
    """
    header = read_header(path)
    kind = next((one for one in SIGNATURES if one.found(header)), None)
    if kind is None:
        some = ", ".join(sorted(header.shapes)[:3])
        raise InvalidInput(f"{path} is no model that is known: it has {len(header.shapes)} tensors ({some}, ...)")
    if kind.refusal:
        raise InvalidInput(f"{path} is {kind.name}: {kind.refusal}")
    stated = header.metadata.get("modelspec.prediction_type", "").lower()
    config, scheduler = kind.config, dict[str, Any]()
    if kind.name == "SD 2.x":
        config = {"v": "sd21", "v_prediction": "sd21", "epsilon": "sd21-base", "eps": "sd21-base"}.get(stated)
    elif "v_pred" in header or stated in ("v", "v_prediction"):
        scheduler["prediction_type"] = "v_prediction"
    if "ztsnr" in header:
        scheduler["rescale_betas_zero_snr"] = True
    return Form(kind.name, config, kind.network, scheduler)


def components_in(path: Path, network: str) -> list[str]:
    """Return the components that a recognised file has: its network, autoencoder and text encoders."""
    header = read_header(path)
    names = [network] + ["vae"] * header.any(*(f"{prefix}encoder." for prefix in VAE_PREFIXES))
    return names + [name for name, prefixes in TEXT_ENCODERS.items() if header.any(*prefixes)]


# Where the text encoders of a file are, in the pipeline's order.
TEXT_ENCODERS = {
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0.", "text_encoders.clip_l."),
    "text_encoder_2": ("conditioner.embedders.1.", "text_encoders.clip_g."),
    "text_encoder_3": ("text_encoders.t5xxl.",),
}
OPEN_CLIP = ("cond_stage_model.model.", "conditioner.embedders.1.model.")


def load(
    network_class: Any, path: Path, folder: Path, name: str, arguments: Mapping[str, Any]
) -> tuple[Any, Collection[str], Collection[str]]:
    """Load a component from a file that has it alone or among others, in diffusers' form or the original's.

    Args:
        network_class: of diffusers or transformers.
        path: the file.
        folder: has the component's config.
        name: the component's name.
        arguments: of the loading, `torch_dtype` among them.

    Returns:
        the network; tensors that the file lacks; tensors of the component that the network does not have.
    """
    from safetensors.torch import load_file

    if path.suffix == GGUF:
        model = network_class.from_single_file(str(path), config=str(folder), local_files_only=True, **arguments)
        return model, [key for key, value in model.state_dict().items() if value.is_meta], ()
    tensors = load_file(path)  # mapped, not read
    if name.startswith("text_encoder"):
        return _load_text_encoder(network_class, tensors, folder, name, arguments)
    prefixes = VAE_PREFIXES if name == "vae" else (NETWORK,)
    own = {key: value for key, value in tensors.items() if key.startswith(prefixes)}
    whole = {key: value for key, value in tensors.items() if not key.startswith(TRAINING)}
    bare, own = not own, own or whole
    config = network_class.load_config(folder)
    with torch.device("meta"):
        expected = network_class.from_config(config).state_dict().keys()
    converted, unexpected = own, set(own) - set(expected)
    if unexpected:
        if name != "vae" and bare:  # some files leave out the prefix, which the conversion needs
            own = {f"{NETWORK}{key}": value for key, value in own.items()}
        try:
            converted, unexpected = _converted(network_class, own, config)
        except KeyError as error:  # some conversions stop at the first tensor that is not there
            return None, [str(error.args[0])], ()
    missing = set(expected) - set(converted)
    unexpected |= set(converted) - set(expected)
    if missing or unexpected:
        return None, missing, unexpected
    return network_class.from_single_file(
        converted, config=str(folder), local_files_only=True, low_cpu_mem_usage=True, **arguments
    ), (), ()  # fmt: skip


def _converted(network_class: Any, own: dict[str, Tensor], config: Any) -> tuple[dict[str, Tensor], set[str]]:
    """Return tensors under diffusers' names, and the names of those that diffusers' conversion has no use for."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    entry = SINGLE_FILE_LOADABLE_CLASSES.get(network_class.__name__)
    if entry is None:
        raise InvalidInput(f"diffusers reads no single files of {network_class.__name__}: name a diffusers folder")
    rest = dict(own)  # conversions take what they use out of it, or leave all and refer to it
    try:
        converted = entry["checkpoint_mapping_fn"](config=dict(config), checkpoint=rest)
    except KeyError:
        raise
    except Exception as error:  # conversions count and split tensors that other models do not have
        raise InvalidInput(
            f"its tensors are not those of {network_class.__name__} ({describe(error)[:100]}): the config is another "
            "model's"
        ) from error
    used = {value.data_ptr() for value in converted.values()}
    return converted, {key for key, value in rest.items() if value.data_ptr() not in used}


def _load_text_encoder(
    encoder_class: Any, tensors: dict[str, Tensor], folder: Path, name: str, arguments: Mapping[str, Any]
) -> tuple[Any, Collection[str], Collection[str]]:
    config = encoder_class.config_class.from_pretrained(folder)
    own = text_encoder_tensors(tensors, name, config)
    projects = "Projection" in encoder_class.__name__
    if projects and name == "text_encoder" and not any(key.endswith("text_projection.weight") for key in own):
        own["text_projection.weight"] = torch.eye(config.hidden_size)  # SD3's CLIP-L, which is published without it
    model, info = encoder_class.from_pretrained(
        None, config=config, state_dict=own, output_loading_info=True, **arguments
    )
    unexpected = [key for key in info["unexpected_keys"] if not key.endswith(HARMLESS)]
    mismatched = [str(key[0]) for key in info["mismatched_keys"]]
    return model, [*info["missing_keys"], *mismatched], unexpected


def text_encoder_tensors(tensors: dict[str, Tensor], name: str, config: Any) -> dict[str, Tensor]:
    """Return a text encoder's tensors under transformers' names, out of a file with others or of its own."""
    if not any(key.startswith(TEXT_PREFIXES) for key in tensors):
        return tensors
    prefix = next(one for one in TEXT_ENCODERS[name] if any(key.startswith(one) for key in tensors))
    own = {key: value for key, value in tensors.items() if key.startswith(prefix)}
    if any(key.startswith(OPEN_CLIP) for key in own):
        return _from_open_clip(own, prefix + "model.", config)
    return {key.removeprefix(prefix).removeprefix("transformer."): value for key, value in own.items()}


def _from_open_clip(own: dict[str, Tensor], prefix: str, config: Any) -> dict[str, Tensor]:
    """Rename OpenCLIP's tensors; the layers after those of the config, which SD 2.x does not use, are left out."""
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    converted = convert_open_clip_checkpoint(SimpleNamespace(config=config), own, prefix=prefix)
    unused = f"encoder.layers.{config.num_hidden_layers}."
    return {key: value for key, value in converted.items() if not key.removeprefix("text_model.").startswith(unused)}
