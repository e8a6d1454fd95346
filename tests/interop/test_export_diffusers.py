"""Exported adapters in plain diffusers: the same predictions, the same images; and what is refused."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler, LCMScheduler, StableDiffusionControlNetPipeline
from PIL import Image
from safetensors.torch import load_file
from tiny import record_of, save_base, scheduler_config, stir

import codi_hub
from codi_hub import ExportOptions, adapters, backbones
from codi_hub.adapters import format
from codi_hub.adapters.controlnet import ControlAdapter
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.hub import Hub
from codi_hub.inference.engine import Engine, Request, Sampling, gaussian
from codi_hub.interop import diffusers, folders

NANO = Path(codi_hub.__file__).parent / "nano" / "base"
CASES = [
    pytest.param("v", 3, id="v"),
    pytest.param("eps", 3, id="eps"),
    pytest.param("v", 4, id="v, an image and a mask"),
    pytest.param("eps", 1, id="a gray image"),
    pytest.param("cross", 3, id="only cross-attention, as nano"),
]
every_kind = pytest.mark.parametrize("kind", diffusers.CONTROLNETS)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    eps = {"vae": "kl", "layers_per_block": 2}
    return {
        "v": save_base(root / "v", scheduler_config("v_prediction", zero_snr=True)),
        "cross": save_base(root / "cross", scheduler_config("v_prediction", zero_snr=True), only_cross_attention=True),
        "eps": save_base(root / "eps", scheduler_config("epsilon"), **eps),
    }


def built(base: UNetBackbone, kind: str, channels: int = 3, **config: Any) -> ControlAdapter:
    torch.manual_seed(0)
    if kind == "static":
        config = {"gain": False} | config
    adapter = stir(adapters.build(kind, base, condition_channels=channels, **config), 0.05)
    return adapter.requires_grad_(False).eval()


def exported(base: UNetBackbone, adapter: ControlAdapter, folder: Path) -> ControlNetModel:
    """Return the adapter through its folder, in its own precision, as plain diffusers loads it."""
    (folder / "record").mkdir(parents=True)
    format.write(folder / "record", adapter, record_of(base, adapter), "")
    diffusers.write(folder / "net", adapter, base, folder / "record" / format.RECORD, "")
    return ControlNetModel.from_pretrained(folder / "net")


@pytest.mark.slow
@every_kind
@pytest.mark.parametrize(("name", "channels"), CASES)
def test_diffusers_predicts_what_the_adapter_does(
    folder_of: dict[str, Path], tmp_path: Path, kind: str, name: str, channels: int
) -> None:
    base = backbones.load(str(folder_of[name]))
    difference, effect = compared(base, built(base, kind, channels), channels, tmp_path)
    assert difference < 1e-5
    assert effect > 0.01  # the adapter does something


def test_so_it_does_for_an_encoder_that_attends_on_every_level(folder_of: dict[str, Path], tmp_path: Path) -> None:
    base = backbones.load(str(folder_of["v"]))
    difference, effect = compared(base, built(base, "control", attend="all"), 3, tmp_path)
    assert difference < 1e-5
    assert effect > 0.01


def compared(base: UNetBackbone, adapter: ControlAdapter, channels: int, tmp_path: Path) -> tuple[float, float]:
    """Return the largest difference of diffusers' prediction from ours, and the least of ours from the base's."""
    net = exported(base, adapter, tmp_path)
    generator = torch.Generator().manual_seed(0)
    z_t = torch.randn(2, 4, 8, 12, generator=generator)
    condition, prompt = torch.rand(2, channels, 16, 24, generator=generator), base.embed(["a red ball", ""])
    difference, effect = [], []
    for entries in (torch.tensor([999, 300]), torch.tensor([0, 499])):
        with torch.no_grad():
            text = prompt["context"]
            seen = condition.expand(-1, 3, -1, -1) if channels == 1 else condition
            down, middle = net(z_t, entries, text, controlnet_cond=seen, return_dict=False)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            theirs = base.unet(z_t, entries, text, **residuals).sample
            ours = adapter(base, z_t, (entries + 1) / 1000, prompt, condition)
            alone = base.unet(z_t, entries, text).sample
        difference.append((theirs - ours).abs().max().item())
        effect.append((ours - alone).abs().max().item())
    return max(difference), min(effect)


@pytest.mark.slow
@every_kind
@pytest.mark.parametrize(("name", "channels"), CASES)
@pytest.mark.parametrize("steps", [1, 4])
def test_a_whole_pipeline_generates_the_images_of_our_engine(
    folder_of: dict[str, Path], tmp_path: Path, kind: str, name: str, channels: int, steps: int
) -> None:
    base = backbones.load(str(folder_of[name]))
    adapter = built(base, kind, channels)
    pipe = StableDiffusionControlNetPipeline(
        vae=base.vae,
        text_encoder=base.text_encoders[0],
        tokenizer=base.tokenizers[0],
        unet=base.unet,
        controlnet=exported(base, adapter, tmp_path),
        scheduler=DDIMScheduler(
            **BETAS,
            prediction_type=base.schedule.prediction_type,
            rescale_betas_zero_snr=name != "eps",
            timestep_spacing="trailing",
            clip_sample=False,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(0)
    conditions = [rng.random((16, 24, channels), np.float32) for _ in range(2)]
    seen = [one.repeat(3, axis=2) if channels == 1 else one for one in conditions]
    seeds, prompts = [3, 4], ["a red ball", ""]
    with torch.inference_mode():
        theirs = pipe(
            prompts,
            image=torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2),
            num_inference_steps=steps,
            guidance_scale=1.0,
            latents=torch.stack([gaussian((4, 8, 12), seed) for seed in seeds]),
            output_type="np",
        ).images
    rows = zip(conditions, prompts, seeds, strict=True)
    requests = [Request(condition, adapter, prompt, seed) for condition, prompt, seed in rows]
    ours = np.stack(Engine(base).generate(requests, Sampling(steps)).images)
    assert np.abs(ours - theirs).max() < 1e-4
    assert ours.std() > 0.02


BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def test_the_steps_the_readme_names_are_those_of_our_sampler(folder_of: dict[str, Path]) -> None:
    schedule = backbones.load(str(folder_of["v"])).schedule
    for steps in (1, 2, 4, 8):
        for scheduler in (DDIMScheduler(timestep_spacing="trailing"), LCMScheduler(original_inference_steps=1000)):
            scheduler.set_timesteps(steps)
            assert scheduler.timesteps.tolist() == schedule.index(torch.tensor(schedule.grid(steps))).tolist()


# ---- the command


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of adapters of kind control for the bundled base, as distillation leaves them."""
    base = backbones.load(str(NANO))
    folders_of = {task: tmp_path_factory.mktemp(task) for task in ("depth", "canny")}
    for task, folder in folders_of.items():
        adapter = built(base, "control", 1)
        format.write(folder, adapter, record_of(base, adapter).model_copy(update={"task": task}), "")
    return folders_of


@pytest.fixture
def exportable(distilled: dict[str, Path]) -> None:
    """Register them as the latest versions of their tasks, in place of the bundled ones."""
    with Hub.open() as hub:
        for task, folder in distilled.items():
            values = {"kind": "control", "steps": 4, "parameters": 1, "metrics": {}}
            row, _ = hub.catalog.registry.adapters.add(folder, task=task, base="nano", **values)
            hub.catalog.registry.adapters.tag(row.ref, "latest", "nano")


@pytest.mark.slow
@pytest.mark.usefixtures("exportable")
def test_the_readmes_own_code_makes_what_codi_run_does(codi: Callable[..., Any], tmp_path: Path) -> None:
    """On the bundled base, whose folder a plain pipeline loads: the code of the README as it stands."""
    out = tmp_path / "net"
    answer = codi("export", "depth", "-o", out, "--dtype", "fp32", "--json")
    document = json.loads(answer.out)
    assert (answer.code, answer.err, document["folder"]) == (0, "", str(out.resolve()))
    assert document["bytes"] == sum(path.stat().st_size for path in out.iterdir())
    assert {path.name for path in out.iterdir()} == set(diffusers.FILES)
    text = (out / "README.md").read_text(encoding="utf-8")
    assert document["adapter"] in text

    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    rng = np.random.default_rng(0)
    gray = rng.integers(0, 256, (64, 64, 1), np.uint8)
    condition = gray.astype(np.float32) / 255
    image = Image.fromarray(gray[..., 0]).convert("RGB")
    names = {"FOLDER": str(out), "BASE": str(NANO), "prompt": "", "condition": image}
    setup, call = code.rsplit("image = ", 1)
    exec(setup, names)
    noise = {"latents": gaussian((12, 16, 16), 7)[None], "output_type": "np"}
    names["noise"] = noise
    exec("image = " + call.replace(").images", ", **noise).images"), names)
    with Hub.open() as hub:
        base, adapter, row = hub.use("depth", device="cpu", dtype="fp32")
        ours = Engine(base).generate([Request(condition, adapter, seed=7)], Sampling(row.steps)).images[0]
    assert np.abs(names["image"] - ours).max() < 1e-3


@pytest.mark.slow
@pytest.mark.usefixtures("exportable")
@pytest.mark.parametrize(
    ("dtype", "type_"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_weights_have_the_precision_asked_for(
    codi: Callable[..., Any], tmp_path: Path, dtype: str, type_: torch.dtype
) -> None:
    assert codi("export", "depth", "-o", tmp_path / "net", "--dtype", dtype, "-q").out == f"{tmp_path / 'net'}\n"
    weights = tmp_path / "net" / diffusers.WEIGHTS
    tensors = load_file(weights)
    assert {value.dtype for value in tensors.values()} == {type_}
    with Hub.open() as hub:
        files = hub.catalog.registry.adapters
        stored = load_file(files.file(files.resolve("depth"), format.WEIGHTS))
        kept = files.file(files.resolve("depth"), format.RECORD).read_bytes()
    for name, value in stored.items():
        if name == f"encoder.{diffusers.STEM}":  # a gray image has three channels
            spread = value.to(type_).float().expand(-1, 3, -1, -1) / 3
            assert torch.equal(tensors[diffusers.STEM], spread.to(type_))
        elif "time_embedding.linear_1" not in name:  # which is folded into one time
            assert torch.equal(tensors[name.removeprefix("encoder.")], value.to(type_))
    assert (tmp_path / "net" / format.RECORD).read_bytes() == kept
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "net").iterdir()}
    assert len(modes) == 1  # whoever can read one of the files can read them all


@pytest.mark.usefixtures("exportable")
def test_no_path_of_this_machine_is_written(codi: Callable[..., Any], tmp_path: Path) -> None:
    codi("export", "depth", "-o", tmp_path / "net")
    for path in (tmp_path / "net").iterdir():
        assert str(NANO.parent).encode() not in path.read_bytes()
        assert str(tmp_path).encode() not in path.read_bytes()


@pytest.mark.slow
def test_an_adapter_that_is_not_a_controlnet_is_refused_before_anything_is_written(
    codi: Callable[..., Any], folder_of: dict[str, Path], tmp_path: Path
) -> None:
    assert codi("base", "add", "tiny", folder_of["v"]).code == 0
    base = backbones.load(str(folder_of["v"]))
    cases: list[tuple[str, dict[str, Any], str]] = [
        (
            "full",
            {},
            "is of kind full, which is not a ControlNet beside the base: use kind control",
        ),
        (
            "control",
            {"fusion": "gate"},
            "is fused by gates, which a ControlNet does not have: use fusion zero_conv",
        ),
        (
            "control",
            {"top_down": True},
            "has a top-down path beside its encoder, which a ControlNet does not have: train it anew",
        ),
        (
            "static",
            {"gain": False, "start": 0.5},
            "starts from its condition, which a ControlNet's pipeline does not: use start 1",
        ),
        (
            "static",
            {"gain": True},
            "weights its condition by the time, which a ControlNet does not: use kind static with gain false",
        ),
    ]
    for number, (kind, config, words) in enumerate(cases, 1):
        adapter = built(base, kind, **config)
        format.write(tmp_path / f"{number}", adapter, record_of(base, adapter), "")
        with Hub.open() as hub:
            values = {"kind": kind, "steps": 4, "parameters": 1, "metrics": {}}
            hub.catalog.registry.adapters.add(tmp_path / f"{number}", task="depth", base="tiny", **values)
        answer = codi("export", f"depth:{number}", "--base", "tiny", "-o", tmp_path / "net")
        assert answer == (1, "", f"Error: depth:{number} {words} to distil an adapter that can be exported\n")
    assert not (tmp_path / "net").exists()


def test_an_export_leaves_the_adapter_and_its_base_as_they_were(folder_of: dict[str, Path], tmp_path: Path) -> None:
    base = backbones.load(str(folder_of["v"]))
    for kind in diffusers.CONTROLNETS:
        adapter = built(base, kind)
        before = [(value, value.clone()) for module in (base, adapter) for value in module.parameters()]
        exported(base, adapter, tmp_path / kind)
        assert all(torch.equal(value, kept) for value, kept in before)


def test_an_unknown_format_or_adapter_is_refused_in_one_line(codi: Callable[..., Any], tmp_path: Path) -> None:
    line = "Error: --format onnx: one of diffusers, ldm, comfyui, peft, codi\n"
    assert codi("export", "depth", "-o", tmp_path / "net", "--format", "onnx") == (2, "", line)
    line = "Error: --dtype int8: one of fp16, bf16, fp32\n"
    assert codi("export", "depth", "-o", tmp_path / "net", "--dtype", "int8") == (2, "", line)
    answer = codi("export", "depth:99", "-o", tmp_path / "net")
    assert answer.code == 1
    assert answer.err.startswith("Error: no depth:99 for base nano; there is depth:")
    assert codi("export", "depth").code == 2
    assert not (tmp_path / "net").exists()


# ---- the folder


@pytest.mark.slow
@pytest.mark.usefixtures("exportable")
def test_only_an_export_is_overwritten(codi: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "a" / "net"
    assert codi("export", "depth", "-o", out).code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    answer = codi("export", "canny", "-o", out)
    assert answer == (1, "", f"Error: {out} exists: choose another folder, or overwrite it\n")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert codi("export", "canny", "-o", out, "--overwrite").code == 0
    assert "canny" in (out / "README.md").read_text()

    (out / "thesis.tex").write_text("mine")
    answer = codi("export", "depth", "-o", out, "--overwrite")
    assert answer == (
        1,
        "",
        f"Error: {out} has files that are not an export's: choose another folder\n",
    )
    assert (out / "thesis.tex").read_text() == "mine"

    theirs = tmp_path / "their-controlnet"  # the very names that an export has, but for our record
    theirs.mkdir()
    for name in ("config.json", "diffusion_pytorch_model.safetensors", "README.md"):
        (theirs / name).write_text("theirs")
    answer = codi("export", "depth", "-o", theirs, "--overwrite")
    assert (answer.code, "has files that are not an export's" in answer.err) == (1, True)
    assert {path.read_text() for path in theirs.iterdir()} == {"theirs"}

    answer = codi("export", "depth", "-o", out / "thesis.tex", "--overwrite")
    assert answer == (1, "", f"Error: {out / 'thesis.tex'} is a file: choose another folder\n")
    (out / "loop").symlink_to("loop")
    answer = codi("export", "depth", "-o", out / "loop" / "net")
    assert answer.code == 1
    assert answer.err.startswith("Error: ")
    assert "unexpected" not in answer.err
    (tmp_path / "empty").mkdir()
    assert codi("export", "depth", "-o", tmp_path / "empty").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "empty", theirs.name]  # nothing else is left about
    assert [path.name for path in out.parent.iterdir()] == ["net"]


@pytest.mark.slow
@pytest.mark.usefixtures("exportable")
def test_an_export_that_fails_leaves_the_earlier_one(
    codi: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "net"
    codi("export", "depth", "-o", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for place in ((folders, "save_file"), (folders.os, "fsync")):
        with monkeypatch.context() as patched:
            patched.setattr(*place, full)
            answer = codi("export", "canny", "-o", out, "--overwrite")
        assert answer == (1, "", f"Error: the export could not be written to {out}: No space left on device\n")
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        assert [path.name for path in tmp_path.iterdir()] == ["net"]


@pytest.mark.usefixtures("exportable")
def test_the_hub_exports_as_the_command_does(tmp_path: Path) -> None:
    with Hub.open() as hub:
        made = hub.export("depth", ExportOptions(out=tmp_path / "net"))
    assert (made.kind, made.base, made.format, made.dtype) == ("control", "nano", "diffusers", "fp16")
    assert isinstance(ControlNetModel.from_pretrained(made.folder), ControlNetModel)
