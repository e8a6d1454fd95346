"""A ControlNet in one file and a workflow in ComfyUI's API format, with our sigmas, CFG 1 and a strength.

ComfyUI reads diffusers' names. The workflow's nodes are ComfyUI's own.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.usage import ComfyUI
from codi_hub.diffusion.schedule import VariancePreserving
from codi_hub.errors import Mismatch
from codi_hub.interop import diffusers, readme
from codi_hub.interop.export import Export
from codi_hub.interop.folders import CONFIG, WORKFLOW, Contents

LARGEST_SIGMA = 4518.84  # ComfyUI's in place of infinity, of a schedule with zero terminal SNR
SAMPLING = {"epsilon": "eps", "v_prediction": "v_prediction", "sample": "x0"}  # prediction type -> ComfyUI's name

NAMES = """Copy `{file}` into `ComfyUI/models/controlnet` and the base's checkpoint into `ComfyUI/models/checkpoints`.
`{workflow}` is a workflow in API format; ComfyUI opens it like an image's. The code below sends it to a running
ComfyUI at `SERVER`, such as `http://127.0.0.1:8188`; `BASE` is the checkpoint's name, `condition` that of an image in
`ComfyUI/input`."""
CODE = """import json
from pathlib import Path
from urllib.request import urlopen

workflow = json.loads(Path(FOLDER, "{workflow}").read_text())
workflow["base"]["inputs"]["ckpt_name"] = BASE
workflow["prompt"]["inputs"]["text"] = prompt
workflow["condition"]["inputs"]["image"] = condition
workflow["apply"]["inputs"]["strength"] = 1.0
workflow["sample"]["inputs"]["noise_seed"] = 0
urlopen(f"{{SERVER}}/prompt", json.dumps({{"prompt": workflow}}).encode())"""
NOTES = """- The condition is the input as CoDi Hub prepares it for the networks: an image, gray or RGB, of the output's
  size.
- `strength` of the node `apply` is `--strength` of `codi run`, from 0 (the base alone) to 1.
{guidance}
- `sigmas` are those of {steps} steps at {size}x{size} px; sampler `euler` walks them as `codi run` does. They are
  {meaning}. For 1, 2, 4 or 8 steps the node `BasicScheduler` with scheduler `simple` gives the same.
- The noise of a seed is ComfyUI's, not that of `codi run`: images are as good, and not the same."""
NO_GUIDANCE = "- `cfg` must be 1: the adapter was trained without classifier-free guidance."
GUIDANCE = """- `cfg` is `--guidance-scale` of `codi run`, and the node `negative` has its negative prompt. Above 1 it
  is classifier-free guidance, which a ControlNet that is not distilled mostly needs, as it needs more steps."""
TABLE = "noise over signal, as ComfyUI counts them for this base"
FLOW = "the shifted times: the shift of a node such as `ModelSamplingFlux` does not change them"


def _reader(export: Export) -> ComfyUI:
    """Return how ComfyUI runs the family's ControlNets. Raises Mismatch: it does not."""
    reader = readme.usage_of(export.base, export.ref).comfyui
    if reader is None:
        raise Mismatch(
            f"{export.ref} is for a base of family {export.base.family}, whose ControlNets ComfyUI does not read in "
            "diffusers' form: use format diffusers"
        )
    return reader


def contents(export: Export) -> Contents:
    """Return the file, the workflow, and the ControlNet's configuration for diffusers.

    Raises:
        Mismatch: a condition that is no image, or blocks that ComfyUI would place elsewhere.
    """
    _reader(export)
    readme.check_image(export.channels, export.ref, "ComfyUI")
    model, tensors = diffusers.in_rgb(*diffusers.controlnet(export.adapter))
    layers, blocks = export.base.network.config.get("num_layers"), model.config.get("num_layers")
    if layers and not _reader(export).fits(layers, blocks):
        raise Mismatch(
            f"{export.ref}: ComfyUI would add the {blocks} residuals after other blocks of a base with {layers} than "
            "diffusers does: use format diffusers"
        )
    flow = json.dumps(workflow(export), indent=1) + "\n"
    return {CONFIG: model.to_json_string(), WORKFLOW: flow, export.file: tensors}


def card(export: Export) -> str:
    """Return the README."""
    base, record = export.base, export.record
    table = isinstance(base.schedule, VariancePreserving)
    return readme.page(
        record,
        ref=export.ref,
        base_name=export.base_name,
        tag="controlnet",
        what="a ControlNet",
        form=", zero convolutions",
        reader="ComfyUI loads it",
        names=NAMES.format(file=export.file, workflow=WORKFLOW),
        code=CODE.format(workflow=WORKFLOW),
        notes=NOTES.format(
            guidance=GUIDANCE if readme.guided(record) else NO_GUIDANCE,
            steps=record.steps,
            size=base.latents.native_size,
            meaning=TABLE if table else FLOW,
        ),
    )


def sigmas(base: Backbone, steps: int) -> list[float]:
    """Return ComfyUI's sigmas of our time grid at the base's native size: sigma_t / alpha_t, or the times of a flow."""
    side = base.latents.native_size
    schedule = base.schedule_for(side, side)
    times = schedule.grid(steps)
    if not isinstance(schedule, VariancePreserving):
        return [*times, 0.0]
    alphas, noise = schedule.at(torch.tensor(times, dtype=torch.float64), torch.zeros(steps, dtype=torch.float64))
    ratios = (noise / alphas).clamp(max=LARGEST_SIGMA)
    return [*ratios.tolist(), 0.0]


def workflow(export: Export) -> dict[str, Any]:
    """Return the workflow, node by node; BASE.safetensors and condition.png stand for the user's files."""
    base, side = export.base, export.base.latents.native_size
    text, model, negative = "prompt", "base", ""
    nodes: dict[str, Any] = {
        "base": _node("CheckpointLoaderSimple", ckpt_name="BASE.safetensors"),
        "prompt": _node("CLIPTextEncode", clip=["base", 1], text=""),
        "controlnet": _node("ControlNetLoader", control_net_name=export.file),
        "condition": _node("LoadImage", image="condition.png"),
    }
    if base.guidance is not None:
        nodes["guidance"], text = _node("FluxGuidance", conditioning=[text, 0], guidance=base.guidance), "guidance"
    if readme.guided(export.record):
        nodes["negative"], negative = _node("CLIPTextEncode", clip=["base", 1], text=""), "negative"
    if isinstance(base.schedule, VariancePreserving):
        zero = base.schedule.alphas[-1].item() < 1e-6
        sampling = SAMPLING[base.schedule.prediction_type]
        nodes["noise"], model = _node("ModelSamplingDiscrete", model=["base", 0], sampling=sampling, zsnr=zero), "noise"
    return nodes | {
        "apply": _node(
            "ControlNetApplyAdvanced",
            positive=[text, 0],
            negative=[negative or text, 0],
            control_net=["controlnet", 0],
            image=["condition", 0],
            strength=1.0,
            start_percent=0.0,
            end_percent=1.0,
            **({"vae": ["base", 2]} if readme.usage_of(base, export.ref).sees_latents else {}),
        ),
        "latent": _node(_reader(export).latent, width=side, height=side, batch_size=1),
        "sampler": _node("KSamplerSelect", sampler_name="euler"),
        "sigmas": _node("ManualSigmas", sigmas=", ".join(f"{s:.7g}" for s in sigmas(base, export.record.steps))),
        "sample": _node(
            "SamplerCustom",
            model=[model, 0],
            add_noise=True,
            noise_seed=0,
            cfg=1.0,
            positive=["apply", 0],
            negative=["apply", 1],
            sampler=["sampler", 0],
            sigmas=["sigmas", 0],
            latent_image=["latent", 0],
        ),
        "decode": _node("VAEDecode", samples=["sample", 0], vae=["base", 2]),
        "save": _node("SaveImage", images=["decode", 0], filename_prefix="codi"),
    }


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
