"""How a base is sampled: few-step bases that are recognised, and the values that are set for a base."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from codi_hub.backbones.parts import ModelFiles
from codi_hub.config.base import BaseOptions
from codi_hub.diffusion.schedule import RectifiedFlow
from codi_hub.errors import UsageError

DISTILLED_STEPS = 4  # of a base that is distilled, and that nothing more is known of
SCHEDULERS = ("LCMScheduler", "TCDScheduler")  # which are of use for distilled models alone
PUBLISHED = {  # name of the hub model or file -> steps that it is made for
    "sd-turbo": 4,
    "sd_turbo": 4,
    "sdxl-turbo": 4,
    "sd_xl_turbo_1.0": 4,
    "sd_xl_turbo_1.0_fp16": 4,
    "stable-diffusion-3.5-large-turbo": 4,
    "sd3.5_large_turbo": 4,
    "flux.1-schnell": 4,
    "flux1-schnell": 4,
    "z-image-turbo": 8,
}
NUMBERED = re.compile(r"(?:lightning|hyper).*?(\d+)[-_ ]?steps?", re.IGNORECASE)  # as sdxl_lightning_4step_lora


def recognised(files: ModelFiles, options: BaseOptions) -> BaseOptions:
    """Return the options with `distilled` and `steps` where the files say so for certain, or it was asked for.

    By the scheduler's class, FLUX.1's lack of a guidance input and of a shift, or the name under which a model, a file
    or a LoRA was published.

    Raises:
        UsageError: steps for a base that is not distilled.
    """
    names = [_published_name(options.source), *(path.stem for path, _scale in options.scaled_loras())]
    steps = next((steps for name in names if (steps := _steps_of(name)) is not None), None)
    if steps is None and (options.distilled or files.classes.get("scheduler") in SCHEDULERS or _is_schnell(files)):
        steps = DISTILLED_STEPS
    if steps is None and options.steps:
        raise UsageError(
            f"steps {options.steps}: only a distilled base is made for some steps; set distilled, or leave it out"
        )
    return options if steps is None else options.replace(distilled=True, steps=options.steps or steps)


def _published_name(source: str) -> str:
    """Return the model's name in a path or hub id; in a hub's cache that is a part of a folder above."""
    cached = next((part for part in reversed(Path(source).parts) if part.startswith("models--")), None)
    return cached.split("--")[-1] if cached else Path(source).name.removesuffix(".safetensors")


def _steps_of(name: str) -> int | None:
    if match := NUMBERED.search(name):
        return int(match[1])
    return PUBLISHED.get(name.lower())


def _is_schnell(files: ModelFiles) -> bool:
    transformer, scheduler = (files.configs.get(name, {}) for name in ("transformer", "scheduler"))
    if files.classes.get("transformer") != "FluxTransformer2DModel" or transformer.get("guidance_embeds", True):
        return False
    return scheduler.get("shift") == 1.0 and not scheduler.get("use_dynamic_shifting", True)


def set_sampling(base: Any, options: BaseOptions) -> None:
    """Set the shift and the guidance of a loaded base, where the options have one.

    Raises:
        UsageError: the base has none.
    """
    if options.shift is not None:
        if not isinstance(base.schedule, RectifiedFlow):
            raise UsageError(f"shift {options.shift:g}: only flow bases have one; leave it out")
        base.schedule = replace(base.schedule, shift=options.shift)
    if options.guidance is not None:
        if base.guidance is None:
            raise UsageError(
                f"guidance {options.guidance:g}: the base takes no guidance value as an input; leave it out, and give "
                "guidance_scale to runs of adapters that were not distilled"
            )
        base.guidance = options.guidance
