"""Adapters that the hub keeps loaded: what a swap reads, and what it leaves behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from kinds import trained
from PIL import Image
from tiny import record_of, stir

from codi_hub.adapters import format
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.config.options import RunOptions
from codi_hub.hub import Hub
from codi_hub.registry import store, verify


def write(base: UNetBackbone, folder: Path, seed: int) -> Path:
    """The folder of an adapter for superres with weights of its own; its name there is its seed's."""
    adapter = stir(trained(base, "control"), seed=seed)
    record = record_of(base, adapter).model_copy(update={"task": "superres", "steps": 1})
    format.write(folder / str(seed), adapter, record, "# A card\n")
    return folder / str(seed)


@pytest.fixture
def tiny(codi: Callable[..., Any], base: UNetBackbone, base_folder: Path, tmp_path: Path) -> list[str]:
    """Three versions on the base `tiny`, which is in use."""
    assert codi("base", "add", "tiny", base_folder).code == 0
    assert codi("base", "use", "tiny").code == 0
    refs = []
    with Hub.open() as hub:
        for seed in (1, 2, 3):
            values = {"kind": "control", "steps": 1, "parameters": 1, "metrics": {}}
            folder = write(base, tmp_path, seed=seed)
            row, _ = hub.catalog.registry.adapters.add(folder, task="superres", base="tiny", **values)
            refs.append(row.ref)
    return refs


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was loaded from disk."""
    seen: list[Path] = []
    real = format.load
    monkeypatch.setattr(format, "load", lambda path, *rest, **more: seen.append(path) or real(path, *rest, **more))
    return seen


def test_as_many_adapters_stay_loaded_as_the_memory_holds(tiny: list[str], loads: list[Path]) -> None:
    with Hub.open() as hub:
        size = 2 * hub.catalog.registry.adapters.resolve(tiny[0]).bytes  # in float32, with what else the file holds

        def use(k: int, count: float) -> torch.nn.Module:
            return hub.use(tiny[k], device="cpu", dtype="fp32", adapter_memory=int(count * size))[1]

        first = use(0, 2)
        assert use(1, 2) is not first
        assert use(0, 2) is first
        assert len(loads) == 2
        use(2, 2)  # the second has not been used for longest
        assert use(0, 2) is first
        assert len(loads) == 3
        use(1, 2)
        assert len(loads) == 4
        assert use(1, 0) is use(1, 0)  # whatever the budget, the one in use stays
        use(0, 0)
        assert len(loads) == 5


@pytest.mark.slow
def test_a_run_keeps_to_the_memory_it_is_given(
    tiny: list[str], loads: list[Path], codi: Callable[..., Any], tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    options = {"device": "cpu", "dtype": "fp32", "set": {"scale": 2}, "out": tmp_path / "out", "overwrite": True}
    for memory, expected in (("0", 4), ("1GB", 2)):
        loads.clear()
        with Hub.open() as hub:
            for ref in (tiny[0], tiny[1], tiny[0], tiny[1]):
                report = hub.run(ref, [tmp_path / "a.png"], RunOptions(**options, adapter_memory=memory))
                assert report.ok == 1
        assert len(loads) == expected
    answer = codi("run", tiny[0], tmp_path / "a.png", "--adapter-memory", "lots")
    assert answer == (2, "", "Error: --adapter-memory lots: not a size; write it as 500MB or 2GB\n")


def test_weights_are_hashed_when_they_are_registered_and_never_again(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(verify, "sha256", lambda path: read.append(path) or store.sha256(path))
    for _ in range(2):  # two hubs are as two processes: what has been verified is in the database
        with Hub.open() as hub:
            for ref in tiny * 2:
                hub.use(ref, device="cpu", dtype="fp32", adapter_memory=0)
    assert read == []


@pytest.mark.slow
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "from disk"])
def test_memory_does_not_grow_with_swaps(tiny: list[str], loads: list[Path], cached: bool) -> None:
    """150 swaps between three adapters, all of which fit, or two: 100 leaked ones would take 10 MB."""
    process = psutil.Process()
    with Hub.open() as hub:
        row = hub.catalog.registry.adapters.resolve(tiny[0])
        memory = 10**9 if cached else 4 * row.bytes

        def swaps(count: int) -> int:
            for k in range(count):
                hub.use(tiny[k % 3], device="cpu", dtype="fp32", adapter_memory=memory)
            return int(process.memory_info().rss)

        before = swaps(51)
        loads.clear()
        after = swaps(99)
        assert len(loads) == (0 if cached else 99)
        assert after - before < 30 * 2 * row.bytes
