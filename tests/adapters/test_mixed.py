"""Several adapters in one batch: the base runs once for all of them, and each row is what it is alone."""

from typing import Any

import numpy as np
import pytest
from kinds import KINDS, built, trained

from codi_hub.adapters.base_only import BaseOnly
from codi_hub.adapters.mixed import MixedBatch
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.errors import UsageError
from codi_hub.inference.engine import Engine, Request, Sampling


@pytest.mark.slow
@pytest.mark.parametrize("start", [1.0, 0.5])
@pytest.mark.parametrize("fusion", ["zero_conv", "gate"])
def test_adapters_of_all_kinds_share_a_batch_and_each_generates_what_it_does_alone(
    base: UNetBackbone, fusion: str, start: float
) -> None:
    forms: dict[str, dict[str, Any]] = {kind: {"fusion": fusion} for kind in KINDS if kind != "concat"}
    forms |= {"residual": {"levels": 2, "blocks": 1, "read": True}}
    several = [
        trained(base, kind, condition_channels=(1, 3, 4)[k % 3], start=start, **forms.get(kind, {}))
        for k, kind in enumerate(KINDS)
    ]
    several = [adapter for adapter in several if adapter.adds_residuals]
    rng = np.random.default_rng(0)
    order = [0, 2, 1, 0, 3]
    requests = [
        Request(
            rng.random((16, 24, several[k].config["condition_channels"]), np.float32), several[k], text, seed, strength
        )
        for k, text, seed, strength in zip(
            order, ["a", "b", "", "a red ball", "c"], [1, 2, 3, 4, 5], [1, 0.5, 1, 0.25, 1], strict=True
        )
    ]
    calls: list[int] = []
    hook = base.unet.mid_block.register_forward_hook(lambda _, given, __: calls.append(len(given[0])))
    together = Engine(base).generate(requests, Sampling(steps=4))
    hook.remove()
    assert together.batches == [5]
    assert calls == [5] * 4
    for image, request in zip(together.images, requests, strict=True):
        (alone,) = Engine(base).generate([request], Sampling(steps=4)).images
        assert np.abs(image - alone).max() < 1e-4
    assert np.abs(together.images[0] - together.images[3]).max() > 1e-3


def test_the_base_alone_shares_a_batch_with_adapters(base: UNetBackbone) -> None:
    condition = np.random.default_rng(0).random((16, 24, 3), np.float32)
    requests = [Request(condition, adapter, "a", 1) for adapter in (trained(base, "control"), BaseOnly(base))]
    together = Engine(base).generate(requests)
    assert together.batches == [2]
    for image, request in zip(together.images, requests, strict=True):
        assert np.abs(image - Engine(base).generate([request]).images[0]).max() < 1e-4


@pytest.mark.parametrize("kind", ["full", "concat"])
def test_an_adapter_with_its_own_network_shares_no_batch(base: UNetBackbone, kind: str) -> None:
    with pytest.raises(UsageError, match=f"kind {kind} brings its own network"):
        MixedBatch([built(base, "control"), built(base, kind)])


def test_adapters_that_start_at_different_times_share_no_batch(base: UNetBackbone) -> None:
    with pytest.raises(UsageError, match="start at different times share no batch"):
        MixedBatch([built(base, "static"), built(base, "static", start=0.5)])
