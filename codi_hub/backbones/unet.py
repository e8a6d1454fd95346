"""The `sd` family: UNet2DConditionModel with AutoencoderKL or AutoencoderTiny and a CLIP text encoder (SD 1.x, 2.x)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from codi_hub.backbones.backbone import Backbone, Index, LatentSpec, Prompt, Residuals
from codi_hub.backbones.fingerprint import Fingerprint, family_hash, sketch
from codi_hub.backbones.sources import local_folder, quiet_libraries
from codi_hub.diffusion.schedule import VariancePreserving
from codi_hub.errors import InvalidInput, Mismatch, one_line

# Pixels decoded in one pass. Four times as many take Stable Diffusion's decoder 0.45 GB, and a CPU a tenth longer:
# blocks over 32 MB are given back to the system, and all their pages fetched from it, at every layer.
DECODED_TOGETHER = 1 << 16
SKETCHED = ("conv_in.weight", "time_embedding.linear_1.weight", "mid_block.resnets.0.conv1.weight", "conv_out.weight")
STEM_CHANNELS = (16, 32, 96, 256)  # ControlNet's condition stem; one stride of 2 between neighbours
OUTPUT = "output"  # name of the residual that is added to the prediction

Features = list[Tensor]
"""Features of an encoder half: of conv_in, of every layer on the way down, of the middle."""


@dataclass(frozen=True)
class UNetState:
    """What the frozen encoder half computed at z_t: the time embedding (B, width) and its features."""

    emb: Tensor
    features: Features

    def rows(self, index: Index) -> UNetState:
        """Return the rows of an index."""
        return UNetState(self.emb[index], [feature[index] for feature in self.features])


class UNetBackbone(Backbone):
    """U-Net, autoencoder, text encoder and schedule of a Stable-Diffusion-style base.

    Residuals are named by their place among the features, "0" (conv_in) to "n" (the middle), and `OUTPUT`. With
    residuals the frozen encoder half runs without gradient, then the decoder half.

    Raises:
        Mismatch: a U-Net that wants inputs this family does not have.
    """

    family: ClassVar[str] = "sd"

    def __init__(self, unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, scheduler_config: Mapping[str, Any]):
        super().__init__()
        check_supported(unet.config)
        self.unet, self.vae, self.text_encoder = unet, vae, text_encoder
        self.tokenizer = tokenizer
        self.schedule: VariancePreserving = VariancePreserving.from_config(scheduler_config)
        levels = vae.config.get("block_out_channels") or vae.config.encoder_block_out_channels
        factor = 2 ** (len(levels) - 1)
        multiple = factor * 2 ** (len(unet.config.block_out_channels) - 1)
        self.latents = LatentSpec(unet.config.in_channels, factor, multiple, unet.config.sample_size * factor)
        self.scaling_factor = float(vae.config.scaling_factor)
        self.shift_factor = float(vae.config.get("shift_factor") or 0.0)
        self.requires_grad_(False).eval()
        self.fingerprint = _fingerprint(unet, self.schedule, self.scaling_factor)

    @classmethod
    def matches(cls, folder: Path) -> bool:
        """Whether a model folder is of this family."""
        return (folder / "unet" / "config.json").is_file()

    @classmethod
    def load(cls, source: str, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Self:
        """See `Backbone.load`."""
        folder = local_folder(source)
        try:
            with quiet_libraries():
                parts = _load_parts(folder, dtype)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise InvalidInput(f"base {source}: cannot be loaded: {one_line(error, 200)}") from error
        base = cls(*parts).to(torch.device(device))
        return base.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    @property
    def device(self) -> torch.device:
        """See `Backbone.device`."""
        device: torch.device = self.unet.conv_in.weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """See `Backbone.dtype`."""
        dtype: torch.dtype = self.unet.conv_in.weight.dtype
        return dtype

    def encode(self, images: Tensor) -> Tensor:
        """See `Backbone.encode`; the mean of the autoencoder's distribution."""
        encoded = self.vae.encode((2 * images - 1).to(self.device, self.dtype))
        latents = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
        return (latents.float() - self.shift_factor) * self.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """See `Backbone.decode`; `DECODED_TOGETHER` pixels at a time."""
        z = (latents / self.scaling_factor + self.shift_factor).to(self.dtype)
        together = max(1, DECODED_TOGETHER // (self.latents.factor**2 * z[0, 0].numel()))
        images = [self.vae.decode(part).sample for part in z.split(together)]
        return (torch.cat(images).float() / 2 + 0.5).clamp(0, 1)

    def latents_digest(self) -> str:
        """See `Backbone.latents_digest`."""
        digest = hashlib.sha256(f"{self.scaling_factor} {self.shift_factor}".encode())
        for name, value in self.vae.state_dict().items():
            if not name.startswith(("decoder.", "post_quant_conv.")):
                digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def embed_texts(self, texts: Sequence[str]) -> Prompt:
        """See `Backbone.embed_texts`: the last hidden states, (B, tokens, width)."""
        length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return Prompt({"context": self.text_encoder(tokens.input_ids.to(self.device))[0]})

    @torch.no_grad()
    def state(self, z_t: Tensor, t: Tensor, prompt: Prompt) -> UNetState:
        """Run the frozen encoder half; nothing in it is trained, so no gradient is kept."""
        return UNetState(*encode_features(self.unet, z_t, self.schedule.model_time(t), prompt["context"]))

    def predict(
        self,
        z_t: Tensor,
        t: Tensor,
        prompt: Prompt,
        *,
        residuals: Residuals | None = None,
        state: UNetState | None = None,
        concat: Tensor | None = None,
    ) -> Tensor:
        """See `Backbone.predict`."""
        if concat is not None:
            raise Mismatch(f"bases of family {self.family} have no further input channels")
        state = state or self.state(z_t, t, prompt)
        return decode_fused(self.unet, state, residuals, prompt["context"])

    def controlnet(
        self, condition_channels: int, *, pretrained: bool = True, device: torch.device | None = None
    ) -> nn.Module:
        """See `Backbone.controlnet`; its condition stem ends at the latents' resolution."""
        from diffusers import ControlNetModel

        stem = STEM_CHANNELS[: self.latents.factor.bit_length()]
        with torch.device(device or self.device):
            net = ControlNetModel.from_unet(
                self.unet,
                conditioning_embedding_out_channels=stem,
                conditioning_channels=condition_channels,
                load_weights_from_unet=pretrained,
            )
        match_text_heads(net, self.unet)
        return net


def _load_parts(folder: Path, dtype: torch.dtype) -> tuple[Any, ...]:
    """Load (unet, vae, text encoder, tokenizer, scheduler config) of a diffusers folder, safetensors only."""
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    kind = json.loads((folder / "vae" / "config.json").read_text()).get("_class_name", "AutoencoderKL")
    autoencoder = AutoencoderTiny if kind == "AutoencoderTiny" else AutoencoderKL
    options = {"torch_dtype": dtype, "use_safetensors": True, "low_cpu_mem_usage": True}
    return (
        UNet2DConditionModel.from_pretrained(folder / "unet", **options),
        autoencoder.from_pretrained(folder / "vae", **options),
        CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=dtype, use_safetensors=True),
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        json.loads((folder / "scheduler" / "scheduler_config.json").read_text()),
    )


def _fingerprint(unet: nn.Module, schedule: VariancePreserving, scaling_factor: float) -> Fingerprint:
    """Fingerprint the U-Net, the schedule and the latents' scale. The autoencoder's decoder is left out."""
    shapes = [(name, tuple(value.shape)) for name, value in unet.state_dict().items()]
    noise = [round(value, 5) for value in schedule.alphas[:: max(1, len(schedule) // 20)].tolist()]
    family = family_hash(shapes, schedule.prediction_type, noise, round(scaling_factor, 4))
    return Fingerprint(family, sketch(dict(unet.named_parameters()), SKETCHED))


def encode_features(
    net: Any, z_t: Tensor, timestep: Tensor, context: Tensor, added: Tensor | float = 0.0
) -> tuple[Tensor, Features]:
    """Run an encoder half: the U-Net's own, or a conditional encoder built like it.

    Args:
        net: has conv_in, time_proj, time_embedding, down_blocks and mid_block.
        z_t: latents (B, C, h, w).
        timestep: what the network is given as its time, (B,) or one for all.
        context: prompt embeddings (B, tokens, width).
        added: added after conv_in; a conditional encoder's view of its condition.

    Returns:
        the embedding of the time and, in networks that have one, of the text as a whole; and the features.
    """
    emb = net.time_embedding(net.time_proj(timestep.expand(len(z_t))).to(z_t.dtype))
    if hasattr(net, "add_embedding"):  # config: addition_embed_type="text"
        emb = emb + net.add_embedding(context)
    return emb, descend(net, emb, net.conv_in(z_t) + added, context)


def descend(net: Any, emb: Tensor, hidden: Tensor, context: Tensor | None) -> Features:
    """Return an encoder half's features from its first layer's output; `context` is None without cross-attention."""
    features = [hidden]
    for block in net.down_blocks:
        text = {"encoder_hidden_states": context} if getattr(block, "has_cross_attention", False) else {}
        hidden, more = block(hidden_states=hidden, temb=emb, **text)
        features += more
    text = {"encoder_hidden_states": context} if getattr(net.mid_block, "has_cross_attention", False) else {}
    return [*features, net.mid_block(hidden, emb, **text)]


def decode_features(net: Any, emb: Tensor, features: Features, context: Tensor) -> Tensor:
    """Run the decoder half of a U-Net on what `encode_features` returned, possibly fused: (B, C, h, w)."""
    *left, hidden = features
    for block in net.up_blocks:
        count = len(block.resnets)
        skip, left = tuple(left[-count:]), left[:-count]
        text = {"encoder_hidden_states": context} if getattr(block, "has_cross_attention", False) else {}
        size = left[-1].shape[2:] if left else None
        hidden = block(hidden_states=hidden, temb=emb, res_hidden_states_tuple=skip, upsample_size=size, **text)
    output: Tensor = net.conv_out(net.conv_act(net.conv_norm_out(hidden)))
    return output


def decode_fused(net: Any, state: UNetState, residuals: Residuals | None, context: Tensor) -> Tensor:
    """Add residuals to an encoder half's features, run the decoder half, add the output's residual."""
    features = state.features
    if residuals is None:
        return decode_features(net, state.emb, features, context)
    names = map(str, range(len(features)))
    fused = [h + residuals[k] if k in residuals else h for k, h in zip(names, features, strict=True)]
    prediction = decode_features(net, state.emb, fused, context)
    return prediction + residuals[OUTPUT] if OUTPUT in residuals else prediction


def match_text_heads(net: Any, unet: Any) -> None:
    """Give a ControlNet the U-Net's number of heads in the embedding of the text, where diffusers always takes 64."""
    if hasattr(net, "add_embedding"):
        pool, like = net.add_embedding.pool, unet.add_embedding.pool
        pool.num_heads, pool.dim_per_head = like.num_heads, like.dim_per_head
        net.register_to_config(addition_embed_type_num_heads=like.num_heads)


def check_supported(config: Any) -> None:
    """Refuse U-Nets that want inputs a Stable-Diffusion-style model does not have.

    Raises:
        Mismatch: naming the config entry.
    """
    for name in (
        "addition_embed_type",
        "class_embed_type",
        "encoder_hid_dim_type",
        "time_embedding_act_fn",
        "timestep_post_act",
    ):
        if config.get(name) and (name, config[name]) != ("addition_embed_type", "text"):
            raise Mismatch(
                f"this U-Net has {name}={config[name]!r}: only Stable-Diffusion-style models (SD 1.x and 2.x) work here"
            )
    if config.get("center_input_sample") or config.get("time_cond_proj_dim"):
        raise Mismatch(
            "this U-Net rescales its input or takes a guidance embedding: only plain text-conditioned ones work here"
        )
