"""The guidance term's distances, through a real autoencoder."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from codi_hub.backbones.unet import FrozenBase
from codi_hub.errors import InvalidInput
from codi_hub.losses.codi import latent_l2
from codi_hub.losses.guidance import LEAST_CHANGE, VGG16, Lpips, distance


@pytest.fixture
def pair(base: FrozenBase) -> tuple[Tensor, Tensor, Tensor]:
    """(x, x_hat, target pictures)."""
    generator = torch.Generator().manual_seed(0)
    x, x_hat = torch.randn(2, 2, 4, 8, 8, generator=generator)
    return x, x_hat.requires_grad_(), torch.rand(2, 3, 16, 16, generator=generator)


def test_each_distance_is_its_formula_and_reaches_x_hat(base: FrozenBase, pair: tuple[Tensor, Tensor, Tensor]) -> None:
    x, x_hat, targets = pair
    expected = {
        "latent": (x_hat - x).square().mean(),
        "roundtrip": (base.encode(base.decode(x_hat)) - x).square().mean(),
        "pixel": (base.decode(x_hat) - targets).square().mean(),
    }
    for name, value in expected.items():
        found = distance(name, base, targets)(x, x_hat)
        assert torch.equal(found, value)
        (gradient,) = torch.autograd.grad(found, x_hat)
        assert gradient.abs().max() > 0
    assert distance("latent", base, None) is latent_l2
    assert distance("off", base, None) is None


def test_relative_guidance_weighs_a_small_change_as_much_as_a_large_one(
    base: FrozenBase, pair: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, x_hat, _ = pair
    source = x.clone()
    source[0] += 1  # everywhere
    source[1, :, 0, 0] += 2  # in one place of 64
    guidance = distance("relative", base, None, source=source)
    assert guidance(x, x).item() == 0
    unchanged = torch.stack([source[0], x[1]]), torch.stack([x[0], source[1]])
    whole, place = (guidance(x, one).item() for one in unchanged)
    # of two pairs one is as far off as if nothing were done
    assert whole == pytest.approx(0.5 / (1 + LEAST_CHANGE))
    assert place == pytest.approx(0.5 * 4 / 64 / (4 / 64 + LEAST_CHANGE))
    (gradient,) = torch.autograd.grad(guidance(x, x_hat), x_hat)
    assert gradient.abs().max() > 0
    same = distance("relative", base, None, source=x)
    assert same(x, x_hat).isfinite()  # a pair in which nothing changes


@pytest.fixture(scope="module")
def lpips_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the right names and shapes, and random numbers."""
    generator = torch.Generator().manual_seed(0)
    tensors, channels, place = {}, 3, 0
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


def test_lpips_is_zero_for_one_picture_and_grows_with_the_difference(
    base: FrozenBase, lpips_weights: Path, pair: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, x_hat, targets = pair
    network = Lpips(lpips_weights)
    noise = torch.randn(targets.shape, generator=torch.Generator().manual_seed(1))
    near, far = (network(targets, (targets + scale * noise).clamp(0, 1)).item() for scale in (0.02, 0.2))
    assert network(targets, targets).item() == 0.0
    assert 0 < near < far
    found = distance("lpips", base, targets, network)(x, x_hat)
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
