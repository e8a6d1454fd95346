"""Exports of every family in the family's own pipeline: the code of the README as it stands."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxControlPipeline
from diffusers.utils import logging
from exports import run_readme
from families import LONGEST, MODELS
from PIL import Image
from safetensors.torch import load_file
from tiny import record_of, stir

from codi_hub import adapters, backbones
from codi_hub.adapters import format
from codi_hub.backbones.backbone import Backbone
from codi_hub.errors import Mismatch
from codi_hub.hub import Hub
from codi_hub.inference.engine import Engine, Request, gaussian
from codi_hub.interop import diffusers, readme

SIZE = (16, 24)
CASES = [
    (family, kind) for family in MODELS for kind in ("control", "concat") if (family, kind) != ("z-image", "concat")
]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: write(tmp_path_factory.mktemp(family)) for family, write in MODELS.items()}


def registered(base: Backbone, kind: str, channels: int, folder: Path) -> str:
    """Register an adapter with an effect as a version of inpaint or superres; return its name."""
    torch.manual_seed(0)
    adapter = stir(adapters.build(kind, base, condition_channels=channels), 0.05)
    task = {3: "superres", 4: "inpaint"}[channels]
    format.write(folder, adapter, record_of(base, adapter).model_copy(update={"task": task}), "")
    with Hub.open() as hub:
        values = {"kind": kind, "steps": 4, "parameters": 1, "metrics": {}}
        return hub.catalog.registry.adapters.add(folder, task=task, base="tiny", **values)[0].ref


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kind"), CASES)
def test_the_readmes_own_code_makes_what_codi_run_does(
    codi: Callable[..., Any], folder_of: dict[str, Path], tmp_path: Path, family: str, kind: str
) -> None:
    logging.disable_progress_bar()
    channels = 4 if kind == "concat" else 3
    assert codi("base", "add", "tiny", folder_of[family]).code == 0
    assert codi("base", "use", "tiny").code == 0
    base = backbones.load(str(folder_of[family]))
    ref = registered(base, kind, channels, tmp_path / "adapter")
    answer = codi("export", ref, "--base", "tiny", "-o", tmp_path / "net", "--dtype", "fp32")
    assert answer.code == 0, answer.err
    assert {path.name for path in (tmp_path / "net").iterdir()} == set(diffusers.FILES)

    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, channels), np.uint8)
    values = pixels.astype(np.float32) / 255
    tensor = torch.from_numpy(values).permute(2, 0, 1)[None]
    condition: Any = tensor if kind == "concat" else Image.fromarray(pixels)
    h, w = base.latents.size(*SIZE)
    noise = gaussian((base.latents.channels, h, w), 7)[None]
    theirs = run_readme(tmp_path / "net", folder_of[family], condition, noise)
    with Hub.open() as hub:
        loaded, adapter, _ = hub.use(ref, device="cpu", dtype="fp32")
        request = Request(values, adapter, "a red ball", 7)
        (ours,) = Engine(loaded).generate([request]).images
        weak = Engine(loaded).generate([Request(values, adapter, "a red ball", 7, 0.5)]).images[0]
    assert np.abs(ours - theirs).max() < 1e-5
    assert ours.std() > 0.02
    if kind == "control":
        weaker = run_readme(tmp_path / "net", folder_of[family], condition, noise, strength=0.5)
        assert np.abs(weak - weaker).max() < 1e-5
        assert np.abs(weak - ours).max() > 1e-4


def pixels_of(channels: int) -> tuple[np.ndarray, torch.Tensor]:
    """Return a condition as our engine takes it, and as a README's code does."""
    values = np.random.default_rng(0).integers(0, 256, (*SIZE, channels), np.uint8).astype(np.float32) / 255
    return values, torch.from_numpy(values).permute(2, 0, 1)[None]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "channels"), [("sdxl", 4), ("sd3", 3), ("flux", 4)])
def test_a_lora_of_peft_makes_what_codi_run_does(
    codi: Callable[..., Any], folder_of: dict[str, Path], tmp_path: Path, family: str, channels: int
) -> None:
    assert codi("base", "add", "tiny", folder_of[family]).code == 0
    base = backbones.load(str(folder_of[family]))
    ref = registered(base, "concat", channels, tmp_path / "adapter")
    line = ("export", ref, "--base", "tiny", "-o", tmp_path / "net", "--dtype", "fp32", "--format", "peft")
    assert codi(*line).code == 0
    assert {path.name for path in (tmp_path / "net").iterdir()} == {
        "README.md", "adapter.json", "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    assert codi(*line, "--overwrite").code == 0
    values, condition = pixels_of(channels)
    noise = gaussian((base.latents.channels, *base.latents.size(*SIZE)), 7)[None]
    theirs = run_readme(tmp_path / "net", folder_of[family], condition, noise)
    with Hub.open(base="tiny") as hub:
        loaded, adapter, _ = hub.use(ref, device="cpu", dtype="fp32")
        (ours,) = Engine(loaded).generate([Request(values, adapter, "a red ball", 7)]).images
    assert np.abs(ours - theirs).max() < 1e-5
    assert ours.std() > 0.02


@pytest.mark.slow
def test_a_lora_for_flux_is_one_of_diffusers_own_pipeline(
    codi: Callable[..., Any], folder_of: dict[str, Path], tmp_path: Path
) -> None:
    """FLUX.1-Control's: diffusers widens the input layer itself."""
    assert codi("base", "add", "tiny", folder_of["flux"]).code == 0
    base = backbones.load(str(folder_of["flux"]))
    ref = registered(base, "concat", 3, tmp_path / "adapter")
    line = ("export", ref, "--base", "tiny", "-o", tmp_path / "net", "--dtype", "fp32", "--format", "peft")
    assert codi(*line).code == 0
    pipe = FluxControlPipeline.from_pretrained(folder_of["flux"])
    pipe.set_progress_bar_config(disable=True)
    tensors = load_file(tmp_path / "net" / "adapter_model.safetensors")
    pipe.load_lora_weights({name.replace("base_model.model", "transformer"): value for name, value in tensors.items()})
    values, _ = pixels_of(3)
    noise = gaussian((base.latents.channels, *base.latents.size(*SIZE)), 7)[None]
    theirs = pipe(
        "a red ball", control_image=Image.fromarray((values * 255).round().astype(np.uint8)), height=16, width=24,
        latents=pipe._pack_latents(noise, *noise.shape), num_inference_steps=4, sigmas=[1, 0.75, 0.5, 0.25],
        guidance_scale=3.5, max_sequence_length=LONGEST, output_type="np",
    ).images[0]  # fmt: skip
    with Hub.open(base="tiny") as hub:
        loaded, adapter, _ = hub.use(ref, device="cpu", dtype="fp32")
        (ours,) = Engine(loaded).generate([Request(values, adapter, "a red ball", 7)]).images
    assert np.abs(ours - theirs).max() < 1e-5


def test_what_is_no_lora_is_refused_as_one(
    codi: Callable[..., Any], folder_of: dict[str, Path], tmp_path: Path
) -> None:
    assert codi("base", "add", "tiny", folder_of["z-image"]).code == 0
    base = backbones.load(str(folder_of["z-image"]))
    line = ("--base", "tiny", "-o", tmp_path / "net", "--format", "peft")
    control = registered(base, "control", 3, tmp_path / "control")
    assert "of kind control, and PEFT holds deltas of the base's network alone" in codi("export", control, *line).err
    wide = registered(base, "concat", 3, tmp_path / "concat")
    assert "cannot take more channels than it returns" in codi("export", wide, *line).err
    assert not (tmp_path / "net").exists()


def test_what_a_pipeline_cannot_run_is_refused(folder_of: dict[str, Path]) -> None:
    base = backbones.load(str(folder_of["sd3"]))
    control = record_of(base, adapters.build("control", base, condition_channels=4))
    with pytest.raises(
        Mismatch, match=r"takes conditions of 4 channels.* takes images alone: use kind concat to distil"
    ):
        readme.readme(control, base, ref="inpaint:1", base_name="tiny")
    base = backbones.load(str(folder_of["z-image"]))
    with pytest.raises(Mismatch, match=r"^ZImageTransformer2DModel of diffusers cannot take more channels than it re"):
        diffusers.wider_network(adapters.build("concat", base), base)
