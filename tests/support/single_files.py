"""Models in one file, under the original names of their tensors: diffusers' conversions the other way round."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
VAE = [
    (r"(encoder|decoder)\.mid_block\.resnets\.0", r"\1.mid.block_1"),
    (r"(encoder|decoder)\.mid_block\.resnets\.1", r"\1.mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
]
OPEN_CLIP = {
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    ".fc1.": ".c_fc.",
    ".fc2.": ".c_proj.",
    "self_attn.out_proj": "attn.out_proj",
    "final_layer_norm": "ln_final",
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "text_projection.weight": "text_projection",
}


def unet_name(name: str, layers: int) -> str:
    """Return the original name of a U-Net's tensor."""
    for new, old in UNET_ENDS.items():
        if name.startswith(new + "."):
            return _resnet(name.replace(new, old, 1))
    half, level, part, number, rest = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name).groups()  # type: ignore[union-attr]
    block = int(level) * (layers + 1) + int(number)
    if half == "down":
        names = {"resnets": f"{block + 1}.0", "attentions": f"{block + 1}.1"}
        return _resnet(f"input_blocks.{names.get(part, f'{(int(level) + 1) * (layers + 1)}.0.op')}.{_conv(part, rest)}")
    names = {"resnets": f"{block}.0", "attentions": f"{block}.1"}
    return _resnet(f"output_blocks.{names.get(part, f'{block + layers}.UP.conv')}.{_conv(part, rest)}")


def _conv(part: str, rest: str) -> str:
    return rest.removeprefix("conv.") if part.endswith("samplers") else rest


def _resnet(name: str) -> str:
    for new, old in RESNET.items():
        name = re.sub(rf"^((?:in|out)put_blocks\.\d+\.0|middle_block\.[02])\.{new}\.", rf"\1.{old}.", name)
    return name


def unet_tensors(unet: Any) -> dict[str, Tensor]:
    """Return a U-Net's tensors under their original names."""
    tensors = {unet_name(name, unet.config.layers_per_block): value for name, value in unet.state_dict().items()}
    attended = {name.rsplit(".1.", 1)[0] for name in tensors if re.match(r"output_blocks\.\d+\.1\.norm\.", name)}
    return {
        re.sub(r"\.UP\.", ".2." if name.split(".UP.")[0] in attended else ".1.", name): value
        for name, value in tensors.items()
    }


def vae_tensors(vae: Any) -> dict[str, Tensor]:
    """Return an autoencoder's tensors under their original names."""
    levels = len(vae.config.block_out_channels)
    found = {}
    for name, value in vae.state_dict().items():
        for new, old in VAE:
            name = re.sub(new, old, name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block.", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
        linear = "attn_1" in name and name.endswith("weight") and value.ndim == 2
        found[name] = value[:, :, None, None] if linear else value
    return found


def open_clip_tensors(encoder: Any) -> dict[str, Tensor]:
    """Return a text encoder's tensors as OpenCLIP names them, with one more layer, which SD 2.x does not use."""
    state = {name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        for new, old in OPEN_CLIP.items():
            name = name.replace(new, old)
        if match := re.fullmatch(r"(.+)\.self_attn\.q_proj\.(weight|bias)", name):
            key = re.sub("resblocks", "layers", match[1]).replace("transformer.", "encoder.")
            parts = [state[f"{key}.self_attn.{one}_proj.{match[2]}"] for one in "qkv"]
            found[f"{match[1]}.attn.in_proj_{match[2]}"] = torch.cat(parts)
        elif "_proj." not in name or "out_proj" in name or "c_proj" in name:
            found[name] = value.T.contiguous() if name == "text_projection" else value
    return found


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def sd1_tensors(unet: Any, vae: Any, encoder: Any) -> dict[str, Tensor]:
    text = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in encoder.state_dict().items()}
    text["text_model.embeddings.position_ids"] = torch.arange(encoder.config.max_position_embeddings)[None]
    return (
        with_prefix("model.diffusion_model.", unet_tensors(unet))
        | with_prefix("first_stage_model.", vae_tensors(vae))
        | with_prefix("cond_stage_model.transformer.", text)
    )


def sd2_tensors(unet: Any, vae: Any, encoder: Any) -> dict[str, Tensor]:
    text = open_clip_tensors(encoder)
    last = f"transformer.resblocks.{encoder.config.num_hidden_layers - 1}."
    more = {name.replace(last, last.replace(last.split(".")[-2], str(encoder.config.num_hidden_layers))): value
            for name, value in text.items() if name.startswith(last)}  # fmt: skip
    more |= {"text_projection": torch.zeros(encoder.config.hidden_size, encoder.config.hidden_size)}
    more |= {"logit_scale": torch.zeros(())}
    return (
        with_prefix("model.diffusion_model.", unet_tensors(unet))
        | with_prefix("first_stage_model.", vae_tensors(vae))
        | with_prefix("cond_stage_model.model.", text | more)
    )


def sdxl_tensors(unet: Any, vae: Any, encoder: Any, encoder_2: Any) -> dict[str, Tensor]:
    text = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in encoder.state_dict().items()}
    return (
        with_prefix("model.diffusion_model.", unet_tensors(unet))
        | with_prefix("first_stage_model.", vae_tensors(vae))
        | with_prefix("conditioner.embedders.0.transformer.", text)
        | with_prefix("conditioner.embedders.1.model.", open_clip_tensors(encoder_2))
    )


def write(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> Path:
    """Write a file, every tensor a copy of its own."""
    save_file({name: value.clone().contiguous() for name, value in tensors.items()}, path, metadata or None)
    return path


def z_image_tensors(transformer: Any) -> dict[str, Tensor]:
    """Return Z-Image's tensors under their original names."""
    state = transformer.state_dict()
    names = {"all_x_embedder.2-1.": "x_embedder.", "all_final_layer.2-1.": "final_layer."}
    names |= {".norm_q.": ".q_norm.", ".norm_k.": ".k_norm.", ".to_out.0.": ".out."}
    found = {}
    for name, value in state.items():
        key = name
        for new, old in names.items():
            key = key.replace(new, old)
        if key.endswith(".to_q.weight"):
            parts = [state[name.replace("to_q", f"to_{one}")] for one in "qkv"]
            found[key.replace("to_q", "qkv")] = torch.cat(parts)
        elif not re.search(r"\.to_[kv]\.weight$", key):
            found[key] = value
    return with_prefix("model.diffusion_model.", found)


SD3 = [
    (r"^pos_embed\.pos_embed", "pos_embed"),
    (r"^pos_embed\.proj", "x_embedder.proj"),
    (r"^time_text_embed\.timestep_embedder\.linear_(\d)", lambda m: f"t_embedder.mlp.{2 * int(m[1]) - 2}"),
    (r"^time_text_embed\.text_embedder\.linear_(\d)", lambda m: f"y_embedder.mlp.{2 * int(m[1]) - 2}"),
    (r"^proj_out", "final_layer.linear"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"^transformer_blocks", "joint_blocks"),
    (r"\.norm1\.linear", ".x_block.adaLN_modulation.1"),
    (r"\.norm1_context\.linear", ".context_block.adaLN_modulation.1"),
    (r"\.ff\.net\.(0\.proj|2)", lambda m: f".x_block.mlp.fc{1 + (m[1] == '2')}"),
    (r"\.ff_context\.net\.(0\.proj|2)", lambda m: f".context_block.mlp.fc{1 + (m[1] == '2')}"),
    (r"\.(attn2?)\.norm_(q|k)\.", r".x_block.\1.ln_\2."),
    (r"\.attn\.norm_added_(q|k)\.", r".context_block.attn.ln_\1."),
    (r"\.(attn2?)\.to_out\.0", r".x_block.\1.proj"),
    (r"\.attn\.to_add_out", ".context_block.attn.proj"),
]


def sd3_tensors(base: Any) -> dict[str, Tensor]:
    """Return SD3's tensors and those of its text encoders under their original names."""
    state, last = base.transformer.state_dict(), base.transformer.config.num_layers - 1
    found = {}
    for name, value in state.items():
        if re.search(r"\.(to_[kv]|add_[kv]_proj)\.", name):
            continue
        key = name
        for new, old in SD3:
            key = re.sub(new, old, key)
        if match := re.search(r"\.(to_q|add_q_proj)\.", name):
            value = torch.cat([state[name.replace(match[1], match[1].replace("q", one))] for one in "qkv"])
            block = "x_block" if match[1] == "to_q" else "context_block"
            key = re.sub(r"\.(attn2?)\.(to_q|add_q_proj)", rf".{block}.\1.qkv", key)
        if name.startswith("norm_out") or f".{last}.norm1_context" in name:
            value = torch.cat(value.chunk(2)[::-1])
        found[key] = value
    tensors = with_prefix("model.diffusion_model.", found) | with_prefix("first_stage_model.", vae_tensors(base.vae))
    for name, encoder in zip(("clip_l", "clip_g", "t5xxl"), base.text_encoders, strict=False):
        tensors |= with_prefix(f"text_encoders.{name}.transformer.", encoder.state_dict())
    return tensors


def kohya_lora(module: Any, prefix: str, names: list[str], rank: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Return a LoRA of some layers as kohya's scripts write it, with alpha 1."""
    generator = torch.Generator().manual_seed(seed)
    layers, found = dict(module.named_modules()), {}
    for name in names:
        weight = layers[name].weight
        key = f"{prefix}_{name.replace('.', '_')}"
        found[f"{key}.lora_down.weight"] = torch.randn(rank, *weight.shape[1:], generator=generator)
        ones = [1] * (weight.ndim - 2)
        found[f"{key}.lora_up.weight"] = torch.randn(len(weight), rank, *ones, generator=generator)
        found[f"{key}.alpha"] = torch.tensor(1.0)
    return found


def peft_lora(module: Any, prefix: str, names: list[str], rank: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Return a LoRA of some layers as diffusers writes one of PEFT's."""
    generator = torch.Generator().manual_seed(seed)
    layers, found = dict(module.named_modules()), {}
    for name in names:
        rows, columns = layers[name].weight.shape
        found[f"{prefix}{name}.lora_A.weight"] = torch.randn(rank, columns, generator=generator)
        found[f"{prefix}{name}.lora_B.weight"] = torch.randn(rows, rank, generator=generator)
    return found
