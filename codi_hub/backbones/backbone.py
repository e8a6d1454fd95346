"""What the rest of the code knows of a base model: the `Backbone` protocol."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from codi_hub.backbones import autoencoder
from codi_hub.backbones.loras import merge_loras
from codi_hub.backbones.parts import ModelFiles, load_parts
from codi_hub.backbones.usage import Usage
from codi_hub.backbones.values import LatentSpec, Prompt, Residuals
from codi_hub.backbones.weight_sketch import Sketch, sketch_outer
from codi_hub.errors import Mismatch, UsageError

if TYPE_CHECKING:
    from codi_hub.backbones.fingerprint import Fingerprint
    from codi_hub.backbones.foreign import Shapes
    from codi_hub.diffusion.schedule import Schedule

PROMPT_CACHE = 1 << 28  # bytes of prompt embeddings kept: 64 prompts of FLUX.1-dev in 16 bit, 2,000 of SD 1.5
EMBED_BATCH = 64  # prompts per forward pass of the text encoders

ATTENTION_AND_FEED_FORWARD = r".*\.(attn\w*|attention|ff\w*|feed_forward)\..*"  # names of layers in diffusers' blocks


class Backbone(nn.Module, ABC):
    """A frozen base model: loading, text encoding, autoencoding, and one evaluation of its network.

    In evaluation mode and without gradients for its own weights. A family is one subclass in one file. Latents are
    those of diffusers' image autoencoder in `vae`; a family with another overrides what uses it.

    Attributes:
        family: the family's name, such as `sd`.
        components: diffusers' names of what it is loaded from.
        optional: those of them that a model may lack.
        network_name: name of the component that predicts, and of the attribute that holds it.
        input_layer: dotted name of the network's input layer, which kind `concat` widens; "" where it cannot be.
        cells_apart: whether that layer sees a patch cell by cell, every cell with all its channels, and not channel by
            channel.
        lora_layers: pattern of the names of the network's layers that get low-rank deltas.
        usage: diffusers' pipelines of the family, where its adapters can be exported.
        default_kind: adapter kind, unless the task, the user or a parent says otherwise; None: the method's.
        pipeline_name: diffusers' pipeline of the family, which knows its LoRA files; "" for a family without.
        schedule: alpha_t, sigma_t and the prediction type.
        latents: shape of its latents.
        guidance: of a guidance-distilled base, whose network takes a guidance scale as an input (`guidance_embeds` in
            its config): the one value that it is given in training and inference. None for all others.
    """

    family: ClassVar[str]
    components: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ()
    network_name: ClassVar[str] = "transformer"
    input_layer: ClassVar[str] = ""
    cells_apart: ClassVar[bool] = False
    lora_layers: ClassVar[str] = ATTENTION_AND_FEED_FORWARD
    usage: ClassVar[Usage | None] = None
    default_kind: ClassVar[str | None] = None
    guidance: float | None = None
    pipeline_name: ClassVar[str] = ""
    schedule: Schedule
    latents: LatentSpec

    def __init__(self) -> None:
        super().__init__()
        self._prompts: OrderedDict[str, Prompt] = OrderedDict()
        self._texts_released = False

    @classmethod
    @abstractmethod
    def matches(cls, files: ModelFiles) -> bool:
        """Whether a model is of this family."""

    @classmethod
    def load(cls, files: ModelFiles, dtype: torch.dtype) -> Self:
        """Load a model that matches: its components become the constructor's `Parts`.

        Raises:
            OSError, ValueError, Mismatch: damaged, or a network that wants inputs the family does not have.
        """
        names = [name for name in cls.components if name in files.classes or name not in cls.optional]
        parts = merge_loras(load_parts(files, names, dtype), files.loras, cls.pipeline_name, cls.network_name)
        return cls(parts)  # type: ignore[call-arg]

    @property
    def network(self) -> Any:
        """The network that predicts."""
        return getattr(self, self.network_name)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What tells it from other bases. Families whose constructor sets it need no `compute_fingerprint`."""
        return self.compute_fingerprint()

    @cached_property
    def outer_sketch(self) -> Sketch:
        """The part of the fingerprint's sketch that is of the text encoders and the autoencoder."""
        return sketch_outer(getattr(self, "text_encoders", ()), getattr(self, "vae", None))

    def compute_fingerprint(self) -> Fingerprint:
        """Compute the fingerprint from the weights as they are now."""
        raise NotImplementedError

    def schedule_for(self, height: int, width: int) -> Schedule:
        """Return the schedule for images of a size in pixels, where its shift depends on that."""
        return self.schedule

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.network.get_submodule(self.input_layer).weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network's weights."""
        return self.network.get_submodule(self.input_layer).weight.dtype

    def lora_targets(self) -> list[str]:
        """Return the names of the network's layers that get low-rank deltas; grouped convolutions have low rank."""
        unused = {name.removesuffix(".weight") for name in self.dead_ends(self.network)}
        named = self.network.named_modules()
        layers = [name for name, one in named if isinstance(one, nn.Linear | nn.Conv2d) and _groups(one) == 1]
        return [name for name in layers if re.fullmatch(self.lora_layers, name) and name not in unused]

    def dead_ends(self, net: Any) -> list[str]:
        """Return the names of tensors of a network or ControlNet that its result does not depend on."""
        return []

    def wider_config(self, further: int) -> dict[str, Any]:
        """Return the config of a plain network whose input layer takes further latent channels.

        Raises:
            Mismatch: the network's class has one number of channels for its input and its output.
        """
        config = dict(self.network.config)
        if "out_channels" not in config:
            raise Mismatch(f"{type(self.network).__name__} of diffusers cannot take more channels than it returns")
        inside = config["in_channels"]
        more = inside // self.latents.channels * further
        return config | {"in_channels": inside + more, "out_channels": config["out_channels"] or inside}

    @abstractmethod
    def embed_texts(self, texts: Sequence[str]) -> Prompt:
        """Encode texts, without a cache."""

    def encode(self, images: Tensor) -> Tensor:
        """Images in [0, 1], (B, 3, H, W) -> float32 latents of about unit variance, (B, C, h, w)."""
        return autoencoder.encode(self.vae, images)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents of about unit variance, (B, C, h, w) -> float32 images in [0, 1], (B, 3, H, W)."""
        return autoencoder.decode(self.vae, latents)

    def latents_digest(self) -> str:
        """Return a hash of what decides its latents: the autoencoder's encoding half and the latents' scale."""
        return autoencoder.digest(self.vae)

    @abstractmethod
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
        """Return what the network predicts at z_t, in the base's own parametrisation, (B, C, h, w).

        Args:
            z_t: latents in the network's dtype, (B, C, h, w).
            t: times in (0, 1], (B,).
            prompt: of B rows.
            residuals: what adapters add; without them this is the base alone.
            state: what `state` returned for the same arguments, not to be computed again.
            concat: further input channels (B, K, h, w), for a `network` with a wider input layer: they follow z_t's
                channels, before latents are packed or cut into patches.
            network: a network of the base's form that is evaluated in its place, such as an adapter's copy of it.
        """

    def with_further(self, z_t: Tensor, concat: Tensor | None, network: Any) -> Tensor:
        """Return the latents with the further input channels of `predict` after their own, (B, C + K, h, w).

        Raises:
            Mismatch: further channels for the base's own network, which takes none.
        """
        if concat is None:
            return z_t
        if network is None:
            raise Mismatch(f"bases of family {self.family} have no further input channels")
        return torch.cat([z_t, concat.to(z_t)], dim=1)

    def own_prediction(self, z_t: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
        """Return what the network predicts when it is called as its diffusers pipeline calls it, (B, C, h, w).

        `probe` compares it with `predict`. A family whose `predict` takes the network apart overrides this.
        """
        return self.predict(z_t, t, prompt)

    @abstractmethod
    def controlnet(
        self, condition_channels: int, *, pretrained: bool = True, device: torch.device | None = None
    ) -> nn.Module:
        """Return the family's own diffusers ControlNet for this base, its residuals zero at initialisation.

        Args:
            condition_channels: channels of the condition image.
            pretrained: copy the base's weights, or start from random ones.
            device: of the new tensors (default: the base's); `meta` for shapes alone.
        """

    def controlnet_class(self) -> Any:
        """Return the family's ControlNet class of diffusers, of which another tool's ControlNet can be used."""
        raise Mismatch(f"bases of family {self.family} take no ControlNet of another tool: distil the task on it")

    def controlnet_from(self, config: Mapping[str, Any], *, device: torch.device | None = None) -> Any:
        """Return a ControlNet of a configuration of its own, its weights random.

        Args:
            config: entries of `controlnet_class`; what is left out is that class's default.
            device: of the new tensors (default: the base's); `meta` for shapes alone.

        Raises:
            Mismatch: it is for another base, or takes what is not supported.
            InvalidInput: a configuration that the class cannot have.
        """
        raise NotImplementedError

    def controlnet_config(self, shapes: Shapes) -> dict[str, Any]:
        """Return the configuration of a ControlNet that came without one, from the names and shapes of its tensors."""
        raise NotImplementedError

    def control_condition(self, net: Any, condition: Tensor) -> list[Tensor]:
        """Return what the family's ControlNet takes as its condition, once per image, each (B, ...).

        Args:
            net: what `controlnet` returned.
            condition: images in [0, 1], (B, K, H, W).
        """
        raise self._no_controlnet()

    def control_residuals(
        self, net: Any, state: Any, z_t: Tensor, t: Tensor, prompt: Prompt, prepared: list[Tensor]
    ) -> Residuals:
        """Return the residuals of the family's ControlNet.

        Args:
            net: what `controlnet` returned.
            state, z_t, t, prompt: see `predict`.
            prepared: what `control_condition` returned.
        """
        raise self._no_controlnet()

    def per_block(self, residuals: Residuals) -> Residuals:
        """Return residuals with one entry for every block that takes one, so that branches of any depth add up."""
        return residuals

    def _no_controlnet(self) -> UsageError:
        return UsageError(f"adapter.kind control: diffusers has no ControlNet for bases of family {self.family}")

    def condition_latents(self, condition: Tensor) -> Tensor:
        """Encode a condition (B, K, H, W) in [0, 1] without loss of channels, float32 (B, K', h, w).

        The image is encoded to C latent channels. Every further channel, such as a mask, is folded into factor^2
        channels, one per pixel of a cell, in [-1, 1].
        """
        colours = 3 if condition.shape[1] > 2 else 1
        latents, more = self.encode_condition(condition.float()), condition[:, colours:]
        if not more.shape[1]:
            return latents
        folded = torch.nn.functional.pixel_unshuffle(2 * more.float() - 1, self.latents.factor)
        return torch.cat([latents, folded.to(latents)], dim=1)

    def condition_latents_channels(self, condition_channels: int) -> int:
        """Return the channels of `condition_latents`."""
        colours = 3 if condition_channels > 2 else 1
        return self.latents.channels + (condition_channels - colours) * self.latents.factor**2

    def encode_condition(self, condition: Tensor) -> Tensor:
        """Encode the image part of a condition, (B, K, H, W): its first three channels, or its first as gray."""
        return self.encode(condition[:, :3] if condition.shape[1] > 2 else condition[:, :1].expand(-1, 3, -1, -1))

    def state(self, z_t: Tensor, t: Tensor, prompt: Prompt, *, network: Any = None) -> Any:
        """Return what adapters may read of the network at z_t, computed once per evaluation.

        Of the frozen network it is without gradient. None for families whose adapters read nothing of it. A state has
        `rows(index)`.
        """
        return None

    def unread_text(self, text: str) -> str:
        """Return the end of a prompt that the text encoders do not read because it is too long, "" if there is none."""
        return ""

    def text_modules(self) -> list[nn.Module]:
        """Return the text encoders: the children whose names begin with `text_encoder`."""
        return [module for name, module in self.named_children() if name.startswith("text_encoder")]

    def release_text_encoders(self) -> None:
        """Free the device memory of the text encoders; `embed` brings them back for as long as it needs them."""
        self._texts_released = self.device.type != "cpu"
        for module in self.text_modules() if self._texts_released else []:
            module.to("cpu")

    @contextmanager
    def text_encoders_loaded(self) -> Iterator[None]:
        """Have the text encoders on the device within the context, also after `release_text_encoders`."""
        moved = self.text_modules() if self._texts_released else []
        try:
            for module in moved:
                module.to(self.device)
            yield
        finally:
            for module in moved:
                module.to("cpu")

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Prompt:
        """Return prompt embeddings of B rows; each text is encoded once while it stays in the cache."""
        if missing := [text for text in dict.fromkeys(prompts) if text not in self._prompts]:
            with self.text_encoders_loaded():
                self._embed_missing(missing)
        embedded = Prompt.cat([self._prompts[text] for text in prompts])
        if missing:
            kept = sum(row.nbytes for row in self._prompts.values())
            while kept > PROMPT_CACHE:
                kept -= self._prompts.popitem(last=False)[1].nbytes
        return embedded

    def unconditional(self) -> Prompt:
        """Return the embedding of no prompt, one row, as the base learned it: by default that of the empty text."""
        return self.embed([""])

    def _embed_missing(self, missing: Sequence[str]) -> None:
        for start in range(0, len(missing), EMBED_BATCH):
            texts = missing[start : start + EMBED_BATCH]
            rows = self.embed_texts(texts)
            self._prompts.update((text, rows.rows(slice(k, k + 1))) for k, text in enumerate(texts))


def _groups(layer: nn.Linear | nn.Conv2d) -> int:
    return layer.groups if isinstance(layer, nn.Conv2d) else 1
