"""Adapters on and off a loaded base: what a swap reads, keeps, draws and leaves behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from PIL import Image
from tiny import stir

from codi_hub import adapters
from codi_hub.adapters import cache as swap
from codi_hub.adapters import format
from codi_hub.adapters.skeleton import KEPT, skeleton
from codi_hub.backbones.unet import FrozenBase
from codi_hub.config.options import RunOptions
from codi_hub.errors import InvalidInput
from codi_hub.hub import Hub
from codi_hub.registry import store, verify

every_kind = pytest.mark.parametrize("kind", adapters.KINDS)


def write(base: FrozenBase, folder: Path, kind: str = "control", seed: int = 3, task: str = "superres") -> Path:
    """The folder of an adapter with weights of its own; its name there is its seed's."""
    torch.manual_seed(seed)
    adapter = stir(adapters.build(kind, base), seed=seed)
    mark = base.fingerprint
    record = format.AdapterRecord(
        task=task,
        kind=kind,
        base=format.BaseRecord(name="tiny", family=mark.family, sketch=mark.sketch),
        prediction_type=base.schedule.prediction_type,
        steps=1,
        config=adapter.config,
    )
    format.write(folder / str(seed), adapter, record, "# A card\n")
    return folder / str(seed)


def load(folder: Path, base: FrozenBase) -> adapters.ControlAdapter:
    return format.load(folder / format.WEIGHTS, format.read_record(folder / format.RECORD), base)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_come_as_the_base_has_its_own_and_are_nobody_elses(
    base_folder: Path, tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    base = FrozenBase.load(str(base_folder), dtype=dtype)
    folder = write(FrozenBase.load(str(base_folder)), tmp_path, kind)
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
def test_loading_draws_nothing(base: FrozenBase, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_adapters_of_one_form_share_no_weight_and_no_module(base: FrozenBase, tmp_path: Path, kind: str) -> None:
    one, two = (load(write(base, tmp_path, kind, seed), base) for seed in (1, 2))
    for held in (torch.nn.Module.parameters, torch.nn.Module.modules):
        assert not {id(value) for value in held(one)} & {id(value) for value in held(two)}
    before = {name: value.clone() for name, value in two.state_dict().items()}
    stir(one)
    one.train()
    one.config["condition_channels"] = "changed"
    assert all(torch.equal(value, before[name]) for name, value in two.state_dict().items())
    assert not any(part.training for part in two.modules())
    again = load(tmp_path / "2", base)
    assert again.config["condition_channels"] == 3
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([500]), base.embed([""]), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again(base, *inputs), two(base, *inputs))


def test_forms_are_kept_for_a_few_configurations(base: FrozenBase) -> None:
    made = [skeleton("control", base, condition_channels=count) for count in range(1, KEPT + 3)]
    first = skeleton("control", base, condition_channels=1)
    stems = [each.encoder.controlnet_cond_embedding.conv_in.in_channels for each in (*made, first)]
    assert stems == [*range(1, KEPT + 3), 1]


def _refuse(value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    assert value.is_meta, "random weights were drawn"
    return value


def test_what_does_not_fit_is_refused_before_its_content_is_read(
    base: FrozenBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(base, tmp_path)
    tensors = format.load_file(folder / format.WEIGHTS)
    format.save_file(tensors | {"encoder.conv_in.weight": torch.zeros(1 << 20)}, folder / format.WEIGHTS)
    monkeypatch.setattr(format, "placed", lambda *_: pytest.fail("a weight was read"))
    with pytest.raises(InvalidInput, match="tensors differ"):
        load(folder, base)


def test_room_is_made_before_an_adapter_is_loaded() -> None:
    kept = swap.Resident(budget=800)
    seen: list[int] = []

    def load() -> torch.nn.Module:
        seen.append(kept.bytes)
        return torch.nn.Linear(10, 10, bias=False)  # 400 bytes

    for key in "abc":
        kept.get(key, load, expected=400)
    assert seen == [0, 400, 400]
    kept.budget = 0
    kept.get("d", load, expected=400)
    assert (seen[-1], kept.bytes) == (0, 400)


# ---- through the hub


@pytest.fixture
def tiny(codi: Callable[..., Any], base: FrozenBase, base_folder: Path, tmp_path: Path) -> list[str]:
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


def test_as_many_stay_loaded_as_the_memory_given_holds(tiny: list[str], loads: list[Path]) -> None:
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
    assert answer == (2, "", "Error: not a size: 'lots'; write it as 500MB or 2GB\n")


def test_weights_are_hashed_when_they_enter_and_never_again(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr(verify, "sha256", lambda path: read.append(path) or store.sha256(path))
    for _ in range(2):  # two hubs are as two processes: what has been verified is in the database
        with Hub.open() as hub:
            for ref in tiny * 2:
                hub.use(ref, device="cpu", dtype="fp32", adapter_memory=0)
    assert read == []


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "from disk"])
def test_memory_does_not_grow_with_swaps(tiny: list[str], loads: list[Path], resident: bool) -> None:
    """150 swaps between three adapters, all of which fit, or two: 100 leaked ones would take 10 MB."""
    process = psutil.Process()
    with Hub.open() as hub:
        row = hub.catalog.registry.adapters.resolve(tiny[0])
        memory = 10**9 if resident else 4 * row.bytes

        def swaps(count: int) -> int:
            for k in range(count):
                hub.use(tiny[k % 3], device="cpu", dtype="fp32", adapter_memory=memory)
            return int(process.memory_info().rss)

        before = swaps(51)
        loads.clear()
        after = swaps(99)
        assert len(loads) == (0 if resident else 99)
        assert after - before < 30 * 2 * row.bytes
