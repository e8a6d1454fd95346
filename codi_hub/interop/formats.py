"""The formats of `codi export`, by name: each is a module's `check`, `contents` and README."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from codi_hub.adapters.concat import ConcatAdapter
from codi_hub.errors import Mismatch
from codi_hub.interop import comfyui, diffusers, ldm, peft, readme
from codi_hub.interop.export import Export
from codi_hub.interop.folders import Contents
from codi_hub.record import AdapterRecord


@dataclass(frozen=True)
class Format:
    """How an adapter is written for another tool.

    Attributes:
        check: (record, its reference); raises Mismatch for what the format cannot hold, before networks are loaded.
        contents: files by name, beside the README and the record.
        readme: the README.
    """

    check: Callable[[AdapterRecord, str], None]
    contents: Callable[[Export], Contents]
    readme: Callable[[Export], str]


def _controlnets(record: AdapterRecord, ref: str) -> None:
    diffusers.check_exportable(record, ref)
    if record.kind == ConcatAdapter.kind:
        raise Mismatch(f"{ref} is of kind concat, which is no ControlNet beside the base: use format diffusers")


FORMATS: dict[str, Format] = {
    "diffusers": Format(
        diffusers.check_exportable,
        lambda export: diffusers.contents(export.adapter, export.base),
        lambda export: readme.readme(export.record, export.base, ref=export.ref, base_name=export.base_name),
    ),
    "ldm": Format(_controlnets, ldm.contents, ldm.card),
    "comfyui": Format(_controlnets, comfyui.contents, comfyui.card),
    "peft": Format(peft.check, peft.contents, peft.card),
}
