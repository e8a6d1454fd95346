"""Follow a base through every command in every form of its files: `python -m benchmarks.agreement [FAMILY ...]`.

`codi base add`, `task add`, `distill --train-steps 20`, `run --steps 4`, `export`, and the export in the family's own
diffusers pipeline, by the code of its README. The models are those of the tests: tiny, with random weights. Writes a
table into docs/bases.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT)]

import families  # noqa: E402 - of the tests' support
import single_files  # noqa: E402
import tiny  # noqa: E402
from exports import run_readme  # noqa: E402

from codi_hub import backbones, cli, seeds  # noqa: E402
from codi_hub.inference.engine import gaussian  # noqa: E402

PAGE = ROOT / "docs" / "bases.md"
TABLE = re.compile(r"(?<=<!-- forms -->\n).*?(?=<!-- /forms -->)", re.DOTALL)
UP, DOWN = (".lora_up.", ".lora_B."), (".lora_down.", ".lora_A.")
SIZE, PROMPT, STEPS = 32, "a red ball", 4
TRAINING = ["--kind", "control", "--train-steps", "20", "--size", str(SIZE), "--batch", "2", "--lr", "1e-2"]
TRAINING += ["--precision", "fp32", "--workers", "1", "--sample-every", "0", "--device", "cpu"]

Source = tuple[Path, list[str | Path]]
"""A base's source, and the flags of `codi base add` that go with it."""


def sd(folder: Path, prediction_type: str, **unet: Any) -> Path:
    """Write a tiny Stable Diffusion model with all files of a pipeline, and return its folder."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    config = tiny.scheduler_config(prediction_type)
    model = tiny.save_base(
        folder / "parts", config, vae="kl", addition_embed_type=None, layers_per_block=2, **unet
    )  # fmt: skip
    base: Any = backbones.load(str(model))
    pipeline = StableDiffusionPipeline(
        base.vae, base.text_encoders[0], base.tokenizers[0], base.unet, DDIMScheduler.from_config(config), None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "model")
    return folder / "model"


MODELS: dict[str, Callable[[Path], Path]] = {
    "SD 1.5": lambda folder: sd(folder, "epsilon"),
    "SD 2.1": lambda folder: sd(folder, "v_prediction", use_linear_projection=True),
    "SDXL": families.sdxl,
    "SD 3.5": families.sd3,
    "FLUX.1-dev": families.flux,
    "Z-Image": families.z_image,
}
ORIGINAL: dict[str, Callable[[Any], dict[str, torch.Tensor]]] = {
    "SD 1.5": lambda base: single_files.sd1_tensors(base.unet, base.vae, *base.text_encoders),
    "SD 2.1": lambda base: single_files.sd2_tensors(base.unet, base.vae, *base.text_encoders),
    "SDXL": lambda base: single_files.sdxl_tensors(base.unet, base.vae, *base.text_encoders),
    "SD 3.5": single_files.sd3_tensors,
    "FLUX.1-dev": lambda base: base.transformer.state_dict(),
    "Z-Image": lambda base: single_files.z_image_tensors(base.transformer),
}


def folder(model: Path, work: Path, base: Any, name: str) -> Source:
    """Return the folder itself."""
    return model, []


def fp16_variant(model: Path, work: Path, base: Any, name: str) -> Source:
    """Write weight files of the variant fp16 alone."""
    return resaved(model, work / "model", variant="fp16", dtype=torch.float16), []


def shards(model: Path, work: Path, base: Any, name: str) -> Source:
    """Write weights in several files with an index."""
    return resaved(model, work / "model", max_shard_size="40KB"), []


def hub_cache(model: Path, work: Path, base: Any, name: str) -> Source:
    """Write a model as the hub's cache holds it."""
    root = work / "models--owner--tiny"
    shutil.copytree(model, root / "snapshots" / "0123abc")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0123abc")
    return root, []


def single_file(model: Path, work: Path, base: Any, name: str) -> Source:
    """Write one file with the original names of the tensors; configs and tokenizers from a folder without weights."""
    file = single_files.write(work / "model.safetensors", ORIGINAL[name](base))
    configs = Path(shutil.copytree(model, work / "configs", ignore=shutil.ignore_patterns("*.safetensors")))
    alone = name in ("FLUX.1-dev", "Z-Image")  # the transformer's file has neither autoencoder nor text encoders
    encoders = sorted(path for path in model.iterdir() if path.name.startswith("text_encoder")) if alone else []
    parts = [flag for path in encoders for flag in ("--text-encoder", path)]
    return file, ["--config", configs, *(["--vae", model / "vae"] if alone else []), *parts]


def merged_lora(model: Path, work: Path, base: Any, name: str) -> Source:
    """Return a folder, and write a LoRA to be merged into it: kohya's for U-Nets, PEFT's for transformers."""
    layer = next(name for name in base.lora_targets() if name.endswith("to_q"))
    if base.network_name == "unet":
        tensors = single_files.kohya_lora(base.network, "lora_unet", [layer])
    else:
        tensors = single_files.peft_lora(base.network, "transformer.", [layer])
    file = single_files.write(work / "lora.safetensors", tensors)
    return model, ["--lora", f"{file}:0.5"]


FORMS = [folder, fp16_variant, shards, hub_cache, single_file, merged_lora]


def resaved(model: Path, out: Path, *, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """Save a model once more, in another form, with diffusers."""
    from diffusers import DiffusionPipeline

    DiffusionPipeline.from_pretrained(model, torch_dtype=dtype).save_pretrained(out, **options)
    return out


def codi(*args: str | Path) -> dict[str, Any]:
    """Run a command; return its JSON. Raises RuntimeError with what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main([str(arg) for arg in (*args, "--json")])
        except SystemExit as stopped:
            if stopped.code:
                raise RuntimeError(f"codi {' '.join(map(str, args))}: {err.getvalue()}") from None
    return dict(json.loads(out.getvalue()))


def follow(source: Source, model: Path, work: Path) -> tuple[int, float]:
    """Take a base through every command; return the largest difference in 8-bit levels, and the output's deviation."""
    os.environ["CODI_HOME"] = str(work / "home")
    path, flags = source
    codi("base", "add", "mine", path, *flags)
    codi("base", "use", "mine")
    codi("task", "add", "tinted", "--like", "pairs")
    rng = np.random.default_rng(0)
    for k in range(6):
        for side, shift in (("condition", 0), ("target", 40)):
            (work / "data" / side).mkdir(parents=True, exist_ok=True)
            pixels = np.clip(np.full((SIZE, SIZE, 3), rng.integers(40, 200, 3)) + shift, 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(work / "data" / side / f"{k}.png")
    codi("distill", "tinted", "--data", work / "data", *TRAINING)
    image = work / "in.png"
    Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(image)
    run = ["run", "tinted", image, "--prompt", PROMPT, "--steps", str(STEPS), "--dtype", "fp32", "--device", "cpu"]
    codi(*run, "-o", work / "out.png")
    codi("export", "tinted", "-o", work / "net", "--dtype", "fp32")
    ours = np.asarray(Image.open(work / "out.png").convert("RGB"))
    theirs = in_diffusers(work / "net", model, Image.open(image), flags)
    return int(np.abs(ours.astype(int) - theirs).max()), float(ours.std())


def in_diffusers(net: Path, model: Path, condition: Image.Image, flags: list[str | Path]) -> np.ndarray:
    """Run the code of an export's README on the noise that `codi run` takes; return 8-bit pixels."""

    def prepare(pipe: Any) -> None:
        pipe.set_progress_bar_config(disable=True)
        if "--lora" in flags:
            file, _, scale = str(flags[-1]).rpartition(":")
            merge(pipe, Path(file), float(scale))

    channels = json.loads((model / "vae" / "config.json").read_text())["latent_channels"]
    noise = gaussian((channels, SIZE // 2, SIZE // 2), seeds.sampling_noise(seeds.image_seed(0, "in.png"), 0))[None]
    pixels = run_readme(net, model, condition, noise, prompt=PROMPT, prepare=prepare)
    return np.round(255 * pixels.clip(0, 1)).astype(int)


def merge(pipe: Any, file: Path, scale: float) -> None:
    """Add a LoRA's product to its layer: alpha / rank * up @ down, where alpha is the rank unless it is stated."""
    from safetensors.torch import load_file

    tensors = load_file(file)
    up, down = (next(v for k, v in tensors.items() if any(end in k for end in ends)) for ends in (UP, DOWN))
    alpha = next((float(value) for key, value in tensors.items() if key.endswith(".alpha")), len(down))
    key = next(iter(tensors)).replace(".", "_")
    network = getattr(pipe, "unet", None) or pipe.transformer
    layers = {name.replace(".", "_"): one for name, one in network.named_modules() if name}
    layer = layers[max((name for name in layers if f"_{name}_" in key), key=len)]
    with torch.no_grad():
        layer.weight += scale * alpha / len(down) * (up @ down)


def main() -> None:
    """Follow every form of the families that are named, and update the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(MODELS)} (default: all)")
    named = parser.parse_args().families or list(MODELS)
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    rows = []
    for name in named:
        with tempfile.TemporaryDirectory() as parts:
            model = MODELS[name](Path(parts))
            base = backbones.load(str(model))
            cells = [name]
            for form in FORMS:
                with tempfile.TemporaryDirectory() as work:
                    source = form(model, Path(work), base, name)
                    reference = fp16_copy(model, Path(work)) if form is fp16_variant else model
                    levels, deviation = follow(source, reference, Path(work))
                print(f"{name}, {form.__name__}: {levels} levels, deviation {deviation:.1f}", flush=True)
                cells.append(f"{levels}")
            rows.append(cells)
    if named == list(MODELS):
        heading = ["model", *(form.__name__.replace("_", " ") for form in FORMS)]
        lines = ["| " + " | ".join(cells) + " |" for cells in (heading, *rows)]
        text = "\n".join([lines[0], "|-" * len(heading) + "|", *lines[1:]]) + "\n"
        before, after = TABLE.split(PAGE.read_text(encoding="utf-8"))
        PAGE.write_text(before + text + after, encoding="utf-8")


def fp16_copy(model: Path, work: Path) -> Path:
    """Return a model whose weights are those of its fp16 copy, in float32, for pipelines that compute in float32."""
    half = resaved(model, work / "half", dtype=torch.float16)
    return resaved(half, work / "reference")


if __name__ == "__main__":
    main()
