"""`adapter.json`: what an adapter is, how it was trained, and what it scores. Importing this needs no torch.

Format version 2. Version 1, of the first edition, is upgraded in memory by `_from_version_1`; nothing else in the
program knows it.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from codi_hub.errors import InvalidInput, UsageError, one_line

FORMAT_VERSION = 2
RECORD = "adapter.json"
MAX_RECORD = 16 << 20  # bytes; a usual record has some ten thousand
CODI_METHODS = ("pe-codi", "codi")  # methods whose loss has a guidance and a consistency term
START_NOISE_1 = 0.5  # version 1: `start_noise` of a config with `start` below 1 that does not name it
DISTILLED_METHODS = (*CODI_METHODS, "cm", "gd", "regression", "guidance-only")  # which take no guidance scale
ONLY_TERM = {"conditional": "diffusion", "cm": "consistency", "gd": "progressive"}  # methods whose loss has one term

Method = Annotated[str, StringConstraints(max_length=60, pattern=r"^[\w .,()/-]*$")]
"""Name of a method; "" where it was not recorded."""
Term = Annotated[str, StringConstraints(min_length=1, max_length=40, pattern=r"^[\w-]+$")]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, StringConstraints(max_length=400)]


class BaseRecord(BaseModel):
    """The base that an adapter was trained on."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    family: str
    sketch: dict[str, list[float]]


class TrainingRecord(BaseModel):
    """One training of a lineage. What was not recorded is None or ""."""

    model_config = ConfigDict(extra="forbid", strict=True)
    method: Method
    """As `AdapterRecord.method`, or a name of its own for methods that are not an adapter's."""
    data: Text = ""
    """Number, size in pixels and source of the training pairs."""
    minutes: Weight | None = None
    """Training time, without encoding and evaluation."""
    steps: Annotated[int, Field(ge=0)] | None = None
    """Optimiser steps."""
    start: Text = ""
    """What training started from: `random initialisation`, `pretrained initialisation` or `from TASK:VERSION`."""
    task: Text = ""
    kind: Text = ""
    hardware: Text = ""


class OriginRecord(BaseModel):
    """Where an imported adapter came from."""

    model_config = ConfigDict(extra="forbid", strict=True)
    file: Text
    """Name of the file or folder, without its place."""
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
    """Of the weights file; of several, of their hashes one after the other."""
    format: Text
    """What it was, such as `diffusers folder`."""


class AdapterRecord(BaseModel):
    """The content of `adapter.json`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format_version: Literal[2] = 2
    task: str
    kind: str
    base: BaseRecord
    prediction_type: Literal["epsilon", "v_prediction", "sample", "flow"]
    steps: int = Field(ge=1, le=1000)
    """Sampling steps by default."""
    shift: Weight | None = None
    """Shift of the time grid, of flow-matching bases that have one."""
    guidance: Weight | None = None
    """The fixed guidance value that a guidance-distilled base was given."""
    config: dict[str, Any]
    """Arguments of the adapter kind: `condition_channels`, `start`, and those of the kind's own config class."""
    method: Method = ""
    """What was trained, as `label` names it."""
    loss: dict[Term, Weight] = {}
    """Weight of each loss term that was trained; a term that was not trained is absent."""
    training: dict[str, Any] = {}
    """Settings of the last training: batch, learning rate, kind of guidance, ..."""
    lineage: list[TrainingRecord] = []
    """Every training that led to these weights, the oldest first."""
    metrics: dict[str, Any] = {}
    origin: OriginRecord | None = None
    """Of an imported adapter; None for one that was trained here."""
    weights: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """sha256 of `adapter.safetensors`, by which a record is found again without a database."""

    def to_json(self) -> str:
        """Return the text of `adapter.json`, without the fields that do not apply or were not recorded."""
        content = {name: value for name, value in self.model_dump().items() if value is not None}
        content["lineage"] = [{k: v for k, v in one.items() if v not in (None, "")} for one in content["lineage"]]
        return json.dumps(content, indent=1, sort_keys=True) + "\n"


def label(method: str, *, consistency: bool, guidance: bool, start: float, start_noise: float) -> str:
    """Return the method that a training deserves to be called, whatever method was asked for.

    CoDi without its consistency term distils nothing. With noise where sampling starts it is `guidance-only`; without
    noise it is `regression`: the input is a function of the condition alone, and so is the output.

    Args:
        method: the method asked for; only the two of CoDi have terms that can be switched off.
        consistency, guidance: whether that term is trained, with a weight above 0.
        start: where sampling starts, as a share of the schedule; at 1 it starts from noise.
        start_noise: below `start` 1, share of that time's noise that is added to the condition, from 0 to 1.

    Raises:
        UsageError: neither term is trained.
    """
    if method not in CODI_METHODS:
        return method
    if not consistency and not guidance:
        raise UsageError(f"loss of {method}: neither guidance nor consistency is trained: switch one of them on")
    if consistency:
        return method
    return "guidance-only" if start == 1 or start_noise > 0 else "regression"


def read_record(path: Path) -> AdapterRecord:
    """Read and check `adapter.json` of format version 2 or 1.

    Raises:
        InvalidInput: too large, not JSON, missing or unknown fields, or a newer format.
    """
    try:
        if (size := path.stat().st_size) > MAX_RECORD:
            raise InvalidInput(f"{RECORD}: {size} bytes, over the limit of {MAX_RECORD}: not an adapter record")
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data.get("format_version", 1) if isinstance(data, dict) else None
        if type(version) is int and version > FORMAT_VERSION:
            raise InvalidInput(
                f"{RECORD}: format version {one_line(version, 40)}, this program reads up to {FORMAT_VERSION}: "
                "upgrade codi-hub"
            )
        if type(version) is int and version == 1:
            data = _from_version_1(data)
        return AdapterRecord.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = one_line(".".join(str(part) for part in first["loc"]), 80) or "content"
        raise InvalidInput(f"{RECORD}: {where}: {first['msg'].lower()}") from error
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8, not JSON, or a number of 5,000 digits
        raise InvalidInput(f"{RECORD}: not an adapter record: {one_line(error, 160)}") from error


def recorded_method(path: Path) -> str | None:
    """Return the method that an `adapter.json` names; None where it names none or cannot be read."""
    try:
        return read_record(path).method or None
    except InvalidInput:
        return None


# ---- format version 1


class _Loss1(BaseModel):
    """`training.loss` of version 1, itself JSON: the switches of CoDi's loss."""

    model_config = ConfigDict(extra="forbid", strict=True)
    guidance: str = Field(max_length=40)
    ode: str = Field(max_length=40)
    consistency: bool
    weight: Weight
    cap: bool


class _Training1(BaseModel):
    """`training` of version 1, as far as it becomes fields of version 2."""

    model_config = ConfigDict(extra="allow", strict=True)
    method: str = Field(default="", max_length=400)
    loss: str | None = Field(default=None, max_length=400)
    data: Text = ""
    minutes: Weight | None = None
    optimiser_steps: Annotated[int, Field(ge=0)] | None = None
    hardware: Text = ""
    parent: Text = ""  # is said by `method` too


def _from_version_1(data: dict[str, Any]) -> dict[str, Any]:
    """Return a version 1 record as version 2: kind `side` is `residual`; method, loss and lineage from `training`.

    Version 1 had the last training alone. Where that one went on from a version, its predecessors are not recorded.

    Raises:
        ValidationError: a `training` that version 1 did not write.
    """
    data = dict(data) | {"format_version": FORMAT_VERSION}
    for name in ("method", "loss", "lineage", "shift", "guidance"):
        if name in data:
            raise InvalidInput(f"{RECORD}: {name}: not a field of format version 1")
    if data.get("kind") == "side":
        data["kind"] = "residual"
    if not isinstance(data.get("training", {}), dict) or not isinstance(data.get("config"), dict):
        return data  # refused by its types
    if data["config"].get("start", 1) != 1:
        data["config"] = {"start_noise": START_NOISE_1} | data["config"]
    old = _Training1.model_validate(data.get("training", {}))
    asked, _, start = old.method.partition(", ")
    start = start.partition(", ")[2]
    if data.get("kind") == "residual" and start == "pretrained initialisation":
        start = "random initialisation"  # a residual network has no weights of the base
    terms, settings = {name: 1.0 for name in [ONLY_TERM.get(asked)] if name}, dict(old.model_extra or {})
    if old.loss is not None and asked in CODI_METHODS:
        switches = _Loss1.model_validate_json(old.loss)
        terms = {"guidance": 1.0} if switches.guidance != "off" else {}
        terms |= {"consistency": switches.weight} if switches.consistency and switches.weight else {}
        settings |= {"guidance": switches.guidance, "ode": switches.ode, "consistency_cap": switches.cap}
    method = asked
    if terms:
        noise = data["config"].get("start_noise", 0)
        starts = {
            "start": data["config"].get("start", 1),
            "start_noise": noise if isinstance(noise, int | float) else 0,
        }
        method = label(asked, consistency="consistency" in terms, guidance="guidance" in terms, **starts)
    last = TrainingRecord.model_validate(
        {"method": method, "data": old.data, "minutes": old.minutes, "steps": old.optimiser_steps, "start": start}
        | {"task": str(data.get("task", ""))[:400], "kind": str(data.get("kind", ""))[:400], "hardware": old.hardware}
    )
    return data | {"method": method, "loss": terms, "training": settings, "lineage": [last.model_dump()] * bool(asked)}
