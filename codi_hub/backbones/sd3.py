"""The `sd3` family: Stable Diffusion 3 and 3.5 (Esser et al., 2024).

CLIP-L and CLIP-G give the pooled text and, padded to T5's width, the first part of the context; T5 gives the rest,
zeros where it is left out, as in diffusers. Latents are cut into patches inside the network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from codi_hub.backbones import autoencoder, foreign
from codi_hub.backbones.parts import ModelFiles, Parts
from codi_hub.backbones.prompts import excess
from codi_hub.backbones.sources import quiet_libraries
from codi_hub.backbones.transformer import TransformerBackbone
from codi_hub.backbones.usage import ComfyUI, Usage
from codi_hub.backbones.values import Prompt, Residuals
from codi_hub.errors import Mismatch

TOKENS = 256  # of a prompt that T5 encodes
BASE_BLOCKS = 4  # base blocks that share a residual: six blocks of a branch for SD3.5-medium's 24


def evenly(layers: int, blocks: int) -> bool:
    """Whether ComfyUI, which adds residual i // (layers // blocks) after block i, does as diffusers."""
    return layers % blocks == 0


class SD3Backbone(TransformerBackbone):
    """SD3Transformer2DModel with two CLIP text encoders and, on request, T5.

    Residuals are a ControlNet's block samples, "0" to "n", each (B, image tokens, width); diffusers adds number
    int(i / interval) after block i.

    Raises:
        Mismatch: a network with further input channels.
    """

    family: ClassVar[str] = "sd3"
    components: ClassVar[tuple[str, ...]] = (
        "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2",
        "tokenizer_3",
    )  # fmt: skip
    optional: ClassVar[tuple[str, ...]] = ("text_encoder_3", "tokenizer_3")
    pipeline_name: ClassVar[str] = "StableDiffusion3Pipeline"
    usage: ClassVar[Usage | None] = Usage(
        "SD3ControlNetModel", "StableDiffusion3ControlNetPipeline", comfyui=ComfyUI("EmptySD3LatentImage", evenly)
    )
    input_layer: ClassVar[str] = "pos_embed.proj"

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        config = self.transformer.config
        if config.in_channels != self.latents.channels:
            raise Mismatch(
                f"this SD3 network takes {config.in_channels} channels and not its autoencoder's "
                f"{self.latents.channels}: use the text-to-image model that it was made from"
            )
        factor = self.latents.factor
        self.latents = replace(
            self.latents,
            multiple=factor * config.patch_size,
            native_size=factor * config.sample_size,
            max_side=factor * config.patch_size * config.pos_embed_max_size,
        )

    @classmethod
    def matches(cls, files: ModelFiles) -> bool:
        """See `Backbone.matches`."""
        return files.classes.get("transformer") == "SD3Transformer2DModel"

    @cached_property
    def text_pipeline(self) -> Any:
        """The family's diffusers pipeline with nothing but its text encoders, for its `encode_prompt`.

        It reads the width of T5's part in the transformer's config.
        """
        with quiet_libraries():
            from diffusers import StableDiffusion3Pipeline

        for part in ("", "_2"):
            tokenizer, encoder = self.text_parts[f"tokenizer{part}"], self.text_parts[f"text_encoder{part}"]
            tokenizer.model_max_length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        absent = dict.fromkeys(("scheduler", "vae", *self.optional))
        return StableDiffusion3Pipeline(transformer=self.transformer, **(absent | self.text_parts))

    def embed_texts(self, texts: Sequence[str]) -> Prompt:
        """See `Backbone.embed_texts`: `context` (B, tokens, width) and `pooled` (B, both CLIP widths)."""
        with quiet_libraries():  # which remark on every prompt that is cut
            context, _, pooled, _ = self.text_pipeline.encode_prompt(
                list(texts),
                None,
                None,
                device=self.device,
                do_classifier_free_guidance=False,
                max_sequence_length=self.most_tokens,
            )
        return Prompt({"context": context, "pooled": pooled})

    @property
    def most_tokens(self) -> int:
        """Tokens of T5's part of the context."""
        t5 = self.text_parts.get("tokenizer_3")
        return TOKENS if t5 is None else min(TOKENS, t5.model_max_length)

    def unread_text(self, text: str) -> str:
        """See `Backbone.unread_text`: what T5, or where there is none CLIP, does not read; T5 reads more."""
        if t5 := self.text_parts.get("tokenizer_3"):
            return excess(t5, text, self.most_tokens)
        words = self.text_pipeline.tokenizer  # as long as its encoder reads
        return excess(words, text, words.model_max_length)

    def predict(
        self,
        z_t: Tensor,
        t: Tensor,
        prompt: Prompt,
        *,
        residuals: Residuals | None = None,
        state: Any = None,
        concat: Tensor | None = None,
        network: Any = None,
    ) -> Tensor:
        """See `Backbone.predict`."""
        seen = self.with_further(z_t, concat, network)
        named = {} if residuals is None else residuals.tensors
        (predicted,) = (network or self.transformer)(
            seen,
            prompt["context"],
            prompt["pooled"],
            self.schedule.model_time(t),
            block_controlnet_hidden_states=[named[str(k)] for k in range(len(named))] or None,
            return_dict=False,
        )
        return predicted

    def control_condition(self, net: Any, condition: Tensor) -> list[Tensor]:
        """Return the condition's latents, as diffusers' pipeline passes them: [(B, K, h, w)].

        Without the autoencoder's shift where the ControlNet sees no pooled text.
        """
        latents = self.condition_latents(condition)
        if net.config.force_zeros_for_pooled_projection:
            scale, shift = autoencoder.scale_and_shift(self.vae)
            colours, more = latents.tensor_split([self.latents.channels], dim=1)
            latents = torch.cat([colours + scale * shift, more], dim=1)
        return [latents.to(condition)]

    def control_residuals(
        self, net: Any, state: Any, z_t: Tensor, t: Tensor, prompt: Prompt, prepared: list[Tensor]
    ) -> Residuals:
        """Return the ControlNet's block samples; one without positions has the base's, one without text sees none."""
        pooled = prompt["pooled"]
        (samples,) = net(
            self.transformer.pos_embed(z_t) if net.pos_embed is None else z_t,
            prepared[0],
            encoder_hidden_states=None if net.context_embedder is None else prompt["context"],
            pooled_projections=torch.zeros_like(pooled) if net.config.force_zeros_for_pooled_projection else pooled,
            timestep=self.schedule.model_time(t),
            return_dict=False,
        )
        return Residuals({str(k): value for k, value in enumerate(samples)})

    def per_block(self, residuals: Residuals) -> Residuals:
        """See `Backbone.per_block`; diffusers' rule is that block i takes number int(i / interval)."""
        blocks, count = self.transformer.config.num_layers, len(residuals.tensors)
        spread = {str(i): residuals[str(int(i / (blocks / count)))] for i in range(blocks if count else 0)}
        return Residuals(spread)

    def controlnet(
        self, condition_channels: int, *, pretrained: bool = True, device: torch.device | None = None
    ) -> nn.Module:
        """See `Backbone.controlnet`; of one block for `BASE_BLOCKS` of the base, whose table of positions it holds.

        Not by `from_transformer`, which writes the branch's number of blocks into the base's own config.
        """
        from diffusers import SD3ControlNetModel

        base, further = self.transformer, self.condition_latents_channels(condition_channels) - self.latents.channels
        blocks = -(-base.config.num_layers // BASE_BLOCKS)
        config = dict(base.config) | {"num_layers": blocks, "extra_conditioning_channels": further}
        with torch.device(device or self.device), quiet_libraries():
            net: Any = SD3ControlNetModel.from_config(config)
        if pretrained:
            for name in ("pos_embed", "time_text_embed", "context_embedder"):
                getattr(net, name).load_state_dict(getattr(base, name).state_dict())
            net.transformer_blocks.load_state_dict(base.transformer_blocks[:blocks].state_dict())
        del net.pos_embed._buffers["pos_embed"]  # 0.9 GB for SD3.5-medium, and never trained
        net.pos_embed.pos_embed = base.pos_embed.pos_embed
        return net

    def controlnet_class(self) -> Any:
        """See `Backbone.controlnet_class`."""
        from diffusers import SD3ControlNetModel

        return SD3ControlNetModel

    def controlnet_from(self, config: Mapping[str, Any], *, device: torch.device | None = None) -> Any:
        """See `Backbone.controlnet_from`; it holds its own table of positions, where its file has one."""
        base, whole = self.transformer.config, foreign.complete(self.controlnet_class(), config)
        named = ["patch_size", "in_channels", "attention_head_dim", "num_attention_heads", "pooled_projection_dim"]
        foreign.check_same(whole, base, named)
        if whole["joint_attention_dim"] is not None:
            foreign.check_same(whole, base, ["joint_attention_dim", "caption_projection_dim"])
        foreign.check_absent(whole, {"extra_conditioning_channels": "which are for masks, and a condition is an image"})
        positions = {"sample_size": foreign.MOST_POSITIONS, "pos_embed_max_size": foreign.MOST_POSITIONS}
        foreign.check_at_most(whole, {"num_layers": base.num_layers} | positions)
        return foreign.built(self.controlnet_class(), whole, device or self.device)

    def controlnet_config(self, shapes: foreign.Shapes) -> dict[str, Any]:
        """See `Backbone.controlnet_config`; it is taken to see no pooled text, as the class's default is."""
        config = foreign.transformer_config(self.controlnet_class(), self.transformer.config, shapes)
        blocks = [f"transformer_blocks.{k}" for k in range(config["num_layers"])]
        doubled = [k for k, name in enumerate(blocks) if f"{name}.attn2.to_q.weight" in shapes]
        table = shapes.get("pos_embed.pos_embed", ())
        channels = shapes.get("pos_embed_input.proj.weight", (0, config["in_channels"]))[1]
        return config | {
            "dual_attention_layers": doubled,
            "qk_norm": "rms_norm" if "transformer_blocks.0.attn.norm_q.weight" in shapes else None,
            "joint_attention_dim": config["joint_attention_dim"] if "context_embedder.weight" in shapes else None,
            "use_pos_embed": "pos_embed.proj.weight" in shapes,
            "pos_embed_max_size": math.isqrt(table[1]) if len(table) > 1 else config["pos_embed_max_size"],
            "extra_conditioning_channels": channels - config["in_channels"],
        }
