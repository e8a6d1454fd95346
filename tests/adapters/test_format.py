"""Adapters on disk: what is written comes back, and what does not fit or was tampered with is refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from inputs import inputs
from kinds import built, every_form, every_kind
from safetensors.torch import load_file, save_file
from tiny import record_of, scheduler_config, stir, unet, with_unet

from codi_hub.adapters import format
from codi_hub.adapters.adapter import Adapter
from codi_hub.adapters.cache import AdapterCache
from codi_hub.adapters.controlnet import ControlAdapter
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.errors import InvalidInput, Mismatch


@pytest.fixture
def folder(base: UNetBackbone, tmp_path: Path) -> Path:
    adapter = stir(built(base, "control", condition_channels=1))
    format.write(tmp_path / "adapter", adapter, record_of(base, adapter), "# A card\n")
    return tmp_path / "adapter"


@pytest.mark.slow
@every_form
def test_an_adapter_comes_back_from_its_files(
    any_base: UNetBackbone, tmp_path: Path, kind: str, form: dict[str, Any]
) -> None:
    adapter = stir(built(any_base, kind, condition_channels=1, **form)).eval()
    written = record_of(any_base, adapter)
    format.write(tmp_path / "a", adapter, written, "# A card\n")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(
        [format.WEIGHTS, format.RECORD, format.CARD]
    )
    record = format.read_record(tmp_path / "a" / format.RECORD)
    assert record.weights is not None
    assert record.model_copy(update={"weights": None}) == written
    loaded = format.load(tmp_path / "a" / format.WEIGHTS, record, any_base)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    state = loaded.state_dict()
    assert all(torch.equal(state[name], value.half().float()) for name, value in adapter.state_dict().items())
    assert loaded.config == adapter.config
    batch = inputs(any_base, 1)
    with torch.no_grad():
        expected = adapter(any_base, *batch)
        assert (loaded(any_base, *batch) - expected).norm() < 0.005 * expected.norm()  # weights take two bytes


@every_kind
def test_weights_take_two_bytes_on_disk_and_are_counted_in_the_cache(
    base: UNetBackbone, tmp_path: Path, kind: str
) -> None:
    adapter = built(base, kind)
    count = sum(p.numel() for p in adapter.parameters())
    if kind == "full":
        assert count > sum(p.numel() for p in base.unet.parameters())
    format.write(tmp_path / "a", adapter, record_of(base, adapter), "")
    tensors = load_file(tmp_path / "a" / format.WEIGHTS)
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    assert sum(value.numel() for value in tensors.values()) == count
    cache = AdapterCache(budget=4 * count)
    loaded = cache.get("a", lambda: load(tmp_path / "a", base))
    assert cache.bytes == 4 * count
    assert cache.get("b", lambda: torch.nn.Linear(1, 1)) is not loaded
    assert cache.bytes < 4 * count  # one byte beyond the budget, and the older goes


def test_writing_twice_gives_the_same_bytes(base: UNetBackbone, folder: Path, tmp_path: Path) -> None:
    adapter = stir(built(base, "control", condition_channels=1))
    format.write(tmp_path / "again", adapter, record_of(base, adapter), "# A card\n")
    for name in (format.WEIGHTS, format.RECORD, format.CARD):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def load(folder: Path, base: UNetBackbone, **options: bool) -> Adapter:
    return format.load(folder / format.WEIGHTS, format.read_record(folder / format.RECORD), base, **options)


def test_another_base_is_refused_and_a_fine_tune_allowed_on_request(base: UNetBackbone, folder: Path) -> None:
    family = with_unet(base, unet(block_out_channels=(8, 24)))
    tuned = with_unet(base, stir(unet(), 0.01))
    with pytest.raises(Mismatch, match=f"family {base.fingerprint.family}, .* family {family.fingerprint.family}"):
        load(folder, family, allow_base_mismatch=True)
    with pytest.raises(Mismatch, match=r"distilled on other weights .*: use it all the same"):
        load(folder, tuned)
    assert isinstance(load(folder, tuned, allow_base_mismatch=True), ControlAdapter)
    assert isinstance(load(folder, with_unet(base, unet().half())), ControlAdapter)
    with pytest.raises(Mismatch):
        load(folder, with_unet(base, unet(), scheduler_config("sample", zero_snr=True)))


def edit(**changes: Any) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps(json.loads(data) | changes).encode()


def newer(data: bytes) -> bytes:
    record = json.loads(data)
    return json.dumps(record | {"format_version": record["format_version"] + 1}).encode()


def edit_base(**changes: Any) -> Callable[[bytes], bytes]:
    def edited(data: bytes) -> bytes:
        record = json.loads(data)
        record["base"] |= changes
        return json.dumps(record).encode()

    return edited


TAMPERED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "newer": (newer, ", this program reads up to "),
    "cut": (lambda data: data[:60], "not an adapter record"),
    "empty": (lambda data: b"", "not an adapter record"),
    "binary": (lambda data: b"\xff\xfe\0", "not an adapter record"),
    "nested": (lambda data: b"[" * 200_000, "not an adapter record"),
    "endless number": (lambda data: b'{"steps": ' + b"9" * 5000 + b"}", "not an adapter record"),
    "a list": (lambda data: b"[]", "adapter.json"),
    "unknown field": (edit(run="rm"), "run: extra"),
    "missing field": (lambda data: b'{"task": "superres"}', "field required"),
    "steps": (edit(steps=0), "steps: "),
    "prediction": (edit(prediction_type="velocity"), "prediction_type: "),
    "other prediction": (edit(prediction_type="epsilon"), "predicts epsilon, this base v_prediction"),
    "newer, as text": (edit(format_version="2"), "format_version: "),
    "no version at all": (edit(format_version=0), "format_version: "),
    "kind": (
        edit(kind="pickle"),
        "kind 'pickle', and this program knows control, lora, concat, static, residual, full: upgrade codi-hub",
    ),
    "fusion": (edit(config={"fusion": "sum"}), "config: adapter.fusion sum: one of zero_conv, gate"),
    "another's option": (edit(config={"base": 1}), "config: "),
    "text for steps": (edit(steps="4"), "steps: "),
    "field that clears the screen": (edit(**{"\x1b[2J\n": 1}), "\\x1b[2J"),
    "endless": (lambda data: data + b" " * (17 << 20), "over the limit"),
    "unknown option": (edit(config={"hidden": 1}), "hidden"),
    "first edition's option": (edit(config={"pretrained": True}), "pretrained: no such field"),
    "channels": (edit(config={"condition_channels": 3}), "tensors differ"),
    "huge": (edit(config={"condition_channels": 10**15}), "condition_channels 1000000000000000: at most 64"),
    "negative": (edit(config={"condition_channels": -1}), "condition_channels -1: at least 1"),
    "text for number": (edit(config={"condition_channels": "many"}), "condition_channels many: a whole number"),
    "short sketch": (edit_base(sketch={"conv_in.weight": [1.0]}), "other weights"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_tampered_record_is_refused_in_one_line(base: UNetBackbone, folder: Path, case: str) -> None:
    change, words = TAMPERED[case]
    path = folder / format.RECORD
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises((InvalidInput, Mismatch)) as caught:  # never a UsageError: nobody typed it
        load(folder, base)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def without_one(path: Path) -> None:
    tensors = load_file(path)
    tensors.pop("encoder.conv_in.weight")
    save_file(tensors, path)


def with_another(path: Path) -> None:
    save_file(load_file(path) | {"backdoor": torch.zeros(1)}, path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "not readable"),
        (lambda path: path.write_bytes(path.read_bytes()[:20]), "not readable"),
        (lambda path: path.write_bytes(b""), "not readable"),
        (lambda path: path.write_bytes(b"\xff" * 64), "not readable"),
        (Path.unlink, "not readable"),
        (without_one, "tensors differ"),
        (with_another, "tensors differ"),
    ],
    ids=["truncated", "header only", "empty", "garbage", "gone", "one missing", "one too many"],
)
def test_damaged_weights_are_refused_in_one_line(
    base: UNetBackbone, folder: Path, damage: Callable[[Path], object], words: str
) -> None:
    damage(folder / format.WEIGHTS)
    with pytest.raises(InvalidInput, match=words) as caught:
        load(folder, base)
    assert "\n" not in str(caught.value)


def test_a_missing_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"adapter\.json: not an adapter record"):
        format.read_record(tmp_path / "adapter.json")
