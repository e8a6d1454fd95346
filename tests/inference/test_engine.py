"""Pictures from conditions: every number of steps, any size, and the promises about seeds."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import stir
from torch import nn

import codi_hub
from codi_hub import adapters
from codi_hub.adapters import ControlAdapter, format
from codi_hub.backbones.unet import FrozenBase
from codi_hub.diffusion.samplers import SAMPLERS, sample
from codi_hub.errors import UsageError
from codi_hub.inference import engine
from codi_hub.inference.engine import Engine, choose_device, choose_dtype, pad, seeded_noise

NANO = Path(codi_hub.__file__).with_name("nano")
PROMPTS = ["a red ball", "", "two trees", "a house"]


def adapter_on(base: FrozenBase, fusion: str = "zero_conv") -> ControlAdapter:
    torch.manual_seed(0)
    return stir(adapters.build("control", base, fusion=fusion)).to(base.dtype).eval()


@pytest.fixture(scope="module")
def adapter(base: FrozenBase) -> ControlAdapter:
    return adapter_on(base)


def conditions(count: int, height: int = 16, width: int = 24) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.random((height, width, 3), np.float32) for _ in range(count)]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a - b) ** 2) + 1e-20))


@pytest.mark.parametrize("folder", sorted(NANO.glob("*/adapter.json")), ids=lambda path: path.parent.name)
def test_what_16_bits_and_a_batch_save_costs_nothing_that_shows(folder: Path) -> None:
    """Against plain float32, one by one, on the bundled adapters, which differ from their base as real ones do."""
    made = {}
    for dtype, together in ((torch.float32, 1), (torch.bfloat16, 3)):
        base = FrozenBase.load(str(NANO / "base"), dtype=dtype)
        record = format.read_record(folder)
        adapter = format.load(folder.with_name(format.WEIGHTS), record, base)
        channels = record.config["condition_channels"]
        given = [np.resize(image, (64, 64, channels)) for image in conditions(3, 64, 64)]
        groups = [range(k, k + together) for k in range(0, 3, together)]
        made[dtype] = [
            image
            for group in groups
            for image in Engine(base).generate(adapter, [given[k] for k in group], ["a red ball"] * together, group)
        ]
    assert min(psnr(a, b) for a, b in zip(*made.values(), strict=True)) >= 43  # 1.8 levels of 255


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_any_number_of_steps_runs(base: FrozenBase, eps_base: FrozenBase, steps: int, sampler: str) -> None:
    for each in (base, eps_base):
        calls: list[int] = []
        adapter = adapter_on(each)
        counter = each.unet.conv_out.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        made = Engine(each).generate(adapter, conditions(2), PROMPTS[:2], [1, 2], steps=steps, sampler=sampler)
        counter.remove()
        assert len(calls) == steps
        assert [(image.shape, image.dtype) for image in made] == [((16, 24, 3), np.float32)] * 2
        assert all(np.isfinite(image).all() and 0 <= image.min() < image.max() <= 1 for image in made)


def test_samplers_differ_in_what_comes_after_the_first_step_only(base: FrozenBase, adapter: ControlAdapter) -> None:
    made = {
        (steps, sampler): Engine(base).generate(adapter, conditions(1), [""], [3], steps=steps, sampler=sampler)[0]
        for steps in (1, 4)
        for sampler in SAMPLERS
    }
    assert all(np.array_equal(made[1, "ddim"], made[1, sampler]) for sampler in SAMPLERS)
    later = [made[4, sampler] for sampler in SAMPLERS]
    assert not any(np.array_equal(a, b) for a, b in combinations(later, 2))


def test_generation_is_the_sampler_on_the_adapters_denoiser(base: FrozenBase, adapter: ControlAdapter) -> None:
    (condition,) = conditions(1)
    made = Engine(base).generate(adapter, [condition], ["a red ball"], [5], steps=2)[0]
    image = torch.from_numpy(condition).permute(2, 0, 1)[None]
    noise = torch.randn(4, 8, 12, generator=torch.Generator().manual_seed(5))[None]
    with torch.no_grad():
        prompt, prepared = base.embed(["a red ball"]), adapter.prepare(image)
        denoise = base.schedule.denoiser(lambda z_t, t: adapter.predict(base, z_t, t, prompt, prepared))
        expected = base.decode(sample(denoise, noise, [999, 499], base.schedule))[0].permute(1, 2, 0).numpy()
    assert np.abs(made - expected).max() < 1e-5


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 16), (30, 21), (1, 1), (5, 64)])
def test_any_size_is_padded_and_cropped(base: FrozenBase, adapter: ControlAdapter, height: int, width: int) -> None:
    (condition,) = conditions(1, height, width)
    made = Engine(base).generate(adapter, [condition], [""], [1], steps=2)[0]
    assert made.shape == (height, width, 3)
    below, right = -height % base.multiple, -width % base.multiple
    whole = np.pad(condition, ((0, below), (0, right), (0, 0)), mode="edge")
    padded = Engine(base).generate(adapter, [whole], [""], [1], steps=2)[0]
    assert padded.shape[0] % base.multiple == padded.shape[1] % base.multiple == 0
    assert np.array_equal(made, padded[:height, :width])


def test_padding_repeats_the_border() -> None:
    image = torch.arange(6.0).view(1, 1, 2, 3)
    assert pad(image, 4)[0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]
    assert torch.equal(pad(image[..., :2], 2), image[..., :2])


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("fusion", ["zero_conv", "gate"])
def test_a_seed_gives_one_picture_alone_or_in_any_batch(base: FrozenBase, fusion: str, sampler: str) -> None:
    adapter, seeds, given = adapter_on(base, fusion), [7, 2**62, 0, 8], conditions(4)
    made = Engine(base).generate(adapter, given, PROMPTS, seeds, sampler=sampler)
    order = [2, 0, 3, 1]
    mixed = Engine(base).generate(
        adapter, [given[k] for k in order], [PROMPTS[k] for k in order], [seeds[k] for k in order], sampler=sampler
    )
    for place, k in enumerate(order):
        alone = Engine(base).generate(adapter, [given[k]], [PROMPTS[k]], [seeds[k]], sampler=sampler)[0]
        again = Engine(base).generate(adapter, [given[k]], [PROMPTS[k]], [seeds[k]], sampler=sampler)[0]
        assert np.array_equal(alone, again)
        for other in (made[k], mixed[place]):
            levels = np.round(alone * 255).astype(int) - np.round(other * 255).astype(int)
            assert np.abs(levels).max() <= 1


def test_another_seed_gives_another_picture(base: FrozenBase, adapter: ControlAdapter) -> None:
    (condition,) = conditions(1)
    made = Engine(base).generate(adapter, [condition] * 3, ["a"] * 3, [1, 2, 1])
    assert np.abs(made[0] - made[1]).max() > 2 / 255
    assert np.abs(made[0] - made[2]).max() < 1 / 255


def test_noise_of_a_seed_does_not_depend_on_its_batch() -> None:
    together = seeded_noise([3, 4, 3], (4, 8, 8))
    assert together.dtype == torch.float32
    assert torch.equal(together[0], seeded_noise([3], (4, 8, 8))[0])
    assert torch.equal(together[0], together[2])
    assert torch.equal(together[1], seeded_noise([9, 4], (4, 8, 8))[1])
    assert not torch.equal(together[0], together[1])
    assert seeded_noise([3], (4, 64, 64)).std().item() == pytest.approx(1.0, abs=0.02)


def test_bfloat16_in_a_batch_is_close_to_bfloat16_alone(base_folder: str) -> None:
    base = FrozenBase.load(str(base_folder), dtype=torch.bfloat16)
    assert base.dtype == torch.bfloat16
    adapter, given, seeds = adapter_on(base), conditions(4), [1, 2, 3, 4]
    together = Engine(base).generate(adapter, given, PROMPTS, seeds)
    alone = [Engine(base).generate(adapter, [given[k]], [PROMPTS[k]], [seeds[k]])[0] for k in range(4)]
    assert min(psnr(a, b) for a, b in zip(together, alone, strict=True)) >= 45
    assert psnr(together[0], together[1]) < 30  # the bound above says something


def test_bfloat16_is_close_to_float32(base: FrozenBase, base_folder: str, adapter: ControlAdapter) -> None:
    low = FrozenBase.load(str(base_folder), dtype=torch.bfloat16)
    made = [
        Engine(each).generate(own, conditions(1), ["a"], [1])[0]
        for each, own in ((base, adapter), (low, adapter_on(low)))
    ]
    assert made[1].dtype == np.float32
    assert psnr(*made) > 30


def test_generation_leaves_base_and_adapter_as_they_were(base: FrozenBase, adapter: ControlAdapter) -> None:
    def state(module: nn.Module) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in module.state_dict().items()}

    before = state(base), state(adapter)
    given = conditions(1)
    copy = given[0].copy()
    Engine(base).generate(adapter, given, [""], [1])
    after = state(base), state(adapter)
    for old, new in zip(before, after, strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)
    assert np.array_equal(given[0], copy)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(base: FrozenBase, adapter: ControlAdapter, steps: int) -> None:
    with pytest.raises(UsageError, match=f"--steps {steps}: between 1 and 1000"):
        Engine(base).generate(adapter, conditions(1), [""], [1], steps=steps)


def test_devices_and_dtypes_are_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert choose_device("cpu") == cpu
    assert choose_device("auto").type in ("cuda", "mps", "cpu")
    assert [choose_dtype(name, cpu) for name in ("fp32", "fp16", "bf16")] == list(engine.DTYPES.values())
    for cpu_name, amx, avx, dtype in (
        ("Intel Xeon", True, True, torch.bfloat16),
        ("Intel Xeon", False, True, torch.float32),  # has the instructions, slow ones
        ("AMD EPYC", False, True, torch.bfloat16),
        ("AMD EPYC", False, False, torch.float32),
    ):
        can = {"cpu_name": cpu_name, "amx_tile": amx, "avx512_bf16": avx}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda can=can: can)
        assert choose_dtype("auto", cpu) == dtype
    with pytest.raises(UsageError, match=r"--device tpu: not on this machine \(here: .*cpu\)"):
        choose_device("tpu")
    with pytest.raises(UsageError, match="--dtype int8: one of auto, fp32, fp16, bf16"):
        choose_dtype("int8", cpu)


@pytest.mark.parametrize("sampler", ["ddim", "renoise"])
def test_a_tile_starts_from_its_part_of_the_whole_pictures_noise(
    base: FrozenBase, adapter: ControlAdapter, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    def listening(denoise, noise, timesteps, schedule, fresh):  # type: ignore[no-untyped-def]
        drawn = [noise] + ([fresh(0), fresh(1)] if sampler == "renoise" else [])
        seen.append(torch.stack(drawn, 1))
        return sample(denoise, noise, timesteps, schedule)

    monkeypatch.setitem(SAMPLERS, sampler, listening)
    height, width, side, f = 5 * base.multiple - 3, 4 * base.multiple, 2 * base.multiple, base.factor
    run = Engine(base).generate
    run(adapter, conditions(2, height, width), ["", ""], [5, 6], steps=1, sampler=sampler)
    corners = [(0, 0), (base.multiple, 2 * base.multiple)]
    windows = [(*corner, height, width) for corner in corners]
    run(adapter, conditions(2, side, side), ["", ""], [5, 6], steps=1, sampler=sampler, windows=windows)
    whole, tiles = seen
    for k, (top, left) in enumerate(corners):
        part = whole[k, ..., top // f : (top + side) // f, left // f : (left + side) // f]
        assert torch.equal(tiles[k], part)
