"""Values that several options share: devices, precisions, durations and sizes."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator

Optimizer = Literal["adamw", "adamw8bit"]
EmaDevice = Literal["device", "cpu"]
Precision = Literal["auto", "fp32", "fp16", "bf16"]
Bits = Annotated[Literal[8, 16], BeforeValidator(lambda value: int(value) if value in ("8", "16") else value)]
ExportFormat = Literal["diffusers", "ldm", "comfyui", "peft", "codi"]
ExportPrecision = Literal["fp16", "bf16", "fp32"]

MAX_SEED = 2**64 - 1
SIDES = (8, 10_000)  # of an output in pixels, at least and at most
MAX_SHARDS = 1_000_000
RAY_ADDRESS = r"^(local|auto|[\w.\-]+:\d+)$"
MAX_DEVICES = 256  # of one machine
ADAPTER_MEMORY = 2 * 10**9  # bytes of loaded adapters that stay in memory for later use

KIND_ALIASES = {"side": "residual"}  # adapter kinds under the names of the first edition

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?")
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")
_SIZE = re.compile(r"(\d{1,15}(?:\.\d+)?) *([kmgt]?)(i?)b?")


def _device(name: Any) -> Any:
    if not _DEVICE.fullmatch(str(name)):
        raise ValueError("one of auto, cpu, cuda, cuda:N, mps")
    return name


def _seconds(text: Any) -> float:
    match = _DURATION.fullmatch(str(text).strip().lower())
    parts = match.groups() if match else (None, None, None)
    seconds = sum(float(part) * unit for part, unit in zip(parts, (3600, 60, 1), strict=True) if part)
    if seconds <= 0:
        raise ValueError("not a duration; write it as 90s, 10m or 1h30m")
    return seconds


def _bytes(text: Any) -> int:
    match = _SIZE.fullmatch(str(text).strip().lower())
    if not match or (match[3] and not match[2]):
        raise ValueError("not a size; write it as 500MB or 2GB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2] or " "))


def _image_size(value: Any) -> tuple[int, int]:
    parts = str(value).lower().split("x") if isinstance(value, str) else value
    try:
        width, height = (int(part) for part in parts)
    except (TypeError, ValueError):
        width = height = 0
    if not SIDES[0] <= min(width, height) <= max(width, height) <= SIDES[1]:
        raise ValueError(f"width and height from {SIDES[0]} to {SIDES[1]} pixels, as 1024x768")
    return width, height


class Shard(NamedTuple):
    """Part `number`, from 1, of `of` parts."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def _shard(value: Any) -> Any:
    parts = value.split("/") if isinstance(value, str) else value
    try:
        number, count = (int(part) for part in parts)
    except (TypeError, ValueError):
        number = count = 0
    if not 1 <= number <= count <= MAX_SHARDS:
        raise ValueError(f"write I/N with I from 1 to N and N at most {MAX_SHARDS}, as 1/8")
    return Shard(number, count)


def _devices(value: Any) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    devices = tuple(str(_device(str(name).strip())) for name in names)
    if "auto" in devices or len(devices) > MAX_DEVICES:
        raise ValueError(f"1 to {MAX_DEVICES} names of devices, as cuda:0,cuda:1 or cpu,cpu")
    return devices


Device = Annotated[str, BeforeValidator(_device)]
"""A device by name; cuda:1 is the second GPU."""

Duration = Annotated[float, BeforeValidator(_seconds)]
"""Seconds, from text such as "90s", "10m", "1h30m" or "45" (seconds)."""

ByteSize = Annotated[int, BeforeValidator(_bytes)]
"""Bytes, from text such as "500MB", "2G", "1.5GiB" or "4096". GB is 1000 MB, GiB is 1024 MiB."""

ImageSize = Annotated[tuple[int, int], BeforeValidator(_image_size)]
"""(width, height) in pixels, from text such as "1024x768" or a pair of numbers."""

ShardOfRun = Annotated[Shard, BeforeValidator(_shard)]
"""A part of a run, from text such as "1/8" or a pair of numbers."""

Devices = Annotated[tuple[str, ...], BeforeValidator(_devices)]
"""Devices of a run, one process each, from text such as "cuda:0,cuda:1" or a sequence of names."""
