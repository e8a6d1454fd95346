"""The `sdxl` family: SDXL, its Turbo, Lightning and distilled relatives (Podell et al., 2023).

Two text encoders, whose penultimate hidden states are concatenated, the second's pooled output, and six numbers that
tell the network the image's size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from codi_hub.backbones.parts import ModelFiles, Parts
from codi_hub.backbones.sources import quiet_libraries
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.backbones.usage import ComfyUI, Usage
from codi_hub.backbones.values import Prompt
from codi_hub.errors import Mismatch

SIZE_NUMBERS = 6  # original height and width, crop top and left, target height and width


class SDXLBackbone(UNetBackbone):
    """U-Net with `addition_embed_type=text_time`, and two text encoders.

    Raises:
        Mismatch: the refiner, which takes an aesthetic score and one text encoder.
    """

    family: ClassVar[str] = "sdxl"
    components: ClassVar[tuple[str, ...]] = (
        "unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2",
    )  # fmt: skip
    pipeline_name: ClassVar[str] = "StableDiffusionXLPipeline"
    usage: ClassVar[Usage | None] = Usage(
        "ControlNetModel",
        "StableDiffusionXLControlNetPipeline",
        condition="image",
        sees_latents=False,
        first="sample",
        comfyui=ComfyUI("EmptyLatentImage"),
    )
    addition_embed_type: ClassVar[tuple[str | None, ...]] = ("text_time",)
    default_cells: ClassVar[int] = 128

    def __init__(self, parts: Parts) -> None:
        check_pooled(parts["unet"].config, parts["text_encoder_2"].config.projection_dim)
        super().__init__(parts)

    @classmethod
    def matches(cls, files: ModelFiles) -> bool:
        """See `Backbone.matches`."""
        return files.configs.get("unet", {}).get("addition_embed_type") == "text_time"

    @classmethod
    def load(cls, files: ModelFiles, dtype: torch.dtype) -> Self:
        """See `UNetBackbone.load`."""
        if pooled := files.configs.get("text_encoder_2", {}).get("projection_dim"):
            check_pooled(files.configs["unet"], pooled)
        return super().load(files, dtype)

    @cached_property
    def text_pipeline(self) -> Any:
        """See `UNetBackbone.text_pipeline`."""
        with quiet_libraries():
            from diffusers import StableDiffusionXLPipeline

        encoders = {"text_encoder": self.text_encoders[0], "text_encoder_2": self.text_encoders[1]}
        tokenizers = {"tokenizer": self.tokenizers[0], "tokenizer_2": self.tokenizers[1]}
        return StableDiffusionXLPipeline(vae=None, unet=None, scheduler=None, **encoders, **tokenizers)

    def embed_texts(self, texts: Sequence[str]) -> Prompt:
        """See `Backbone.embed_texts`: `context` (B, tokens, both widths) and `pooled` (B, width)."""
        with quiet_libraries():
            context, _, pooled, _ = self.text_pipeline.encode_prompt(
                list(texts), device=self.device, do_classifier_free_guidance=False
            )
        return Prompt({"context": context, "pooled": pooled})

    def unconditional(self) -> Prompt:
        """Return zeros, with which SDXL was trained without a prompt (`force_zeros_for_empty_prompt` in diffusers)."""
        return Prompt({name: torch.zeros_like(value) for name, value in self.embed([""]).tensors.items()})

    def sized(self, prompt: Prompt, z_t: Tensor) -> Prompt:
        """Return the prompt with `time_ids` (B, 6): (H, W, 0, 0, H, W) in pixels."""
        height, width = (side * self.latents.factor for side in z_t.shape[2:])
        ids = torch.tensor([height, width, 0, 0, height, width], device=z_t.device, dtype=z_t.dtype)
        return Prompt(prompt.tensors | {"time_ids": ids.expand(len(z_t), -1)})


def check_pooled(unet: Mapping[str, Any], pooled: int) -> None:
    """Raise Mismatch where a U-Net does not take the pooled text and the image's size, as the refiner does not."""
    found = unet["projection_class_embeddings_input_dim"]
    expected = pooled + SIZE_NUMBERS * unet["addition_time_embed_dim"]
    if found != expected:
        raise Mismatch(
            f"this U-Net's pooled embedding has {found} channels, and SDXL's has {expected}: the refiner is not "
            "supported, use the base model"
        )
