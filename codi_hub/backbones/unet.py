"""The `sd` family: UNet2DConditionModel with AutoencoderKL or AutoencoderTiny and a CLIP text encoder (SD 1.x, 2.x)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from codi_hub.backbones import autoencoder, foreign
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.condition_stem import initialise_stem
from codi_hub.backbones.fingerprint import Fingerprint, family_hash
from codi_hub.backbones.parts import ModelFiles, Parts
from codi_hub.backbones.prompts import excess
from codi_hub.backbones.sources import quiet_libraries
from codi_hub.backbones.unet_support import check_text_width, check_unet
from codi_hub.backbones.usage import ComfyUI, Usage
from codi_hub.backbones.values import Index, LatentSpec, Prompt, Residuals
from codi_hub.backbones.weight_sketch import shapes_of
from codi_hub.diffusion.schedule import VariancePreserving

SKETCHED = ("conv_in.weight", "time_embedding.linear_1.weight", "mid_block.resnets.0.conv1.weight", "conv_out.weight")
STEM_CHANNELS = (16, 32, 96, 256)  # ControlNet's condition stem; one stride of 2 between neighbours
OUTPUT = "output"  # name of the residual that is added to the prediction

Features = list[Tensor]
"""Features of an encoder half: of conv_in, of every layer on the way down, of the middle."""


@dataclass(frozen=True)
class UNetState:
    """What the frozen encoder half computed at z_t.

    Attributes:
        emb: embedding of the time and, in networks that have one, of the text as a whole, (B, width).
        features: of the encoder half.
        prompt: the prompt as the network takes it, with what depends on the image's size.
    """

    emb: Tensor
    features: Features
    prompt: Prompt

    def rows(self, index: Index) -> UNetState:
        """Return the rows of an index."""
        return UNetState(self.emb[index], [feature[index] for feature in self.features], self.prompt.rows(index))


class UNetBackbone(Backbone):
    """U-Net, autoencoder, text encoder and schedule of a Stable-Diffusion-style base.

    Residuals are named by their place among the features, "0" (conv_in) to "n" (the middle), and `OUTPUT`. With
    residuals the frozen encoder half runs without gradient, then the decoder half.

    Raises:
        Mismatch: a U-Net that wants inputs this family does not have.
    """

    family: ClassVar[str] = "sd"
    components: ClassVar[tuple[str, ...]] = ("unet", "vae", "text_encoder", "tokenizer")
    network_name: ClassVar[str] = "unet"
    input_layer: ClassVar[str] = "conv_in"
    lora_layers: ClassVar[str] = r"(down_blocks|mid_block|up_blocks)\..*"
    pipeline_name: ClassVar[str] = "StableDiffusionPipeline"
    usage: ClassVar[Usage | None] = Usage(
        "ControlNetModel",
        "StableDiffusionControlNetPipeline",
        condition="image",
        sees_latents=False,
        first="sample",
        loading="safety_checker=None",
        comfyui=ComfyUI("EmptyLatentImage"),
    )
    addition_embed_type: ClassVar[tuple[str | None, ...]] = (None, "text")
    default_cells: ClassVar[int] = 64

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        unet, vae = parts["unet"], parts["vae"]
        check_unet(unet.config, vae.config, self.addition_embed_type)
        self.unet, self.vae = unet, vae
        self.tokenizers = [*parts.named("tokenizer").values()]
        self.text_encoders = nn.ModuleList(parts.named("text_encoder").values())
        check_text_width(unet.config, sum(cast(Any, encoder).config.hidden_size for encoder in self.text_encoders))
        self.schedule: VariancePreserving = VariancePreserving.from_config(parts.scheduler)
        factor = autoencoder.factor(vae)
        multiple = factor * 2 ** (len(unet.config.block_out_channels) - 1)
        native = factor * native_cells(unet.config.sample_size, self.default_cells)
        self.latents = LatentSpec(unet.config.in_channels, factor, multiple, native)
        self.scaling_factor, _ = autoencoder.scale_and_shift(vae)
        self.requires_grad_(False).eval()

    @classmethod
    def matches(cls, files: ModelFiles) -> bool:
        """See `Backbone.matches`; a U-Net with an unknown embedding is taken for `sd`, and refused by name."""
        return "unet" in files.configs and files.configs["unet"].get("addition_embed_type") != "text_time"

    @classmethod
    def load(cls, files: ModelFiles, dtype: torch.dtype) -> Self:
        """See `Backbone.load`; what the configs show is refused before weights are read."""
        check_unet(files.configs["unet"], files.configs.get("vae", {}), cls.addition_embed_type)
        return super().load(files, dtype)

    @cached_property
    def text_pipeline(self) -> Any:
        """The family's diffusers pipeline with nothing but its text encoders, for its `encode_prompt`."""
        with quiet_libraries():
            from diffusers import StableDiffusionPipeline

        for tokenizer, encoder in zip(self.tokenizers, self.text_encoders, strict=True):
            length = cast(Any, encoder).config.max_position_embeddings
            tokenizer.model_max_length = min(tokenizer.model_max_length, length)  # some files state 1e30
        absent = dict.fromkeys(("vae", "unet", "scheduler", "safety_checker", "feature_extractor"))
        return StableDiffusionPipeline(
            text_encoder=self.text_encoders[0],
            tokenizer=self.tokenizers[0],
            requires_safety_checker=False,
            **absent,
        )

    def embed_texts(self, texts: Sequence[str]) -> Prompt:
        """See `Backbone.embed_texts`: the last hidden states, `context` (B, tokens, width)."""
        with quiet_libraries():  # which remark on every prompt that is cut
            context, _ = self.text_pipeline.encode_prompt(list(texts), self.device, 1, False)
        return Prompt({"context": context})

    def unread_text(self, text: str) -> str:
        """See `Backbone.unread_text`."""
        tokenizer, pipeline = self.tokenizers[0], self.text_pipeline  # which sets the tokenizer's limit
        return excess(tokenizer, pipeline.maybe_convert_prompt(text, tokenizer), tokenizer.model_max_length)

    def state(self, z_t: Tensor, t: Tensor, prompt: Prompt, *, network: Any = None) -> UNetState:
        """Run the encoder half; of the frozen network nothing is trained, so no gradient is kept."""
        prompt = self.sized(prompt, z_t)
        with torch.set_grad_enabled(network is not None and torch.is_grad_enabled()):
            features = encode_features(network or self.unet, z_t, self.schedule.model_time(t), prompt)
        return UNetState(*features, prompt)

    def sized(self, prompt: Prompt, z_t: Tensor) -> Prompt:
        """Return the prompt with the image's size added as conditioning; this family has none."""
        return prompt

    def predict(
        self,
        z_t: Tensor,
        t: Tensor,
        prompt: Prompt,
        *,
        residuals: Residuals | None = None,
        state: UNetState | None = None,
        concat: Tensor | None = None,
        network: Any = None,
    ) -> Tensor:
        """See `Backbone.predict`."""
        z_t = self.with_further(z_t, concat, network)
        state = state or self.state(z_t, t, prompt, network=network)
        return decode_fused(network or self.unet, state, residuals)

    def own_prediction(self, z_t: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
        """See `Backbone.own_prediction`."""
        prompt = self.sized(prompt, z_t)
        added = {"text_embeds": prompt["pooled"], "time_ids": prompt["time_ids"]} if "pooled" in prompt else None
        timestep = self.schedule.model_time(t).to(z_t.device)
        return self.unet(z_t, timestep, prompt["context"], added_cond_kwargs=added).sample

    def compute_fingerprint(self) -> Fingerprint:
        """See `Backbone.compute_fingerprint`; the architecture, the schedule and the latents' scale are the family."""
        noise = [round(value, 5) for value in self.schedule.alphas[:: max(1, len(self.schedule) // 20)].tolist()]
        family = family_hash(shapes_of(self.unet), self.schedule.prediction_type, noise, round(self.scaling_factor, 4))
        return Fingerprint.of(family, self.unet, self.outer_sketch, SKETCHED)

    def control_condition(self, net: Any, condition: Tensor) -> list[Tensor]:
        """Return the stem's view of the condition: [(B, width, h, w)].

        A condition of one channel is repeated for a stem of three, and its channels are flipped where the ControlNet's
        configuration says that it takes BGR, as diffusers does.
        """
        condition = condition.expand(-1, net.controlnet_cond_embedding.conv_in.in_channels, -1, -1)
        bgr = net.config[foreign.CHANNEL_ORDER] == "bgr"
        return [net.controlnet_cond_embedding(condition.flip(1) if bgr else condition)]

    def control_residuals(
        self, net: Any, state: UNetState, z_t: Tensor, t: Tensor, prompt: Prompt, prepared: list[Tensor]
    ) -> Residuals:
        """Return one residual per feature of the frozen encoder half."""
        timestep = self.schedule.model_time(t)
        _, conditional = encode_features(net, z_t, timestep, state.prompt, prepared[0])
        convolutions = [*net.controlnet_down_blocks, net.controlnet_mid_block]
        added = [conv(h_eta) for conv, h_eta in zip(convolutions, conditional, strict=True)]
        return Residuals({str(k): value for k, value in enumerate(added)})

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
        initialise_stem(net.controlnet_cond_embedding)
        return net

    def controlnet_class(self) -> Any:
        """See `Backbone.controlnet_class`."""
        from diffusers import ControlNetModel

        return ControlNetModel

    def controlnet_from(self, config: Mapping[str, Any], *, device: torch.device | None = None) -> Any:
        """See `Backbone.controlnet_from`."""
        whole = foreign.complete(self.controlnet_class(), config)
        foreign.check_unet_config(whole, self.unet.config, self.latents.factor)
        return foreign.built(self.controlnet_class(), whole, device or self.device)

    def controlnet_config(self, shapes: foreign.Shapes) -> dict[str, Any]:
        """See `Backbone.controlnet_config`."""
        return foreign.unet_config(self.controlnet_class(), self.unet.config, shapes)


def native_cells(sample_size: int | Sequence[int] | None, default: int) -> int:
    """Return the side in latent cells that a U-Net's `sample_size` states: a number, (height, width), or nothing."""
    if sample_size is None:
        return default
    return sample_size if isinstance(sample_size, int) else max(sample_size)


def encode_features(
    net: Any, z_t: Tensor, timestep: Tensor, prompt: Prompt, added: Tensor | float = 0.0
) -> tuple[Tensor, Features]:
    """Run an encoder half: the U-Net's own, or a conditional encoder built like it.

    Args:
        net: has conv_in, time_proj, time_embedding, down_blocks and mid_block.
        z_t: latents (B, C, h, w).
        timestep: what the network is given as its time, (B,) or one for all.
        prompt: of B rows, as `UNetBackbone.sized` returns it.
        added: added after conv_in; a conditional encoder's view of its condition.

    Returns:
        the embedding of the time and, in networks that have one, of the text as a whole; and the features.
    """
    emb = net.time_embedding(net.time_proj(timestep.expand(len(z_t))).to(z_t.dtype))
    if net.config.addition_embed_type == "text":
        emb = emb + net.add_embedding(prompt["context"])
    elif net.config.addition_embed_type == "text_time":
        sizes = net.add_time_proj(prompt["time_ids"].flatten()).view(len(z_t), -1)
        emb = emb + net.add_embedding(torch.cat([prompt["pooled"], sizes.to(emb.dtype)], dim=-1))
    return emb, descend(net, emb, net.conv_in(z_t) + added, prompt["context"])


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
    return net.conv_out(net.conv_act(net.conv_norm_out(hidden)))


def decode_fused(net: Any, state: UNetState, residuals: Residuals | None) -> Tensor:
    """Add residuals to an encoder half's features, run the decoder half, add the output's residual."""
    features, context = state.features, state.prompt["context"]
    if residuals is None:
        return decode_features(net, state.emb, features, context)
    names = map(str, range(len(features)))
    fused = [h + residuals[k] if k in residuals else h for k, h in zip(names, features, strict=True)]
    prediction = decode_features(net, state.emb, fused, context)
    return prediction + residuals[OUTPUT] if OUTPUT in residuals else prediction


def match_text_heads(net: Any, unet: Any) -> None:
    """Give a ControlNet the U-Net's number of heads in the embedding of the text, where diffusers always takes 64."""
    if hasattr(getattr(net, "add_embedding", None), "pool"):
        pool, like = net.add_embedding.pool, unet.add_embedding.pool
        pool.num_heads, pool.dim_per_head = like.num_heads, like.dim_per_head
        net.register_to_config(addition_embed_type_num_heads=like.num_heads)
