"""Compiled networks give the same pictures, are compiled once for all adapters of a kind, and are not needed.

The autoencoder alone goes through the C++ compiler here; of the denoiser, which would take a minute, the graphs are
captured and run as they are: what makes them be captured again makes them be compiled again.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import stir
from torch import Tensor

from codi_hub import adapters
from codi_hub.adapters import ControlAdapter
from codi_hub.backbones.unet import FrozenBase
from codi_hub.inference import engine
from codi_hub.inference.engine import Engine


@pytest.fixture(autouse=True)
def nothing_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return torch.compile(function, backend="inductor" if function is FrozenBase.decode else "eager")

    monkeypatch.setattr(engine, "compiled", cache(compiled))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # what was compiled before needs no compiler
    torch._dynamo.reset()


def adapter_on(base: FrozenBase, seed: int) -> ControlAdapter:
    return stir(adapters.build("control", base), seed=seed).requires_grad_(False).eval()


def pictures(on: Engine, adapter: ControlAdapter, count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    conditions = [rng.random((16, 16, 3), np.float32) for _ in range(count)]
    return np.stack(on.generate(adapter, conditions, ["a red ball"] * count, list(range(count)), steps=2))


def graphs() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def has_compiler() -> bool:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return bool(get_cpp_compiler())
    except RuntimeError:
        return False


@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
def test_adapters_of_a_kind_and_smaller_batches_run_what_was_compiled_first(base: FrozenBase) -> None:
    said: list[str] = []
    plain, fast = Engine(base), Engine(base, compile=True, say=said.append)
    before = graphs()
    for seed, count in ((1, 3), (2, 3), (1, 2), (2, 1), (1, 3)):
        adapter = adapter_on(base, seed)
        made, expected = pictures(fast, adapter, count), pictures(plain, adapter, count)
        assert made.shape == expected.shape
        assert np.abs(made - expected).max() < 1e-4
        assert graphs() - before == 2  # the denoiser and the decoder
    assert said == []


def test_without_a_compiler_one_line_says_so_and_pictures_are_made(
    base: FrozenBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    said: list[str] = []
    fast, adapter = Engine(base, compile=True, say=said.append), adapter_on(base, 1)
    for count in (2, 1):
        assert np.array_equal(pictures(fast, adapter, count), pictures(Engine(base), adapter, count))
    assert len(said) == 1
    assert said[0].startswith("--compile: going on without it: ")
    assert "\n" not in said[0]
