"""Batches of requests: sizes as asked, halved where the memory does not suffice, several adapters in one."""

from typing import Any

import numpy as np
import pytest
from torch import Tensor

from codi_hub import adapters
from codi_hub.backbones.unet import FrozenBase
from codi_hub.inference.requests import Engine, Request, Sampling


@pytest.fixture
def adapter(base: FrozenBase) -> Any:
    return adapters.build("static", base, condition_channels=3).eval()


def requests(adapter: Any, *sides: int) -> list[Request]:
    rng = np.random.default_rng(0)
    return [Request(rng.random((side, side, 3), np.float32), adapter, seed=k) for k, side in enumerate(sides)]


def test_a_batch_size_is_honoured_exactly(base: FrozenBase, adapter: Any) -> None:
    made = Engine(base).generate(requests(adapter, *[16] * 7), Sampling(steps=1), batch=3)
    assert made.batches == [3, 3, 1]
    assert [image.shape for image in made.images] == [(16, 16, 3)] * 7


def test_requests_are_grouped_by_size_and_returned_in_their_order(base: FrozenBase, adapter: Any) -> None:
    mixed = requests(adapter, 16, 32, 16, 32, 16)
    made = Engine(base).generate(mixed, Sampling(steps=1))
    assert made.batches == [3, 2]
    assert [len(image) for image in made.images] == [16, 32, 16, 32, 16]
    for request, image in zip(mixed, made.images, strict=True):
        (alone,) = Engine(base).generate([request], Sampling(steps=1)).images
        assert np.abs(image - alone).max() < 1e-5


def test_an_automatic_batch_has_about_a_megapixel_on_a_cpu(base: FrozenBase) -> None:
    engine = Engine(base)
    assert (engine.auto_batch(256, 256), engine.auto_batch(1024, 1024), engine.auto_batch(4096, 4096)) == (16, 1, 1)


def test_a_batch_that_does_not_fit_is_halved_and_the_limit_kept(
    base: FrozenBase, adapter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, tried = adapter.prepare, []

    def limited(condition: Tensor, *rest: Any) -> Any:
        tried.append(len(condition))
        if len(condition) > 2:
            raise MemoryError
        return prepare(condition, *rest)

    monkeypatch.setattr(adapter, "prepare", limited)
    engine = Engine(base)
    made = engine.generate(requests(adapter, *[16] * 5), Sampling(steps=1))
    assert (made.batches, tried) == ([2, 2, 1], [5, 2, 2, 1])
    assert engine.auto_batch(16, 16) == 2
    monkeypatch.setattr(adapter, "prepare", lambda *rest: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        engine.generate(requests(adapter, 16), Sampling(steps=1))
