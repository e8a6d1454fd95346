"""codi base add with the files that people have, and what is done with such a base afterwards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import families
import pytest
import single_files
import torch
from tiny import save_base, scheduler_config

from codi_hub import Catalog, backbones
from codi_hub.config.base import BaseOptions
from codi_hub.errors import UsageError
from codi_hub.inference.models import ModelCache

LAYER = "down_blocks.1.attentions.0.proj_in"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sd") / "model"
    return save_base(folder, scheduler_config("epsilon"), vae="kl", addition_embed_type=None)


@pytest.fixture
def files(folder, tmp_path) -> tuple[Path, Path]:
    """The model in one file, and a LoRA for it."""
    base = backbones.load(str(folder))
    tensors = single_files.sd1_tensors(base.unet, base.vae, *base.text_encoders)
    lora = single_files.kohya_lora(base.unet, "lora_unet", [LAYER])
    return (
        single_files.write(tmp_path / "model.safetensors", tensors),
        single_files.write(tmp_path / "lora.safetensors", lora),
    )


def test_a_file_is_added_and_loaded_as_it_was_added(codi, home, folder, files, monkeypatch):
    model, lora = files
    monkeypatch.chdir(model.parent)
    card = ("--distilled", "--steps", 4)
    answer = codi("base", "add", "mine", model.name, "--config", folder, "--lora", f"{lora.name}:0.5", *map(str, card))
    said = "Added base mine, distilled for 4 steps. Make it the default with `codi base use mine`.\n"
    assert answer == (0, said, "")
    document = json.loads(codi("base", "show", "mine", "--json").out)
    assert document["source"] == str(model)
    assert document["options"] == {"config": str(folder), "loras": [f"{lora}:0.5"]}
    assert document["card"] == {"distilled": True, "steps": 4}
    with Catalog.open() as catalog:
        loaded = ModelCache(lambda: catalog.registry).base("mine")
    plain = backbones.load(str(folder))
    found, theirs = loaded.unet.state_dict(), plain.unet.state_dict()
    changed = [name for name, value in found.items() if not torch.equal(value, theirs[name].to(value))]
    assert changed == [f"{LAYER}.weight"]


def test_a_base_that_has_moved_is_pointed_to_its_new_place(codi, home, folder, tmp_path):
    first = Path(shutil.copytree(folder, tmp_path / "first"))
    assert codi("base", "add", "mine", first, "--distilled", "--steps", "4").code == 0
    second = Path(shutil.move(first, tmp_path / "second"))
    assert codi("base", "add", "mine", second).code == 0
    document = json.loads(codi("base", "show", "mine", "--json").out)
    assert (document["source"], document["card"]) == (str(second), {"distilled": True, "steps": 4})
    assert codi("base", "add", "mine", second, "--distilled", "--steps", "2").code == 0
    assert json.loads(codi("base", "show", "mine", "--json").out)["card"] == {"distilled": True, "steps": 2}


def test_a_name_of_other_weights_is_not_taken_over(codi, home, folder, files):
    _, lora = files
    assert codi("base", "add", "mine", folder).code == 0
    other = save_base(lora.parent / "other", scheduler_config("epsilon"), vae="kl", addition_embed_type=None, seed=9)
    code, out, error = codi("base", "add", "mine", other)
    assert (code, out) == (1, "")
    assert error.startswith(f"Error: base 'mine' exists already, from {folder}")
    code, _, error = codi("base", "add", "mine", folder, "--lora", lora)
    assert (code, error.count("\n")) == (1, 1)
    assert "exists already" in error
    next(folder.glob("vae/*.safetensors")).touch()  # the same again is no other base
    assert codi("base", "add", "mine", folder).code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--config", "sd99"), "Error: config sd99: neither a folder nor one of sd15, sd21, sd21-base, sdxl\n"),
        (("--vae", "gone.safetensors"), "Error: no file or folder gone.safetensors, which was named as vae\n"),
        (("--text-encoder", "a", "--text-encoder", "b"), "Error: --text-encoder: 2 are named, and the model has 1\n"),
        (("--lora", "gone.safetensors:0.5"), "Error: no LoRA file gone.safetensors\n"),
        (("--quantize", "int3"), "Error: --quantize int3: one of int8, nf4, gguf\n"),
        (("--quantize", "gguf"), "Error: --quantize gguf: name a .gguf file as the source, and its configs\n"),
        (("--steps", "0"), "Error: --steps 0: at least 1\n"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_an_option_that_cannot_be_is_refused_by_its_flag(codi, home, files, folder, options, message):
    source = files[0] if options[0] == "--config" else folder
    answer = codi("base", "add", "mine", source, *options)
    assert (answer.out, answer.err) == ("", message)
    assert codi("base", "show", "mine").code == 1


def test_options_name_their_scale_and_survive_the_registry(tmp_path):
    (tmp_path / "a.safetensors").touch()
    options = BaseOptions(source=tmp_path, loras=[tmp_path / "a.safetensors", "b:c.safetensors:-0.5"], steps=4)
    assert options.scaled_loras() == [(tmp_path / "a.safetensors", 1.0), (Path("b:c.safetensors"), -0.5)]
    assert (options.stored(), options.card()) == ({"loras": list(options.loras)}, {"steps": 4})
    with pytest.raises(UsageError, match=r"^guidance -1: at least 0"):
        BaseOptions(source="x", guidance=-1)


def _edited(folder: Path, name: str, text: str | None) -> Path:
    """Return a copy of a model with one file replaced, or removed."""
    copy = Path(shutil.copytree(folder, folder.parent / f"edited-{name.replace('/', '-')}"))
    (copy / name).unlink() if text is None else (copy / name).write_text(text)
    return copy


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("unet/config.json", "[1]"),
        ("model_index.json", '{"unet": [1]}'),
        ("scheduler/scheduler_config.json", '{"_class_name": "DDIMScheduler", "beta_start": "a"}'),
        ("vae/config.json", '{"_class_name": "AutoencoderKL", "scaling_factor": null}'),
        ("scheduler/scheduler_config.json", None),
    ],
)
def test_a_damaged_config_is_one_line(codi, home, folder, tmp_path, name, text):
    answer = codi("base", "add", "other", _edited(Path(shutil.copytree(folder, tmp_path / "model")), name, text))
    assert answer.code == 1
    assert answer.err.count("\n") == 1
    assert "unexpected" not in answer.err
    assert str(tmp_path) in answer.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--steps", "4"), "--steps 4: only a distilled base is made for some steps; set distilled, or leave it out"),
        (("--config", "sdxl"), "--config sdxl: it is for a single file, and {folder} has its own; leave it out"),
        (("--lora", "a.safetensors:nan"), "--lora a.safetensors:nan: its scale has to be a finite number"),
        (
            ("--vae", "{folder}/unet"),
            "--vae {folder}/unet: it is UNet2DConditionModel, and the vae has to be AutoencoderKL; name another",
        ),
        (
            ("--text-encoder", "{folder}/vae"),
            "--text-encoder {folder}/vae: it is AutoencoderKL, and the text_encoder has to be CLIPTextModel; name "
            "another",
        ),
    ],
)
def test_an_option_that_cannot_be_is_refused(codi, home, folder, options, message):
    asked = [option.format(folder=folder) for option in options]
    answer = codi("base", "add", "other", folder, *asked)
    assert answer == (2, "", f"Error: {message.format(folder=folder)}\n")
    assert codi("base", "list", "-q").out.split() == ["nano"]


def test_text_encoders_and_tokenizers_in_another_order_are_refused(codi, home, tmp_path):
    model = families.flux(tmp_path)
    for field, second in (("text-encoder", "T5EncoderModel"), ("tokenizer", "T5Tokenizer")):
        component = field.replace("-", "_")
        other = model / f"{component}_2"
        answer = codi("base", "add", "other", model, f"--{field}", other, f"--{field}", model / component)
        assert answer.code == 2
        assert answer.err.startswith(f"Error: --{field} {other}: it is {second}, and the {component} has to be CLIP")
        assert answer.err.endswith("in the pipeline's order\n")


def test_a_network_with_another_family_s_configs_is_refused(codi, home, tmp_path):
    flux, sd3 = families.flux(tmp_path / "flux"), families.sd3(tmp_path / "sd3")
    file = flux / "transformer" / "diffusion_pytorch_model.safetensors"
    answer = codi("base", "add", "other", file, "--config", sd3)
    assert answer.code == 1
    assert answer.err.count("\n") == 1
    assert "another model's" in answer.err


def test_a_name_that_no_base_can_have_is_refused_before_anything_is_read(codi, home):
    answer = codi("base", "add", "my base", "nowhere.safetensors")
    assert answer.code == 2
    assert "'my base' cannot name a base" in answer.err
