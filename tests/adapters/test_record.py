"""`adapter.json`: format version 2, version 1 upgraded in memory, the label of a training, and what is refused."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import codi_hub
from codi_hub.errors import InvalidInput, UsageError
from codi_hub.record import MAX_RECORD, AdapterRecord, BaseRecord, TrainingRecord, label, read_record

VERSION_1 = Path(__file__).parent / "version_1"
NANO = Path(codi_hub.__file__).parent / "nano"
BOTH = {"guidance": 1.0, "consistency": 1.0}
# record of version 1 -> kind, method, loss, kind of guidance, start, minutes of the last training
UPGRADED = {
    "superres": ("residual", "regression", {"guidance": 1.0}, "latent", "random initialisation", 60.0),
    "deblur": ("residual", "regression", {"guidance": 1.0}, "latent", "from superres:1", 12.0),
    "inpaint": ("static", "pe-codi", BOTH, "latent", "from inpaint:3", 8.0),
    "depth": ("residual", "regression", {"guidance": 1.0}, "latent", "from depth:1", 22.0),
    "edit": ("residual", "regression", {"guidance": 1.0}, "relative", "from edit:12", 1.0),
    "canny": ("residual", "regression", {"guidance": 1.0}, "latent", "from canny:1", 22.0),
    "superres-control": ("control", "pe-codi", BOTH, "latent", "pretrained initialisation", 28.0),
}


@pytest.mark.parametrize("name", UPGRADED)
def test_version_1_is_upgraded(name: str) -> None:
    path = VERSION_1 / f"{name}.json"
    old, record = json.loads(path.read_text()), read_record(path)
    kind, method, loss, guidance, start, minutes = UPGRADED[name]
    assert (record.format_version, record.kind, record.method, record.loss) == (2, kind, method, loss)
    assert record.training["guidance"] == guidance
    assert record.training["learning_rate"] == old["training"]["learning_rate"]
    (last,) = record.lineage
    assert (last.method, last.kind, last.start, last.minutes) == (method, kind, start, minutes)
    assert (last.data, last.steps) == (old["training"]["data"], old["training"]["optimiser_steps"])
    assert last.hardware == old["training"]["hardware"]
    kept = ("task", "prediction_type", "steps", "metrics")
    assert {field: getattr(record, field) for field in kept} == {field: old[field] for field in kept}
    half = {"start_noise": 0.5} if name == "inpaint" else {}  # version 1 did not write its default
    assert record.config == old["config"] | half


@pytest.mark.parametrize("name", UPGRADED)
def test_an_upgraded_record_is_written_and_read_as_version_2(name: str, tmp_path: Path) -> None:
    record = read_record(VERSION_1 / f"{name}.json")
    (tmp_path / "adapter.json").write_text(record.to_json())
    assert json.loads(record.to_json())["format_version"] == 2
    assert read_record(tmp_path / "adapter.json") == record


Change = dict[str, Any]


def version_1(tmp_path: Path, training: Change, config: Change | None = None, **changes: Any) -> AdapterRecord:
    """Return a record read from a version 1 file with that training."""
    data = json.loads((VERSION_1 / "superres-control.json").read_text())
    data |= {"training": training, "config": config or data["config"]} | changes
    (tmp_path / "adapter.json").write_text(json.dumps(data))
    return read_record(tmp_path / "adapter.json")


def switches(**changes: Any) -> str:
    """Return the text of version 1's `training.loss`."""
    return json.dumps({"guidance": "latent", "ode": "own", "consistency": True, "weight": 1.0, "cap": True} | changes)


@pytest.mark.parametrize(
    ("asked", "loss", "config", "method", "terms"),
    [
        ("pe-codi", switches(weight=0.5), {}, "pe-codi", {"guidance": 1.0, "consistency": 0.5}),
        ("pe-codi", switches(guidance="off"), {}, "pe-codi", {"consistency": 1.0}),
        ("pe-codi", switches(consistency=False), {}, "guidance-only", {"guidance": 1.0}),
        ("pe-codi", switches(weight=0.0), {"start": 0.3}, "guidance-only", {"guidance": 1.0}),
        ("pe-codi", switches(consistency=False), {"start": 0.3, "start_noise": 0.0}, "regression", {"guidance": 1.0}),
        ("codi", switches(), {"start": 0.3, "start_noise": 0.0}, "codi", BOTH),
        ("pe-codi", switches(guidance="off", consistency=False), {}, "pe-codi", {}),
        ("pe-codi", None, {}, "pe-codi", {}),
        ("conditional", None, {}, "conditional", {"diffusion": 1.0}),
        ("cm", None, {}, "cm", {"consistency": 1.0}),
        ("gd", None, {}, "gd", {"progressive": 1.0}),
    ],
)
def test_method_and_loss_follow_from_the_switches_of_version_1(
    asked: str, loss: str | None, config: Change, method: str, terms: Change, tmp_path: Path
) -> None:
    training = {"method": f"{asked}, control/zero_conv, random initialisation"} | ({"loss": loss} if loss else {})
    record = version_1(tmp_path, training, {"condition_channels": 3} | config)
    assert (record.method, record.loss) == (method, terms)
    assert [one.method for one in record.lineage] == [method]
    assert record.lineage[0].start == "random initialisation"


def test_a_version_1_record_without_a_training_has_no_method(tmp_path: Path) -> None:
    record = version_1(tmp_path, {})
    assert (record.method, record.loss, record.training, record.lineage) == ("", {}, {}, [])


def test_a_version_1_residual_adapter_did_not_start_from_the_base(tmp_path: Path) -> None:
    training = {"method": "pe-codi, side/zero_conv, pretrained initialisation"}
    assert version_1(tmp_path, training, kind="side").lineage[0].start == "random initialisation"


@pytest.mark.parametrize(
    ("asked", "consistency", "guidance", "start", "start_noise", "expected"),
    [
        ("pe-codi", True, True, 1.0, 0.5, "pe-codi"),
        ("pe-codi", True, False, 1.0, 0.5, "pe-codi"),
        ("codi", True, True, 0.2, 0.0, "codi"),
        ("pe-codi", False, True, 1.0, 0.0, "guidance-only"),
        ("codi", False, True, 0.5, 0.5, "guidance-only"),
        ("pe-codi", False, True, 0.5, 0.0, "regression"),
        ("codi", False, True, 0.02, 0.0, "regression"),
        ("conditional", False, False, 1.0, 0.5, "conditional"),
        ("gd", False, True, 0.5, 0.0, "gd"),
        ("another package's", False, True, 0.5, 0.0, "another package's"),
    ],
)
def test_a_training_is_labelled_by_what_it_trained(
    asked: str, consistency: bool, guidance: bool, start: float, start_noise: float, expected: str
) -> None:
    given = {"consistency": consistency, "guidance": guidance, "start": start, "start_noise": start_noise}
    assert label(asked, **given) == expected


def test_a_loss_without_a_term_has_no_label() -> None:
    with pytest.raises(UsageError, match="neither guidance nor consistency is trained"):
        label("pe-codi", consistency=False, guidance=False, start=1.0, start_noise=0.5)


def record(**changes: Any) -> dict[str, Any]:
    """Return the content of a version 2 file."""
    whole = AdapterRecord(
        task="depth",
        kind="control",
        base=BaseRecord(name="tiny", family="f" * 16, sketch={"conv_in.weight": [0.5, 1.0]}),
        prediction_type="epsilon",
        steps=4,
        config={"condition_channels": 1},
        method="pe-codi",
        loss=BOTH,
        lineage=[TrainingRecord(method="pe-codi", minutes=1.0)],
    )
    return json.loads(whole.to_json()) | changes


REFUSED: dict[str, tuple[Change, str]] = {
    "newer": ({"format_version": 3}, "format version 3, this program reads up to 2: upgrade codi-hub"),
    "much newer": ({"format_version": 10**400}, "upgrade codi-hub"),
    "older than 1": ({"format_version": 0}, "format_version: input should be 2"),
    "a true version": ({"format_version": True}, "format_version: "),
    "an unknown field": ({"surprise": 1}, "surprise: extra inputs are not permitted"),
    "a negative weight": ({"loss": {"guidance": -1.0}}, "loss.guidance: "),
    "an endless weight": ({"loss": {"guidance": float("inf")}}, "loss.guidance: "),
    "a term with a line break": ({"loss": {"a\nb": 1.0}}, "loss.a b.[key]: "),
    "a method with a line break": ({"method": "a\nb"}, "method: "),
    "a method of a page": ({"method": "a" * 61}, "method: "),
    "a training with an unknown field": ({"lineage": [{"method": "a", "pickle": 1}]}, "lineage.0.pickle: "),
    "a training of negative length": ({"lineage": [{"method": "a", "minutes": -1.0}]}, "lineage.0.minutes: "),
    "no steps": ({"steps": 0}, "steps: "),
    "a field of version 2 in version 1": ({"format_version": 1}, "not a field of format version 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_record_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    change, words = REFUSED[case]
    (tmp_path / "adapter.json").write_text(json.dumps(record(**change)))
    with pytest.raises(InvalidInput) as caught:
        read_record(tmp_path / "adapter.json")
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


BAD_TRAINING: dict[str, Callable[[Change], Any]] = {
    "a loss that is no JSON": lambda t: t.update(loss="{"),
    "a loss of other switches": lambda t: t.update(loss='{"guidance": "latent"}'),
    "a loss that is a list": lambda t: t.update(loss=[1]),
    "a method that is a number": lambda t: t.update(method=1),
    "negative minutes": lambda t: t.update(minutes=-1),
    "steps that are a text": lambda t: t.update(optimiser_steps="9"),
}


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_a_version_1_training_that_was_never_written_is_refused(case: str, tmp_path: Path) -> None:
    training = json.loads((VERSION_1 / "superres-control.json").read_text())["training"]
    BAD_TRAINING[case](training)
    with pytest.raises(InvalidInput, match=r"^adapter\.json: \S"):
        version_1(tmp_path, training)


def test_a_record_of_more_than_16_mib_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "adapter.json").write_bytes(b" " * (MAX_RECORD + 1))
    with pytest.raises(InvalidInput, match="over the limit"):
        read_record(tmp_path / "adapter.json")


def test_what_was_not_recorded_is_absent_from_the_file() -> None:
    written = record()
    assert "shift" not in written
    assert written["lineage"] == [{"method": "pe-codi", "minutes": 1.0}]
    assert written["loss"] == BOTH


def test_a_record_is_checked_when_it_is_made() -> None:
    with pytest.raises(ValidationError):
        AdapterRecord(**record(steps=0))


def test_reading_a_record_needs_no_torch() -> None:
    code = (
        "import sys; from codi_hub.record import read_record; from pathlib import Path; "
        f"read_record(Path({str(NANO / 'inpaint' / 'adapter.json')!r})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
