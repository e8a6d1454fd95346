"""How a base model is loaded, and what is known of its sampling."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, model_validator

from codi_hub.config.model import Options, option

CARD = ("distilled", "steps", "shift", "guidance")


def _texts(value: Any) -> tuple[str, ...]:
    return (str(value),) if isinstance(value, str | Path) else tuple(str(part) for part in value)


Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]
Text = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]


class BaseOptions(Options):
    """Where a base's files are, and its card: how it is sampled."""

    source: Text = option(...)
    """A diffusers folder, a hub cache's folder of a model, a .safetensors file, or a hub id such as owner/name."""
    vae: Text | None = option(None, "--vae", metavar="FILE|DIR")
    """Autoencoder in place of the source's own."""
    text_encoders: Texts = option((), "--text-encoder", metavar="FILE|DIR", repeats=True)
    """Text encoder in place of the source's own; repeat in the pipeline's order."""
    tokenizers: Texts = option((), "--tokenizer", metavar="DIR", repeats=True)
    """Tokenizer in place of the source's own; repeat in the pipeline's order."""
    config: Text | None = option(None, "--config", metavar="DIR|NAME")
    """Diffusers folder that gives the configs and tokenizers of a single file; sd15, sd21 (768 px, predicts v),
    sd21-base (512 px, predicts the noise) and sdxl are built in (default: recognised from the file)."""
    loras: Texts = option((), "--lora", metavar="FILE[:scale]", repeats=True)
    """LoRA to merge into the base, such as LCM's or Lightning's; repeat for more."""
    quantize: Literal["int8", "nf4", "gguf"] | None = option(None, "--quantize")
    """Load the frozen network in fewer bits."""
    revision: str | None = option(None)
    """Commit of a hub id (default: the newest when the base is added, kept from then on)."""
    variant: str | None = option(None, "--variant", metavar="NAME")
    """Variant of the weight files, such as fp16 (default: fp16 in 16-bit precision or where it is all there is)."""
    distilled: bool = option(False, "--distilled")
    """The base is made for few steps, as SDXL Turbo or Lightning (default: recognised where that is certain)."""
    steps: int | None = option(None, "--steps", ge=1, le=1000)
    """Number of sampling steps that a distilled base is made for (default: 4)."""
    shift: float | None = option(None, "--shift", gt=0)
    """Shift of the base's flow schedule."""
    guidance: float | None = option(None, "--guidance", ge=0)
    """Guidance value that a guidance-distilled base is given as an input, as FLUX.1-dev (default: the family's)."""

    @model_validator(mode="after")
    def _scales_are_numbers(self) -> Self:
        for path, scale in self.scaled_loras():
            if not math.isfinite(scale):
                raise ValueError(f"loras {path}:{scale:g}: its scale has to be a finite number")
        return self

    @classmethod
    def of(cls, row: Any) -> Self:
        """Return the options of a registered base (`BaseRow`)."""
        return cls(source=row.source, **row.options, **row.card)

    def stored(self) -> dict[str, Any]:
        """Return how it is loaded as JSON: what is no default, without the source and the card."""
        return self.model_dump(mode="json", exclude_defaults=True, exclude={"source", *CARD})

    def card(self) -> dict[str, Any]:
        """Return what is known of its sampling as JSON: what is no default."""
        return self.model_dump(mode="json", exclude_defaults=True, include=set(CARD))

    def absolute(self) -> Self:
        """Return a copy whose paths that exist are absolute; names and hub ids are left as they are."""
        return self.replace(
            source=_absolute(self.source),
            vae=self.vae and _absolute(self.vae),
            config=self.config and _absolute(self.config),
            text_encoders=[_absolute(path) for path in self.text_encoders],
            tokenizers=[_absolute(path) for path in self.tokenizers],
            loras=[":".join([_absolute(path), *scale]) for path, *scale in map(_split_scale, self.loras)],
        )

    def scaled_loras(self) -> list[tuple[Path, float]]:
        """Return file and scale of every LoRA."""
        return [(Path(path), float(scale[0]) if scale else 1.0) for path, *scale in map(_split_scale, self.loras)]


def _absolute(path: str) -> str:
    found = Path(path).expanduser()
    return str(found.resolve()) if found.exists() else path


def _split_scale(lora: str) -> list[str]:
    path, colon, scale = lora.rpartition(":")
    try:
        float(scale)
    except ValueError:
        return [lora]
    return [path, scale] if colon and path else [lora]
