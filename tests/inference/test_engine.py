"""Images from requests: every number of steps, any size, the promises about seeds and strength, and batches."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kinds import trained
from torch import Tensor, nn

import codi_hub
from codi_hub import backbones, seeds
from codi_hub.adapters import format
from codi_hub.adapters.adapter import Adapter
from codi_hub.adapters.base_only import BaseOnly
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.diffusion import SAMPLERS
from codi_hub.diffusion.samplers import sample
from codi_hub.errors import UsageError
from codi_hub.inference.devices import DTYPES, choose_device, choose_dtype
from codi_hub.inference.engine import Engine, Generated, Request, Sampling, gaussian, pad
from codi_hub.inference.tiling import Window

NANO = Path(codi_hub.__file__).with_name("nano")
PROMPTS = ["a red ball", "", "two trees", "a house"]
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.names())


def adapter_on(base: UNetBackbone, kind: str = "control", **config: Any) -> Adapter:
    return trained(base, kind, **config).to(base.dtype)


@pytest.fixture(scope="module")
def adapter(base: UNetBackbone) -> Adapter:
    return adapter_on(base)


def conditions(count: int, height: int = 16, width: int = 24, channels: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.random((height, width, channels), np.float32) for _ in range(count)]


def requests_of(adapter: Adapter, count: int = 4, height: int = 16, width: int = 24, **changes: Any) -> list[Request]:
    """Requests that differ in everything."""
    channels = adapter.settings.condition_channels
    return [
        Request(condition, adapter, PROMPTS[k % 4], 7 * k + 2**62 * (k == 1), **changes)
        for k, condition in enumerate(conditions(count, height, width, channels))
    ]


def generate(base: Backbone, requests: list[Request], sampling: Sampling = Sampling()) -> list[np.ndarray]:
    return Engine(base).generate(requests, sampling).images


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a - b) ** 2) + 1e-20))


def levels_apart(a: np.ndarray, b: np.ndarray) -> int:
    """Largest difference of 8-bit levels."""
    return int(np.abs(np.round(a * 255).astype(int) - np.round(b * 255).astype(int)).max())


# ---- one image


@pytest.mark.slow
@pytest.mark.parametrize("folder", sorted(NANO.glob("*/adapter.json")), ids=lambda path: path.parent.name)
def test_16_bits_and_a_batch_change_no_bundled_adapters_images_visibly(folder: Path) -> None:
    """Against plain float32, one by one, on the bundled adapters, which differ from their base as real ones do."""
    images = {}
    for dtype, batch in ((torch.float32, 1), (torch.bfloat16, 3)):
        base = backbones.load(str(NANO / "base"), dtype=dtype)
        adapter = format.load(folder.with_name(format.WEIGHTS), format.read_record(folder), base)
        requests = [
            Request(condition, adapter, "a red ball", k)
            for k, condition in enumerate(conditions(3, 64, 64, adapter.settings.condition_channels))
        ]
        images[dtype] = Engine(base).generate(requests, batch=batch).images
    assert min(psnr(a, b) for a, b in zip(*images.values(), strict=True)) >= 43  # 1.8 levels of 255


@pytest.mark.slow
@every_sampler
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_any_number_of_steps_is_that_many_network_evaluations(any_base: UNetBackbone, steps: int, sampler: str) -> None:
    calls: list[int] = []
    counter = any_base.unet.conv_out.register_forward_hook(lambda *_: calls.append(1))
    images = generate(any_base, requests_of(adapter_on(any_base), 2), Sampling(steps, sampler))
    counter.remove()
    assert len(calls) == steps
    assert [(image.shape, image.dtype) for image in images] == [((16, 24, 3), np.float32)] * 2
    assert all(np.isfinite(image).all() and 0 <= image.min() < image.max() <= 1 for image in images)


def test_samplers_differ_after_the_first_step_only(base: UNetBackbone, adapter: Adapter) -> None:
    names = SAMPLERS.names()
    images = {
        (steps, sampler): generate(base, requests_of(adapter, 1), Sampling(steps, sampler))[0]
        for steps in (1, 4)
        for sampler in names
    }
    assert all(np.array_equal(images[1, "ddim"], images[1, sampler]) for sampler in names)
    assert not any(np.array_equal(a, b) for a, b in combinations([images[4, sampler] for sampler in names], 2))


def test_generation_is_the_sampler_on_the_adapters_denoiser(base: UNetBackbone, adapter: Adapter) -> None:
    (condition,) = conditions(1)
    (image,) = generate(base, [Request(condition, adapter, "a red ball", 5)], Sampling(2))
    tensor = torch.from_numpy(condition).permute(2, 0, 1)[None]
    noise = torch.randn(4, 8, 12, generator=torch.Generator().manual_seed(5))[None]
    with torch.no_grad():
        prompt = base.embed(["a red ball"])
        prepared = adapter.prepare(base, tensor, prompt)
        denoise = base.schedule.denoiser(lambda z_t, t: adapter.predict(base, z_t, t, prompt, prepared))
        expected = base.decode(sample(denoise, noise, [1.0, 0.5], base.schedule))[0].permute(1, 2, 0).numpy()
    assert np.abs(image - expected).max() < 1e-5


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 16), (30, 21), (1, 1), (5, 64)])
def test_any_size_is_padded_and_cropped(base: UNetBackbone, adapter: Adapter, height: int, width: int) -> None:
    (condition,) = conditions(1, height, width)
    (image,) = generate(base, [Request(condition, adapter, seed=1)], Sampling(2))
    assert image.shape == (height, width, 3)
    multiple = base.latents.multiple
    whole = np.pad(condition, ((0, -height % multiple), (0, -width % multiple), (0, 0)), mode="edge")
    (padded,) = generate(base, [Request(whole, adapter, seed=1)], Sampling(2))
    assert padded.shape[0] % multiple == padded.shape[1] % multiple == 0
    assert np.array_equal(image, padded[:height, :width])


def test_padding_repeats_the_border() -> None:
    image = torch.arange(6.0).view(1, 1, 2, 3)
    assert pad(image, 4)[0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]
    assert torch.equal(pad(image[..., :2], 2), image[..., :2])


def test_temperature_scales_the_noise(base: UNetBackbone, adapter: Adapter) -> None:
    """At temperature 0 all seeds give one image; in between they differ less than at 1."""

    def spread(temperature: float) -> float:
        requests = [Request(conditions(1)[0], adapter, "a", seed) for seed in (1, 2)]
        one, other = generate(base, requests, Sampling(temperature=temperature))
        return float(np.abs(one - other).mean())

    assert spread(0.0) < 1e-6 < spread(0.5) < spread(1.0)


def test_generation_leaves_base_adapter_and_condition_as_they_were(base: UNetBackbone, adapter: Adapter) -> None:
    def state(module: nn.Module) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in module.state_dict().items()}

    before, requests = (state(base), state(adapter)), requests_of(adapter, 2)
    copies = [request.condition.copy() for request in requests]
    generate(base, requests)
    for old, new in zip(before, (state(base), state(adapter)), strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)
    assert all(np.array_equal(request.condition, copy) for request, copy in zip(requests, copies, strict=True))


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(base: UNetBackbone, adapter: Adapter, steps: int) -> None:
    with pytest.raises(UsageError, match=f"^steps {steps}: between 1 and 1000 steps can be taken"):
        generate(base, requests_of(adapter, 1), Sampling(steps))


def test_an_unknown_sampler_is_refused(base: UNetBackbone, adapter: Adapter) -> None:
    with pytest.raises(UsageError, match="no sampler 'euler': one of ddim, renoise, dpmpp"):
        generate(base, requests_of(adapter, 1), Sampling(sampler="euler"))


@pytest.mark.slow
@pytest.mark.parametrize(("family", "most"), [("sd3", 48), ("z-image", 256)])
def test_an_image_beyond_the_bases_positions_is_refused_before_anything_is_computed(
    family: str, most: int, family_base: Callable[[str], Backbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = family_base(family)
    fits, too_long = (Request(np.zeros((8, width, 1), np.float32), BaseOnly(base), "", 0) for width in (most, most + 1))
    assert generate(base, [fits])[0].shape == (8, most, 3)
    monkeypatch.setattr(type(base), "predict", lambda *a, **k: pytest.fail("the network was evaluated"))
    said = (
        f"^an image of {most + 1}x8 px: this base takes sides of at most {most} px: make .* set tile to {most} or less$"
    )
    with pytest.raises(UsageError, match=said):
        generate(base, [fits, too_long])


def test_no_requests_give_no_images(base: UNetBackbone) -> None:
    assert Engine(base).generate([]) == Generated([], [])


# ---- strength


def test_strength_0_gives_the_bases_image_and_1_the_adapters(base: UNetBackbone, adapter: Adapter) -> None:
    (condition,) = conditions(1)

    def image(adapter: Adapter, **changes: Any) -> np.ndarray:
        return generate(base, [Request(condition, adapter, "a", 3, **changes)])[0]

    whole, alone = image(adapter), image(BaseOnly(base))
    assert np.array_equal(image(adapter, strength=0), alone)
    assert np.array_equal(image(adapter, strength=1), whole)
    half = image(adapter, strength=0.5)
    assert not np.array_equal(half, alone)
    assert not np.array_equal(half, whole)


def test_each_request_has_a_strength_of_its_own(base: UNetBackbone, adapter: Adapter) -> None:
    (condition,) = conditions(1)
    requests = [Request(condition, adapter, "a", 3, strength) for strength in (0.0, 0.5, 1.0)]
    together = Engine(base).generate(requests)
    assert together.batches == [3]
    for image, request in zip(together.images, requests, strict=True):
        assert np.abs(image - generate(base, [request])[0]).max() < 1e-4


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_an_impossible_strength_is_refused(base: UNetBackbone, adapter: Adapter, strength: float) -> None:
    with pytest.raises(UsageError, match=rf"^strength {strength}: from 0 to 1"):
        generate(base, requests_of(adapter, 1, strength=strength))


def test_an_adapter_without_a_strength_refuses_one(base: UNetBackbone) -> None:
    full = adapter_on(base, "full")
    with pytest.raises(UsageError, match=r"^strength 0\.5: an adapter of kind full has no strength"):
        generate(base, requests_of(full, 1, strength=0.5))
    assert len(generate(base, requests_of(full, 1, strength=1.0))) == 1


# ---- seeds


@pytest.mark.slow
@every_sampler
@pytest.mark.parametrize("fusion", ["zero_conv", "gate"])
def test_a_seed_gives_one_image_alone_or_in_any_batch(base: UNetBackbone, fusion: str, sampler: str) -> None:
    requests, sampling = requests_of(adapter_on(base, fusion=fusion)), Sampling(sampler=sampler)
    images, order = generate(base, requests, sampling), [2, 0, 3, 1]
    shuffled = generate(base, [requests[k] for k in order], sampling)
    pairs = Engine(base).generate(requests, sampling, batch=3).images
    for place, k in enumerate(order):
        alone, again = (generate(base, [requests[k]], sampling)[0] for _ in range(2))
        assert np.array_equal(alone, again)
        assert all(levels_apart(alone, other) <= 1 for other in (images[k], shuffled[place], pairs[k]))


def test_another_seed_gives_another_image(base: UNetBackbone, adapter: Adapter) -> None:
    (condition,) = conditions(1)
    one, other, same = generate(base, [Request(condition, adapter, "a", seed) for seed in (1, 2, 1)])
    assert np.abs(one - other).max() > 2 / 255
    assert np.abs(one - same).max() < 1 / 255


def test_the_noise_of_a_seed_is_standard_normal_and_its_own() -> None:
    shape = (4, 64, 64)
    assert gaussian(shape, 3).dtype == torch.float32
    assert torch.equal(gaussian(shape, 3), gaussian(shape, 3))
    assert not torch.equal(gaussian(shape, 3), gaussian(shape, 4))
    assert gaussian(shape, 3).std().item() == pytest.approx(1.0, abs=0.02)


def test_a_tile_has_its_part_of_the_whole_images_noise(
    base: UNetBackbone, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def record(denoise: Any, z: Tensor, times: Any, schedule: Any, fresh_noise: Any) -> Tensor:
        seen.append(torch.stack([z, fresh_noise(0), fresh_noise(1)], 1))
        return sample(denoise, z, times, schedule)

    monkeypatch.setattr(SAMPLERS, "load", lambda name: record)
    m, f = base.latents.multiple, base.latents.factor
    height, width, side = 5 * m - 3, 4 * m, 2 * m
    corners = [(0, 0), (m, 2 * m)]
    wholes = [Request(one, adapter, seed=k + 5) for k, one in enumerate(conditions(2, height, width))]
    tiles = [
        Request(one, adapter, seed=k + 5, window=Window(*corners[k], height, width))
        for k, one in enumerate(conditions(2, side, side))
    ]
    engine = Engine(base)
    assert engine.generate(wholes, Sampling(1)).batches == [2]
    generated = engine.generate(tiles, Sampling(1))
    assert generated.batches == [2]  # tiles of different images share a batch
    assert [image.shape for image in generated.images] == [(side, side, 3)] * 2
    whole, parts = seen
    assert torch.equal(whole[0, 0], gaussian((4, *base.latents.size(height, width)), seeds.sampling_noise(5, 0)))
    for k, (top, left) in enumerate(corners):
        part = whole[k, ..., top // f : (top + side) // f, left // f : (left + side) // f]
        assert torch.equal(parts[k], part)


# ---- precision and devices


def test_bfloat16_in_a_batch_is_close_to_bfloat16_alone(base_folder: Path) -> None:
    base = backbones.load(str(base_folder), dtype=torch.bfloat16)
    assert base.dtype == torch.bfloat16
    requests = requests_of(adapter_on(base))
    together = generate(base, requests)
    alone = [generate(base, [request])[0] for request in requests]
    assert min(psnr(a, b) for a, b in zip(together, alone, strict=True)) >= 45
    assert psnr(together[0], together[1]) < 30  # the bound above says something


def test_bfloat16_is_close_to_float32(base: UNetBackbone, base_folder: Path, adapter: Adapter) -> None:
    low = backbones.load(str(base_folder), dtype=torch.bfloat16)
    images = [generate(each, requests_of(own, 1))[0] for each, own in ((base, adapter), (low, adapter_on(low)))]
    assert images[1].dtype == np.float32
    assert psnr(*images) > 30


def test_devices_and_dtypes_are_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert choose_device("cpu") == cpu
    assert choose_device("auto").type in ("cuda", "mps", "cpu")
    assert [choose_dtype(name, cpu) for name in ("fp32", "fp16", "bf16")] == list(DTYPES.values())
    for cpu_name, amx, avx, dtype in (
        ("Intel Xeon", True, True, torch.bfloat16),
        ("Intel Xeon", False, True, torch.float32),  # has the instructions, slow ones
        ("AMD EPYC", False, True, torch.bfloat16),
        ("AMD EPYC", False, False, torch.float32),
    ):
        can = {"cpu_name": cpu_name, "amx_tile": amx, "avx512_bf16": avx}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda can=can: can, raising=False)
        assert choose_dtype("auto", cpu) == dtype
    with pytest.raises(UsageError, match=r"^device tpu: not on this machine \(here: .*cpu\)"):
        choose_device("tpu")
    with pytest.raises(UsageError, match=r"^dtype int8: one of auto, fp32, fp16, bf16"):
        choose_dtype("int8", cpu)


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_a_device_that_is_not_there_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=f"^device {name}: not on this machine"):
        choose_device(name)


@pytest.mark.parametrize(("count", "last"), [(1, 0), (2, 1)])
def test_a_gpu_number_that_is_not_there_is_refused(count: int, last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert choose_device(f"cuda:{last}") == torch.device("cuda", last)
    with pytest.raises(UsageError, match=f"^device cuda:7: this machine has {count} of them; the last is cuda:{last}"):
        choose_device("cuda:7")


@pytest.mark.parametrize("name", ["cpu:x", "cpu:", "cpu:-1"])
def test_a_device_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"^device {name}: write it as cpu"):
        choose_device(name)
