"""What the transformer families share: their components, a flow schedule, latents in patches, and a fingerprint."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from torch import nn

from codi_hub.backbones import autoencoder
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.fingerprint import Fingerprint, family_hash
from codi_hub.backbones.parts import Parts
from codi_hub.backbones.values import LatentSpec
from codi_hub.backbones.weight_sketch import shapes_of
from codi_hub.diffusion.schedule import RectifiedFlow

TEXT_STREAM = (
    "attn.add_q_proj",
    "attn.norm_added_q",
    "attn.to_add_out",
    "ff_context",
)  # what the text alone goes through


class TransformerBackbone(Backbone):
    """A transformer with a flow schedule that sees an image autoencoder's latents in patches.

    Attributes:
        patch: latent cells along a side of one token.
        native_cells: side in latent cells of the images it was trained on.
        time_scale, negated: see `RectifiedFlow`.
        text_parts: the text encoders and tokenizers there are, by their names in diffusers' pipelines.
    """

    patch: ClassVar[int] = 2
    native_cells: ClassVar[int] = 128
    time_scale: ClassVar[float] = 1000.0
    negated: ClassVar[bool] = False
    default_kind: ClassVar[str | None] = "concat"
    schedule: RectifiedFlow

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.transformer, self.vae = parts["transformer"], parts["vae"]
        self.text_parts = parts.named("text_encoder") | parts.named("tokenizer")
        self.text_encoders = nn.ModuleList(parts.named("text_encoder").values())
        self.tokenizers = [*parts.named("tokenizer").values()]
        self.schedule = RectifiedFlow.from_config(parts.scheduler, time_scale=self.time_scale, negated=self.negated)
        factor = autoencoder.factor(self.vae)
        channels = self.vae.config.latent_channels
        self.latents = LatentSpec(channels, factor, factor * self.patch, factor * self.native_cells)
        self.requires_grad_(False).eval()

    def schedule_for(self, height: int, width: int) -> RectifiedFlow:
        """See `Backbone.schedule_for`."""
        h, w = self.latents.size(height, width)
        return self.schedule.for_tokens((h // self.patch) * (w // self.patch))

    def dead_ends(self, net: Any) -> list[str]:
        """See `Backbone.dead_ends`: the last joint block's text stream, where no later block sees the text."""
        blocks = getattr(net, "transformer_blocks", ())
        if not len(blocks) or len(getattr(net, "single_transformer_blocks", ())):
            return []
        unused = tuple(f"transformer_blocks.{len(blocks) - 1}.{part}." for part in TEXT_STREAM)
        return [name for name, _ in net.named_parameters() if name.startswith(unused)]

    def compute_fingerprint(self) -> Fingerprint:
        """See `Backbone.compute_fingerprint`; the architecture, the schedule and the latents' scale are the family."""
        shifts = [round(cast(float, self.schedule.for_tokens(tokens).shift), 4) for tokens in (256, 4096)]
        scale = [round(value, 4) for value in autoencoder.scale_and_shift(self.vae)]
        family = family_hash(shapes_of(self.network), self.schedule.prediction_type, shifts, scale)
        return Fingerprint.of(family, self.network, self.outer_sketch)
