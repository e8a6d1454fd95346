"""An adapter as a ControlNet: a folder that plain diffusers reads, and that predicts what the adapter does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from codi_hub.adapters import ControlAdapter
from codi_hub.adapters.format import CARD, RECORD, AdapterRecord, read_record
from codi_hub.backbones.backbone import Backbone
from codi_hub.diffusion.schedule import sampling_timesteps
from codi_hub.errors import CodiError, Mismatch, one_line
from codi_hub.interop.folders import new_folder

Tensors = dict[str, Tensor]

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"  # diffusers' names
FILES = (CONFIG, WEIGHTS, RECORD, CARD)

README = """---
library_name: diffusers
tags: [controlnet]
---
# {task}: a ControlNet for the base `{base}`

The adapter `{ref}` of CoDi Hub (kind `{kind}`, zero convolutions) in diffusers' form. It {made}, and makes
pictures in {steps} steps by default, without classifier-free guidance.

It works on the base that it was distilled on, of family `{family}` ({prediction}-prediction), and on no other.
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

- `condition`: what CoDi Hub makes of an input before the networks see it: {condition}, its sides multiples of
  {multiple}. What `codi run` does to the picture afterwards (corrections, keeping what is outside a hole) is not here.
- `guidance_scale` must be 1: it was trained to do without guidance.
- The steps must end at the noisiest timestep, as `trailing` ones do: {timesteps} for {steps}.
- With fresh noise between the steps (`--sampler renoise` of `codi run`), the scheduler is
  `LCMScheduler.from_config(pipe.scheduler.config, original_inference_steps={length}, clip_sample=False)`.

`{record}` is the adapter's own record: how it was trained, on what, and what it scored.
"""


def is_export(folder: Path) -> bool:
    """Whether a folder is an export and has nothing else: any ControlNet's files have most of these names."""
    try:
        read_record(folder / RECORD)
        return all(path.name in FILES and path.is_file() for path in folder.iterdir())
    except (CodiError, OSError):
        return False


def check_exportable(record: AdapterRecord, ref: str) -> None:
    """Raises Mismatch for an adapter that no ControlNet can be equal to."""
    if record.kind not in CONTROLNETS:
        raise Mismatch(
            f"{ref} is of kind {one_line(record.kind, 40)}, which a ControlNet beside the base cannot be: distil the "
            "task with --kind control to export it"
        )
    if record.config.get("start", 1) != 1:
        raise Mismatch(
            f"{ref} starts from its condition, which a ControlNet's pipeline does not: distil with --start 1 to "
            "export it"
        )
    if record.config.get("top_down"):
        raise Mismatch(
            f"{ref} has a way up beside its encoder, which a ControlNet does not have: distil the task without "
            "--top-down to export it"
        )
    if record.config.get("fusion") == "gate":
        raise Mismatch(
            f"{ref} is fused by gates, which a ControlNet does not have: distil the task with --fusion zero_conv to "
            "export it"
        )
    if record.kind == "static" and record.config.get("gain", True):
        raise Mismatch(
            f"{ref} weighs its condition by the time, which a ControlNet does not: distil the task with --kind static "
            "--no-gain to export it"
        )


def control(adapter: ControlAdapter, base: Backbone) -> Tensors:
    """It is a ControlNet."""
    return adapter.encoder.state_dict()


def lora(adapter: Any, base: Backbone) -> Tensors:
    """The base's weights with the deltas added."""
    parts = {path: part for path, part in adapter.encoder.named_modules() if "lora_" not in path}
    tensors: Tensors = {}
    for path, part in parts.items():
        held = part._parameters | vars(part)  # the base's tensors are attributes, no parameters
        tensors |= {f"{path}.{name}": value for name, value in held.items() if isinstance(value, Tensor)}
    tensors = {name.replace(".base_layer.", "."): value for name, value in tensors.items()}
    for path, part in parts.items():
        if isinstance(part, BaseTunerLayer):
            tensors[f"{path}.weight"] = tensors[f"{path}.weight"].float() + part.get_delta_weight("default").float()
    return tensors


def static(adapter: Any, base: Backbone) -> Tensors:
    """A ControlNet that is blind to z_t (its first layer is zero), to the time (its embedding is that of t = 0) and to
    the text (what attends to it adds nothing).
    """
    net = adapter.encoder
    with torch.device("meta"):
        whole = ControlNetModel.from_config(net.config).state_dict()
    tensors = {name: torch.zeros(value.shape) for name, value in whole.items()} | net.state_dict()
    first = net.time_embedding.linear_1
    tensors["time_embedding.linear_1.weight"] = torch.zeros_like(first.weight)
    tensors["time_embedding.linear_1.bias"] = first(net.time_proj(torch.zeros(1)).to(first.weight))[0]
    return tensors


CONTROLNETS: dict[str, Callable[[Any, Backbone], Tensors]] = {"control": control, "lora": lora, "static": static}
"""Kind of adapter -> the weights of the ControlNet that it is on its base."""


def write(out: Path, adapter: Any, base: Backbone, record: Path, readme: str, *, overwrite: bool = False) -> None:
    """Writes the folder: a ControlNet's configuration and weights in the base's dtype, its record, and a README.

    Raises:
        Conflict: see `folders.check_free`. CodiError: it could not be written.
    """
    with torch.no_grad():
        weights = CONTROLNETS[adapter.kind](adapter, base)
        tensors = {name: value.to("cpu", base.dtype).contiguous() for name, value in weights.items()}
    try:
        with new_folder(out, is_export, overwrite) as folder:
            adapter.encoder.save_config(folder)
            save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
            (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # safetensors' own is the owner's alone
            (folder / RECORD).write_bytes(record.read_bytes())
            (folder / CARD).write_text(readme, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or one_line(error, 160)
        raise CodiError(f"the export could not be written to {out}: {why}") from error


def readme(record: AdapterRecord, base: Backbone, *, ref: str, base_name: str) -> str:
    """How the folder is used, in Markdown."""
    channels = record.config.get("condition_channels", 3)
    picture = "an RGB picture" if channels == 3 else f"a tensor (1, {channels}, H, W) in [0, 1]"
    return README.format(
        task=record.task,
        base=base_name,
        ref=ref,
        kind=record.kind,
        made="was fine-tuned, not distilled" if record.method == "conditional" else "was distilled",
        steps=record.steps,
        family=record.base.family,
        prediction=record.prediction_type.removesuffix("_prediction"),
        condition=picture,
        multiple=base.latents.multiple,
        timesteps=", ".join(map(str, sampling_timesteps(record.steps, len(base.schedule)))),
        length=len(base.schedule),
        record=RECORD,
    )
