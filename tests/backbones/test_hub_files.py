"""What is fetched of a hub repository: one variant of the needed components, once, at one commit."""

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import families
import huggingface_hub
import pytest
from safetensors.torch import load_file, save_file

from codi_hub import backbones
from codi_hub.backbones.flux import FluxBackbone
from codi_hub.backbones.hub_files import config_names, weight_names
from codi_hub.backbones.sd3 import SD3Backbone
from codi_hub.backbones.sdxl import SDXLBackbone
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.config.base import BaseOptions
from codi_hub.errors import InvalidInput, NotFound, UsageError

TOKENIZER = "merges.txt special_tokens_map.json tokenizer_config.json vocab.json"
T5_TOKENIZER = "special_tokens_map.json spiece.model tokenizer.json tokenizer_config.json"
CONVERSIONS = "openvino_model.bin openvino_model.xml model.onnx model.onnx_data flax_model.msgpack"
VARIANTS = "config.json {0}.safetensors {0}.fp16.safetensors"
PICKLED = "pytorch_model.bin pytorch_model.fp16.bin"
UNET = "diffusion_pytorch_model"


def repository(root: str = "", **components: str) -> list[str]:
    """File names of a repository: at its root, and in folders."""
    names = [f"{folder}/{name}" for folder, inside in components.items() for name in inside.split()]
    return [".gitattributes", "README.md", "model_index.json", *root.split(), *names]


SD15 = repository(
    "v1-5-pruned-emaonly.ckpt v1-5-pruned-emaonly.safetensors v1-5-pruned.ckpt v1-5-pruned.safetensors",
    feature_extractor="preprocessor_config.json",
    safety_checker=f"{VARIANTS.format('model')} {PICKLED}",
    scheduler="scheduler_config.json",
    text_encoder=f"{VARIANTS.format('model')} {PICKLED}",
    tokenizer=TOKENIZER,
    unet=f"{VARIANTS.format(UNET)} {UNET}.bin {UNET}.fp16.bin {UNET}.non_ema.bin {UNET}.non_ema.safetensors",
    vae=f"{VARIANTS.format(UNET)} {UNET}.bin {UNET}.fp16.bin",
)
SDXL = repository(
    "01.png LICENSE.md sd_xl_base_1.0.safetensors sd_xl_base_1.0_0.9vae.safetensors "
    "sd_xl_offset_example-lora_1.0.safetensors",
    scheduler="scheduler_config.json",
    text_encoder=f"{VARIANTS.format('model')} {CONVERSIONS}",
    text_encoder_2=f"{VARIANTS.format('model')} {CONVERSIONS}",
    tokenizer=TOKENIZER,
    tokenizer_2=TOKENIZER,
    unet=f"{VARIANTS.format(UNET)} diffusion_flax_model.msgpack {CONVERSIONS}",
    vae=f"{VARIANTS.format(UNET)} diffusion_flax_model.msgpack",
    vae_1_0=VARIANTS.format(UNET),
    vae_decoder=f"config.json {CONVERSIONS}",
    vae_encoder=f"config.json {CONVERSIONS}",
)
SHARDED_T5 = (
    "config.json model-00001-of-00002.safetensors model-00002-of-00002.safetensors model.safetensors.index.json"
)
SD3_T5 = (
    "model.fp16-00001-of-00002.safetensors model.fp16-00002-of-00002.safetensors model.safetensors.index.fp16.json "
    + SHARDED_T5
)
SD35 = repository(
    "LICENSE.md sd3.5_medium.safetensors sd3.5_medium_demo.jpg",
    scheduler="scheduler_config.json",
    text_encoder="config.json model.safetensors model.fp16.safetensors",
    text_encoder_2="config.json model.safetensors model.fp16.safetensors",
    text_encoder_3=SD3_T5,
    text_encoders="clip_g.safetensors clip_l.safetensors t5xxl_fp16.safetensors t5xxl_fp8_e4m3fn.safetensors",
    tokenizer=TOKENIZER,
    tokenizer_2=TOKENIZER,
    tokenizer_3=T5_TOKENIZER,
    transformer=f"config.json {UNET}.safetensors",
    vae=f"config.json {UNET}.safetensors",
)
SHARDS = " ".join(f"{UNET}-0000{k}-of-00003.safetensors" for k in (1, 2, 3))
FLUX = repository(
    "ae.safetensors dev_grid.jpg flux1-dev.safetensors LICENSE.md",
    scheduler="scheduler_config.json",
    text_encoder="config.json model.safetensors",
    text_encoder_2=SHARDED_T5,
    tokenizer=TOKENIZER,
    tokenizer_2=T5_TOKENIZER,
    transformer=f"config.json {SHARDS} {UNET}.safetensors.index.json",
    vae=f"config.json {UNET}.safetensors",
)
REPOSITORIES = {
    "sd15": (SD15, UNetBackbone),
    "sdxl": (SDXL, SDXLBackbone),
    "sd3.5": (SD35, SD3Backbone),
    "flux": (FLUX, FluxBackbone),
}
WEIGHTS = {
    "sd15": [f"unet/{UNET}.safetensors", f"vae/{UNET}.safetensors", "text_encoder/model.safetensors"],
    "sdxl": [
        f"unet/{UNET}.safetensors",
        f"vae/{UNET}.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
    ],
    "sd3.5": [
        f"transformer/{UNET}.safetensors",
        f"vae/{UNET}.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
        "text_encoder_3/model-00001-of-00002.safetensors",
        "text_encoder_3/model-00002-of-00002.safetensors",
    ],
    "flux": [
        *(f"transformer/{name}" for name in SHARDS.split()),
        f"vae/{UNET}.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder_2/model-00001-of-00002.safetensors",
        "text_encoder_2/model-00002-of-00002.safetensors",
    ],
}


@pytest.mark.parametrize("name", list(REPOSITORIES))
def test_one_variant_of_the_needed_components_is_fetched(name: str) -> None:
    names, family = REPOSITORIES[name]
    assert weight_names(names, family.components, None) == WEIGHTS[name]


def test_the_variant_that_was_asked_for_is_fetched_where_there_is_one() -> None:
    found = weight_names(SD35, SD3Backbone.components, "fp16")
    assert found == [
        f"transformer/{UNET}.safetensors",
        f"vae/{UNET}.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder_2/model.fp16.safetensors",
        "text_encoder_3/model.fp16-00001-of-00002.safetensors",
        "text_encoder_3/model.fp16-00002-of-00002.safetensors",
    ]
    assert weight_names(SD15, ["unet"], "non_ema") == [f"unet/{UNET}.non_ema.safetensors"]
    with pytest.raises(UsageError, match=r"^variant bf16: the repository has no weights of that name; leave it out$"):
        weight_names(SD15, ["unet", "vae"], "bf16")
    only_half = [name for name in SD15 if not name.endswith(f"{UNET}.safetensors")]
    assert weight_names(only_half, ["unet"], None) == [f"unet/{UNET}.fp16.safetensors"]


def test_of_a_component_in_pickles_nothing_is_fetched() -> None:
    names = [name for name in SD15 if not name.startswith("unet/") or name.endswith((".bin", ".json"))]
    with pytest.raises(InvalidInput, match=r"unet has no safetensors files \(only pickles"):
        weight_names(names, ["unet", "vae"], None)


def test_configs_and_vocabularies_of_the_pipelines_components_are_fetched() -> None:
    index = {name: ["diffusers", "X"] for name in ("scheduler", "unet", "vae", "text_encoder", "tokenizer")}
    index |= {"safety_checker": ["stable_diffusion", "X"], "feature_extractor": ["transformers", "X"]}
    assert config_names(SD15, index | {"image_encoder": [None, None], "_class_name": "X"}) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        *(f"tokenizer/{name}" for name in TOKENIZER.split()),
        "unet/config.json",
        "vae/config.json",
    ]
    index = {"transformer": ["diffusers", "X"], "tokenizer_2": ["transformers", "X"]}
    assert config_names(FLUX, index) == [
        "model_index.json",
        *(f"tokenizer_2/{name}" for name in T5_TOKENIZER.split()),
        "transformer/config.json",
        f"transformer/{UNET}.safetensors.index.json",
    ]


# ---- a hub


COMMIT = "c" * 40


class FakeHub:
    """A hub with one repository, and the cache of this machine."""

    def __init__(self, repo: Path, cache: Path) -> None:
        self.repo, self.cache, self.online, self.fetched = repo, cache, True, list[str]()

    def model_info(self, source: str, revision: str | None = None) -> Any:
        self._check(source)
        names = [str(path.relative_to(self.repo)) for path in sorted(self.repo.rglob("*")) if path.is_file()]
        return SimpleNamespace(sha=COMMIT, siblings=[SimpleNamespace(rfilename=name) for name in names])

    def snapshot_download(self, source: str, revision=None, allow_patterns=None, local_files_only=False) -> str:
        folder = self.cache / "snapshots" / COMMIT
        if local_files_only:
            if not folder.is_dir() or revision not in (None, COMMIT):
                raise FileNotFoundError("not in the cache")
            return str(folder)
        self._check(source)
        for path in self.repo.rglob("*"):
            name = str(path.relative_to(self.repo))
            if path.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, folder / name)
                self.fetched.append(name)
        return str(folder)

    def _check(self, source: str) -> None:
        if not self.online or source != "owner/model":
            raise ConnectionError("the hub cannot be reached\nat all")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    folder = families.sdxl(tmp_path)
    for path in list(folder.glob("*/*.safetensors")):
        shutil.copy(path, path.with_name(f"{path.stem}.fp16.safetensors"))
        path.with_suffix(".bin").touch()
    (folder / "model.ckpt").touch()
    (folder / "sd_xl.safetensors").touch()
    (folder / "safety_checker").mkdir()
    shutil.copy(folder / "unet" / "config.json", folder / "safety_checker" / "config.json")
    fake = FakeHub(folder, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_a_hub_model_is_fetched_once_and_its_commit_kept(hub: FakeHub) -> None:
    located = backbones.locate(BaseOptions(source="owner/model"))
    assert located.options.revision == COMMIT
    weights = sorted(name for name in hub.fetched if not name.endswith((".json", ".txt")))
    assert weights == [
        "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
        f"unet/{UNET}.safetensors",
        f"vae/{UNET}.safetensors",
    ]
    assert not any(name.startswith("safety_checker") for name in hub.fetched)
    hub.fetched.clear()
    hub.online = False
    assert backbones.load(located.options).family == "sdxl"
    assert backbones.load("owner/model").family == "sdxl"  # the cache has it
    assert hub.fetched == []


def test_a_component_that_is_named_is_not_fetched(hub: FakeHub) -> None:
    vae = str(hub.repo / "vae")
    backbones.load(BaseOptions(source="owner/model", vae=vae, text_encoders=[str(hub.repo / "text_encoder")]))
    assert not any(name.startswith(("vae/", "text_encoder/")) and name.endswith(".safetensors") for name in hub.fetched)


def test_without_the_hub_one_line_says_so(hub: FakeHub) -> None:
    hub.online = False
    with pytest.raises(
        NotFound, match=r"'owner/model' is neither a folder or file here nor .* cannot be reached"
    ) as caught:
        backbones.load("owner/model")
    assert "\n" not in str(caught.value)


def test_a_commit_that_is_half_there_is_completed(hub: FakeHub) -> None:
    options = backbones.locate(BaseOptions(source="owner/model")).options
    (hub.cache / "snapshots" / COMMIT / "unet" / f"{UNET}.safetensors").unlink()
    hub.fetched.clear()
    backbones.load(options)
    assert f"unet/{UNET}.safetensors" in hub.fetched


def test_a_model_of_which_a_shard_is_missing_is_completed(hub: FakeHub) -> None:
    whole = hub.repo / "unet" / f"{UNET}.safetensors"
    tensors = load_file(whole)
    parts = {f"{UNET}-0000{k + 1}-of-00002.safetensors": [*tensors][k::2] for k in range(2)}
    for name, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, whole.with_name(name), metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: name for name, keys in parts.items() for key in keys}}
    whole.with_name(f"{UNET}.safetensors.index.json").write_text(json.dumps(index))
    whole.unlink()
    options = backbones.locate(BaseOptions(source="owner/model")).options
    (hub.cache / "snapshots" / COMMIT / "unet" / [*parts][1]).unlink()
    backbones.load(options)


def test_a_repository_of_single_files_is_refused_with_the_file_to_take(hub: FakeHub) -> None:
    (hub.repo / "model_index.json").unlink()
    with pytest.raises(
        InvalidInput, match=r"not in the diffusers layout .*: download .*\.safetensors and name the file"
    ):
        backbones.load("owner/model")


def test_configs_come_from_the_hub_without_weights(hub: FakeHub, tmp_path: Path) -> None:
    base: Any = backbones.load(str(hub.repo))
    import single_files

    tensors = single_files.sdxl_tensors(base.unet, base.vae, *base.text_encoders)
    file = single_files.write(tmp_path / "xl.safetensors", tensors)
    assert backbones.load(BaseOptions(source=str(file), config="owner/model")).family == "sdxl"
    assert {Path(name).suffix for name in hub.fetched} <= {".json", ".txt"}
    assert json.loads((hub.cache / "snapshots" / COMMIT / "model_index.json").read_text())
