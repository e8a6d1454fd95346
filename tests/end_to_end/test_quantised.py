"""A base in fewer bits through the command line: registered, trained on, run, and with the plain base's adapter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from families import MODELS
from gguf_files import write_gguf
from PIL import Image
from single_files import sd3_tensors, z_image_tensors
from test_families import SMALL, image

from codi_hub import backbones
from codi_hub.backbones import quantise
from codi_hub.config.base import BaseOptions

PREFIX = "model.diffusion_model."


def gguf_of(family: str, model: Path, path: Path, kind: str = "Q8_0") -> Path:
    """Write a model's network in GGUF, under the original names where the family's are known here."""
    base: Any = backbones.load(str(model))
    tensors = {"z-image": lambda: z_image_tensors(base.transformer), "sd3": lambda: sd3_tensors(base)}
    found = tensors.get(family, base.network.state_dict)()
    own = {name.removeprefix(PREFIX): value for name, value in found.items() if name.startswith(PREFIX)}
    return write_gguf(path, own or found, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "BF16"])
@pytest.mark.parametrize("family", [family for family in MODELS if family != "sdxl"])
def test_a_network_in_gguf_has_the_plain_ones_fingerprint(tmp_path: Path, family: str, kind: str) -> None:
    model = MODELS[family](tmp_path)
    file = gguf_of(family, model, tmp_path / "net.gguf", kind)
    base = backbones.load(BaseOptions(source=str(file), config=str(model), quantize="gguf"))
    plain = backbones.load(str(model))
    assert any(type(weight).__name__ == "GGUFParameter" for weight in base.network.parameters())
    assert base.dtype == plain.dtype
    assert base.fingerprint.family == plain.fingerprint.family
    assert base.fingerprint.differences(plain.fingerprint.sketch) == {}
    other = backbones.load(str(MODELS[family](tmp_path / "other")))
    other.network.get_submodule(other.input_layer).weight.data.mul_(1.5)
    assert [*base.fingerprint.differences(other.compute_fingerprint().sketch)] == ["network"]


def bitsandbytes_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nf4 load without a GPU: bitsandbytes computes there too, and only diffusers refuses to begin."""
    quantizer = "diffusers.quantizers.bitsandbytes.BnB4BitDiffusersQuantizer"
    monkeypatch.setattr(f"{quantizer}.validate_environment", lambda *args, **kwargs: None)
    monkeypatch.setattr(f"{quantizer}.update_device_map", lambda self, device_map: {"": "cpu"})
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)  # its packing needs wider layers
    monkeypatch.setattr(quantise, "GPU_ONLY", ())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8", "gguf", "nf4"])
def test_a_quantised_base_is_trained_on_and_runs_the_plain_ones_adapter(
    codi: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bitsandbytes_on_the_cpu(monkeypatch)
    model = MODELS["z-image"](tmp_path / "base")
    source = [gguf_of("z-image", model, tmp_path / "net.gguf"), "--config", model] if name == "gguf" else [model]
    assert codi("base", "add", "plain", model).code == 0
    answer = codi("base", "add", "tiny", *source, "--quantize", name)
    assert answer.code == 0, answer.err
    here = ["--base", "tiny", "--device", "cpu", "--steps", "1"]
    answer = codi("distill", "depth", "--kind", "concat", *SMALL, "--dry-run")
    assert answer.code == 0, answer.err
    assert "total" in answer.out
    answer = codi("distill", "depth", "--kind", "concat", *SMALL)
    assert answer.code == 0, answer.err
    answer = codi("distill", "edit", "--kind", "concat", *SMALL[:-1], "plain")
    assert answer.code == 0, answer.err
    for task, prompt in (("depth", []), ("edit", ["--prompt", "make it night"])):
        out = tmp_path / "out" / f"{task}.png"
        answer = codi("run", task, image(tmp_path / "in.png", 3), "-o", out, *here, *prompt)
        assert answer.code == 0, answer.err
        assert Image.open(out).size == (48, 32)
    assert "edit:1 was trained on base plain; it is used on tiny" in answer.err


def test_nf4_without_a_gpu_is_one_line(codi: Callable[..., Any], tmp_path: Path) -> None:
    answer = codi("base", "add", "tiny", MODELS["flux"](tmp_path), "--quantize", "nf4")
    assert answer.code == 2
    assert answer.err == "Error: --quantize nf4: bitsandbytes needs a GPU, and this is cpu; use int8\n"
