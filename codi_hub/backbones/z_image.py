"""The `z-image` family: Z-Image and Z-Image-Turbo (Alibaba, 2025).

A single-stream transformer that predicts x - eps from 1 - t, FLUX's autoencoder, and a Qwen3 language model whose
hidden states are the prompt. Prompts differ in length: they are padded here, and cut again for the network.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from codi_hub.backbones.parts import ModelFiles, Parts
from codi_hub.backbones.prompts import excess
from codi_hub.backbones.sources import quiet_libraries
from codi_hub.backbones.transformer import TransformerBackbone
from codi_hub.backbones.usage import Usage
from codi_hub.backbones.values import Prompt, Residuals

TOKENS = 512  # most tokens of a prompt
PADDED = 32  # the network pads captions and images to multiples of so many tokens
BRANCH_BLOCKS = 6  # of the ControlNet, spread evenly over the network's layers
EMBEDDER = "2-1"  # patches of 2x2 cells, one frame


class ZImageBackbone(TransformerBackbone):
    """ZImageTransformer2DModel with Qwen3.

    Residuals are named by the layer they are added after, "0" to "n", each (B, tokens, width): of the image, then of
    the longest caption there can be. Beyond a row's own caption they are not used.
    """

    family: ClassVar[str] = "z-image"
    components: ClassVar[tuple[str, ...]] = ("transformer", "vae", "text_encoder", "tokenizer")
    pipeline_name: ClassVar[str] = "ZImagePipeline"
    usage: ClassVar[Usage | None] = Usage(
        "ZImageControlNetModel",
        "ZImageControlNetPipeline",
        arguments="guidance_scale=0.0",
    )
    input_layer: ClassVar[str] = f"all_x_embedder.{EMBEDDER}"
    cells_apart: ClassVar[bool] = True
    time_scale: ClassVar[float] = 1.0  # the network multiplies by 1000 itself
    negated: ClassVar[bool] = True

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        _, rows, columns = self.transformer.config.axes_lens
        self.latents = replace(self.latents, max_side=self.latents.multiple * min(rows, columns))

    @classmethod
    def matches(cls, files: ModelFiles) -> bool:
        """See `Backbone.matches`."""
        return files.classes.get("transformer") == "ZImageTransformer2DModel"

    @cached_property
    def text_pipeline(self) -> Any:
        """The family's diffusers pipeline with nothing but its text encoder, for its `encode_prompt`."""
        with quiet_libraries():
            from diffusers import ZImagePipeline

        return ZImagePipeline(scheduler=None, vae=None, transformer=None, **self.text_parts)

    def embed_texts(self, texts: Sequence[str]) -> Prompt:
        """See `Backbone.embed_texts`: `context` (B, tokens, width), zero where `mask` (B, tokens) is false."""
        tokens = min(TOKENS, self.tokenizers[0].model_max_length)
        with quiet_libraries():
            rows, _ = self.text_pipeline.encode_prompt(
                list(texts), device=self.device, do_classifier_free_guidance=False, max_sequence_length=tokens
            )
        context = torch.stack([nn.functional.pad(row, (0, 0, 0, tokens - len(row))) for row in rows])
        lengths = torch.tensor([len(row) for row in rows], device=context.device)
        return Prompt({"context": context, "mask": torch.arange(tokens, device=context.device) < lengths[:, None]})

    def unread_text(self, text: str) -> str:
        """See `Backbone.unread_text`."""
        chat = self.tokenizers[0].apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        return excess(self.tokenizers[0], chat, min(TOKENS, self.tokenizers[0].model_max_length))

    def inputs(self, z_t: Tensor, t: Tensor, prompt: Prompt) -> tuple[list[Tensor], Tensor, list[Tensor]]:
        """Return what the network and its ControlNet are given: latents (C, 1, h, w), times, captions."""
        lengths = prompt["mask"].sum(1).int().tolist()
        captions = [row[:length] for row, length in zip(prompt["context"], lengths, strict=True)]
        return list(z_t.unsqueeze(2)), self.schedule.model_time(t), captions

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
        images, times, captions = self.inputs(seen, t, prompt)
        samples = None
        if residuals is not None:
            length = padded(z_t[0, 0].numel() // self.patch**2) + padded(max(map(len, captions)))
            samples = {int(layer): value[:, :length] for layer, value in residuals.tensors.items()}
        (predicted,) = (network or self.transformer)(
            images, times, captions, controlnet_block_samples=samples, return_dict=False
        )
        return torch.stack(predicted).squeeze(2)

    def control_condition(self, net: Any, condition: Tensor) -> list[Tensor]:
        """Return the condition's latents, as diffusers' pipeline passes them: [(B, C, 1, h, w)]."""
        return [self.condition_latents(condition).to(condition).unsqueeze(2)]

    def control_residuals(
        self, net: Any, state: Any, z_t: Tensor, t: Tensor, prompt: Prompt, prepared: list[Tensor]
    ) -> Residuals:
        """Return the ControlNet's block samples, padded to the longest caption there can be."""
        images, times, captions = self.inputs(z_t, t, prompt)
        samples = with_modules_of(self.transformer, net)(images, times, captions, list(prepared[0]))
        length = padded(z_t[0, 0].numel() // self.patch**2) + padded(prompt["context"].shape[1])
        return Residuals({
            str(layer): nn.functional.pad(value, (0, 0, 0, length - value.shape[1])) for layer, value in samples.items()
        })  # fmt: skip

    def controlnet(
        self, condition_channels: int, *, pretrained: bool = True, device: torch.device | None = None
    ) -> nn.Module:
        """See `Backbone.controlnet`; it evaluates embedders and refiners of the base too, and does not hold them."""
        from diffusers import ZImageControlNetModel

        config, channels = self.transformer.config, self.condition_latents_channels(condition_channels)
        shared = ("dim", "n_refiner_layers", "n_heads", "n_kv_heads", "norm_eps", "qk_norm")
        places = list(range(0, config.n_layers, max(1, config.n_layers // BRANCH_BLOCKS)))
        with torch.device(device or self.device):
            net: Any = ZImageControlNetModel(
                control_layers_places=places, control_in_dim=channels, **{name: config[name] for name in shared}
            )
        net.gradient_checkpointing = False  # diffusers asks for it and does not set it
        if pretrained:
            self._copy_weights(net)
        return net

    @torch.no_grad()
    def _copy_weights(self, net: Any) -> None:
        """Copy layers, refiner and embedder of the base; columns for a condition's further channels stay random."""
        base = self.transformer
        for place, layer in zip(net.config.control_layers_places, net.control_layers, strict=True):
            layer.load_state_dict(base.layers[place].state_dict(), strict=False)
        net.control_noise_refiner.load_state_dict(base.noise_refiner.state_dict())
        mine, theirs = net.control_all_x_embedder[EMBEDDER], base.all_x_embedder[EMBEDDER]
        cells = self.patch**2  # the channels of a cell are neighbours in a token
        mine.weight.unflatten(1, (cells, -1))[..., : self.latents.channels] = theirs.weight.unflatten(1, (cells, -1))
        mine.bias.copy_(theirs.bias)


def with_modules_of(transformer: Any, net: Any) -> Any:
    """Return a view of a ControlNet that has the modules it takes from its base; `net` itself never holds them."""
    view = copy.copy(net)
    view._modules, view._parameters = dict(net._modules), dict(net._parameters)
    return type(net).from_transformer(view, transformer)


def padded(tokens: int) -> int:
    """Return a number of tokens rounded up as the network does."""
    return -(-tokens // PADDED) * PADDED
