"""The `flux` family: FLUX.1-dev, FLUX.1-schnell and their fine-tunes (Black Forest Labs, 2024).

The network sees latents packed 2x2 into tokens; losses, samplers and adapters see (B, 16, h, w). CLIP gives the pooled
text, T5 the context. FLUX.1-dev is guidance-distilled: it is given one guidance value, which is fixed here.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from codi_hub.backbones import foreign
from codi_hub.backbones.backbone import ATTENTION_AND_FEED_FORWARD
from codi_hub.backbones.parts import ModelFiles, Parts
from codi_hub.backbones.prompts import excess
from codi_hub.backbones.sources import quiet_libraries
from codi_hub.backbones.transformer import TransformerBackbone
from codi_hub.backbones.usage import ComfyUI, Usage
from codi_hub.backbones.values import Prompt, Residuals
from codi_hub.errors import Mismatch

GUIDANCE = 3.5  # what FLUX.1-dev is given by default
DEV_TOKENS, SCHNELL_TOKENS = 512, 256  # most tokens of a prompt that T5 encodes
BRANCH_BLOCKS = 4  # of the ControlNet, all of them double-stream: 1.44B parameters beside 11.9B
BLOCK, SINGLE = "block", "single"  # residuals' names start so; a number follows


def as_19_blocks(layers: int, blocks: int) -> bool:
    """Whether ComfyUI, which takes every base to have FLUX.1's 19 double-stream blocks, does as diffusers."""
    return -(-layers // blocks) == -(-19 // blocks)


class FluxBackbone(TransformerBackbone):
    """FluxTransformer2DModel with CLIP and T5.

    Residuals are a ControlNet's block samples, "block.0" to "block.n" and "single.0" to "single.n", each
    (B, image tokens, width); diffusers decides which block takes which.

    Attributes:
        guidance: the guidance value that the network is given, None where it takes none.

    Raises:
        Mismatch: a network with further input channels, such as FLUX.1-Fill's.
    """

    family: ClassVar[str] = "flux"
    components: ClassVar[tuple[str, ...]] = (
        "transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2",
    )  # fmt: skip
    pipeline_name: ClassVar[str] = "FluxPipeline"
    usage: ClassVar[Usage | None] = Usage(
        "FluxControlNetModel",
        "FluxControlNetPipeline",
        packing="latents = pipe._pack_latents(latents, *latents.shape)",
        arguments=f"guidance_scale={GUIDANCE}",
        comfyui=ComfyUI("EmptySD3LatentImage", as_19_blocks),
    )
    input_layer: ClassVar[str] = "x_embedder"
    lora_layers: ClassVar[str] = rf"{ATTENTION_AND_FEED_FORWARD}|single_transformer_blocks\.\d+\.proj_(mlp|out)"
    time_scale: ClassVar[float] = 1.0  # the network multiplies by 1000 itself

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        config = self.transformer.config
        if config.in_channels != self.patch**2 * self.latents.channels:
            raise Mismatch(
                f"this FLUX network takes {config.in_channels} channels and not {4 * self.latents.channels}: "
                "FLUX.1-Fill, -Canny, -Depth and the like are not supported, use FLUX.1-dev or FLUX.1-schnell"
            )
        self.guidance: float | None = GUIDANCE if config.guidance_embeds else None

    @classmethod
    def matches(cls, files: ModelFiles) -> bool:
        """See `Backbone.matches`."""
        return files.classes.get("transformer") == "FluxTransformer2DModel"

    @cached_property
    def text_pipeline(self) -> Any:
        """The family's diffusers pipeline with nothing but its text encoders, for its `encode_prompt`."""
        with quiet_libraries():
            from diffusers import FluxPipeline

        return FluxPipeline(scheduler=None, vae=None, transformer=None, **self.text_parts)

    def embed_texts(self, texts: Sequence[str]) -> Prompt:
        """See `Backbone.embed_texts`: T5's `context` (B, tokens, width) and CLIP's `pooled` (B, width)."""
        with quiet_libraries():  # which remark on every prompt that is cut
            context, pooled, _ = self.text_pipeline.encode_prompt(
                list(texts), device=self.device, max_sequence_length=self.most_tokens
            )
        return Prompt({"context": context, "pooled": pooled})

    @property
    def most_tokens(self) -> int:
        """Tokens that T5 reads."""
        tokens = SCHNELL_TOKENS if self.guidance is None else DEV_TOKENS
        return min(tokens, self.text_parts["tokenizer_2"].model_max_length)

    def unread_text(self, text: str) -> str:
        """See `Backbone.unread_text`: what T5 does not read; CLIP reads less, for the pooled embedding alone."""
        return excess(self.text_parts["tokenizer_2"], text, self.most_tokens)

    def inputs(self, z_t: Tensor, t: Tensor, prompt: Prompt) -> dict[str, Any]:
        """Return the arguments that the network and its ControlNet have in common.

        Args:
            z_t: latents, (B, C, h, w), with further input channels at the end where a network takes them.
            t, prompt: see `Backbone.predict`.
        """
        rows, columns = (side // self.patch for side in z_t.shape[2:])
        places = [torch.arange(n, device=z_t.device, dtype=z_t.dtype) for n in (1, rows, columns)]
        return {
            "hidden_states": pack(z_t),
            "timestep": self.schedule.model_time(t),
            "guidance": None if self.guidance is None else t.new_full((len(t),), self.guidance),
            "pooled_projections": prompt["pooled"],
            "encoder_hidden_states": prompt["context"],
            "txt_ids": z_t.new_zeros(prompt["context"].shape[1], 3),
            "img_ids": torch.cartesian_prod(*places),
            "return_dict": False,
        }

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
        (tokens,) = (network or self.transformer)(
            **self.inputs(seen, t, prompt),
            controlnet_block_samples=samples(residuals, BLOCK),
            controlnet_single_block_samples=samples(residuals, SINGLE),
        )
        return unpack(tokens, *z_t.shape[2:])

    def control_condition(self, net: Any, condition: Tensor) -> list[Tensor]:
        """Return the condition's packed latents, as diffusers' pipeline passes them: [(B, image tokens, width)]."""
        return [pack(self.condition_latents(condition)).to(condition)]

    def control_residuals(
        self, net: Any, state: Any, z_t: Tensor, t: Tensor, prompt: Prompt, prepared: list[Tensor]
    ) -> Residuals:
        """Return the ControlNet's block samples; it takes a guidance value where its own configuration says so."""
        guidance = t.new_full((len(t),), GUIDANCE) if net.config.guidance_embeds else None
        inputs = self.inputs(z_t, t, prompt) | {"guidance": guidance}
        blocks, singles = net(**inputs, controlnet_cond=prepared[0])
        named = {f"{BLOCK}.{k}": value for k, value in enumerate(blocks or ())}
        return Residuals(named | {f"{SINGLE}.{k}": value for k, value in enumerate(singles or ())})

    def per_block(self, residuals: Residuals) -> Residuals:
        """See `Backbone.per_block`; diffusers' rule is that block i takes number i // interval."""
        config, spread = self.transformer.config, dict[str, Tensor]()
        for part, blocks in ((BLOCK, config.num_layers), (SINGLE, config.num_single_layers)):
            if own := samples(residuals, part):
                spread |= {f"{part}.{i}": own[i // -(-blocks // len(own))] for i in range(blocks)}
        return Residuals(spread)

    def controlnet(
        self, condition_channels: int, *, pretrained: bool = True, device: torch.device | None = None
    ) -> nn.Module:
        """See `Backbone.controlnet`; of at most `BRANCH_BLOCKS` double-stream blocks."""
        from diffusers import FluxControlNetModel

        config = self.transformer.config
        packed = self.patch**2 * self.condition_latents_channels(condition_channels)
        interval = -(-config.num_layers // BRANCH_BLOCKS)  # base blocks that share a sample
        with torch.device(device or self.device), quiet_libraries(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # on a part of diffusers that its own class uses
            net: Any = FluxControlNetModel.from_transformer(
                self.transformer,
                num_layers=-(-config.num_layers // interval),  # one more would not be used
                num_single_layers=0,
                attention_head_dim=config.attention_head_dim,
                num_attention_heads=config.num_attention_heads,
                load_weights_from_transformer=pretrained,
            )
            if packed != config.in_channels:
                net.controlnet_x_embedder = nn.Linear(packed, net.inner_dim)
                nn.init.zeros_(net.controlnet_x_embedder.weight)
                nn.init.zeros_(net.controlnet_x_embedder.bias)
        return net

    def controlnet_class(self) -> Any:
        """See `Backbone.controlnet_class`."""
        from diffusers import FluxControlNetModel

        return FluxControlNetModel

    def controlnet_from(self, config: Mapping[str, Any], *, device: torch.device | None = None) -> Any:
        """See `Backbone.controlnet_from`."""
        base, whole = self.transformer.config, foreign.complete(self.controlnet_class(), config)
        named = ["in_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim"]
        foreign.check_same(whole, base, [*named, "pooled_projection_dim", "axes_dims_rope"])
        foreign.check_absent(
            whole,
            {
                "num_mode": "as union models, which are told their kind of condition at every call",
                "conditioning_embedding_channels": "as XLabs' models, which see pixels and not latents",
            },
        )
        foreign.check_at_most(whole, {name: base[name] for name in ("num_layers", "num_single_layers")})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # on a part of diffusers that its own class uses
            return foreign.built(self.controlnet_class(), whole, device or self.device)

    def controlnet_config(self, shapes: foreign.Shapes) -> dict[str, Any]:
        """See `Backbone.controlnet_config`."""
        config = foreign.transformer_config(self.controlnet_class(), self.transformer.config, shapes)
        hint = shapes.get("input_hint_block.conv_in.weight", (0, None))[1]
        return config | {
            "num_single_layers": foreign.count_singles(shapes),
            "guidance_embeds": any(name.startswith("time_text_embed.guidance_embedder.") for name in shapes),
            "num_mode": shapes.get("controlnet_mode_embedder.weight", (None,))[0],
            "conditioning_embedding_channels": hint,
        }


def pack(latents: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h/2 * w/2, 4 C): a token is a square of 2x2 cells, its four values of a channel together."""
    return nn.functional.pixel_unshuffle(latents, 2).flatten(2).mT


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, h/2 * w/2, 4 C) -> (B, C, h, w): the inverse of `pack`."""
    return nn.functional.pixel_shuffle(tokens.mT.unflatten(2, (height // 2, width // 2)), 2)


def samples(residuals: Residuals | None, part: str) -> list[Tensor] | None:
    """Return the block samples of one part in their order, None where there are none."""
    named = {} if residuals is None else residuals.tensors
    count = sum(name.startswith(f"{part}.") for name in named)
    return [named[f"{part}.{k}"] for k in range(count)] or None
