"""Values that several options share: devices, precisions, durations and sizes."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

from codi_hub.errors import UsageError

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "fp16", "bf16"]
ExportFormat = Literal["diffusers"]
ExportPrecision = Literal["fp16", "bf16", "fp32"]

DEVICES: tuple[str, ...] = get_args(Device)
DTYPES: tuple[str, ...] = get_args(Precision)
EXPORT_FORMATS: tuple[str, ...] = get_args(ExportFormat)
EXPORT_DTYPES: tuple[str, ...] = get_args(ExportPrecision)
ADAPTER_MEMORY = 2 * 10**9  # bytes of loaded adapters that stay in memory for later use

KIND_ALIASES = {"side": "residual"}  # adapter kinds under the names of the first edition

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")
_DURATION_FORM = "write it as 90s, 10m or 1h30m"
_SIZE = re.compile(r"(\d{1,15}(?:\.\d+)?) *([kmgt]?)(i?)b?")
_SIZE_FORM = "write it as 500MB or 2GB"


def parse_duration(text: str | float) -> float:
    """Return the seconds in "90s", "10m", "1h30m" or "45" (seconds).

    Raises:
        UsageError: anything else, or a duration of 0.
    """
    try:
        return _seconds(text)
    except ValueError:
        raise UsageError(f"not a duration: {str(text)!r}; {_DURATION_FORM}") from None


def parse_size(text: str | int) -> int:
    """Return the bytes in "500MB", "2G", "1.5GiB" or "4096" (bytes). GB is 1000 MB, GiB is 1024 MiB.

    Raises:
        UsageError: anything else.
    """
    try:
        return _bytes(text)
    except ValueError:
        raise UsageError(f"not a size: {str(text)!r}; {_SIZE_FORM}") from None


def _seconds(text: Any) -> float:
    match = _DURATION.fullmatch(str(text).strip().lower())
    parts = match.groups() if match else (None, None, None)
    seconds = sum(float(part) * unit for part, unit in zip(parts, (3600, 60, 1), strict=True) if part)
    if seconds <= 0:
        raise ValueError(f"not a duration; {_DURATION_FORM}")
    return seconds


def _bytes(text: Any) -> int:
    match = _SIZE.fullmatch(str(text).strip().lower())
    if not match or (match[3] and not match[2]):
        raise ValueError(f"not a size; {_SIZE_FORM}")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2] or " "))


def _optional_seconds(value: Any) -> float | None:
    return None if value is None else _seconds(value)


Duration = Annotated[float | None, BeforeValidator(_optional_seconds)]
"""Seconds, from any text that `parse_duration` reads."""

ByteSize = Annotated[int, BeforeValidator(_bytes)]
"""Bytes, from any text that `parse_size` reads."""
