"""An adapter as a ControlNet: a folder that plain diffusers loads, and whose predictions equal the adapter's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from safetensors import SafetensorError
from safetensors.torch import save_file

from codi_hub.adapters.controlnet import ControlAdapter
from codi_hub.adapters.format import CARD, RECORD, AdapterRecord, read_record
from codi_hub.adapters.sharing import Tensors, merged
from codi_hub.backbones.backbone import Backbone
from codi_hub.diffusion.schedule import VariancePreserving
from codi_hub.errors import CodiError, Mismatch, one_line
from codi_hub.interop.folders import new_folder

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"  # diffusers' names
FILES = (CONFIG, WEIGHTS, RECORD, CARD)
FAMILY = "sd"  # of the bases whose pipeline the README names

README = """---
library_name: diffusers
tags: [controlnet]
---
# {task}: a ControlNet for the base `{base}`

The adapter `{ref}` of CoDi Hub (kind `{kind}`, zero convolutions) as diffusers loads it. Method: {method}. It generates
images in {steps} steps by default, without classifier-free guidance.

It works on the base that it was trained on, of family `{family}` ({prediction}-prediction), and on no other.
`BASE` below is that base's folder or hub id.

```python
from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionControlNetPipeline

controlnet = ControlNetModel.from_pretrained(FOLDER)
pipe = StableDiffusionControlNetPipeline.from_pretrained(BASE, controlnet=controlnet, safety_checker=None)
pipe.scheduler = DDIMScheduler.from_config(
    pipe.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
)
image = pipe(prompt, image=condition, num_inference_steps={steps}, guidance_scale=1.0).images[0]
```

- `condition`: the input as CoDi Hub prepares it for the networks: {condition}, its sides multiples of {multiple}. The
  postprocessing of `codi run` (corrections, keeping what is outside a mask) is not part of this folder.
- `guidance_scale` must be 1: the adapter was trained without classifier-free guidance.
- The steps must begin at the noisiest timestep, as `trailing` ones do: {timesteps} for {steps}.
- With fresh noise between the steps (`--sampler renoise` of `codi run`), the scheduler is
  `LCMScheduler.from_config(pipe.scheduler.config, original_inference_steps={length}, clip_sample=False)`.

`{record}` is the adapter's own record: its method, every training that led to it, and its scores.
"""


def is_export(folder: Path) -> bool:
    """Whether a folder is an export and nothing else: any ControlNet has files of most of these names."""
    try:
        read_record(folder / RECORD)
        return all(path.name in FILES and path.is_file() for path in folder.iterdir())
    except (CodiError, OSError):
        return False


def check_exportable(record: AdapterRecord, ref: str) -> None:
    """Check that a ControlNet can be equal to an adapter.

    Raises:
        Mismatch: it cannot; the message says how to distil one that can be exported.
    """
    config, reason = record.config, ""
    if record.kind not in CONTROLNETS:
        reason = f"is of kind {one_line(record.kind, 40)}, which is not a ControlNet beside the base: use kind control"
    elif config.get("start", 1) != 1:
        reason = "starts from its condition, which a ControlNet's pipeline does not: use start 1"
    elif config.get("top_down"):
        reason = "has a top-down path beside its encoder, which a ControlNet does not have: train it anew"
    elif config.get("fusion") == "gate":
        reason = "is fused by gates, which a ControlNet does not have: use fusion zero_conv"
    elif record.kind == "static" and config.get("gain", True):
        reason = "weights its condition by the time, which a ControlNet does not: use kind static with gain false"
    if reason:
        raise Mismatch(f"{ref} {reason} to distil an adapter that can be exported")


def control(adapter: ControlAdapter) -> Tensors:
    """Return the encoder's tensors: it is a ControlNet."""
    return adapter.encoder.state_dict()


def lora(adapter: Any) -> Tensors:
    """Return the base's tensors with the deltas added."""
    return merged(adapter.encoder)


def static(adapter: Any) -> Tensors:
    """Return a ControlNet that does not depend on z_t, the time or the text.

    Its first layer is zero, its time embedding is that of t = 0, and its cross-attention adds zero.
    """
    net = adapter.encoder
    with torch.device("meta"):
        whole = ControlNetModel.from_config(net.config).state_dict()
    tensors = {name: torch.zeros(value.shape) for name, value in whole.items()} | net.state_dict()
    first = net.time_embedding.linear_1
    tensors["time_embedding.linear_1.weight"] = torch.zeros_like(first.weight)
    tensors["time_embedding.linear_1.bias"] = first(net.time_proj(torch.zeros(1)).to(first.weight))[0]
    return tensors


CONTROLNETS: dict[str, Callable[[Any], Tensors]] = {"control": control, "lora": lora, "static": static}
"""Kind of adapter -> the tensors of the ControlNet that it is on its base."""


def write(out: Path, adapter: Any, base: Backbone, record: Path, readme: str, *, overwrite: bool = False) -> None:
    """Write the folder: a ControlNet's configuration and weights in the base's dtype, its record, and a README.

    Raises:
        Conflict: see `folders.check_free`. CodiError: it could not be written.
    """
    with torch.no_grad():
        weights = CONTROLNETS[adapter.kind](adapter)
        tensors = {name: value.to("cpu", base.dtype).contiguous() for name, value in weights.items()}
    try:
        with new_folder(out, is_export, overwrite) as folder:
            adapter.encoder.save_config(folder)
            save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
            (folder / WEIGHTS).chmod(
                (folder / CONFIG).stat().st_mode
            )  # safetensors makes it readable by the owner only
            (folder / RECORD).write_bytes(record.read_bytes())
            (folder / CARD).write_text(readme, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or one_line(error, 160)
        raise CodiError(f"the export could not be written to {out}: {reason}") from error


def readme(record: AdapterRecord, base: Backbone, *, ref: str, base_name: str) -> str:
    """Return how the folder is used, in Markdown.

    Raises:
        Mismatch: a base of another family than Stable Diffusion 1 and 2.
    """
    schedule = base.schedule
    if base.family != FAMILY or not isinstance(schedule, VariancePreserving):
        raise Mismatch(f"{ref} is for a base of family {base.family}: only adapters of family {FAMILY} can be exported")
    channels = record.config.get("condition_channels", 3)
    timesteps = schedule.index(torch.tensor(schedule.grid(record.steps))).tolist()
    return README.format(
        task=record.task,
        base=base_name,
        ref=ref,
        kind=record.kind,
        method=record.method or "not recorded",
        steps=record.steps,
        family=record.base.family,
        prediction=record.prediction_type.removesuffix("_prediction"),
        condition="an RGB image" if channels == 3 else f"a tensor (1, {channels}, H, W) in [0, 1]",
        multiple=base.latents.multiple,
        timesteps=", ".join(map(str, timesteps)),
        length=len(schedule),
        record=RECORD,
    )
