"""An adapter on disk: `adapter.safetensors`, `adapter.json`, `README.md`. Read with suspicion, written once."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from codi_hub import adapters
from codi_hub.adapters.adapter import Adapter
from codi_hub.adapters.skeleton import skeleton
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.fingerprint import Fingerprint
from codi_hub.errors import InvalidInput, Mismatch, UsageError, one_line

FORMAT_VERSION = 1
WEIGHTS, RECORD, CARD = "adapter.safetensors", "adapter.json", "README.md"
FLOATS = ("F16", "BF16", "F32")
ITEMSIZE = 2  # bytes of a weight on disk
PIECE = 1 << 20  # weights converted at a time
MAX_RECORD = 16 << 20  # bytes; some ten thousand are usual


class BaseRecord(BaseModel):
    """The base an adapter was distilled on."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    family: str
    sketch: dict[str, list[float]]


class AdapterRecord(BaseModel):
    """`adapter.json`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format_version: int = Field(default=FORMAT_VERSION, ge=1)
    task: str
    kind: str
    base: BaseRecord
    prediction_type: Literal["epsilon", "v_prediction", "sample"]
    steps: int = Field(ge=1, le=1000)
    config: dict[str, Any]
    training: dict[str, Any] = {}
    metrics: dict[str, Any] = {}


def write(folder: Path, adapter: torch.nn.Module, record: AdapterRecord, card: str) -> None:
    """Writes the three files; weights in 16 bit."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().half().cpu().contiguous() for name, value in adapter.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / RECORD).write_text(json.dumps(record.model_dump(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")


def read_record(path: Path) -> AdapterRecord:
    """Reads and checks `adapter.json`.

    Raises:
        InvalidInput: not JSON, missing or unknown fields, or a newer format.
    """
    try:
        if (size := path.stat().st_size) > MAX_RECORD:
            raise InvalidInput(f"{path.name}: {size} bytes, over the limit of {MAX_RECORD}: not an adapter record")
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data.get("format_version", 0) if isinstance(data, dict) else 0
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise InvalidInput(
                f"{path.name}: format version {version}, this program reads up to {FORMAT_VERSION}: upgrade codi-hub"
            )
        return AdapterRecord.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = one_line(".".join(str(part) for part in first["loc"]), 80) or "content"
        raise InvalidInput(f"{path.name}: {where}: {first['msg'].lower()}") from error
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8, not JSON, or a number of 5,000 digits
        raise InvalidInput(f"{path.name}: not an adapter record: {one_line(error, 160)}") from error


def check(record: AdapterRecord, weights: Path, base: Fingerprint, *, allow_base_mismatch: bool = False) -> None:
    """What can be told without loading any weights: the files of an adapter belong to a base, and are whole.

    Raises:
        Mismatch: it belongs to another base.
        InvalidInput: a kind that is not known here, or weights that are damaged or no floating-point tensors.
    """
    base.check(record.base.family, record.base.sketch, allow_fine_tune=allow_base_mismatch)
    if adapters.RENAMED.get(record.kind, record.kind) not in adapters.KINDS:
        known = ", ".join(adapters.KINDS.names())
        raise InvalidInput(
            f"{RECORD}: kind {one_line(record.kind, 40)!r}, and this program knows {known}: upgrade codi-hub"
        )
    try:
        with safe_open(weights, framework="pt") as file:
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(weights, error) from error
    for name, dtype in types.items():
        if dtype not in FLOATS:
            raise InvalidInput(
                f"{weights.name}: tensor {one_line(name, 80)} is of {dtype}, and weights are one of {', '.join(FLOATS)}"
            )


def check_condition(record: AdapterRecord, ref: str, task: str, channels: int) -> None:
    """Raises Mismatch where an adapter takes conditions of another number of channels than its task makes."""
    takes = record.config.get("condition_channels", channels)
    if takes != channels:
        raise Mismatch(
            f"{ref} takes conditions of {one_line(takes, 40)} channels, and its task, like {task}, makes {channels}: "
            "register the task like the one it was distilled for, or distil it again"
        )


def _unreadable(weights: Path, error: Exception) -> InvalidInput:
    return InvalidInput(f"{weights.name}: not readable as adapter weights: {one_line(error, 160)}")


def load(weights: Path, record: AdapterRecord, base: Backbone, *, allow_base_mismatch: bool = False) -> Adapter:
    """An adapter ready to run on `base`, in the base's dtype and on its device.

    Raises:
        Mismatch: it belongs to another base.
        InvalidInput: the weights are damaged, or are not those the record describes.
    """
    check(record, weights, base.fingerprint, allow_base_mismatch=allow_base_mismatch)
    if record.prediction_type != base.schedule.prediction_type:
        raise Mismatch(
            f"the adapter predicts {record.prediction_type}, this base {base.schedule.prediction_type}: "
            "distil the task on this base"
        )
    try:
        # files of the first edition that state no start_noise were made with half of it
        adapter = skeleton(record.kind, base, **_first_edition(record.config))
        adapter.load_state_dict(load_file(weights), assign=True)  # mapped: what does not fit is refused unread
    except (UsageError, TypeError) as error:
        raise InvalidInput(f"{RECORD}: config: {one_line(error, 160)}") from error
    except (SafetensorError, OSError) as error:
        raise _unreadable(weights, error) from error
    except RuntimeError as error:
        raise InvalidInput(
            f"{weights.name}: tensors differ from those of kind {record.kind} on this base: {one_line(error, 160)}"
        ) from error
    for parameter in adapter.requires_grad_(False).parameters():
        parameter.data = placed(parameter.data, base.device, base.dtype)
    return adapter.eval()


def _first_edition(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with what the first edition left out where it was its default."""
    return {"start_noise": 0.5} | config if config.get("start", 1) != 1 else config


def placed(value: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A weight as the base has its own: on its device, in its dtype, a convolution's channels last. Never `value`.

    From float16 to bfloat16 a CPU goes faster by way of float32, in pieces that its cache holds.
    """
    layout = torch.channels_last if value.ndim == 4 else torch.contiguous_format
    if device.type != "cpu" or dtype != torch.bfloat16 or not value.ndim:
        return value.to(device).to(dtype, memory_format=layout, copy=True)
    made = torch.empty_like(value, dtype=dtype, memory_format=layout)
    rows = max(1, PIECE // max(1, value[:1].numel()))
    for piece, place in zip(value.split(rows), made.split(rows), strict=True):
        place.copy_(piece.float().to(dtype))
    return made
