"""Batches of the engine: their sizes, what shares one, the order of the images, and memory that runs out."""

from typing import Any

import numpy as np
import pytest
import torch
from kinds import built, trained
from tiny import parts_of
from torch import Tensor

from codi_hub.adapters.adapter import Adapter
from codi_hub.adapters.controlnet import ControlAdapter
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.inference.engine import AUTO_PIXELS, Engine, Generated, Request, Sampling

ONE_STEP = Sampling(1)


@pytest.fixture(scope="module")
def adapter(base: UNetBackbone) -> Adapter:
    return trained(base, "control")


def requests_of(adapter: Adapter, count: int, height: int = 16, width: int = 24) -> list[Request]:
    rng = np.random.default_rng(count)
    shape = (height, width, adapter.settings.condition_channels)
    return [Request(rng.random(shape, np.float32), adapter, f"image {k}", k) for k in range(count)]


def check_images(base: UNetBackbone, requests: list[Request], generated: Generated) -> None:
    """Each image is that of its request, alone."""
    assert len(generated.images) == len(requests)
    for image, request in zip(generated.images, requests, strict=True):
        (alone,) = Engine(base).generate([request], ONE_STEP).images
        assert image.shape == alone.shape
        assert np.abs(image - alone).max() < 1e-4


@pytest.mark.parametrize(
    ("count", "batch", "expected"), [(7, 3, [3, 3, 1]), (6, 6, [6]), (2, 5, [2]), (3, 1, [1, 1, 1]), (5, None, [5])]
)
def test_a_batch_has_the_size_asked_for(
    base: UNetBackbone, adapter: Adapter, count: int, batch: int | None, expected: list[int]
) -> None:
    requests = requests_of(adapter, count)
    calls: list[int] = []
    hook = base.unet.mid_block.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    generated = Engine(base).generate(requests, ONE_STEP, batch=batch)
    hook.remove()
    assert generated.batches == calls == expected
    check_images(base, requests, generated)


def test_an_automatic_batch_holds_a_number_of_pixels(
    base: UNetBackbone, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(base)
    assert engine.auto_batch(64, 64) == AUTO_PIXELS["cpu"] // 64**2
    assert engine.auto_batch(10**5, 10**5) == 1
    monkeypatch.setitem(AUTO_PIXELS, "cpu", 3 * 16 * 24)
    assert engine.auto_batch(16, 24) == 3
    assert engine.generate(requests_of(adapter, 7), ONE_STEP).batches == [3, 3, 1]
    assert engine.generate(requests_of(adapter, 4), ONE_STEP, batch=4).batches == [4]  # as asked, whatever the limit


def test_sizes_and_adapters_are_mixed_in_one_call_and_images_keep_the_order(
    base: UNetBackbone, adapter: Adapter
) -> None:
    """Requests of one size share a batch, whatever their adapters; one that brings a U-Net has batches of its own."""
    others = [trained(base, "static", condition_channels=1), trained(base, "residual"), trained(base, "full")]
    small = [requests_of(one, 2) for one in (adapter, *others)]
    large = [requests_of(one, 2, 32, 17) for one in (adapter, *others)]
    requests = [
        request for k in range(2) for row in zip(small, large, strict=True) for request in (row[0][k], row[1][k])
    ]
    generated = Engine(base).generate(requests, ONE_STEP)
    assert [image.shape[:2] for image in generated.images] == [(16, 24), (32, 17)] * 8
    assert sorted(generated.batches) == [2, 2, 6, 6]
    check_images(base, requests, generated)


class Short(ControlAdapter):
    """A control adapter on a device whose memory holds a few images, as the error of a device says it."""

    room = 2
    error: Any = MemoryError()

    def predict(self, backbone: Any, z_t: Tensor, *rest: Any, **more: Any) -> Tensor:
        if len(z_t) > self.room:
            raise self.error
        return super().predict(backbone, z_t, *rest, **more)


@pytest.fixture
def short(base: UNetBackbone, adapter: Adapter) -> Short:
    one = Short(base, adapter.settings)
    one.load_state_dict(adapter.state_dict())
    return one.eval()


ERRORS = {
    "Python's": MemoryError(),
    "a GPU's": torch.OutOfMemoryError("CUDA out of memory"),
    "torch's on the CPU": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
}


@pytest.mark.parametrize("error", ERRORS)
def test_a_batch_that_does_not_fit_the_memory_is_halved(base: UNetBackbone, short: Short, error: str) -> None:
    short.error = ERRORS[error]
    requests = requests_of(short, 11)
    engine = Engine(base)
    generated = engine.generate(requests, ONE_STEP)
    assert generated.batches == [2] * 5 + [1]  # 11 -> 5 -> 2, and 2 from then on
    assert engine.auto_batch(16, 24) == 2
    assert engine.auto_batch(16, 32) > 2
    short.room = 100
    check_images(base, requests, generated)


def test_a_batch_asked_for_that_does_not_fit_is_tried_once(base: UNetBackbone, short: Short) -> None:
    tried: list[int] = []
    hook = short.encoder.controlnet_cond_embedding.register_forward_hook(
        lambda _, inputs, __: tried.append(len(inputs[0]))
    )
    engine = Engine(base)
    assert engine.generate(requests_of(short, 8), ONE_STEP, batch=4).batches == [2] * 4
    assert engine.generate(requests_of(short, 4), ONE_STEP, batch=4).batches == [2] * 2
    hook.remove()
    assert tried == [4, 2, 2, 2, 2, 2, 2]


def test_one_image_that_does_not_fit_is_a_memory_error(base: UNetBackbone, short: Short) -> None:
    short.room = 0
    with pytest.raises(MemoryError, match="one image alone does not fit the memory"):
        Engine(base).generate(requests_of(short, 3), ONE_STEP)


def test_another_error_is_not_taken_for_a_lack_of_memory(base: UNetBackbone, short: Short) -> None:
    short.error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Engine(base).generate(requests_of(short, 3), ONE_STEP)


def test_a_mixed_batch_that_does_not_fit_is_halved(base: UNetBackbone, adapter: Adapter) -> None:
    class Narrow(UNetBackbone):
        def predict(self, z_t: Tensor, *rest: Any, **more: Any) -> Tensor:
            if len(z_t) > 3:
                raise MemoryError
            return super().predict(z_t, *rest, **more)

    scheduler = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    narrow = Narrow(parts_of(base, scheduler))
    static = built(base, "static").eval()
    requests = [one for pair in zip(requests_of(adapter, 4), requests_of(static, 4), strict=True) for one in pair]
    generated = Engine(narrow).generate(requests, ONE_STEP)
    assert generated.batches == [2] * 4  # 8 -> 4 -> 2
    assert len(generated.images) == 8
