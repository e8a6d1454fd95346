"""Adapters loaded onto a base and kept in memory: what loading reads, shares, draws and leaves behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from inputs import inputs
from kinds import every_kind, trained
from tiny import record_of, stir

from codi_hub import backbones
from codi_hub.adapters import format
from codi_hub.adapters.adapter import Adapter
from codi_hub.adapters.cache import AdapterCache
from codi_hub.adapters.skeleton import KEPT, skeleton
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.errors import InvalidInput


def write(base: UNetBackbone, folder: Path, kind: str = "control", seed: int = 3) -> Path:
    """The folder of an adapter with weights of its own; its name there is its seed's."""
    adapter = stir(trained(base, kind), seed=seed)
    format.write(folder / str(seed), adapter, record_of(base, adapter), "# A card\n")
    return folder / str(seed)


def load(folder: Path, base: UNetBackbone) -> Adapter:
    return format.load(folder / format.WEIGHTS, format.read_record(folder / format.RECORD), base)


@pytest.mark.slow
@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_have_the_bases_dtype_and_layout_and_are_copies_of_the_file(
    base_folder: Path, tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    base = backbones.load(str(base_folder), dtype=dtype)
    folder = write(backbones.load(str(base_folder)), tmp_path, kind)
    stored = format.load_file(folder / format.WEIGHTS)
    adapter = load(folder, base)
    held = adapter.state_dict()
    assert held.keys() == stored.keys()
    assert all(torch.equal(value, stored[name].to(dtype)) for name, value in held.items())
    shapes = [value for value in held.values() if value.ndim == 4]
    assert shapes
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in shapes)
    before = {name: value.clone() for name, value in held.items()}
    with (folder / format.WEIGHTS).open("rb+") as file:  # a file that changes under a loaded adapter
        file.seek(-64, 2)
        file.write(b"\xff" * 64)
    assert all(torch.equal(value, before[name]) for name, value in adapter.state_dict().items())


@every_kind
def test_loading_draws_nothing(base: UNetBackbone, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(base, tmp_path, kind)
    drawn = torch.random.get_rng_state()
    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "uniform_", _refuse)
        bones = skeleton(kind, base, condition_channels=3)
    assert all(value.is_meta for value in bones.parameters())
    adapter = load(folder, base)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert not any(value.is_meta for value in (*adapter.parameters(), *adapter.buffers()))


@every_kind
def test_adapters_of_one_form_share_no_weight_and_no_module(base: UNetBackbone, tmp_path: Path, kind: str) -> None:
    one, two = (load(write(base, tmp_path, kind, seed), base) for seed in (1, 2))
    for held in (torch.nn.Module.parameters, torch.nn.Module.modules):
        assert not {id(value) for value in held(one)} & {id(value) for value in held(two)}
    before = {name: value.clone() for name, value in two.state_dict().items()}
    stir(one)
    one.train()
    one.config["condition_channels"] = 9
    assert all(torch.equal(value, before[name]) for name, value in two.state_dict().items())
    assert not any(part.training for part in two.modules())
    again = load(tmp_path / "2", base)
    assert again.config["condition_channels"] == 3
    batch = inputs(base)
    with torch.no_grad():
        assert torch.equal(again(base, *batch), two(base, *batch))


def test_forms_are_kept_for_a_few_configurations(base: UNetBackbone) -> None:
    first_ones = [skeleton("control", base, condition_channels=count) for count in range(1, KEPT + 3)]
    again = skeleton("control", base, condition_channels=1)
    stems = [each.encoder.controlnet_cond_embedding.conv_in.in_channels for each in (*first_ones, again)]
    assert stems == [*range(1, KEPT + 3), 1]


def _refuse(value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    assert value.is_meta, "random weights were drawn"
    return value


def test_what_does_not_fit_is_refused_before_its_content_is_read(
    base: UNetBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(base, tmp_path)
    tensors = format.load_file(folder / format.WEIGHTS)
    format.save_file(tensors | {"encoder.conv_in.weight": torch.zeros(1 << 20)}, folder / format.WEIGHTS)
    monkeypatch.setattr(format, "placed", lambda *_: pytest.fail("a weight was read"))
    with pytest.raises(InvalidInput, match="tensors differ"):
        load(folder, base)


# ---- the cache


def linear() -> torch.nn.Module:
    return torch.nn.Linear(10, 10, bias=False)  # 400 bytes


def test_adapters_are_loaded_once_and_the_least_recently_used_is_dropped() -> None:
    loaded: list[str] = []

    def ask(cache: AdapterCache, key: str) -> torch.nn.Module:
        def load() -> torch.nn.Module:
            loaded.append(key)
            return linear()

        return cache.get(key, load)

    cache = AdapterCache(budget=800)
    first = ask(cache, "a")
    assert ask(cache, "b") is not first
    assert ask(cache, "a") is first
    ask(cache, "c")  # "b" is the least recently used
    assert cache.bytes == 800
    assert ask(cache, "a") is first
    assert loaded == ["a", "b", "c"]
    ask(cache, "b")
    assert loaded == ["a", "b", "c", "b"]
    small = AdapterCache(budget=1)
    assert ask(small, "d") is ask(small, "d")  # whatever the budget, the one in use stays


def test_memory_is_freed_before_an_adapter_is_loaded() -> None:
    cache = AdapterCache(budget=800)
    seen: list[int] = []

    def load() -> torch.nn.Module:
        seen.append(cache.bytes)
        return linear()

    for key in "abc":
        cache.get(key, load, expected=400)
    assert seen == [0, 400, 400]
    cache.budget = 0
    cache.get("d", load, expected=400)
    assert (seen[-1], cache.bytes) == (0, 400)


def test_an_adapter_that_cannot_be_loaded_leaves_the_cache_usable(base: UNetBackbone, tmp_path: Path) -> None:
    cache, folder = AdapterCache(), write(base, tmp_path)
    whole = (folder / format.WEIGHTS).read_bytes()
    (folder / format.WEIGHTS).write_bytes(whole[:-100])
    with pytest.raises(InvalidInput):
        cache.get("a", lambda: load(folder, base))
    assert cache.bytes == 0
    (folder / format.WEIGHTS).write_bytes(whole)
    assert isinstance(cache.get("a", lambda: load(folder, base)), Adapter)


@pytest.mark.slow
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "from disk"])
def test_memory_does_not_grow_with_swaps(base: UNetBackbone, tmp_path: Path, cached: bool) -> None:
    """150 swaps between three adapters, all of which fit, or two: 100 leaked ones would take 10 MB."""
    folders = [write(base, tmp_path, seed=seed) for seed in (1, 2, 3)]
    size = 4 * sum(value.numel() for value in load(folders[0], base).parameters())
    process, cache, loads = psutil.Process(), AdapterCache(3 * size if cached else 2 * size), list[int]()

    def loader(k: int) -> Callable[[], Any]:
        return lambda: loads.append(k) or load(folders[k], base)

    def swaps(count: int) -> int:
        for k in range(count):
            cache.get(str(k % 3), loader(k % 3), expected=size)
        return int(process.memory_info().rss)

    before = swaps(51)
    loads.clear()
    after = swaps(99)
    assert len(loads) == (0 if cached else 99)
    assert after - before < 30 * size
