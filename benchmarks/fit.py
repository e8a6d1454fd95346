"""Count the memory of trainings on large bases, without their weights: `python -m benchmarks.fit [BASE ...]`.

Networks are built from their configs without data, and a real training step runs through them. Writes a table into
docs/performance.md.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.__main__ import PAGE
from benchmarks.bases import SCHEDULER, TEXT, UNET, VAE
from codi_hub import adapters
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.flux import FluxBackbone
from codi_hub.backbones.parts import Parts
from codi_hub.backbones.sd3 import SD3Backbone
from codi_hub.backbones.sdxl import SDXLBackbone
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.backbones.values import Prompt
from codi_hub.backbones.z_image import ZImageBackbone
from codi_hub.config.distill import TrainingConfig
from codi_hub.losses import METHODS
from codi_hub.training.memory import (
    Estimate,
    adapter_without_data,
    estimate,
    trainer_without_data,
    unpacked,
    without_data,
)
from codi_hub.training.sizes import count_parameters

SECTION = re.compile(r"(?<=<!-- fit -->\n).*?(?=<!-- /fit -->)", re.DOTALL)
GB = 1e9
BIG_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32}
T5_XXL = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24, "vocab_size": 32128}
XL = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
MEDIUM = {
    "sample_size": 128,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
QWEN3_4B = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "use_dynamic_shifting": True}


@dataclass(frozen=True)
class Case:
    """A training: what `codi distill` is told, and the GB that it may take."""

    base: str
    kind: str
    size: int
    batch: int
    goal: float | None = None
    quantize: str | None = None
    training: dict[str, Any] = field(default_factory=lambda: {"checkpointing": True})


CASES = (
    Case("SD 1.5", "control", 512, 4, training={}),
    Case("SD 1.5", "control", 512, 4, 12.0),
    Case("SD 1.5", "control", 512, 4, training={"checkpointing": True, "optimizer": "adamw8bit", "ema": 0.0}),
    Case("SD 1.5", "lora", 512, 4),
    Case("SD 1.5", "concat", 512, 4),
    Case("SDXL", "control", 1024, 1),
    Case("SDXL", "lora", 1024, 1, 14.0),
    Case("SDXL", "concat", 1024, 1, 14.0),
    Case("SDXL", "concat", 1024, 1, quantize="int8"),
    Case("SD 3.5 medium", "concat", 1024, 1),
    Case("FLUX.1-dev", "concat", 1024, 1),
    Case("FLUX.1-dev", "concat", 1024, 1, quantize="int8"),
    Case("FLUX.1-dev", "concat", 1024, 1, 24.0, quantize="nf4"),
    Case("Z-Image", "concat", 1024, 1),
    Case("Z-Image", "concat", 1024, 1, quantize="int8"),
)


@dataclass(frozen=True)
class Model:
    """A base whose networks are on `meta`; `prompt` has the shapes of a prompt's embeddings."""

    family: Any
    parts: Parts
    prompt: dict[str, tuple[int, ...]]


def clip(projection: bool = False, **config: Any) -> nn.Module:
    """Return a CLIP text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    settings = CLIPTextConfig(**config, projection_dim=config["hidden_size"])
    return CLIPTextModelWithProjection(settings) if projection else CLIPTextModel(settings)


def sd15() -> Model:
    """Return Stable Diffusion 1.5 as its configs describe it."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    parts = {"unet": UNet2DConditionModel(**UNET), "vae": AutoencoderKL(**VAE), "text_encoder": clip(**TEXT)}
    return Model(UNetBackbone, Parts(parts, SCHEDULER), {"context": (77, 768)})


def sdxl() -> Model:
    """Return SDXL as its configs describe it."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    parts = {
        "unet": UNet2DConditionModel(**XL),
        "vae": AutoencoderKL(**VAE | {"sample_size": 1024, "scaling_factor": 0.13025}),
        "text_encoder": clip(**TEXT),
        "text_encoder_2": clip(True, **BIG_G),
    }
    return Model(SDXLBackbone, Parts(parts, SCHEDULER), {"context": (77, 2048), "pooled": (1280,)})


def flux() -> Model:
    """Return FLUX.1-dev as its configs describe it."""
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    sixteen = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
    parts = {
        "transformer": FluxTransformer2DModel(guidance_embeds=True),
        "vae": AutoencoderKL(**VAE | sixteen | {"scaling_factor": 0.3611, "shift_factor": 0.1159}),
        "text_encoder": clip(**TEXT),
        "text_encoder_2": T5EncoderModel(T5Config(**T5_XXL, feed_forward_proj="gated-gelu")),
    }
    return Model(FluxBackbone, Parts(parts, FLOW), {"context": (512, 4096), "pooled": (768,)})


def sd35() -> Model:
    """Return Stable Diffusion 3.5 medium as its configs describe it."""
    from diffusers import AutoencoderKL, SD3Transformer2DModel
    from transformers import T5Config, T5EncoderModel

    sixteen = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
    parts = {
        "transformer": SD3Transformer2DModel(**MEDIUM),
        "vae": AutoencoderKL(**VAE | sixteen | {"scaling_factor": 1.5305, "shift_factor": 0.0609}),
        "text_encoder": clip(True, **TEXT),
        "text_encoder_2": clip(True, **BIG_G),
        "text_encoder_3": T5EncoderModel(T5Config(**T5_XXL, feed_forward_proj="gated-gelu")),
    }
    return Model(SD3Backbone, Parts(parts, FLOW), {"context": (333, 4096), "pooled": (2048,)})


def z_image() -> Model:
    """Return Z-Image as its configs describe it."""
    from diffusers import AutoencoderKL, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    sixteen = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
    parts = {
        "transformer": ZImageTransformer2DModel(axes_lens=[1536, 512, 512]),
        "vae": AutoencoderKL(**VAE | sixteen | {"scaling_factor": 0.3611, "shift_factor": 0.1159}),
        "text_encoder": Qwen3Model(Qwen3Config(**QWEN3_4B)),
    }
    return Model(ZImageBackbone, Parts(parts, FLOW), {"context": (512, 2560), "mask": (512,)})


BASES: dict[str, Callable[[], Model]] = {
    "SD 1.5": sd15,
    "SDXL": sdxl,
    "SD 3.5 medium": sd35,
    "FLUX.1-dev": flux,
    "Z-Image": z_image,
}


@cache
def base_of(name: str) -> tuple[Backbone, FakeTensorMode]:
    """Return a base in bfloat16 without data, and the mode of its tensors."""
    with torch.device("meta"):
        model = BASES[name]()
    base = model.family(model.parts)
    base.to(torch.bfloat16).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    without_data(base, mode)
    prompt = Prompt({name: torch.ones(1, *shape, dtype=torch.bfloat16) for name, shape in model.prompt.items()})
    base.embed_texts = lambda texts: prompt.rows([0] * len(texts))
    return base, mode


@cache
def count(name: str, kind: str, size: int, batch: int, options: tuple[tuple[str, Any], ...]) -> tuple[Estimate, int]:
    """Return the memory of a training on a base that is not quantised, and the number of trained parameters."""
    base, mode = base_of(name)
    adapter = adapter_without_data(kind, base, mode, {})
    cls = METHODS.load("pe-codi")
    method = cls(cls.Config(), torch.device("cpu"))
    settings = TrainingConfig(train_steps=1, batch=batch, **dict(options))
    trainer = trainer_without_data(base, adapter, method, settings, (3, size), "bf16")
    return estimate(trainer, size), count_parameters(adapter)


def line(case: Case) -> str:
    """Return a row of the table."""
    memory, adapter = count(case.base, case.kind, case.size, case.batch, tuple(case.training.items()))
    memory = replace(memory, base=memory.base + unpacked(base_of(case.base)[0], case.quantize))
    options = ", ".join(
        f"{k} {v:g}" if isinstance(v, float) else k if v is True else str(v) for k, v in case.training.items()
    )
    goal = f"{'reached' if memory.total <= case.goal * GB else 'missed'}: {case.goal:g} GB" if case.goal else ""
    kept = memory.adapter + memory.average + memory.teacher + memory.optimiser
    cells = [
        f"{case.base}, {case.size} px, batch {case.batch}",
        f"{case.quantize or 'bf16'}",
        case.kind,
        options,
        f"{adapter / 1e6:.0f} M",
        *(f"{value / GB:.2f}" for value in (memory.base, kept, memory.step, memory.encoding, memory.total)),
        goal,
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Count the cases and update the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bases", nargs="*", help=f"of {', '.join(BASES)} (default: all); with names nothing is written")
    names = parser.parse_args().bases
    warnings.simplefilter("ignore")
    known = [case for case in CASES if case.kind in adapters.KINDS and (not names or case.base in names)]
    head = [
        "| training | base | kind | options | trained | base, GB | adapter | step | encoding | total | goal |",
        "|-|-|-|-|-:|-:|-:|-:|-:|-:|-|",
    ]
    print(*head, sep="\n")
    rows = []
    for case in known:
        rows.append(line(case))
        print(rows[-1], flush=True)
    if not names:
        PAGE.write_text(SECTION.sub(lambda _: "\n".join([*head, *rows, ""]), PAGE.read_text()))


if __name__ == "__main__":
    main()
