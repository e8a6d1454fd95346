"""The README of an export: how plain diffusers runs it, as code that works as it stands."""

from __future__ import annotations

from typing import Any

import torch

from codi_hub.adapters.concat import ConcatAdapter
from codi_hub.backbones import autoencoder
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.usage import Usage
from codi_hub.diffusion.schedule import VariancePreserving
from codi_hub.errors import Mismatch
from codi_hub.record import DISTILLED_METHODS, RECORD, AdapterRecord

README = """---
library_name: diffusers
tags: [{tag}]
---
# {task}: {what} for the base `{base}`

The adapter `{ref}` of CoDi Hub (kind `{kind}`{form}) as {reader}. Method: {method}. It generates
images in {steps} steps by default, without classifier-free guidance.

It works on the base that it was trained on, of family `{family}` ({prediction}), and on no other.
{names}

```python
{code}
```

{notes}

`{record}` is the adapter's own record: its method, every training that led to it, and its scores.
"""
ORIGINAL = 'controlnet = {controlnet}.from_single_file(f"{{FOLDER}}/{file}", config=FOLDER)'
# Not `from_single_file`, which leaves out the embedding of the pooled text and the size (diffusers 0.42.1).
ORIGINAL_POOLED = """from codi_hub.interop import ldm_keys
from safetensors.torch import load_file

tensors = load_file(f"{{FOLDER}}/{file}")
tensors = {{name.removeprefix("control_model."): value for name, value in tensors.items()}}
controlnet = {controlnet}.from_config({controlnet}.load_config(FOLDER))
controlnet.load_state_dict(ldm_keys.to_diffusers(tensors))"""
BASE = "`BASE` below is that base's folder or hub id."
A1111 = """Copy the file into the `ControlNet` folder of A1111 (or Forge): any preprocessor may be chosen that makes the
condition, weight 1, sampler DDIM, CFG scale 1. `BASE` below is that base's folder or hub id."""
CONTROLNET = {
    "tag": "controlnet",
    "what": "a ControlNet",
    "form": ", zero convolutions",
    "reader": "diffusers loads it",
    "names": BASE,
}
ORIGINAL_NAMES = CONTROLNET | {"reader": "one file with the original names, `{file}`", "names": A1111}
WIDER = CONTROLNET | {"tag": "{network}", "what": "a wider {network}", "form": ", merged"}
LORA = WIDER | {"tag": "lora", "what": "a LoRA on a wider {network}", "form": "", "reader": "PEFT loads it"}
CONDITION = """- `condition`: the input as CoDi Hub prepares it for the networks: {condition}, its sides
  multiples of {multiple}. The postprocessing of `codi run` (corrections, keeping what is outside a mask) is not part of
  this folder."""
STRENGTH = """- `controlnet_conditioning_scale` is `--strength` of `codi run`, from 0 (the base alone) to 1."""
NO_STRENGTH = "- `--strength` of `codi run`, which lies between the base and the adapter, has no counterpart here."
NO_GUIDANCE = "- `guidance_scale` must be {guidance}: the adapter was trained without classifier-free guidance."
GUIDANCE = """- `{name}` with `negative_prompt` is `--guidance-scale` of `codi run`. Above 1 it is classifier-free
  guidance, which a ControlNet that is not distilled mostly needs, as it needs more steps."""
TABLE_STEPS = """- The steps must begin at the noisiest timestep, as `trailing` ones do: {timesteps} for {steps}.
- With fresh noise between the steps (`--sampler renoise` of `codi run`), the scheduler is
  `LCMScheduler.from_config(pipe.scheduler.config, original_inference_steps={length}, clip_sample=False)`."""
FLOW_STEPS = """- `sigmas` are evenly spaced: the pipeline's scheduler shifts them to the times of `codi run`.
  Without them diffusers' own spacing wastes a step."""
TRAILING = """pipe.scheduler = DDIMScheduler.from_config(
    pipe.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
)"""


def readme(
    record: AdapterRecord, base: Backbone, *, ref: str, base_name: str, file: str | None = None, lora: bool = False
) -> str:
    """Return how the folder is used with diffusers, in Markdown.

    Args:
        file: name of a single file with the weights.
        lora: a wider network is the base's, with a LoRA of PEFT.

    Raises:
        Mismatch: a base whose pipelines cannot run it.
    """
    usage, wider, steps = usage_of(base, ref), record.kind == ConcatAdapter.kind, record.steps
    channels = record.config.get("condition_channels", 3)
    if not wider and usage.sees_latents:
        check_image(channels, ref, usage.control_pipeline)
    words = LORA if lora else WIDER if wider else ORIGINAL_NAMES if file else CONTROLNET
    return page(
        record,
        ref=ref,
        base_name=base_name,
        code=wider_code(base, usage, steps, channels, lora) if wider else control_code(base, usage, steps, file),
        notes=_notes(base, record, usage, _condition(channels, wider), NO_STRENGTH if wider else STRENGTH),
        **{name: text.format(network=base.network_name, file=file) for name, text in words.items()},
    )


def usage_of(base: Backbone, ref: str) -> Usage:
    """Return how diffusers' pipelines run adapters of a base's family. Raises Mismatch: there is none."""
    if base.usage is None:
        raise Mismatch(f"{ref} is for a base of family {base.family}, which diffusers has no pipeline for")
    return base.usage


def check_image(channels: int, ref: str, reader: str) -> None:
    """Raise Mismatch where a condition is no image, gray or of three channels."""
    if channels not in (1, 3):
        raise Mismatch(
            f"{ref} takes conditions of {channels} channels, and {reader} takes images alone: use kind concat to "
            "distil an adapter that can be exported"
        )


def page(record: AdapterRecord, *, base_name: str, **texts: str) -> str:
    """Return a README from a record and what is particular to a format."""
    return README.format(
        task=record.task,
        base=base_name,
        kind=record.kind,
        method=record.method or "not recorded",
        steps=record.steps,
        family=record.base.family,
        prediction=record.prediction_type.removesuffix("_prediction") + "-prediction",
        record=RECORD,
        **texts,
    )


def control_code(base: Backbone, usage: Usage, steps: int, file: str | None = None) -> str:
    """Return the code that runs a ControlNet, from a folder or from a single file in it."""
    loader = f"controlnet = {usage.controlnet}.from_pretrained(FOLDER)"
    if file:
        pooled = base.network.config.get("addition_embed_type")
        loader = (ORIGINAL_POOLED if pooled else ORIGINAL).format(controlnet=usage.controlnet, file=file)
    table = isinstance(base.schedule, VariancePreserving)
    names = sorted([usage.controlnet, usage.control_pipeline, *(["DDIMScheduler"] if table else [])])
    loading = ", ".join(filter(None, ["BASE", "controlnet=controlnet", usage.loading]))
    size = [] if table else ["width, height = condition.size"]
    arguments = ["prompt", f"{usage.condition}=condition", *([] if table else ["height=height", "width=width"])]
    arguments += ["controlnet_conditioning_scale=1.0"]
    lines = [
        f"from diffusers import {', '.join(names)}",
        "",
        loader,
        f"pipe = {usage.control_pipeline}.from_pretrained({loading})",
        *([TRAILING] if table else []),
        *size,
        f"image = pipe({', '.join([*arguments, *_sampling(table, usage, steps)])}).images[0]",
    ]
    return "\n".join(lines)


def wider_code(base: Any, usage: Usage, steps: int, channels: int, lora: bool = False) -> str:
    """Return the code that runs a network with further input channels: it takes the place of the pipeline's own."""
    table, network, (scale, shift) = (
        isinstance(base.schedule, VariancePreserving),
        type(base.network).__name__,
        autoencoder.scale_and_shift(base.vae),
    )
    colours = "condition[:, :3]" if channels > 2 else "condition[:, :1].expand(-1, 3, -1, -1)"
    encoded = "latent_dist.mean" if hasattr(base.vae.config, "latent_channels") else "latents"
    further = channels - (3 if channels > 2 else 1)
    names = sorted([network, base.pipeline_name, *(["DDIMScheduler"] if table else [])])
    masks = [
        f"masks = torch.nn.functional.pixel_unshuffle(2 * condition[:, -{further}:] - 1, {base.latents.factor})",
        "latents = torch.cat([latents, masks], dim=1)",
    ]
    packed, first = usage.packing, usage.first
    joined = f"torch.cat([{first}, latents], dim={-1 if packed else 1})"
    loading = ", ".join(filter(None, ["BASE", usage.loading]))
    arguments = ["prompt", "height=height", "width=width", *_sampling(table, usage, steps)]
    lines = [
        "import torch",
        f"from diffusers import {', '.join(names)}",
        *(["from peft import PeftModel"] if lora else []),
        "",
        f"pipe = {base.pipeline_name}.from_pretrained({loading})",
        *([TRAILING] if table else []),
        *(_widened(base, network, channels) if lora else [f"network = {network}.from_pretrained(FOLDER)"]),
        "height, width = condition.shape[2:]",
        "with torch.no_grad():",
        f"    encoded = pipe.vae.encode(2 * {colours} - 1).{encoded}",
        f"latents = (encoded - {shift:g}) * {scale:g}",
        *(masks if further else []),
        *([packed] if packed else []),
        f"pipe.{base.network_name}.forward = lambda {first}, *args, **named: network({joined}, *args, **named)",
        f"image = pipe({', '.join(arguments)}).images[0]",
    ]
    return "\n".join(lines)


def _widened(base: Backbone, network: str, channels: int) -> list[str]:
    """Return the code that widens the base's input layer by columns of zeros, and loads a LoRA onto it."""
    further, weight = base.condition_latents_channels(channels), f"{base.input_layer}.weight"
    config = {name: base.wider_config(further)[name] for name in ("in_channels", "out_channels")}
    columns = config["in_channels"] - base.network.config["in_channels"]
    return [
        f"network = {network}.from_config(dict(pipe.{base.network_name}.config) | {config})",
        f"weights = pipe.{base.network_name}.state_dict()",
        f'weight = weights["{weight}"]',
        f"zeros = weight.new_zeros(len(weight), {columns}, *weight.shape[2:])",
        f'weights["{weight}"] = torch.cat([weight, zeros], dim=1)',
        "network.load_state_dict(weights)",
        "network = PeftModel.from_pretrained(network, FOLDER)",
    ]


def _sampling(table: bool, usage: Usage, steps: int) -> list[str]:
    sigmas = ", ".join(f"{k / steps:g}" for k in range(steps, 0, -1))
    return [f"num_inference_steps={steps}", *([] if table else [f"sigmas=[{sigmas}]"]), usage.arguments]


def _condition(channels: int, wider: bool) -> str:
    if not wider and channels in (1, 3):
        return "an RGB image" if channels == 3 else "a gray image, as RGB"
    return f"a tensor (1, {channels}, H, W) in [0, 1]"


def guided(record: AdapterRecord) -> bool:
    """Return whether an adapter can be run with classifier-free guidance."""
    return record.method not in DISTILLED_METHODS


def _guidance(base: Backbone, record: AdapterRecord, usage: Usage) -> str:
    """Return what the pipeline's guidance scale is to be; of guidance-distilled bases the true one has its own name."""
    if guided(record):
        return GUIDANCE.format(name="guidance_scale" if base.guidance is None else "true_cfg_scale")
    scale = usage.arguments.partition("guidance_scale=")[2] or "1"
    return NO_GUIDANCE.format(guidance=scale.removesuffix(".0"))


def _notes(base: Backbone, record: AdapterRecord, usage: Usage, condition: str, strength: str) -> str:
    schedule, steps = base.schedule, record.steps
    notes = [
        CONDITION.format(condition=condition, multiple=base.latents.multiple),
        _guidance(base, record, usage),
        strength,
    ]
    if isinstance(schedule, VariancePreserving):
        timesteps = schedule.index(torch.tensor(schedule.grid(steps))).tolist()
        notes.append(TABLE_STEPS.format(steps=steps, timesteps=", ".join(map(str, timesteps)), length=len(schedule)))
    else:
        notes.append(FLOW_STEPS)
    return "\n".join(notes)
