"""A base loads the same from every form of its files, and files that are no whole base are refused by name."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import families
import pytest
import single_files
import torch
from safetensors.torch import load_file, save_file
from tiny import save_base, scheduler_config
from torch import Tensor

from codi_hub import backbones
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.sources import snapshot
from codi_hub.config.base import BaseOptions
from codi_hub.errors import CodiError, InvalidInput, NotFound, UsageError

FAMILIES: dict[str, Callable[[Path], Path]] = {
    "sd": lambda folder: save_base(
        folder / "model", scheduler_config("epsilon"), vae="kl", addition_embed_type=None, layers_per_block=2
    ),
    "sdxl": families.sdxl,
    "sd3": families.sd3,
    "flux": families.flux,
    "z-image": families.z_image,
}
ORIGINAL = {
    "sd": lambda base: single_files.sd1_tensors(base.unet, base.vae, *base.text_encoders),
    "sd2": lambda base: single_files.sd2_tensors(base.unet, base.vae, *base.text_encoders),
    "sdxl": lambda base: single_files.sdxl_tensors(base.unet, base.vae, *base.text_encoders),
    "sd3": single_files.sd3_tensors,
    "z-image": lambda base: single_files.z_image_tensors(base.transformer),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: build(tmp_path_factory.mktemp(name)) for name, build in FAMILIES.items()}


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(folders: dict[str, Path], family: str, tmp_path: Path) -> Path:
    """A model folder that a test may change."""
    return Path(shutil.copytree(folders[family], tmp_path / "model"))


def networks(folder: Path) -> Iterator[Path]:
    """The weight file of every network of a folder."""
    yield from sorted(folder.glob("*/*.safetensors"))


def same(found: Backbone, expected: Backbone, as_stored: torch.dtype = torch.float32) -> None:
    """Check that two bases have the same weights, tokenizers and schedule."""
    theirs = expected.state_dict()
    for name, value in found.state_dict().items():
        assert torch.equal(value, theirs[name].to(as_stored).to(value)), name
    assert len(theirs) == len(found.state_dict())
    ids = [tokenizer("a red ball").input_ids for tokenizer in tokenizers(expected)]
    assert [tokenizer("a red ball").input_ids for tokenizer in tokenizers(found)] == ids
    assert found.schedule_for(64, 64).grid(4) == expected.schedule_for(64, 64).grid(4)


def tokenizers(base: Any) -> list[Any]:
    if hasattr(base, "tokenizers"):
        return list(base.tokenizers)
    return [part for name, part in base.text_parts.items() if name.startswith("tokenizer")]


def as_variant(path: Path) -> None:
    """Replace a weight file by its fp16 variant."""
    tensors = load_file(path)
    path.unlink()
    save_file(
        {name: value.half() for name, value in tensors.items()},
        path.with_name(f"{path.stem}.fp16.safetensors"),
        {"format": "pt"},
    )


def shard(path: Path, variant: str = "") -> None:
    """Replace a weight file by two shards and an index."""
    tensors = load_file(path)
    path.unlink()
    names = sorted(tensors)
    parts = [names[::2], names[1::2]]
    files = [f"{path.stem}{variant}-0000{k}-of-00002.safetensors" for k in (1, 2)]
    for file, part in zip(files, parts, strict=True):
        save_file({name: tensors[name] for name in part}, path.with_name(file), {"format": "pt"})
    table = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    index = {"metadata": {}, "weight_map": table}
    path.with_name(f"{path.stem}.safetensors.index{variant}.json").write_text(json.dumps(index))


# ---- forms


def test_the_fp16_variant_is_read_where_it_is_all_there_is(folder: Path) -> None:
    expected = backbones.load(str(folder))
    for path in networks(folder):
        as_variant(path)
    same(backbones.load(str(folder)), expected, torch.float16)


def test_the_plain_files_are_read_in_float32_and_the_variant_in_16_bit(folders, tmp_path) -> None:
    folder = Path(shutil.copytree(folders["sd"], tmp_path / "model"))
    plain = folder / "unet" / "diffusion_pytorch_model.safetensors"
    zeros = {name: torch.zeros_like(value) for name, value in load_file(plain).items()}
    save_file(zeros, plain.with_name("diffusion_pytorch_model.fp16.safetensors"), {"format": "pt"})
    assert backbones.load(str(folder)).unet.conv_in.weight.abs().max() > 0
    assert backbones.load(str(folder), dtype=torch.bfloat16).unet.conv_in.weight.abs().max() == 0
    options = BaseOptions(source=str(folder), variant="fp16")
    assert backbones.load(options).unet.conv_in.weight.abs().max() == 0
    with pytest.raises(UsageError) as refused:
        backbones.load(options.replace(variant="bf16"))
    assert str(refused.value) == f"variant bf16: {folder} has no weights of that name; leave it out"


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards_are_read(folder: Path, variant: str) -> None:
    expected = backbones.load(str(folder))
    for path in networks(folder):
        shard(path, variant)
    same(backbones.load(str(folder)), expected)


def test_a_shard_that_is_missing_is_named(folders, tmp_path) -> None:
    folder = Path(shutil.copytree(folders["sd"], tmp_path / "model"))
    shard(folder / "unet" / "diffusion_pytorch_model.safetensors")
    (folder / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InvalidInput, match=r"1 of 2 files .*diffusion_pytorch_model-00002-of-00002.*download them"):
        backbones.load(str(folder))


def test_a_folder_needs_no_model_index(folder: Path) -> None:
    expected = backbones.load(str(folder))
    (folder / "model_index.json").unlink(missing_ok=True)
    same(backbones.load(str(folder)), expected)


def test_a_cache_folder_of_the_hub_means_its_main_snapshot(folders, tmp_path) -> None:
    root = tmp_path / "models--owner--name"
    shutil.copytree(folders["sd"], root / "snapshots" / "abc")
    shutil.copytree(folders["sd"] / "unet", root / "snapshots" / "old" / "unet")
    with pytest.raises(NotFound, match="no snapshot called main; name one of abc, old"):
        snapshot(root)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("abc")
    assert snapshot(root) == root / "snapshots" / "abc"
    assert snapshot(root, "old") == root / "snapshots" / "old"
    same(backbones.load(str(root)), backbones.load(str(folders["sd"])))


def test_a_network_alone_is_completed_by_the_config_folder(folder: Path, tmp_path: Path) -> None:
    expected = backbones.load(str(folder))
    weights = next(folder.glob(f"{expected.network_name}/*.safetensors"))
    alone = Path(shutil.move(weights, tmp_path / "network.safetensors"))
    same(backbones.load(BaseOptions(source=str(alone), config=str(folder))), expected)


def test_components_come_from_files_and_folders_of_their_own(folder: Path, tmp_path: Path) -> None:
    expected = backbones.load(str(folder))
    files, tokens = {}, []
    for path in networks(folder):
        files[path.parent.name] = str(shutil.move(path, tmp_path / f"{path.parent.name}.safetensors"))
    for path in sorted(folder.glob("tokenizer*")):
        tokens.append(str(shutil.move(path, tmp_path / f"{path.name}-elsewhere")))
    options = BaseOptions(
        source=files.pop(expected.network_name),
        config=str(folder),
        vae=files.pop("vae"),
        text_encoders=[files[name] for name in sorted(files)],
        tokenizers=tokens,
    )
    same(backbones.load(options), expected)


@pytest.mark.parametrize("form", list(ORIGINAL))
def test_a_file_with_the_original_names_loads_as_the_same_model(folders, form: str, tmp_path: Path) -> None:
    folder = folders[form.replace("sd2", "sd")]
    expected = backbones.load(str(folder))
    file = single_files.write(tmp_path / "model.safetensors", ORIGINAL[form](expected))
    same(backbones.load(BaseOptions(source=str(file), config=str(folder))), expected)


def test_sd3_in_a_file_without_t5_is_sd3_without_t5(folders, tmp_path: Path) -> None:
    config = Path(shutil.copytree(folders["sd3"], tmp_path / "config"))
    tensors = ORIGINAL["sd3"](backbones.load(str(config)))
    for path in networks(config):
        path.unlink()
    file = single_files.write(
        tmp_path / "sd3.safetensors", {name: value for name, value in tensors.items() if ".t5xxl." not in name}
    )
    base: Any = backbones.load(BaseOptions(source=str(file), config=str(config)))
    assert len(base.text_encoders) == 2
    file = single_files.write(
        tmp_path / "sd3.safetensors", {name: value for name, value in tensors.items() if ".clip_g." not in name}
    )
    with pytest.raises(UsageError, match=r"^text_encoders: the model has no text_encoder_2"):
        backbones.load(BaseOptions(source=str(file), config=str(config)))


def test_loading_a_file_leaves_it_as_it_is(folders, tmp_path: Path) -> None:
    folder = folders["sd"]
    base = backbones.load(str(folder))
    file = single_files.write(tmp_path / "model.safetensors", ORIGINAL["sd"](base))
    before = file.read_bytes()
    lora = single_files.write(
        tmp_path / "lora.safetensors", single_files.kohya_lora(base.unet, "lora_unet", ["conv_in"])
    )
    backbones.load(BaseOptions(source=str(file), config=str(folder), loras=[str(lora)]))
    assert file.read_bytes() == before


# ---- refusals


def without(tensors: Mapping[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if name not in names}


def test_missing_and_unknown_tensors_are_refused_with_their_names(folder: Path) -> None:
    for path in networks(folder):
        tensors = load_file(path)
        missing = sorted(tensors)[1]
        save_file(without(tensors, missing), path, {"format": "pt"})
        with pytest.raises(
            InvalidInput, match=rf"{path.parent.name} of .* lacks 1 tensors \(.*{missing[-12:]}\)"
        ) as caught:
            backbones.load(str(folder))
        assert "\n" not in str(caught.value)
        save_file(tensors | {"surplus.weight": torch.zeros(2)}, path, {"format": "pt"})
        with pytest.raises(InvalidInput, match=rf"{path.parent.name} of .* has unknown 1 tensors \(.*surplus.weight\)"):
            backbones.load(str(folder))
        save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("form", list(ORIGINAL))
def test_a_file_that_lacks_or_exceeds_its_config_is_refused(folders, form: str, tmp_path: Path) -> None:
    folder = folders[form.replace("sd2", "sd")]
    tensors = ORIGINAL[form](backbones.load(str(folder)))
    lost = next(name for name in sorted(tensors) if ".out.2.weight" in name or "final_layer.linear.weight" in name)
    file = single_files.write(tmp_path / "model.safetensors", without(tensors, lost))
    options = BaseOptions(source=str(file), config=str(folder))
    with pytest.raises(InvalidInput, match="lacks 1 tensors"):
        backbones.load(options)
    single_files.write(file, tensors | {"model.diffusion_model.more.0.weight": torch.zeros(3)})
    with pytest.raises(InvalidInput, match=r"has unknown 1 tensors \(.*more\.0\.weight\)"):
        backbones.load(options)


@pytest.mark.parametrize("name", ["unet.ckpt", "unet.bin", "unet.pt"])
def test_a_pickle_is_refused_with_the_remedy(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InvalidInput, match=rf"{name} is a pickle, .*convert it to safetensors"):
        backbones.load(str(tmp_path / name))


def test_a_folder_of_pickles_is_refused_with_the_remedy(folders, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["sd"], tmp_path / "model"))
    next(folder.glob("unet/*.safetensors")).rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(InvalidInput, match=r"unet/diffusion_pytorch_model\.bin is a pickle, .*convert"):
        backbones.load(str(folder))


INPUT, LABELS = "model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.label_emb.0.0.weight"
LAYER = "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({LAYER: (4, 320)}, "is a LoRA: .*its LoRA"),
        ({"unet.conv_in.lora_A.weight": (4, 4)}, "is a LoRA"),
        ({"control_model.input_hint_block.0.weight": (16, 3, 3, 3)}, "is a ControlNet"),
        ({"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3), "conv_in.weight": (320, 4, 3, 3)}, "a ControlNet"),
        ({"emb_params": (2, 768)}, "textual-inversion"),
        ({INPUT: (320, 9, 3, 3)}, "inpainting model, .*9 input channels.*inpaint"),
        ({INPUT: (320, 8, 3, 3)}, "editing or upscaling"),
        ({INPUT: (384, 4, 3, 3), LABELS: (1536, 2560)}, "SDXL refiner"),
        ({INPUT: (320, 4, 3, 3), "edm_mean": (1,)}, "Playground"),
        ({"encoder.conv_in.weight": (128, 3, 3, 3)}, "is an autoencoder: name it beside"),
        ({"text_model.final_layer_norm.weight": (768,)}, "is a text encoder: name it beside"),
        ({"something.weight": (3,)}, "no model that is known"),
    ],
    ids=lambda value: value.split(":")[0] if isinstance(value, str) else "",
)
def test_a_file_that_is_no_base_is_refused_by_what_it_is(tmp_path: Path, tensors, message: str) -> None:
    file = single_files.write(tmp_path / "file.safetensors", {name: torch.zeros(s) for name, s in tensors.items()})
    with pytest.raises(CodiError, match=message) as caught:
        backbones.load(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "no header"), (b"\xff" * 40, "no header"), (b"\x02" + b"\0" * 7 + b"{]", "Expecting")]
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "file.safetensors").write_bytes(content)
    with pytest.raises(InvalidInput, match=f"not a safetensors file, or damaged: .*{reason}") as caught:
        backbones.load(str(tmp_path / "file.safetensors"))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_cut_off_is_refused_before_it_is_read(folders, tmp_path: Path) -> None:
    source = next(folders["sd"].glob("unet/*.safetensors"))
    (file := tmp_path / "unet.safetensors").write_bytes(source.read_bytes()[:-10])
    with pytest.raises(InvalidInput, match="it is cut off"):
        backbones.load(str(file))


def test_what_a_file_has_no_configs_for_is_asked_for(folders, tmp_path: Path) -> None:
    base = backbones.load(str(folders["z-image"]))
    file = single_files.write(tmp_path / "z.safetensors", ORIGINAL["z-image"](base))
    with pytest.raises(UsageError, match=r"^config: .*z\.safetensors is Z-Image, of which no configs are built in"):
        backbones.load(str(file))


def test_parts_that_a_file_lacks_are_asked_for_by_their_field(folders, tmp_path: Path) -> None:
    base = backbones.load(str(folders["sd"]))
    tensors = ORIGINAL["sd"](base)
    alone = {name: value for name, value in tensors.items() if name.startswith("model.")}
    file = single_files.write(tmp_path / "unet.safetensors", alone)
    with pytest.raises(UsageError, match=r"^vae: the model has no vae; name a folder or a safetensors file"):
        backbones.locate(BaseOptions(source=str(file), config="sd15")).load()
    (bare := Path(shutil.copytree(folders["z-image"], tmp_path / "bare"))).joinpath("tokenizer")
    shutil.rmtree(bare / "tokenizer")
    with pytest.raises(UsageError, match=r"^tokenizers: the model has no tokenizer"):
        backbones.load(str(bare))


@pytest.mark.parametrize(("stated", "predicts"), [("v", "v_prediction"), ("epsilon", "epsilon"), (None, None)])
def test_sd2_says_what_it_predicts_or_is_asked(folders, tmp_path: Path, stated, predicts) -> None:
    base = backbones.load(str(folders["sd"]))
    told = {"modelspec.prediction_type": stated} if stated else {}
    file = single_files.write(tmp_path / "sd2.safetensors", ORIGINAL["sd2"](base), **told)
    if stated is None:
        with pytest.raises(UsageError, match=r"^config: .* is SD 2\.x .*sd21 \(768 px, v\) or sd21-base"):
            backbones.locate(BaseOptions(source=str(file)))
        return
    located = backbones.locate(BaseOptions(source=str(file)))
    assert located.files.configs["scheduler"]["prediction_type"] == predicts
    assert located.files.configs["unet"]["cross_attention_dim"] == 1024


def test_a_v_predicting_sdxl_is_recognised_by_its_marker(folders, tmp_path: Path) -> None:
    tensors = ORIGINAL["sdxl"](backbones.load(str(folders["sdxl"])))
    marks = {"v_pred": torch.zeros(()), "ztsnr": torch.zeros(())}
    file = single_files.write(tmp_path / "xl.safetensors", tensors | marks)
    scheduler = backbones.locate(BaseOptions(source=str(file))).files.configs["scheduler"]
    assert (scheduler["prediction_type"], scheduler["rescale_betas_zero_snr"]) == ("v_prediction", True)
