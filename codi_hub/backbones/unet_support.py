"""Which U-Nets can be a base. The others are refused by name, from their configs alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from codi_hub.errors import Mismatch

SUPPORTED = "use a plain text-to-image model like SD 1.x, SD 2.x or SDXL"
# Entries of a U-Net's config that change what it takes, with what they stand for.
INPUTS = {
    "class_embed_type": "a class embedding",
    "num_class_embeds": "class labels, as upscalers have",
    "encoder_hid_dim": "a projection of its text",
    "encoder_hid_dim_type": "a projection of its text or of an image, as an IP-Adapter adds",
    "time_embedding_act_fn": "another time embedding",
    "timestep_post_act": "another time embedding",
    "time_cond_proj_dim": "a guidance embedding, as distilled LCM models have",
    "center_input_sample": "an input that it rescales",
}
CHANNELS = {9: "an inpainting", 8: "an InstructPix2Pix", 5: "a depth-to-image", 7: "an upscaling"}


def check_unet(unet: Mapping[str, Any], vae: Mapping[str, Any], addition_embed_type: Sequence[str | None]) -> None:
    """Refuse U-Nets that want inputs their family does not have.

    Args:
        unet, vae: configs.
        addition_embed_type: what that entry may be.

    Raises:
        Mismatch: naming the entry.
    """
    wrong = {name: meaning for name, meaning in INPUTS.items() if unet.get(name)}
    if unet.get("addition_embed_type") not in addition_embed_type:
        wrong["addition_embed_type"] = "another embedding"
    if unet.get("attention_type", "default") != "default":
        wrong["attention_type"] = "layers for grounded generation (GLIGEN)"
    if unet.get("mid_block_type", "") is None:
        wrong["mid_block_type"] = "no middle block"
    for name, meaning in wrong.items():
        raise Mismatch(f"this U-Net has {name}={unet[name]!r}, {meaning}: {SUPPORTED}")
    takes, latents = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if takes != latents:
        found = f"this U-Net takes {takes} channels and its autoencoder makes {latents}"
        if takes < latents:
            raise Mismatch(f"{found}: they are of different models, use the autoencoder that belongs to it")
        kind = f"{CHANNELS[takes]} model" if takes in CHANNELS else "a model with further inputs"
        raise Mismatch(f"{found}, as in {kind}: use the text-to-image model that it was made from")


def check_text_width(unet: Mapping[str, Any], width: int) -> None:
    """Raise Mismatch where the text encoders' width is not what the U-Net's cross-attention takes."""
    takes = unet["cross_attention_dim"]
    takes = {takes} if isinstance(takes, int) else set(takes)
    if takes != {width}:
        raise Mismatch(
            f"this U-Net reads texts of width {', '.join(map(str, sorted(takes)))} and its text encoder makes {width}: "
            "the two are of different models, use the text encoder that belongs to it"
        )
