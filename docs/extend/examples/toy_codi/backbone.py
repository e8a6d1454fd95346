"""A model family: Sana (Xie et al., 2024), with diffusers' classes.

A transformer with linear attention, an autoencoder with 32 pixels per latent cell, and Gemma 2 for the text.
"""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from diffusers import SanaControlNetModel, SanaPipeline
from torch import Tensor, nn

from codi_hub.backbones.autoencoder import scale_and_shift
from codi_hub.backbones.parts import ModelFiles, Parts
from codi_hub.backbones.transformer import TransformerBackbone
from codi_hub.backbones.values import Prompt, Residuals
from codi_hub.errors import UsageError

BRANCH_BLOCKS = 7  # of the ControlNet: diffusers' default
INSTRUCTION = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default


class SanaBackbone(TransformerBackbone):
    """SanaTransformer2DModel, AutoencoderDC and Gemma 2.

    Residuals are a ControlNet's block samples, "0" to "n", each (B, image tokens, width), and "output", (B, C, h, w).
    """

    family = "sana"
    components = ("transformer", "vae", "text_encoder", "tokenizer")
    pipeline_name = "SanaPipeline"
    input_layer = "patch_embed.proj"

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        config, factor = self.transformer.config, self.latents.factor
        self.schedule = replace(self.schedule, time_scale=1000 * config.timestep_scale)
        self.latents = replace(
            self.latents, multiple=factor * config.patch_size, native_size=factor * config.sample_size
        )

    @classmethod
    def matches(cls, files: ModelFiles) -> bool:
        """Whether a model is of this family."""
        return files.classes.get("transformer") == "SanaTransformer2DModel"

    @cached_property
    def text_pipeline(self) -> SanaPipeline:
        """The pipeline with nothing but its text encoder, for its `encode_prompt`."""
        return SanaPipeline(transformer=None, vae=None, scheduler=None, **self.text_parts)

    def embed_texts(self, texts: Sequence[str]) -> Prompt:
        """Return `context` (B, tokens, width) and its `mask` (B, tokens), under the pipeline's instruction."""
        context, mask, *_ = self.text_pipeline.encode_prompt(
            list(texts), False, device=self.device, complex_human_instruction=INSTRUCTION
        )
        return Prompt({"context": context, "mask": mask})

    def encode(self, images: Tensor) -> Tensor:
        """Encode images in [0, 1], (B, 3, H, W), to latents (B, C, h, w)."""
        encoded = self.vae.encode((2 * images - 1).to(self.vae.device, self.vae.dtype))
        return encoded.latent.float() * scale_and_shift(self.vae)[0]

    def inputs(self, t: Tensor, prompt: Prompt) -> dict[str, Any]:
        """Return the arguments that the network and its ControlNet have in common."""
        return {
            "encoder_hidden_states": prompt["context"],
            "encoder_attention_mask": prompt["mask"],
            "timestep": self.schedule.model_time(t),
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
        """Return the velocity at z_t."""
        seen = self.with_further(z_t, concat, network)
        named = {} if residuals is None else dict(residuals.tensors)
        output = named.pop("output", None)
        samples = [named[str(k)] for k in range(len(named))] or None
        net = network or self.transformer
        (velocity,) = net(seen, **self.inputs(t, prompt), controlnet_block_samples=samples)
        return velocity if output is None else velocity + output

    def controlnet(
        self, condition_channels: int, *, pretrained: bool = True, device: torch.device | None = None
    ) -> nn.Module:
        """Return a SanaControlNetModel whose blocks start as the base's first ones; it takes conditions of an image."""
        base = self.transformer
        config = dict(base.config) | {"num_layers": min(BRANCH_BLOCKS, base.config.num_layers - 1)}
        if self.condition_latents_channels(condition_channels) != self.latents.channels:
            raise UsageError("adapter.kind control: Sana's ControlNet takes an image alone; use kind concat")
        with torch.device(device or self.device):
            net = SanaControlNetModel.from_config(config)
        if pretrained:
            net.load_state_dict(base.state_dict(), strict=False)
        return net

    def control_condition(self, net: Any, condition: Tensor) -> list[Tensor]:
        """Return the condition's latents, as the pipeline passes them: [(B, C, h, w)]."""
        return [self.condition_latents(condition).to(condition)]

    def control_residuals(
        self, net: Any, state: Any, z_t: Tensor, t: Tensor, prompt: Prompt, prepared: list[Tensor]
    ) -> Residuals:
        """Return the ControlNet's block samples."""
        (samples,) = net(z_t, controlnet_cond=prepared[0], **self.inputs(t, prompt))
        return Residuals({str(k): value for k, value in enumerate(samples)})
