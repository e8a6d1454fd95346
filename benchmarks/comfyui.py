"""Compare exported ControlNets with ComfyUI's own loader: `python -m benchmarks.comfyui PATH_TO_COMFYUI [FAMILY ...]`.

Needs a checkout of ComfyUI with its requirements installed in this environment, up to 6 GB of memory, and no weights:
ControlNets of the real shapes of SD 1.5 and SDXL, of SD3's and SD3.5's small, and of FLUX.1's with one block are made
with random weights, written as `codi export` writes them, and loaded by ComfyUI's `load_controlnet`. It prints the
class that ComfyUI chose and the largest difference of a residual, relative to the largest residual, in float32; and
that the sigmas of the workflow are ComfyUI's own. It ends with 1 where one is over 1e-5.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import ControlNetModel, FluxControlNetModel, SD3ControlNetModel
from diffusers.configuration_utils import FrozenDict
from safetensors.torch import save_file
from torch import Tensor

from codi_hub.backbones.flux import FluxBackbone
from codi_hub.backbones.sd3 import SD3Backbone
from codi_hub.backbones.sdxl import SDXLBackbone
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.backbones.values import Prompt
from codi_hub.diffusion.schedule import RectifiedFlow, VariancePreserving
from codi_hub.interop import comfyui, diffusers, ldm_keys

LIMIT, SIGMA_LIMIT = 1e-5, 1e-4
CELLS, TIME, STRENGTH, STEPS = (16, 24), 0.75, 0.5, (1, 2, 4, 8)
SD_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclass(frozen=True)
class Case:
    """A family's ControlNet.

    Attributes:
        make: returns it, in diffusers' class.
        backbone: our class of the family.
        schedule: of its bases.
        sampling: names of ComfyUI's classes of the sigmas and of the prediction, and the shift of a flow.
        prompt: shapes of a prompt of two rows.
        latents: channels of a latent.
        vae: scale and shift of the autoencoder's latents; None where the ControlNet sees pixels.
        repeats: base blocks that share a residual in ComfyUI.
    """

    make: Callable[[], Any]
    backbone: Any
    schedule: Any
    sampling: tuple[str, str, dict[str, float]]
    prompt: Mapping[str, tuple[int, ...]]
    latents: int = 4
    vae: tuple[float, float] | None = None
    repeats: int = 1


def sd() -> Any:
    """Return SD 1.5's."""
    return ControlNetModel(cross_attention_dim=768, attention_head_dim=8)


def sdxl() -> Any:
    """Return SDXL's."""
    return ControlNetModel(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        block_out_channels=(320, 640, 1280),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        use_linear_projection=True,
        cross_attention_dim=2048,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def sd3(**changes: Any) -> Any:
    """Return one of two blocks for a base of four; ComfyUI takes a base to have as many as its heads of 64 channels."""
    config = {"num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 64, "joint_attention_dim": 4096}
    config |= {"caption_projection_dim": 256, "pooled_projection_dim": 2048, "pos_embed_max_size": 96}
    return SD3ControlNetModel(sample_size=64, extra_conditioning_channels=0, **(config | changes))


def flux() -> Any:
    """Return FLUX.1-dev's with one of four blocks."""
    return FluxControlNetModel(num_layers=1, num_single_layers=0, guidance_embeds=True)


TABLE = VariancePreserving.from_config(SD_NOISE | {"_class_name": "DDIMScheduler", "prediction_type": "epsilon"})
EPS = ("ModelSamplingDiscrete", "EPS", {})
SD3 = Case(
    sd3, SD3Backbone, RectifiedFlow(3.0), ("ModelSamplingDiscreteFlow", "CONST", {"shift": 3.0}),
    {"context": (2, 20, 4096), "pooled": (2, 2048)}, 16, (1.5305, 0.0609), repeats=2,
)  # fmt: skip
CASES = {
    "sd": Case(sd, UNetBackbone, TABLE, EPS, {"context": (2, 77, 768)}),
    "sdxl": Case(sdxl, SDXLBackbone, TABLE, EPS, {"context": (2, 77, 2048), "pooled": (2, 1280)}),
    "sd3": SD3,
    "sd3.5": Case(
        lambda: sd3(qk_norm="rms_norm", dual_attention_layers=(0,)), SD3.backbone, SD3.schedule, SD3.sampling,
        SD3.prompt, SD3.latents, SD3.vae, SD3.repeats,
    ),
    "flux": Case(
        flux, FluxBackbone, RectifiedFlow(3.1, time_scale=1.0), ("ModelSamplingFlux", "CONST", {"shift": 1.1314}),
        {"context": (2, 20, 4096), "pooled": (2, 768)}, 16, (0.3611, 0.1159), repeats=19,
    ),
}  # fmt: skip


def inputs(case: Case) -> tuple[Tensor, Tensor, Tensor, Prompt]:
    """Return latents, a condition as pixels, what an autoencoder makes of it, and a prompt, of two rows."""
    generator = torch.Generator().manual_seed(1)
    h, w = CELLS
    z_t = torch.randn(2, case.latents, h, w, generator=generator)
    pixels = torch.rand(2, 3, 8 * h, 8 * w, generator=generator)
    encoded = torch.randn(2, case.latents, h, w, generator=generator)
    prompt = Prompt({name: torch.randn(shape, generator=generator) for name, shape in case.prompt.items()})
    return z_t, pixels, encoded, prompt


def lively(net: Any) -> Any:
    """Return a ControlNet whose last layers are not zero."""
    for value in net.parameters():
        if value.ndim > 1 and not value.any():
            torch.nn.init.normal_(value, std=value[0].numel() ** -0.5)
    return net.eval().requires_grad_(False)


def ours(case: Case, net: Any) -> list[Tensor]:
    """Return the residuals that our code computes, in the order of the base's blocks."""
    z_t, pixels, encoded, prompt = inputs(case)
    t = torch.full((2,), TIME)
    base = object.__new__(case.backbone)
    torch.nn.Module.__init__(base)
    base.schedule, base.guidance = case.schedule, 3.5
    base.latents = SimpleNamespace(factor=8, channels=case.latents)
    if case.vae is not None:
        scale, shift = case.vae
        base.vae = SimpleNamespace(config=FrozenDict(scaling_factor=scale, shift_factor=shift))
        base.encode_condition = lambda condition: scale * (encoded - shift)
    prepared = base.control_condition(net, pixels)
    state = SimpleNamespace(prompt=base.sized(prompt, z_t)) if case.vae is None else None
    residuals = base.control_residuals(net, state, z_t, t, prompt, prepared)
    return [STRENGTH * value for value in residuals.tensors.values()]


def theirs(comfy: Any, case: Case, file: Path) -> tuple[str, list[Tensor]]:
    """Return the class that ComfyUI chooses for a file, and the residuals that it computes."""
    control = comfy.controlnet.load_controlnet(str(file))
    z_t, pixels, encoded, prompt = inputs(case)
    spread, prediction, shift = case.sampling
    kind = type("Sampling", (getattr(comfy.model_sampling, spread), getattr(comfy.model_sampling, prediction)), {})
    sampling = kind()
    if shift:
        sampling.set_parameters(**shift)
    vae = SimpleNamespace(spacial_compression_encode=lambda: 8, encode=lambda image: encoded)
    control.set_cond_hint(pixels, STRENGTH, (0.0, 1.0), vae if case.vae else None)
    control.model_sampling_current = sampling
    sigma, x = torch.full((2,), TIME), z_t
    if case.vae is None:
        sigma = sampling.sigmas[[round(1000 * TIME) - 1]].expand(2)
        x = z_t * (1 + sigma.view(-1, 1, 1, 1) ** 2).sqrt()
    cond = {"c_crossattn": prompt["context"], "guidance": torch.full((2,), 3.5)}
    if "pooled" in prompt:
        cond["y"] = prompt["pooled"]
        if case.vae is None:
            embed = comfy.openaimodel.Timestep(256)
            sizes = torch.tensor([8 * CELLS[0], 8 * CELLS[1], 0, 0, 8 * CELLS[0], 8 * CELLS[1]])
            cond["y"] = torch.cat([cond["y"], embed(sizes).flatten().expand(2, -1)], dim=1)
    with torch.no_grad():
        out = control.get_control(x, sigma, cond, 1, {})
    return type(control.control_model).__module__, [*(out["input"] + out["output"])[:: case.repeats], *out["middle"]]


def compare(comfy: Any, name: str, case: Case, folder: Path) -> bool:
    """Print a line for each file of a family; return whether all agree."""
    torch.manual_seed(0)
    adapter = SimpleNamespace(kind="control", encoder=lively(case.make()))
    expected = ours(case, adapter.encoder)
    with torch.no_grad():
        _, tensors = diffusers.controlnet(adapter)
        files = {"diffusers, comfyui": tensors}
        if isinstance(adapter.encoder, ControlNetModel):
            files["ldm"] = {f"{ldm_keys.PREFIX}{k}": value for k, value in ldm_keys.to_original(tensors).items()}
    agree = True
    for form, content in files.items():
        file = folder / "controlnet.safetensors"
        save_file({key: value.contiguous() for key, value in content.items()}, file)
        chosen, found = theirs(comfy, case, file)
        largest = max(value.abs().max().item() for value in expected)

        pairs = zip(expected, found, strict=True)
        difference = max((a - b).abs().max().item() for a, b in pairs) / largest
        agree &= difference <= LIMIT
        print(f"{name:6} {form:18} {chosen:28} {len(found)} residuals, difference {difference:.1e}")
    return agree


def compare_sigmas(comfy: Any, name: str, case: Case) -> bool:
    """Print whether ComfyUI's scheduler `simple` gives the sigmas of our workflow."""
    spread, prediction, shift = case.sampling
    kind = type("Sampling", (getattr(comfy.model_sampling, spread), getattr(comfy.model_sampling, prediction)), {})
    sampling = kind()
    if shift:
        sampling.set_parameters(**shift)
    base: Any = SimpleNamespace(latents=SimpleNamespace(native_size=512), schedule_for=lambda *size: case.schedule)
    largest = 0.0
    for steps in STEPS:
        values = comfy.samplers.simple_scheduler(sampling, steps)
        mine = torch.tensor(comfyui.sigmas(base, steps))
        largest = max(largest, ((values - mine).abs() / mine.clamp(min=1)).max().item())
    print(f"{name:6} sigmas of {', '.join(map(str, STEPS))} steps: difference {largest:.1e}")
    return largest <= SIGMA_LIMIT


def load_comfyui(path: Path) -> Any:
    """Return ComfyUI's modules, on the CPU."""
    sys.path.insert(0, str(path))
    importlib.import_module("comfy.cli_args").args.cpu = True
    names = ("controlnet", "model_sampling", "samplers")
    modules = {name: importlib.import_module(f"comfy.{name}") for name in names}
    openaimodel = importlib.import_module("comfy.ldm.modules.diffusionmodules.openaimodel")
    return SimpleNamespace(openaimodel=openaimodel, **modules)


def main() -> None:
    """Compare the families that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path, help="folder of ComfyUI's code, with its requirements installed")
    parser.add_argument("family", nargs="*", help=f"of {', '.join(CASES)}; default: all")
    arguments = parser.parse_args()
    if not (arguments.comfyui / "comfy" / "controlnet.py").is_file():
        parser.error(f"{arguments.comfyui} has no comfy/controlnet.py: name a checkout of ComfyUI")
    try:
        comfy = load_comfyui(arguments.comfyui.resolve())
    except ImportError as error:
        parser.error(f"ComfyUI needs {error.name}: install its requirements.txt into this environment")
    agree = True
    for name in arguments.family or CASES:
        with tempfile.TemporaryDirectory() as folder:
            agree &= compare(comfy, name, CASES[name], Path(folder))
        agree &= compare_sigmas(comfy, name, CASES[name])
    sys.exit(not agree)


if __name__ == "__main__":
    main()
