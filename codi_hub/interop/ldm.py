"""A ControlNet in one file with the original names (LDM): what A1111 and `from_single_file` of diffusers read."""

from __future__ import annotations

from codi_hub.errors import InvalidInput, Mismatch
from codi_hub.interop import diffusers, ldm_keys, readme
from codi_hub.interop.export import Export
from codi_hub.interop.folders import CONFIG, Contents

CONTROLNET = "ControlNetModel"  # diffusers' class of the ControlNets that have original names


def contents(export: Export) -> Contents:
    """Return the file, and the configuration of the ControlNet for diffusers.

    Raises:
        Mismatch: a family whose ControlNets were never written with original names, a condition that is no image, or
            parts that original files do not have.
    """
    if readme.usage_of(export.base, export.ref).controlnet != CONTROLNET:
        raise Mismatch(
            f"{export.ref} is for a base of family {export.base.family}, whose ControlNets have no original names: use "
            "format comfyui or diffusers"
        )
    readme.check_image(export.channels, export.ref, "A1111")
    model, tensors = diffusers.in_rgb(*diffusers.controlnet(export.adapter))
    try:
        renamed = ldm_keys.to_original(tensors)
    except InvalidInput as error:
        raise Mismatch(f"{export.ref} cannot be written with original names: {error}") from error
    named = {f"{ldm_keys.PREFIX}{name}": value for name, value in renamed.items()}
    return {CONFIG: model.to_json_string(), export.file: named}


def card(export: Export) -> str:
    """Return the README."""
    return readme.readme(export.record, export.base, ref=export.ref, base_name=export.base_name, file=export.file)
