"""Compiled networks give the same images, are compiled once for all adapters of a kind, and are not required.

The autoencoder alone goes through the C++ compiler here; of the denoiser, which would take a minute, the graphs are
captured and run as they are: what makes them be captured again makes them be compiled again.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from kinds import built
from tiny import stir
from torch import Tensor

from codi_hub.adapters.adapter import Adapter
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.inference import engine
from codi_hub.inference.engine import Engine, Request, Sampling


@pytest.fixture(autouse=True)
def nothing_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return torch.compile(function, backend="inductor" if function is UNetBackbone.decode else "eager")

    monkeypatch.setattr(engine, "compiled", cache(compiled))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # what was compiled before needs no compiler
    torch._dynamo.reset()


def adapter_on(base: UNetBackbone, seed: int, kind: str = "control") -> Adapter:
    return stir(built(base, kind), seed=seed).requires_grad_(False).eval()


def images(on: Engine, adapter: Adapter, count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    requests = [Request(rng.random((16, 16, 3), np.float32), adapter, "a red ball", k) for k in range(count)]
    return np.stack(on.generate(requests, Sampling(2)).images)


def graphs() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def has_compiler() -> bool:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return bool(get_cpp_compiler())
    except RuntimeError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
def test_adapters_of_a_kind_and_smaller_batches_run_what_was_compiled_first(base: UNetBackbone) -> None:
    messages: list[str] = []
    plain, fast = Engine(base), Engine(base, compile=True, on_message=messages.append)
    before = graphs()
    for seed, count in ((1, 3), (2, 3), (1, 2), (2, 1), (1, 3)):
        adapter = adapter_on(base, seed)
        compiled, expected = images(fast, adapter, count), images(plain, adapter, count)
        assert compiled.shape == expected.shape
        assert np.abs(compiled - expected).max() < 1e-4
        assert graphs() - before == 2  # the denoiser and the decoder
    assert messages == []


@pytest.mark.slow
def test_without_a_compiler_one_line_says_so_and_images_are_generated(
    base: UNetBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    messages: list[str] = []
    fast, adapter = Engine(base, compile=True, on_message=messages.append), adapter_on(base, 1)
    for count in (2, 1):
        assert np.array_equal(images(fast, adapter, count), images(Engine(base), adapter, count))
    assert len(messages) == 1
    assert messages[0].startswith("compile: going on without it: ")
    assert "\n" not in messages[0]


@pytest.fixture
def only_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capture graphs and run them as they are, without a compiler."""
    monkeypatch.setattr(engine, "compiled", cache(lambda function: torch.compile(function, backend="eager")))


def test_a_mixed_batch_runs_uncompiled(base: UNetBackbone, only_captured: None) -> None:
    fast, before = Engine(base, compile=True), graphs()
    several = [adapter_on(base, 1), adapter_on(base, 2, "static")]
    condition = np.random.default_rng(0).random((16, 16, 3), np.float32)
    requests = [Request(condition, adapter, "a", 1) for adapter in several]
    mixed = fast.generate(requests, Sampling(2))
    assert (mixed.batches, graphs()) == ([2], before)
    for image, expected in zip(mixed.images, Engine(base).generate(requests, Sampling(2)).images, strict=True):
        assert np.array_equal(image, expected)


@pytest.mark.slow
def test_a_compiled_batch_that_no_longer_fits_the_memory_is_not_filled_up(
    base: UNetBackbone, only_captured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A smaller batch is filled up to the size compiled, but not where that size has become too large."""
    fast, adapter = Engine(base, compile=True), adapter_on(base, 1)
    before = images(fast, adapter, 4)
    usual, room = UNetBackbone.embed, 2

    def embed(self: UNetBackbone, prompts: list[str]) -> object:
        if len(prompts) > room:
            raise MemoryError
        return usual(self, prompts)

    monkeypatch.setattr(UNetBackbone, "embed", embed)
    assert np.abs(images(fast, adapter, 4) - before).max() < 1e-4
