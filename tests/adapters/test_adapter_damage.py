"""Property tests of the adapter format: damaged files either load or are refused in one line."""

import json
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file
from tiny import stir

from codi_hub import adapters
from codi_hub.adapters import format
from codi_hub.adapters.controlnet import ControlAdapter
from codi_hub.backbones.unet import UNetBackbone
from codi_hub.errors import CodiError, InvalidInput, Mismatch
from codi_hub.record import TrainingRecord

MAX_EDIT = 40  # bytes that one edit removes, doubles or inserts
PACKAGES = tuple(path for path in sys.path if path.endswith("site-packages"))  # where plug-ins are looked up
_watched: list[tuple[str, str]] | None = None


def _record_event(event: str, args: tuple[Any, ...]) -> None:
    if _watched is not None and event in ("open", "pickle.find_class", "os.system", "subprocess.Popen", "os.mkdir"):
        _watched.append((event, str(args[0])))


sys.addaudithook(_record_event)  # a hook cannot be removed, so it records only inside `watched`


@contextmanager
def watched() -> Iterator[list[tuple[str, str]]]:
    """Yield the files that Python opens and the commands that it executes inside the block."""
    global _watched
    _watched = []
    try:
        yield _watched
    finally:
        _watched = None


@pytest.fixture(scope="module")
def files(base: UNetBackbone, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, bytes]:
    """Return a folder to damage, and its weights and record before the damage."""
    torch.manual_seed(0)
    adapter = stir(adapters.build("control", base, condition_channels=1))
    mark = base.fingerprint
    record = format.AdapterRecord(
        task="depth",
        kind="control",
        base=format.BaseRecord(name="tiny", family=mark.family, sketch=mark.sketch),
        prediction_type=base.schedule.prediction_type,
        steps=4,
        config=adapter.config,
        method="pe-codi",
        loss={"guidance": 1.0, "consistency": 1.0},
        training={"batch": 16},
        lineage=[TrainingRecord(method="pe-codi", minutes=1.5, steps=10, start="pretrained initialisation")],
    )
    folder = tmp_path_factory.mktemp("damaged") / "adapter"
    format.write(folder, adapter, record, "# A card\n")
    return folder, (folder / format.WEIGHTS).read_bytes(), (folder / format.RECORD).read_bytes()


def outcome(folder: Path, base: UNetBackbone) -> str:
    """Return `loaded` or the error's text; no file outside the folder is opened, and nothing is executed."""
    with watched() as seen:
        try:
            record = format.read_record(folder / format.RECORD)
            adapter = format.load(folder / format.WEIGHTS, record, base)
            text = "loaded"
        except (InvalidInput, Mismatch) as error:
            text = str(error)
    outside = [what for what in seen if what[0] != "open" or not what[1].startswith(str(folder))]
    assert [what for what in outside if not what[1].startswith((sys.prefix, sys.base_prefix, *PACKAGES))] == []
    if text == "loaded":
        assert isinstance(adapter, ControlAdapter)
    assert text.isprintable()
    assert len(text) < 500
    return text


def damaged(data: bytes, draw: Callable[[Any], Any]) -> bytes:
    """Return the data with some bytes cut off, flipped, removed, doubled or inserted."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.one_of(st.integers(0, len(changed)), st.integers(0, min(200, len(changed)))))
        kind = draw(st.sampled_from(["cut", "flip", "remove", "double", "insert"]))
        if kind == "cut":
            del changed[place:]
        elif kind == "flip":
            changed[place : place + 1] = bytes(byte ^ draw(st.integers(1, 255)) for byte in changed[place : place + 1])
        elif kind == "remove":
            del changed[place : place + draw(st.integers(1, MAX_EDIT))]
        elif kind == "double":
            changed[place:place] = changed[place : place + draw(st.integers(1, MAX_EDIT))]
        else:
            changed[place:place] = draw(st.binary(min_size=1, max_size=MAX_EDIT))
    return bytes(changed)


@pytest.mark.slow
@settings(max_examples=150)
@given(data=st.data())
def test_damaged_bytes(files: tuple[Path, bytes, bytes], base: UNetBackbone, data: st.DataObject) -> None:
    folder, weights, record = files
    which = data.draw(st.sampled_from([format.WEIGHTS, format.RECORD]))
    (folder / format.WEIGHTS).write_bytes(weights)
    (folder / format.RECORD).write_bytes(record)
    whole = weights if which == format.WEIGHTS else record
    (folder / which).write_bytes(damaged(whole, data.draw))
    assert outcome(folder, base)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


VERSION_1_TRAINING = {
    "method": "pe-codi, control/zero_conv, pretrained initialisation",
    "loss": '{"guidance": "latent", "ode": "own", "consistency": true, "weight": 1.0, "cap": true}',
    "data": "36 pairs of 64 px from scenes",
    "minutes": 1.5,
    "optimiser_steps": 10,
    "hardware": "1 threads, x86_64",
    "parent": "none",
}


@pytest.mark.slow
@settings(max_examples=200)
@given(data=st.data())
def test_a_record_with_any_value_anywhere(
    files: tuple[Path, bytes, bytes], base: UNetBackbone, data: st.DataObject
) -> None:
    folder, weights, record = files
    (folder / format.WEIGHTS).write_bytes(weights)
    changed = json.loads(record)
    parts = [changed, changed["base"], changed["config"], changed["base"]["sketch"], changed["lineage"][0]]
    at = data.draw(st.sampled_from([*parts, changed["loss"], changed["training"]]))
    key = data.draw(st.sampled_from([*at, "unknown"]) | st.text(max_size=9))
    value = data.draw(JSON)
    at[key] = value
    (folder / format.RECORD).write_text(json.dumps(changed), "utf-8")
    text = outcome(folder, base)
    if at is changed and key in ("steps", "format_version") and not isinstance(value, int):
        assert text != "loaded"


@pytest.mark.slow
@settings(max_examples=200)
@given(data=st.data())
def test_a_version_1_record_with_any_value_anywhere(
    files: tuple[Path, bytes, bytes], base: UNetBackbone, data: st.DataObject
) -> None:
    folder, weights, record = files
    (folder / format.WEIGHTS).write_bytes(weights)
    changed = {k: v for k, v in json.loads(record).items() if k not in ("method", "loss", "lineage")}
    changed |= {"format_version": 1, "training": dict(VERSION_1_TRAINING)}
    at = data.draw(st.sampled_from([changed, changed["config"], changed["training"]]))
    at[data.draw(st.sampled_from([*at, "start", "start_noise", "unknown"]))] = data.draw(JSON)
    (folder / format.RECORD).write_text(json.dumps(changed), "utf-8")
    assert outcome(folder, base)


@settings(max_examples=60)
@given(st.binary(max_size=60) | st.builds(lambda n: b"[" * n, st.integers(0, 3000)))
def test_any_bytes_as_a_record(files: tuple[Path, bytes, bytes], base: UNetBackbone, content: bytes) -> None:
    folder, _, _ = files
    (folder / format.RECORD).write_bytes(content)
    assert outcome(folder, base).startswith("adapter.json: ")


def header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite the file with its header changed."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    entries = json.loads(data[8 : 8 + size])
    text = json.dumps(change(entries) or entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def tensors(path: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    save_file({name: change(name, value) for name, value in load_file(path).items()}, path)


FIRST = "encoder.conv_in.weight"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "endless header": (lambda p: p.write_bytes(struct.pack("<Q", 1 << 62) + p.read_bytes()[8:]), "not readable"),
    "header of 100 MB": (lambda p: p.write_bytes(struct.pack("<Q", 100_000_001) + bytes(10)), "not readable"),
    "nested header": (lambda p: p.write_bytes(struct.pack("<Q", 50_000) + b"[" * 50_000), "not readable"),
    "integers": (lambda p: tensors(p, lambda n, v: v.long()), "is of I64, and weights are one of F16, BF16, F32"),
    "doubles": (lambda p: tensors(p, lambda n, v: v.double()), "is of F64"),
    "booleans": (lambda p: tensors(p, lambda n, v: v.bool()), "is of BOOL"),
    "shape": (lambda p: tensors(p, lambda n, v: v[:1].clone() if n == FIRST else v), "tensors differ"),
    "name outside": (lambda p: header(p, lambda h: h.update({"../../etc/passwd": h.pop(FIRST)})), "tensors differ"),
    "name of control": (lambda p: header(p, lambda h: h.update({"\x1b[2J\n": h.pop(FIRST)})), "tensors differ"),
    "unknown dtype": (lambda p: header(p, lambda h: h[FIRST].update(dtype="PICKLE")), "not readable"),
    "negative shape": (lambda p: header(p, lambda h: h[FIRST].update(shape=[-1])), "not readable"),
    "huge shape": (lambda p: header(p, lambda h: h[FIRST].update(shape=[2**62, 2**62])), "not readable"),
    "overlapping": (lambda p: header(p, lambda h: h[FIRST].update(data_offsets=[0, 8])), "not readable"),
    "only metadata": (lambda p: p.write_bytes(save({}, {"a": "b" * 1000})), "tensors differ"),
    "a pickle": (lambda p: torch.save({"a": torch.zeros(3)}, p), "not readable"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_forged_weights(files: tuple[Path, bytes, bytes], base: UNetBackbone, case: str) -> None:
    folder, weights, record = files
    (folder / format.WEIGHTS).write_bytes(weights)
    (folder / format.RECORD).write_bytes(record)
    assert outcome(folder, base) == "loaded"
    damage, words = DAMAGE[case]
    damage(folder / format.WEIGHTS)
    assert words in outcome(folder, base)


def test_the_last_of_two_equal_keys_is_read_and_checked(files: tuple[Path, bytes, bytes], base: UNetBackbone) -> None:
    folder, weights, record = files
    (folder / format.WEIGHTS).write_bytes(weights)
    (folder / format.RECORD).write_bytes(record.replace(b"{", b'{"format_version": 9, ', 1))
    assert outcome(folder, base) == "loaded"
    (folder / format.RECORD).write_bytes(record.strip()[:-1] + b', "format_version": 9}')
    assert outcome(folder, base).endswith("format version 9, this program reads up to 2: upgrade codi-hub")
    with pytest.raises(CodiError):
        format.read_record(folder / format.RECORD)
