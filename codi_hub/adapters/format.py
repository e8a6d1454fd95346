"""An adapter on disk: `adapter.safetensors`, `adapter.json`, `README.md`. Read with suspicion, written once."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from codi_hub import adapters
from codi_hub.base import FrozenBase
from codi_hub.errors import InvalidInput, Mismatch

FORMAT_VERSION = 1
WEIGHTS, RECORD, CARD = "adapter.safetensors", "adapter.json", "README.md"


class BaseRecord(BaseModel):
    """The base an adapter was distilled on."""

    model_config = ConfigDict(extra="forbid")
    name: str
    family: str
    sketch: dict[str, list[float]]


class AdapterRecord(BaseModel):
    """`adapter.json`."""

    model_config = ConfigDict(extra="forbid")
    format_version: int = FORMAT_VERSION
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
    (folder / RECORD).write_text(json.dumps(record.model_dump(), indent=1, sort_keys=True) + "\n")
    (folder / CARD).write_text(card)


def read_record(path: Path) -> AdapterRecord:
    """Reads and checks `adapter.json`.

    Raises:
        InvalidInput: not JSON, missing or unknown fields, or a newer format.
    """
    try:
        data = json.loads(path.read_text())
        version = data.get("format_version", 0) if isinstance(data, dict) else 0
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise InvalidInput(
                f"{path.name}: format version {version}, this program reads up to {FORMAT_VERSION}: upgrade codi-hub"
            )
        return AdapterRecord.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "content"
        raise InvalidInput(f"{path.name}: {where}: {first['msg'].lower()}") from error
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8, not JSON, or a number of 5,000 digits
        raise InvalidInput(f"{path.name}: not an adapter record: {str(error).splitlines()[0]}") from error


def load(
    weights: Path, record: AdapterRecord, base: FrozenBase, *, allow_base_mismatch: bool = False
) -> "adapters.ControlAdapter":
    """An adapter ready to run on `base`, in the base's dtype and on its device.

    Raises:
        Mismatch: it belongs to another base.
        InvalidInput: the weights are damaged, or are not those the record describes.
    """
    base.fingerprint.check(record.base.family, record.base.sketch, allow_fine_tune=allow_base_mismatch)
    if record.prediction_type != base.schedule.prediction_type:
        raise Mismatch(
            f"the adapter predicts {record.prediction_type}, this base {base.schedule.prediction_type}: "
            "distil the task on this base"
        )
    try:
        adapter = adapters.build(record.kind, base, pretrained=False, **record.config)
        tensors = load_file(weights, device=str(base.device))
        adapter.load_state_dict(tensors)
    except (SafetensorError, OSError, TypeError) as error:
        raise InvalidInput(f"{weights.name}: not readable as adapter weights: {str(error).splitlines()[0]}") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise InvalidInput(
            f"{weights.name}: tensors differ from those of kind {record.kind} on this base: {reason}"
        ) from error
    return adapter.to(base.dtype).requires_grad_(False).eval()
