"""Imported ControlNets against their own diffusers pipelines, and what comes back of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import foreign
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from diffusers.utils import logging
from families import LONGEST, MODELS
from PIL import Image
from safetensors.torch import load_file
from tiny import save_base, scheduler_config

from codi_hub import adapters, backbones
from codi_hub.adapters.base_only import BaseOnly
from codi_hub.adapters.mixed import MixedBatch
from codi_hub.backbones.backbone import Backbone
from codi_hub.hub import Hub
from codi_hub.inference.engine import Engine, Request, Sampling, gaussian
from codi_hub.interop import controlnet
from codi_hub.interop import diffusers as export
from codi_hub.registry.store import sha256

SIZE = (16, 24)
PROMPT, NEGATIVE = "a red ball", "blurred"
PIPELINES = {
    "sd": "StableDiffusionControlNetPipeline",
    "sdxl": "StableDiffusionXLControlNetPipeline",
    "sd3": "StableDiffusion3ControlNetPipeline",
    "flux": "FluxControlNetPipeline",
}
CASES = [(family, steps, scale) for family in ("sd", "sdxl") for steps, scale in ((20, 1.0), (20, 5.0), (50, 5.0))]
CASES += [("sd3", 4, 1.0), ("sd3", 4, 5.0), ("flux", 4, 1.0)]


def sd15(folder: Path) -> Path:
    """A tiny model of SD 1.5's form."""
    changes: dict[str, Any] = {"vae": "kl", "layers_per_block": 2, "addition_embed_type": None}
    return save_base(folder / "model", scheduler_config("epsilon"), **changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Backbone, Path]]:
    """A family's base folder, the base, and the folder of a ControlNet for it; each written once."""
    kept: dict[str, tuple[Path, Backbone, Path]] = {}
    logging.disable_progress_bar()

    def make(family: str) -> tuple[Path, Backbone, Path]:
        if family not in kept:
            root = tmp_path_factory.mktemp(family)
            folder = (MODELS | {"sd": sd15})[family](root / "base")
            base = backbones.load(str(folder))
            kept[family] = folder, base, foreign.save(foreign.CONTROLNETS[family](base), root / "canny-net")
        return kept[family]

    return make


def imported(codi: Callable[..., Any], base: Path, *args: str | Path) -> dict[str, Any]:
    """Register a base once, import onto it, and return the command's document."""
    with Hub.open() as hub:
        known = [row.name for row in hub.catalog.bases()]
    if "tiny" not in known:
        assert codi("base", "add", "tiny", base).code == 0
        assert codi("base", "use", "tiny").code == 0
    answer = codi("import", *args, "--json")
    assert answer.code == 0, answer.err
    return json.loads(answer.out)


def condition(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SIZE, channels), np.uint8)


def fitted(base: Any, path: Path, *, bgr: bool = False, channels: int = 3) -> Any:
    """The adapter of a ControlNet on a base, as an import writes it."""
    network, tensors = controlnet.fitted(controlnet.read(path), base, bgr=bgr)
    adapter = adapters.build("control", base, network=network, condition_channels=channels)
    adapter.load_state_dict({f"encoder.{name}": value for name, value in tensors.items()})
    return adapter.requires_grad_(False).eval()


def ours(base: Backbone, adapter: Any, pixels: np.ndarray, sampling: Sampling) -> np.ndarray:
    negative = NEGATIVE if sampling.guided else None
    request = Request(pixels.astype(np.float32) / 255, adapter, PROMPT, 7, negative_prompt=negative)
    return Engine(base).generate([request], sampling).images[0]


def sd_parts(base: Any) -> dict[str, Any]:
    """The components of a tiny SD base, for a pipeline."""
    absent = dict.fromkeys(("safety_checker", "feature_extractor"))
    parts = {"vae": base.vae, "text_encoder": base.text_encoders[0], "tokenizer": base.tokenizers[0], "unet": base.unet}
    scheduler = diffusers.DDIMScheduler.from_config(scheduler_config("epsilon"))
    return absent | parts | {"scheduler": scheduler, "requires_safety_checker": False}


def theirs(family: str, folder: Path, base: Backbone, net: Path, steps: int, scale: float) -> np.ndarray:
    """The image of the family's own pipeline with the ControlNet as it came."""
    name = {"sd": "ControlNetModel", "sdxl": "ControlNetModel", "sd3": "SD3ControlNetModel"}
    controlnet = getattr(diffusers, name.get(family, "FluxControlNetModel")).from_pretrained(net)
    pipeline = getattr(diffusers, PIPELINES[family])
    if family == "sd":
        pipe = pipeline(**sd_parts(base), controlnet=controlnet)
    else:
        pipe = pipeline.from_pretrained(folder, controlnet=controlnet)
    pipe.set_progress_bar_config(disable=True)
    h, w = base.latents.size(*SIZE)
    noise = gaussian((base.latents.channels, h, w), 7)[None]
    call: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": steps, "output_type": "np"}
    call |= {"negative_prompt": NEGATIVE} if scale > 1 else {}
    call |= {"height": SIZE[0], "width": SIZE[1]}
    if family in ("sd", "sdxl"):
        pipe.scheduler = diffusers.DDIMScheduler.from_config(
            pipe.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
        )
        call |= {"image": Image.fromarray(condition()), "latents": noise, "guidance_scale": scale}
    else:
        call |= {"control_image": Image.fromarray(condition()), "sigmas": [k / steps for k in range(steps, 0, -1)]}
        call |= {"max_sequence_length": LONGEST, "guidance_scale": 3.5 if family == "flux" else scale}
        call["latents"] = pipe._pack_latents(noise, *noise.shape) if family == "flux" else noise
    return pipe(**call).images[0]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "steps", "scale"), CASES)
def test_images_are_those_of_its_own_pipeline(made: Any, family: str, steps: int, scale: float) -> None:
    folder, base, net = made(family)
    adapter, sampling = fitted(base, net), Sampling(steps, guidance_scale=scale)
    image = ours(base, adapter, condition(), sampling)
    difference = np.abs(image - theirs(family, folder, base, net, steps, scale)).max()
    assert difference <= 1e-4
    few = Sampling(4)
    effect = np.abs(ours(base, adapter, condition(), few) - ours(base, adapter, condition()[::-1], few)).max()
    assert effect > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("family", PIPELINES)
def test_import_and_export_give_every_tensor_back(
    codi: Callable[..., Any], made: Any, tmp_path: Path, family: str
) -> None:
    folder, _, net = made(family)
    ref = imported(codi, folder, net, "--task", "depth")["adapter"]  # a task of one channel
    assert codi("export", ref, "-o", tmp_path / "out", "--dtype", "fp32").code == 0
    before, after = foreign.tensors(net), load_file(tmp_path / "out" / foreign.WEIGHTS)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    configs = [json.loads((place / "config.json").read_text()) for place in (net, tmp_path / "out")]
    for name, value in configs[1].items():
        assert name.startswith("_") or configs[0][name] == value


@pytest.mark.slow
@pytest.mark.parametrize("family", PIPELINES)
def test_folder_and_files_give_the_same_version(
    codi: Callable[..., Any], made: Any, tmp_path: Path, family: str
) -> None:
    folder, _, net = made(family)
    files = [net, foreign.write(tmp_path / "plain.safetensors", foreign.tensors(net))]
    if family in ("sd", "sdxl"):
        files += [
            foreign.original(net, tmp_path / f"original{n}.safetensors", p)
            for n, p in enumerate(("control_model.", ""))
        ]
    rows = [imported(codi, folder, file, "--task", "segments") for file in files]
    assert [row["registered_task"] for row in rows] == [True] + [False] * (len(files) - 1)
    with Hub.open() as hub:
        shown = [hub.catalog.show(row["adapter"]) for row in rows]
    assert len({one["sha256"] for one in shown}) == 1
    assert len({json.dumps(one["config"]["config"]) for one in shown}) == 1


def test_a_condition_of_one_channel_is_repeated(made: Any) -> None:
    _, base, net = made("sd")
    one, three = fitted(base, net, channels=1), fitted(base, net)
    gray = condition(1)
    images = [ours(base, one, gray, Sampling(2)), ours(base, three, gray.repeat(3, 2), Sampling(2))]
    assert np.array_equal(*images)


def test_bgr_flips_the_condition_and_keeps_the_tensors(made: Any, tmp_path: Path) -> None:
    _, base, net = made("sd")
    rgb, bgr = fitted(base, net), fitted(base, net, bgr=True)
    pixels = condition()
    image = ours(base, bgr, pixels, Sampling(2))
    assert np.array_equal(image, ours(base, rgb, pixels[..., ::-1], Sampling(2)))
    assert not np.allclose(image, ours(base, rgb, pixels, Sampling(2)), atol=1e-3)
    before, after = foreign.tensors(net), bgr.encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    bgr.encoder.save_pretrained(tmp_path)
    down, middle = called(base, ControlNetModel.from_pretrained(tmp_path))  # its own class flips too
    assert_residuals(base, bgr, [*down, middle])
    model, tensors = export.in_rgb(*export.controlnet(copy.deepcopy(bgr)))  # as formats without a configuration need it
    model.load_state_dict(tensors)
    down, middle = called(base, model)
    assert_residuals(base, bgr, [*down, middle])


def states(base: Any) -> tuple[torch.Tensor, torch.Tensor, Any, torch.Tensor]:
    """A latent at a time, with a prompt and a condition."""
    generator = torch.Generator().manual_seed(0)
    h, w = base.latents.size(*SIZE)
    z_t = torch.randn(1, base.latents.channels, h, w, generator=generator)
    return z_t, torch.tensor([0.3]), base.embed([PROMPT]), torch.rand(1, 3, *SIZE, generator=generator)


@torch.no_grad()
def called(base: Any, net: Any) -> Any:
    """What diffusers' ControlNet of a U-Net returns."""
    z_t, t, prompt, pixels = states(base)
    prompt = base.sized(prompt, z_t)
    added = {"text_embeds": prompt["pooled"], "time_ids": prompt["time_ids"]} if "pooled" in prompt else None
    timestep = base.schedule.model_time(t)
    return net(z_t, timestep, prompt["context"], pixels, added_cond_kwargs=added, return_dict=False)


@torch.no_grad()
def assert_residuals(base: Any, adapter: Any, expected: list[torch.Tensor]) -> None:
    """Compare an adapter's residuals with those of diffusers."""
    z_t, t, prompt, pixels = states(base)
    view = adapter.prepare(base, pixels, prompt)
    mine = adapter.residuals(base, base.state(z_t, t, prompt), z_t, t, prompt, view)
    assert max((mine[str(k)] - value).abs().max() for k, value in enumerate(expected)) < 1e-5


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_control_lora_is_merged_into_the_bases_encoder(made: Any, tmp_path: Path, family: str) -> None:
    _, base, _ = made(family)
    net = foreign.lively(foreign.unet_controlnet(base))
    file, whole = foreign.control_lora(net, base, tmp_path / "control-lora.safetensors")
    assert controlnet.read(file).format == "Control-LoRA"
    encoder = fitted(base, file).encoder.state_dict()
    assert encoder.keys() == whole.keys()
    assert max((encoder[name] - whole[name]).abs().max().item() for name in whole) < 1e-6


def predicted(base: Any, net: Any, adapter: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One prediction: ours, the one with the ControlNet as diffusers calls it, and the base's alone."""
    generator = torch.Generator().manual_seed(0)
    h, w = base.latents.size(*SIZE)
    z_t, t = torch.randn(2, base.latents.channels, h, w, generator=generator), torch.tensor([0.7, 0.2])
    prompt, pixels = base.embed([PROMPT, ""]), torch.rand(2, 3, *SIZE, generator=generator)
    net = net.to(memory_format=torch.channels_last)  # as ours: of other formats, other kernels round otherwise
    with torch.no_grad():
        ours = adapter(base, z_t, t, prompt, pixels)
        residuals = base.control_residuals(net, None, z_t, t, prompt, base.control_condition(net, pixels))
        return ours, base.predict(z_t, t, prompt, residuals=residuals), base.predict(z_t, t, prompt)


def in_a_file(net: Any, path: Path) -> Path:
    """Write a ControlNet as one file of diffusers' keys."""
    return foreign.write(path, dict(net.state_dict()))


def test_small_sdxl_branches_come_without_attentions(made: Any, tmp_path: Path) -> None:
    _, base, _ = made("sdxl")
    small = {"down_block_types": ("DownBlock2D",) * 2, "mid_block_type": "UNetMidBlock2D"}
    net = foreign.lively(foreign.changed(foreign.unet_controlnet(base), **small))
    adapter = fitted(base, in_a_file(net, tmp_path / "small.safetensors"))
    assert adapter.encoder.config["down_block_types"] == ["DownBlock2D", "DownBlock2D"]
    down, middle = called(base, net)
    assert_residuals(base, adapter, [*down, middle])


def test_sd3_branches_without_text_and_positions(made: Any, tmp_path: Path) -> None:
    """As SD3.5-large's: the base embeds the latents, and the pooled text is all that they see of the prompt."""
    _, base, _ = made("sd3")
    large = {"joint_attention_dim": None, "use_pos_embed": False, "dual_attention_layers": (), "qk_norm": None}
    net = foreign.lively(foreign.changed(foreign.sd3_controlnet(base), **large))
    adapter = fitted(base, in_a_file(net, tmp_path / "large.safetensors"))
    assert (adapter.encoder.pos_embed, adapter.encoder.context_embedder) == (None, None)
    ours, theirs, alone = predicted(base, net, adapter)
    assert torch.equal(ours, theirs)
    assert (ours - alone).abs().max() > 1e-3


@pytest.mark.parametrize("layers", [(5, 0), (1, 2), (0, 1)])
def test_flux_branches_have_any_number_of_blocks(made: Any, tmp_path: Path, layers: tuple[int, int]) -> None:
    _, base, _ = made("flux")
    net = foreign.lively(foreign.flux_controlnet(base, *layers))
    adapter = fitted(base, in_a_file(net, tmp_path / "flux.safetensors"))
    ours, theirs, alone = predicted(base, net, adapter)
    assert torch.equal(ours, theirs)
    assert (ours - alone).abs().max() > 1e-4


@pytest.mark.parametrize(("family", "depths"), [("sd3", [{"num_layers": 2}, {"num_layers": 3}]), ("flux", [
    {"num_layers": 2, "num_single_layers": 1}, {"num_layers": 3, "num_single_layers": 0}])])  # fmt: skip
def test_branches_of_different_depth_share_a_batch(
    made: Any, tmp_path: Path, family: str, depths: list[dict[str, int]]
) -> None:
    _, base, _ = made(family)
    nets = [foreign.lively(foreign.CONTROLNETS[family](base, **depth)) for depth in depths]
    three = [fitted(base, in_a_file(net, tmp_path / f"{k}.safetensors")) for k, net in enumerate(nets)]
    three.append(BaseOnly(base))
    generator = torch.Generator().manual_seed(0)
    h, w = base.latents.size(*SIZE)
    z_t, t = torch.randn(3, base.latents.channels, h, w, generator=generator), torch.tensor([0.7, 0.2, 0.5])
    prompt, pixels = base.embed([PROMPT, "", PROMPT]), torch.rand(3, 3, *SIZE, generator=generator)
    mixed = MixedBatch(three)
    with torch.no_grad():
        prepared = mixed.prepare(base, list(pixels.split(1)), prompt)
        together = mixed.predict(base, z_t, t, prompt, prepared)
        alone = [
            one(base, z_t[k : k + 1], t[k : k + 1], prompt.rows([k]), pixels[k : k + 1]) for k, one in enumerate(three)
        ]
    assert (together - torch.cat(alone)).abs().max() < 1e-5


@pytest.mark.slow
def test_an_imported_version_is_distilled_and_measured_beside_itself(
    codi: Callable[..., Any], made: Any, tmp_path: Path
) -> None:
    folder, _, net = made("sd")
    document = imported(codi, folder, net, "--task", "pose", "--name", "canny.v1")
    assert (document["adapter"], document["tags"]) == ("pose:1", ["canny.v1", "latest"])
    data = pairs(tmp_path / "pairs")
    told = ("--data", data, "--train-steps", "2", "--batch", "2", "--size", "16", "--json")
    answer = codi("distill", "pose", "--from", "pose:canny.v1", *told)
    assert answer.code == 0, answer.err
    shown = json.loads(codi("show", "pose:2", "--json").out)
    assert shown["method"] == "pe-codi"
    assert shown["config"]["config"]["network"]["conditioning_channels"] == 3
    assert [one["method"] for one in shown["config"]["lineage"]] == ["conditional", "pe-codi"]
    for method in ("cm", "gd"):
        answer = codi("distill", "pose", "--from", "pose:1", "--method", method, "--dry-run", *told)
        assert answer.code == 0, answer.err
    refused = codi("distill", "pose", "--from", "pose:2", "--method", "cm", "--dry-run", *told)
    assert "the teacher of cm must follow the whole ODE" in refused.err
    measured = ("--steps", "1,2,4,8,50", "--against", "pose:2", "--guidance-scale", "3", "--count", "1", "--data", data)
    answer = codi("eval", "pose:1", *measured, "--json")
    assert answer.code == 0, answer.err
    rows = {(row["method"], row["steps"]) for row in json.loads(answer.out)["rows"]}
    assert rows >= {(ref, steps) for ref in ("pose:1", "pose:2") for steps in (1, 2, 4, 8, 50)}


def pairs(folder: Path) -> Path:
    """Write a folder of pairs of tiny images."""
    generator = np.random.default_rng(0)
    for name in ("condition", "target"):
        (folder / name).mkdir(parents=True)
        for k in range(4):
            pixels = generator.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{k}.png")
    return folder


def test_record_and_card_say_where_it_came_from(codi: Callable[..., Any], made: Any) -> None:
    folder, _, net = made("sd")
    ref = imported(codi, folder, net, "--task", "segments")["adapter"]
    shown = json.loads(codi("show", ref, "--json").out)
    digest = sha256(net / foreign.WEIGHTS)
    assert shown["method"] == "conditional"
    assert shown["config"]["origin"] == {"file": "canny-net", "sha256": digest, "format": "diffusers folder"}
    assert f"canny-net, diffusers folder, sha256 {digest}" in shown["card"]
    assert "the precision that they came in" in shown["card"]
    assert json.loads(codi("task", "show", "segments", "--json").out)["like"] == "pairs"
    assert codi("verify").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_what_every_format_of_export_writes_comes_back_as_the_same_version(
    codi: Callable[..., Any], made: Any, tmp_path: Path, family: str
) -> None:
    folder, _, net = made(family)
    refs = [imported(codi, folder, net, "--task", "pose")["adapter"]]
    for form in ("diffusers", "ldm", "comfyui"):
        answer = codi("export", refs[0], "--format", form, "-o", tmp_path / form, "--dtype", "fp32")
        assert answer.code == 0, answer.err
        (file,) = (tmp_path / form).glob("*.safetensors")
        refs.append(imported(codi, folder, file, "--task", "pose")["adapter"])
    with Hub.open() as hub:
        assert len({hub.catalog.show(ref)["sha256"] for ref in refs}) == 1
