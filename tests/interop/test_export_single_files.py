"""ControlNets in one file: for A1111 with original names, for ComfyUI with a workflow; and what is refused."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from comfy_workflow import Workflow
from diffusers import DDIMScheduler, SD3Transformer2DModel, StableDiffusionPipeline
from exports import PROMPT, run_readme
from PIL import Image
from safetensors.torch import load_file
from tiny import SD_SCHEDULE, kl_autoencoder, record_of, save_base, scheduler_config, stir

from codi_hub import adapters, backbones
from codi_hub.adapters import format
from codi_hub.backbones.transformer import TransformerBackbone
from codi_hub.hub import Hub
from codi_hub.inference.engine import Engine, Request, Sampling, gaussian
from codi_hub.interop import diffusers, ldm_keys

NEGATIVE = "dog"
TASKS = {1: "depth", 3: "superres", 4: "inpaint"}


def sd3(folder: Path) -> Path:
    """SD3 with as many blocks as ComfyUI spreads evenly."""
    written = families.sd3(folder)
    network = SD3Transformer2DModel.from_pretrained(written / "transformer")
    torch.manual_seed(0)
    SD3Transformer2DModel.from_config(dict(network.config) | {"num_layers": 8}).save_pretrained(written / "transformer")
    return written


def sd(folder: Path) -> Path:
    """Stable Diffusion as a pipeline's folder."""
    save_base(folder / "parts", scheduler_config("epsilon"), layers_per_block=2, addition_embed_type=None)
    base: Any = backbones.load(str(folder / "parts"))
    pipe = StableDiffusionPipeline(
        vae=kl_autoencoder(levels=4, scaling_factor=0.5), unet=base.unet, text_encoder=base.text_encoders[0],
        tokenizer=base.tokenizers[0], scheduler=DDIMScheduler(**SD_SCHEDULE), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder / "model")
    return folder / "model"


def sdxl_8(folder: Path) -> Path:
    """SDXL with an autoencoder whose cells have 8x8 pixels."""
    written = families.sdxl(folder)
    kl_autoencoder(levels=4, scaling_factor=0.13025, force_upcast=True).save_pretrained(written / "vae")
    return written


WRITE: dict[str, Callable[[Path], Path]] = {
    "eps": lambda folder: save_base(folder / "base", scheduler_config("epsilon"), vae="kl", layers_per_block=2),
    "v": lambda folder: save_base(folder / "base", scheduler_config("v_prediction", zero_snr=True)),
    "sd": sd,
    "sdxl": sdxl_8,
    "sd3": sd3,
    "flux": partial(families.flux, layers=(19, 1)),
    "z-image": families.z_image,
    "sd3 of 5 blocks": families.sd3,
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    written: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in written:
            written[name] = WRITE[name](tmp_path_factory.mktemp("base"))
        return written[name]

    return folder


def exported(
    codi: Callable[..., Any], model: Path, kind: str, form: str, out: Path, channels: int = 3, method: str = "pe-codi"
) -> Any:
    """Register an adapter with an effect, export it; return the command's answer and the adapter's name."""
    assert codi("base", "add", "tiny", model).code == 0
    base = backbones.load(str(model))
    torch.manual_seed(0)
    adapter = stir(adapters.build(kind, base, condition_channels=channels), 0.05)
    task = TASKS[channels]
    record = record_of(base, adapter).model_copy(update={"task": task, "method": method})
    format.write(out.parent / "adapter", adapter, record, "")
    with Hub.open() as hub:
        values = {"kind": kind, "steps": 4, "parameters": 1, "metrics": {}}
        ref = hub.catalog.registry.adapters.add(out.parent / "adapter", task=task, base="tiny", **values)[0].ref
    return codi("export", ref, "--base", "tiny", "-o", out, "--dtype", "fp32", "--format", form), ref


def picture(folder: Path, size: tuple[int, int], *, gray: bool) -> tuple[Image.Image, np.ndarray]:
    """Return a condition as an image file has it, RGB, and as our engine takes it; it is saved as condition.png."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 1 if gray else 3), np.uint8)
    image = Image.fromarray(pixels[..., 0] if gray else pixels).convert("RGB")
    image.save(folder / "condition.png")
    return image, pixels.astype(np.float32) / 255


def ours(ref: str, condition: np.ndarray, strength: float = 1.0, scale: float = 1.0) -> np.ndarray:
    with Hub.open(base="tiny") as hub:
        base, adapter, _ = hub.use(ref, device="cpu", dtype="fp32")
        negative = NEGATIVE if scale > 1 else None
        request = Request(condition, adapter, PROMPT, 7, strength, negative_prompt=negative)
        return Engine(base).generate([request], Sampling(guidance_scale=scale)).images[0]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind", "channels"), [("sd", "control", 1), ("sdxl", "lora", 3)])
def test_the_readme_of_a_file_with_original_names_makes_what_codi_run_does(
    codi: Callable[..., Any], folder_of: Callable[[str], Path], tmp_path: Path, name: str, kind: str, channels: int
) -> None:
    out = tmp_path / "net"
    answer, ref = exported(codi, folder_of(name), kind, "ldm", out, channels)
    assert answer.code == 0, answer.err
    file = f"codi-{ref.replace(':', '-')}.safetensors"
    assert {path.name for path in out.iterdir()} == {"README.md", "adapter.json", "config.json", file}
    image, condition = picture(tmp_path, (32, 48), gray=channels == 1)
    base = backbones.load(str(folder_of(name)))
    noise = gaussian((4, *base.latents.size(32, 48)), 7)[None]
    for strength in (1.0, 0.5):
        theirs = run_readme(out, folder_of(name), image, noise, strength=strength)
        assert np.abs(ours(ref, condition, strength) - theirs).max() < 1e-5
    assert theirs.std() > 0.02
    original = load_file(out / file)
    assert {key.split(".")[0] for key in original} == {"control_model"}
    stem = original["control_model.input_hint_block.0.weight"]
    assert stem.shape[1] == 3
    back = ldm_keys.to_diffusers({key.removeprefix(ldm_keys.PREFIX): value for key, value in original.items()})
    assert codi("export", ref, "--base", "tiny", "-o", tmp_path / "folder", "--dtype", "fp32").code == 0
    plain = load_file(tmp_path / "folder" / diffusers.WEIGHTS)
    assert back.keys() == plain.keys()
    assert all(torch.equal(back[key], value) for key, value in plain.items())


# ---- ComfyUI


class Posts(BaseHTTPRequestHandler):
    """Keeps the JSON documents that are posted to /prompt."""

    documents: list[Any]

    def do_POST(self) -> None:
        assert self.path == "/prompt"
        self.documents.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def comfyui_server() -> Iterator[tuple[str, list[Any]]]:
    handler = type("Handler", (Posts,), {"documents": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler.documents
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "channels"),
    [("eps", "control", 1), ("v", "lora", 3), ("sdxl", "control", 3), ("sd3", "control", 3), ("flux", "control", 1)],
)
def test_the_workflow_that_the_readmes_code_sends_makes_what_codi_run_does(
    codi: Callable[..., Any], folder_of: Callable[[str], Path], tmp_path: Path, comfyui_server: Any,
    monkeypatch: pytest.MonkeyPatch, name: str, kind: str, channels: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(TransformerBackbone, "native_cells", 12)  # FLUX's has 4096 tokens
    out = tmp_path / "net"
    answer, ref = exported(codi, folder_of(name), kind, "comfyui", out, channels)
    assert answer.code == 0, answer.err
    base = backbones.load(str(folder_of(name)))
    side = base.latents.native_size
    _, condition = picture(out, (side, side), gray=channels == 1)
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    server, documents = comfyui_server
    words = {"FOLDER": str(out), "SERVER": server, "BASE": "tiny", "prompt": PROMPT, "condition": "condition.png"}
    assert code.count('["strength"] = 1.0') == 1
    noise = gaussian((base.latents.channels, *base.latents.size(side, side)), 7)[None]
    for strength in (1.0, 0.5):
        exec(code.replace('["strength"] = 1.0', f'["strength"] = {strength}'), dict(words))
        theirs = Workflow(base, out, noise).run(documents.pop()["prompt"])
        # of a zero terminal SNR ComfyUI's first sigma is 4518.84
        assert np.abs(ours(ref, condition, strength) - theirs).max() < (1e-3 if name == "v" else 1e-5)
    assert theirs.std() > 0.02
    assert codi("export", ref, "--base", "tiny", "-o", out).code == 1  # condition.png is not an export's
    (out / "condition.png").unlink()
    assert codi("export", ref, "--base", "tiny", "-o", out, "--overwrite").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eps", "sd3"])
def test_what_is_not_distilled_goes_on_with_guidance(
    codi: Callable[..., Any], folder_of: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    answer, ref = exported(codi, folder_of(name), "control", "comfyui", tmp_path / "net", method="conditional")
    assert answer.code == 0, answer.err
    assert "- `cfg` is `--guidance-scale` of `codi run`" in (tmp_path / "net" / "README.md").read_text()
    base = backbones.load(str(folder_of(name)))
    side = base.latents.native_size
    _, condition = picture(tmp_path / "net", (side, side), gray=False)
    nodes = json.loads((tmp_path / "net" / "workflow.json").read_text())
    nodes["prompt"]["inputs"]["text"], nodes["negative"]["inputs"]["text"] = PROMPT, NEGATIVE
    nodes["sample"]["inputs"]["cfg"] = 3.0
    noise = gaussian((base.latents.channels, *base.latents.size(side, side)), 7)[None]
    theirs = Workflow(base, tmp_path / "net", noise).run(nodes)
    assert np.abs(ours(ref, condition, scale=3.0) - theirs).max() < 1e-5
    assert np.abs(ours(ref, condition) - theirs).max() > 0.01
    assert codi("export", ref, "--base", "tiny", "-o", tmp_path / "folder").code == 0
    text = (tmp_path / "folder" / "README.md").read_text()
    assert "- `guidance_scale` with `negative_prompt` is `--guidance-scale` of `codi run`" in text


@pytest.mark.parametrize(
    ("name", "kind", "channels", "form", "message"),
    [
        ("flux", "control", 3, "ldm", "is for a base of family flux, whose ControlNets have no original names: use"),
        ("z-image", "control", 3, "comfyui", "is for a base of family z-image, whose ControlNets ComfyUI does not"),
        ("sd3 of 5 blocks", "control", 3, "comfyui", "ComfyUI would add the 2 residuals after other blocks of a base"),
        ("eps", "control", 4, "ldm", "takes conditions of 4 channels, and A1111 takes images alone: use kind concat"),
        ("eps", "control", 4, "comfyui", "takes conditions of 4 channels, and ComfyUI takes images alone: use kind"),
        ("eps", "concat", 3, "comfyui", "is of kind concat, which is no ControlNet beside the base: use format diffu"),
        ("eps", "full", 3, "ldm", "is of kind full, which is not a ControlNet beside the base: use kind control"),
    ],
)
def test_what_a_single_file_cannot_hold_is_refused(
    codi: Callable[..., Any], folder_of: Callable[[str], Path], tmp_path: Path,
    name: str, kind: str, channels: int, form: str, message: str,
) -> None:  # fmt: skip
    answer, ref = exported(codi, folder_of(name), kind, form, tmp_path / "net", channels)
    assert (answer.code, answer.out, answer.err.count("\n")) == (1, "", 1)
    assert answer.err.startswith(f"Error: {ref}")
    assert message in answer.err
    assert not (tmp_path / "net").exists()
