"""The guidance term's distances, through a real autoencoder."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from codi_hub.backbones.unet import UNetBackbone
from codi_hub.errors import Conflict, InvalidInput, UsageError
from codi_hub.losses import GUIDANCE
from codi_hub.losses.codi import CoDiConfig, PECoDi, latent_l2
from codi_hub.losses.guidance import LEAST_CHANGE, VGG16, GuidanceInput, Lpips
from codi_hub.plugins import Plugins

CONDITION = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def pair() -> tuple[Tensor, Tensor, Tensor]:
    """(x, x_hat, ground truth as images)."""
    generator = torch.Generator().manual_seed(0)
    x, x_hat = torch.randn(2, 2, 4, 8, 8, generator=generator)
    return x, x_hat.requires_grad_(), torch.rand(2, 3, 16, 16, generator=generator)


def test_each_term_is_its_formula_and_reaches_x_hat(base: UNetBackbone, pair: tuple[Tensor, Tensor, Tensor]) -> None:
    x, x_hat, targets = pair
    expected = {
        "latent": (x_hat - x).square().mean(),
        "roundtrip": (base.encode(base.decode(x_hat)) - x).square().mean(),
        "pixel": (base.decode(x_hat) - targets).square().mean(),
    }
    for name, value in expected.items():
        found = GUIDANCE.load(name)(GuidanceInput(x, x_hat, base, CONDITION, targets))
        assert torch.equal(found, value)
        (gradient,) = torch.autograd.grad(found, x_hat)
        assert gradient.abs().max() > 0
    assert torch.equal(latent_l2(x, x_hat), expected["latent"])


def test_terms_on_images_ask_for_the_ground_truth(lpips_weights: Path) -> None:
    asking = {
        name: PECoDi(CoDiConfig(guidance=name, lpips=lpips_weights), torch.device("cpu")).needs_targets
        for name in [*GUIDANCE.names(), "off"]
    }
    assert asking == {
        "latent": False,
        "relative": False,
        "roundtrip": False,
        "pixel": True,
        "lpips": True,
        "off": False,
    }


def test_a_guidance_term_can_be_added_and_an_unknown_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    terms = Plugins(GUIDANCE.what, GUIDANCE.group, GUIDANCE.own)  # other tests see no more than there was
    monkeypatch.setattr("codi_hub.losses.codi.GUIDANCE", terms)

    def latent_l1(g: GuidanceInput) -> Tensor:
        return (g.x_hat - g.x).abs().mean()

    terms.register("l1", latent_l1)
    assert terms.load("l1") is latent_l1
    assert not PECoDi(CoDiConfig(guidance="l1"), torch.device("cpu")).needs_targets
    with pytest.raises(Conflict, match="'latent' is registered already"):
        terms.register("latent", latent_l1)
    with pytest.raises(UsageError, match="no guidance term 'l3': one of latent, relative"):
        PECoDi(CoDiConfig(guidance="l3"), torch.device("cpu"))


def test_relative_guidance_weighs_a_small_change_as_much_as_a_large_one(
    base: UNetBackbone, pair: tuple[Tensor, Tensor, Tensor]
) -> None:
    """`source` is the condition's latents; the targets differ from it everywhere, or in one place of 64."""
    _, x_hat, _ = pair
    source = base.encode_condition(CONDITION)
    whole, place = source.clone(), source.clone()
    whole[0] += 1
    place[1, :, 0, 0] += 2

    def guidance(x: Tensor, x_hat: Tensor) -> Tensor:
        found: Tensor = GUIDANCE.load("relative")(GuidanceInput(x, x_hat, base, CONDITION))
        return found

    changed = torch.stack([whole[0], place[1]])
    assert guidance(changed, changed).item() == 0
    # of two pairs one is as far off as if nothing were done
    assert guidance(whole, source).item() == pytest.approx(0.5 / (1 + LEAST_CHANGE), rel=1e-5)
    assert guidance(place, source).item() == pytest.approx(0.5 * 4 / 64 / (4 / 64 + LEAST_CHANGE), rel=1e-5)
    (gradient,) = torch.autograd.grad(guidance(changed, x_hat), x_hat)
    assert gradient.abs().max() > 0
    assert guidance(source, x_hat).isfinite()  # pairs in which nothing changes


@pytest.fixture(scope="module")
def lpips_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the right names and shapes, and random numbers."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    channels, place = 3, 0
    for entry in VGG16:
        if entry == "M":
            place += 1
            continue
        width = int(entry)
        weight = torch.randn(width, channels, 3, 3, generator=generator) * (2 / 9 / channels) ** 0.5
        tensors |= {f"features.{place}.weight": weight, f"features.{place}.bias": torch.zeros(width)}
        channels, place = width, place + 2
    for k, width in enumerate((64, 128, 256, 512, 512)):
        tensors[f"lin{k}.weight"] = torch.full((1, width, 1, 1), 0.1)
    path = tmp_path_factory.mktemp("lpips") / "vgg.safetensors"
    save_file(tensors, path)
    return path


def test_lpips_is_zero_for_one_image_and_grows_with_the_difference(
    base: UNetBackbone, lpips_weights: Path, pair: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, x_hat, targets = pair
    network = Lpips(lpips_weights)
    noise = torch.randn(targets.shape, generator=torch.Generator().manual_seed(1))
    near, far = (network(targets, (targets + scale * noise).clamp(0, 1)).item() for scale in (0.02, 0.2))
    assert network(targets, targets).item() == 0.0
    assert 0 < near < far
    found = GUIDANCE.load("lpips")(GuidanceInput(x, x_hat, base, CONDITION, targets, network))
    assert torch.equal(found, network(base.decode(x_hat), targets))
    (gradient,) = torch.autograd.grad(found, x_hat)
    assert gradient.abs().max() > 0
    assert not any(p.requires_grad for p in network.parameters())


def test_files_that_are_not_lpips_weights_are_refused(tmp_path: Path) -> None:
    torn, other = tmp_path / "torn.safetensors", tmp_path / "other.safetensors"
    torn.write_bytes(b"\x10\0\0")
    save_file({"features.0.weight": torch.zeros(1)}, other)
    for path in (torn, other, tmp_path / "none.safetensors"):
        with pytest.raises(InvalidInput, match="not LPIPS weights") as caught:
            Lpips(path)
        assert "\n" not in str(caught.value)
