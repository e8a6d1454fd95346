"""Commands refuse an adapter that does not match its base or task in one line, before any image is read or written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import save_base, scheduler_config, stir

from codi_hub import adapters
from codi_hub.adapters import format
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.errors import Mismatch
from codi_hub.hub import Hub
from codi_hub.tasks.depth import Depth

Change = Callable[[dict[str, Any]], object]


def add(base: UNetBackbone, folder: Path, change: Change, *, task: str = "depth", channels: int = 1) -> str:
    """Register an adapter of the base `tiny` with a changed record; return the path of its weights."""
    torch.manual_seed(0)
    adapter = stir(adapters.build("control", base, condition_channels=channels))
    mark = base.fingerprint
    record = format.AdapterRecord(
        task=task,
        kind="control",
        base=format.BaseRecord(name="tiny", family=mark.family, sketch=mark.sketch),
        prediction_type=base.schedule.prediction_type,
        steps=1,
        config=adapter.config,
    )
    format.write(folder, adapter, record, "# A card\n")
    content = record.model_dump()
    change(content)
    (folder / format.RECORD).write_text(json.dumps(content), "utf-8")
    with Hub.open() as hub:
        row, _ = hub.catalog.registry.adapters.add(
            folder, task=task, base="tiny", kind="control", steps=1, parameters=1, metrics={}
        )
        return str(hub.catalog.registry.adapters.file(row, format.WEIGHTS))


@pytest.fixture
def tiny(codi: Callable[..., Any], base_folder: Path, tmp_path: Path) -> Callable[..., Any]:
    assert codi("base", "add", "tiny", base_folder).code == 0
    assert codi("base", "use", "tiny").code == 0
    (tmp_path / "in").mkdir()
    for k in range(3):
        Image.new("L", (16, 16), 80 * k).save(tmp_path / "in" / f"{k}.png")
    return codi


def refused(answer: Any, out: Path, *said: str) -> bool:
    assert answer.code == 1
    assert not answer.out or json.loads(answer.out)["error"]["exit_code"] == 1  # with --json
    assert [line for line in answer.err.splitlines() if line.startswith("Error: ")] == answer.err.splitlines()[-1:]
    assert all(part in answer.err for part in said), answer.err
    return not out.exists()


REFUSED: dict[str, tuple[Change, tuple[str, ...]]] = {
    "another base": (
        lambda r: r["base"].update(family="0123456789abcdef"),
        ("distilled for a base of family 0123456789abcdef, this base is of family ", "choose the base it belongs to"),
    ),
    "another fine-tune": (
        lambda r: r["base"].update(sketch={name: [-v for v in values] for name, values in r["base"]["sketch"].items()}),
        ("distilled on other weights of the same family", "use it all the same with "),
    ),
    "newer": (
        lambda r: r.update(format_version=3),
        ("format version 3, this program reads up to 2: upgrade codi-hub",),
    ),
    "another kind": (
        lambda r: r.update(kind="spell"),
        ("kind 'spell', and this program knows control, lora, concat, static, residual, full: upgrade",),
    ),
    "another number of channels": (
        lambda r: r["config"].update(condition_channels=4),
        ("depth:1 takes conditions of 4 channels, and its task, like depth, makes 1: register the task",),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "eval", "distill"])
@pytest.mark.parametrize("case", REFUSED)
def test_a_mismatch_is_refused_before_networks_are_loaded(
    tiny: Callable[..., Any],
    base: UNetBackbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    command: str,
) -> None:
    change, said = REFUSED[case]
    add(base, tmp_path / "a", change)
    monkeypatch.setattr(UNetBackbone, "load", lambda *a, **k: pytest.fail("networks were loaded"))
    monkeypatch.setattr(Depth, "load", lambda *a: pytest.fail("an image was loaded"))
    out = tmp_path / "out"
    arguments: dict[str, list[Any]] = {
        "run": ["depth", tmp_path / "in", "-o", out, "--json"],
        "eval": ["depth", "--out", out, "--json"],
        "distill": ["depth", "--from", "depth:1", "--run-dir", out, "--json"],
    }
    assert refused(tiny(command, *arguments[command]), out, *said)


def test_another_prediction_type_is_refused_before_an_image_is_loaded(
    tiny: Callable[..., Any], base: UNetBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(base, tmp_path / "a", lambda r: r.update(prediction_type="epsilon"))
    monkeypatch.setattr(Depth, "load", lambda *a: pytest.fail("an image was loaded"))
    said = "the adapter predicts epsilon, this base v_prediction: distil the task on this base"
    assert refused(tiny("run", "depth", tmp_path / "in", "-o", tmp_path / "out"), tmp_path / "out", said)


def test_a_task_with_another_number_of_condition_channels_is_refused(
    tiny: Callable[..., Any], base: UNetBackbone, tmp_path: Path
) -> None:
    assert tiny("task", "add", "mine", "--like", "colorize").code == 0
    add(base, tmp_path / "a", lambda r: None, task="mine", channels=3)
    said = "mine:1 takes conditions of 3 channels, and its task, like colorize, makes 1"
    assert refused(tiny("run", "mine", tmp_path / "in", "-o", tmp_path / "out"), tmp_path / "out", said)


def test_a_changed_file_in_the_store_is_refused(tiny: Callable[..., Any], base: UNetBackbone, tmp_path: Path) -> None:
    weights = Path(add(base, tmp_path / "a", lambda r: None))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(data)
    said = ("adapter.safetensors of depth:1 at ", "is not what was registered", "expected")
    assert refused(tiny("run", "depth", tmp_path / "in", "-o", tmp_path / "out"), tmp_path / "out", *said)
    weights.unlink()
    assert refused(tiny("run", "depth", tmp_path / "in", "-o", tmp_path / "out"), tmp_path / "out", "is missing at")


def test_a_base_that_changed_after_its_registration_is_named(
    codi: Callable[..., Any], base: UNetBackbone, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    Image.new("L", (16, 16)).save(tmp_path / "in" / "0.png")
    config = scheduler_config("v_prediction", zero_snr=True)
    folder = save_base(tmp_path / "base", config)
    assert codi("base", "add", "tiny", folder).code == 0
    assert codi("base", "use", "tiny").code == 0
    add(base, tmp_path / "a", lambda r: None)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config | {"prediction_type": "sample"}))
    said = ("base tiny is not what was registered, at ", "family ", ", then ", "codi base add NAME FOLDER")
    refused(codi("run", "depth", tmp_path / "in", "-o", tmp_path / "out"), tmp_path / "out", *said)


@pytest.mark.slow
def test_an_adapter_is_used_on_a_fine_tune_of_its_base_on_request(
    tiny: Callable[..., Any], base: UNetBackbone, tmp_path: Path
) -> None:
    add(base, tmp_path / "a", lambda r: None)
    folder = save_base(tmp_path / "tuned", scheduler_config("v_prediction", zero_snr=True), seed=5)
    assert tiny("base", "add", "tuned", folder).code == 0
    run = ("run", "depth:1", tmp_path / "in", "-o", tmp_path / "out", "--base", "tuned")
    said = ("base tuned has no adapter depth:1; base tiny, of the same architecture, has depth:1", "--allow-base-mism")
    refused(tiny(*run), tmp_path / "out", *said)
    answer = tiny(*run, "--allow-base-mismatch")
    assert answer.code == 0
    assert "depth:1 was trained on base tiny; it is used on tuned" in answer.err
    assert len([*(tmp_path / "out").iterdir()]) == 3
    elsewhere = ("depth:1", "--base", "tuned", "--allow-base-mismatch", "--json")
    assert json.loads(tiny("export", *elsewhere, "-o", tmp_path / "exported").out)["base"] == "tuned"
    image, measured = Image.open(tmp_path / "in" / "0.png"), ("--steps", "1", "--count", "1", "--against", "base")
    answer = tiny("eval", *elsewhere, *measured)
    assert json.loads(answer.out)["base"] == "tuned"
    assert "depth:1 was trained on base tiny; it is used on tuned" in answer.err
    for command, more in (("eval", ()), ("export", ("-o", tmp_path / "refused"))):
        assert "base tiny, of the same architecture" in tiny(command, "depth:1", "--base", "tuned", *more).err
    with Hub.open(base="tuned") as hub:
        with pytest.raises(Mismatch, match="with allow_base_mismatch"):
            hub.generate("depth:1", image)
        assert hub.generate("depth:1", image, allow_base_mismatch=True).size == image.size
        loaded = hub.use("depth:1", allow_base_mismatch=True)
        assert loaded.row.base == "tuned"
        assert not torch.equal(loaded.base.unet.conv_in.weight, base.unet.conv_in.weight)  # type: ignore[attr-defined]
