"""An adapter on disk: `adapter.safetensors`, `adapter.json`, `README.md`. Files are checked before they are used."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from codi_hub import adapters
from codi_hub.adapters.adapter import Adapter
from codi_hub.adapters.skeleton import skeleton
from codi_hub.backbones.backbone import Backbone
from codi_hub.backbones.fingerprint import Fingerprint
from codi_hub.errors import InvalidInput, Mismatch, UsageError, one_line
from codi_hub.record import RECORD, AdapterRecord, BaseRecord, read_record  # noqa: F401 - the format has them too
from codi_hub.registry.store import sha256

WEIGHTS, CARD = "adapter.safetensors", "README.md"
FLOATS = ("F16", "BF16", "F32")
ITEMSIZE = 2  # bytes of a stored weight
PIECE = 1 << 20  # weights converted at a time


def write(folder: Path, adapter: torch.nn.Module, record: AdapterRecord, card: str) -> None:
    """Write the three files of an adapter; weights are stored in 16 bit."""
    tensors = {name: value.detach().half().cpu().contiguous() for name, value in adapter.state_dict().items()}
    write_tensors(folder, tensors, record, card)


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], record: AdapterRecord, card: str) -> None:
    """Write the three files of an adapter from its tensors, each in its own precision.

    A configuration of an imported network is part of the weights' file too: files with equal hashes are one adapter.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network = record.config.get("network")
    text = {"format": "pt"} if network is None else {"network": json.dumps(network, sort_keys=True)}
    save_file(dict(tensors), folder / WEIGHTS, metadata=text)  # one entry: several have no order
    record = record.model_copy(update={"weights": sha256(folder / WEIGHTS)})
    (folder / RECORD).write_text(record.to_json(), encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")


def check(record: AdapterRecord, weights: Path, base: Fingerprint, *, allow_base_mismatch: bool = False) -> None:
    """Check, without loading weights, that the files of an adapter are whole and belong to a base.

    Raises:
        Mismatch: the adapter was trained on another base.
        InvalidInput: an unknown kind, or weights that are damaged or not floating-point tensors.
    """
    base.check(record.base.family, record.base.sketch, allow_fine_tune=allow_base_mismatch)
    if record.kind not in adapters.KINDS:
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
    """Raise Mismatch where an adapter's condition has another number of channels than its task's."""
    takes = record.config.get("condition_channels", channels)
    if takes != channels:
        raise Mismatch(
            f"{ref} takes conditions of {one_line(takes, 40)} channels, and its task, like {task}, makes {channels}: "
            "register the task like the one the adapter was trained for, or train the adapter again"
        )


def _unreadable(weights: Path, error: Exception) -> InvalidInput:
    return InvalidInput(f"{weights.name}: not readable as adapter weights: {one_line(error, 160)}")


def load(weights: Path, record: AdapterRecord, base: Backbone, *, allow_base_mismatch: bool = False) -> Adapter:
    """Return an adapter for inference on `base`, in the base's dtype and on its device.

    Raises:
        Mismatch: the adapter was trained on another base.
        InvalidInput: the weights are damaged, or differ from the record's description.
    """
    check(record, weights, base.fingerprint, allow_base_mismatch=allow_base_mismatch)
    if record.prediction_type != base.schedule.prediction_type:
        raise Mismatch(
            f"the adapter predicts {record.prediction_type}, this base {base.schedule.prediction_type}: "
            "distil the task on this base"
        )
    try:
        adapter = skeleton(record.kind, base, **record.config)
        adapter.load_state_dict(load_file(weights), assign=True)  # memory-mapped: a mismatch is refused unread
    except (UsageError, TypeError) as error:
        raise InvalidInput(f"{RECORD}: config: {one_line(error, 160)}") from error
    except (SafetensorError, OSError) as error:
        raise _unreadable(weights, error) from error
    except RuntimeError as error:
        raise InvalidInput(
            f"{weights.name}: tensors differ from those of kind {record.kind} on this base: {one_line(error, 160)}"
        ) from error
    for value in [*adapter.requires_grad_(False).parameters(), *adapter.buffers()]:
        value.data = placed(value.data, base.device, base.dtype)
    return adapter.eval()


def placed(value: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return a copy of a weight on a device, in a dtype, a convolution's in channels-last layout.

    On a CPU, float16 to bfloat16 is faster through float32, in pieces that fit into the cache.
    """
    layout = torch.channels_last if value.ndim == 4 else torch.contiguous_format
    if device.type != "cpu" or dtype != torch.bfloat16 or not value.ndim:
        return value.to(device).to(dtype, memory_format=layout, copy=True)
    converted = torch.empty_like(value, dtype=dtype, memory_format=layout)
    rows = max(1, PIECE // max(1, value[:1].numel()))
    for source, target in zip(value.split(rows), converted.split(rows), strict=True):
        target.copy_(source.float().to(dtype))
    return converted
